"""What `precompute_volume` shows of its result: levels, their means, what compression lost, and slices to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..formats.layout import Level
from ..formats.precomputed import level_key
from ..formats.volume import Volume
from ..formats.volume_spec import VolumeSpec
from ..geometry import Box
from ..numerics.volumes.contrast import contrast_limits
from ..report import Report, new_figure
from ..store import is_remote, local_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .precompute_volume import Selection

# Averages are rounded once, half to even: more than this means that something went wrong.
MOST_MEAN_SHIFT_GREY = 0.1
# Chunks that are read back to see what JPEG lost.
ERROR_CHUNKS = 8
# A slice in the report has at most so many pixels a side: it is as large on the page, and few chunks are read for it.
SLICE_PX = 640


@dataclass(frozen=True)
class LossyError:
    """Difference between what went in and what comes back, in grey levels, over a sample of level 0."""

    mean: float
    p99: float
    largest: float
    voxels: int


def lossy_error(voxels: Selection, written: Volume) -> LossyError:
    """Read chunks spread over level 0 back and compare them with the source.

    Parameters
    ----------
    voxels : Selection
        What went in.
    written : Volume
        What came out.
    """
    from .precompute_volume import read_selection

    level = written.levels[0]
    counts = [-(-size // side) for size, side in zip(level.shape, level.chunk)]
    chosen = np.unique(np.linspace(0, np.prod(counts) - 1, ERROR_CHUNKS).astype(int))
    differences = []
    for number in chosen:
        z, y, x = (
            (int(i) * side, min((int(i) + 1) * side, size))
            for i, side, size in zip(np.unravel_index(number, counts), level.chunk, level.shape)
        )
        box = Box(z, y, x)
        before = read_selection(voxels, box).astype(np.int16)
        after = written.read((slice(None), slice(None), *box.slices(level.shape)))[0]
        differences.append(np.abs(after - before).ravel())
    errors = np.concatenate(differences)
    return LossyError(
        round(float(errors.mean()), 3), float(np.percentile(errors, 99)), float(errors.max()), errors.size
    )


def check_levels(means: Sequence[float]) -> float | None:
    """How far the mean grey value of any level is from level 0, in grey levels; None for labels."""
    return round(max(abs(mean - means[0]) for mean in means), 4) if means else None


def stored_bytes(output: str, spec: VolumeSpec) -> list[int]:
    """Bytes on disk of every level; nothing for a URL, whose store would have to be listed."""
    if is_remote(output):
        return []
    folders = [local_path(output) / level_key(spec, level) for level in spec.levels]
    return [sum(file.stat().st_size for file in folder.iterdir()) for folder in folders]


def make_report(
    written: Volume,
    spec: VolumeSpec,
    sizes: list[int],
    means: Sequence[float],
    error: LossyError | None,
    warnings: Sequence[str],
) -> Report:
    """The report: verdict, key figures, levels and pictures.

    Parameters
    ----------
    written : Volume
        The result.
    spec : VolumeSpec
        What it was planned as.
    sizes : list of int
        Bytes of every level, or nothing.
    means : sequence of float
        Mean grey value of every level, each voxel weighted by the source voxels it covers; nothing for labels.
    error : LossyError or None
        What JPEG lost.
    warnings : sequence of str
        What a person should know.
    """
    shape = spec.levels[0].shape
    kind = "Labels" if spec.kind == "labels" else "Image"
    report = Report(
        "Precomputed volume",
        f"{kind} of {shape[2]} x {shape[1]} x {shape[0]} voxels (x, y, z), {len(spec.channel_names)} channel(s), "
        f"{spec.dtype}, {len(spec.levels)} levels, encoding {spec.encoding}.",
    )
    shift = check_levels(means)
    # The mean of decoded JPEG is not what averages were made from, and passes that read it again may drift a little.
    passed = (
        shift is None or shift <= MOST_MEAN_SHIFT_GREY or spec.encoding == "jpeg" or spec.dtype == "float32"
    )
    report.verdict(passed, _verdict(spec, shift, passed))
    figures = {"Voxel size (x, y, z)": _nm_text(spec, spec.levels[0]), "Encoding": spec.encoding}
    if sizes:
        figures["Size on disk"] = f"{sum(sizes) / 1e6:.1f} MB"
        figures["Compression"] = f"{spec.voxel_bytes / max(1, sum(sizes)):.2f} : 1"
    for name, (low, high) in zip(spec.channel_names, spec.intensity_windows):
        figures[f"Intensities shown, channel {name}"] = f"{low:g} became 0, {high:g} became 255"
    if error is not None:
        figures["Error of JPEG (sample of level 0)"] = (
            f"mean {error.mean:.2f}, 99 % of voxels within {error.p99:.0f}, largest {error.largest:.0f} grey levels "
            f"({error.voxels:,} voxels)"
        )
    if spec.lossy:
        figures["Lossy"] = "yes: for looking, not for measuring intensities"
    report.figures(figures)
    for warning in warnings:
        report.text("Please note", warning)
    report.table(
        "Levels",
        ("level", "shape x, y, z", "voxel nm x, y, z", "chunk x, y, z", "MB", "mean grey", "against level 0"),
        [_level_row(spec, index, sizes, means) for index in range(len(spec.levels))],
    )
    report.picture("slices", *_slices_picture(written))
    if len(spec.levels) > 1:
        report.picture("levels", *_levels_picture(written))
    return report


def _verdict(spec: VolumeSpec, shift: float | None, passed: bool) -> str:
    if shift is None:
        return f"All {len(spec.levels)} levels hold labels that exist in the input"
    if spec.dtype == "float32":
        return f"All {len(spec.levels)} levels are written; their means differ by at most {shift:g}"
    expected = (
        "" if passed else f", more than the {MOST_MEAN_SHIFT_GREY} that rounding explains: do not use it"
    )
    return f"The mean grey value of all {len(spec.levels)} levels agrees within {shift:.3f} grey levels{expected}"


def _xyz(values: Sequence[object]) -> str:
    return " x ".join(map(str, reversed(values)))


def _nm_text(spec: VolumeSpec, level: Level) -> str:
    size_nm = spec.voxel_size_nm or (1.0, 1.0, 1.0)
    return _xyz([f"{size * n:g}" for size, n in zip(size_nm, level.factor)]) + " nm"


def _level_row(spec: VolumeSpec, index: int, sizes: list[int], means: Sequence[float]) -> list[str]:
    level = spec.levels[index]
    size = f"{sizes[index] / 1e6:.2f}" if sizes else ""
    mean, shift = (f"{means[index]:.3f}", f"{means[index] - means[0]:+.4f}") if means else ("", "")
    return [str(index), _xyz(level.shape), _nm_text(spec, level), _xyz(level.chunk), size, mean, shift]


def _slices_picture(written: Volume) -> tuple[str, Any]:
    """Caption and figure: three slices through the middle."""
    index = written.level_at_most(SLICE_PX)
    level = written.levels[index]
    size_nm = _level_size_nm(written, level)
    middle = [size // 2 for size in level.shape]
    figure = new_figure(9.0, 4.0)
    widths = [level.shape[2] * size_nm[2], level.shape[2] * size_nm[2], level.shape[1] * size_nm[1]]
    axes = figure.subplots(1, 3, width_ratios=[width / max(widths) for width in widths])
    for axis, (name, across, down, fixed) in zip(
        axes, (("xy", 2, 1, 0), ("xz", 2, 0, 1), ("yz", 1, 0, 2)), strict=True
    ):
        cuts = [slice(None)] * 3
        cuts[fixed] = slice(middle[fixed], middle[fixed] + 1)
        plane = _plane(written, index, (cuts[0], cuts[1], cuts[2]), fixed)
        _show(axis, plane, size_nm[down], size_nm[across])
        position_um = middle[fixed] * size_nm[fixed] / 1000
        axis.set_title(f"{name} at {'zyx'[fixed]} = {position_um:.4g} um", fontsize=9)
    bar_um = _scale_bar(axes[0], plane_width_um=level.shape[2] * size_nm[2] / 1000)
    caption = f"Slices through the middle, level {index}; voxels in their true proportions, scale bar {bar_um:g} um."
    return caption, figure


def _levels_picture(written: Volume) -> tuple[str, Any]:
    """Caption and figure: the same place in every level, so that a shift between levels would be seen."""
    shown = range(min(len(written.levels), 5))
    finest = written.levels[0]
    side_nm = min(finest.shape[axis] * _level_size_nm(written, finest)[axis] for axis in (1, 2)) / 4
    figure = new_figure(9.0, 2.4)
    axes = figure.subplots(1, len(shown))
    for axis, index in zip(np.atleast_1d(axes), shown, strict=True):
        level = written.levels[index]
        size_nm = _level_size_nm(written, level)
        middle = finest.shape[0] // 2 // level.factor[0]
        cuts = [slice(middle, middle + 1)]
        for dimension in (1, 2):
            centre_nm = finest.shape[dimension] * _level_size_nm(written, finest)[dimension] / 2
            low = max(0, int((centre_nm - side_nm / 2) / size_nm[dimension]))
            high = min(
                level.shape[dimension], max(low + 1, round((centre_nm + side_nm / 2) / size_nm[dimension]))
            )
            cuts.append(slice(low, high))
        plane = _plane(written, index, (cuts[0], cuts[1], cuts[2]), 0)
        _show(axis, plane, size_nm[1], size_nm[2])
        axis.set_title(f"level {index}", fontsize=9)
    return "The same place in every level: structures must not move from one to the next.", figure


def _level_size_nm(written: Volume, level: Level) -> tuple[float, float, float]:
    z, y, x = (size * n for size, n in zip(written.voxel_size_nm or (1.0, 1.0, 1.0), level.factor))
    return (z, y, x)


def _plane(written: Volume, level: int, cuts: tuple[slice, slice, slice], fixed: int) -> NDArray[np.float64]:
    """One slice as colours (Y, X, 3) from 0 to 1: channels added up, labels in a colour each."""
    voxels = written.read((slice(0, 1), slice(None), *cuts), level)[0].squeeze(axis=1 + fixed)
    if written.kind == "labels":
        return _label_colors(voxels[0])
    tints = (
        ((1, 1, 1),)
        if len(voxels) == 1
        else ((0, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0), (0, 0, 1))
    )
    picture = np.zeros((*voxels.shape[1:], 3))
    for channel, plane in enumerate(voxels):
        low, high = contrast_limits(written, channel)
        grey = np.clip((np.nan_to_num(plane.astype(np.float64)) - low) / (high - low), 0, 1)
        picture += grey[..., None] * np.array(tints[channel % len(tints)])
    return np.clip(picture, 0, 1)


def _label_colors(labels: NDArray[Any]) -> NDArray[np.float64]:
    """A colour per ID that stays the same from picture to picture; 0 is black."""
    mixed = labels.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    channels = [(mixed >> np.uint64(shift) & np.uint64(0xFF)).astype(np.float64) for shift in (56, 48, 40)]
    colors: NDArray[np.float64] = 0.25 + 0.75 * np.stack(channels, axis=-1) / 255
    colors[labels == 0] = 0
    return colors


def _show(axis: Axes, picture: NDArray[np.float64], down_nm: float, across_nm: float) -> None:
    axis.imshow(picture, aspect=down_nm / across_nm, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])


def _scale_bar(axis: Axes, plane_width_um: float) -> float:
    """Draw a bar of a round length near a fifth of the width; give its length in um."""
    rough = plane_width_um / 5
    power = 10.0 ** np.floor(np.log10(rough))
    length = float(max(n * power for n in (1, 2, 5) if n * power <= rough))
    axis.plot(
        [0.05, 0.05 + length / plane_width_um], [0.04, 0.04], color="white", lw=3, transform=axis.transAxes
    )
    return length
