"""A small grid of tiles and its stitch, shared by the tests of stitch-tiles."""

from __future__ import annotations

from pathlib import Path

import pytest
from make_phantoms import (
    Defects,
    TileGrid,
    make_tile_grid,
)
from stitch_helpers import ONE, SMALL, write

from kbrain_core.processing.stitch_tiles import StitchResult, stitch_tiles


@pytest.fixture(scope="module")
def em(tmp_path_factory) -> tuple[TileGrid, Path]:
    """A 3 x 3 grid with an empty tile in its middle."""
    grid = make_tile_grid(**SMALL, defects=Defects(blank=((0, 1, 1),)), seed=1)
    return grid, write(grid, tmp_path_factory.mktemp("em"))


@pytest.fixture(scope="module")
def stitched(em, tmp_path_factory) -> tuple[StitchResult, Path]:
    """The grid stitched once, undisturbed."""
    output = tmp_path_factory.mktemp("stitched") / "stitched.ome.zarr"
    return stitch_tiles([em[1]], str(output), run=ONE), output
