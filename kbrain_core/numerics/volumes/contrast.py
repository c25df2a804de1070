"""Contrast limits of a volume, from a sample of bounded size."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from ...formats.volume import Volume

# Enough for percentiles that are stable to a grey level; 16 million voxels take 32 MB at 16 bits.
SAMPLE_VOXELS = 2**24
# A few hot pixels or saturated grains must not decide; the values that Fiji's "auto" uses are 0.35 %.
PERCENTILES = (0.35, 99.65)


def sample_voxels(volume: Volume, channel: int, time: int = 0) -> NDArray[np.generic]:
    """Voxels of the coarsest level, or of 27 boxes spread over it when that is large.

    Parameters
    ----------
    volume : Volume
        Any volume.
    channel, time : int
        Which image of it.

    Returns
    -------
    (N,) ndarray
        Values in no particular order.
    """
    level = len(volume.levels) - 1
    shape = volume.levels[level].shape
    side = volume.levels[level].chunk if np.prod(shape) > SAMPLE_VOXELS else shape
    ranges = [_spread(size, length) for size, length in zip(shape, side)]
    one_time, one_channel = slice(time, time + 1), slice(channel, channel + 1)
    parts = [
        volume.read((one_time, one_channel, z, y, x), level).ravel() for z, y, x in itertools.product(*ranges)
    ]
    return np.concatenate(parts)


def _spread(size: int, length: int) -> list[slice]:
    """Ranges of `length` around the middles of the three thirds of an axis, or the whole of a short axis."""
    if size <= 3 * length:
        return [slice(0, size)]
    middles = ((2 * third + 1) * size // 6 for third in range(3))
    return [slice(middle - length // 2, middle - length // 2 + length) for middle in middles]


def contrast_limits(
    volume: Volume, channel: int, time: int = 0, percentiles: tuple[float, float] = PERCENTILES
) -> tuple[float, float]:
    """Intensities (low, high) between which most voxels lie.

    Zeros, which is what lies outside of stitched or aligned images, do not count unless there is nothing else.

    Parameters
    ----------
    volume : Volume
        Any image volume.
    channel, time : int
        Which image of it.
    percentiles : (float, float)
        Share of voxels below each limit, in percent.
    """
    voxels = sample_voxels(volume, channel, time)
    voxels = voxels[np.isfinite(voxels)]
    filled = voxels[voxels != 0]
    if not filled.size:
        return (0.0, 1.0)
    low, high = np.percentile(filled, percentiles)
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)


def apply_window(voxels: NDArray[np.generic], window: tuple[float, float]) -> NDArray[np.uint8]:
    """Intensities as 8 bits: the window's low becomes 0, its high 255, what lies outside is clipped.

    Parameters
    ----------
    voxels : (Z, Y, X) ndarray
        8- or 16-bit integers, or float32; NaN becomes 0.
    window : (float, float)
        Intensities (low, high), low < high.

    Returns
    -------
    (Z, Y, X) ndarray of uint8
        Rounded half to even.
    """
    low, high = window
    if voxels.dtype.kind in "ui" and voxels.dtype.itemsize <= 2:
        # One table for all values that the type has, in the order of their bits.
        unsigned = np.arange(2 ** (8 * voxels.dtype.itemsize), dtype=f"u{voxels.dtype.itemsize}")
        table = _scale(unsigned.view(voxels.dtype), low, high)
        scaled: NDArray[np.uint8] = np.take(table, voxels.view(unsigned.dtype))
        return scaled
    scaled = np.empty(voxels.shape, np.uint8)
    for z, plane in enumerate(voxels):
        scaled[z] = _scale(plane, low, high)
    return scaled


def _scale(values: NDArray[np.generic], low: float, high: float) -> NDArray[np.uint8]:
    scaled = np.rint((values.astype(np.float64) - low) * 255.0 / (high - low))
    clipped: NDArray[np.uint8] = np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255).astype(np.uint8)
    return clipped
