"""stitch-tiles beside ASHLAR and multiview-stitcher, on grids with planted sub-pixel truth.

    python benchmarks/stitch.py                    # all grids, peers included
    python benchmarks/stitch.py --no-peers --grids em nuclei

One worker each. CPU seconds are those of the whole process tree, ours beyond imports too; memory is the peak of its resident
set, beyond that of the imports.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import KBRAIN, PROJECT, Table, Usage, import_cost, measure_command
from peers import run_peer

sys.path.insert(0, str(PROJECT / "test-data"))

import cv2
import numpy as np
from make_phantoms import (
    Camera,
    Defects,
    Stage,
    TileGrid,
    TileKey,
    grid_truth,
    make_tile_grid,
    score_tiles,
    write_ome_tiff,
    write_tiles_table,
    write_truth,
)

from kbrain_core.formats.tables import Position, read_table

# What stitch-tiles imports on its way; their cost is the floor that "beyond imports" counts from.
OUR_MODULES = (
    "cyclopts", "jinja2", "scipy.fft", "scipy.sparse.linalg", "scipy.ndimage", "scipy.spatial", "rtree", "tensorstore",
    "tifffile", "imagecodecs", "numba", "cv2", "matplotlib.figure", "matplotlib.backends.backend_agg",
    "kbrain_core.processing.stitch_tiles", "kbrain_core.processing.stitch_tiles_report",
    "kbrain_core.numerics.stitching.fusion", "kbrain_core.formats.readers",
)  # fmt: skip

GRIDS: dict[str, Callable[[], TileGrid]] = {
    "em": lambda: make_tile_grid(defects=Defects(blank=((0, 2, 3),))),
    "em-100": lambda: make_tile_grid(rows=10, cols=10, seed=2),
    "nuclei": lambda: make_tile_grid(rows=10, cols=10, size=512, overlap=0.15, kind="nuclei"),
    "nuclei-400": lambda: make_tile_grid(rows=20, cols=20, size=512, overlap=0.15, kind="nuclei", seed=3),
    "nuclei-16-bit": lambda: make_tile_grid(
        rows=10, cols=10, size=512, overlap=0.15, kind="nuclei", camera=Camera(dtype="uint16"), seed=1
    ),
    "3d": lambda: make_tile_grid(
        rows=3, cols=3, size=256, depth=32, overlap=0.2, stage=Stage(jitter_px=8, jitter_z_px=3)
    ),
}
PEERS = {"em": "ashlar", "nuclei": "ashlar", "3d": "multiview-stitcher"}
# Grids whose stitch cannot be right, or whose stage lies: the verdict has to be FAIL unless the tiles still match.
FAILURES: dict[str, tuple[bool, Callable[[], TileGrid]]] = {
    "no texture": (False, lambda: make_tile_grid(rows=4, cols=4, size=512, overlap=0.15, kind="flat")),
    "overlap 30 % told, 12 % true": (
        False,
        lambda: make_tile_grid(rows=5, cols=5, size=512, overlap=0.12, reported_overlap=0.3),
    ),
    "overlap 12 % told, 30 % true": (
        False,
        lambda: make_tile_grid(rows=5, cols=5, size=512, overlap=0.3, reported_overlap=0.12),
    ),
    "two tiles swapped": (False, lambda: _swapped("em", (0, 1, 1), (0, 3, 2))),
    "neighbours swapped": (False, lambda: _swapped("em", (0, 1, 1), (0, 1, 2))),
    "corners swapped": (False, lambda: _swapped("em", (0, 0, 0), (0, 4, 4))),
    "nuclei swapped": (False, lambda: _swapped("nuclei", (0, 1, 1), (0, 3, 2))),
    "nothing wrong": (True, lambda: make_tile_grid(rows=5, cols=5, size=512, overlap=0.15)),
    "stage turned by 1 deg, backlash 12 px": (
        True,
        lambda: make_tile_grid(
            rows=5, cols=6, size=512, overlap=0.15, stage=Stage(jitter_px=5, angle_deg=1, backlash_px=12)
        ),
    ),
}


def _swapped(kind: Any, one: TileKey, other: TileKey) -> TileGrid:
    return make_tile_grid(
        rows=5, cols=5, size=512, overlap=0.15, kind=kind, defects=Defects(swapped=((one, other),))
    )


def empty_tiles(grid: TileGrid) -> set[TileKey]:
    """Tiles without structure in any true overlap: nothing but the stage can tell where they are.

    Judged by the images at their true places, independent of any stitcher.
    """
    held: set[TileKey] = set()
    for tile in grid.tiles:
        z, row, col = tile.key
        for other in grid.tiles:
            if other.key in ((z, row + 1, col), (z, row, col + 1)) and _true_ncc(tile, other) > 0.3:
                held |= {tile.key, other.key}
    return {tile.key for tile in grid.tiles} - held


def _true_ncc(one: Any, other: Any) -> float:
    depth = one.image.shape[1]
    dz, dy, dx = (round(v - u) for u, v in zip(one.true_px, other.true_px, strict=True))
    planes = (one.image[0, depth // 2], other.image[0, depth // 2 - dz])
    a, b = (plane.astype(np.float32) for plane in planes)
    a, b = (image - cv2.GaussianBlur(image, (0, 0), 12) for image in (a, b))
    height, width = a.shape
    first = a[max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)]
    second = b[max(0, -dy) : height + min(0, -dy), max(0, -dx) : width + min(0, -dx)]
    blank = not (first.std() > 0 and second.std() > 0)
    return 0.0 if blank else float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def ours(folder: Path, out: Path) -> tuple[Usage, dict[TileKey, tuple[float, float, float]], dict[str, Any]]:
    """Stitch with one worker; returns cost, positions and key figures."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    volume, positions, summary = out / "stitched.ome.zarr", out / "positions.tsv", out / "summary.json"
    tiles = (
        "--tiles",
        folder / "tiles.tsv",
        "--output",
        volume,
        "--positions-output",
        positions,
        "--summary",
        summary,
    )
    usage = measure_command([KBRAIN, "stitch-tiles", *tiles, "--workers", "1"])
    figures = json.loads(summary.read_text())["figures"]
    rows = read_table(positions, Position)
    return usage, {(p.z, p.row or 0, p.col or 0): (p.z_px, p.y_px, p.x_px) for p in rows}, figures


