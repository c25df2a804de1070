"""From rows of a tiles table to places of a mosaic: what belongs together, and where the stage says it lies."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from ...errors import InputError
from ...formats.tables import Tile
from ...geometry import VoxelSize
from .tile_graph import Floats, Ints, neighbour_pairs

# Fewer shared pixels than this hold too little structure for any method.
SMALLEST_OVERLAP_PX = 16
# Planes of a site that are summed for registration when its planes come as rows of their own.
REGISTRATION_PLANES = 3


@dataclass(frozen=True)
class Site:
    """A place of the mosaic: everything imaged there moves together.

    Attributes
    ----------
    group : int
        Sites of one group share a solution (a section; with `--per-channel` a channel of a section).
    shape : (3,) int
        Depth, height, width of a tile, px.
    nominal_px : (3,) float
        Where the stage says it lies (z, y, x).
    parity : (2,) int
        1 in odd rows, 1 in odd columns.
    tiles : tuple of Tile
        All channels, time points and planes that are fused here.
    registration : tuple of Tile
        Those whose sum is registered.
    """

    group: int
    shape: tuple[int, int, int]
    nominal_px: tuple[float, float, float]
    parity: tuple[int, int]
    tiles: tuple[Tile, ...]
    registration: tuple[Tile, ...]

    @property
    def name(self) -> str:
        """What to call the place in a message or a plot."""
        tile = self.registration[0]
        return tile.name if tile.series == 0 else f"{tile.name} series {tile.series}"

    @property
    def blank(self) -> bool:
        """Whether the acquisition check found nothing here."""
        return all(tile.status == "blank" for tile in self.registration)


@dataclass(frozen=True)
class Mosaic:
    """All sites, and what their tiles have in common.

    Attributes
    ----------
    sites : tuple of Site
        Sorted by group, row and column.
    group_names : tuple of str
        What each group is, for reports.
    group_sections : tuple of int
        Section of each group, counted from the first one.
    first_z : int
        z of the first section in the table.
    channels : tuple of str
    times : tuple of int
    dtype : str
    voxel_size : VoxelSize
    dropped : tuple of (Tile, (3,) float)
        Rows that are not fused (excluded, missing, unreadable) and where the stage puts them; those without a stage
        position are left out.
    """

    sites: tuple[Site, ...]
    group_names: tuple[str, ...]
    group_sections: tuple[int, ...]
    first_z: int
    channels: tuple[str, ...]
    times: tuple[int, ...]
    dtype: str
    voxel_size: VoxelSize
    dropped: tuple[tuple[Tile, tuple[float, float, float]], ...]

    @property
    def sections(self) -> int:
        """Number of sections, gaps counted."""
        return max(self.group_sections) + 1

    @property
    def nominal(self) -> Floats:
        """(n, 3) nominal positions, px."""
        return np.array([site.nominal_px for site in self.sites])

    @property
    def shapes(self) -> Floats:
        """(n, 3) tile shapes, px."""
        return np.array([site.shape for site in self.sites], np.float64)

    @property
    def parity(self) -> Floats:
        """(n, 2) odd row, odd column."""
        return np.array([site.parity for site in self.sites], np.float64)

    @property
    def groups(self) -> Ints:
        """(n,) group of each site."""
        return np.array([site.group for site in self.sites], np.int64)


@dataclass(frozen=True)
class LayoutOptions:
    """What the user says about a layout; the names are those of the stage's options."""

    overlap: float | None
    voxel_size: VoxelSize | None
    planes: str
    per_channel: bool
    per_time_point: bool
    registration_channel: str | None


