"""The passes over tiles that estimate and correct illumination, as tasks for the block engine."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ...formats.tables import Tile
from ...formats.tile_files import write_tile
from ..stitching.tile_images import TileFiles
from .fixed_pattern import PatternSum, pattern_of_plane
from .flat_field import is_usable, thumbnail
from .plane_levels import levels_of
from .tile_correction import Fields, Recipe, correct_plane, to_dtype, white_of

Float = npt.NDArray[np.floating[Any]]

_DECODED_BYTES = 32_000_000  # one ordinary tile stays decoded while its planes are used
_SECTION_STEP = 4  # every 4th row and column is plenty for percentiles


@dataclass(frozen=True)
class Group:
    """What has a flat field of its own: a channel at one tile size."""

    channel: str
    height: int
    width: int


def group_of(tile: Tile) -> Group:
    """Return the group a tile belongs to."""
    return Group(tile.channel, tile.height_px or 0, tile.width_px or 0)


@dataclass(frozen=True)
class PlaneOfTile:
    """One plane of a tile, counted from the tile's first."""

    tile: Tile
    plane: int

    def read(self, files: TileFiles) -> npt.NDArray[Any]:
        """Return the (Y, X) pixels."""
        box = (slice(self.plane, self.plane + 1), slice(0, self.tile.height_px), slice(0, self.tile.width_px))
        pixels: npt.NDArray[Any] = files.read(self.tile, box)[0]
        return pixels


@dataclass(frozen=True)
class PlanesTask:
    """Some planes to look at."""

    key: str
    folder: str
    planes: tuple[PlaneOfTile, ...]
    fields: str | None = None  # file with the fields to correct first

    def read(self) -> Iterator[tuple[PlaneOfTile, npt.NDArray[Any]]]:
        """Yield each plane with its pixels."""
        with TileFiles(Path(self.folder), _DECODED_BYTES) as files:
            for place in self.planes:
                yield place, place.read(files)


def thumbnails_of(task: PlanesTask) -> list[Float | None]:
    """Shrink planes to the fitting grid; None for one that is blank, saturated or damaged by NaN."""
    found = []
    for place, plane in task.read():
        white = white_of(plane.dtype, place.tile.bits) if plane.dtype.kind != "f" else np.inf
        usable = place.tile.status == "blank" or is_usable(plane, white)
        found.append(thumbnail(plane) if usable else None)
    return found


def pattern_of_planes(task: PlanesTask) -> PatternSum | None:
    """Sum the residuals of planes after the smooth correction."""
    total: PatternSum | None = None
    for _, plane in task.read():
        assert task.fields is not None  # this pass follows the smooth fit
        one = pattern_of_plane(load_fields(task.fields).apply(plane))
        if one is not None:
            total = one if total is None else total + one
    return total


def levels_of_planes(task: PlanesTask) -> tuple[float, float, float]:
    """Return median, spread and mean light of all planes of the task together, after flat field and dark level."""
    samples = []
    for _, plane in task.read():
        corrected = plane if task.fields is None else load_fields(task.fields).apply(plane)
        samples.append(corrected[::_SECTION_STEP, ::_SECTION_STEP].ravel())
    values = np.concatenate(samples)
    levels = levels_of(values)
    return levels.median, levels.spread, float(values.mean(dtype=np.float64))


@dataclass(frozen=True)
class TileWork:
    """One tile to correct: where it goes, factor and offset of each plane (one pair when alike), size of its preview."""

    tile: Tile
    output: str
    fields: str | None
    lines: tuple[tuple[float, float], ...]
    preview_px: int

    def line(self, plane: int) -> tuple[float, float]:
        """Return factor and offset of a plane."""
        return self.lines[min(plane, len(self.lines) - 1)]


@dataclass(frozen=True)
class CorrectTask:
    """Some tiles to correct."""

    key: str
    folder: str
    works: tuple[TileWork, ...]
    recipe: Recipe
    compression: Literal["none", "zlib"]


def correct_tiles(task: CorrectTask) -> list[dict[str, Any]]:
    """Correct tiles and write each as a file of its own.

    Returns
    -------
    list of dict
        For each tile: `sha256` (None for a blank tile that cannot be read), `below` and `above` (clipped pixels), and for
        tiles with a preview `before` and `after` (middle plane on the fitting grid, packed).
    """
    with TileFiles(Path(task.folder), _DECODED_BYTES) as files:
        return [_correct_tile(work, files, task) for work in task.works]


