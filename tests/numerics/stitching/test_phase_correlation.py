from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from kbrain_core.numerics.stitching.phase_correlation import (
    correlation_peaks,
    ncc_neighbourhood,
    overlap_ncc,
    overlap_slices,
    phase_correlation,
    quadratic_peak,
)


def texture(shape: tuple[int, ...], seed: int, sigma: float = 1.5) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(shape)
    smooth = ndimage.gaussian_filter(noise, [0 if size == 1 else sigma for size in shape])
    return (smooth / smooth.std()).astype(np.float32)


sizes = st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(1, 30))
offsets = st.tuples(st.integers(-5, 5), st.integers(-40, 40), st.integers(-40, 40))


@settings(deadline=None)
@given(sizes, sizes, offsets)
def test_overlap_slices_cover_the_same_voxels_of_both(first, second, offset):
    in_first, in_second = overlap_slices(first, second, offset, (0, 0, 0))
    for a, b, shift, size_a, size_b in zip(in_first, in_second, offset, first, second, strict=True):
        assert 0 <= a.start <= a.stop <= size_a
        assert 0 <= b.start <= b.stop <= size_b
        assert a.stop - a.start == b.stop - b.start == max(0, min(size_a, shift + size_b) - max(0, shift))
        if a.stop > a.start:
            assert a.start - b.start == shift


@settings(max_examples=30, deadline=None)
@given(offsets, st.integers(0, 5))
def test_overlap_ncc_is_numpy_s_correlation(offset, seed):
    first, second = texture((3, 30, 34), seed), texture((4, 28, 40), seed + 100)
    in_first, in_second = overlap_slices(first.shape, second.shape, offset, (0, 0, 0))
    a, b = first[in_first].ravel(), second[in_second].ravel()
    ncc, area = overlap_ncc(first, second, offset)
    assert area == a.size
    if a.size > 2:
        # float32 sums inside a row of at most 40 values
        assert ncc == pytest.approx(np.corrcoef(a, b)[0, 1], abs=2e-5)


def test_overlap_ncc_without_contrast_or_overlap_is_zero():
    flat, noise = np.ones((1, 9, 9), np.float32), texture((1, 9, 9), 0)
    assert overlap_ncc(flat, noise, (0, 0, 0)) == (0.0, 81)
    assert overlap_ncc(noise, noise, (0, 20, 0)) == (0.0, 0)


@pytest.mark.parametrize(("depth", "true"), [(1, (0, 7, 101)), (1, (0, -9, 98)), (8, (2, -3, 97))])
def test_peaks_find_a_planted_offset(depth, true):
    scene = texture((depth + 4, 160, 260), 3)
    start = (2, 20, 5)
    first = scene[start[0] : start[0] + depth, 20:148, 5:133]
    z, y, x = (s + t for s, t in zip(start, true, strict=True))
    if depth == 1:
        z = start[0]
    second = scene[z : z + depth, y : y + 128, x : x + 128]
    peaks = correlation_peaks(
        np.ascontiguousarray(first), np.ascontiguousarray(second), (0, 0, 100), (3 * (depth > 1), 12, 12)
    )
    assert peaks[0].offset == true
    assert peaks[0].ncc > 0.999
    assert peaks[0].ncc > 2 * peaks[1].ncc


def test_peaks_stay_inside_the_stage_window():
    scene = texture((1, 100, 200), 1)
    first, second = scene[:, :, :100].copy(), scene[:, :, 80:180].copy()
    peaks = correlation_peaks(first, second, (0, 0, 60), (0, 5, 5))  # the true 80 is outside
    assert all(abs(peak.offset[2] - 60) <= 5 and abs(peak.offset[1]) <= 5 for peak in peaks)
    assert all(peak.ncc < 0.5 for peak in peaks)


def test_images_that_cannot_meet_have_no_peaks():
    image = texture((1, 20, 20), 0)
    assert correlation_peaks(image, image, (0, 0, 100), (0, 5, 5)) == []


def test_whitening_sharpens_the_peak():
    image = texture((1, 64, 64), 2, sigma=4)
    plain, soft = (phase_correlation(image, image, whitening=value)[0] for value in (0.0, 0.7))
    assert soft[0, 3] / soft[0, 0] < plain[0, 3] / plain[0, 0]


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.3, -0.4), (-0.45, 0.2)])
def test_quadratic_peak_is_close_to_a_planted_subpixel_shift(shift):
    image = texture((1, 140, 140), 5, sigma=2)
    moved = ndimage.shift(image[0], shift, order=5)[None].astype(np.float32)
    inner = (slice(None), slice(6, -6), slice(6, -6))
    values = ncc_neighbourhood(
        np.ascontiguousarray(moved[inner]), np.ascontiguousarray(image[inner]), (0, 1, 1)
    )
    place, height = quadratic_peak(values)
    # a Gaussian peak of width 2 sqrt(2) px is a parabola to a few hundredths of a pixel
    assert place[1:] == pytest.approx(shift, abs=0.03)
    assert place[0] == 0
    assert height == values[0, 1, 1]


def test_a_ridge_has_no_peak():
    values = np.ones((1, 3, 3))
    assert quadratic_peak(values)[0] == (0, 0, 0)
