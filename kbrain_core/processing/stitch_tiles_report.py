"""The report of a stitch: what a microscopist looks at before trusting a mosaic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..formats.volume import Volume
from ..numerics.stitching.seam_pictures import colour_seam
from ..numerics.stitching.tile_canvas import Canvas
from ..numerics.stitching.tile_graph import OFF_PX, Floats, Ints
from ..numerics.stitching.tile_layout import Mosaic
from ..numerics.stitching.tile_solution import Registration, patterns_of
from ..report import Report, new_figure, overview_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Sections drawn one by one; a table and a curve tell of the others.
DRAWN_GROUPS = 3
# Rows of a table of things that went wrong.
LISTED = 40


def stitch_report(
    mosaic: Mosaic, found: Registration, canvas: Canvas, output: str, figures: dict[str, Any]
) -> Report:
    """Make the report of a stitch.

    Parameters
    ----------
    mosaic : Mosaic
    found : Registration
    canvas : Canvas
    output : str
        The fused volume, for its overview.
    figures : dict
        The stage's key figures.
    """
    t, c, z, y, x = canvas.shape
    report = Report(
        "Stitched tiles",
        f"{len(mosaic.sites)} places in {len(mosaic.group_names)} groups fused into {x} x {y} px, {z} planes, {c} channels, "
        f"{t} time points.",
    )
    report.verdict(found.verdict.passed, found.verdict.line)
    report.figures(
        {name.replace("_", " "): _text(value) for name, value in figures.items() if name != "verdict"}
    )
    report.picture("mosaic", "The stitched mosaic (first channel, middle plane).", _overview(output))
    measured = bool(found.links.accepted.any())
    for group in _groups_to_draw(mosaic, found):
        name = mosaic.group_names[group]
        report.picture(
            f"links-{group}",
            f"Links of {name}. Left: agreement (NCC) of each overlap. Right: how far each link is from the common solution. "
            "Dashed: not verified. Hatched tiles lie where the stage put them.",
            _link_map(mosaic, found, group),
        )
        if measured:
            report.picture(
                f"shifts-{group}",
                f"How far each tile of {name} lies from where the stage put it. Equal arrows: a wrong step or angle; "
                "single long ones: look at that tile.",
                _shift_map(mosaic, found, group),
            )
    if measured:
        report.picture(
            "residuals",
            f"Left: residuals of the verified links; beyond {OFF_PX:g} px a seam shows. Right: agreement of neighbours "
            "against that of tiles that do not touch; the line is the least that is believed.",
            _histograms(found),
        )
        _add_seams(report, mosaic, found)
    if len(mosaic.group_names) > 1 and measured:
        report.picture(
            "sections",
            "Agreement and residuals by section: a step shows a bad one.",
            _group_curves(mosaic, found),
        )
    for number, pattern in enumerate(patterns_of(found)):
        report.picture(
            f"fixed-pattern-{number}",
            "What all tiles show at the same place (dust, scratches): left out of the registration, not of the volume.",
            overview_picture(pattern),
        )
    _add_cycles(report, found)
    _add_tables(report, mosaic, found)
    return report


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        return " x ".join(map(str, value))
    return "not known" if value is None else str(value)


def _overview(output: str) -> NDArray[np.uint8]:
    volume = Volume.open(output, allow_incomplete=True)
    level = volume.level_at_most(1200)
    middle = volume.levels[level].shape[0] // 2
    everything = slice(None)
    plane = volume.read(
        (slice(0, 1), slice(0, 1), slice(middle, middle + 1), everything, everything), level=level
    )
    return overview_picture(plane[0, 0, 0])


def _groups_to_draw(mosaic: Mosaic, found: Registration) -> list[int]:
    """The first group, and those with the most that is not in order."""
    ends = found.links.ends
    trouble = np.zeros(len(mosaic.group_names))
    if len(ends):
        np.add.at(
            trouble,
            mosaic.groups[ends[:, 0]],
            ~found.links.accepted + np.nan_to_num(found.placement.residuals),
        )
    order = [0, *(int(group) for group in np.argsort(-trouble, kind="stable") if group != 0)]
    return sorted(order[:DRAWN_GROUPS])


def _group_links(mosaic: Mosaic, found: Registration, group: int) -> Ints:
    ends = found.links.ends
    return np.flatnonzero(mosaic.groups[ends[:, 0]] == group) if len(ends) else np.empty(0, np.int64)


def _plain_figure(width_in: float, height_in: float) -> Figure:
    """A figure with fixed margins: fitting them to the text draws everything twice, the largest cost of a small stitch."""
    figure = new_figure(width_in, height_in)
    figure.set_layout_engine(None)
    bottom, top = 0.55 / height_in, 1 - 0.3 / height_in
    figure.subplots_adjust(left=0.09, right=0.97, bottom=bottom, top=top, wspace=0.28, hspace=0.15)
    return figure


def _link_map(mosaic: Mosaic, found: Registration, group: int) -> Figure:
    figure = _plain_figure(11, 5.2)
    chosen = _group_links(mosaic, found, group)
    ends, accepted = found.links.ends[chosen], found.links.accepted[chosen]
    # given positions come without a decision: their seams are all drawn by agreement
    drawn = accepted if found.links.accepted.any() else np.ones(len(chosen), bool)
    middles = found.placement.positions[:, 1:] + mosaic.shapes[:, 1:] / 2
    residuals = np.nan_to_num(found.placement.residuals[chosen])
    values = (
        (found.links.ncc[chosen], "NCC", "viridis", 1.0),
        (residuals, "residual, px", "magma_r", max(OFF_PX, residuals.max(initial=0))),
    )
    for axes, (value, label, colours, top) in zip(figure.subplots(1, 2), values, strict=True):
        _draw_tiles(axes, mosaic, found, group)
        _draw_lines(axes, middles[ends[~drawn]], None, colours, top)
        lines = _draw_lines(axes, middles[ends[drawn]], value[drawn], colours, top)
        figure.colorbar(lines, ax=axes, label=label, shrink=0.8)
    return figure


def _draw_tiles(axes: Axes, mosaic: Mosaic, found: Registration, group: int) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    members = np.flatnonzero(mosaic.groups == group)
    for held, colour, hatch in ((True, "#f2f2f2", None), (False, "#ffe9d6", "///")):
        boxes = [
            Rectangle((float(x), float(y)), mosaic.sites[i].shape[2], mosaic.sites[i].shape[1])
            for i in members
            if bool(found.placement.linked[i]) == held
            for y, x in [found.placement.positions[i, 1:]]
        ]
        axes.add_collection(
            PatchCollection(boxes, edgecolor="#999999", linewidth=0.5, facecolor=colour, hatch=hatch)
        )
    low = found.placement.positions[members, 1:].min(axis=0)
    high = (found.placement.positions + mosaic.shapes)[members, 1:].max(axis=0)
    axes.set_xlim(low[1], high[1])
    axes.set_ylim(high[0], low[0])
    axes.set_aspect("equal")
    axes.set_xlabel("x, px")
    axes.set_ylabel("y, px")


def _draw_lines(axes: Axes, ends: Floats, values: Floats | None, colours: str, top: float) -> Any:
    """Lines between points (n, 2 ends, (y, x)); dashed grey without values."""
    from matplotlib.collections import LineCollection

    segments = list(ends[:, :, ::-1])
    if values is None:
        lines = LineCollection(segments, colors="#777777", linestyles="dashed", linewidths=0.8)
    else:
        lines = LineCollection(segments, cmap=colours, linewidths=2.5)
        lines.set_array(values)
        lines.set_clim(0, top)
    return axes.add_collection(lines)


def _shift_map(mosaic: Mosaic, found: Registration, group: int) -> Figure:
    figure = _plain_figure(8, 5.5)
    axes = figure.subplots()
    _draw_tiles(axes, mosaic, found, group)
    members = np.flatnonzero((mosaic.groups == group) & (found.placement.linked > 0))
    moved = found.placement.positions[members] - mosaic.nominal[members]
    moved -= np.median(moved, axis=0) if len(moved) else 0
    middles = found.placement.positions[members, 1:] + mosaic.shapes[members, 1:] / 2
    along_z = moved[:, 0] if (mosaic.shapes[:, 0] > 1).any() else None
    length = np.hypot(moved[:, 1], moved[:, 2])
    size = float(np.median(mosaic.shapes[:, 1:]))
    scale = max(float(length.max(initial=0)), 1.0) / (0.45 * size)
    colour = along_z if along_z is not None else length
    arrows = axes.quiver(
        middles[:, 1], middles[:, 0], moved[:, 2], moved[:, 1], colour,
        angles="xy", scale_units="xy", scale=scale, width=0.004, cmap="viridis",
    )  # fmt: skip
    figure.colorbar(
        arrows, ax=axes, label="shift along z, planes" if along_z is not None else "shift from the stage, px"
    )
    axes.set_title(f"arrows: {1 / scale:.0f} times enlarged", fontsize=9)
    return figure


def _histograms(found: Registration) -> Figure:
    figure = _plain_figure(9, 3.4)
    left, right = figure.subplots(1, 2)
    residuals = found.placement.residuals[found.links.accepted]
    left.stairs(*np.histogram(residuals, 30), fill=True, color="#3b6ea5")
    if residuals.max(initial=0) > OFF_PX / 2:
        left.axvline(OFF_PX, color="#b03030", linewidth=1)
    left.set_xlabel("residual, px")
    left.set_ylabel("links")
    bins = np.linspace(-0.1, 1, 45)
    coarse = [link.ncc for link in found.links.found]
    chance = np.histogram(found.links.chance, bins)
    right.stairs(*np.histogram(coarse, bins), fill=True, color="#3b6ea5", label="neighbours")
    right.stairs(*chance, fill=True, color="#c98a2b", alpha=0.8, label="tiles that do not touch")
    right.axvline(found.links.threshold, color="#b03030", linewidth=1)
    right.set_xlabel("NCC")
    right.legend(fontsize=8)
    return figure


def _group_curves(mosaic: Mosaic, found: Registration) -> Figure:
    figure = _plain_figure(8, 3.4)
    upper, lower = figure.subplots(2, 1, sharex=True)
    numbers, agreement, worst = [], [], []
    for group in range(len(mosaic.group_names)):
        chosen = _group_links(mosaic, found, group)
        chosen = chosen[found.links.accepted[chosen]]
        if len(chosen):
            numbers.append(group)
            agreement.append(float(np.median(found.links.ncc[chosen])))
            worst.append(float(found.placement.residuals[chosen].max()))
    upper.plot(numbers, agreement, ".-", color="#3b6ea5")
    upper.set_ylabel("median NCC")
    upper.set_ylim(0, 1)
    lower.plot(numbers, worst, ".-", color="#b03030")
    lower.set_ylabel("largest residual, px")
    lower.set_xlabel("section")
    lower.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _add_seams(report: Report, mosaic: Mosaic, found: Registration) -> None:
    """The overlap that registration moved most, and the one that fits worst, before and after."""
    links, placement = found.links, found.placement
    ends = links.ends
    nominal = mosaic.nominal[ends[:, 1]] - mosaic.nominal[ends[:, 0]]
    solved = placement.positions[ends[:, 1]] - placement.positions[ends[:, 0]]
    lively = [link.structure.contrast >= 0.5 * links.usual_contrast for link in links.found]
    moved = np.where(links.accepted & lively, np.linalg.norm(solved - nominal, axis=1), -1)
    worst = np.where(links.accepted, np.nan_to_num(placement.residuals), -1)
    for name, number, what in (
        ("seam-most-moved", int(np.argmax(moved)), "that moved most from the stage"),
        ("seam-worst", int(np.argmax(worst)), "with the largest residual"),
    ):
        link = links.found[number]
        one, other = mosaic.sites[link.first], mosaic.sites[link.second]
        places = [_triple(offset[number]) for offset in (nominal, solved)]
        views = colour_seam(one, other, places, found.template.folder)
        if not views:
            continue
        report.picture(
            name,
            f"Overlap of {one.name} (magenta) and {other.name} (green), the one {what} (residual "
            f"{worst[number]:.2f} px): as the stage put them, and as solved. Grey is agreement.",
            _side_by_side(views),
        )


def _triple(values: Floats) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _side_by_side(views: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures of one size with a white line between: beside each other when they are tall, else one above the other."""
    axis = 1 if views[0].shape[0] > views[0].shape[1] else 0
    edge = [(0, 0), (0, 0), (0, 0)]
    edge[axis] = (0, 6)
    return np.concatenate([np.pad(view, edge, constant_values=255) for view in views], axis=axis)


