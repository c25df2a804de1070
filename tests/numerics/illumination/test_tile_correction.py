"""Steps of correcting a plane: rounding and clipping, background, noise, depth, contrast, presets."""

from __future__ import annotations

import numpy as np
import pytest

from kbrain_core.numerics.illumination.background import denoise, subtract_background
from kbrain_core.numerics.illumination.plane_levels import (
    MAX_DEPTH_GAIN,
    DepthLoss,
    Levels,
    fit_depth_loss,
    levels_of,
    matching_line,
)
from kbrain_core.numerics.illumination.tile_correction import (
    PRESETS,
    Fields,
    Recipe,
    Steps,
    correct_plane,
    to_dtype,
    white_of,
)


def recipe(**steps: object) -> Recipe:
    return Recipe(
        steps=Steps(**steps),  # type: ignore[arg-type]
        stripe_direction="auto",
        stripe_level=None,
        stripe_sigma=2.0,
        background_radius_um=20.0,
        clahe_limit=0.01,
    )


def test_flat_field_and_dark_are_undone() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(10, 200, (40, 50)).astype(np.float32)
    flat = np.linspace(0.7, 1.2, 50, dtype=np.float32)[None] * np.ones((40, 1), np.float32)
    fields = Fields(flat, np.asarray(7, np.float32))
    corrected = correct_plane(true * flat + 7, recipe(flat_field=True, dark=True), fields, (1, 0), 0, 255)
    assert np.abs(corrected - true).max() < 1e-3  # float32


def test_rounding_is_half_to_even_and_clipping_is_counted() -> None:
    values = np.array([[-1.0, -0.4, 0.5, 1.5, 2.5, 254.5, 255.4, 256.0]], np.float32)
    converted, below, above = to_dtype(values, np.dtype("uint8"), 255)
    assert converted.tolist() == [[0, 0, 0, 2, 2, 254, 255, 255]]
    assert (below, above) == (1, 1)


def test_floating_point_is_kept() -> None:
    values = np.array([[-1.5, 1e6]], np.float32)
    converted, below, above = to_dtype(values, np.dtype("float32"), 1.0)
    assert converted.tolist() == values.tolist()
    assert (below, above) == (0, 0)


def test_white_follows_the_bits() -> None:
    assert white_of(np.dtype("uint16"), 12) == 4095
    assert white_of(np.dtype("uint16"), None) == 65535
    assert white_of(np.dtype("uint8"), 16) == 255


def test_inversion_is_its_own_inverse() -> None:
    plane = np.arange(256, dtype=np.uint8).reshape(16, 16)
    turned = correct_plane(plane, recipe(invert=True), None, (1, 0), 0, 255)
    assert turned.tolist() == (255.0 - plane).tolist()


def test_clahe_spreads_a_dull_image() -> None:
    rng = np.random.default_rng(0)
    plane = rng.normal(100, 3, (128, 128)).clip(0, 255).astype(np.uint8)
    assert correct_plane(plane, recipe(clahe=True), None, (1, 0), 0, 255).std() > 2 * plane.std()


def test_background_goes_and_cells_stay() -> None:
    yy, xx = np.mgrid[0:400, 0:400].astype(np.float32)
    haze = 80 + 0.2 * xx + 30 * np.sin(yy / 120)
    cells = np.where((yy % 100 - 50) ** 2 + (xx % 100 - 50) ** 2 < 64, 200, 0)
    left = subtract_background((haze + cells).astype(np.float32), 40)
    assert np.abs(left[cells == 0]).mean() < 0.05 * haze.mean()
    assert left[cells > 0].mean() == pytest.approx(200, rel=0.1)


@pytest.mark.parametrize("method", ["median", "gaussian", "nl-means"])
def test_denoising_takes_noise_and_keeps_edges(method: str) -> None:
    rng = np.random.default_rng(0)
    true = np.where(np.arange(96) < 48, 50, 150)[None].repeat(96, 0).astype(np.float32)
    noisy = (true + rng.normal(0, 8, true.shape)).astype(np.float32)
    cleaned = denoise(noisy, method)  # type: ignore[arg-type]
    far = np.abs(np.arange(96) - 47.5) > 4
    assert cleaned[:, far].std() < noisy[:, far].std()
    assert np.abs(cleaned - true)[:, far].mean() < 0.6 * np.abs(noisy - true)[:, far].mean()
    assert cleaned[:, 60:].mean() - cleaned[:, :40].mean() == pytest.approx(100, abs=2)


def test_loss_with_depth_is_found_and_undone() -> None:
    rng = np.random.default_rng(0)
    depths = np.arange(60)
    light = 1000 * np.exp(-0.02 * depths) * rng.lognormal(0, 0.05, 60)
    light[20] = 5000  # one bright plane must not matter
    loss = fit_depth_loss(depths.tolist(), light.tolist())
    assert loss is not None
    assert loss.significant
    # 60 planes with 5 % scatter know the slope to 0.05 / (17 * sqrt(60)) = 0.0004.
    assert loss.per_plane == pytest.approx(0.02, abs=0.0015)
    assert loss.gain(0, 60) == 1.0
    assert loss.gain(50, 60) == pytest.approx(np.exp(1.0), rel=0.08)


def test_light_from_below_and_no_loss() -> None:
    assert DepthLoss(-0.1, -0.11, -0.09).gain(0, 11) == pytest.approx(np.e)
    assert DepthLoss(1.0, 0.9, 1.1).gain(50, 60) == MAX_DEPTH_GAIN
    even = fit_depth_loss(list(range(30)), (100 + np.random.default_rng(0).normal(0, 1, 30)).tolist())
    assert even is not None
    assert not even.significant
    assert fit_depth_loss([0, 1, 2, 3], [1, 2, 3, 4]) is None


def test_contrast_is_matched() -> None:
    rng = np.random.default_rng(0)
    section, wanted = rng.normal(80, 10, 5000), Levels(120, 20)
    factor, offset = matching_line(levels_of(section), wanted)
    matched = levels_of(section * factor + offset)
    assert (matched.median, matched.spread) == (pytest.approx(120), pytest.approx(20))
    assert matching_line(Levels(80, 0), wanted) == (1.0, 40.0)


def test_presets_do_nothing_that_must_be_asked_for() -> None:
    for steps in PRESETS.values():
        assert not (steps.clahe or steps.invert or steps.background or steps.denoise != "none")
    assert PRESETS["none"] == Steps()
    assert PRESETS["light-sheet"].names() == ("dark level", "flat field", "loss with depth", "stripes")