def measure_grid(name: str, table: Table, work: Path, imports: Usage, peers: bool) -> tuple[float, float]:
    """Measure one grid; returns our memory beyond imports and our error."""
    grid = GRIDS[name]()
    folder = work / name
    write_ome_tiff(grid, folder)
    write_tiles_table(grid, folder / "tiles.tsv")
    write_truth(grid_truth(grid), folder)
    empty = empty_tiles(grid)
    scored = dataclasses.replace(
        grid,
        tiles=tuple(
            dataclasses.replace(t, state="blank", image=None)
            if t.key in empty
            else dataclasses.replace(t, image=None)
            for t in grid.tiles
        ),
    )
    megapixels = len(grid.tiles) * float(np.prod(grid.tile_shape)) / 1e6
    del grid
    usage, found, figures = ours(folder, work / "out")
    beyond = usage.beyond(imports)
    score = score_tiles(scored, found)
    _add(table, name, "stitch-tiles", score, usage, beyond)
    table.goal(f"{name}: largest tile error, px", score.max_px, 0.65 if "nuclei" in name else 0.05)
    table.goal(f"{name}: seams off by more than 2 px", score.seams_off, 0)
    table.goal(f"{name}: empty tile from the fitted stage, px ({len(empty)} empty)", score.blank_max_px, 5)
    if megapixels >= 100:  # the report and the start-up cost a second at any size
        table.goal(f"{name}: CPU s per 100 Mpx beyond imports", beyond.cpu_s * 100 / megapixels, 6)
    table.note(f"{name}: {'PASS' if figures['passed'] else 'FAIL'}: {figures['verdict']}")
    if peers and name in PEERS:
        peer, peer_found = _run_peer(PEERS[name], folder, work / "peer")
        peer_score = score_tiles(scored, peer_found)
        _add(table, name, PEERS[name], peer_score, peer, None)
        table.goal(
            f"{name}: our CPU over that of {PEERS[name]}",
            usage.cpu_s / peer.cpu_s,
            1 / 5 if name == "3d" else 1 / 3,
        )
        table.goal(f"{name}: our largest error over theirs", score.max_px / peer_score.max_px, 1)
    shutil.rmtree(folder)
    return beyond.rss_mb, score.max_px


