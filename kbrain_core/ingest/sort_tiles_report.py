"""The page that says whether to image again: maps of the grid, focus over the tiles, the mosaic, and the worst tiles."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..report import Report, new_figure

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from ..numerics.sorting.tile_placing import PlacedTile
    from ..numerics.sorting.tile_review import TileProblem

_SHOWN_MOSAICS = 6
_SHOWN_WORST = 8
_SHOWN_PROBLEMS = 200
_CROP_PX = 256
_MOSAIC_PX = 900
_STATUS_COLOURS = {
    "ok": "#4c9f70",
    "blank": "#9aa0a6",
    "missing": "#ffffff",
    "unreadable": "#c5221f",
    "duplicate": "#8e5bb5",
    "excluded": "#e8b93c",
}
# Drawing order of tiles at one place: a spare copy must not hide the tile it copies.
_STATUS_ON_TOP = ("excluded", "duplicate", "unreadable", "blank", "ok", "missing")
_Mosaic = tuple[int, str, int, str]


def verdict_line(rows: Sequence[PlacedTile], problems: Sequence[TileProblem]) -> tuple[bool, str]:
    """Pass or fail, and the line that says why: the tiles to image again, or how many are fine."""
    counts = Counter(row.tile.status for row in rows)
    again: dict[str, list[str]] = defaultdict(list)
    for problem in problems:
        if problem.again:
            again[problem.kind].append(problem.row.label)
    if again:
        parts = [f"{kind}: {_some(list(dict.fromkeys(names)))}" for kind, names in again.items()]
        number = len({problem.row.label for problem in problems if problem.again})
        return False, f"image again {number} of {len(rows)} tiles ({'; '.join(parts)})"
    if not counts["ok"]:
        return False, f"image again: all {len(rows)} tiles are blank"
    rest = ", ".join(
        f"{counts[status]} {status}" for status in ("blank", "duplicate", "excluded") if counts[status]
    )
    return True, f"{counts['ok']} tiles are sharp, complete and not saturated" + (
        f" ({rest})" if rest else ""
    )


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def make_report(
    rows: Sequence[PlacedTile],
    problems: Sequence[TileProblem],
    decisions: Sequence[str],
    warnings: Sequence[str],
    focus_mads: float,
) -> Report:
    """Put the page together.

    Parameters
    ----------
    rows : sequence of PlacedTile
        All rows of the table, in its order.
    problems : sequence of TileProblem
        The gravest first.
    decisions, warnings : sequence of str
        Where the facts are from, and what to look at.
    focus_mads : float
        Robust standard deviations at which a focus score is an outlier.
    """
    report = Report(
        "Sorted tiles",
        "What every raw tile is, where it lies and how good it is; look at it before the specimen leaves the microscope.",
    )
    report.figures(_key_figures(rows))
    report.text("Where the facts are from", "; ".join(decisions) + ".")
    if warnings:
        report.table("To look at", ("warning",), [(text,) for text in warnings])
    if problems:
        shown = [
            (p.row.label, p.kind, "image again" if p.again else "", _place(p.row), p.reason)
            for p in problems[:_SHOWN_PROBLEMS]
        ]
        heading = "Tiles with a problem" + (
            f" (the first {_SHOWN_PROBLEMS} of {len(problems)})" if len(problems) > _SHOWN_PROBLEMS else ""
        )
        report.table(heading, ("tile", "problem", "", "place", "why"), shown)
    mosaics = _chosen_mosaics(rows, problems)
    report.picture("tile-map", _map_caption(rows, mosaics), _tile_map(rows, mosaics))
    report.picture(
        "quality",
        "Focus score and signal to noise of every tile in the order of the table. Points under the line of their channel "
        "are outliers; a slope is drift, a step a change of the specimen or of the settings.",
        _quality_figure(rows, focus_mads),
    )
    for mosaic in mosaics[:2]:
        picture = _overview(rows, mosaic)
        if picture is not None:
            report.picture(
                f"overview-{_label(mosaic)}",
                f"Thumbnails at their stage positions: {_label(mosaic)}.",
                picture,
            )
    worst = _worst(rows, problems)
    if worst:
        report.picture(
            "worst-tiles",
            "The tiles with the gravest problems, otherwise those with the lowest focus score: whole, and the middle at "
            "full resolution. Check by eye what the figures say.",
            _contact_sheet(worst, problems),
        )
    return report


def _key_figures(rows: Sequence[PlacedTile]) -> dict[str, str]:
    from ..numerics.sorting.tile_review import nominal_overlap

    tiles = [row.tile for row in rows]
    counts = Counter(tile.status for tile in tiles)
    used = [tile for tile in tiles if tile.status == "ok"]
    first = used[0] if used else tiles[0]
    pixel = (
        f"{first.pixel_x_um:g} x {first.pixel_y_um:g} um"
        if first.pixel_x_um is not None and first.pixel_y_um is not None
        else "not known"
    )
    cells = [(tile.row, tile.col) for tile in tiles if tile.row is not None]
    overlaps = zip("xy", nominal_overlap(rows))
    overlap = ", ".join(f"{share:.1%} in {axis}" for axis, share in overlaps if share is not None)
    return {
        "tiles": ", ".join(f"{count} {status}" for status, count in counts.most_common()),
        "sections": str(len({tile.z for tile in tiles})),
        "channels": _some(list(dict.fromkeys(tile.channel for tile in tiles))),
        "grid": f"{len({r for r, _ in cells})} rows x {len({c for _, c in cells})} columns"
        if cells
        else "none",
        "tile size": f"{first.width_px} x {first.height_px} x {first.depth_px} px, {first.dtype}",
        "pixel size": pixel,
        "nominal overlap": overlap or "not known",
        "with a stage position": f"{sum(t.stage_x_um is not None for t in tiles)} of {len(tiles)}",
        "most saturated": f"{max((t.saturated_fraction or 0.0 for t in used), default=0.0):.2%}",
    }


def _place(row: PlacedTile) -> str:
    tile = row.tile
    cell = f", row {tile.row}, col {tile.col}" if tile.row is not None else ""
    return f"z {tile.z}{cell}, channel {tile.channel}" + (f", t {tile.t}" if tile.t else "")


def _mosaic_of(row: PlacedTile) -> _Mosaic:
    tile = row.tile
    return (tile.t, tile.channel, tile.z, tile.view or "")


def _label(mosaic: _Mosaic) -> str:
    t, channel, z, view = mosaic
    return f"z {z}, channel {channel}" + (f", t {t}" if t else "") + (f", view {view}" if view else "")


def _chosen_mosaics(rows: Sequence[PlacedTile], problems: Sequence[TileProblem]) -> list[_Mosaic]:
    """The mosaics to show: those with most tiles to image again, then the first ones."""
    every = list(dict.fromkeys(_mosaic_of(row) for row in rows))
    bad = Counter(_mosaic_of(problem.row) for problem in problems if problem.again)
    return sorted(every, key=lambda mosaic: -bad[mosaic])[:_SHOWN_MOSAICS]


def _map_caption(rows: Sequence[PlacedTile], shown: Sequence[_Mosaic]) -> str:
    count = len({_mosaic_of(row) for row in rows})
    left = f" ({len(shown)} of {count} mosaics, those with most problems first)" if count > len(shown) else ""
    return (
        "Every tile at its place, coloured by focus score, saturated share and status. White with a dashed edge: missing."
        + left
    )


def _corner(row: PlacedTile) -> tuple[float, float, float, float] | None:
    """Left, top, width and height of a tile, in um where stage positions are known, otherwise in tiles."""
    tile = row.tile
    if tile.stage_x_um is not None and tile.stage_y_um is not None and tile.pixel_x_um and tile.pixel_y_um:
        width, height = (tile.width_px or 0) * tile.pixel_x_um, (tile.height_px or 0) * tile.pixel_y_um
        return tile.stage_x_um, tile.stage_y_um, width, height
    if tile.row is not None and tile.col is not None:
        return float(tile.col), float(tile.row), 0.94, 0.94
    return None


def _corners(rows: Sequence[PlacedTile]) -> list[tuple[float, float, float, float] | None]:
    """The corners of tiles of one mosaic, all in um or all in tiles; missing tiles take the size of the others."""
    corners = [_corner(row) for row in rows]
    if any(row.tile.stage_x_um is None for row in rows):
        corners = [
            (float(row.tile.col), float(row.tile.row), 0.94, 0.94)
            if row.tile.row is not None and row.tile.col is not None
            else None
            for row in rows
        ]
    size = next(((c[2], c[3]) for c in corners if c and c[2] and c[3]), (1.0, 1.0))
    return [c if c is None or (c[2] and c[3]) else (c[0], c[1], *size) for c in corners]


def _tile_map(rows: Sequence[PlacedTile], mosaics: Sequence[_Mosaic]) -> Figure:
    figure = new_figure(9.0, 2.6 * len(mosaics) + 0.4)
    axes = figure.subplots(len(mosaics), 3, squeeze=False)
    used = [row.tile for row in rows if row.tile.status == "ok"]
    usual = _usual_focus(rows)
    focus_range = (0.5, 1.25)
    saturated = max(0.01, *(tile.saturated_fraction or 0.0 for tile in used), 0.01)
    for line, mosaic in zip(axes, mosaics):
        members = [row for row in rows if _mosaic_of(row) == mosaic]
        members.sort(key=lambda row: _STATUS_ON_TOP.index(row.tile.status))
        corners = _corners(members)
        focus = [
            None if m.tile.focus_score is None else m.tile.focus_score / usual[m.tile.channel]
            for m in members
        ]
        _draw_tiles(line[0], corners, focus, focus_range, "viridis")
        _draw_tiles(
            line[1], corners, [m.tile.saturated_fraction for m in members], (0.0, saturated), "inferno"
        )
        _draw_status(line[2], corners, members)
        line[0].set_ylabel(_drawable(_label(mosaic)), fontsize=8)
    for column, label in enumerate(("focus score, of its channel's median", "saturated share", "status")):
        axes[0][column].set_title(label, fontsize=8)
    _colour_bar(axes[:, 0], focus_range, "viridis")
    _colour_bar(axes[:, 1], (0.0, saturated), "inferno")
    return figure


def _usual_focus(rows: Sequence[PlacedTile]) -> dict[str, float]:
    """The median focus score of every channel."""
    from statistics import median

    scores: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.tile.focus_score:
            scores[row.tile.channel].append(row.tile.focus_score)
    return defaultdict(lambda: 1.0, {channel: median(values) for channel, values in scores.items()})


def _drawable(text: str) -> str:
    """Text as a picture can show it: the font has Latin, Greek and Cyrillic letters, and `$` would start a formula."""
    shown = "".join(c if c.isprintable() and ord(c) < 0x530 else "?" for c in text)
    return shown.replace("$", r"\$")


def _colour_bar(axes: NDArray[Any], limits: tuple[float, float], colours: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(*limits), colours)
    axes[0].figure.colorbar(scale, ax=list(axes), shrink=0.8).ax.tick_params(labelsize=6)


def _frame(axes: Axes, corners: Sequence[tuple[float, float, float, float] | None]) -> None:
    known = [c for c in corners if c is not None] or [(0.0, 0.0, 1.0, 1.0)]
    axes.set_xlim(min(c[0] for c in known), max(c[0] + c[2] for c in known))
    axes.set_ylim(max(c[1] + c[3] for c in known), min(c[1] for c in known))
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_tiles(
    axes: Axes,
    corners: Sequence[tuple[float, float, float, float] | None],
    values: Sequence[float | None],
    limits: tuple[float, float],
    colours: str,
) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    span = (limits[1] - limits[0]) or 1.0
    for corner, value in zip(corners, values):
        if corner is not None:
            share = 0.0 if value is None else min(1.0, max(0.0, (value - limits[0]) / span))
            colour = "white" if value is None else colormaps[colours](share)
            axes.add_patch(
                Rectangle(corner[:2], corner[2], corner[3], facecolor=colour, edgecolor="0.6", lw=0.4)
            )
    _frame(axes, corners)


def _draw_status(
    axes: Axes, corners: Sequence[tuple[float, float, float, float] | None], members: Sequence[PlacedTile]
) -> None:
    from matplotlib.patches import Patch, Rectangle

    for corner, row in zip(corners, members):
        if corner is not None:
            missing = row.tile.status == "missing"
            patch = Rectangle(
                corner[:2], corner[2], corner[3], facecolor=_STATUS_COLOURS[row.tile.status],
                edgecolor="#c5221f" if missing else "white", ls="--" if missing else "-", lw=0.8,
            )  # fmt: skip
            axes.add_patch(patch)
    _frame(axes, corners)
    there = list(dict.fromkeys(row.tile.status for row in members))
    handles = [Patch(facecolor=_STATUS_COLOURS[status], edgecolor="0.5", label=status) for status in there]
    axes.legend(handles=handles, fontsize=6, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _quality_figure(rows: Sequence[PlacedTile], focus_mads: float) -> Figure:
    from ..numerics.sorting.tile_review import focus_limits, signal_limits

    figure = new_figure(9.0, 4.2)
    upper, lower = figure.subplots(2, 1, sharex=True)
    focus, signal = focus_limits(rows, focus_mads), signal_limits(rows, focus_mads)
    numbered = [(index, row.tile) for index, row in enumerate(rows) if row.tile.status == "ok"]
    for number, channel in enumerate(focus):
        mine = [(index, tile) for index, tile in numbered if tile.channel == channel]
        colour = f"C{number % 10}"
        for axes, limit, values in (
            (upper, focus[channel], [(i, t.focus_score) for i, t in mine if t.focus_score is not None]),
            (
                lower,
                signal.get(channel),
                [(i, t.signal_to_noise) for i, t in mine if t.signal_to_noise is not None],
            ),
        ):
            axes.plot(
                [i for i, _ in values],
                [v for _, v in values],
                ".",
                ms=4,
                color=colour,
                label=_drawable(f"channel {channel}"),
            )
            if limit is not None and mine:
                axes.plot([mine[0][0], mine[-1][0]], [limit, limit], "--", lw=0.9, color=colour)
    upper.set_ylabel("focus score")
    lower.set_ylabel("signal to noise")
    lower.set_xlabel("tile, in the order of the table")
    if 0 < len(focus) <= 8:
        upper.legend(fontsize=7, loc="best", frameon=False)
    return figure


def _overview(rows: Sequence[PlacedTile], mosaic: _Mosaic) -> NDArray[np.uint8] | None:
    """Thumbnails at their places, all with one contrast; None when no tile of the mosaic has a place and pixels."""
    import cv2
    import numpy as np

    members = [row for row in rows if _mosaic_of(row) == mosaic]
    placed = [
        (corner, row.measured.thumbnail)
        for corner, row in zip(_corners(members), members)
        if corner is not None and row.measured is not None and row.measured.thumbnail is not None
    ]
    if not placed:
        return None
    left, top = (min(corner[axis] for corner, _ in placed) for axis in (0, 1))
    right, bottom = (max(corner[axis] + corner[axis + 2] for corner, _ in placed) for axis in (0, 1))
    densest = max(image.shape[1] / corner[2] for corner, image in placed)
    scale = min(densest, _MOSAIC_PX / max(right - left, bottom - top))
    canvas = np.full(
        (round((bottom - top) * scale) + 1, round((right - left) * scale) + 1), np.nan, np.float32
    )
    for corner, image in placed:
        x, y = round((corner[0] - left) * scale), round((corner[1] - top) * scale)
        size = (max(1, round(corner[2] * scale)), max(1, round(corner[3] * scale)))
        area = canvas[y : y + size[1], x : x + size[0]]
        area[:] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)[: area.shape[0], : area.shape[1]]
    low, high = np.nanpercentile(canvas, (0.5, 99.5))
    grey = (np.nan_to_num(canvas, nan=low) - low) * (255.0 / max(float(high - low), 1e-9))
    picture: NDArray[np.uint8] = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return picture


def _worst(rows: Sequence[PlacedTile], problems: Sequence[TileProblem]) -> list[PlacedTile]:
    """Readable tiles to show: those with problems, then those with the lowest focus score."""
    candidates = [p.row for p in problems if p.kind != "excluded"]
    scored = [row for row in rows if row.tile.status == "ok" and row.tile.focus_score is not None]
    candidates += sorted(scored, key=lambda row: row.tile.focus_score or 0.0)
    readable = [row for row in candidates if row.measured is not None and not row.measured.reason]
    return list({id(row): row for row in readable}.values())[:_SHOWN_WORST]


def _contact_sheet(worst: Sequence[PlacedTile], problems: Sequence[TileProblem]) -> Figure:
    kinds = defaultdict(list)
    for problem in problems:
        kinds[id(problem.row)].append(problem.kind)
    columns = min(4, len(worst))
    lines = -(-len(worst) // columns)
    figure = new_figure(9.0, 4.6 * lines)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    for panel, row in zip(panels, worst):
        panel.imshow(_whole_above_middle(_middle_plane(row)), cmap="gray", vmin=0, vmax=255)
        score = "" if row.tile.focus_score is None else f"\nfocus {row.tile.focus_score:.3g}"
        panel.set_title(
            f"{_drawable(row.label[-28:])}\n{', '.join(kinds[id(row)]) or 'ok'}{score}", fontsize=7
        )
    return figure


def _whole_above_middle(image: NDArray[Any]) -> NDArray[np.uint8]:
    """The whole image over its middle at full resolution, both as wide as the crop, with a white line between."""
    import cv2
    import numpy as np

    from ..report import overview_picture

    height, width = image.shape
    top, left = max(0, (height - _CROP_PX) // 2), max(0, (width - _CROP_PX) // 2)
    crop = overview_picture(image[top : top + _CROP_PX, left : left + _CROP_PX], _CROP_PX)
    size = (crop.shape[1], max(1, round(height * crop.shape[1] / width)))
    whole = cv2.resize(overview_picture(image, 2 * _CROP_PX), size, interpolation=cv2.INTER_AREA)
    line = np.full((4, crop.shape[1]), 255, np.uint8)
    return np.concatenate([np.asarray(whole, np.uint8), line, crop])


def _middle_plane(row: PlacedTile) -> NDArray[Any]:
    from ..formats.readers import open_image

    measured = row.measured
    assert measured is not None  # _worst keeps readable tiles only
    assert measured.shape_zyx is not None
    middle = (measured.plane or 0) + measured.shape_zyx[0] // 2
    with open_image(measured.path, whole_set=False) as reader:
        whole = slice(None)
        planes = reader.read(
            measured.series, measured.t, measured.channel, slice(middle, middle + 1), whole, whole
        )
    plane: NDArray[Any] = planes[0]
    return plane
