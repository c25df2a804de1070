"""convert-image beside its floor: reading the file with tifffile and compressing its chunks in a plain loop.

The floor makes no pyramid, no checksums, no report and cannot resume. The command's figures are beyond its imports.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from measure import KBRAIN, Table, import_cost, measure_call, measure_command
from scipy.ndimage import gaussian_filter

CHUNK = 64
ZSTD_LEVEL = 3
PLANE_PX = 512
IMPORTS = (
    "numpy",
    "tifffile",
    "imagecodecs",
    "tensorstore",
    "numba",
    "scipy.ndimage",
    "matplotlib.figure",
    "jinja2",
)


def write_stack(path: str, planes: int, compression: str | None) -> int:
    """Write a 16-bit stack like a light-sheet crop, smooth structure under shot noise; returns its bytes."""
    rng = np.random.default_rng(0)
    structure = gaussian_filter(rng.random((PLANE_PX, PLANE_PX), np.float32), 6)
    structure = 100 + 3000 * np.clip((structure - 0.5) * 20, 0, 1)

    def noisy() -> object:
        for plane in range(planes):
            moved = np.roll(structure, 3 * plane, axis=plane % 2)
            yield (moved + np.sqrt(moved) * rng.standard_normal(moved.shape, np.float32)).astype(np.uint16)

    tifffile.imwrite(
        path,
        noisy(),
        shape=(planes, PLANE_PX, PLANE_PX),
        dtype=np.uint16,
        compression=compression,
        photometric="minisblack",
        metadata={"axes": "ZYX", "spacing": 1.0, "unit": "um"},
        resolution=(1.0, 1.0),
        imagej=compression is None,
        rowsperstrip=128,
    )
    return planes * PLANE_PX * PLANE_PX * 2


def floor(source: str, output: str) -> int:
    """Read slabs of pages, compress chunks of 64^3 with zstd, write each to a file; returns the bytes written."""
    written = 0
    folder = Path(output)
    folder.mkdir()
    with tifffile.TiffFile(source) as tif:
        planes = tif.series[0].shape[0]
        for z in range(0, planes, CHUNK):
            slab = tif.asarray(key=range(z, min(z + CHUNK, planes)), maxworkers=1)
            for y in range(0, PLANE_PX, CHUNK):
                for x in range(0, PLANE_PX, CHUNK):
                    chunk = np.ascontiguousarray(slab[:, y : y + CHUNK, x : x + CHUNK])
                    data = imagecodecs.zstd_encode(chunk, ZSTD_LEVEL)
                    written += (folder / f"{z}_{y}_{x}").write_bytes(data)
    return written


def main() -> None:
    """Measure, print, and keep the table in docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--planes", type=int, nargs="+", default=[1024, 3072], help="stacks of 512x512 16-bit planes"
    )
    options = parser.parse_args()
    table = Table(
        "convert-image", ["stack", "tool", "CPU s", "MB per CPU s", "anonymous memory MB", "CPU / floor"]
    )
    imports = import_cost(*IMPORTS)
    ratios, memories = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        warm = folder / "warm.tif"  # compiles what numba keeps on disk
        write_stack(str(warm), 2, None)
        measure_command([KBRAIN, "convert-image", "--input", warm, "--output", folder / "warm.ome.zarr"])
        for compression in (None, "zlib"):
            for planes in options.planes:
                name = f"{planes} planes {compression or 'uncompressed'}"
                source = folder / f"{planes}_{compression}.tif"
                size_mb = write_stack(str(source), planes, compression) / 1e6
                base, _ = measure_call(
                    "convert:floor", {"source": str(source), "output": str(folder / f"floor_{name}")}
                )
                base = base.beyond(import_cost("numpy", "tifffile", "imagecodecs", "scipy.ndimage"))
                output = folder / f"{planes}_{compression}.ome.zarr"
                ours = measure_command(
                    [KBRAIN, "convert-image", "--input", source, "--output", output, "--workers", "1"]
                ).beyond(imports)
                ratios.append(ours.cpu_s / base.cpu_s)
                memories.append(ours.anonymous_mb)
                table.add(name, "floor", base.cpu_s, size_mb / base.cpu_s, base.anonymous_mb, "1")
                table.add(name, "kbrain", ours.cpu_s, size_mb / ours.cpu_s, ours.anonymous_mb, ratios[-1])
    table.goal(
        "CPU of the longest stack over the floor",
        max(ratios[len(options.planes) - 1 :: len(options.planes)]),
        1.5,
    )
    longest, shortest = memories[len(options.planes) - 1], memories[0]
    table.goal("memory of the longest stack over the shortest", longest / shortest, 1.1)
    table.save()


if __name__ == "__main__":
    main()
