"""stitch-tiles on grids with planted truth; errors are px of the tile's place against the truth."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tifffile
from make_phantoms import (
    Defects,
    Stage,
    TileGrid,
    make_tile_grid,
    score_tiles,
)
from stitch_helpers import LIMIT_PX, ONE, SMALL, edited, positions_of, score, stitch, voxels, write

from kbrain_core.errors import InputError
from kbrain_core.formats.tables import Position, Tile, read_tiles, write_table, write_tiles
from kbrain_core.formats.volume import Volume
from kbrain_core.geometry import VoxelSize
from kbrain_core.processing.stitch_tiles import stitch_tiles


def test_tiles_come_to_their_true_places(em, stitched):
    grid, _ = em
    result, output = stitched
    found = score(grid, positions_of(output))
    assert result.passed, result.verdict
    assert found.max_px < LIMIT_PX
    assert found.seams_off == 0
    assert found.blank_max_px < 5
    assert result.accepted_links == 8
    assert result.stage_only_tiles == 1
    assert result.max_shift_px == 32
    assert result.max_shift_um == pytest.approx(32 * 0.005)


def test_positions_table_says_how_each_tile_was_placed(em, stitched):
    rows = {(row.row, row.col): row for row in positions_of(stitched[1])}
    assert rows[1, 1].status == "stage_only"
    assert rows[1, 1].confidence == 0
    others = [row for key, row in rows.items() if key != (1, 1)]
    assert all(row.status == "registered" and row.links == 2 and row.component == 0 for row in others)
    assert all(0.7 < (row.confidence or 0) <= 1 for row in others)
    assert min(row.x_px for row in rows.values()) >= 0


def test_tables_of_channels_are_one_mosaic(tmp_path):
    grid = make_tile_grid(**SMALL, channels=("dna", "membranes"), kind="nuclei", empty_fraction=0.0, seed=3)
    whole = write(grid, tmp_path / "whole")
    rows = read_tiles(whole)
    tables = []
    for (
        channel
    ) in grid.channels:  # as correct-illumination leaves them: a folder for each channel, its table inside
        folder = tmp_path / "by-channel" / channel
        folder.mkdir(parents=True)
        own = [row for row in rows if row.channel == channel]
        for row in own:
            (folder / row.name).symlink_to(whole.parent / row.name)
        write_tiles(folder / "tiles.tsv", own)
        tables.append(folder / "tiles.tsv")
    _, expected, one = stitch(whole, tmp_path / "one")
    result = stitch_tiles(tables, str(tmp_path / "two" / "stitched.ome.zarr"), run=ONE)
    assert result.passed, result.verdict
    np.testing.assert_array_equal(voxels(tmp_path / "two" / "stitched.ome.zarr"), voxels(one))
    found = positions_of(tmp_path / "two" / "stitched.ome.zarr")
    assert {row.name.split("/")[0] for row in found} == {"dna", "membranes"}
    assert {(r.channel, r.name.split("/")[1], r.y_px, r.x_px) for r in found} == {
        (r.channel, r.name, r.y_px, r.x_px) for r in expected
    }
    # tables that share a folder name its files as they are
    split = [
        edited(whole, whole.parent, lambda row: row if row.channel == "dna" else None),
        tmp_path / "rest.tsv",
    ]
    write_tiles(split[1], [row for row in rows if row.channel == "membranes"])
    output = tmp_path / "three" / "stitched.ome.zarr"
    stitch_tiles(split, str(output), tiles_folder=whole.parent, run=ONE)
    assert positions_of(output) == expected


def test_a_pixel_of_one_tile_keeps_its_value(em, stitched):
    grid, _ = em
    volume = voxels(stitched[1])[0, 0, 0]
    corner = next(row for row in positions_of(stitched[1]) if (row.row, row.col) == (0, 0))
    y, x = round(corner.y_px), round(corner.x_px)
    # no neighbour reaches the first 150 px of the first tile
    np.testing.assert_array_equal(
        volume[y : y + 150, x : x + 150], grid.tile(0, 0, 0).image[0, 0, :150, :150]
    )


def test_volume_and_report_say_what_a_user_needs(em, stitched):
    _, output = stitched
    volume = Volume.open(str(output))
    assert volume.voxel_size_nm == (50, 5, 5)
    assert len(volume.levels) > 1
    summary = json.loads((output.parent / "stitched.ome.zarr-summary.json").read_text())
    assert summary["figures"]["passed"] is True
    report = (output.parent / "stitched.ome.zarr-report.md").read_text()
    assert report.index("**PASS**") < report.index("| figure |")
    for picture in ("mosaic", "links-0", "shifts-0", "residuals", "seam-most-moved", "fixed-pattern-0"):
        assert (output.parent / "stitched.ome.zarr-report_files" / f"{picture}.png").stat().st_size > 1000


def test_channels_share_a_solution_or_have_their_own(tmp_path):
    grid = make_tile_grid(**SMALL, channels=("dna", "membranes"), kind="nuclei", empty_fraction=0.0)
    tiles = write(grid, tmp_path)
    _, rows, output = stitch(tiles, tmp_path / "one", registration_channel="membranes")
    assert score(grid, rows).max_px < LIMIT_PX
    by_channel = [[(r.y_px, r.x_px) for r in rows if r.channel == name] for name in grid.channels]
    assert by_channel[0] == by_channel[1]
    assert Volume.open(str(output)).channel_names == grid.channels
    _, rows, _ = stitch(tiles, tmp_path / "own", per_channel=True)
    for name in grid.channels:
        assert score(grid, [r for r in rows if r.channel == name]).max_px < LIMIT_PX
    _, rows, _ = stitch(tiles, tmp_path / "sum", registration_channel="sum")
    assert score(grid, rows).max_px < LIMIT_PX


def test_sections_are_planes_of_one_volume(tmp_path):
    grid = make_tile_grid(**SMALL, sections=2, defects=Defects(missing=((1, 0, 2),)))
    result, rows, output = stitch(write(grid, tmp_path), tmp_path)
    assert result.passed
    assert result.shape_tczyx[2] == 2
    assert score(grid, rows).max_px < LIMIT_PX
    assert {(row.z, row.z_px) for row in rows} == {(0, 0.0), (1, 1.0)}
    planes = voxels(output)[0, 0]
    assert (np.count_nonzero(planes, axis=(1, 2)) > 0.8 * planes[0].size).all()


def test_stacks_are_registered_in_three_dimensions(tmp_path):
    stage = Stage(jitter_px=5, jitter_z_px=2)
    grid = make_tile_grid(rows=2, cols=2, size=160, depth=16, overlap=0.3, stage=stage)
    result, rows, output = stitch(write(grid, tmp_path), tmp_path)
    assert result.passed
    # the shortest seams have 16 planes of 48 x 160 px
    assert score(grid, rows).max_px < LIMIT_PX
    assert voxels(output).shape[2] in (18, 19, 20)


def test_files_of_single_planes_move_together_as_a_stack(tmp_path):
    grid = make_tile_grid(rows=2, cols=2, size=200, depth=4, overlap=0.3, stage=Stage(jitter_px=5))
    rows = []
    for tile in grid.tiles:
        for z in range(4):
            name = f"{tile.name}_plane{z}.tif"
            tifffile.imwrite(tmp_path / name, tile.image[0, z], photometric="minisblack")
            rows.append(
                Tile(
                    name=name, z=z, row=tile.key[1], col=tile.key[2], width_px=200, height_px=200, depth_px=1,
                    stage_y_um=tile.stage_px[1], stage_x_um=tile.stage_px[2], pixel_x_um=1, pixel_y_um=1, dtype="uint8",
                )
            )  # fmt: skip
    write_tiles(tmp_path / "tiles.tsv", rows)
    result, found, output = stitch(tmp_path / "tiles.tsv", tmp_path, planes="stack")
    assert result.tiles == 4
    assert result.warnings  # the distance of planes is not known
    for z in range(4):
        plane = {(0, r.row or 0, r.col or 0): (0.0, r.y_px, r.x_px) for r in found if r.z == z}
        assert score_tiles(_flat(grid), plane).max_px < LIMIT_PX
    assert len({(r.y_px, r.x_px) for r in found}) == 4
    assert voxels(output).shape[2] == 4


def _flat(grid: TileGrid) -> TileGrid:
    """The same truth without z."""
    tiles = tuple(dataclasses.replace(t, true_px=(0.0, *t.true_px[1:])) for t in grid.tiles)
    return dataclasses.replace(grid, tiles=tiles)


def test_stage_step_angle_and_backlash_are_fitted(tmp_path):
    stage = Stage(jitter_px=1, angle_deg=1.5, backlash_px=10)
    grid = make_tile_grid(rows=4, cols=4, size=200, overlap=0.25, stage=stage)
    result, rows, _ = stitch(write(grid, tmp_path), tmp_path)
    assert result.passed
    assert score(grid, rows).max_px < LIMIT_PX
    assert result.stage_angle_deg == pytest.approx(1.5, abs=0.2)
    assert result.backlash_px == pytest.approx(10, abs=2)


def test_unequal_tiles_in_no_grid(tmp_path):
    scene_grid = make_tile_grid(rows=1, cols=1, size=700, stage=Stage(jitter_px=0), kind="em")
    scene = scene_grid.tiles[0].image[0, 0]
    rng = np.random.default_rng(0)
    true = {}
    rows = []
    places = [
        (0, 0, 300, 260),
        (10, 200, 250, 300),
        (30, 430, 300, 250),
        (240, 60, 260, 280),
        (260, 290, 300, 330),
    ]
    for number, (y, x, height, width) in enumerate(places):
        name = f"{number}.tif"
        tifffile.imwrite(tmp_path / name, scene[y : y + height, x : x + width], photometric="minisblack")
        told = np.array([y, x]) + rng.uniform(-6, 6, 2)
        rows.append(
            Tile(
                name=name, stage_y_um=told[0] / 10, stage_x_um=told[1] / 10, width_px=width, height_px=height,
                depth_px=1, dtype="uint8",
            )
        )  # fmt: skip
        true[name] = (y, x)
    write_tiles(tmp_path / "tiles.tsv", rows)
    size = VoxelSize.from_text("x=0.1um,y=0.1um")
    result, found, _ = stitch(tmp_path / "tiles.tsv", tmp_path, voxel_size=size)
    assert result.passed, result.verdict
    errors = np.array([(r.y_px - true[r.name][0], r.x_px - true[r.name][1]) for r in found])
    # crops of one picture: no noise, and whole pixels
    assert np.abs(errors - errors[0]).max() < 0.05


def test_a_grid_without_stage_positions_needs_its_overlap(em, tmp_path):
    grid, tiles = em

    def forget(row):
        return dataclasses.replace(row, stage_x_um=None, stage_y_um=None, pixel_x_um=None, pixel_y_um=None)

    bare = edited(tiles, tmp_path, forget)
    with pytest.raises(InputError, match="has no stage position: give the grid's overlap, like --overlap"):
        stitch(bare, tmp_path, tiles_folder=tiles.parent)
    result, rows, _ = stitch(bare, tmp_path, tiles_folder=tiles.parent, overlap=0.25)
    assert result.passed
    assert result.max_shift_um is None
    assert score(grid, rows).max_px < LIMIT_PX


@pytest.mark.parametrize(
    "grid",
    [
        {"kind": "flat"},
        {"defects": Defects(swapped=(((0, 0, 1), (0, 2, 1)),))},
        {"defects": Defects(swapped=(((0, 1, 0), (0, 1, 1)),))},
        {"overlap": 0.15, "reported_overlap": 0.4},
        {"overlap": 0.4, "reported_overlap": 0.15},
    ],
    ids=["no texture", "swapped", "neighbours swapped", "too little overlap", "too much overlap"],
)
def test_a_bad_stitch_never_passes(grid, tmp_path):
    result, _, output = stitch(write(make_tile_grid(**{**SMALL, **grid}), tmp_path), tmp_path)
    assert not result.passed
    assert result.warnings[0].startswith("FAIL: ")
    assert "**FAIL**" in (output.parent / "stitched.ome.zarr-report.md").read_text()


def test_excluded_tiles_are_left_out(em, tmp_path):
    grid, tiles = em

    def drop(row):
        return dataclasses.replace(row, status="excluded") if (row.row, row.col) == (0, 0) else row

    table = edited(tiles, tmp_path, drop)
    _, rows, output = stitch(table, tmp_path, tiles_folder=tiles.parent)
    dropped = next(row for row in rows if (row.row, row.col) == (0, 0))
    assert dropped.status == "excluded"
    assert score(grid, [row for row in rows if row is not dropped]).max_px < LIMIT_PX
    assert voxels(output)[0, 0, 0, :150, :150].max() == 0


def test_edited_positions_are_fused_as_they_are(em, stitched, tmp_path):
    _, tiles = em
    rows = positions_of(stitched[1])
    table = tmp_path / "edited.tsv"
    write_table(table, rows, Position)
    result, _, output = stitch(tiles, tmp_path / "same", positions=table)
    np.testing.assert_array_equal(voxels(output), voxels(stitched[1]))
    assert result.passed
    moved = [
        dataclasses.replace(r, x_px=r.x_px + 15, status="excluded" if (r.row, r.col) == (2, 2) else r.status)
        if (r.row, r.col) in ((0, 2), (2, 2))
        else r
        for r in rows
    ]
    write_table(table, moved, Position)
    result, found, output = stitch(tiles, tmp_path / "moved", positions=table)
    assert not result.passed, "two seams of a tile that was moved by 15 px do not match"
    corner = next(r for r in found if (r.row, r.col) == (0, 2))
    image = em[0].tile(0, 0, 2).image[0, 0]
    y, x = round(corner.y_px), round(corner.x_px)
    np.testing.assert_array_equal(voxels(output)[0, 0, 0, y : y + 150, x + 100 : x + 256], image[:150, 100:])


def test_no_blending_takes_values_from_the_tiles(em, tmp_path):
    grid, tiles = em
    _, rows, output = stitch(tiles, tmp_path, blend="none")
    volume = voxels(output)[0, 0, 0]
    places = {(row.row, row.col): (round(row.y_px), round(row.x_px)) for row in rows}
    from_tiles = np.zeros(volume.shape, bool)
    for tile in grid.tiles:
        y, x = places[tile.key[1:]]
        from_tiles[y : y + 256, x : x + 256] |= volume[y : y + 256, x : x + 256] == tile.image[0, 0]
    assert from_tiles[volume > 0].all()


def test_interpolated_placement_changes_values_not_positions(em, stitched, tmp_path):
    _, tiles = em
    _, rows, output = stitch(tiles, tmp_path, subpixel="cubic")
    assert [(r.x_px, r.y_px) for r in rows] == [(r.x_px, r.y_px) for r in positions_of(stitched[1])]
    a, b = voxels(output).astype(float), voxels(stitched[1]).astype(float)
    assert a.shape == b.shape
    assert not np.array_equal(a, b)
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.95


def test_holes_of_float_tiles_do_no_harm(tmp_path):
    grid = make_tile_grid(**SMALL, seed=3)
    rows = []
    for tile in grid.tiles:
        image = tile.image[0, 0].astype(np.float32)
        image[60:90, 120:140] = np.nan
        tifffile.imwrite(tmp_path / f"{tile.name}.tif", image, photometric="minisblack")
        rows.append(
            Tile(
                name=f"{tile.name}.tif", row=tile.key[1], col=tile.key[2], width_px=256, height_px=256, depth_px=1,
                stage_y_um=tile.stage_px[1], stage_x_um=tile.stage_px[2], pixel_x_um=1, pixel_y_um=1, dtype="float32",
            )
        )  # fmt: skip
    write_tiles(tmp_path / "tiles.tsv", rows)
    result, found, output = stitch(tmp_path / "tiles.tsv", tmp_path)
    assert result.passed
    assert score(grid, found).max_px < 0.1
    assert np.isfinite(voxels(output)).all()


def test_time_points_share_the_first_one_s_solution(em, tmp_path):
    _, tiles = em
    rows = [dataclasses.replace(row, t=t) for t in (0, 1) for row in read_tiles(tiles)]
    write_tiles(tmp_path / "tiles.tsv", rows)
    result, _, output = stitch(tmp_path / "tiles.tsv", tmp_path, tiles_folder=tiles.parent)
    assert result.tiles == 9
    first, second = voxels(output)
    np.testing.assert_array_equal(first, second)
    result, _, _ = stitch(
        tmp_path / "tiles.tsv", tmp_path / "own", tiles_folder=tiles.parent, per_time_point=True
    )
    assert result.tiles == 18


def test_a_cycle_that_was_turned_is_told(em, tmp_path):
    from scipy import ndimage

    grid, _ = em
    angle, rows = 0.3, []
    for tile in grid.tiles:
        for t in (0, 1):
            image = tile.image[0, 0]
            if t:  # the whole mosaic turned about its first tile's corner: x towards y
                a = np.radians(angle)
                y, x = np.subtract(tile.true_px[1:], grid.tile(0, 0, 0).true_px[1:]) + 128
                moved = (a * x + 2.0, -a * y)
                image = ndimage.shift(image.astype(np.float32), moved, order=1, mode="nearest").astype(
                    np.uint8
                )
            name = f"{tile.name}_t{t}.tif"
            tifffile.imwrite(tmp_path / name, image, photometric="minisblack")
            rows.append(
                Tile(
                    name=name, t=t, row=tile.key[1], col=tile.key[2], width_px=256, height_px=256, depth_px=1,
                    stage_y_um=tile.stage_px[1], stage_x_um=tile.stage_px[2], pixel_x_um=1, pixel_y_um=1, dtype="uint8",
                    status="blank" if tile.state == "blank" else "ok",
                )
            )  # fmt: skip
    write_tiles(tmp_path / "tiles.tsv", rows)
    result, _, output = stitch(tmp_path / "tiles.tsv", tmp_path)
    assert result.passed
    # tiles were shifted by whole vectors, not turned in themselves, and interpolated linearly
    assert result.max_cycle_rotation_deg == pytest.approx(angle, abs=0.02)
    assert "off the registered one" in " ".join(result.warnings)
    report = (output.parent / "stitched.ome.zarr-report.md").read_text()
    assert "Channels and time points against the registered one" in report


def test_real_sections_of_array_tomography(shared_data, tmp_path):
    source = shared_data / "array-tomography"
    lines = [line.split("\t") for line in (source / "layout.tsv").read_text().splitlines()[1:]]
    rows = [
        Tile(
            name=name, z=int(z), stage_x_um=float(x), stage_y_um=float(y), pixel_x_um=1, pixel_y_um=1,
            width_px=1376, height_px=1040, depth_px=1, dtype="uint8",
        )
        for name, x, y, z in lines
        if int(y) < 2000
    ]  # fmt: skip
    write_tiles(tmp_path / "tiles.tsv", rows)
    result, _, _ = stitch(tmp_path / "tiles.tsv", tmp_path, tiles_folder=source / "tiles")
    assert result.passed
    assert result.accepted_links == result.links == 3 * 7
    # loops of real seams close to a few hundredths of a pixel
    assert (result.max_residual_px or 1) < 0.15
    assert (result.median_ncc or 0) > 0.8
