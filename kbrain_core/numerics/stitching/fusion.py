"""Fusing placed tiles into boxes of an output volume: each box reads only the tiles that touch it.

Values: with `nearest` placement a pixel that one tile covers keeps the value the camera wrote, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from ...formats.tables import Tile
from ...geometry import Box
from ..volumes.volume_writer import VolumeWriter, box_key
from .tile_images import TileFiles

Blend = Literal["linear", "none"]
Subpixel = Literal["nearest", "linear", "cubic"]

# A box is fused in bands of at most this many voxels, which bounds the accumulators.
BAND_VOXELS = 2_000_000
# Memory for decoded tiles while a box is fused.
DECODED_CACHE_BYTES = 24_000_000


@dataclass(frozen=True)
class Placed:
    """A tile and where its first pixel lies in the canvas, px (z, y, x)."""

    tile: Tile
    origin: tuple[float, float, float]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Depth, height, width, px."""
        return self.tile.depth_px or 1, self.tile.height_px or 0, self.tile.width_px or 0


class TileIndex:
    """Finds the tiles that touch a box (an R-tree over their extents)."""

    def __init__(self, placed: Sequence[Placed]) -> None:
        from rtree import index

        self._placed = placed
        entries = ((i, self._extent(tile), None) for i, tile in enumerate(placed))
        self._tree = index.Index(entries, properties=index.Property(dimension=3)) if placed else None

    @staticmethod
    def _extent(placed: Placed) -> tuple[float, ...]:
        low = placed.origin
        return (*low, *(start + size for start, size in zip(low, placed.shape, strict=True)))

    def touching(self, low: Sequence[int], high: Sequence[int]) -> list[Placed]:
        """Tiles whose pixels may lie in low <= voxel < high, in the order of the table."""
        if self._tree is None:
            return []
        # a rounded tile can reach half a pixel, an interpolated one a whole pixel beyond its extent
        box = (*(value - 1 for value in low), *(value + 1 for value in high))
        return [self._placed[i] for i in sorted(self._tree.intersection(box))]


@njit(cache=True, nogil=True)
def _add_feathered(
    total: Any, weights: Any, plane: Any, top: int, left: int, height: int, width: int
) -> None:
    """Add a part of a tile, weighted by the distance to the tile's nearest edge; NaN counts as not there."""
    rows, columns = plane.shape
    for y in range(rows):
        to_row = min(top + y + 1, height - top - y)
        for x in range(columns):
            value = plane[y, x]
            if value == value:
                weight = min(to_row, min(left + x + 1, width - left - x))
                total[y, x] += weight * value
                weights[y, x] += weight


@njit(cache=True, nogil=True)
def _take_nearest(total: Any, weights: Any, plane: Any, top: int, left: int, height: int, width: int) -> None:
    """Take a part of a tile where it lies further from its edge than what is there."""
    rows, columns = plane.shape
    for y in range(rows):
        to_row = min(top + y + 1, height - top - y)
        for x in range(columns):
            value = plane[y, x]
            if value == value:
                weight = min(to_row, min(left + x + 1, width - left - x))
                if weight > weights[y, x]:
                    total[y, x] = value
                    weights[y, x] = weight


@dataclass(frozen=True)
class FuseTask:
    """One box of one channel and time point of the output.

    Attributes
    ----------
    writer : VolumeWriter
    folder : Path
    t, c : int
    box : Box
    placed : tuple of Placed
        Tiles that touch the box.
    blend : "linear" or "none"
    subpixel : "nearest", "linear" or "cubic"
    """

    writer: VolumeWriter
    folder: Path
    t: int
    c: int
    box: Box
    placed: tuple[Placed, ...] = field(repr=False)
    blend: Blend
    subpixel: Subpixel

    @cached_property
    def key(self) -> str:
        """Name of the task's marker."""
        return f"fuse-t{self.t}-c{self.c}-{box_key(self.box)}"


# Tiles at the edge of a box are needed again by the next one: a worker keeps those of one folder between its tasks.
_kept: list[TileFiles] = []


def _files_of(folder: Path) -> TileFiles:
    if not _kept or _kept[0].folder != folder:
        if _kept:
            _kept.pop().close()
        _kept.append(TileFiles(folder, DECODED_CACHE_BYTES))
    return _kept[0]


def fuse_box(task: FuseTask) -> int:
    """Fuse a box and write it with its pyramid; returns how many voxels a tile covers."""
    spec = task.writer.spec
    box = task.box.slices(spec.levels[0].shape)
    if not task.placed:
        return 0  # chunks that nobody writes read as zero
    files = _files_of(task.folder)
    voxels, covered = fuse(
        task.placed, box, np.dtype(spec.dtype), files, blend=task.blend, subpixel=task.subpixel
    )
    task.writer.write_block(task.t, task.c, task.box, voxels)
    return covered