def build_mosaic(rows: Sequence[Tile], options: LayoutOptions) -> Mosaic:
    """Arrange the rows of a tiles table.

    Parameters
    ----------
    rows : sequence of Tile
        Tiles with status ok or blank are placed; blank ones by the stage alone.
    options : LayoutOptions

    Raises
    ------
    InputError
        When there is nothing to place, tiles differ in type or kind, positions or pixel sizes are missing, or two
        tiles lie at one place.
    """
    used = [row for row in rows if row.status in ("ok", "blank")]
    _check_rows(rows, used)
    channels = tuple(dict.fromkeys(row.channel for row in used))
    if options.registration_channel is not None and options.registration_channel not in (*channels, "sum"):
        raise InputError(
            f"--registration-channel is '{options.registration_channel}', the tiles have {', '.join(channels)}: "
            "choose one of them, or sum"
        )
    voxel = (options.voxel_size or VoxelSize()).with_defaults(
        VoxelSize.from_um(used[0].step_z_um, used[0].pixel_y_um, used[0].pixel_x_um)
    )
    others = [row for row in rows if row.status in ("excluded", "missing", "unreadable")]
    places, other_places = _nominal_places(used, others, options.overlap, voxel)
    first_z = min(row.z for row in used)
    by_group: dict[tuple[int, str, int], list[int]] = defaultdict(list)
    for number, row in enumerate(used):
        section = row.z if options.planes == "sections" else first_z
        channel = row.channel if options.per_channel else ""
        by_group[section, channel, row.t if options.per_time_point else 0].append(number)
    sites: list[Site] = []
    for group, (_, members) in enumerate(sorted(by_group.items())):
        sites += _group_sites(group, [used[i] for i in members], places[members], options)
    return Mosaic(
        sites=tuple(sites),
        group_names=tuple(_group_name(key, options) for key in sorted(by_group)),
        group_sections=tuple(key[0] - first_z for key in sorted(by_group)),
        first_z=first_z,
        channels=channels,
        times=tuple(range(max(row.t for row in used) + 1)),
        dtype=str(used[0].dtype),
        voxel_size=voxel,
        dropped=tuple(
            (row, (0.0, float(place[1]), float(place[2])))
            for row, place in zip(others, other_places, strict=True)
            if np.isfinite(place).all()
        ),
    )


def _check_rows(rows: Sequence[Tile], used: list[Tile]) -> None:
    if not any(row.status == "ok" for row in used):
        counts = ", ".join(
            f"{count} {status}" for status, count in Counter(row.status for row in rows).items()
        )
        raise InputError(
            f"No tile has the status ok ({counts}): there is nothing to stitch; look at the tiles' report"
        )
    for what, values, mend in (
        (
            "pixel types",
            {row.dtype for row in used},
            "stitch each type by itself, or convert the tiles to one type",
        ),
        (
            "views",
            {row.view for row in used},
            "stitch one view at a time: set the status of the others to excluded",
        ),
    ):
        if len(values) > 1:
            raise InputError(f"The tiles have several {what} ({', '.join(sorted(map(str, values)))}): {mend}")
    for row in used:
        if not row.width_px or not row.height_px or not row.dtype:
            raise InputError(
                f"Tile '{row.name}' has no width_px, height_px or dtype in the table: run sort-tiles again"
            )
    if len({(row.depth_px or 1) > 1 for row in used}) > 1:
        raise InputError(
            "Some tiles are stacks of planes and others single planes: stitch each kind by itself"
        )


def _nominal_places(
    used: list[Tile], others: list[Tile], overlap: float | None, voxel: VoxelSize
) -> tuple[Floats, Floats]:
    """Nominal positions (n, 3) in px of tiles that are placed, and of others (NaN where they have none)."""
    rows = [*used, *others]
    places = _stage_places(rows, voxel) if overlap is None else _grid_places(rows, overlap)
    lost = np.flatnonzero(np.isnan(places[: len(used)]).any(axis=1))
    if len(lost) and overlap is not None:
        raise InputError(
            f"--overlap needs the row and column of every tile and '{used[lost[0]].name}' has none: fill them in"
        )
    if len(lost):
        grid = all(row.row is not None and row.col is not None for row in used)
        mend = (
            "give the grid's overlap, like --overlap 0.1"
            if grid
            else "fill in stage_x_um and stage_y_um, or row and col"
        )
        raise InputError(f"Tile '{used[lost[0]].name}' has no stage position: {mend}")
    if overlap is None and (voxel.y_nm is None or voxel.x_nm is None):
        raise InputError(
            "Stage positions are in um and the tiles' pixel size is unknown: pass it, like --voxel-size x=0.5um,y=0.5um"
        )
    for z in {
        row.z for row in used
    }:  # sections are planes of the canvas: only differences of z inside one matter
        members = [i for i, row in enumerate(rows) if row.z == z]
        places[members, 0] -= np.nanmin(places[members, 0])
    places[:, 1:] -= places[: len(used), 1:].min(axis=0)
    return places[: len(used)], places[len(used) :]


