"""Rows and columns of jittered, incomplete and irregular scans."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbrain_core.numerics.sorting.tile_grid import (
    cell_of_number,
    grid_lines,
    grid_of_positions,
    missing_cells,
    missing_sections,
)

BOX = {(r, c) for r in range(4) for c in range(5)}


@given(st.integers(1, 6), st.integers(1, 6), st.floats(0, 0.5), st.integers(0, 2**31))
def test_planted_grid_is_found(rows: int, cols: int, overlap: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = [(r, c) for r in range(rows) for c in range(cols)]
    jitter = rng.uniform(-0.05, 0.05, (len(cells), 2))  # of a tile: under an eighth, where lines would touch
    y, x = (np.array(cells) * (1 - overlap) + jitter).T * 100.0 - 5000.0
    assert grid_of_positions(x, y, 100.0, 100.0) == cells


def test_a_line_without_tiles_is_counted() -> None:
    lines = grid_lines(np.array([0.0, 90.0, 270.0, 360.0, 1.0]), 100.0)
    assert lines is not None and lines.tolist() == [0, 1, 3, 4, 0]


def test_no_grid() -> None:
    # a scan that is turned by 30 degrees has no lines along the axes
    y, x = np.mgrid[0:8, 0:8].reshape(2, -1) * 80.0
    turned = 0.866 * x - 0.5 * y
    assert grid_lines(turned, 100.0) is None
    assert (
        grid_of_positions(np.array([0.0, 1.0]), np.array([0.0, 0.0]), 100.0, 100.0) is None
    )  # two in one cell


@pytest.mark.parametrize(
    ("order", "cells"),
    [
        ("rows", [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]),
        ("rows-snake", [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (1, 0)]),
        ("columns", [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]),
        ("columns-snake", [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (1, 2)]),
    ],
)
def test_numbered_tiles(order: str, cells: list[tuple[int, int]]) -> None:
    assert [cell_of_number(n, 2, 3, order) for n in range(6)] == cells  # type: ignore[arg-type]


def test_missing_cells_of_a_rectangle() -> None:
    assert missing_cells(BOX - {(0, 0), (2, 3)}) == [(0, 0), (2, 3)]
    assert missing_cells(BOX) == []
    assert missing_cells([]) == []


def test_missing_cells_of_an_outline() -> None:
    # a diamond fills half of its box: its corners are no gaps, the hole in its middle is one
    diamond = {(r, c) for r in range(7) for c in range(7) if abs(r - 3) + abs(c - 3) <= 3}
    assert missing_cells(diamond) == []
    assert missing_cells(diamond - {(3, 3)}) == [(3, 3)]


def test_cells_of_other_sections_count() -> None:
    outline = {(0, 0), (0, 1), (1, 1), (2, 2), (2, 3)}
    assert missing_cells(outline - {(2, 3)}, outline) == [(2, 3)]


@pytest.mark.parametrize(
    ("sections", "missing"),
    [
        ([1, 2, 3, 5, 6], [4]),
        ([0, 10, 20], []),
        ([0, 10, 20, 40], [30]),
        ([3], []),
        ([1, 5], []),
        ([0, 3, 4, 7, 9], []),
    ],
)
def test_missing_sections(sections: list[int], missing: list[int]) -> None:
    assert missing_sections(sections) == missing
