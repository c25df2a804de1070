"""sort-tiles beside its floor: reading every tile once and hashing its pixels.

    python benchmarks/sort.py

The floor measures no quality, finds no positions and writes no report. The command's figures are beyond its imports.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

import tifffile
from measure import KBRAIN, PROJECT, Table, import_cost, measure_call, measure_command

sys.path.insert(0, str(PROJECT / "test-data"))
from make_phantoms import make_tile_grid, write_ome_tiff

IMPORTS = (
    "numpy",
    "tifffile",
    "imagecodecs",
    "scipy.ndimage",
    "cv2",
    "matplotlib.figure",
    "jinja2",
    "tensorstore",
)


def floor(folder: str) -> int:
    """Read and hash every tile; returns how many there are."""
    paths = sorted(Path(folder).glob("*.tif"))
    for path in paths:
        hashlib.sha256(tifffile.imread(path).tobytes()).hexdigest()
    return len(paths)


def main() -> None:
    """Measure, print, and keep the table in docs/benchmarks.md."""
    table = Table("sort-tiles", ["tiles of 512^2", "tool", "CPU s", "ms a tile", "peak MB beyond imports"])
    imports = import_cost(*IMPORTS)
    peaks = []
    with tempfile.TemporaryDirectory() as scratch:
        for side in (5, 15):
            folder = Path(scratch) / str(side)
            write_ome_tiff(make_tile_grid(rows=side, cols=side, size=512, overlap=0.12), folder)
            base, count = measure_call("sort:floor", {"folder": str(folder)})
            base = base.beyond(import_cost("numpy", "tifffile", "imagecodecs", "cv2", "scipy.ndimage"))
            command = [KBRAIN, "sort-tiles", folder, "--output", folder / "tiles.tsv", "--workers", "1"]
            ours = measure_command(command).beyond(imports)
            peaks.append(ours.rss_mb)
            table.add(count, "floor", base.cpu_s, 1000 * base.cpu_s / count, base.rss_mb)
            table.add(count, "kbrain", ours.cpu_s, 1000 * ours.cpu_s / count, ours.rss_mb)
    table.goal("peak memory of 225 tiles over that of 25, MB", peaks[1] - peaks[0], 50)
    table.save()


if __name__ == "__main__":
    main()
