"""Where every tile belongs: the sources that say so are weighed, and every tile gets its row.

What a person gives (a layout, a pattern) comes before side files, those before what the images say of themselves, and that
before file names. A whole set is decided at once, never tile by tile, and every decision is put in words.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ...errors import InputError
from ...formats.tables import Tile
from ...formats.tile_layouts import Layout, LayoutEntry
from ...formats.tile_names import NameFields, match_pattern, parse_names, section_numbers
from ...geometry import VoxelSize
from .tile_grid import GridOrder, cell_of_number, grid_of_positions
from .tile_layout_matching import match_layouts
from .tile_measurement import MeasuredTile, stage_shows_mosaic, with_all_channels

# Stage positions nearer than this are one place; encoders of stages do not resolve it.
_SAME_PLACE_UM = 1e-3


@dataclass(frozen=True, kw_only=True)
class PlacingOptions:
    """What a person said about the places of tiles; see `sort_tiles` for each."""

    voxel_size: VoxelSize = VoxelSize()
    pattern: re.Pattern[str] | None = None
    grid: tuple[int, int] | None = None
    grid_order: GridOrder = "rows"
    overlap: float | None = None
    flip_x: bool = False
    flip_y: bool = False


@dataclass(frozen=True)
class PlacedTile:
    """A row of the table, the file behind it (None for a missing one), and what is to be said of its status."""

    tile: Tile
    measured: MeasuredTile | None = None
    reason: str = ""

    @property
    def label(self) -> str:
        """The file's name, with the image in it where it holds several."""
        name = self.tile.name.rsplit("/", 1)[-1]
        if self.measured is None or self.measured.series_count == 1:
            return (
                name
                if self.measured is None or self.measured.plane is None
                else f"{name} page {self.tile.page}"
            )
        return f"{name} image {self.tile.series}"


@dataclass
class PlacedSet:
    """All rows, in words where each kind of fact is from, and what to warn of."""

    rows: list[PlacedTile]
    decisions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    numbered: bool = False  # whether running numbers were put on the grid that a person gave


def place_tiles(
    measured: Sequence[MeasuredTile],
    root: Path,
    layout: Layout | None,
    side_files: Sequence[Layout],
    options: PlacingOptions,
) -> PlacedSet:
    """Give every measured tile its channel, time point, section, row, column and stage position.

    Parameters
    ----------
    measured : sequence of MeasuredTile
        In natural order of their files.
    root : Path
        The folder all files are in: names are read relative to it. Rows carry paths relative to it too.
    layout : Layout or None
        Given by a person: it must fit the tiles.
    side_files : sequence of Layout
        Found beside the tiles: used when they list most of them.
    options : PlacingOptions

    Raises
    ------
    InputError
        When the layout or pattern does not fit, positions in px meet an unknown voxel size, or running numbers come
        without a grid.
    """
    placed = PlacedSet([])
    measured = with_all_channels(measured)
    names = [_relative(tile, root) for tile in measured]
    match = match_layouts(names, measured, layout, side_files)
    placed.decisions += [match.decision] if match.decision else []
    placed.warnings += [match.warning] if match.warning else []
    laid_out = any(e is not None and (e.x_px, e.x_um, e.col) != (None, None, None) for e in match.entries)
    fields = _name_fields(measured, names, options, laid_out or stage_shows_mosaic(measured), placed)
    drafts = _Drafts(measured, names, fields, match.entries, options, placed)
    placed.rows = drafts.rows()
    placed.rows += [_missing_row(entry, placed.rows, options) for entry in match.missing]
    return placed


def _relative(tile: MeasuredTile, root: Path) -> str:
    return Path(tile.path).relative_to(root).as_posix()


