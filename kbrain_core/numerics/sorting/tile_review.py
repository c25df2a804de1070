"""What is wrong with a set of tiles: copies, gaps, blank, saturated and blurred tiles, and which to image again."""

from __future__ import annotations

import fnmatch
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from ...errors import InputError
from ...formats.tables import Tile
from ...formats.tile_names import name_stem, natural_key
from .tile_grid import Cell, missing_cells, missing_sections
from .tile_placing import PlacedTile, colliding_tiles, group_key, grouped, stage_place
from .tile_quality import low_outliers

# A cell counts as part of the scan when at least this share of the sections and channels hold a tile there.
_USUAL_CELL_SHARE = 0.5

ProblemKind = Literal[
    "missing", "unreadable", "duplicate", "blank", "saturated", "out of focus", "low signal", "excluded"
]
# What calls for another night at the microscope. Blank tiles and those with little signal may lie beside the specimen, and
# copies cost nothing as long as their place has a tile: these are only told.
IMAGE_AGAIN: tuple[ProblemKind, ...] = ("missing", "unreadable", "duplicate", "saturated", "out of focus")


@dataclass(frozen=True)
class TileProblem:
    """Something wrong with one tile, in words; `again` says whether to image it again."""

    row: PlacedTile
    kind: ProblemKind
    reason: str
    again: bool


def sorted_rows(rows: Sequence[PlacedTile]) -> list[PlacedTile]:
    """Rows by time point, channel, section, row, column, view, and name, as people count."""

    def key(row: PlacedTile) -> tuple[object, ...]:
        t = row.tile
        cell = (t.row is None, t.row or 0, t.col is None, t.col or 0)
        return (
            t.t,
            natural_key(t.channel),
            t.z,
            *cell,
            natural_key(t.view or ""),
            natural_key(t.name),
            t.series,
            t.page,
        )

    return sorted(rows, key=key)


def mark_tiles(rows: Sequence[PlacedTile], exclude: Sequence[str]) -> list[PlacedTile]:
    """Give every row its status: excluded by name, blank, or a copy of an earlier tile.

    Parameters
    ----------
    rows : sequence of PlacedTile
    exclude : sequence of str
        Names, or patterns with `*` and `?`, of tiles to leave out; folders may be left away.

    Raises
    ------
    InputError
        When a name to exclude is no tile's, when nothing readable is left, or when two tiles are at one place.
    """
    marked = _mark_excluded(rows, exclude)
    marked = [
        replace(row, tile=replace(row.tile, status="blank"), reason="nothing but noise and shading")
        if row.tile.status == "ok" and row.measured is not None and row.measured.is_blank
        else row
        for row in marked
    ]
    marked = _mark_duplicates(marked)
    _require_tiles(marked)
    standing = [row.tile for row in marked if row.tile.status in ("ok", "blank")]
    if (collision := colliding_tiles(standing)) is not None:
        raise _collision_error(*collision)
    return marked


def _mark_excluded(rows: Sequence[PlacedTile], exclude: Sequence[str]) -> list[PlacedTile]:
    marked = list(rows)
    for pattern in exclude:
        found = [i for i, row in enumerate(rows) if _is_named(row.tile.name, pattern)]
        if not found:
            raise InputError(
                f"--exclude '{pattern}' is no tile's name: the first tile is '{rows[0].tile.name}'"
            )
        for index in found:
            marked[index] = replace(
                rows[index], tile=replace(rows[index].tile, status="excluded"), reason="excluded by hand"
            )
    return marked


def _is_named(name: str, pattern: str) -> bool:
    return any(
        fnmatch.fnmatchcase(text, pattern) for text in (name, name.rsplit("/", 1)[-1], name_stem(name))
    )


def _mark_duplicates(rows: Sequence[PlacedTile]) -> list[PlacedTile]:
    """The first of equal tiles in natural order stays; blank tiles are alike without being copies."""
    first: dict[str, str] = {}
    marked = list(rows)
    for index in sorted(range(len(rows)), key=lambda i: (natural_key(name_stem(rows[i].tile.name)), i)):
        tile = rows[index].tile
        if tile.status != "ok" or tile.sha256 is None:
            continue
        if tile.sha256 in first:
            reason = f"same pixels as {first[tile.sha256]}"
            marked[index] = replace(rows[index], tile=replace(tile, status="duplicate"), reason=reason)
        first.setdefault(tile.sha256, tile.name)
    return marked