def fuse(
    placed: Sequence[Placed],
    box: tuple[slice, slice, slice],
    dtype: np.dtype[Any],
    files: TileFiles,
    *,
    blend: Blend,
    subpixel: Subpixel,
) -> tuple[NDArray[Any], int]:
    """Fuse tiles into one box; a blank tile only fills what no other covers.

    Parameters
    ----------
    placed : sequence of Placed
    box : (3,) slice
        Box of the canvas (z, y, x).
    dtype : dtype
        Of the result: that of the tiles.
    files : TileFiles
    blend : {"linear", "none"}
        Weight tiles by the distance to their edge, or take each pixel from the tile whose edge is furthest.
    subpixel : {"nearest", "linear", "cubic"}
        Round tiles to whole pixels, or interpolate.

    Returns
    -------
    voxels : (Z, Y, X) ndarray of `dtype`
        0 where no tile lies.
    covered : int
        Voxels where one does.
    """
    out = np.zeros([part.stop - part.start for part in box], dtype)
    # integer weights times 16-bit values are exact enough in float32; other types need float64 to keep their values
    kind = np.dtype(np.float32) if dtype.itemsize <= 2 else np.dtype(np.float64)
    rows = max(1, BAND_VOXELS // out.shape[2])
    add = _add_feathered if blend == "linear" else _take_nearest
    index = TileIndex(placed)
    covered = 0
    for z in range(out.shape[0]):
        for start in range(0, out.shape[1], rows):
            stop = min(start + rows, out.shape[1])
            corner = (box[0].start + z, box[1].start + start, box[2].start)
            near = index.touching(corner, (corner[0] + 1, box[1].start + stop, box[2].stop))
            band = np.zeros((stop - start, out.shape[2]), kind)
            weights = np.zeros(band.shape, np.float32)
            for tile in near:
                if not _is_blank(tile):
                    _add_tile(tile, corner, band, weights, files, add, subpixel)
            if any(
                map(_is_blank, near)
            ):  # they fill what nothing else covers: neighbours would fade to dark in them
                fill, fill_weights = np.zeros_like(band), np.zeros_like(weights)
                for tile in filter(_is_blank, near):
                    _add_tile(tile, corner, fill, fill_weights, files, add, subpixel)
                uncovered = weights == 0
                np.copyto(band, fill, where=uncovered)
                np.copyto(weights, fill_weights, where=uncovered)
            covered += _finish(band, weights, out[z, start:stop], blend)
    return out, covered


def _is_blank(placed: Placed) -> bool:
    return placed.tile.status == "blank"


def _finish(total: NDArray[Any], weights: NDArray[np.float32], out: NDArray[Any], blend: Blend) -> int:
    there = weights > 0
    if blend == "linear":
        np.divide(total, weights, out=total, where=there)
    if out.dtype.kind in "iu":
        np.rint(total, out=total)
        limits = np.iinfo(out.dtype)
        np.clip(total, limits.min, limits.max, out=total)  # cubic interpolation overshoots at edges
    out[...] = total
    return int(np.count_nonzero(there))


def _add_tile(
    placed: Placed,
    corner: tuple[int, int, int],
    total: NDArray[Any],
    weights: NDArray[np.float32],
    files: TileFiles,
    add: Any,
    subpixel: Subpixel,
) -> None:
    """Add what one tile has of a band of one plane."""
    depth, height, width = placed.shape
    if subpixel == "nearest":
        base = [int(np.floor(value + 0.5)) for value in placed.origin]
        rest = [0.0, 0.0, 0.0]
    else:
        base = [int(np.floor(value)) for value in placed.origin]
        rest = [value - whole for value, whole in zip(placed.origin, base, strict=True)]
    z = corner[0] - base[0]
    # an interpolated tile loses the first pixel of a shifted axis: half of it would come from outside
    lost = [int(value > 0) for value in rest]
    top, left = max(lost[1], corner[1] - base[1]), max(lost[2], corner[2] - base[2])
    bottom, right = (
        min(height, corner[1] - base[1] + total.shape[0]),
        min(width, corner[2] - base[2] + total.shape[1]),
    )
    if not lost[0] <= z < depth or top >= bottom or left >= right:
        return
    region = (slice(top, bottom), slice(left, right))
    plane = (
        files.read(placed.tile, (slice(z, z + 1), *region))[0]
        if not any(rest)
        else _interpolated(placed, z, region, rest, files, subpixel)
    )
    y, x = base[1] + top - corner[1], base[2] + left - corner[2]
    part = (slice(y, y + bottom - top), slice(x, x + right - left))
    add(total[part], weights[part], plane, top, left, height, width)


def _interpolated(
    placed: Placed,
    z: int,
    region: tuple[slice, slice],
    rest: list[float],
    files: TileFiles,
    subpixel: Subpixel,
) -> NDArray[np.float32]:
    """A region of a tile moved on by a fraction of a pixel, linear along z."""
    _, height, width = placed.shape
    pad = 3  # pixels that cubic interpolation looks at beyond the region
    rows = slice(max(0, region[0].start - pad), min(height, region[0].stop + pad))
    columns = slice(max(0, region[1].start - pad), min(width, region[1].stop + pad))
    first = z - int(rest[0] > 0)
    planes = files.read(placed.tile, (slice(first, z + 1), rows, columns)).astype(np.float32)
    plane = (
        planes[0]
        if len(planes) == 1
        else planes[0] * np.float32(rest[0]) + planes[1] * np.float32(1 - rest[0])
    )
    move = np.array(
        [[1, 0, region[1].start - columns.start - rest[2]], [0, 1, region[0].start - rows.start - rest[1]]],
        np.float64,
    )
    size = (region[1].stop - region[1].start, region[0].stop - region[0].start)
    method = cv2.INTER_LINEAR if subpixel == "linear" else cv2.INTER_CUBIC
    moved: NDArray[np.float32] = cv2.warpAffine(
        plane, move, size, flags=method | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )
    return moved