def _name_fields(
    measured: Sequence[MeasuredTile],
    names: Sequence[str],
    options: PlacingOptions,
    is_mosaic: bool,
    placed: PlacedSet,
) -> list[NameFields | None]:
    """What the names say, by the pattern or by the usual schemes; the images of one file go by their own names in it."""
    texts = [
        f"{name}/{tile.series_name}" if tile.series_count > 1 and tile.series_name else name
        for name, tile in zip(names, measured)
    ]
    distinct = list(dict.fromkeys(texts))
    if options.pattern is not None:
        matched = dict(zip(distinct, match_pattern(options.pattern, distinct)))
        placed.decisions.append(f"Names read by the pattern {options.pattern.pattern}")
        return [matched[text] for text in texts]
    parsed = parse_names(distinct, number_is="tile" if options.grid or is_mosaic else "z")
    placed.decisions.append(f"Names read as {parsed.scheme}")
    by_text = dict(zip(distinct, parsed.fields))
    return [by_text[text] for text in texts]


def _missing_row(entry: LayoutEntry, rows: Sequence[PlacedTile], options: PlacingOptions) -> PlacedTile:
    """A tile that a layout lists and that no file holds; its size is that of the others."""
    like = next((row.tile for row in rows if row.tile.width_px), Tile(name=""))
    tile = Tile(
        name=entry.file, series=entry.series or 0, page=entry.page or 0, channel=entry.channel or like.channel,
        t=entry.t or 0, z=entry.z or 0, view=entry.view, row=entry.row, col=entry.col, status="missing",
        pixel_x_um=like.pixel_x_um, pixel_y_um=like.pixel_y_um, step_z_um=like.step_z_um,
    )  # fmt: skip
    return PlacedTile(
        _with_layout_position(tile, entry, options), None, "listed in the layout, but there is no such file"
    )


def _with_layout_position(tile: Tile, entry: LayoutEntry, options: PlacingOptions) -> Tile:
    """The tile with the stage position its layout gives, px turned into um."""
    if entry.x_um is not None and entry.y_um is not None:
        return _flipped(
            replace(tile, stage_x_um=entry.x_um, stage_y_um=entry.y_um, stage_z_um=entry.z_um), options
        )
    if entry.x_px is None or entry.y_px is None:
        return tile
    if tile.pixel_x_um is None or tile.pixel_y_um is None:
        raise InputError(
            f"The layout gives positions in px, but the voxel size of '{tile.name}' is not in its metadata: "
            "pass --voxel-size, like x=0.5um,y=0.5um,z=2um"
        )
    if entry.z_px and tile.step_z_um is None:
        raise InputError(
            f"The layout gives z in px, but the z step of '{tile.name}' is not in its metadata: pass --voxel-size with z"
        )
    z_um = None if entry.z_px is None else entry.z_px * (tile.step_z_um or 0.0)
    x_um, y_um = entry.x_px * tile.pixel_x_um, entry.y_px * tile.pixel_y_um
    return replace(
        tile, stage_x_um=_um(x_um), stage_y_um=_um(y_um), stage_z_um=z_um if z_um is None else _um(z_um)
    )


def _um(value: float) -> float:
    """Drop the dust of a product of decimals (0.30000000000000004): picometres are enough."""
    return round(value, 6)


def _flipped(tile: Tile, options: PlacingOptions) -> Tile:
    x, y = tile.stage_x_um, tile.stage_y_um
    return replace(
        tile,
        stage_x_um=0.0 - x if options.flip_x and x is not None else x,
        stage_y_um=0.0 - y if options.flip_y and y is not None else y,
    )


# ---- from sources to rows -------------------------------------------------------------------------------------------


