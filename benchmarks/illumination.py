"""correct-illumination: planted shading that remains, stripes removed, and CPU beside its floor.

The floor reads every tile, divides by a flat field in float32, rounds, and writes it: no estimate, no report, no checksums.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import tifffile
from measure import KBRAIN, PROJECT, Table, import_cost, measure_call, measure_command

sys.path.insert(0, str(PROJECT / "test-data"))
from make_phantoms import Camera, Defects, make_tile_grid, write_ome_tiff, write_tiles_table

IMPORTS = ("numpy", "tifffile", "imagecodecs", "cv2", "pywt", "scipy.special", "matplotlib.figure", "jinja2")
FLOOR_IMPORTS = ("numpy", "tifffile")
GRIDS = {
    "EM 6 x 6 of 1024^2": ({"rows": 6, "cols": 6, "size": 1024, "overlap": 0.12}, ["--preset", "em"]),
    "nuclei 10 x 10 of 512^2": ({"rows": 10, "cols": 10, "size": 512, "overlap": 0.15, "kind": "nuclei"}, []),
}
BLANK = Defects(blank=((0, 2, 3),))


def floor(source: str, output: str) -> int:
    """Read, divide, round and write every tile of a folder; returns how many."""
    Path(output).mkdir()
    files = sorted(Path(source).glob("*.tif"))
    gain = np.full(tifffile.imread(files[0]).shape[-2:], 1.01, np.float32)
    for file in files:
        corrected = np.rint(tifffile.imread(file) * gain).clip(0, 255).astype(np.uint8)
        tifffile.imwrite(Path(output) / file.name, corrected)
    return len(files)


def span_percent(field: np.ndarray, dust: np.ndarray | bool = False) -> float:
    """(max - min) / mean over the field, as medians of a 32 x 32 grid without the pixels under dust."""
    side = field.shape[0] // 32
    clear = np.where(dust, np.nan, field).reshape(32, side, 32, side)
    small = np.nanmedian(clear, axis=(1, 3))
    return float(np.ptp(small) / small.mean() * 100)


def shading(table: Table, scratch: Path) -> None:
    """Planted vignettes of 35 %, with dust, shot noise and a blank tile, through the whole command."""
    for name, (options, preset) in GRIDS.items():
        left = []
        for seed in range(3):
            folder = scratch / f"{name[:2]}{seed}"
            folder.mkdir()
            grid = make_tile_grid(defects=BLANK, seed=seed, **options)
            write_ome_tiff(grid, folder)
            write_tiles_table(grid, folder / "tiles.tsv")
            command = [KBRAIN, "correct-illumination", "--tiles", folder / "tiles.tsv", *preset]
            outputs = ["--output", folder / "out", "--tiles-output", folder / "out.tsv"]
            measure_command([*command, *outputs, "--flat-field-output", folder / "flat.ome.tif"])
            size = options["size"]
            smooth = Camera(dust=0).flat_field((size, size), 0)
            dust = cv2.dilate((grid.flat_field / smooth < 0.995).astype(np.uint8), np.ones((9, 9))) > 0
            left.append(span_percent(tifffile.imread(folder / "flat.ome.tif") / smooth, dust))
        planted = span_percent(Camera(dust=0).flat_field((options["size"],) * 2, 0))
        cells = f"{planted:.1f} %", " / ".join(f"{value:.2f} %" for value in left)
        table.add(name, "residual shading, 3 seeds", *cells, "")
        table.goal(f"{name}: median residual shading in %,", float(np.median(left)), 2.0)


def stripes(table: Table) -> None:
    """Planted shadows on EM-like content: power that is left, and peak signal to noise ratio."""
    from kbrain_core.numerics.illumination.stripes import remove_stripes, stripe_energy

    grid = make_tile_grid(rows=2, cols=2, size=1024, overlap=0.2, camera=Camera(vignetting=0, dust=0))
    clean = grid.tiles[0].image[0, 0].astype(np.float32)
    rng = np.random.default_rng(0)
    noise = np.convolve(rng.normal(0, 1, 1032), np.ones(4) / 2, "same")[4:1028]
    striped = clean * np.exp(0.12 * noise, dtype=np.float32)[:, None]
    corrected = remove_stripes(striped)
    own, before, after = (float(stripe_energy(image).sum()) for image in (clean, striped, corrected))
    ratios = [
        10 * np.log10(clean.max() ** 2 / np.mean((image - clean) ** 2)) for image in (striped, corrected)
    ]
    share = abs(after - own) / (before - own) * 100
    table.add("stripes on EM 1024^2", "stripe power", "100 %", f"{share:.2g} %", "")
    table.add("stripes on EM 1024^2", "PSNR", f"{ratios[0]:.1f} dB", f"{ratios[1]:.1f} dB", "")


def costs(table: Table, scratch: Path, side: int) -> None:
    """CPU of the command beside its floor."""
    folder = scratch / "cost"
    folder.mkdir()
    grid = make_tile_grid(rows=side, cols=side, size=1024, overlap=0.12)
    write_ome_tiff(grid, folder)
    write_tiles_table(grid, folder / "tiles.tsv")
    pixels = 1e-8 * side * side * 1024**2  # in 100 Mpx
    base, _ = measure_call("illumination:floor", {"source": str(folder), "output": str(scratch / "floor")})
    base = base.beyond(import_cost(*FLOOR_IMPORTS))
    imports = import_cost(*IMPORTS)
    for preset, more in (("fluorescence", []), ("em", []), ("none", ["--stripes", "on"])):
        outputs = [
            "--output",
            scratch / preset,
            "--tiles-output",
            scratch / f"{preset}.tsv",
            "--workers",
            "1",
        ]
        tiles = ["--tiles", folder / "tiles.tsv", "--tiles-folder", folder]
        ours = measure_command([KBRAIN, "correct-illumination", *tiles, *outputs, "--preset", preset, *more])
        ours = ours.beyond(imports)
        name = f"{side}x{side} of 1024^2, {' '.join([preset, *more])}"
        ratio = f"{ours.cpu_s / base.cpu_s:.2g} x, {ours.anonymous_mb:.0f} MB"
        table.add(name, "CPU s per 100 Mpx (floor, ours)", base.cpu_s / pixels, ours.cpu_s / pixels, ratio)


def main() -> None:
    """Measure, print, and keep the table in docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--side", type=int, default=10, help="the cost is measured on side x side tiles of 1024^2"
    )
    options = parser.parse_args()
    table = Table(
        "correct-illumination", ["data", "figure", "before or floor", "after or ours", "ratio, memory"]
    )
    with tempfile.TemporaryDirectory() as scratch:
        shading(table, Path(scratch))
        stripes(table)
        costs(table, Path(scratch), options.side)
    table.save()


if __name__ == "__main__":
    main()
