"""Coarser levels of a block of voxels: exact averages for images, the most frequent value for labels.

Averages are made from sums that are carried from level to level and rounded once, half to even, so that the mean grey value
does not drift. Where a voxel of a coarse level reaches over the edge of the volume, only voxels that exist count.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

ZYX = tuple[int, int, int]


def average_levels(
    block: NDArray[Any], steps: tuple[ZYX, ...], covered: tuple[NDArray[np.int64], ...] | None = None
) -> list[NDArray[Any]]:
    """Averages of a block over several levels.

    Parameters
    ----------
    block : (Z, Y, X) ndarray of 8- or 16-bit integers or float32
        Voxels; its first voxel begins a voxel of every level.
    steps : tuple of (int, int, int)
        Factor (z, y, x) from each level to the next.
    covered : tuple of three (Z,), (Y,), (X,) ndarray, optional
        Source voxels that each voxel of the block stands for, along each axis, when the block is an average itself.
        Default: 1 each.

    Returns
    -------
    list of (Z, Y, X) ndarray
        One array per step, of the block's type. Integers are the exact mean of the source voxels, rounded half to even.
    """
    counts = covered or tuple(np.ones(size, np.int64) for size in block.shape)
    sums: NDArray[Any] = block
    if covered is not None:
        weights = counts[0][:, None, None] * counts[1][:, None] * counts[2]
        sums = block * weights.astype(np.float64 if block.dtype.kind == "f" else np.int64)
    levels = []
    for step in steps:
        counts = tuple(np.add.reduceat(count, np.arange(0, len(count), n)) for count, n in zip(counts, step))
        most = math.prod(int(count.max()) for count in counts)
        sums = _add_voxels(np.ascontiguousarray(sums), step, _sum_dtype(block.dtype, most))
        level = np.empty(sums.shape, block.dtype)
        if block.dtype.kind == "f":
            _divide_floats(sums, counts[0], counts[1], counts[2], level)
        else:
            _divide_integers(sums, counts[0], counts[1], counts[2], level)
        levels.append(level)
    return levels


def _sum_dtype(dtype: np.dtype[Any], voxels: int) -> type[np.generic]:
    """Smallest type that holds the sum of so many voxels."""
    if dtype.kind == "f":
        return np.float64
    largest = (2 ** (8 * dtype.itemsize - (dtype.kind == "i"))) * voxels
    if dtype.kind == "u":
        return np.uint16 if largest <= 2**16 else np.uint32 if largest <= 2**32 else np.uint64
    return np.int16 if largest <= 2**15 else np.int32 if largest <= 2**31 else np.int64


def _add_voxels(voxels: NDArray[Any], step: ZYX, dtype: type[np.generic]) -> NDArray[Any]:
    """Sums over boxes of `step` voxels; those at the far edges may hold fewer."""
    if step == (1, 1, 1):
        return voxels.astype(dtype)
    shape = [-(-size // n) for size, n in zip(voxels.shape, step)]
    sums = np.empty(shape, dtype)
    _add_rows(voxels, step[0], step[1], step[2], np.empty(voxels.shape[2], dtype), sums)
    return sums


@numba.njit(cache=True, nogil=True)
def _add_rows(
    voxels: NDArray[Any], step_z: int, step_y: int, step_x: int, row: NDArray[Any], sums: NDArray[Any]
) -> None:
    # Whole rows are added first (contiguous, so the compiler uses vector instructions), then neighbours along x.
    size_z, size_y, size_x = voxels.shape
    for z in range(sums.shape[0]):
        for y in range(sums.shape[1]):
            row[:] = 0
            for source_z in range(z * step_z, min((z + 1) * step_z, size_z)):
                for source_y in range(y * step_y, min((y + 1) * step_y, size_y)):
                    source = voxels[source_z, source_y]
                    for x in range(size_x):
                        row[x] += source[x]
            if step_x == 1:
                sums[z, y] = row
            elif step_x == 2:
                for x in range(size_x // 2):
                    sums[z, y, x] = row[2 * x] + row[2 * x + 1]
                if size_x % 2:
                    sums[z, y, size_x // 2] = row[size_x - 1]
            else:
                for x in range(sums.shape[2]):
                    total = row[x * step_x]
                    for source_x in range(x * step_x + 1, min((x + 1) * step_x, size_x)):
                        total += row[source_x]
                    sums[z, y, x] = total


@numba.njit(cache=True, nogil=True)
def _divide_integers(
    sums: NDArray[Any],
    count_z: NDArray[np.int64],
    count_y: NDArray[np.int64],
    count_x: NDArray[np.int64],
    level: NDArray[Any],
) -> None:
    """Divide and round half to even."""
    size_x = sums.shape[2]
    # The voxels that cover as many source voxels as the first one; only those at the edge may cover fewer.
    even = 0
    while even < size_x and count_x[even] == count_x[0]:
        even += 1
    for z in range(sums.shape[0]):
        for y in range(sums.shape[1]):
            source, target = sums[z, y], level[z, y]
            count = count_z[z] * count_y[y] * count_x[0]
            shift = 0
            while (1 << shift) < count:
                shift += 1
            start = 0
            if count == 1:
                for x in range(even):
                    target[x] = source[x]
                start = even
            elif 1 << shift == count and source.itemsize <= 4:
                _shift_row(source, shift, even, target)
                start = even
            for x in range(start, size_x):
                n = count_z[z] * count_y[y] * count_x[x]
                total = np.int64(source[x])
                quotient = total // n
                rest = 2 * (total - quotient * n)
                if rest > n or (rest == n and quotient & 1):
                    quotient += 1
                target[x] = quotient


@numba.njit(cache=True, nogil=True)
def _shift_row(source: NDArray[Any], shift: int, length: int, target: NDArray[Any]) -> None:
    one = source.dtype.type(1)
    bits = source.dtype.type(shift)
    half = source.dtype.type((1 << (shift - 1)) - 1)
    for x in range(length):
        value = source[x]
        # half + odd never carries beyond the type: the sum of n voxels leaves room for n more.
        target[x] = (value + half + ((value >> bits) & one)) >> bits


@numba.njit(cache=True, nogil=True)
def _divide_floats(
    sums: NDArray[Any],
    count_z: NDArray[np.int64],
    count_y: NDArray[np.int64],
    count_x: NDArray[np.int64],
    level: NDArray[Any],
) -> None:
    for z in range(sums.shape[0]):
        for y in range(sums.shape[1]):
            for x in range(sums.shape[2]):
                level[z, y, x] = sums[z, y, x] / (count_z[z] * count_y[y] * count_x[x])


def weighted_sum(
    level: NDArray[Any],
    count_z: NDArray[np.int64],
    count_y: NDArray[np.int64],
    count_x: NDArray[np.int64],
) -> float:
    """Sum of the voxels of a level, each as often as it covers source voxels: levels without drift have equal sums.

    Parameters
    ----------
    level : (Z, Y, X) ndarray
        Voxels.
    count_z, count_y, count_x : (Z,), (Y,), (X,) ndarray
        Source voxels that each voxel stands for, along each axis.
    """
    zero = np.float64(0) if level.dtype.kind == "f" else np.int64(0)
    return float(_sum_rows(level, count_z, count_y, count_x, zero))


@numba.njit(cache=True, nogil=True)
def _sum_rows(
    level: NDArray[Any],
    count_z: NDArray[np.int64],
    count_y: NDArray[np.int64],
    count_x: NDArray[np.int64],
    zero: Any,
) -> float:
    size_x = level.shape[2]
    even = 0
    while even < size_x and count_x[even] == count_x[0]:
        even += 1
    total = 0.0
    for z in range(level.shape[0]):
        for y in range(level.shape[1]):
            row = level[z, y]
            in_row = zero
            for x in range(even):
                in_row += row[x]
            in_row *= count_x[0]
            for x in range(even, size_x):
                in_row += row[x] * count_x[x]
            total += float(in_row) * count_z[z] * count_y[y]
    return total


def mode_levels(block: NDArray[Any], steps: tuple[ZYX, ...]) -> list[NDArray[Any]]:
    """Most frequent labels of a block over several levels, each made from the level before.

    Parameters
    ----------
    block : (Z, Y, X) ndarray of unsigned integers
        Labels; its first voxel begins a voxel of every level.
    steps : tuple of (int, int, int)
        Factor (z, y, x) from each level to the next.

    Returns
    -------
    list of (Z, Y, X) ndarray
        One array per step. Of equally frequent labels the first in (z, y, x) order wins, so the result never depends on
        how the volume was cut into tasks.
    """
    levels = []
    for step in steps:
        shape = [-(-size // n) for size, n in zip(block.shape, step)]
        level = np.empty(shape, block.dtype)
        _take_modes(np.ascontiguousarray(block), step[0], step[1], step[2], level)
        levels.append(level)
        block = level
    return levels


@numba.njit(cache=True, nogil=True)
def _take_modes(labels: NDArray[Any], step_z: int, step_y: int, step_x: int, level: NDArray[Any]) -> None:
    size_z, size_y, size_x = labels.shape
    values = np.empty(step_z * step_y * step_x, labels.dtype)
    for z in range(level.shape[0]):
        for y in range(level.shape[1]):
            for x in range(level.shape[2]):
                first = labels[z * step_z, y * step_y, x * step_x]
                uniform = True
                n = 0
                for source_z in range(z * step_z, min((z + 1) * step_z, size_z)):
                    for source_y in range(y * step_y, min((y + 1) * step_y, size_y)):
                        for source_x in range(x * step_x, min((x + 1) * step_x, size_x)):
                            values[n] = labels[source_z, source_y, source_x]
                            uniform = uniform and values[n] == first
                            n += 1
                level[z, y, x] = first if uniform else _mode(values, n)


@numba.njit(cache=True, nogil=True)
def _mode(values: NDArray[Any], n: int) -> Any:
    """The most frequent of the first n values; of equals the first."""
    best, most = values[0], 0
    for i in range(n):
        if n - i <= most:
            break  # what is left cannot be more frequent
        count = 0
        for j in range(i, n):
            count += values[j] == values[i]
        if count > most:
            best, most = values[i], count
    return best
