"""stitch-tiles when it is killed, shared between machines, or given what it cannot use."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from stitch_helpers import ONE, edited, positions_of, stitch, voxels

from kbrain_core.errors import InputError, OutputExistsError, StageStopped
from kbrain_core.formats.tables import Position, write_table
from kbrain_core.geometry import VoxelSize
from kbrain_core.processing.stitch_tiles import stitch_tiles
from kbrain_core.stage import Part, RunOptions


class Killed(Exception):
    """What a killed process does to the code that runs."""


def test_a_killed_run_goes_on_and_ends_the_same(em, stitched, tmp_path, monkeypatch):
    _, tiles = em
    from kbrain_core.numerics.stitching import tile_solution
    from kbrain_core.numerics.volumes import volume_writer

    output = tmp_path / "stitched.ome.zarr"

    def die(*_):
        raise Killed

    with monkeypatch.context() as broken:
        broken.setattr(volume_writer.VolumeWriter, "write_block", die)
        with pytest.raises(Killed):
            stitch_tiles([tiles], str(output), run=ONE)
    monkeypatch.setattr(tile_solution, "register_pairs", die)  # done before: it must not run again
    result = stitch_tiles([tiles], str(output), run=ONE)
    np.testing.assert_array_equal(voxels(output), voxels(stitched[1]))
    assert positions_of(output) == positions_of(stitched[1])
    again = stitch_tiles([tiles], str(output), run=ONE)
    assert (again.verdict, again.max_residual_px) == (result.verdict, result.max_residual_px)
    with pytest.raises(OutputExistsError, match="blend"):
        stitch_tiles([tiles], str(output), blend="none", run=ONE)


def test_three_parts_make_the_same_volume(em, stitched, tmp_path):
    _, tiles = em
    output = str(tmp_path / "stitched.ome.zarr")
    for part in (1, 2):
        try:
            stitch_tiles([tiles], output, run=RunOptions(workers=1, part=Part(part, 3)))
        except StageStopped as stopped:
            assert f"Part {part}/3 is through" in str(stopped)
    result = stitch_tiles([tiles], output, run=RunOptions(workers=1, part=Part(3, 3)))
    assert result.passed
    np.testing.assert_array_equal(voxels(output), voxels(stitched[1]))


def test_two_processes_of_a_cluster_make_the_same_volume(em, stitched, tmp_path, dask_scheduler):
    _, tiles = em
    output = str(tmp_path / "stitched.ome.zarr")
    stitch_tiles([tiles], output, run=RunOptions(cluster=dask_scheduler))
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
        stitch_tiles([table], str(output), tiles_folder=em[1].parent, run=ONE, **options)
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
