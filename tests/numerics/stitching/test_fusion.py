from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tifffile

from kbrain_core.formats.tables import Tile
from kbrain_core.numerics.stitching.fusion import Placed, fuse
from kbrain_core.numerics.stitching.tile_images import TileFiles


@pytest.fixture
def place(tmp_path):
    """Write a tile and say where it lies."""

    def write(image: np.ndarray, origin: tuple[float, float, float]) -> Placed:
        name = f"tile{len(list(tmp_path.iterdir()))}.tif"
        tifffile.imwrite(tmp_path / name, image, photometric="minisblack")
        depth, height, width = image.shape if image.ndim == 3 else (1, *image.shape)
        tile = Tile(name=name, height_px=height, width_px=width, depth_px=depth, dtype=str(image.dtype))
        return Placed(tile, origin)

    return write


def fused(folder, placed, shape, blend="linear", subpixel="nearest", corner=(0, 0, 0)):
    dtype = np.dtype(placed[0].tile.dtype)
    box = tuple(slice(start, start + size) for start, size in zip(corner, shape, strict=True))
    with TileFiles(folder, 10_000_000) as files:
        return fuse(placed, box, dtype, files, blend=blend, subpixel=subpixel)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("blend", ["linear", "none"])
def test_a_pixel_of_one_tile_keeps_its_value(tmp_path, place, dtype, blend):
    image = (np.random.default_rng(0).random((40, 50)) * 200).astype(dtype)
    voxels, covered = fused(tmp_path, [place(image, (0, 3.4, 5.5))], (1, 60, 70), blend)
    np.testing.assert_array_equal(voxels[0, 3:43, 6:56], image)
    assert covered == image.size
    assert np.count_nonzero(voxels) == np.count_nonzero(image)


def test_two_tiles_fade_into_each_other(tmp_path, place):
    left, right = np.full((30, 40), 100, np.uint8), np.full((30, 40), 200, np.uint8)
    voxels, _ = fused(tmp_path, [place(left, (0, 0, 0)), place(right, (0, 0, 30))], (1, 30, 70))
    row = voxels[0, 15].astype(int)
    assert (row[:30] == 100).all()
    assert (row[40:] == 200).all()
    # weights are the distances to the edges: 10..1 of the left, 1..10 of the right
    weights = np.arange(1, 11)
    np.testing.assert_array_equal(row[30:40], np.rint((100 * weights[::-1] + 200 * weights) / 11))


@pytest.mark.parametrize("blend", ["linear", "none"])
def test_a_blank_tile_does_not_darken_its_neighbours(tmp_path, place, blend):
    tissue, resin = (
        place(np.full((30, 40), 200, np.uint8), (0, 0, 0)),
        place(np.full((30, 40), 7, np.uint8), (0, 0, 30)),
    )
    blank = Placed(replace(resin.tile, status="blank"), resin.origin)
    voxels, covered = fused(tmp_path, [tissue, blank], (1, 30, 70), blend)
    assert (voxels[0, :, :40] == 200).all() and (voxels[0, :, 40:] == 7).all()
    assert covered == voxels.size


def test_no_blending_takes_each_pixel_from_one_tile(tmp_path, place):
    left, right = np.full((30, 40), 100, np.uint8), np.full((30, 40), 200, np.uint8)
    placed = [place(left, (0, 0, 0)), place(right, (0, 0, 30))]
    voxels, _ = fused(tmp_path, placed, (1, 30, 70), "none")
    assert set(np.unique(voxels)) == {100, 200}
    assert (voxels[0, 15, :35] == 100).all()
    assert (voxels[0, 15, 36:] == 200).all()


def test_boxes_fit_together(tmp_path, place):
    rng = np.random.default_rng(1)
    placed = [
        place(rng.integers(0, 255, (50, 60)).astype(np.uint8), (0, 40.3 * row, 45.6 * col))
        for row in range(2)
        for col in range(2)
    ]
    whole, _ = fused(tmp_path, placed, (1, 91, 106))
    pieces = np.zeros_like(whole)
    for y in range(0, 91, 32):
        for x in range(0, 106, 32):
            shape = (1, min(32, 91 - y), min(32, 106 - x))
            part, _ = fused(tmp_path, placed, shape, corner=(0, y, x))
            pieces[:, y : y + 32, x : x + 32] = part
    np.testing.assert_array_equal(pieces, whole)


@pytest.mark.parametrize(("subpixel", "limit"), [("linear", 0.03), ("cubic", 0.01)])
def test_interpolation_puts_a_tile_between_pixels(tmp_path, place, subpixel, limit):
    yy, xx = np.mgrid[0:60, 0:60]

    def wave(y, x):
        return 100 + 50 * np.sin(y / 5) * np.cos(x / 6)

    image = wave(yy, xx).astype(np.float32)
    voxels, _ = fused(tmp_path, [place(image, (0, 10.3, 4.75))], (1, 80, 80), subpixel=subpixel)
    expected = wave(*np.meshgrid(np.arange(14, 66) - 10.3, np.arange(8, 60) - 4.75, indexing="ij"))
    # of an amplitude of 50; linear interpolation flattens a wave of 30 px by a hundredth
    assert np.abs(voxels[0, 14:66, 8:60] - expected).max() < 50 * limit


def test_holes_are_filled_by_the_other_tile(tmp_path, place):
    left, right = np.full((20, 30), 1.5, np.float32), np.full((20, 30), 2.5, np.float32)
    left[5:10, 20:30] = np.nan
    voxels, covered = fused(tmp_path, [place(left, (0, 0, 0)), place(right, (0, 0, 20))], (1, 20, 50))
    assert (voxels[0, 5:10, 20:30] == 2.5).all()
    assert np.isfinite(voxels).all()
    assert covered == 20 * 50


def test_stacks_keep_their_planes(tmp_path, place):
    stack = np.arange(4, dtype=np.uint8)[:, None, None] * np.ones((4, 20, 20), np.uint8) + 10
    voxels, _ = fused(tmp_path, [place(stack, (2, 0, 0))], (7, 20, 20))
    assert voxels[:, 10, 10].tolist() == [0, 0, 10, 11, 12, 13, 0]
    moved, _ = fused(tmp_path, [place(stack.astype(np.float32), (1.5, 0, 0))], (7, 20, 20), subpixel="linear")
    # half a plane on: the mean of neighbours; the first plane would come half from outside
    assert moved[:, 10, 10].tolist() == [0, 0, 10.5, 11.5, 12.5, 0, 0]
