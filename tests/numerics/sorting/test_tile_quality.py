"""Quality of a tile: planted noise, blur, saturation and emptiness are found, and nothing else changes the figures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from kbrain_core.numerics.sorting.tile_quality import (
    count_saturated,
    estimate_noise,
    low_outliers,
    measure_plane,
    saturation_level,
)

SIZE = 384


def scene(seed: int = 0, sharpness_px: float = 1.0) -> np.ndarray:
    """Structure at all scales as sharp as the given blur, mean 100, standard deviation 20."""
    rng = np.random.default_rng(seed)
    layers = [gaussian_filter(rng.standard_normal((SIZE, SIZE)), s * sharpness_px) * s for s in (1, 2, 4, 8)]
    image = np.sum(layers, axis=0)
    return 100 + 20 * (image - image.mean()) / image.std()


def vignette() -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    return 1 - 0.35 * (x**2 + y**2) / 2


@pytest.mark.parametrize("sigma", [0.5, 3.0, 20.0])
def test_noise_is_found_under_structure_and_shading(sigma: float) -> None:
    rng = np.random.default_rng(1)
    image = gaussian_filter(scene(), 2) * vignette() + rng.normal(0, sigma, (SIZE, SIZE))
    # 5 %: 1 % from 36 block medians, the rest is structure that the mask lets through
    assert estimate_noise(image.astype(np.float32)) == pytest.approx(sigma, rel=0.05)


def test_noise_of_photons_is_the_mean_variance() -> None:
    light = 400 * vignette() ** 2
    image = np.random.default_rng(2).poisson(light).astype(np.float32)
    assert estimate_noise(image) == pytest.approx(np.sqrt(light.mean()), rel=0.03)


def test_signal_to_noise() -> None:
    image = gaussian_filter(scene(), 1)
    noisy = image + np.random.default_rng(3).normal(0, 5, image.shape)
    # the share of the signal beyond 64 px does not count: about 3 % of the standard deviation here
    assert measure_plane(noisy).signal_to_noise == pytest.approx(image.std() / 5, rel=0.08)


@pytest.mark.parametrize("noise", [0.0, 4.0, 10.0])
def test_focus_falls_with_blur_and_not_with_noise(noise: float) -> None:
    rng = np.random.default_rng(4)
    scores = []
    for blur in (0.0, 1.0, 2.0, 4.0):
        image = gaussian_filter(scene(), blur) + rng.normal(0, noise, (SIZE, SIZE))
        scores.append(measure_plane(image).focus_score)
    assert all(a is not None and b is not None and b < 0.85 * a for a, b in itertools.pairwise(scores))
    # against the same scene without noise: the noise is subtracted, what is left is its estimate's error
    assert scores[1] == pytest.approx(measure_plane(gaussian_filter(scene(), 1.0)).focus_score, rel=0.1)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 50), st.floats(-1000, 1000), st.integers(0, 3), st.booleans())
def test_focus_does_not_change_with_gain_offset_and_orientation(
    gain: float, offset: float, turns: int, flip: bool
) -> None:
    image = scene() + np.random.default_rng(5).normal(0, 3, (SIZE, SIZE))
    changed = np.rot90(image * gain + offset, turns)
    before, after = measure_plane(image), measure_plane(changed[:, ::-1] if flip else changed)
    # float32 keeps 7 digits of an offset that is up to 1000 times the contrast
    assert after.focus_score == pytest.approx(before.focus_score, rel=0.01)
    assert after.signal_to_noise == pytest.approx(before.signal_to_noise, rel=0.01)


def test_a_half_empty_tile_is_as_sharp_as_a_full_one() -> None:
    full = scene() + 0.0
    half = full.copy()
    half[:, : SIZE // 2] = full.mean()
    # the one edge between both halves is all that differs
    assert measure_plane(half).focus_score == pytest.approx(measure_plane(full).focus_score, rel=0.1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("level", [0.0, 120.0])
def test_noise_and_shading_alone_are_blank(dtype: type, level: float) -> None:
    image = level * vignette() + np.abs(np.random.default_rng(6).normal(0, 2, (SIZE, SIZE)))
    quality = measure_plane(np.rint(image).astype(dtype) if dtype != np.float32 else image.astype(dtype))
    assert quality.is_blank
    assert quality.focus_score is None


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_constant_tile_is_blank(value: int) -> None:
    quality = measure_plane(np.full((64, 80), value, np.uint8))
    assert (quality.is_blank, quality.focus_score, quality.signal_to_noise) == (True, None, 0.0)


def test_one_dim_cell_is_not_blank() -> None:
    y, x = np.mgrid[:1024, :1024]
    cell = 30 * np.exp(
        -((y - 700.0) ** 2 + (x - 200.0) ** 2) / (2 * 8**2)
    )  # 3 standard deviations of the noise high
    image = np.random.default_rng(7).normal(100, 10, (1024, 1024)) + cell
    assert not measure_plane(image.astype(np.float32)).is_blank
    assert not measure_plane(scene()).is_blank


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (8, 8), (33, 9)])
def test_tiny_tiles(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(8)
    assert measure_plane(rng.integers(0, 99, shape).astype(np.uint16)).focus_score is None
    assert measure_plane(np.zeros(shape, np.uint16)).is_blank


def test_nan_and_infinity_do_no_harm() -> None:
    image = scene().astype(np.float32)
    image[:2, :2] = [[np.nan, np.inf], [-np.inf, 1]]
    assert np.isfinite(measure_plane(image).signal_to_noise)


@pytest.mark.parametrize(
    ("dtype", "bits", "maximum", "level"),
    [
        (np.uint8, 8, 200, 255),
        (np.uint16, 16, 60000, 65535),
        (np.uint16, 12, 1000, 4095),
        (np.uint16, 16, 4095, 4095),
        (np.uint16, 16, 65520, 65520),
        (np.uint16, None, 4096, 65535),
        (np.int16, 16, 5, 32767),
        (np.float32, None, 1, None),
    ],
)
def test_saturation_level(dtype: type, bits: int | None, maximum: float, level: float | None) -> None:
    assert saturation_level(np.dtype(dtype), bits, maximum) == level


def test_saturated_pixels_are_counted() -> None:
    image = np.zeros((10, 10), np.uint16)
    image[:3, 0] = 4095
    assert count_saturated(image, 4095.0) == 3
    assert count_saturated(image, None) == 0


def test_outliers() -> None:
    scores = [0.50, 0.52, 0.48, 0.51, 0.49, 0.53, None, 0.0]
    limit = low_outliers(scores, 3.5)
    # never nearer than a quarter under the median (0.505), and the equal tiles spread by a few percent only
    assert limit == pytest.approx(0.75 * 0.505, rel=1e-3)  # middle of the logarithms
    assert low_outliers([1, 2, 4, 8, 16, 32], 1.0) == pytest.approx(
        np.exp(np.log(np.sqrt(32)) - 1.4826 * np.log(2) * 1.5)
    )
    assert low_outliers([0.5] * 4, 3.5) is None
