"""convert-image on planted images: nothing is lost on the way, and bad input is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kbrain_core import cli
from kbrain_core.errors import CheckFailedError, InputError, KBrainError, OutputExistsError, StageStopped
from kbrain_core.formats.readers import open_image, pictures
from kbrain_core.formats.volume import Volume, write_region
from kbrain_core.formats.volume_spec import VolumeSpec
from kbrain_core.geometry import Box, VoxelSize
from kbrain_core.ingest import convert_image as module
from kbrain_core.ingest.convert_image import convert_image
from kbrain_core.numerics.volumes.volume_writer import VolumeWriter
from kbrain_core.stage import Part, RunOptions

ONE = RunOptions(workers=1)
ALL = (slice(None),) * 5
SIZE_UM = VoxelSize.from_um(2.0, 0.5, 0.5)


@pytest.fixture(scope="module")
def planted() -> np.ndarray:
    """(t, c, z, y, x) = (2, 3, 10, 70, 90), noise: a wrong voxel cannot hide."""
    return np.random.default_rng(0).integers(0, 60000, (2, 3, 10, 70, 90), dtype=np.uint16)


@pytest.fixture(scope="module")
def image(planted: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "image.ome.tif"
    metadata = {
        "axes": "TCZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0,
        "Channel": {"Name": ["DAPI", "GFP", "Cy5"]},
    }  # fmt: skip
    tifffile.imwrite(path, planted, metadata=metadata, compression="zlib", rowsperstrip=16)
    return path


def _convert(source: Path | list[Path], output: Path, run: RunOptions = ONE, **options: Any) -> Volume:
    paths = source if isinstance(source, list) else [source]
    convert_image([str(path) for path in paths], str(output), run=run, **options)
    return Volume.open(str(output))


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_axes_voxel_size_and_channels_are_kept(
    tmp_path: Path, image: Path, planted: np.ndarray, version: Any
) -> None:
    result = convert_image(
        [str(image)], str(tmp_path / "a.ome.zarr"), ngff_version=version, verify=True, run=ONE
    )
    assert result.verified_voxels == planted.size and result.voxel_size_from == "OME-XML"
    volume = Volume.open(str(tmp_path / "a.ome.zarr"))
    assert volume.shape == planted.shape and volume.dtype == planted.dtype and volume.kind == "image"
    assert volume.voxel_size_nm == (2000.0, 500.0, 500.0)
    assert volume.channel_names == ("DAPI", "GFP", "Cy5")
    np.testing.assert_array_equal(volume.read(ALL), planted)
    assert (tmp_path / "a.ome.zarr-report.html").is_file()
    figures = json.loads((tmp_path / "a.ome.zarr-summary.json").read_text())["figures"]
    assert figures["z_planes"] == 10 and figures["voxel_size_z_um"] == 2.0


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_box_and_channels(tmp_path: Path, image: Path, planted: np.ndarray, data: st.DataObject) -> None:
    cuts = []
    for size in planted.shape[2:]:
        low = data.draw(st.integers(0, size - 1))
        cuts.append((low, data.draw(st.integers(low + 1, size))))
    channels = data.draw(st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=3, unique=True))
    names = [("DAPI", "1", "Cy5")[c] for c in channels]  # by name and by number
    box = Box(*cuts)
    volume = _convert(
        image, tmp_path / "b.ome.zarr", RunOptions(workers=1, overwrite=True), bbox=box, channel=names
    )
    expected = planted[:, channels][(..., *box.slices(planted.shape[2:]))]
    np.testing.assert_array_equal(volume.read(ALL), expected)
    # the box remembers where it was, in nm
    assert volume.offset_nm == (cuts[0][0] * 2000.0, cuts[1][0] * 500.0, cuts[2][0] * 500.0)


@pytest.mark.parametrize(
    "box", [Box(x=(7, 8)), Box(y=(7, 8)), Box(z=(7, 8)), Box(z=(2, 4)), Box((0, 1), (0, 1), (0, 1))]
)
def test_thin_boxes(tmp_path: Path, image: Path, planted: np.ndarray, box: Box) -> None:
    volume = _convert(image, tmp_path / "thin.ome.zarr", bbox=box, channel=["GFP"])
    np.testing.assert_array_equal(volume.read(ALL), planted[:, 1:2][(..., *box.slices(planted.shape[2:]))])


def test_real_light_sheet_stack(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "light-sheet" / "signal.tif"
    output = tmp_path / "signal.ome.zarr"
    size = VoxelSize.from_um(5, 2, 2)
    result = convert_image([str(source)], str(output), voxel_size=size, verify=True, run=ONE)
    stack = tifffile.imread(source)
    assert result.verified_voxels == stack.size
    volume = Volume.open(str(output))
    np.testing.assert_array_equal(volume.read(ALL)[0, 0], stack)
    assert volume.voxel_size_nm == (5000.0, 2000.0, 2000.0) and len(volume.levels) > 1


def test_parts_and_workers_give_the_same_volume(tmp_path: Path, image: Path, planted: np.ndarray) -> None:
    for index in (1, 2):
        run = RunOptions(workers=1, part=Part(index, 2))
        try:
            result = convert_image([str(image)], str(tmp_path / "parts.ome.zarr"), verify=True, run=run)
            assert index == 2 and result.verified_voxels == planted.size
        except StageStopped:
            assert index == 1
    _convert(image, tmp_path / "workers.ome.zarr", RunOptions(workers=2))
    for name in ("parts", "workers"):
        np.testing.assert_array_equal(Volume.open(str(tmp_path / f"{name}.ome.zarr")).read(ALL), planted)


def test_labels_are_recognised_and_never_averaged(tmp_path: Path) -> None:
    labels = np.zeros((8, 300, 300), np.int32)
    labels[:, 100:200, 100:250] = 70001
    with h5py.File(tmp_path / "seg.h5", "w") as file:
        file["labels"] = labels
    volume = _convert(tmp_path / "seg.h5", tmp_path / "seg.ome.zarr", voxel_size=SIZE_UM)
    assert volume.kind == "labels" and volume.dtype == np.uint32
    for level in range(len(volume.levels)):
        assert set(np.unique(volume.read(ALL, level))) == {0, 70001}
    with h5py.File(tmp_path / "seg.h5", "a") as file:
        file["labels"][3, 5, 7] = -1
    with pytest.raises(InputError, match="label -1"):
        _convert(tmp_path / "seg.h5", tmp_path / "negative.ome.zarr", voxel_size=SIZE_UM)


def test_ome_zarr_is_converted_with_its_place(tmp_path: Path, image: Path, planted: np.ndarray) -> None:
    first = _convert(image, tmp_path / "first.ome.zarr", bbox=Box(z=(2, 8), y=(10, 60), x=(20, 90)))
    second = _convert(tmp_path / "first.ome.zarr", tmp_path / "second.ome.zarr", bbox=Box(x=(5, 60)))
    assert first.offset_nm == (4000.0, 5000.0, 10000.0)
    assert second.offset_nm == (4000.0, 5000.0, 12500.0)
    np.testing.assert_array_equal(second.read(ALL), planted[:, :, 2:8, 10:60, 25:80])


def test_planes_of_a_series_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planes = np.random.default_rng(0).integers(0, 255, (70, 300, 520), dtype=np.uint8)
    (tmp_path / "planes").mkdir()
    for number, plane in enumerate(planes):
        (tmp_path / "planes" / f"{number}.png").write_bytes(imagecodecs.png_encode(plane, level=1))
    # a volume's own blocks of 2 MB would be columns, which decode every plane many times
    monkeypatch.setitem(VolumeSpec.plan.__func__.__kwdefaults__, "task_bytes", 1 << 21)
    decoded: list[str] = []
    original = pictures.PictureReader._decode

    def counted(self: pictures.PictureReader) -> np.ndarray:
        decoded.append(self.path)
        return original(self)

    monkeypatch.setattr(pictures.PictureReader, "_decode", counted)
    volume = _convert(tmp_path / "planes", tmp_path / "a.ome.zarr", voxel_size=VoxelSize.from_text("10nm"))
    np.testing.assert_array_equal(volume.read(ALL)[0, 0], planes)
    assert len(decoded) == len(set(decoded)) == 70


def test_files_given_one_by_one_keep_their_order(tmp_path: Path, planted: np.ndarray) -> None:
    paths = [tmp_path / f"{name}.tif" for name in "cab"]
    for path, plane in zip(paths, planted[0, 0], strict=False):
        tifffile.imwrite(path, plane)
    volume = _convert(paths, tmp_path / "a.ome.zarr", voxel_size=SIZE_UM)
    np.testing.assert_array_equal(volume.read(ALL)[0, 0], planted[0, 0, :3])


def test_verify_finds_a_wrong_voxel(tmp_path: Path, image: Path, planted: np.ndarray) -> None:
    output = str(tmp_path / "a.ome.zarr")
    source, _, spec, _ = module._plan_volume([str(image)], None, None, None, Box(), None, "auto", "0.5")
    _convert(image, tmp_path / "a.ome.zarr")
    task = module._tasks(source, VolumeWriter(output, spec), verify=True)[1]
    assert module.verify_block(task) == planted[0, 0].size
    wrong = planted[0, 1].copy()
    wrong[4, 5, 6] += 1
    write_region(output, spec, 0, 0, 1, (0, 0, 0), wrong[None])
    with pytest.raises(CheckFailedError, match=r"1 voxels .* at \(z, y, x\) = \(4, 5, 6\)"):
        module.verify_block(task)
    module._close_reader()


def test_voxel_size_of_some_axes_must_be_completed(tmp_path: Path, planted: np.ndarray) -> None:
    source = tmp_path / "a.tif"
    stack = planted[0, 0]
    options: dict[str, Any] = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(source, stack, photometric="minisblack", metadata=None, **options)
    with pytest.raises(InputError, match=r"unknown along z.*--voxel-size"):
        _convert(source, tmp_path / "a.ome.zarr")
    volume = _convert(source, tmp_path / "a.ome.zarr", voxel_size=VoxelSize(z_nm=2000.0))
    assert volume.voxel_size_nm == pytest.approx((2000.0, 500.0, 500.0))


def test_unknown_voxel_size_is_a_warning(tmp_path: Path, planted: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "a.tif", planted[0, 0, 0])
    result = convert_image([str(tmp_path / "a.tif")], str(tmp_path / "a.ome.zarr"), run=ONE)
    assert result.voxel_size_x_um is None and "voxel size is unknown" in result.warnings[0]


def _refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command; it must fail with one line, which is returned."""
    assert cli.main(["convert-image", *arguments, "--workers", "1"]) != 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("kbrain convert-image: ")
    assert sum("kbrain convert-image" in line for line in lines) == 1
    return lines[-1]


