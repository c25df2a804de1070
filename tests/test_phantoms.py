"""The phantoms carry the truth they claim, and the committed sample is what the script makes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from make_phantoms import (
    Camera,
    Defects,
    Stage,
    global_section_errors,
    make_label_volume,
    make_section_stack,
    make_tile_grid,
    rigid_transform,
    scene_2d,
    score_tiles,
    section_errors,
    subpixel_crop,
    write_fiji,
    write_named_tiff,
    write_ome_tiff,
    write_sample,
    write_tiles_table,
)
from scipy import ndimage

SAMPLE = Path(__file__).parent.parent / "test-data" / "sample"


@pytest.fixture(scope="module")
def grid():
    return make_tile_grid(
        rows=2,
        cols=3,
        size=128,
        overlap=0.25,
        channels=("a", "b"),
        stage=Stage(jitter_px=6.0),
        camera=Camera(photons_at_white=float("inf")),
        defects=Defects(
            blank=((0, 0, 2),), missing=((0, 1, 1),), duplicate=((0, 0, 0),), truncated=((0, 1, 2),),
            swapped=(((0, 0, 1), (0, 1, 0)),),
        ),
        keep_scene=True,
        seed=4,
    )  # fmt: skip


def test_the_committed_sample_is_what_the_script_makes(tmp_path: Path) -> None:
    write_sample(tmp_path)
    assert json.loads((tmp_path / "truth.json").read_text()) == json.loads(
        (SAMPLE / "truth.json").read_text()
    )
    made = sorted(path.name for path in (tmp_path / "tiles").iterdir())
    assert made == sorted(path.name for path in (SAMPLE / "tiles").iterdir())
    for name in made:
        with (
            tifffile.TiffFile(tmp_path / "tiles" / name) as new,
            tifffile.TiffFile(SAMPLE / "tiles" / name) as old,
        ):
            # Rounding may differ by one grey level where another processor adds in another order.
            difference = new.asarray().astype(int) - old.asarray().astype(int)
            assert np.abs(difference).max() <= 1
            assert np.mean(difference != 0) < 1e-3
            assert new.ome_metadata == old.ome_metadata


def test_the_sample_is_small() -> None:
    sizes = [path.stat().st_size for path in (SAMPLE.parent).rglob("*") if path.is_file()]
    assert max(sizes) < 1_000_000
    assert sum(sizes) < 20_000_000


def test_tiles_show_the_scene_where_the_truth_says(grid) -> None:
    tile = grid.tile(0, 0, 0)
    expected = subpixel_crop(grid.scenes[0][0, 0], tile.true_px[1:], (128, 128)) * grid.flat_field
    # Without noise only rounding to whole grey levels is left.
    assert np.abs(tile.image[0, 0] - grid.grey(expected)).max() <= 0.5 + 1e-3


def test_subpixel_crop_agrees_with_a_spline() -> None:
    scene = scene_2d("em", (200, 220), seed=1)
    crop = subpixel_crop(scene, (40.37, 50.81), (100, 110))
    spline = ndimage.shift(scene, (-0.37, -0.81), order=5)[40:140, 50:160]
    # Two good interpolators of a band-limited scene: half a grey level of 225 apart at most.
    assert np.abs(crop - spline).max() < 0.5 / 225


def test_vignetting_takes_the_stated_share_of_light_in_the_corner() -> None:
    flat = Camera(vignetting=0.35, dust=0).flat_field((64, 96), seed=0)
    assert flat[0, 0] == pytest.approx(0.65, abs=1e-4)
    assert flat.max() == pytest.approx(1.0, abs=1e-3)


def test_defects_are_planted(grid, tmp_path: Path) -> None:
    paths = write_ome_tiff(grid, tmp_path)
    assert len(paths) == 6  # six places, less one missing, and one copy
    assert grid.tile(0, 1, 1).image is None
    assert np.ptp(grid.tile(0, 0, 2).image) == 0
    first = tmp_path / "tile_z000_r00_c00.ome.tif"
    assert first.read_bytes() == first.with_name("tile_z000_r00_c00_copy.ome.tif").read_bytes()
    swapped = grid.tile(0, 0, 1)
    assert swapped.true_px[1] > grid.tile(0, 0, 0).true_px[1] + 50  # it shows the second row
    whole, cut = (tmp_path / f"tile_z000_r{row:02d}_c{col:02d}.ome.tif" for row, col in ((0, 1), (1, 2)))
    assert cut.stat().st_size == pytest.approx(0.6 * whole.stat().st_size, abs=32)


def test_writers_keep_pixels_names_and_places(grid, tmp_path: Path) -> None:
    names = {path.name for path in write_named_tiff(grid, tmp_path / "named")}
    assert {"tile_z000_r00_c00_cha.tif", "tile_z000_r00_c00_chb.tif"} <= names
    side_file = write_fiji(grid, tmp_path / "fiji").read_text()
    assert "tile_z000_r01_c00.tif; ; (0.0, 96.0)" in side_file
    write_ome_tiff(grid, tmp_path / "ome")
    rows = write_tiles_table(grid, tmp_path / "ome" / "tiles.tsv").read_text().splitlines()
    assert len(rows) == 1 + 5 * 2
    image = tifffile.imread(tmp_path / "ome" / "tile_z000_r00_c00.ome.tif")
    np.testing.assert_array_equal(image.squeeze(), grid.tile(0, 0, 0).image.squeeze())


def test_3d_tiles_show_the_scene_where_the_truth_says() -> None:
    grid = make_tile_grid(
        rows=1, cols=2, size=64, depth=12, overlap=0.3, stage=Stage(jitter_px=3, jitter_z_px=2),
        camera=Camera(photons_at_white=float("inf"), dust=0, vignetting=0), keep_scene=True,
    )  # fmt: skip
    tile = grid.tile(0, 0, 1)
    spline = ndimage.shift(grid.scenes[0][0], -(np.array(tile.true_px) % 1), order=3, mode="nearest")
    z, y, x = np.floor(tile.true_px).astype(int)
    inner = spline[z + 2 : z + 10, y : y + 64, x : x + 64]
    # z is sampled coarser than x and y: interpolators differ by a few grey levels at blob edges.
    assert np.abs(grid.grey(inner) - tile.image[0, 2:10]).mean() < 1.0


def test_scores_do_not_see_a_common_offset_but_see_one_tile(grid) -> None:
    found = {
        tile.key: tuple(np.add(tile.true_px, (0, 3.0, -8.0))) for tile in grid.tiles if tile.image is not None
    }
    assert score_tiles(grid, found).max_px < 1e-9
    found[0, 0, 0] = tuple(np.add(found[0, 0, 0], (0, 0, 4.0)))
    score = score_tiles(grid, found)
    assert score.max_px == pytest.approx(4.0)
    assert score.seams_off == 2  # its right and its lower neighbour


def test_sections_are_where_their_transforms_say() -> None:
    stack = make_section_stack(
        count=3, size=200, max_angle_deg=20, max_shift_px=10, contrast_change=0, keep_aligned=True,
        camera=Camera(photons_at_white=float("inf"), vignetting=0, dust=0), torn=(2,),
    )  # fmt: skip
    matrix, shift = stack.transforms[1][:, :2], stack.transforms[1][:, 2]
    back = ndimage.affine_transform(stack.images[1].astype(np.float32), matrix, shift, order=3)
    aligned = (stack.aligned[1] + Camera().dark) * Camera().white
    inner = (slice(60, 140),) * 2
    # Interpolated twice: a grey level on average.
    assert np.abs(back[inner] - aligned[inner]).mean() < 1.0
    assert (stack.images[2] < 20).mean() > 0.05  # the tear and the lost corner


def test_section_errors_ignore_a_common_transform_and_measure_one_section() -> None:
    stack = make_section_stack(count=4, size=128, field_size=200)
    common = np.vstack([rigid_transform(30, np.array([3, 5]), (200, 200)), [0, 0, 1]])
    found = np.stack([(np.vstack([each, [0, 0, 1]]) @ common)[:2] for each in stack.transforms])
    assert section_errors(stack, found).max() < 1e-9
    assert global_section_errors(stack, found).max() < 1e-9
    found[3, :, 2] += (3, 4)
    np.testing.assert_allclose(section_errors(stack, found), (0, 0, 5), atol=1e-9)


def test_neighbouring_sections_are_alike_and_far_ones_are_not() -> None:
    stack = make_section_stack(count=12, size=256, max_angle_deg=0, max_shift_px=0, contrast_change=0)
    flat = stack.images.reshape(12, -1).astype(float)
    alike = np.corrcoef(flat)
    assert alike[0, 1] > 0.4
    assert alike[0, 11] < 0.3


@pytest.mark.parametrize("dense", [False, True])
def test_objects_have_the_stated_voxels_and_ids(dense: bool) -> None:
    volume = make_label_volume(shape=(24, 48, 64), objects=12, dense=dense)
    assert volume.labels.max() == 2**63 - 1
    assert {each.id for each in volume.objects} == set(np.unique(volume.labels).tolist()) - {0}
    for each in volume.objects:
        mask = volume.labels == each.id
        assert mask.sum() == each.voxels
        np.testing.assert_allclose(np.argwhere(mask).mean(axis=0), each.centroid)
