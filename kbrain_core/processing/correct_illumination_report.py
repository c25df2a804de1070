"""The report of correct-illumination: flat fields, profiles and a mosaic, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..numerics.illumination.flat_field import MAX_RESIDUAL_PERCENT, thumbnail
from ..numerics.illumination.illumination_estimate import GroupFields
from ..numerics.illumination.illumination_tasks import Group, PlaneOfTile, TileWork, load_fields, unpack
from ..numerics.illumination.plane_lines import PlaneLines
from ..numerics.illumination.stripes import remove_stripes, stripe_energy
from ..numerics.illumination.tile_correction import Recipe, Steps
from ..numerics.stitching.tile_images import TileFiles
from ..report import Report, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Float = npt.NDArray[np.floating[Any]]

# A share of clipped pixels above which bright content is no longer what the detector saw.
_MAX_CLIPPED = 0.001
_SHOWN_GROUPS = 6


def verdict_of(found: Mapping[Group, GroupFields], steps: Steps, clipped: float) -> tuple[bool, str]:
    """Say in one line whether the corrected tiles can be trusted, and why.

    Parameters
    ----------
    found : dict
        Fields of every group.
    steps : Steps
    clipped : float
        Share of pixels clipped at white.
    """
    if clipped > _MAX_CLIPPED:
        return False, (
            f"{clipped:.2%} of the pixels became brighter than the type can hold: the flat field lifts them too far, or "
            "they were saturated when recorded"
        )
    if steps == type(steps)():
        return True, "no step was switched on: the tiles are as they were"
    if not steps.flat_field:
        return True, "the steps were done; shading was not corrected and not judged"
    residuals = {group: estimate.residual_percent for group, estimate in found.items()}
    unknown = [group for group, residual in residuals.items() if residual is None]
    if unknown:
        return False, f"channel {unknown[0].channel}: the shading that remains is not known; see the warnings"
    worst = max(found.values(), key=lambda estimate: estimate.residual_percent or 0.0)
    line = (
        f"shading of {worst.shading_percent:.1f} % is expected to be {worst.residual_percent:.1f} % after correction "
        f"(channel {worst.group.channel}; at most {MAX_RESIDUAL_PERCENT:g} % passes)"
    )
    return bool((worst.residual_percent or 0.0) <= MAX_RESIDUAL_PERCENT), line


def make_report(
    works: Sequence[TileWork],
    done: Sequence[dict[str, Any]],
    folder: Path,
    found: Mapping[Group, GroupFields],
    lines: PlaneLines,
    recipe: Recipe,
    figures: Mapping[str, Any],
    warnings: Sequence[str],
) -> Report:
    """Make the report.

    Parameters
    ----------
    works : sequence of TileWork
    done : sequence of dict
        What each of them returned.
    folder : Path
        Of the source tiles.
    found, lines, recipe
        What was estimated and done.
    figures : dict
        Key figures of the result.
    warnings : sequence of str
    """
    report = Report(
        "Illumination", f"{figures['tiles_corrected']} tiles corrected: {', '.join(recipe.steps.names())}."
    )
    report.verdict(figures["passed"], figures["verdict"])
    if not figures["passed"]:
        report.text(
            "What to do",
            "Look at the mosaic below. If it is better than before, go on: stitching does not need perfect shading, "
            "measurements of brightness do. Otherwise give more tiles or a measured flat field (--flat-field-input), or "
            "leave the step out.",
        )
    report.figures(
        {
            "Shading before": _percent(figures["shading_percent"]),
            "Shading expected after": _percent(figures["residual_shading_percent"]),
            "Pixels clipped at black": f"{figures['clipped_low_fraction']:.4%}",
            "Pixels clipped at white": f"{figures['clipped_high_fraction']:.4%}",
            "Tiles handed on as they are": str(figures["tiles_carried"]),
        }
    )
    for warning in warnings:
        report.text("Warning", warning)
    if found:
        _add_fields(report, found)
    _add_mosaic(report, works, done)
    if lines.light:
        report.picture("depth", "Mean light of planes over depth, and the fitted loss.", _depth_figure(lines))
    if lines.levels:
        report.picture(
            "sections",
            "Median and spread of each section (or plane) before contrast was matched; lines: what all were matched to.",
            _sections_figure(lines),
        )
    if recipe.directions():
        _add_stripes(report, works, folder, recipe)
    return report


def _percent(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f} %"


def _add_fields(report: Report, found: Mapping[Group, GroupFields]) -> None:
    rows = [
        (
            group.channel,
            f"{group.width} x {group.height}",
            one.flat_source,
            _percent(one.shading_percent),
            _percent(one.residual_percent),
            f"{one.dust_percent:.3f} %",
            f"{one.dark_level:.4g}",
            one.dark_source,
        )
        for group, one in found.items()
    ]
    header = (
        "channel",
        "tile px",
        "flat field",
        "shading",
        "expected after",
        "dust",
        "dark level",
        "dark level from",
    )
    report.table("Flat field and dark level", header, rows)
    shown = list(found.values())[:_SHOWN_GROUPS]
    caption = (
        "Flat field and dark image of each channel: relative brightness over the field (mean 1), and grey values "
        "without light."
    )
    report.picture("flat-field", caption, _fields_figure(shown))
    caption = (
        "Mean of rows and of columns of the typical tile (median of the sample) before and after: after, the lines "
        "are level but for content."
    )
    report.picture("profiles", caption, _profiles_figure(shown))


def _fields_figure(shown: Sequence[GroupFields]) -> Figure:
    figure = new_figure(8.0, 2.8 * len(shown))
    for (left, right), one in zip(figure.subplots(len(shown), 2, squeeze=False), shown):
        flat = _at_most(one.fields.flat)
        image = left.imshow(flat, cmap="viridis")
        left.set_title(f"flat field, channel {one.group.channel}", fontsize=9)
        figure.colorbar(image, ax=left, shrink=0.8)
        dark = _at_most(np.broadcast_to(one.fields.dark, one.fields.flat.shape))
        image = right.imshow(dark, cmap="gray")
        right.set_title(f"dark image, mean {one.dark_level:.4g}", fontsize=9)
        figure.colorbar(image, ax=right, shrink=0.8)
        for axes in (left, right):
            axes.set_xticks([])
            axes.set_yticks([])
    return figure


def _at_most(field: Float, pixels: int = 500) -> Float:
    step = max(1, -(-max(field.shape) // pixels))
    return field[::step, ::step]


def _profiles_figure(shown: Sequence[GroupFields]) -> Figure:
    figure = new_figure(8.0, 2.4 * len(shown))
    for panels, one in zip(figure.subplots(len(shown), 2, squeeze=False, sharey="row"), shown):
        after = one.typical / thumbnail(one.fields.flat)
        for axes, axis, name, size in (
            (panels[0], 0, "x", one.group.width),
            (panels[1], 1, "y", one.group.height),
        ):
            for values, label, colour in ((one.typical, "before", "#999999"), (after, "after", "#0072b2")):
                profile = values.mean(axis=axis)
                places = (np.arange(len(profile)) + 0.5) * size / len(profile)
                axes.plot(places, profile / profile.mean(), label=label, color=colour)
            axes.set_xlabel(f"{name} (px)")
            axes.set_title(f"channel {one.group.channel}", fontsize=9)
        panels[0].set_ylabel("relative brightness")
        panels[0].legend(fontsize=8)
    return figure


def _add_mosaic(report: Report, works: Sequence[TileWork], done: Sequence[dict[str, Any]]) -> None:
    shown = [(work, result) for work, result in zip(works, done) if "before" in result]
    if not shown:
        return
    first = shown[0][0].tile
    where = f"channel {first.channel}, section {first.z}: {len(shown)} tiles at their stage positions"
    before, after = (
        _mosaic([(work, unpack(result[key])) for work, result in shown]) for key in ("before", "after")
    )
    for name, picture in (("before", before), ("after", after)):
        lit = picture[np.isfinite(picture)]
        low, high = np.percentile(lit, (0.5, 99.5))
        grey = np.nan_to_num((picture - low) * (255.0 / max(float(high - low), 1e-9)))
        report.picture(
            f"mosaic-{name}",
            f"{name.capitalize()} correction, {where}. Seams and darker corners are shading that is left.",
            np.clip(np.rint(grey), 0, 255).astype(np.uint8),
        )


def _mosaic(shown: Sequence[tuple[TileWork, Float]]) -> Float:
    """Put thumbnails where the stage saw the tiles (or by row and column); NaN where there is none."""
    corners = []
    for index, (work, thumb) in enumerate(shown):
        tile = work.tile
        scale = thumb.shape[1] / (tile.width_px or 1)
        if tile.stage_x_um is not None and tile.stage_y_um is not None and tile.pixel_x_um:
            pixel = tile.pixel_x_um
            corners.append(
                (tile.stage_y_um / (tile.pixel_y_um or pixel) * scale, tile.stage_x_um / pixel * scale)
            )
        else:
            row, col = (tile.row or 0, tile.col) if tile.col is not None else (0, index)
            corners.append((row * (thumb.shape[0] + 1.0), col * (thumb.shape[1] + 1.0)))
    top, left = (min(corner[axis] for corner in corners) for axis in (0, 1))
    places = [(round(y - top), round(x - left)) for y, x in corners]
    height = max(y + thumb.shape[0] for (y, _), (_, thumb) in zip(places, shown))
    width = max(x + thumb.shape[1] for (_, x), (_, thumb) in zip(places, shown))
    step = max(1, -(-max(height, width) // 1600))
    canvas = np.full((height // step + 1, width // step + 1), np.nan, np.float32)
    for (y, x), (_, thumb) in zip(places, shown):
        small = thumb[::step, ::step]
        target = canvas[y // step : y // step + small.shape[0], x // step : x // step + small.shape[1]]
        target[...] = small[: target.shape[0], : target.shape[1]]
    return canvas


def _depth_figure(lines: PlaneLines) -> Figure:
    figure = new_figure()
    axes: Axes = figure.subplots()
    for channel, curve in lines.light.items():
        depths, light = np.array(list(curve)), np.array(list(curve.values()))
        (drawn,) = axes.plot(depths, light, ".", label=f"channel {channel}")
        loss = lines.loss.get(channel)
        if loss is not None:
            middle = float(np.median(light * np.exp(loss.per_plane * depths)))
            fitted = middle * np.exp(-loss.per_plane * depths)
            label = f"{100 * (1 - np.exp(-loss.per_plane)):.2f} % lost per plane"
            axes.plot(depths, fitted, color=drawn.get_color(), label=label)
    axes.set_xlabel("plane")
    axes.set_ylabel("mean light (grey values)")
    axes.legend(fontsize=8)
    return figure


def _sections_figure(lines: PlaneLines) -> Figure:
    figure = new_figure()
    axes: Axes = figure.subplots()
    for channel in dict.fromkeys(place[0] for place in lines.levels):
        found = [levels for place, levels in lines.levels.items() if place[0] == channel]
        medians, spreads = ([getattr(levels, name) for levels in found] for name in ("median", "spread"))
        axes.errorbar(range(len(found)), medians, spreads, fmt="o", capsize=3, label=f"channel {channel}")
        axes.axhline(float(np.median(medians)), linewidth=0.8, color="#999999")
    axes.set_xlabel("section or plane")
    axes.set_ylabel("grey value")
    axes.legend(fontsize=8)
    return figure


def _add_stripes(report: Report, works: Sequence[TileWork], folder: Path, recipe: Recipe) -> None:
    """Show one tile's stripes: spectrum and picture before and after, and what was taken out."""
    work = works[len(works) // 2]
    with TileFiles(folder, 1) as files:
        plane = PlaneOfTile(work.tile, (work.tile.depth_px or 1) // 2).read(files)
    before = np.asarray(plane, np.float32) if work.fields is None else load_fields(work.fields).apply(plane)
    after = before
    for direction in recipe.directions():
        after = remove_stripes(
            after, direction=direction, level=recipe.stripe_level, sigma=recipe.stripe_sigma
        )
    figure = new_figure(8.0, 3.0 * len(recipe.directions()))
    for (axes,), direction in zip(
        figure.subplots(len(recipe.directions()), 1, squeeze=False), recipe.directions()
    ):
        for image, label in ((before, "before"), (after, "after")):
            power = stripe_energy(image, direction)
            axes.loglog(np.arange(4, 4 + len(power)), power + 1e-12, label=f"{label} (sum {power.sum():.3g})")
        axes.set_xlabel(f"frequency across {direction} stripes (cycles per tile)")
        axes.set_ylabel(
            "power of what rows share" if direction == "horizontal" else "power of what columns share"
        )
        axes.legend(fontsize=8)
    report.picture(
        "stripes-spectrum", f"Spectrum across the stripes of '{work.tile.name}', before and after.", figure
    )
    report.picture(
        "stripes-tile", "The same tile before, after, and what was taken out.", _stripes_figure(before, after)
    )


def _stripes_figure(before: Float, after: Float) -> Figure:
    figure = new_figure(8.0, 3.2)
    low, high = np.percentile(before[::4, ::4], (0.5, 99.5))
    taken = before - after
    reach = float(np.percentile(np.abs(taken[::4, ::4]), 99)) or 1.0
    for axes, image, limits, name in zip(
        figure.subplots(1, 3),
        (before, after, taken),
        ((low, high), (low, high), (-reach, reach)),
        ("before", "after", "taken out"),
    ):
        axes.imshow(_at_most(image), cmap="gray", vmin=limits[0], vmax=limits[1])
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    return figure
