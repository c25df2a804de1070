"""Translation between two images that overlap: Fourier phase correlation, and correlation on the real overlap.

Everything here takes arrays in (z, y, x) order; a 2D image is a volume of depth one. An *offset* is where the
origin of the second image lies in the frame of the first, in pixels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import fft, ndimage

Float3 = tuple[float, float, float]
Int3 = tuple[int, int, int]
Signal = NDArray[np.float32]


@dataclass(frozen=True)
class Peak:
    """A candidate offset and how well the real overlap agrees there.

    Attributes
    ----------
    offset : (3,) int
        Origin of the second image in the first one's frame, px (z, y, x).
    ncc : float
        Mean-subtracted normalised cross-correlation on the overlap at this offset, -1..1.
    area : int
        Voxels that overlap at this offset.
    """

    offset: Int3
    ncc: float
    area: int


def overlap_slices(
    first: Int3, second: Int3, offset: Int3, margin: Int3
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Parts of two images that can overlap when the true offset is `offset` within +-`margin`.

    Parameters
    ----------
    first, second : (3,) int
        Shapes (z, y, x).
    offset : (3,) int
        Expected origin of the second image in the first one's frame, px.
    margin : (3,) int
        Largest deviation of the offset from the expected one, px.

    Returns
    -------
    (3,) slices of the first image, (3,) slices of the second; empty slices where they cannot meet.
    """
    in_first, in_second = [], []
    for size_a, size_b, shift, slack in zip(first, second, offset, margin, strict=True):
        start, stop = min(max(0, shift - slack), size_a), min(size_a, shift + size_b + slack)
        in_first.append(slice(start, max(start, stop)))
        start, stop = min(max(0, -shift - slack), size_b), min(size_b, size_a - shift + slack)
        in_second.append(slice(start, max(start, stop)))
    return tuple(in_first), tuple(in_second)


@njit(cache=True, fastmath=True, nogil=True)
def _overlap_sums(
    a: Signal, b: Signal, dz: int, dy: int, dx: int
) -> tuple[int, float, float, float, float, float]:
    """Sums over the overlap of `a` and of `b` placed at (dz, dy, dx): n, a, b, aa, bb, ab."""
    z0, z1 = max(0, dz), min(a.shape[0], dz + b.shape[0])
    y0, y1 = max(0, dy), min(a.shape[1], dy + b.shape[1])
    x0, x1 = max(0, dx), min(a.shape[2], dx + b.shape[2])
    sum_a = sum_b = sum_aa = sum_bb = sum_ab = 0.0
    if z1 <= z0 or y1 <= y0 or x1 <= x0:
        return 0, sum_a, sum_b, sum_aa, sum_bb, sum_ab
    for z in range(z0, z1):
        for y in range(y0, y1):
            row_a = a[z, y, x0:x1]
            row_b = b[z - dz, y - dy, x0 - dx : x1 - dx]
            # float32 inside a row lets the compiler vectorise; float64 across rows keeps the precision
            ra = rb = raa = rbb = rab = np.float32(0)
            for x in range(x1 - x0):
                va, vb = row_a[x], row_b[x]
                ra += va
                rb += vb
                raa += va * va
                rbb += vb * vb
                rab += va * vb
            sum_a += float(ra)
            sum_b += float(rb)
            sum_aa += float(raa)
            sum_bb += float(rbb)
            sum_ab += float(rab)
    return (z1 - z0) * (y1 - y0) * (x1 - x0), sum_a, sum_b, sum_aa, sum_bb, sum_ab


def overlap_ncc(first: Signal, second: Signal, offset: Int3) -> tuple[float, int]:
    """Mean-subtracted normalised cross-correlation of two images on their overlap.

    Parameters
    ----------
    first, second : (Z, Y, X) ndarray of float32
    offset : (3,) int
        Origin of `second` in the frame of `first`, px.

    Returns
    -------
    ncc : float
        -1..1; 0 when there is no overlap or one side has no contrast.
    area : int
        Voxels in the overlap.
    """
    n, a, b, aa, bb, ab = _overlap_sums(first, second, *offset)
    if n == 0:
        return 0.0, 0
    power = (aa - a * a / n) * (bb - b * b / n)
    if not power > 0:
        return 0.0, n
    return float((ab - a * b / n) / np.sqrt(power)), n