def _correct_tile(work: TileWork, files: TileFiles, task: CorrectTask) -> dict[str, Any]:
    try:
        first = PlaneOfTile(work.tile, 0).read(files)
    except InputError:
        if work.tile.status == "blank":  # nobody needs its pixels: its row goes on as it is
            return {"sha256": None, "below": 0, "above": 0}
        raise
    result: dict[str, Any] = {"below": 0, "above": 0}
    tile = replace(work.tile, depth_px=work.tile.depth_px or 1)
    planes = _corrected_planes(work, files, task.recipe, first, result)
    result["sha256"] = write_tile(Path(work.output), tile, planes, first.dtype, task.compression)
    return result


def _corrected_planes(
    work: TileWork, files: TileFiles, recipe: Recipe, first: npt.NDArray[Any], result: dict[str, Any]
) -> Iterator[npt.NDArray[Any]]:
    """Yield the corrected planes; counts and previews go into the result."""
    tile = work.tile
    fields = None if work.fields is None else load_fields(work.fields)
    white = white_of(first.dtype, tile.bits)
    radius_px = recipe.background_radius_um / tile.pixel_x_um if tile.pixel_x_um else 0.0
    depth = tile.depth_px or 1
    for index in range(depth):
        plane = first if index == 0 else PlaneOfTile(tile, index).read(files)
        values = correct_plane(plane, recipe, fields, work.line(index), radius_px, white)
        corrected, below, above = to_dtype(values, first.dtype, white)
        result["below"] += below
        result["above"] += above
        if work.preview_px and index == depth // 2:
            both = {"before": plane, "after": corrected}
            result |= {name: pack(thumbnail(shown, work.preview_px)) for name, shown in both.items()}
        yield corrected


def save_fields(fields: Fields) -> bytes:
    """Return flat field and dark level as the bytes of a file that `load_fields` reads."""
    buffer = io.BytesIO()
    np.savez(buffer, flat=fields.flat, dark=fields.dark)
    return buffer.getvalue()


@functools.lru_cache(maxsize=4)  # a worker sees few channels at a time
def load_fields(path: str) -> Fields:
    """Read what `save_fields` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return Fields(arrays["flat"], arrays["dark"])


def pack(array: Float) -> str:
    """Return a small (h, w) array as text for a task's marker."""
    buffer = io.BytesIO()
    np.save(buffer, array.astype(np.float16) if float(np.abs(array).max()) < 6e4 else array)
    return base64.b64encode(buffer.getvalue()).decode()


def unpack(text: str) -> Float:
    """Read what `pack` wrote."""
    return np.asarray(np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False), np.float32)


def sites_of(planes: Sequence[PlaneOfTile]) -> npt.NDArray[np.intp]:
    """Number the places of the sample that planes show: serial sections and planes of a stack show the same one.

    Parameters
    ----------
    planes : sequence of PlaneOfTile

    Returns
    -------
    (N,) ndarray of int
    """
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(_site(place.tile), len(numbers)) for place in planes], np.intp)


def _site(tile: Tile) -> object:
    if tile.row is not None and tile.col is not None:
        return (tile.row, tile.col, tile.view)
    if tile.stage_x_um is not None and tile.stage_y_um is not None:
        return (tile.stage_x_um, tile.stage_y_um)
    return (tile.name, tile.series, tile.page)


def sample_planes(tiles: Sequence[Tile], count: int) -> list[PlaneOfTile]:
    """Choose planes at random, all tiles before any tile's second plane; the same tiles give the same choice.

    Random and not every n-th: that would always hit the same columns of the scan.

    Parameters
    ----------
    tiles : sequence of Tile
    count : int
        Most planes to choose.
    """
    rng = np.random.default_rng(0)
    order = rng.permutation(len(tiles))
    stacks = {int(index): rng.permutation(tiles[index].depth_px or 1) for index in order[:count]}
    chosen: list[PlaneOfTile] = []
    for turn in range(max((len(planes) for planes in stacks.values()), default=0)):
        for index, planes in stacks.items():
            if turn < len(planes):
                chosen.append(PlaneOfTile(tiles[index], int(planes[turn])))
            if len(chosen) == count:
                return chosen
    return chosen
