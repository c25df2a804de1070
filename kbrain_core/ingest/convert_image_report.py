"""The report of convert-image."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..formats.readers import ImageInfo
from ..formats.volume import Volume
from ..geometry import NM_PER_UM
from ..numerics.volumes.contrast import sample_voxels
from ..report import Report, new_figure, overview_picture

_PICTURE_PX = 600
_THINNEST_PICTURE_PX = 8
_MOST_STRETCH = 50
_HISTOGRAM_VOXELS = 1_000_000
# Spectral and cyclic stainings have dozens; the first ones tell whether the conversion is right.
_MOST_CHANNELS = 8


def make_report(volume: Volume, info: ImageInfo, found_in: str, verified: int) -> Report:
    """Slices through the middle, the histogram, and what is known of the axes.

    Parameters
    ----------
    volume : Volume
        The volume as written.
    info : ImageInfo
        What its source says of itself.
    found_in : str
        Where the voxel size was found.
    verified : int
        How many voxels were compared with the source; 0 when none was.
    """
    report = Report(f"Conversion of {info.name}", "The volume as it was written, seen along its three axes.")
    size = volume.voxel_size_nm
    report.verdict(
        True,
        f"{verified:,} voxels read back and equal to the source"
        if verified
        else "converted; pass --verify to compare every voxel",
    )
    names = ("time points", "channels", "z", "y", "x")
    sizes = ("", "") + (tuple(f"{nm / NM_PER_UM:g}" for nm in size) if size else ("not known",) * 3)
    report.table(
        "Axes", ("axis", "size", "voxel size (um)"), list(zip(names, volume.shape, sizes, strict=True))
    )
    report.text("Voxel size", f"Where it comes from: {found_in}.")
    report.table("Channels", ("number", "name"), list(enumerate(volume.channel_names)))
    level = volume.level_at_most(_PICTURE_PX)
    for channel, name in enumerate(volume.channel_names[:_MOST_CHANNELS]):
        for plane, picture in _middle_planes(volume, channel, level):
            report.picture(
                f"channel-{channel}-{plane}", f"{name}: the middle {plane} plane.", overview_picture(picture)
            )
        report.picture(
            f"histogram-{channel}",
            f"{name}: how often each intensity occurs.",
            _histogram(sample_voxels(volume, channel)),
        )
    return report


def _middle_planes(volume: Volume, channel: int, level: int) -> list[tuple[str, NDArray[Any]]]:
    """The xy, xz and yz planes through the middle of the first time point, as high and wide as they are in um."""
    depth, height, width = volume.levels[level].shape
    one, chosen, whole = slice(0, 1), slice(channel, channel + 1), slice(None)
    xy = volume.read((one, chosen, slice(depth // 2, depth // 2 + 1), whole, whole), level)[0, 0, 0]
    if depth == 1:
        return [("xy", xy)] if min(xy.shape) >= _THINNEST_PICTURE_PX else []
    xz = volume.read((one, chosen, whole, slice(height // 2, height // 2 + 1), whole), level)[0, 0, :, 0]
    zy = volume.read((one, chosen, whole, whole, slice(width // 2, width // 2 + 1)), level)[0, 0, :, :, 0]
    steps = [nm * n for nm, n in zip(volume.voxel_size_nm or (1.0, 1.0, 1.0), volume.levels[level].factor)]
    least = -(-_THINNEST_PICTURE_PX // depth)
    tall = [min(max(round(steps[0] / step), least), _MOST_STRETCH) for step in steps]
    planes = [("xy", xy), ("xz", np.repeat(xz, tall[2], axis=0)), ("yz", np.repeat(zy.T, tall[1], axis=1))]
    return [(name, plane) for name, plane in planes if min(plane.shape) >= _THINNEST_PICTURE_PX]


def _histogram(values: NDArray[Any]) -> Figure:
    """How often each intensity occurs, from every n-th voxel: a million show the same curve as all."""
    counts, edges = np.histogram(values[:: 1 + len(values) // _HISTOGRAM_VOXELS], bins=256)
    figure = new_figure(8, 3)
    axes = figure.subplots()
    axes.stairs(counts, edges, fill=True)
    axes.set_yscale("log")
    axes.set_xlabel("intensity")
    axes.set_ylabel("voxels sampled")
    return figure