def _require_tiles(rows: Sequence[PlacedTile]) -> None:
    counts = Counter(row.tile.status for row in rows)
    if not (counts["ok"] or counts["blank"]):
        told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        raise InputError(f"No tile is left ({told}): check --exclude, --layout and --pattern")


def _collision_error(kind: str, first: Tile, second: Tile) -> InputError:
    mosaic = f"section z {second.z}, channel {second.channel}" + (
        f", time point {second.t}" if second.t else ""
    )
    both = f"'{first.name}' and '{second.name}'"
    if first.name == second.name:
        both = f"Two images of '{first.name}' (series {first.series}, {second.series}; pages {first.page}, {second.page})"
    if kind == "nothing":
        return InputError(
            f"{both} are in one mosaic ({mosaic}), but nothing says where each lies: pass --layout, or --pattern with "
            "groups row and col, or --grid for numbered tiles"
        )
    if kind == "row and column":
        place = f"row {second.row}, column {second.col}"
    else:
        place = f"x {second.stage_x_um:g} um, y {second.stage_y_um:g} um"
    return InputError(
        f"{both} are at one place ({place}, {mosaic}): leave one out with --exclude, or tell them apart with --pattern or "
        "--layout"
    )


# ---- gaps -----------------------------------------------------------------------------------------------------------


def missing_rows(rows: Sequence[PlacedTile], grid: tuple[int, int] | None) -> list[PlacedTile]:
    """Rows for the places of the scan that no file fills.

    Parameters
    ----------
    rows : sequence of PlacedTile
    grid : (rows, columns) or None
        The grid on which running numbers were put, counted from 0: every cell should be filled.
    """
    tiles = [row.tile for row in rows if row.tile.row is not None and row.tile.col is not None]
    found: list[PlacedTile] = []
    for members in grouped(tiles, lambda t: (t.view or "",)).values():
        found += _missing_in_view([tiles[i] for i in members], grid)
    return found


def _missing_in_view(tiles: Sequence[Tile], grid: tuple[int, int] | None) -> list[PlacedTile]:
    mosaics: dict[Hashable, dict[Cell, Tile]] = {}
    for tile in tiles:
        mosaics.setdefault(group_key(tile), {})[tile.row or 0, tile.col or 0] = tile
    counts = Counter(cell for cells in mosaics.values() for cell in cells)
    usual = {cell for cell, count in counts.items() if count >= _USUAL_CELL_SHARE * len(mosaics)}
    if grid is not None:
        usual |= {(row, col) for row in range(grid[0]) for col in range(grid[1])}
    rows = []
    for key in _expected_mosaics(list(mosaics)):
        cells = mosaics.get(key, {})
        for row, col in missing_cells(cells, usual):
            rows.append(_missing_row(key, (row, col), tiles, key not in mosaics))
    return rows


def _expected_mosaics(keys: Sequence[Hashable]) -> list[tuple[int, str, int, str]]:
    """The mosaics there are, and those of sections that are left out in each time point and channel."""
    typed = [key for key in keys if isinstance(key, tuple)]
    expected = list(typed)
    for t, channel, view in sorted({(key[0], key[1], key[3]) for key in typed}):
        sections = [key[2] for key in typed if (key[0], key[1], key[3]) == (t, channel, view)]
        expected += [(t, channel, z, view) for z in missing_sections(sections)]
    return expected