def phase_correlation(
    first: Signal, second: Signal, *, margin: Int3 = (0, 0, 0), whitening: float = 0.7
) -> Signal:
    """Softly whitened cross-correlation of two images of any shapes.

    Parameters
    ----------
    first, second : (Z, Y, X) ndarray of float32
        Zero-mean images; each is padded with zeros to a common size that is fast to transform.
    margin : (3,) int
        Largest shift of interest: an axis that is short against it is padded by it, so that what leaves at one end does
        not come back at the other.
    whitening : float
        Exponent of the spectrum's normalisation: 0 is plain cross-correlation, 1 is pure phase correlation
        (Kuglin & Hines 1975). Pure phase gives weak noisy frequencies the same vote as the structure; 0.7 keeps
        the sharp peak and survives shot noise.

    Returns
    -------
    (Z', Y', X') ndarray of float32
        Value at (dz, dy, dx), modulo the shape, is the agreement when `second` is moved by that much.
    """
    sizes = [max(a, b) for a, b in zip(first.shape, second.shape, strict=True)]
    sizes = [size + slack if 8 * slack > size else size for size, slack in zip(sizes, margin, strict=True)]
    shape = [size if size == 1 else fft.next_fast_len(size, real=True) for size in sizes]
    cross = fft.rfftn(first, shape)
    cross *= np.conj(fft.rfftn(second, shape))
    power = np.abs(cross)
    # the floor keeps frequencies that hold nothing (padding, band-pass) from being blown up to full weight
    power += np.float32(1e-3) * power.mean() + np.float32(1e-30)
    cross /= power ** np.float32(whitening)
    surface: Signal = fft.irfftn(cross, shape)
    return surface