def _stage_places(rows: list[Tile], voxel: VoxelSize) -> Floats:
    z_um, y_um, x_um = voxel.zyx_um
    places = np.full((len(rows), 3), np.nan)
    for place, row in zip(places, rows, strict=True):
        place[0] = 0.0
        if (row.depth_px or 1) > 1 and row.stage_z_um is not None and z_um is not None:
            place[0] = row.stage_z_um / z_um
        if row.stage_y_um is not None and row.stage_x_um is not None:
            place[1:] = row.stage_y_um / (y_um or 1), row.stage_x_um / (x_um or 1)
    return places


def _grid_places(rows: list[Tile], overlap: float) -> Floats:
    height, width = max(row.height_px or 0 for row in rows), max(row.width_px or 0 for row in rows)
    unknown = float("nan")
    cells = np.array(
        [
            (0, unknown if row.row is None else row.row, unknown if row.col is None else row.col)
            for row in rows
        ]
    )
    places: Floats = cells * (0, height * (1 - overlap), width * (1 - overlap))
    return places


def _group_name(key: tuple[int, str, int], options: LayoutOptions) -> str:
    z, channel, t = key
    parts = [f"section {z}"] if options.planes == "sections" else ["stack"]
    parts += [f"channel {channel}"] if options.per_channel else []
    parts += [f"time {t}"] if options.per_time_point else []
    return ", ".join(parts)


def _group_sites(group: int, rows: list[Tile], places: Floats, options: LayoutOptions) -> list[Site]:
    gridded = all(row.row is not None and row.col is not None for row in rows)
    labels = [(row.row or 0, row.col or 0) for row in rows] if gridded else _cluster(rows, places)
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, label in enumerate(labels):
        members[label].append(number)
    sites = []
    for label in sorted(members):
        tiles = [rows[i] for i in members[label]]
        _check_site(tiles)
        chosen = _registration_tiles(tiles, options)
        place = places[members[label][tiles.index(chosen[0])]]
        sites.append(
            Site(
                group=group,
                shape=(chosen[0].depth_px or 1, chosen[0].height_px or 0, chosen[0].width_px or 0),
                nominal_px=(float(place[0]), float(place[1]), float(place[2])),
                parity=(label[0] % 2, label[1] % 2) if gridded else (0, 0),
                tiles=tuple(tiles),
                registration=tuple(chosen),
            )
        )
    _check_apart(sites)
    return sites


def _cluster(rows: list[Tile], places: Floats) -> list[tuple[int, int]]:
    """Label rows by place alone: channels and planes of one site lie within a fiftieth of a tile."""
    reach = 0.02 * min(min(row.width_px or 1, row.height_px or 1) for row in rows)
    order = np.lexsort((places[:, 2], places[:, 1]))
    tree = cKDTree(places[order, 1:])
    label = np.full(len(rows), -1)
    for number in range(len(rows)):
        if label[number] < 0:
            near = tree.query_ball_point(tree.data[number], reach)
            label[[i for i in near if label[i] < 0]] = number
    labels = np.empty(len(rows), np.int64)
    labels[order] = label
    return [(int(value), 0) for value in labels]