def _missing_row(
    key: tuple[int, str, int, str], cell: Cell, tiles: Sequence[Tile], section: bool
) -> PlacedTile:
    t, channel, z, view = key
    like = next((tile for tile in tiles if tile.width_px), tiles[0])
    several = {tile.channel for tile in tiles} != {channel}
    name = (
        f"missing_t{t}_z{z}_r{cell[0]}_c{cell[1]}"
        + (f"_ch{channel}" if several else "")
        + (f"_v{view}" if view else "")
    )
    tile = Tile(
        name=name, channel=channel, t=t, z=z, row=cell[0], col=cell[1], view=view or None, status="missing",
        pixel_x_um=like.pixel_x_um, pixel_y_um=like.pixel_y_um, step_z_um=like.step_z_um,
    )  # fmt: skip
    what = "its whole section is missing" if section else "no file for this place of the grid"
    return PlacedTile(tile, None, what)


def with_neighbour_positions(rows: Sequence[PlacedTile]) -> list[PlacedTile]:
    """Rows without a stage position (missing, unreadable) get the middle one of their row and column in their mosaic."""
    xs: dict[Hashable, list[float]] = defaultdict(list)
    ys: dict[Hashable, list[float]] = defaultdict(list)
    for row in rows:
        tile = row.tile
        if tile.stage_x_um is not None and tile.stage_y_um is not None:
            xs[group_key(tile), tile.col].append(tile.stage_x_um)
            ys[group_key(tile), tile.row].append(tile.stage_y_um)
    filled = []
    for row in rows:
        tile = row.tile
        x, y = xs.get((group_key(tile), tile.col)), ys.get((group_key(tile), tile.row))
        if tile.stage_x_um is None and tile.row is not None and x and y:
            row = replace(row, tile=replace(tile, stage_x_um=median(x), stage_y_um=median(y)))
        filled.append(row)
    return filled


# ---- quality --------------------------------------------------------------------------------------------------------


def focus_limits(rows: Sequence[PlacedTile], mads: float) -> dict[str, float | None]:
    """Focus score under which a tile of a channel is out of focus; None for a channel with too few tiles to say."""
    usable = [row.tile for row in rows if row.tile.status == "ok"]
    channels = sorted({tile.channel for tile in usable}, key=natural_key)
    return {c: low_outliers([t.focus_score for t in usable if t.channel == c], mads) for c in channels}


def signal_limits(rows: Sequence[PlacedTile], mads: float) -> dict[str, float | None]:
    """Signal to noise under which a tile of a channel is an outlier, as for focus.

    Only tiles with structure enough to judge their focus count, and a halving is the least that does: the specimen itself
    changes the signal far more than the microscope.
    """
    usable = [row.tile for row in rows if row.tile.status == "ok" and row.tile.focus_score is not None]
    channels = sorted({tile.channel for tile in usable}, key=natural_key)
    return {
        c: low_outliers([t.signal_to_noise for t in usable if t.channel == c], mads, least_drop=0.5)
        for c in channels
    }


def find_problems(
    rows: Sequence[PlacedTile], *, max_saturated_fraction: float, focus_mads: float
) -> list[TileProblem]:
    """Everything wrong with the tiles, the gravest first.

    Parameters
    ----------
    rows : sequence of PlacedTile
        With their status.
    max_saturated_fraction : float
        Share of saturated pixels above which a tile is to be imaged again.
    focus_mads : float
        Robust standard deviations under its channel's median at which a tile is out of focus or has little signal.
    """
    focus, signal = focus_limits(rows, focus_mads), signal_limits(rows, focus_mads)
    filled = {_place(row.tile) for row in rows if row.tile.status in ("ok", "blank")}
    problems: list[TileProblem] = []
    for row in rows:
        tile = row.tile
        if tile.status == "duplicate":
            copy = _place(tile) in filled
            reason = row.reason + (" (a spare copy)" if copy else "; its own place has no other image")
            problems.append(TileProblem(row, "duplicate", reason, not copy))
        elif tile.status != "ok":
            problems.append(TileProblem(row, tile.status, row.reason, tile.status in IMAGE_AGAIN))
        else:
            problems += _quality_problems(
                row, focus[tile.channel], signal.get(tile.channel), max_saturated_fraction
            )
    return sorted(
        problems, key=lambda p: (not p.again, IMAGE_AGAIN.index(p.kind) if p.kind in IMAGE_AGAIN else 9)
    )