class _Drafts:
    """The rows in the making: what is known of each tile from every source."""

    def __init__(
        self,
        measured: Sequence[MeasuredTile],
        names: Sequence[str],
        fields: Sequence[NameFields | None],
        entries: Sequence[LayoutEntry | None],
        options: PlacingOptions,
        placed: PlacedSet,
    ) -> None:
        self.measured, self.names, self.entries = measured, names, entries
        self.options, self.placed = options, placed
        # a file that cannot be read is taken to have the voxels of the others
        self.usual_voxel_um = next((m.voxel_um for m in measured if not m.reason), (None, None, None))
        self.known = [f or NameFields() for f in fields]
        self.unmatched = [f is None for f in fields]
        self.has_layout = any(entry is not None for entry in entries)
        self.names_tell_channel = self._names_tell_channel()
        self.sections = section_numbers(f.section for f in self.known if f.section is not None)
        lowest = min((f.tile for f in self.known if f.tile is not None), default=0)
        self.first_number = min(1, lowest)  # a scan whose first tiles are lost still counts from 0 or 1
        self.names_have_z = any(f.z is not None for f in self.known)
        levels = sorted({f.z_um for f in self.known if f.z_um is not None})
        self.z_of_level = {level: index for index, level in enumerate(levels)}

    def rows(self) -> list[PlacedTile]:
        """Every tile with its facts, then its place from the best source that the whole set has."""
        tiles = [self._tile(index) for index in range(len(self.measured))]
        tiles = self._positions(tiles)
        return [self._row(index, tile) for index, tile in enumerate(tiles)]

    def _row(self, index: int, tile: Tile) -> PlacedTile:
        measured = self.measured[index]
        if self.has_layout and self.entries[index] is None:
            return PlacedTile(replace(tile, status="excluded"), measured, "not listed in the layout")
        if self.unmatched[index]:
            return PlacedTile(
                replace(tile, status="excluded"), measured, "the pattern does not match its name"
            )
        if measured.reason:
            return PlacedTile(replace(tile, status="unreadable"), measured, measured.reason)
        return PlacedTile(tile, measured)

    def _names_tell_channel(self) -> bool:
        """Whether channels are told by names: by a pattern, or because the files themselves do not tell them apart."""
        in_names = {f.channel for f in self.known if f.channel is not None}
        in_files = {m.channel_name for m in self.measured if not m.reason}
        if self.options.pattern is not None:
            return bool(in_names)
        return bool(in_names) and (None in in_files or len(in_files) < len(in_names))

    def _channel(self, measured: MeasuredTile, name: NameFields, entry: LayoutEntry | None) -> str:
        if entry is not None and entry.channel is not None and measured.channel_count == 1:
            return entry.channel
        if self.names_tell_channel and measured.channel_count == 1 and name.channel is not None:
            return name.channel
        return measured.channel_name or str(measured.channel)

    def _z(self, measured: MeasuredTile, name: NameFields, entry: LayoutEntry | None) -> int:
        if entry is not None and entry.z is not None:
            return entry.z
        if name.z is not None:
            z = name.z
        elif name.z_um is not None:
            z = self.z_of_level[name.z_um]
        else:
            z = 0 if name.section is None else self.sections[name.section]
        return z if measured.plane is None else z * measured.plane_count + measured.plane

    def _view(self, name: NameFields, entry: LayoutEntry | None) -> str | None:
        if entry is not None and entry.view is not None:
            return entry.view
        both = self.names_have_z and len(self.sections) > 1
        return name.view if name.view is not None or not both else name.section

    def _tile(self, index: int) -> Tile:
        measured, name, entry = self.measured[index], self.known[index], self.entries[index]
        row, col = self._cell(name, entry)
        told_um = self.usual_voxel_um if measured.shape_zyx is None else measured.voxel_um
        z_um, y_um, x_um = self.options.voxel_size.with_defaults(VoxelSize.from_um(*told_um)).zyx_um
        if entry is not None and entry.pixel_um is not None:
            x_um, y_um = x_um or entry.pixel_um, y_um or entry.pixel_um
        shape: tuple[int | None, int | None, int | None] = measured.shape_zyx or (None, None, None)
        several_times = measured.time_points > 1
        return Tile(
            name=self.names[index], series=measured.series, page=measured.page,
            channel=self._channel(measured, name, entry),
            t=entry.t if entry is not None and entry.t is not None else measured.t if several_times else name.t or 0,
            z=self._z(measured, name, entry), row=row, col=col, view=self._view(name, entry),
            depth_px=shape[0], height_px=shape[1], width_px=shape[2],
            pixel_x_um=x_um, pixel_y_um=y_um, step_z_um=z_um, dtype=measured.dtype, bits=measured.bits,
            acquired_at=measured.acquired_at or (entry.acquired_at if entry is not None else None),
            saturated_fraction=measured.saturated_fraction, focus_score=measured.focus_score,
            signal_to_noise=measured.signal_to_noise, sha256=measured.sha256,
        )  # fmt: skip

    def _cell(self, name: NameFields, entry: LayoutEntry | None) -> tuple[int | None, int | None]:
        if entry is not None and (entry.row is not None or entry.col is not None):
            return entry.row, entry.col
        if name.row is not None or name.tile is None or self.options.grid is None:
            return name.row, name.col
        rows, cols = self.options.grid
        number = name.tile - self.first_number
        if number >= rows * cols:
            raise InputError(
                f"A name has tile number {name.tile}, but --grid has {rows} rows and {cols} columns: correct --grid"
            )
        self.placed.numbered = True
        return cell_of_number(number, rows, cols, self.options.grid_order)

    # ---- positions ----

    def _positions(self, tiles: list[Tile]) -> list[Tile]:
        if self.has_layout:
            tiles = [
                t if e is None else _with_layout_position(t, e, self.options)
                for t, e in zip(tiles, self.entries)
            ]
            if any(tile.stage_x_um is not None for tile in tiles):
                return _with_cells(tiles)
        told = self._metadata_positions(tiles) or self._name_positions(tiles)
        if told:
            return _with_cells([_flipped(tile, self.options) for tile in told])
        return self._grid_positions(tiles)

    def _metadata_positions(self, tiles: Sequence[Tile]) -> list[Tile] | None:
        """Stage positions that the files tell, when all do and they tell the tiles apart."""
        stages = [m.stage_um for m in self.measured]
        readable = [i for i, m in enumerate(self.measured) if not m.reason]
        having = [i for i in readable if stages[i][1] is not None and stages[i][2] is not None]
        if not having:
            return None
        if len(having) < len(readable):
            self.placed.warnings.append(
                f"{len(readable) - len(having)} of {len(readable)} tiles have no stage position in their metadata, so those "
                "of the others were not used"
            )
            return None
        told = [
            replace(tile, stage_z_um=stage[0], stage_y_um=stage[1], stage_x_um=stage[2])
            for tile, stage in zip(tiles, stages)
        ]
        told = _with_sections_from_stage(told, self.names_have_z or bool(self.sections))
        if _places_collide([told[i] for i in readable], [self.measured[i] for i in readable]):
            self.placed.warnings.append(
                "The stage positions in the metadata do not tell the tiles apart, so they were not used"
            )
            return None
        self.placed.decisions.append("Positions from the metadata of the images")
        return told

    def _name_positions(self, tiles: Sequence[Tile]) -> list[Tile] | None:
        if any(f.x_um is None or f.y_um is None for f in self.known):
            return None
        self.placed.decisions.append("Positions from the file names")
        return [
            replace(tile, stage_x_um=f.x_um, stage_y_um=f.y_um, stage_z_um=f.z_um)
            for tile, f in zip(tiles, self.known)
        ]

    def _grid_positions(self, tiles: list[Tile]) -> list[Tile]:
        """Stage positions from rows, columns and overlap, where the overlap and the pixel size are known."""
        cells = [tile for tile in tiles if tile.row is not None and tile.col is not None]
        sizes = [(t.width_px, t.height_px) for t in cells if t.width_px and t.height_px]
        if not sizes:
            return tiles
        overlap = self.options.overlap
        if overlap is None:
            self.placed.decisions.append(
                "No stage positions: rows and columns only (--overlap would place them)"
            )
            return tiles
        self.placed.decisions.append(f"Positions from rows and columns with {overlap:.0%} overlap")
        width, height = (float(np.median([size[axis] for size in sizes])) for axis in (0, 1))
        top = min(t.row for t in cells if t.row is not None)
        left = min(t.col for t in cells if t.col is not None)
        pixel = next(((t.pixel_x_um, t.pixel_y_um) for t in cells if t.pixel_x_um and t.pixel_y_um), None)
        if pixel is None:
            raise InputError(
                "--overlap places tiles in um, but their voxel size is not in the metadata: pass --voxel-size"
            )
        step_x, step_y = width * (1 - overlap) * (pixel[0] or 0), height * (1 - overlap) * (pixel[1] or 0)
        return [
            t if t.row is None or t.col is None
            else replace(t, stage_x_um=_um((t.col - left) * step_x), stage_y_um=_um((t.row - top) * step_y))
            for t in tiles
        ]  # fmt: skip