def _check_site(tiles: list[Tile]) -> None:
    seen: dict[tuple[str, int, int], Tile] = {}
    for tile in tiles:
        other = seen.setdefault((tile.channel, tile.t, tile.z), tile)
        if other is not tile:
            raise _same_place(other, tile)
        if (tile.height_px, tile.width_px, tile.depth_px) != (
            tiles[0].height_px,
            tiles[0].width_px,
            tiles[0].depth_px,
        ):
            raise InputError(
                f"'{tiles[0].name}' is {tiles[0].height_px} x {tiles[0].width_px} px and '{tile.name}' at the same place "
                f"is {tile.height_px} x {tile.width_px} px: channels of a place must have one size"
            )


def _same_place(one: Tile, other: Tile) -> InputError:
    return InputError(
        f"'{one.name}' and '{other.name}' lie at one place (z {one.z}, row {one.row}, column {one.col}, channel "
        f"'{one.channel}'): correct the table, or set the status of one of them to excluded"
    )


def _check_apart(sites: list[Site]) -> None:
    if len(sites) < 2:
        return
    places = np.array([site.nominal_px[1:] for site in sites])
    smallest = min(min(site.shape[1:]) for site in sites)
    close = cKDTree(places).query_pairs(0.05 * smallest)
    if close:
        i, j = min(close)
        raise _same_place(sites[i].tiles[0], sites[j].tiles[0])


def _registration_tiles(tiles: list[Tile], options: LayoutOptions) -> list[Tile]:
    """The rows of a site that are registered: one channel (or all), one time point, a few planes."""
    time = min(tile.t for tile in tiles)
    chosen = [tile for tile in tiles if tile.t == time]
    if options.registration_channel != "sum":
        wanted = options.registration_channel if not options.per_channel else None
        channel = wanted if wanted is not None else chosen[0].channel
        chosen = [tile for tile in chosen if tile.channel == channel]
        if not chosen:
            raise InputError(
                f"'{tiles[0].name}' has no tile of --registration-channel '{channel}' at its place: choose a channel that "
                "every place has, or sum"
            )
    planes = sorted({tile.z for tile in chosen})
    step = max(1, len(planes) // REGISTRATION_PLANES)
    kept = planes[step // 2 :: step][:REGISTRATION_PLANES]
    return [tile for tile in chosen if tile.z in kept]


def mosaic_pairs(mosaic: Mosaic) -> Ints:
    """Neighbouring sites of every group, (m, 2)."""
    nominal, shapes, groups = mosaic.nominal, mosaic.shapes, mosaic.groups
    found = []
    for group in range(len(mosaic.group_names)):
        members = np.flatnonzero(groups == group)
        found.append(members[neighbour_pairs(nominal[members], shapes[members])])
    return np.concatenate(found) if found else np.empty((0, 2), np.int64)


def overlap_widths(mosaic: Mosaic, pairs: Ints) -> Floats:
    """Width of the nominal overlap of each pair across its seam, px."""
    first, second = pairs[:, 0], pairs[:, 1]
    low = np.maximum(mosaic.nominal[first], mosaic.nominal[second])[:, 1:]
    high = np.minimum((mosaic.nominal + mosaic.shapes)[first], (mosaic.nominal + mosaic.shapes)[second])[
        :, 1:
    ]
    widths: Floats = (high - low).min(axis=1)
    return widths


def check_overlap(mosaic: Mosaic, pairs: Ints, *, refuse: bool) -> float:
    """Median nominal overlap in px (0 for a single tile); refused, if asked, when it is too small to register."""
    if len(mosaic.sites) == len(mosaic.group_names):  # every group is a single tile
        return 0.0
    widths = overlap_widths(mosaic, pairs)
    overlap = float(np.median(widths)) if len(widths) else 0.0
    size = min(mosaic.sites[0].shape[1:])
    if refuse and overlap < SMALLEST_OVERLAP_PX:
        seen = (
            f"overlap by {overlap:.0f} px ({100 * overlap / size:.1f} % of {size} px)"
            if overlap
            else "do not overlap"
        )
        raise InputError(
            f"Neighbouring tiles {seen} by their stage positions and at least {SMALLEST_OVERLAP_PX} px are needed to "
            "register them: check pixel size and stage positions, or give the true --overlap"
        )
    return overlap
