from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from kbrain_core.numerics.stitching.tile_filter import (
    enlarge,
    fixed_pattern,
    reduce_plane,
    smooth_background,
    structure_share,
    texture,
)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "int16"])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_reduce_plane_is_the_exact_block_mean(dtype, factor):
    plane = np.random.default_rng(0).integers(0, 250, (20, 31)).astype(dtype)
    rows, columns = 20 // factor, 31 // factor
    blocks = plane[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor)
    np.testing.assert_allclose(reduce_plane(plane, factor), blocks.mean((1, 3)), rtol=1e-6)


def test_a_hole_takes_the_mean():
    plane = np.full((8, 8), 3.0, np.float32)
    plane[2:4, 2:4] = np.nan
    np.testing.assert_array_equal(reduce_plane(plane, 2), np.full((4, 4), 3.0))


def test_background_is_a_gaussian_s():
    yy, xx = np.mgrid[0:200, 0:180]
    plane = (100 + 30 * np.sin(yy / 60) + 20 * np.cos(xx / 50)).astype(np.float32)
    exact = ndimage.gaussian_filter(plane, 12, mode="reflect")
    inner = slice(30, -30)
    # computed on a reduced copy: within half a grey level of a structure of 100 grey levels
    assert np.abs(smooth_background(plane, 12) - exact)[inner, inner].max() < 0.5


def test_texture_takes_shading_away_and_leaves_structure():
    rng = np.random.default_rng(1)
    yy, xx = np.mgrid[0:256, 0:256]
    structure = ndimage.gaussian_filter(rng.standard_normal((256, 256)), 1.5) * 30
    shaded = (structure + 100 - (yy - 128) ** 2 / 400 - (xx - 128) ** 2 / 400).astype(np.float32)
    found = texture(shaded[None])[0]
    assert np.corrcoef(found[30:-30, 30:-30].ravel(), structure[30:-30, 30:-30].ravel())[0, 1] > 0.98


def test_structure_share_tells_structure_from_noise():
    rng = np.random.default_rng(2)
    noise = rng.standard_normal((1, 200, 200)).astype(np.float32)
    blobs = ndimage.gaussian_filter(noise, (0, 3, 3))
    assert structure_share(noise) < 0.05
    assert structure_share((blobs / blobs.std()).astype(np.float32)) > 0.9
    assert structure_share(np.zeros((1, 9, 9), np.float32)) == 0


def test_fixed_pattern_holds_the_dust_and_nothing_of_the_sample():
    rng = np.random.default_rng(3)
    dust = np.zeros((64, 64), np.float32)
    dust[20:23, 30:33] = -40
    tiles = [100 + 10 * ndimage.gaussian_filter(rng.standard_normal((64, 64)), 2) + dust for _ in range(25)]
    pattern = fixed_pattern([tile.astype(np.float32) for tile in tiles], len(tiles), 1)
    assert pattern[21, 31] < -30
    assert np.abs(pattern[40:, :]).max() < 2


def test_enlarge_keeps_pixel_centres():
    ramp = np.add.outer(np.arange(20.0), 2 * np.arange(24.0)).astype(np.float32)
    large = enlarge(
        reduce_plane(np.kron(ramp, np.ones((2, 2), np.float32)), 2), 2, (slice(5, 25), slice(7, 31))
    )
    yy, xx = np.mgrid[5:25, 7:31]
    expected = ((yy + 0.5) / 2 - 0.5) + 2 * ((xx + 0.5) / 2 - 0.5)
    # opencv interpolates with 1/32 px steps
    np.testing.assert_allclose(large, expected, atol=0.06)