def group_key(tile: Tile) -> tuple[int, str, int, str]:
    """What tiles of one mosaic have in common: time point, channel, section, view."""
    return (tile.t, tile.channel, tile.z, tile.view or "")


def grouped(tiles: Sequence[Tile], key: Callable[[Tile], Hashable]) -> dict[Hashable, list[int]]:
    """Indices of the tiles of every group."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, tile in enumerate(tiles):
        groups[key(tile)].append(index)
    return groups


def stage_place(tile: Tile) -> tuple[int, int] | None:
    """The stage position in steps that are one place; None when it is not known."""
    if tile.stage_x_um is None or tile.stage_y_um is None:
        return None
    return (round(tile.stage_x_um / _SAME_PLACE_UM), round(tile.stage_y_um / _SAME_PLACE_UM))


def _places_collide(tiles: Sequence[Tile], measured: Sequence[MeasuredTile]) -> bool:
    """Whether two tiles of other content stand at one place of one mosaic."""
    seen: dict[Hashable, str | None] = {}
    for tile, source in zip(tiles, measured):
        key = (group_key(tile), stage_place(tile))
        if key in seen and (source.is_blank or seen[key] != source.sha256):
            return True
        seen[key] = source.sha256
    return False


def _with_sections_from_stage(tiles: list[Tile], sectioned: bool) -> list[Tile]:
    """Number the levels of the stage's z as sections, when 2D tiles share rows and columns and nothing else tells them."""
    levels = sorted({t.stage_z_um for t in tiles if t.stage_z_um is not None})
    flat = all(t.depth_px in (None, 1) for t in tiles) and all(t.z == 0 for t in tiles)
    if sectioned or not flat or not 1 < len(levels) <= len(tiles) / 2:
        return tiles
    number = {level: index for index, level in enumerate(levels)}
    return [t if t.stage_z_um is None else replace(t, z=number[t.stage_z_um]) for t in tiles]