def _place(tile: Tile) -> Hashable:
    return (group_key(tile), (tile.row, tile.col) if tile.row is not None else stage_place(tile))


def _quality_problems(
    row: PlacedTile, focus_limit: float | None, signal_limit: float | None, max_saturated_fraction: float
) -> list[TileProblem]:
    tile = row.tile
    found = []
    if tile.saturated_fraction is not None and tile.saturated_fraction > max_saturated_fraction:
        reason = (
            f"{tile.saturated_fraction:.1%} of its pixels are saturated (limit {max_saturated_fraction:.1%})"
        )
        found.append(TileProblem(row, "saturated", reason, True))
    if focus_limit is not None and tile.focus_score is not None and tile.focus_score < focus_limit:
        reason = f"focus score {tile.focus_score:.3g}, limit of its channel {focus_limit:.3g}"
        found.append(TileProblem(row, "out of focus", reason, True))
    judged = tile.focus_score is not None and tile.signal_to_noise is not None
    if signal_limit is not None and judged and (tile.signal_to_noise or 0.0) < signal_limit:
        reason = f"signal to noise {tile.signal_to_noise:.3g}, limit of its channel {signal_limit:.3g}"
        found.append(TileProblem(row, "low signal", reason, False))
    return found


def nominal_overlap(rows: Sequence[PlacedTile]) -> tuple[float | None, float | None]:
    """Share that neighbours in x, and in y, have in common by their stage positions (the median; None without neighbours).

    Below 0 there is a gap between them; above 1 rows or columns run against the stage.
    """
    tiles = [
        row.tile for row in rows if row.tile.status in ("ok", "blank") and row.tile.stage_x_um is not None
    ]
    at = {(group_key(tile), tile.row, tile.col): tile for tile in tiles if tile.row is not None}
    across: list[float] = []
    down: list[float] = []
    for (group, row, col), tile in at.items():
        beside, below = at.get((group, row, (col or 0) + 1)), at.get((group, (row or 0) + 1, col))
        if beside is not None and (width := (tile.width_px or 0) * (tile.pixel_x_um or 0)):
            across.append(1 - ((beside.stage_x_um or 0.0) - (tile.stage_x_um or 0.0)) / width)
        if below is not None and (height := (tile.height_px or 0) * (tile.pixel_y_um or 0)):
            down.append(1 - ((below.stage_y_um or 0.0) - (tile.stage_y_um or 0.0)) / height)
    return (median(across) if across else None, median(down) if down else None)


def _overlap_warnings(rows: Sequence[PlacedTile]) -> list[str]:
    warnings = []
    for axis, lines, overlap in zip("xy", ("columns", "rows"), nominal_overlap(rows)):
        if overlap is not None and overlap > 1:
            warnings.append(
                f"Stage {axis} falls where {lines} grow: if the mosaic looks mirrored, pass --flip-{axis}"
            )
        elif overlap is not None and overlap <= 0:
            warnings.append(
                f"Neighbours in {axis} do not overlap ({overlap:.0%} of a tile): check the voxel size"
            )
    return warnings


def set_warnings(rows: Sequence[PlacedTile]) -> list[str]:
    """What the set as a whole should be warned of: unequal sizes, mixed types, unknown pixel sizes, no overlap."""
    tiles = [row.tile for row in rows if row.tile.status in ("ok", "blank")]
    warnings = _overlap_warnings(rows)
    for label, values in (
        ("sizes", Counter(f"{t.width_px} x {t.height_px} x {t.depth_px} px" for t in tiles)),
        ("pixel types", Counter(str(t.dtype) for t in tiles)),
        ("pixel sizes", Counter(f"{t.pixel_x_um} x {t.pixel_y_um} um" for t in tiles)),
    ):
        if len(values) > 1:
            listed = ", ".join(f"{value} ({count})" for value, count in values.most_common(4))
            warnings.append(f"The tiles have {len(values)} {label}: {listed}")
    if any(t.pixel_x_um is None or t.pixel_y_um is None for t in tiles):
        warnings.append(
            "The voxel size is not in the metadata: pass --voxel-size, or later stages have no scale"
        )
    return warnings
