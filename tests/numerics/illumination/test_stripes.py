"""Stripes planted into content."""

from __future__ import annotations

import numpy as np
import pytest
from make_phantoms import Camera, make_tile_grid

from kbrain_core.numerics.illumination.stripes import default_level, remove_stripes, stripe_energy


def psnr_db(image: np.ndarray, true: np.ndarray) -> float:
    """Peak signal to noise ratio against the image without stripes."""
    return float(10 * np.log10(true.max() ** 2 / np.mean((image - true) ** 2)))


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    grid = make_tile_grid(rows=2, cols=2, size=512, overlap=0.2, camera=Camera(vignetting=0, dust=0))
    return np.asarray(grid.tiles[0].image[0, 0], np.float32)


def shadows(count: int) -> np.ndarray:
    """Shadows of random width and depth, as factors: (count, 1)."""
    rng = np.random.default_rng(3)
    noise = np.convolve(rng.normal(0, 1, count + 8), np.ones(4) / 2, "same")[4 : count + 4]
    return np.asarray(np.exp(0.12 * noise)[:, None], np.float32)


@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
def test_stripes_go_and_the_image_stays(clean: np.ndarray, direction: str) -> None:
    striped = clean * (shadows(512) if direction == "horizontal" else shadows(512).T)
    corrected = remove_stripes(striped, direction=direction)
    # 21.6 dB before; what is lost of the image itself limits it to 32 dB. Measured: 30.5 dB.
    assert psnr_db(corrected, clean) > psnr_db(striped, clean) + 7
    own = stripe_energy(clean, direction).sum()
    left = stripe_energy(corrected, direction).sum() - own
    planted = stripe_energy(striped, direction).sum() - own
    assert abs(left) < 0.05 * planted


def test_image_without_stripes_is_hardly_touched(clean: np.ndarray) -> None:
    # EM content is as crowded as it gets: 34 dB is a thirtieth of its own contrast.
    assert psnr_db(remove_stripes(clean, sigma=1.0), clean) > 33


def test_bright_cell_throws_no_shadow() -> None:
    image = np.full((256, 256), 100, np.float32)
    image[100:120, 100:120] = 5000
    corrected = remove_stripes(image + np.random.default_rng(0).normal(0, 1, image.shape).astype(np.float32))
    beside = corrected[100:120, :80]
    assert abs(float(beside.mean()) - 100) < 2  # without clipping the rows beside the cell turn dark by 30 %


def test_added_stripes() -> None:
    rng = np.random.default_rng(1)
    image = rng.normal(0, 1, (300, 211)).astype(np.float32)  # odd width: wavelets give one column more
    lines = rng.normal(0, 5, (1, 211)).astype(np.float32)
    corrected = remove_stripes(image + lines, direction="vertical", multiplicative=False, sigma=1.0)
    assert corrected.shape == image.shape
    # The levels take all that varies within 32 pixels: of white noise, all but 1/16 of the power, a quarter of the size.
    assert float(np.median(corrected, axis=0).std()) < 0.3 * float(lines.std())


def test_level_follows_the_width() -> None:
    assert default_level(8) == 1
    assert default_level(1024) == 7