def _add_cycles(report: Report, found: Registration) -> None:
    """How channels and time points lie on the registered one."""
    rows = [
        (
            cycle.channel,
            cycle.t,
            f"{cycle.matched} of {cycle.sites}",
            "" if cycle.shift_px is None else f"{cycle.shift_px[1]:.2f}, {cycle.shift_px[0]:.2f}",
            "" if cycle.angle_deg is None else f"{cycle.angle_deg:.3f}",
            "no common structure" if cycle.off_px is None else f"{cycle.off_px:.2f}",
        )
        for cycle in found.cycles
    ]
    if rows:
        header = (
            "channel",
            "time",
            "tiles that match",
            "shift x, y, px",
            "rotation, deg",
            "largest shift, px",
        )
        report.table("Channels and time points against the registered one", header, rows[:LISTED])


def _add_tables(report: Report, mosaic: Mosaic, found: Registration) -> None:
    links, placement = found.links, found.placement
    if links.accepted.any():
        rows = []
        for group, stage in enumerate(placement.stages):
            chosen = _group_links(mosaic, found, group)
            good = chosen[links.accepted[chosen]]
            components = len(np.unique(placement.component[mosaic.groups == group]))
            scale_y, scale_x = stage.scale_yx
            rows.append(
                (
                    mosaic.group_names[group], f"{len(good)} of {len(chosen)}", components, f"{scale_x:.5f}",
                    f"{scale_y:.5f}", f"{stage.angle_deg:.3f}", f"{stage.backlash_px:.1f}", f"{stage.jitter_px:.1f}",
                )
            )  # fmt: skip
        header = ("group", "links verified", "components", "step x / nominal", "step y / nominal", "angle, deg",
                  "backlash, px", "jitter left, px")  # fmt: skip
        report.table("The stage, as the tiles tell it", header, rows[:LISTED])
    alone = [i for i in range(len(mosaic.sites)) if placement.linked[i] == 0]
    if alone and links.accepted.any():
        lost = set(found.verdict.lost)
        entries = [
            (mosaic.sites[i].name, mosaic.group_names[mosaic.sites[i].group],
             "blank" if mosaic.sites[i].blank else "structure that matches nothing" if i in lost else "little structure")
            for i in sorted(alone, key=lambda i: i not in lost)[:LISTED]
        ]  # fmt: skip
        report.table(f"Tiles placed by the stage alone ({len(alone)})", ("tile", "group", "why"), entries)
    rejected = [int(i) for i in np.flatnonzero(~links.accepted)] if links.accepted.any() else []
    if rejected:
        doubts = [
            (
                mosaic.sites[links.found[i].first].name, mosaic.sites[links.found[i].second].name,
                f"{links.found[i].ncc:.2f}", f"{links.found[i].structure.contrast / links.usual_contrast:.2f}",
                f"{found.seams[i].ncc:.2f}" if i in found.seams else "",
            )
            for i in sorted(rejected, key=lambda i: -links.found[i].structure.contrast)[:LISTED]
        ]  # fmt: skip
        report.table(
            f"Links that were not believed ({len(rejected)}), most contrast first",
            ("tile", "neighbour", "best NCC", "contrast / usual contrast", "NCC as placed"),
            doubts,
        )
