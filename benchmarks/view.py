"""view-volume: making a page must cost the same however large the volume is, for it reads only a coarse level.

python benchmarks/view.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import tifffile
from measure import KBRAIN, Table, measure_command


def main() -> None:
    """Measure, print, and keep the table in docs/benchmarks.md."""
    table = Table("view-volume", ["volume, MB", "CPU s", "MB read", "peak MB"])
    read_mb = []
    with tempfile.TemporaryDirectory() as scratch:
        for depth in (64, 512):
            folder = Path(scratch) / str(depth)
            folder.mkdir()
            voxels = np.random.default_rng(0).integers(0, 255, (depth, 512, 512), np.uint8)
            tifffile.imwrite(folder / "v.tif", voxels, photometric="minisblack", metadata={"axes": "ZYX"})
            volume, zarr = folder / "v.precomputed", folder / "v.ome.zarr"
            convert = [KBRAIN, "convert-image", "--input", folder / "v.tif", "--output", zarr]
            for command in (
                [*convert, "--voxel-size", "100nm"],
                [KBRAIN, "precompute-volume", "--input", zarr, "--output", volume],
            ):
                measure_command(command)
            usage = measure_command([KBRAIN, "view-volume", "--input", volume, "--output", folder / "view"])
            summary = json.loads((folder / "view-summary.json").read_text())
            read_mb.append(summary["read_bytes"] / 1e6)
            table.add(voxels.nbytes / 1e6, usage.cpu_s, read_mb[-1], usage.rss_mb)
    table.goal("MB read for the large volume over the small one", read_mb[1] / read_mb[0], 1.5)
    table.save()


if __name__ == "__main__":
    main()
