"""What a tile looks like to registration: reduced, without background, without the camera's fixed pattern."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

Signal = NDArray[np.float32]

# Structure wider than this many full-resolution pixels (a Gaussian's sigma) is shading, not texture.
BACKGROUND_SIGMA_PX = 12.0
# Below the microscope's resolution there is only shot noise, and a smooth correlation peak fits a parabola.
NOISE_SIGMA_PX = 1.0


@njit(cache=True, nogil=True)
def _mean_of_blocks(plane: Any, factor: int) -> Signal:
    rows, columns = plane.shape[0] // factor, plane.shape[1] // factor
    out = np.zeros((rows, columns), np.float32)
    scale = np.float32(1 / (factor * factor))
    for y in range(rows * factor):
        source, target = plane[y], out[y // factor]
        for x in range(columns):
            total = np.float32(0)
            for i in range(factor):
                total += np.float32(source[x * factor + i])
            target[x] += total * scale
    return out


def reduce_plane(plane: NDArray[Any], factor: int) -> Signal:
    """Mean of `factor` x `factor` blocks of one plane as float32; a remainder at the edge is left out.

    Parameters
    ----------
    plane : (Y, X) ndarray
        Any real type. NaN (a hole in a float image) becomes the plane's mean, so that it carries no structure.
    factor : int

    Returns
    -------
    (Y // factor, X // factor) ndarray of float32
    """
    if plane.dtype.kind == "f" and not np.isfinite(plane).all():
        good = np.isfinite(plane)
        plane = np.where(good, plane, plane[good].mean() if good.any() else 0)
    reduced: Signal = plane.astype(np.float32) if factor == 1 else _mean_of_blocks(plane, factor)
    return reduced


def smooth_background(plane: Signal, sigma_px: float) -> Signal:
    """Gaussian background of a plane, computed on a reduced copy: the same result for a fraction of the time.

    Parameters
    ----------
    plane : (Y, X) ndarray of float32
    sigma_px : float
        Width of the Gaussian in pixels of `plane`.

    Returns
    -------
    (Y, X) ndarray of float32
    """
    rows, columns = plane.shape
    step = max(1, min(int(sigma_px / 1.5), rows // 4, columns // 4))
    small = cv2.resize(plane, (-(-columns // step), -(-rows // step)), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma_px / step, borderType=cv2.BORDER_REFLECT)
    background: Signal = cv2.resize(small, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return background


def texture(volume: Signal, factor: int = 1, *, denoise: bool = False) -> Signal:
    """What carries position: a volume less its background, plane by plane.

    Parameters
    ----------
    volume : (Z, Y, X) ndarray of float32
        In pixels reduced by `factor` in y and x.
    factor : int
    denoise : bool
        Smooth by `NOISE_SIGMA_PX` too.

    Returns
    -------
    (Z, Y, X) ndarray of float32
    """
    out = np.empty(volume.shape, np.float32)
    for z, plane in enumerate(volume):
        cv2.subtract(plane, smooth_background(plane, BACKGROUND_SIGMA_PX / factor), dst=out[z])
        if denoise:
            out[z] = cv2.GaussianBlur(out[z], (0, 0), NOISE_SIGMA_PX, borderType=cv2.BORDER_REFLECT)
    return out


def structure_share(signal: Signal) -> float:
    """Share of a filtered image's variance that is structure and not noise, from its neighbouring pixels.

    Shot noise of neighbours is independent, structure is not: their correlation is the structure's share (Thong et al.
    2001, doi 10.1002/sca.4950230506, for scanning microscopes). Two images of the same structure can agree with an NCC
    up to about the geometric mean of their shares.
    """
    energy = float(np.vdot(signal, signal))
    if not energy > 0 or min(signal.shape[1:]) < 3:
        return 0.0
    lag_y = float(np.vdot(signal[:, 1:], signal[:, :-1]))
    lag_x = float(np.vdot(signal[:, :, 1:], signal[:, :, :-1]))
    return max(0.0, min(1.0, 0.5 * (lag_y + lag_x) / energy))


@njit(cache=True, nogil=True)
def _median_of_stack(stack: Signal) -> Signal:
    """Median along the first axis; `stack` is sorted in place."""
    count, rows, columns = stack.shape
    for y in range(rows):
        # odd-even transposition over whole rows: branch-free, so it runs at vector speed
        for turn in range(count):
            for i in range(turn % 2, count - 1, 2):
                one, other = stack[i, y], stack[i + 1, y]
                for x in range(columns):
                    low, high = one[x], other[x]
                    one[x] = low if low < high else high
                    other[x] = high if low < high else low
    middle: Signal = np.float32(0.5) * (stack[(count - 1) // 2] + stack[count // 2])
    return middle


def fixed_pattern(planes: Iterable[Signal], count: int, factor: int) -> Signal:
    """Pattern that tiles of one camera share: dust, scratches, hot pixels.

    Dust stays where it is while the sample moves, so it correlates at zero shift and draws links there. The median of
    the high-passed tiles holds it and nothing of the sample.

    Parameters
    ----------
    planes : iterable of (Y, X) ndarray of float32
        Reduced planes of one shape; a bounded sample of the data set is enough (about two dozen).
    count : int
        How many there are.
    factor : int
        By how much they are reduced.

    Returns
    -------
    (Y, X) ndarray of float32
    """
    stack: Signal | None = None
    for number, plane in enumerate(planes):
        if stack is None:
            stack = np.empty((count, *plane.shape), np.float32)
        stack[number] = texture(plane[None], factor)[0]
    pattern: Signal = _median_of_stack(stack)
    return pattern


def enlarge(plane: Signal, factor: int, region: tuple[slice, slice]) -> Signal:
    """A full-resolution region of a reduced plane, interpolated linearly.

    Parameters
    ----------
    plane : (Y', X') ndarray of float32
    factor : int
        By how much `plane` is reduced.
    region : (2,) slice
        Rows and columns at full resolution.
    """
    rows, columns = region
    # pixel centres: full-resolution y lies at (y + 0.5) / factor - 0.5 of the reduced plane
    to_reduced = np.array(
        [
            [1 / factor, 0, (columns.start + 0.5) / factor - 0.5],
            [0, 1 / factor, (rows.start + 0.5) / factor - 0.5],
        ]
    )
    size = (columns.stop - columns.start, rows.stop - rows.start)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    large: Signal = cv2.warpAffine(plane, to_reduced, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return large