def _window(surface: Signal, centre: Int3, margin: Int3) -> tuple[Signal, Int3]:
    """The part of a periodic correlation surface within +-`margin` of `centre`, and the shift of its corner."""
    axes, corner = [], []
    for size, middle, slack in zip(surface.shape, centre, margin, strict=True):
        slack = min(slack, (size - 1) // 2)
        axes.append(np.arange(middle - slack, middle + slack + 1) % size)
        corner.append(middle - slack)
    return surface[np.ix_(*axes)], (corner[0], corner[1], corner[2])


def correlation_peaks(
    first: Signal,
    second: Signal,
    offset: Int3,
    margin: Int3,
    *,
    count: int = 6,
    apart: int = 3,
    min_area: int = 1,
) -> list[Peak]:
    """Best offsets inside the stage window, verified on the real overlap.

    Parameters
    ----------
    first, second : (Z, Y, X) ndarray of float32
        Whole filtered images; only the parts that can overlap are transformed.
    offset, margin : (3,) int
        Expected offset and its largest error, px.
    count : int
        Correlation peaks that are looked at. The right one is not always the highest when little structure
        overlaps; it is among the first six.
    apart : int
        Smallest distance between two peaks in y and x, px.
    min_area : int
        Offsets whose overlap has fewer voxels are not believed: a few pixels agree by chance.

    Returns
    -------
    list of Peak
        Best NCC first; empty when the images cannot overlap.
    """
    in_first, in_second = overlap_slices(_shape3(first), _shape3(second), offset, margin)
    strip_a, strip_b = first[in_first], second[in_second]
    if strip_a.size == 0 or strip_b.size == 0:
        return []
    # the strips' own corners: offset = corner_a + shift - corner_b
    corner = tuple(a.start - b.start for a, b in zip(in_first, in_second, strict=True))
    centre = tuple(o - c for o, c in zip(offset, corner, strict=True))
    surface = phase_correlation(strip_a, strip_b, margin=margin)
    view, low = _window(surface, (centre[0], centre[1], centre[2]), margin)
    # planes of a stack are few, and neighbouring ones may both be candidates
    size = (3, 2 * apart + 1, 2 * apart + 1)
    is_peak = (view == ndimage.maximum_filter(view, size=size, mode="constant", cval=-np.inf)) & (view > 0)
    places = np.argwhere(is_peak)
    order = np.argsort(view[is_peak])[::-1][:count]
    peaks: dict[Int3, Peak] = {}
    for place in places[order]:
        at = tuple(int(p) + lo + c for p, lo, c in zip(place, low, corner, strict=True))
        peak = _best_plane(first, second, (at[0], at[1], at[2]), offset[0], margin[0])
        if peak.area >= min_area:
            peaks[peak.offset] = peak
    return sorted(peaks.values(), key=lambda peak: -peak.ncc)


def _best_plane(first: Signal, second: Signal, at: Int3, expected: int, slack: int) -> Peak:
    """The peak at an offset, moved along z to the plane that agrees best.

    Few planes, alike in neighbours, make the correlation surface broad along z, with its top where most planes overlap.
    """
    best = Peak(at, *overlap_ncc(first, second, at))
    for step in (1, -1):
        while abs(best.offset[0] + step - expected) <= slack:
            moved = (best.offset[0] + step, at[1], at[2])
            ncc, area = overlap_ncc(first, second, moved)
            if ncc <= best.ncc:
                break
            best = Peak(moved, ncc, area)
    return best


def ncc_neighbourhood(first: Signal, second: Signal, reach: Int3) -> NDArray[np.float64]:
    """NCC of two images of one shape, moved against each other by at most one pixel per axis.

    Parameters
    ----------
    first, second : (Z, Y, X) ndarray of float32
    reach : (3,) int
        1 for an axis that is searched, 0 for one that is kept.

    Returns
    -------
    (1|3, 1|3, 1|3) ndarray of float64
        The value in the middle is that of no shift. The inner part of `first` is the template at every shift, so that
        structure at the rim does not enter at one shift and leave at another, which would draw the maximum outwards.
    """
    inner = tuple(slice(r, size - r) for r, size in zip(reach, first.shape, strict=True))
    template = np.ascontiguousarray(first[inner])
    values = np.empty([2 * r + 1 for r in reach])
    for index in np.ndindex(*values.shape):
        values[index] = overlap_ncc(template, second, (-index[0], -index[1], -index[2]))[0]
    # index 2 reads `second` one pixel further on: the second image lies one pixel *before* where it was thought
    flipped: NDArray[np.float64] = values[::-1, ::-1, ::-1]
    return flipped


def quadratic_peak(values: NDArray[np.float64]) -> tuple[Float3, float]:
    """Maximum of a quadratic fitted by least squares to a neighbourhood of 3 per axis.

    Parameters
    ----------
    values : (1|3, 1|3, 1|3) ndarray
        The highest value in the middle.

    Returns
    -------
    place : (3,) float
        Maximum relative to the middle, px, within +-1; 0 along axes of length one.
    height : float
        Value in the middle. (The fitted maximum can exceed 1.)

    Notes
    -----
    All 9 (27) values enter, with mixed terms: half the error of separate parabolas where structure runs diagonally.
    """
    axes = [axis for axis, size in enumerate(values.shape) if size == 3]
    height = float(values[tuple(size // 2 for size in values.shape)])
    place = np.zeros(3)
    if axes:
        mixed, solve = _quadratic_fit(values.shape)
        count = len(axes)
        fit = solve @ values.ravel()
        hessian = np.zeros((count, count))
        for (i, j), value in zip(mixed, fit[1 + count :], strict=True):
            hessian[i, j] += value
            hessian[j, i] += value
        if np.linalg.eigvalsh(hessian).max() < -1e-9:  # a ridge has no maximum: stay in the middle
            place[axes] = np.clip(-np.linalg.solve(hessian, fit[1 : 1 + count]), -1, 1)
    return (float(place[0]), float(place[1]), float(place[2])), height


@functools.cache
def _quadratic_fit(shape: tuple[int, ...]) -> tuple[list[tuple[int, int]], NDArray[np.float64]]:
    """Pairs of axes of the second-order terms, and the matrix that fits a quadratic to a neighbourhood of `shape`."""
    axes = [axis for axis, size in enumerate(shape) if size == 3]
    grid = np.indices(shape).reshape(len(shape), -1)[axes] - 1.0
    mixed = [(i, j) for i in range(len(axes)) for j in range(i, len(axes))]
    design = np.stack([np.ones(grid.shape[1]), *grid, *(grid[i] * grid[j] for i, j in mixed)], axis=1)
    return mixed, np.linalg.pinv(design)


def _shape3(array: Signal) -> Int3:
    return array.shape[0], array.shape[1], array.shape[2]