def _add(table: Table, name: str, tool: str, score: Any, usage: Usage, beyond: Usage | None) -> None:
    errors = f"{score.median_px:.3f} / {score.p95_px:.3f} / {score.max_px:.3f}"
    seams = f"{score.seams_off} of {score.seams}"
    extra = (f"{beyond.cpu_s:.1f}", f"{beyond.rss_mb:.0f}") if beyond else ("", "")
    table.add(
        name, tool, errors, seams, score.blank_max_px, usage.cpu_s, extra[0], f"{usage.rss_mb:.0f}", extra[1]
    )


def _run_peer(name: str, folder: Path, out: Path) -> tuple[Usage, dict[TileKey, tuple[float, float, float]]]:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    if name == "ashlar":
        usage, result = run_peer(
            name, "stitch_ashlar.py", folder, "--mosaic", out / "mosaic.ome.tif", "--max-shift-px", "60"
        )
    else:
        usage, result = run_peer(
            name, "stitch_multiview.py", folder, "--fuse", out / "fused.zarr", "--max-shift-px", "0"
        )
    return usage, {tuple(item["key"]): tuple(item["px"]) for item in result["positions"]}


def measure_verdicts(table: Table, work: Path) -> None:
    """Run every planted failure and compare the verdict with what it has to be."""
    wrong = 0
    for name, (passes, make) in FAILURES.items():
        grid = make()
        folder = work / "failure"
        shutil.rmtree(folder, ignore_errors=True)
        write_ome_tiff(grid, folder)
        write_tiles_table(grid, folder / "tiles.tsv")
        figures = ours(folder, work / "out")[2]
        right = figures["passed"] == passes
        wrong += not right
        verdict = "PASS" if figures["passed"] else "FAIL"
        table.note(f"{name}: {verdict} ({'right' if right else 'WRONG'}): {figures['verdict']}")
    table.goal("wrong verdicts", wrong, 0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grids", nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--no-peers", action="store_true", help="leave the other programs out")
    parser.add_argument("--no-verdicts", action="store_true", help="leave the planted failures out")
    parser.add_argument("--no-save", action="store_true", help="print only, leave docs/benchmarks.md alone")
    options = parser.parse_args()
    header = ("grid", "tool", "error px median / p95 / max", "seams off by > 2 px", "empty tile from stage, px",
              "CPU s", "beyond imports", "peak MB", "MB beyond imports")  # fmt: skip
    table = Table("Stitching tiles", header)
    imports = import_cost(*OUR_MODULES)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        memory = {
            name: measure_grid(name, table, work, imports, not options.no_peers)[0] for name in options.grids
        }
        if "em-100" in memory:
            table.goal("em-100: MB beyond imports", memory["em-100"], 200)
        if {"nuclei", "nuclei-400"} <= memory.keys():
            table.goal(
                "memory of 400 tiles over that of 100, beyond imports",
                memory["nuclei-400"] / memory["nuclei"],
                1.1,
            )
        if not options.no_verdicts:
            measure_verdicts(table, work)
    if not options.no_save:
        table.save()


if __name__ == "__main__":
    main()
