"""How good a raw tile is: saturation, noise, signal, focus, and whether it shows anything at all.

All of it comes from one ladder of block means (1, 2, 4 ... 64 px): the variance lost from one rung to the next is the
contrast at that scale, and white noise gives each rung a known share of it. One pass over the pixels pays for everything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

MAX_LEVEL = 6
_SHADED_LEVEL = 3  # from 8 px upwards vignetting adds visibly to the contrast and is taken off first
NOISE_BLOCK_PX = 64
# Largest values that 10-, 12- and 14-bit cameras write into 16-bit files, right- and left-aligned.
_CAMERA_MAXIMA = (1023, 4095, 16383, 1023 << 6, 4095 << 4, 16383 << 2)
_QUANTISATION_SIGMA = 1 / math.sqrt(12)
# Variance of noise left after the mask of `estimate_noise` is 36 times that of a pixel.
_NOISE_MASK = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
_MASK_GAIN = 6.0
_NORMAL_MEDIAN = 0.67449
# Contrast at 8-32 px, in noise variances of a pixel, below which an error of 5 % in the noise would change the focus score.
_MIN_COARSE_CONTRAST = 0.25
# A tile is not blank when a scale shows twice the variance of its noise, which a fixed pattern of the camera seldom does,
# or a spot of seven standard deviations, which noise never does and one dim cell in a large tile always.
_BLANK_EXCESS = 2.0
_BLANK_SPOT = 7.0


@dataclass(frozen=True)
class PlaneQuality:
    """Quality of one plane.

    Attributes
    ----------
    noise : float
        Standard deviation of the noise, grey levels.
    signal_to_noise : float
        Standard deviation of the image's structure at 1-64 px over that of the noise.
    focus_score : float or None
        Contrast at 2-4 px over contrast at 8-32 px, both without noise. None when there is too little structure to judge.
    is_blank : bool
        Whether nothing but noise and shading is there.
    """

    noise: float
    signal_to_noise: float
    focus_score: float | None
    is_blank: bool


def saturation_level(dtype: np.dtype[Any], bits: int | None, maximum: float) -> float | None:
    """Grey level at which the camera is full; None for floating point, which has no such level.

    Parameters
    ----------
    dtype : numpy.dtype
        Of the image.
    bits : int or None
        Significant bits, where the file says so.
    maximum : float
        Largest value of the tile: a 12-bit camera in a 16-bit file gives itself away by 4095.
    """
    if dtype.kind not in "ui":
        return None
    full = float(np.iinfo(dtype).max)
    if bits is not None and 1 < bits < 8 * dtype.itemsize:
        full = float(2 ** (bits - (dtype.kind == "i")) - 1)
    if dtype == np.uint16 and maximum < full and maximum in _CAMERA_MAXIMA:
        return float(maximum)
    return full


def count_saturated(plane: NDArray[Any], level: float | None) -> int:
    """How many pixels are at or above the saturation level."""
    return 0 if level is None else int(np.count_nonzero(plane >= level))


def estimate_noise(plane: NDArray[np.float32]) -> float:
    """Standard deviation of white noise in an image, grey levels.

    The image is filtered by the difference of two Laplacians, which flat, sloping and curved areas pass without a trace;
    the median keeps edges out (doi 10.1006/cviu.1996.0060 takes the mean). Done by blocks and averaged as variance, because
    photon noise changes with brightness.

    Parameters
    ----------
    plane : (Y, X) ndarray of float32
    """
    filtered = np.abs(cv2.filter2D(plane, cv2.CV_32F, _NOISE_MASK, borderType=cv2.BORDER_REFLECT)[1:-1, 1:-1])
    (rows, high), (cols, wide) = (_blocks_of(length) for length in filtered.shape)
    blocks = filtered[: rows * high, : cols * wide].reshape(rows, high, cols, wide)
    # every fourth line is enough: 1000 samples a block give the median to 3 %, and the blocks are averaged
    samples = blocks[:, ::4].transpose(0, 2, 1, 3).reshape(rows * cols, -1)
    middle = samples.shape[1] // 2
    medians = np.partition(samples, middle, axis=1)[:, middle]
    return float(np.sqrt(np.mean(np.square(medians / (_NORMAL_MEDIAN * _MASK_GAIN), dtype=np.float64))))


def _blocks_of(length: int) -> tuple[int, int]:
    """How many blocks of about 64 px a side is cut into, and their size; hardly a pixel at the end is left out."""
    count = max(1, round(length / NOISE_BLOCK_PX))
    return count, length // count


def block_ladder(plane: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Block means of 1, 2, 4 ... px, up to 64 px or as long as four blocks fit each side; all over the same pixels."""
    levels = min(MAX_LEVEL, max(0, int(math.log2(max(1, min(plane.shape) / 4)))))
    size = 2**levels
    ladder = [np.ascontiguousarray(plane[: plane.shape[0] // size * size, : plane.shape[1] // size * size])]
    for _ in range(levels):
        height, width = ladder[-1].shape
        half = cv2.resize(ladder[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        ladder.append(half.astype(np.float32, copy=False))
    return ladder


def finite_float32(plane: NDArray[Any]) -> NDArray[np.float32]:
    """The plane as float32, NaN and infinity as 0."""
    image = np.asarray(plane, np.float32)
    if plane.dtype.kind == "f":
        image = np.nan_to_num(image, posinf=0.0, neginf=0.0)
    return image


def measure_plane(plane: NDArray[Any]) -> PlaneQuality:
    """Measure noise, signal, focus and blankness of a plane.

    The focus score is a ratio of contrasts of one image, so neither brightness, gain nor how much of the tile is filled
    changes it: blur does, because it takes the fine scales first. Noise is taken off at every scale.

    Parameters
    ----------
    plane : (Y, X) ndarray
        Any numeric type; NaN and infinity count as 0.
    """
    image = finite_float32(plane)
    if min(image.shape) < 8:
        flat = bool(np.all(image == image.flat[0])) if image.size else True
        return PlaneQuality(0.0, 0.0, None, flat)
    image = image - image.mean(dtype=np.float64).astype(
        np.float32
    )  # float32 keeps its digits for the contrast
    noise = estimate_noise(image)
    if plane.dtype.kind in "ui":
        noise = max(noise, _QUANTISATION_SIGMA)
    ladder = block_ladder(image)
    contrast = _band_contrast(ladder[: _SHADED_LEVEL + 1], noise) + _band_contrast(
        _unshaded(ladder[_SHADED_LEVEL:]), noise / 2**_SHADED_LEVEL
    )
    fine, coarse = sum(contrast[1:2]), sum(contrast[_SHADED_LEVEL:5])
    judged = coarse > max(_MIN_COARSE_CONTRAST * noise**2, 0.0)
    signal = math.sqrt(max(sum(contrast), 0.0))
    return PlaneQuality(
        noise=noise,
        signal_to_noise=signal / noise if noise else 0.0,
        focus_score=math.sqrt(max(fine, 0.0) / coarse) if judged else None,
        is_blank=_is_blank(ladder, noise),
    )


def _band_contrast(ladder: Sequence[NDArray[np.float32]], noise: float) -> list[float]:
    """Variance between neighbouring rungs of the ladder without that of the noise; the first is the contrast at 1-2 px."""
    variances = [cv2.meanStdDev(level)[1].item() ** 2 for level in ladder]
    expected = [noise**2 / 4**k for k in range(len(ladder))]
    steps = range(len(ladder) - 1)
    return [variances[k] - variances[k + 1] - (expected[k] - expected[k + 1]) for k in steps]


def _unshaded(ladder: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """The upper rungs without a paraboloid fitted to the first of them: shading is no structure of the specimen."""
    if not ladder:
        return []
    y, x = np.meshgrid(
        *(np.linspace(-1, 1, size, dtype=np.float32) for size in ladder[0].shape), indexing="ij"
    )
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1).reshape(-1, 6)
    weights = np.linalg.solve(terms.T @ terms, terms.T @ ladder[0].ravel())
    flat = ladder[0] - (terms @ weights).reshape(ladder[0].shape)
    rungs = [flat.astype(np.float32)]
    for level in ladder[1:]:
        half = cv2.resize(rungs[-1], level.shape[::-1], interpolation=cv2.INTER_AREA)
        rungs.append(half.astype(np.float32, copy=False))
    return rungs


def _is_blank(ladder: Sequence[NDArray[np.float32]], noise: float) -> bool:
    """Whether no rung from 2 to 16 px shows more than its noise; the mask takes shading (vignetting) off first.

    Single spots count from 8 px upwards only: below, a hot pixel is one.
    """
    for k, level in enumerate(ladder[1:5], 1):
        filtered = cv2.filter2D(level, cv2.CV_32F, _NOISE_MASK)[1:-1, 1:-1] / _MASK_GAIN
        noise_here = noise / 2**k
        if float(np.mean(np.square(filtered, dtype=np.float64))) > _BLANK_EXCESS * noise_here**2:
            return False
        if k >= 3 and float(np.abs(filtered).max()) > _BLANK_SPOT * noise_here:
            return False
    return True


def low_outliers(scores: Sequence[float | None], mads: float, least_drop: float = 0.25) -> float | None:
    """The limit under which a score is an outlier of its set; None when fewer than five scores tell.

    Scores are ratios, so their logarithms are compared: the limit is `mads` robust standard deviations (1.4826 times the
    median absolute deviation) under the median, and at least the share `least_drop` under it, so that a set of
    nearly equal tiles has no outliers.

    Parameters
    ----------
    scores : sequence of float or None
        Of one set (a channel); None and zero do not count towards the limit.
    mads : float
        How many robust standard deviations; 3.5 is usual (Iglewicz and Hoaglin 1993).
    least_drop : float
        Smallest drop, as a share of the median, that matters.
    """
    logs = np.log([score for score in scores if score is not None and score > 0])
    if len(logs) < 5:
        return None
    median = float(np.median(logs))
    spread = 1.4826 * float(np.median(np.abs(logs - median)))
    return math.exp(min(median - mads * spread, median + math.log(1 - least_drop)))
