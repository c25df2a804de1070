"""precompute-volume: what it writes, says and refuses, in one process, in parts, on a cluster and after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_volumes import EVERYTHING, label_blobs, write_volume

from kbrain_core import store
from kbrain_core.cli import main
from kbrain_core.errors import IncompleteError, InputError, OutputExistsError, ResourceError, StageStopped
from kbrain_core.formats.tables import Tile, write_tiles
from kbrain_core.formats.volume import Volume
from kbrain_core.geometry import AxisInts, Box, VoxelSize
from kbrain_core.numerics.volumes.contrast import apply_window
from kbrain_core.stage import Part, RunOptions
from kbrain_core.storage.precompute_volume import PrecomputeResult, precompute_volume

ONE = RunOptions(workers=1)
# Chunks and shards so small that the volume has many tasks and more than one pass.
SMALL: dict[str, Any] = {"chunk_size": AxisInts(z=8, y=16, x=16), "shard_mb": 1 / 16, "mips": 3}


@pytest.fixture(scope="module")
def em(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """An image of 8 bits with structure at every scale, 40 x 10 x 10 nm."""
    rng = np.random.default_rng(0)
    z, y, x = np.mgrid[:21, :150, :170]
    smooth = 120 + 60 * np.sin(y / 15) * np.cos(x / 11 + z / 5)
    voxels = np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
    return write_volume(tmp_path_factory.mktemp("em") / "em.ome.zarr", voxels[None, None], mips=0)


@pytest.fixture(scope="module")
def two_channels(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """Two channels of 16 bits, two time points."""
    voxels = np.random.default_rng(1).integers(100, 5000, (2, 2, 9, 60, 70)).astype(np.uint16)
    folder = tmp_path_factory.mktemp("fluorescence")
    return write_volume(folder / "v.ome.zarr", voxels, channel_names=("DAPI", "GFP"), mips=0)


def precompute(volume: Volume, output: Path, **options: Any) -> PrecomputeResult:
    """Run the stage in this process."""
    options.setdefault("run", ONE)
    return precompute_volume(volume.uri, str(output), **options)


def voxels_of(path: Path, level: int = 0) -> NDArray[Any]:
    """All voxels of a level of a finished volume, (t, c, z, y, x)."""
    return Volume.open(str(path)).read(EVERYTHING, level)


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of every file of a volume but the job's own."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".kbrain" not in path.parts
    }


def test_image_comes_back_and_the_means_hold(em: Volume, tmp_path: Path) -> None:
    result = precompute(em, tmp_path / "v.precomputed", **SMALL)
    np.testing.assert_array_equal(voxels_of(tmp_path / "v.precomputed"), em.read(EVERYTHING))
    written = Volume.open(str(tmp_path / "v.precomputed"))
    assert [level.factor for level in written.levels] == [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8)]
    assert (result.levels, result.lossy, written.lossy) == (4, False, False)
    assert result.largest_mean_shift_grey is not None
    assert result.largest_mean_shift_grey < 0.1
    assert result.level_mean_grey[0] == pytest.approx(em.read(EVERYTHING).mean(), abs=1e-3)
    assert (tmp_path / "v.precomputed" / ".kbrain" / "complete").exists()
    report = (tmp_path / "v.precomputed-report.html").read_text()
    assert "PASS" in report
    assert {path.name for path in (tmp_path / "v.precomputed-report_files").iterdir()} == {
        "slices.png",
        "levels.png",
    }
    summary = json.loads((tmp_path / "v.precomputed-summary.json").read_text())
    assert summary["figures"]["levels"] == 4


def test_labels_come_back_and_keep_their_ids(tmp_path: Path) -> None:
    labels = label_blobs((21, 45, 50), "uint64")
    source = write_volume(tmp_path / "labels.ome.zarr", labels, kind="labels", mips=0)
    result = precompute(source, tmp_path / "v.precomputed", mips=2)
    written = Volume.open(str(tmp_path / "v.precomputed"))
    assert (written.kind, written.info.encoding) == ("labels", "compressed_segmentation")
    np.testing.assert_array_equal(written.read(EVERYTHING), labels)
    assert set(np.unique(written.read(EVERYTHING, 2))) <= set(np.unique(labels))
    assert result.level_mean_grey == ()
    assert result.compression_ratio is not None
    assert result.compression_ratio > 5  # blobs of 5^3 voxels


def test_box_keeps_its_place(em: Volume, tmp_path: Path) -> None:
    box = Box(z=(4, 17), y=(32, 101), x=(64, 160))
    result = precompute(em, tmp_path / "v.precomputed", bbox=box, mips=2)
    assert result.warnings == ()
    written = Volume.open(str(tmp_path / "v.precomputed"))
    assert written.offset_nm == (4 * 40, 32 * 10, 64 * 10)
    np.testing.assert_array_equal(
        written.read(EVERYTHING),
        em.read((slice(None), slice(None), slice(4, 17), slice(32, 101), slice(64, 160))),
    )
    # And again from there: places add up.
    precompute(written, tmp_path / "again.precomputed", bbox=Box(x=(16, 32)), mips=0)
    assert Volume.open(str(tmp_path / "again.precomputed")).offset_nm == (160, 320, 800)


def test_box_between_coarse_voxels_is_warned_of(em: Volume, tmp_path: Path) -> None:
    result = precompute(em, tmp_path / "v.precomputed", bbox=Box(x=(5, 100)), mips=2)
    assert "up to half of their voxel off along x" in result.warnings[0]


def test_jpeg_states_its_error(em: Volume, tmp_path: Path) -> None:
    result = precompute(em, tmp_path / "v.precomputed", encoding="jpeg", quality=90, mips=1)
    written = Volume.open(str(tmp_path / "v.precomputed"))
    assert result.lossy
    assert written.lossy
    errors = np.abs(written.read(EVERYTHING).astype(int) - em.read(EVERYTHING))
    assert result.lossy_mean_error_grey == pytest.approx(errors.mean(), abs=0.3)  # a sample of eight chunks
    assert result.lossy_max_error_grey is not None
    assert result.lossy_max_error_grey <= errors.max()
    again = precompute(written, tmp_path / "again.precomputed", mips=0)
    assert again.lossy
    assert "compressed with loss before" in again.warnings[0]


def test_window_makes_8_bits_and_is_recorded(two_channels: Volume, tmp_path: Path) -> None:
    precompute(two_channels, tmp_path / "v.precomputed", window="200,4000", time_point=1, mips=0)
    written = Volume.open(str(tmp_path / "v.precomputed"))
    assert (written.dtype, written.channel_names) == ("uint8", ("DAPI", "GFP"))
    assert written.info.intensity_windows == ((200.0, 4000.0), (200.0, 4000.0))
    source = two_channels.read((slice(1, 2), *EVERYTHING[1:]))
    np.testing.assert_array_equal(written.read(EVERYTHING)[0, 1], apply_window(source[0, 1], (200, 4000)))


def test_percentile_window_is_that_of_each_channel(tmp_path: Path) -> None:
    voxels = np.random.default_rng(1).integers(100, 301, (1, 2, 9, 60, 70)).astype(np.uint16)
    voxels[:, 1] *= 10
    source = write_volume(tmp_path / "s.ome.zarr", voxels, mips=0)
    precompute(
        source, tmp_path / "v.precomputed", window="percentile", encoding="jpeg", channel=["1"], mips=0
    )
    ((low, high),) = Volume.open(str(tmp_path / "v.precomputed")).info.intensity_windows
    # Even between 1000 and 3000: 0.35 % of the range is 7 grey levels; 38,000 voxels give it within a few.
    assert (low, high) == (pytest.approx(1007, abs=10), pytest.approx(2993, abs=10))


def test_channels_in_another_order(two_channels: Volume, tmp_path: Path) -> None:
    precompute(two_channels, tmp_path / "v.precomputed", channel=["GFP", "0"], mips=0)
    written = Volume.open(str(tmp_path / "v.precomputed"))
    assert written.channel_names == ("GFP", "DAPI")
    np.testing.assert_array_equal(
        written.read(EVERYTHING), two_channels.read((slice(0, 1), *EVERYTHING[1:]))[:, ::-1]
    )


def test_the_channel_of_a_table_of_tiles_is_taken(two_channels: Volume, tmp_path: Path) -> None:
    table = tmp_path / "tiles.tsv"
    write_tiles(table, [Tile(name=f"{z}.tif", channel="GFP", z=z) for z in range(3)])
    precompute(two_channels, tmp_path / "v.precomputed", channel_table=table, mips=0)
    written = Volume.open(str(tmp_path / "v.precomputed"))
    assert written.channel_names == ("GFP",)
    np.testing.assert_array_equal(
        written.read(EVERYTHING), two_channels.read((slice(0, 1), slice(1, 2), *EVERYTHING[2:]))
    )


@pytest.mark.parametrize(
    ("channels", "options", "message"),
    [
        (("DAPI", "GFP"), {}, "tiles of the channels DAPI, GFP: give the table of one"),
        (("1",), {}, "tiles of channel 1 and .* has the channels DAPI, GFP"),  # a name here, never a number
        (("GFP",), {"channel": ["GFP"]}, "--channel and --channel-table both"),
    ],
)
def test_a_table_that_does_not_name_one_channel_is_refused(
    two_channels: Volume, tmp_path: Path, channels: tuple[str, ...], options: dict[str, Any], message: str
) -> None:
    table = tmp_path / "tiles.tsv"
    write_tiles(table, [Tile(name=f"{channel}.tif", channel=channel) for channel in channels])
    with pytest.raises(InputError, match=message) as caught:
        precompute(two_channels, tmp_path / "v.precomputed", channel_table=table, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "v.precomputed").exists()


@pytest.mark.parametrize("options", [{"workers": 2}, {"parts": 3}, {"cluster": True}])
def test_result_does_not_depend_on_who_does_the_work(
    em: Volume, tmp_path: Path, options: dict[str, Any], dask_scheduler: str
) -> None:
    alone, shared = tmp_path / "alone.precomputed", tmp_path / "shared.precomputed"
    result = precompute(em, alone, **SMALL)
    if "parts" in options:
        for index in (1, 2):
            with pytest.raises(StageStopped, match="outstanding"):
                precompute(em, shared, run=RunOptions(workers=1, part=Part(index, 3)), **SMALL)
            with pytest.raises(IncompleteError):
                Volume.open(str(shared))
        other = precompute(em, shared, run=RunOptions(workers=1, part=Part(3, 3)), **SMALL)
    elif "cluster" in options:
        other = precompute(em, shared, run=RunOptions(cluster=dask_scheduler), **SMALL)
    else:
        other = precompute(em, shared, run=RunOptions(workers=2), **SMALL)
    assert other.figures() == result.figures()
    assert files_of(shared) == files_of(alone)


def test_same_job_again_does_nothing_and_another_is_refused(em: Volume, tmp_path: Path) -> None:
    first = precompute(em, tmp_path / "v.precomputed", mips=1)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "v.precomputed").rglob("*.shard")}
    second = precompute(em, tmp_path / "v.precomputed", mips=1)
    assert json.dumps(second.figures()) == json.dumps(first.figures())  # tuples are lists in JSON
    assert written == {path: path.stat().st_mtime_ns for path in written}
    with pytest.raises(OutputExistsError, match="--overwrite"):
        precompute(em, tmp_path / "v.precomputed", mips=2)
    precompute(em, tmp_path / "v.precomputed", mips=2, run=RunOptions(workers=1, overwrite=True))
    assert len(Volume.open(str(tmp_path / "v.precomputed")).levels) == 3


def test_stopped_job_is_resumed_without_doing_its_work_again(
    em: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kbrain_core.storage import precompute_volume as module

    precompute(em, tmp_path / "undisturbed.precomputed", **SMALL)
    work = module._precompute_block
    done: list[str] = []

    def fail_later(task: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(task.key)
        return work(task)

    monkeypatch.setattr(module, "_precompute_block", fail_later)
    with pytest.raises(KeyboardInterrupt):
        precompute(em, tmp_path / "v.precomputed", **SMALL)
    with pytest.raises(IncompleteError):
        Volume.open(str(tmp_path / "v.precomputed"))
    again: list[str] = []

    def remember(task: Any) -> Any:
        again.append(task.key)
        return work(task)

    monkeypatch.setattr(module, "_precompute_block", remember)
    precompute(em, tmp_path / "v.precomputed", **SMALL)
    assert not set(done) & set(again)
    assert files_of(tmp_path / "v.precomputed") == files_of(tmp_path / "undisturbed.precomputed")


def test_full_disk_is_seen_first(em: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "free_bytes", lambda path: 100_000)
    with pytest.raises(ResourceError, match="GB are free"):
        precompute(em, tmp_path / "v.precomputed")
    assert not (tmp_path / "v.precomputed").exists()


def test_dry_run_writes_nothing(em: Volume, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StageStopped, match="nothing was written"):
        precompute(em, tmp_path / "v.precomputed", run=RunOptions(dry_run=True))
    assert "Plan:" in capsys.readouterr().err
    assert not (tmp_path / "v.precomputed").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "jpeg", "channel": ["0"]}, "pass --window"),
        ({"encoding": "jpeg", "window": "percentile"}, "1 or 3 channels"),
        ({"channel": ["2"]}, "has the channels DAPI, GFP"),
        ({"channel": ["0", "DAPI"]}, "give each once"),
        ({"time_point": 2}, "the volume has 2 time points"),
        ({"window": "5"}, "low below high"),
        ({"window": "9,3"}, "low below high"),
        ({"window": "nan,3"}, "low below high"),
        ({"kind": "labels", "window": "1,2"}, "labels must stay"),
        ({"kind": "labels", "encoding": "jpeg"}, "compressed with loss"),
        ({"bbox": Box(x=(0, 71))}, "the volume has x=0:70"),
        ({"quality": 0}, "at least 1"),
        ({"mips": -1}, "at least 0"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    two_channels: Volume, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        precompute(two_channels, tmp_path / "v.precomputed", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "v.precomputed").exists()


def test_unknown_voxel_size_is_asked_for(tmp_path: Path) -> None:
    source = write_volume(tmp_path / "s.ome.zarr", np.ones((1, 1, 2, 8, 8), np.uint8), voxel_size_nm=None)
    with pytest.raises(InputError, match="--voxel-size"):
        precompute(source, tmp_path / "v.precomputed")
    precompute(source, tmp_path / "v.precomputed", voxel_size=VoxelSize.from_text("x=4nm,y=4nm,z=40nm"))
    assert Volume.open(str(tmp_path / "v.precomputed")).voxel_size_nm == (40.0, 4.0, 4.0)


def test_ids_beyond_2_to_the_63_are_refused(tmp_path: Path) -> None:
    import zarr

    labels = np.full((2, 8, 8), 2**63, np.uint64)
    group = zarr.open_group(tmp_path / "s", mode="w", zarr_format=2)
    group.create_array("0", data=labels)
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["multiscales"] = [{"axes": axes, "datasets": datasets}]
    group.attrs["image-label"] = {"version": "0.4"}
    with pytest.raises(InputError, match="below 2\\^63"):
        precompute_volume(str(tmp_path / "s"), str(tmp_path / "v.precomputed"), run=ONE)
    assert not (tmp_path / "v.precomputed" / ".kbrain" / "complete").exists()


def test_unfinished_input_is_refused(em: Volume, tmp_path: Path) -> None:
    source = write_volume(tmp_path / "s.ome.zarr", np.ones((1, 1, 2, 8, 8), np.uint8))
    store.write_bytes(store.join(source.uri, ".kbrain", "job.json"), b"{}")
    with pytest.raises(IncompleteError):
        precompute(source, tmp_path / "v.precomputed")


def test_source_that_changed_is_noticed_on_resume(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 255, (1, 1, 21, 60, 60), np.uint8)
    source = write_volume(tmp_path / "s.ome.zarr", voxels, mips=0)
    with pytest.raises(StageStopped):
        precompute(source, tmp_path / "v.precomputed", run=RunOptions(workers=1, part=Part(1, 2)), **SMALL)
    write_volume(tmp_path / "s.ome.zarr", voxels[..., ::-1], mips=0)
    with pytest.raises(InputError, match="changed since"):
        precompute(source, tmp_path / "v.precomputed", run=RunOptions(workers=1, part=Part(2, 2)), **SMALL)


def test_command_fails_in_one_line(
    two_channels: Volume, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "precompute-volume",
        "--input",
        two_channels.uri,
        "--output",
        str(tmp_path / "v.precomputed"),
    ]
    assert main([*arguments, "--encoding", "jpeg", "--channel", "0"]) != 0
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--window" in line
    assert (
        main(
            [*arguments, "--window", "percentile", "--bbox", "x=0:64,y=0:32", "--mips", "1", "--workers", "1"]
        )
        == 0
    )
    assert Volume.open(str(tmp_path / "v.precomputed")).shape == (1, 2, 9, 32, 64)


@pytest.mark.parametrize("name", ["light-sheet/signal.tif", "fib25/labels.tif"])
def test_real_volumes_come_back(shared_data: Path, tmp_path: Path, name: str) -> None:
    import tifffile

    voxels = tifffile.imread(shared_data / name)[:24, :300, :250]
    kind = "labels" if "labels" in name else "image"
    source = write_volume(tmp_path / "s.ome.zarr", voxels[None, None], kind=kind, mips=0)
    result = precompute(source, tmp_path / "v.precomputed", mips=2)
    np.testing.assert_array_equal(voxels_of(tmp_path / "v.precomputed")[0, 0], voxels)
    if kind == "image":
        # The bound that is asked for; 16-bit data of a mean near 1000 would show any truncation.
        assert result.largest_mean_shift_grey is not None
        assert result.largest_mean_shift_grey < 0.1
