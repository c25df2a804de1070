"""The grid of a tiled scan: rows and columns from stage positions, from running numbers, and the gaps in it."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Literal

import numpy as np
from numpy.typing import NDArray

GridOrder = Literal["rows", "rows-snake", "columns", "columns-snake"]
Cell = tuple[int, int]
# Tiles whose positions differ by less than this share of their size are in one row (or column): stage jitter is below
# it, and neighbours are above it as long as they overlap less than three quarters.
_SAME_LINE = 0.25
# A grid at least this full is meant to be a rectangle; below, it follows the outline of the specimen.
_RECTANGLE_FILL = 0.8


def grid_lines(positions: NDArray[np.float64], size: float) -> NDArray[np.int64] | None:
    """Number the rows (or columns) of tiles from their positions along one axis; a line without tiles is counted.

    Parameters
    ----------
    positions : (N,) ndarray of float
        Positions of the tiles along the axis, any unit.
    size : float
        Size of a tile along the axis, same unit.

    Returns
    -------
    (N,) ndarray of int, or None
        Line numbers from 0; None when the tiles form no lines (a rotated or staggered scan).
    """
    order = np.argsort(positions, kind="stable")
    gaps = np.diff(positions[order])
    line_of_sorted = np.concatenate([[0], np.cumsum(gaps > _SAME_LINE * size)])
    lines = np.empty(len(positions), np.int64)
    lines[order] = line_of_sorted
    count = int(line_of_sorted[-1]) + 1
    centres = np.array([positions[lines == line].mean() for line in range(count)])
    spans = [np.ptp(positions[lines == line]) for line in range(count)]
    if max(spans) > 2 * _SAME_LINE * size:
        return None
    if count == 1:
        return lines
    steps = np.diff(centres)
    counted = np.maximum(1, np.rint(steps / np.median(steps)).astype(np.int64))
    numbers: NDArray[np.int64] = np.concatenate([[0], np.cumsum(counted)])[lines]
    return numbers


def grid_of_positions(
    x: NDArray[np.float64], y: NDArray[np.float64], width: float, height: float
) -> list[Cell] | None:
    """Row and column of every tile from its position; None when they form no grid or two share a cell."""
    rows, cols = grid_lines(y, height), grid_lines(x, width)
    if rows is None or cols is None:
        return None
    cells = list(zip(rows.tolist(), cols.tolist()))
    return cells if len(set(cells)) == len(cells) else None


def cell_of_number(number: int, rows: int, cols: int, order: GridOrder) -> Cell:
    """Row and column of the n-th tile (from 0) of a scan that goes by rows or columns, to and fro when it is a snake."""
    line, step = divmod(number, cols if order.startswith("rows") else rows)
    length = cols if order.startswith("rows") else rows
    if order.endswith("snake") and line % 2:
        step = length - 1 - step
    return (line, step) if order.startswith("rows") else (step, line)


def missing_sections(sections: Collection[int]) -> list[int]:
    """Section numbers that the usual step leaves out: 4 of 1, 2, 3, 5, 6, and none of 0, 10, 20."""
    numbers = sorted(set(sections))
    if len(numbers) < 3:
        return []
    steps = Counter(b - a for a, b in itertools.pairwise(numbers))
    step = min(steps, key=lambda s: (-steps[s], s))
    if any((n - numbers[0]) % step for n in numbers):
        return []
    return sorted(set(range(numbers[0], numbers[-1] + 1, step)) - set(numbers))


def missing_cells(cells: Collection[Cell], elsewhere: Collection[Cell] = ()) -> list[Cell]:
    """Cells of a grid that should hold a tile and hold none.

    Those that hold one elsewhere (in another section or channel); those of the bounding rectangle when four fifths of it
    are filled; otherwise, in a scan that follows the specimen's outline, those with tiles on all four sides.

    Parameters
    ----------
    cells : collection of (row, col)
        The cells that hold a tile.
    elsewhere : collection of (row, col)
        Cells that hold one in other sections or channels of the same scan.
    """
    have = set(cells)
    every = have | set(elsewhere)
    if not every:
        return []
    rows, cols = [r for r, _ in every], [c for _, c in every]
    box = {(r, c) for r in range(min(rows), max(rows) + 1) for c in range(min(cols), max(cols) + 1)}
    if len(every) >= _RECTANGLE_FILL * len(box):
        return sorted(box - have)
    in_row, in_col = defaultdict(list), defaultdict(list)
    for r, c in every:
        in_row[r].append(c)
        in_col[c].append(r)
    inside = {
        (r, c)
        for r, c in box - every
        if in_row[r]
        and in_col[c]
        and min(in_row[r]) < c < max(in_row[r])
        and min(in_col[c]) < r < max(in_col[c])
    }
    return sorted((every - have) | inside)