def test_bad_input_is_refused_in_one_line(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.ome.tif"
    cut.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    unknown = tmp_path / "notes.docx"
    unknown.write_bytes(b"PK" * 300)
    sets = tmp_path / "two.h5"
    with h5py.File(sets, "w") as file:
        file["a"] = file["b"] = np.zeros((4, 5, 6), np.uint8)
    tiles = tmp_path / "tiles.ome.tif"
    with tifffile.TiffWriter(tiles, ome=True) as writer:
        for _ in range(2):
            writer.write(np.zeros((20, 30), np.uint8), metadata={"axes": "YX"})
    out = ("--output", str(tmp_path / "out.ome.zarr"))
    assert "truncated or damaged" in _refused(capsys, "--input", str(cut), *out)
    assert "no known image format" in _refused(capsys, "--input", str(unknown), *out)
    assert "choose one with --dataset (a, b)" in _refused(capsys, "--input", str(sets), *out)
    assert "no data set c" in _refused(capsys, "--input", str(sets), *out, "--dataset", "c")
    assert "choose one with --series" in _refused(capsys, "--input", str(tiles), *out)
    assert "DAPI, GFP, Cy5" in _refused(capsys, "--input", str(image), *out, "--channel", "dapi")
    assert "z=0:99" in _refused(capsys, "--input", str(image), *out, "--bbox", "z=0:99")
    assert not (tmp_path / "out.ome.zarr" / ".kbrain" / "complete").exists()


def test_damage_found_while_converting_leaves_nothing_finished(tmp_path: Path, planted: np.ndarray) -> None:
    source = tmp_path / "bad.tif"
    tifffile.imwrite(source, planted[0, 0], photometric="minisblack", compression="zlib")
    with tifffile.TiffFile(source) as tif:
        offset, count = tif.pages[7].dataoffsets[0], tif.pages[7].databytecounts[0]
    content = bytearray(source.read_bytes())
    content[offset + 2 : offset + count] = bytes(count - 2)
    source.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.tif cannot be read"):
        _convert(source, tmp_path / "a.ome.zarr")
    with pytest.raises(KBrainError, match="incomplete"):
        Volume.open(str(tmp_path / "a.ome.zarr"))


def test_output_that_exists_and_a_source_that_changed(tmp_path: Path, planted: np.ndarray) -> None:
    source, output = tmp_path / "a.tif", tmp_path / "a.ome.zarr"
    tifffile.imwrite(source, planted[0, 0], photometric="minisblack")
    output.mkdir()
    (output / "mine.txt").write_text("keep me")
    with pytest.raises(OutputExistsError):
        _convert(source, output)
    (output / "mine.txt").unlink()
    _convert(source, output)
    (output / ".kbrain" / "complete").unlink()  # as if it had been killed before the end
    tifffile.imwrite(source, planted[0, 1], photometric="minisblack")
    with pytest.raises(InputError, match="changed since"):
        _convert(source, output)


def test_reader_is_closed_after_the_stage(tmp_path: Path, image: Path) -> None:
    _convert(image, tmp_path / "a.ome.zarr")
    assert module._reader is None
    with open_image(image) as reader:
        assert reader.images[0].block_zyx == (1, 16, 90)


def _planned(shape_zyx: tuple[int, int, int], dtype: str = "uint8") -> VolumeSpec:
    return VolumeSpec.plan((1, 1, *shape_zyx), dtype, voxel_size_nm=(10.0, 10.0, 10.0))


def test_blocks_hold_whole_planes_where_memory_allows() -> None:
    shape = (500, 3000, 3000)
    whole_planes = module.choose_block((1, 3000, 3000), _planned(shape), 2**30)
    assert whole_planes == (None, (64, 3008, 3008))  # 579 MB
    # 800 MB of planes 64 deep exceed 300 MB, 32 deep they fit: chunks become flatter, of the same 2^18 voxels
    chunk, block = module.choose_block((1, 3000, 3000), _planned(shape), 320_000_000) or ((), ())
    assert chunk == (32, 128, 64) and block == (32, 3072, 3008)


def test_blocks_of_planes_larger_than_memory_are_bands_of_rows() -> None:
    chunk, block = module.choose_block((1, 40000, 40000), _planned((500, 40000, 40000)), 2**30) or ((), ())
    assert chunk[0] == 8 and np.prod(chunk) == 2**18
    assert block[0] == 8 and block[1] < 40000 <= block[2] and 2**29 < np.prod(block) <= 2**30


@pytest.mark.parametrize("source_block", [(1, 1, 300), (64, 64, 64), (1, 200, 300)])
def test_blocks_that_serve_are_left_as_they_are(source_block: tuple[int, int, int]) -> None:
    assert module.choose_block(source_block, _planned((100, 200, 300)), 2**30) is None
