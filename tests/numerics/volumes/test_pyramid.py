"""Coarser levels against plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kbrain_core.numerics.volumes.pyramid import average_levels, mode_levels, weighted_sum

shapes = st.tuples(st.integers(1, 13), st.integers(1, 21), st.integers(1, 37))
steps = st.lists(st.tuples(*[st.integers(1, 3)] * 3), min_size=1, max_size=4).map(tuple)


def exact_means(
    block: NDArray[Any], factor: tuple[int, ...]
) -> tuple[NDArray[np.float64], list[NDArray[np.int64]]]:
    """Means over boxes of source voxels in float64, and how many voxels each box has per axis."""
    sums = block.astype(np.float64)
    counts = []
    for axis, n in enumerate(factor):
        starts = np.arange(0, block.shape[axis], n)
        sums = np.add.reduceat(sums, starts, axis=axis)
        counts.append(np.add.reduceat(np.ones(block.shape[axis], np.int64), starts))
    return sums / (counts[0][:, None, None] * counts[1][:, None] * counts[2]), counts


# float64 holds every sum of 8- and 16-bit integers, so the reference is exact, and rint rounds half to even.
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int8", "int16"])
@settings(max_examples=25, deadline=None)
@given(shape=shapes, steps=steps, seed=st.integers(0, 2**32 - 1))
def test_averages_are_the_rounded_exact_mean(
    dtype: str, shape: tuple[int, int, int], steps: tuple[tuple[int, int, int], ...], seed: int
) -> None:
    info = np.iinfo(dtype)
    block = np.random.default_rng(seed).integers(info.min, info.max, shape, dtype, endpoint=True)
    factor = np.ones(3, int)
    for step, level in zip(steps, average_levels(block, steps), strict=True):
        factor = factor * step
        means, counts = exact_means(block, tuple(factor))
        np.testing.assert_array_equal(level, np.rint(means).astype(dtype))
        # Weighted by what they cover, rounded voxels sum to what they would exactly.
        weights = counts[0][:, None, None] * counts[1][:, None] * counts[2]
        assert weighted_sum(level, *counts) == float((level * weights).sum())


@pytest.mark.parametrize("value", ["min", "max"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int8", "int16"])
def test_extreme_values_do_not_overflow(dtype: str, value: str) -> None:
    extreme = getattr(np.iinfo(dtype), value)
    block = np.full((32, 64, 64), extreme, dtype)
    for level in average_levels(block, ((2, 2, 2),) * 5):
        assert (level == extreme).all()


def test_float_averages_are_those_of_numpy() -> None:
    block = np.random.default_rng(1).normal(1e3, 10, (9, 17, 31)).astype(np.float32)
    for factor, level in zip(
        ((2, 2, 2), (4, 4, 4)), average_levels(block, ((2, 2, 2), (2, 2, 2))), strict=True
    ):
        # Sums are made in float64, so only the last rounding to float32 (1 part in 10^7) can differ.
        np.testing.assert_allclose(level, exact_means(block, factor)[0], rtol=2e-7)


def test_block_of_averages_is_weighted_by_what_it_covers() -> None:
    """A second pass begins from a level whose edge voxels stand for fewer source voxels."""
    source = np.random.default_rng(2).integers(0, 255, (1, 1, 7), np.uint8)
    first = average_levels(source, ((1, 1, 2),))[0]
    covered = (np.array([1]), np.array([1]), np.array([2, 2, 2, 1]))
    second = average_levels(first, ((1, 1, 2),), covered)[0]
    expected = [
        (2 * int(first[0, 0, 0]) + 2 * int(first[0, 0, 1])) / 4,
        (2 * int(first[0, 0, 2]) + int(first[0, 0, 3])) / 3,
    ]
    np.testing.assert_array_equal(second[0, 0], np.rint(expected))


def test_levels_do_not_drift() -> None:
    """Truncation would lose 0.4 grey levels per level."""
    ramp = np.add.outer(
        np.add.outer(np.linspace(0, 60, 64), np.linspace(0, 60, 128)), np.linspace(0, 60, 128)
    )
    block = np.random.default_rng(3).poisson(20 + ramp).astype(np.uint8)
    for level in average_levels(block, ((2, 2, 2),) * 4):
        # The last level has 256 voxels, each rounded by 0.29 rms: 0.1 is five standard errors of their mean.
        assert abs(level.mean() - block.mean()) < 0.1


def plain_mode(block: NDArray[Any], step: tuple[int, int, int]) -> NDArray[Any]:
    """Most frequent value; of equals the one that comes first in (z, y, x) order."""
    shape = [-(-size // n) for size, n in zip(block.shape, step)]
    out = np.empty(shape, block.dtype)
    for index in np.ndindex(*shape):
        values = block[tuple(slice(i * n, (i + 1) * n) for i, n in zip(index, step))].ravel().tolist()
        out[index] = max(values, key=lambda value: (values.count(value), -values.index(value)))
    return out


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 11)),
    steps=steps,
    dtype=st.sampled_from(["uint32", "uint64"]),
    labels=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_labels_take_the_most_frequent(
    shape: tuple[int, int, int], steps: tuple[tuple[int, int, int], ...], dtype: str, labels: int, seed: int
) -> None:
    # IDs above 2^53 would not survive floating point.
    ids = np.array(
        [0, 7, 2**31, 2**32 - 1, 5] if dtype == "uint32" else [0, 2**62 + 1, 2**62, 2**53 + 1, 5], dtype
    )
    block = ids[np.random.default_rng(seed).integers(0, labels, shape)]
    expected = block
    for step, level in zip(steps, mode_levels(block, steps), strict=True):
        expected = plain_mode(expected, step)
        np.testing.assert_array_equal(level, expected)