def _with_cells(tiles: list[Tile]) -> list[Tile]:
    """Rows and columns from stage positions, where names and layouts told none; each mosaic counts from 0."""
    placed = list(tiles)
    if any(tile.row is not None for tile in tiles):
        return placed
    for members in grouped(tiles, group_key).values():
        by_place: dict[tuple[float, float], list[int]] = defaultdict(list)
        for index in members:
            tile = tiles[index]
            if tile.stage_x_um is not None and tile.stage_y_um is not None and tile.width_px:
                by_place[tile.stage_y_um, tile.stage_x_um].append(index)
        first = next((tiles[i] for indices in by_place.values() for i in indices), None)
        if first is None:
            continue
        width = (first.width_px or 0) * (first.pixel_x_um or 0)
        height = (first.height_px or 0) * (first.pixel_y_um or 0)
        if not width or not height:
            continue
        y, x = np.array(list(by_place)).T
        cells = grid_of_positions(x, y, width, height)
        for (row, col), indices in zip(cells or [], by_place.values()):
            for index in indices:
                placed[index] = replace(placed[index], row=row, col=col)
    return placed


PlaceKind = Literal["row and column", "stage position", "nothing"]


def colliding_tiles(tiles: Sequence[Tile]) -> tuple[PlaceKind, Tile, Tile] | None:
    """Two tiles at one place of one mosaic, and what says so; None when every tile has a place of its own."""
    for members in grouped(tiles, group_key).values():
        seen: dict[Hashable, Tile] = {}
        for index in members:
            tile = tiles[index]
            keys: list[tuple[PlaceKind, Hashable]] = []
            if tile.row is not None and tile.col is not None:
                keys.append(("row and column", (tile.row, tile.col)))
            if (place := stage_place(tile)) is not None:
                keys.append(("stage position", place))
            for kind, key in keys or [("nothing", None)]:
                if (kind, key) in seen:
                    return kind, seen[kind, key], tile
                seen[kind, key] = tile
    return None
