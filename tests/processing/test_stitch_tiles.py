"""stitch-tiles on grids with planted truth; errors are px of the tile's place against the truth."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from make_phantoms import (
    Defects,
    Stage,
    TileGrid,
    make_tile_grid,
    score_tiles,
    write_ome_tiff,
    write_tiles_table,
)

from kbrain_core.errors import InputError, OutputExistsError, StageStopped
from kbrain_core.formats.tables import Position, Tile, read_table, read_tiles, write_table, write_tiles
from kbrain_core.formats.volume import Volume
from kbrain_core.geometry import VoxelSize
from kbrain_core.processing.stitch_tiles import StitchResult, stitch_tiles
from kbrain_core.stage import Part, RunOptions

ONE = RunOptions(workers=1)
# The shot noise of seams of 64 x 256 px allows errors of up to about a tenth of a pixel.
LIMIT_PX = 0.15
SMALL = {"rows": 3, "cols": 3, "size": 256, "overlap": 0.25, "stage": Stage(jitter_px=8)}


def write(grid: TileGrid, folder: Path) -> Path:
    write_ome_tiff(grid, folder)
    return write_tiles_table(grid, folder / "tiles.tsv")


@pytest.fixture(scope="module")
def em(tmp_path_factory) -> tuple[TileGrid, Path]:
    """A 3 x 3 grid with an empty tile in its middle."""
    grid = make_tile_grid(**SMALL, defects=Defects(blank=((0, 1, 1),)), seed=1)
    return grid, write(grid, tmp_path_factory.mktemp("em"))


@pytest.fixture(scope="module")
def stitched(em, tmp_path_factory) -> tuple[StitchResult, Path]:
    """The grid stitched once, undisturbed."""
    output = tmp_path_factory.mktemp("stitched") / "stitched.ome.zarr"
    return stitch_tiles(em[1], str(output), run=ONE), output


def positions_of(output: Path) -> list[Position]:
    return read_table(output.parent / "stitched.ome.zarr-positions.tsv", Position)


def score(grid: TileGrid, rows: list[Position]):
    return score_tiles(grid, {(r.z, r.row or 0, r.col or 0): (r.z_px, r.y_px, r.x_px) for r in rows})


def voxels(output: Path | str) -> np.ndarray:
    everything = (slice(None),) * 5
    return Volume.open(str(output), allow_incomplete=True).read(everything)


def stitch(tiles: Path, folder: Path, **options) -> tuple[StitchResult, list[Position], Path]:
    output = folder / "stitched.ome.zarr"
    options.setdefault("run", ONE)
    return stitch_tiles(tiles, str(output), **options), positions_of(output), output


def edited(tiles: Path, folder: Path, change) -> Path:
    """A copy of the table with every row changed; rows that become None go."""
    rows = [new for row in read_tiles(tiles) if (new := change(row)) is not None]
    write_tiles(folder / "edited.tsv", rows)
    return folder / "edited.tsv"


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


class Killed(Exception):
    """What a killed process does to the code that runs."""


def test_a_killed_run_goes_on_and_ends_the_same(em, stitched, tmp_path, monkeypatch):
    _, tiles = em
    from kbrain_core.numerics import tile_solution, volume_writer

    output = tmp_path / "stitched.ome.zarr"

    def die(*_):
        raise Killed

    with monkeypatch.context() as broken:
        broken.setattr(volume_writer.VolumeWriter, "write_block", die)
        with pytest.raises(Killed):
            stitch_tiles(tiles, str(output), run=ONE)
    monkeypatch.setattr(tile_solution, "register_pairs", die)  # done before: it must not run again
    result = stitch_tiles(tiles, str(output), run=ONE)
    np.testing.assert_array_equal(voxels(output), voxels(stitched[1]))
    assert positions_of(output) == positions_of(stitched[1])
    again = stitch_tiles(tiles, str(output), run=ONE)
    assert (again.verdict, again.max_residual_px) == (result.verdict, result.max_residual_px)
    with pytest.raises(OutputExistsError, match="blend"):
        stitch_tiles(tiles, str(output), blend="none", run=ONE)


def test_three_parts_make_the_same_volume(em, stitched, tmp_path):
    _, tiles = em
    output = str(tmp_path / "stitched.ome.zarr")
    for part in (1, 2):
        try:
            stitch_tiles(tiles, output, run=RunOptions(workers=1, part=Part(part, 3)))
        except StageStopped as stopped:
            assert f"Part {part}/3 is through" in str(stopped)
    result = stitch_tiles(tiles, output, run=RunOptions(workers=1, part=Part(3, 3)))
    assert result.passed
    np.testing.assert_array_equal(voxels(output), voxels(stitched[1]))


def test_two_processes_of_a_cluster_make_the_same_volume(em, stitched, tmp_path):
    import distributed

    _, tiles = em
    output = str(tmp_path / "stitched.ome.zarr")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        stitch_tiles(tiles, output, run=RunOptions(cluster=cluster.scheduler_address))
    np.testing.assert_array_equal(voxels(output), voxels(stitched[1]))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda r: dataclasses.replace(r, status="blank"), {}, "No tile has the status ok (9 blank)"),
        (lambda r: dataclasses.replace(r, row=0, col=0), {}, "lie at one place"),
        (lambda r: dataclasses.replace(r, stage_x_um=3.0, stage_y_um=3.0), {}, "lie at one place"),
        (
            lambda r: dataclasses.replace(r, pixel_x_um=None, pixel_y_um=None),
            {},
            "pixel size is unknown: pass it, like --voxel-size",
        ),
        (
            lambda r: dataclasses.replace(r, dtype="uint16" if r.col else "uint8"),
            {},
            "several pixel types (uint16, uint8)",
        ),
        (lambda r: dataclasses.replace(r, view=f"v{r.col}"), {}, "several views (v0, v1, v2)"),
        (lambda r: dataclasses.replace(r, depth_px=1 + (r.col or 0)), {}, "stacks of planes and others single"),
        (lambda r: dataclasses.replace(r, width_px=None), {}, "has no width_px"),
        (lambda r: dataclasses.replace(r, name=f"gone-{r.name}"), {}, "pass --tiles-folder"),
        (lambda r: r, {"voxel_size": VoxelSize.from_text("x=1um,y=1um")}, "lie at one place"),
        (lambda r: r, {"voxel_size": VoxelSize.from_text("x=0.1nm,y=0.1nm")}, "do not overlap"),
        (lambda r: r, {"overlap": 0.03}, "overlap by 8 px (3.0 % of 256 px)"),
        (lambda r: r, {"registration_channel": "gfp"}, "the tiles have 0: choose one of them, or sum"),
        (lambda r: r, {"max_shift_um": float("nan")}, "--max-shift-um is nan"),
        (lambda r: r, {"max_shift_um": -1.0}, "--max-shift-um is -1.0"),
        (lambda r: r, {"overlap": 1.5}, "--overlap is 1.5"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_one_line(em, tmp_path, change, options, message):
    table = edited(em[1], tmp_path, change)
    output = tmp_path / "stitched.ome.zarr"
    with pytest.raises(InputError) as caught:
        stitch_tiles(table, str(output), tiles_folder=em[1].parent, run=ONE, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not output.exists()


def test_positions_of_other_tiles_are_refused(em, stitched, tmp_path):
    rows = positions_of(stitched[1])
    for wrong, message in (
        ([dataclasses.replace(rows[0], name="other.tif"), *rows[1:]], "names tile 'other.tif'"),
        ([rows[0], *rows], "twice"),
    ):
        write_table(tmp_path / "positions.tsv", wrong, Position)
        with pytest.raises(InputError, match=message):
            stitch(em[1], tmp_path, positions=tmp_path / "positions.tsv")


def test_a_truncated_tile_stops_the_stage_with_its_name(em, tmp_path):
    for file in em[1].parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    victim = tmp_path / "tile_z000_r00_c01.ome.tif"
    victim.write_bytes(victim.read_bytes()[:20_000])
    with pytest.raises(InputError, match="r00_c01"):
        stitch(tmp_path / "tiles.tsv", tmp_path)
    assert not (tmp_path / "stitched.ome.zarr" / ".kbrain" / "complete").exists()


def test_one_tile_alone_is_a_mosaic(em, tmp_path):
    table = edited(em[1], tmp_path, lambda r: r if (r.row, r.col) == (0, 0) else None)
    result, _, output = stitch(table, tmp_path, tiles_folder=em[1].parent)
    assert result.passed
    np.testing.assert_array_equal(voxels(output)[0, 0, 0], em[0].tile(0, 0, 0).image[0, 0])


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
