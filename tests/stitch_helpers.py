"""What the tests of stitch-tiles share: small grids, and how a result is looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from make_phantoms import (
    Stage,
    TileGrid,
    score_tiles,
    write_ome_tiff,
    write_tiles_table,
)

from kbrain_core.formats.tables import Position, read_table, read_tiles, write_tiles
from kbrain_core.formats.volume import Volume
from kbrain_core.processing.stitch_tiles import StitchResult, stitch_tiles
from kbrain_core.stage import RunOptions

ONE = RunOptions(workers=1)
# The shot noise of seams of 64 x 256 px allows errors of up to about a tenth of a pixel.
LIMIT_PX = 0.15
SMALL = {"rows": 3, "cols": 3, "size": 256, "overlap": 0.25, "stage": Stage(jitter_px=8)}


def write(grid: TileGrid, folder: Path) -> Path:
    write_ome_tiff(grid, folder)
    return write_tiles_table(grid, folder / "tiles.tsv")


def positions_of(output: Path) -> list[Position]:
    return read_table(output.parent / "stitched.ome.zarr-positions.tsv", Position)


def score(grid: TileGrid, rows: list[Position]):
    return score_tiles(grid, {(r.z, r.row or 0, r.col or 0): (r.z_px, r.y_px, r.x_px) for r in rows})


def voxels(output: Path | str) -> np.ndarray:
    everything = (slice(None),) * 5
    return Volume.open(str(output), allow_incomplete=True).read(everything)


def stitch(tiles: Path, folder: Path, **options) -> tuple[StitchResult, list[Position], Path]:
    output = folder / "stitched.ome.zarr"
    options.setdefault("run", ONE)
    return stitch_tiles([tiles], str(output), **options), positions_of(output), output


def edited(tiles: Path, folder: Path, change) -> Path:
    """A copy of the table with every row changed; rows that become None go."""
    rows = [new for row in read_tiles(tiles) if (new := change(row)) is not None]
    write_tiles(folder / "edited.tsv", rows)
    return folder / "edited.tsv"
