"""TIFF written by tifffile, read by ours: values, axes, calibration, partial reads, damage."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kbrain_core.errors import InputError
from kbrain_core.formats.readers import open_image, read_tile
from kbrain_core.formats.tables import Tile

Read = Callable[..., np.ndarray]
CALIBRATED = {
    "axes": "TCZYX",
    "PhysicalSizeX": 0.5,
    "PhysicalSizeY": 400.0,
    "PhysicalSizeYUnit": "nm",
    "PhysicalSizeZ": 2.0,
    "PhysicalSizeZUnit": "µm",
    "Channel": {"Name": ["DAPI", "GFP", "Cy5"]},
    "SignificantBits": 12,
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib", "predictor": True, "rowsperstrip": 7},
        {"compression": "lzw", "tile": (16, 32)},
        {"compression": "zstd", "tile": (16, 16), "byteorder": ">"},
        {"byteorder": ">", "bigtiff": True},
    ],
)
def test_ome_tiff_keeps_values_axes_and_calibration(
    tmp_path: Path, planted: np.ndarray, read_all: Read, options: dict[str, Any]
) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, planted, metadata=CALIBRATED, **options)
    with open_image(path) as reader:
        (info,) = reader.images
        assert info.shape == planted.shape
        assert info.dtype == np.uint16 and info.bits == 12
        assert info.voxel_size_um == (2.0, 0.4, 0.5) and info.voxel_size_from == "OME-XML"
        assert info.channel_names == ("DAPI", "GFP", "Cy5")
        np.testing.assert_array_equal(read_all(reader), planted)


def test_ome_dimension_orders_are_all_read_as_tczyx(
    tmp_path: Path, planted: np.ndarray, read_all: Read
) -> None:
    for axes in ("TCZYX", "TZCYX", "CTZYX", "CZTYX", "ZCTYX", "ZTCYX"):
        path = tmp_path / f"{axes}.ome.tif"
        stored = planted.transpose(["TCZYX".index(axis) for axis in axes])
        tifffile.imwrite(path, stored, metadata={"axes": axes}, photometric="minisblack")
        with open_image(path) as reader:
            np.testing.assert_array_equal(read_all(reader), planted, err_msg=axes)


def test_one_image_per_tile_with_stage_positions(tmp_path: Path) -> None:
    path = tmp_path / "mosaic.ome.tif"
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 255, (3, 20, 30), dtype=np.uint8)
    with tifffile.TiffWriter(path, ome=True) as writer:
        for index, tile in enumerate(tiles):
            plane = {
                "PositionX": [0.01 * index], "PositionXUnit": ["mm"],
                "PositionY": [-5.0], "PositionYUnit": ["µm"],
                "PositionZ": [7.5], "PositionZUnit": ["µm"],
            }  # fmt: skip
            writer.write(tile, metadata={"axes": "YX", "Name": f"tile {index}", "Plane": plane})
    with open_image(path) as reader:
        assert [info.name for info in reader.images] == ["tile 0", "tile 1", "tile 2"]
        assert [info.stage_um for info in reader.images] == [
            (7.5, -5.0, 0.0),
            (7.5, -5.0, 10.0),
            (7.5, -5.0, 20.0),
        ]
    np.testing.assert_array_equal(read_tile(Tile(name=path.name, series=2), tmp_path), tiles[2:])


def _set_of_files(folder: Path, planted: np.ndarray) -> list[Path]:
    """An OME-TIFF of one file per channel; each file's XML describes the whole set."""
    _, channels, depth, height, width = planted.shape
    names = [f"c{c}.ome.tif" for c in range(channels)]
    data = "".join(
        f'<TiffData FirstC="{c}" FirstZ="{z}" IFD="{z}" PlaneCount="1">'
        f'<UUID FileName="{name}">urn:uuid:{c:08d}-0000-0000-0000-000000000000</UUID></TiffData>'
        for c, name in enumerate(names)
        for z in range(depth)
    )
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'UUID="urn:uuid:{own:08d}-0000-0000-0000-000000000000"><Image ID="Image:0" Name="set">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="{width}" SizeY="{height}" '
        f'SizeZ="{depth}" SizeC="{channels}" SizeT="1" PhysicalSizeX="0.5" PhysicalSizeY="0.5" PhysicalSizeZ="1">'
        + "".join(
            f'<Channel ID="Channel:0:{c}" Name="dye {c}" SamplesPerPixel="1"/>' for c in range(channels)
        )
        + data
        + "".join(f'<Plane TheZ="0" TheC="{c}" TheT="0" PositionX="{100 * c}"/>' for c in range(channels))
        + "</Pixels></Image></OME>"
    )
    paths = [folder / name for name in names]
    for c, path in enumerate(paths):
        tifffile.imwrite(
            path, planted[0, c], description=xml.format(own=c), metadata=None, photometric="minisblack"
        )
    return paths


def test_a_set_of_files_is_one_image_or_a_tile_each(
    tmp_path: Path, planted: np.ndarray, read_all: Read
) -> None:
    paths = _set_of_files(tmp_path, planted)
    with open_image(paths[1]) as reader:
        assert reader.images[0].shape == (1, 3, 4, 33, 47)
        assert set(reader.files) == {paths[0], paths[2]}
        np.testing.assert_array_equal(read_all(reader), planted[:1])
    with open_image(paths[1], whole_set=False) as reader:
        (info,) = reader.images
        assert info.shape == (1, 1, 4, 33, 47) and info.channel_names == ("dye 1",)
        assert info.stage_um == (None, None, 100.0)
        np.testing.assert_array_equal(read_all(reader), planted[:1, 1:2])
    paths[2].unlink()
    with open_image(paths[0]) as reader, pytest.raises(InputError, match=r"c2\.ome\.tif is not beside it"):
        read_all(reader)


def test_a_folder_with_a_set_of_files_is_that_set(
    tmp_path: Path, planted: np.ndarray, read_all: Read
) -> None:
    _set_of_files(tmp_path, planted)
    with open_image(tmp_path) as reader:
        np.testing.assert_array_equal(read_all(reader), planted[:1])


def test_companion_file_holds_the_metadata(tmp_path: Path, planted: np.ndarray, read_all: Read) -> None:
    paths = _set_of_files(tmp_path, planted)
    (tmp_path / "set.companion.ome").write_text(tifffile.tiffcomment(paths[0]), encoding="utf-8")
    pointer = '<?xml version="1.0"?><OME xmlns="x"><BinaryOnly MetadataFile="set.companion.ome" UUID="urn:x"/></OME>'
    for path in paths:
        tifffile.tiffcomment(path, pointer)
    with open_image(paths[2]) as reader:
        assert reader.images[0].channel_names == ("dye 0", "dye 1", "dye 2")
        np.testing.assert_array_equal(read_all(reader), planted[:1])
    (tmp_path / "set.companion.ome").unlink()
    with pytest.raises(InputError, match=r"keeps its metadata in set\.companion\.ome"):
        open_image(paths[2])


def test_a_renamed_file_is_still_itself(tmp_path: Path, planted: np.ndarray, read_all: Read) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    path = _set_of_files(folder, planted[:, :1])[0].rename(folder / "renamed.tif")
    for whole_set in (True, False):
        with open_image(path, whole_set=whole_set) as reader:
            np.testing.assert_array_equal(read_all(reader), planted[:1, :1])


def test_a_set_may_not_name_files_elsewhere(tmp_path: Path, planted: np.ndarray) -> None:
    path = _set_of_files(tmp_path, planted)[0]
    tifffile.tiffcomment(path, tifffile.tiffcomment(path).replace("c2.ome.tif", "../c2.ome.tif"))
    with pytest.raises(InputError, match="outside its own folder"):
        open_image(path)


def test_xml_with_entities_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.ome.tif"
    xml = '<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY a "aaaa">]><OME xmlns="x"><Image Name="&a;"/></OME>'
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8), description=xml, metadata=None)
    with pytest.raises(InputError, match="declares entities"):
        open_image(path)


def test_imagej_hyperstack(tmp_path: Path, planted: np.ndarray, read_all: Read) -> None:
    path = tmp_path / "ij.tif"
    metadata = {"axes": "TZCYX", "spacing": 3.0, "unit": "micron"}
    tifffile.imwrite(
        path, planted.transpose(0, 2, 1, 3, 4), imagej=True, resolution=(2.0, 2.5), metadata=metadata
    )
    with open_image(path) as reader:
        info = reader.images[0]
        assert info.voxel_size_um == (3.0, 0.4, 0.5) and info.voxel_size_from == "ImageJ description"
        np.testing.assert_array_equal(read_all(reader), planted)


def test_imagej_file_with_one_page_for_all_planes(
    tmp_path: Path, planted: np.ndarray, read_all: Read
) -> None:
    """ImageJ writes stacks above 4 GB with a single directory entry; the planes follow without one."""
    path = tmp_path / "virtual.tif"
    stack = planted[0, 0]
    description = f"ImageJ=1.53\nimages={len(stack)}\nslices={len(stack)}\n"
    tifffile.imwrite(path, stack[0], description=description, metadata=None, byteorder=">")
    with path.open("ab") as file:  # the first plane's strip is last in the file, the others go behind it
        file.write(stack[1:].astype(">u2").tobytes())
    with open_image(path) as reader:
        np.testing.assert_array_equal(read_all(reader)[0, 0], stack)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError):
        open_image(path)


@pytest.mark.parametrize("planar", [False, True])
def test_colour_samples_are_channels(tmp_path: Path, read_all: Read, planar: bool) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (3, 33, 47), dtype=np.uint8)
    path = tmp_path / "rgb.tif"
    stored = colours if planar else colours.transpose(1, 2, 0)
    config = "separate" if planar else "contig"
    tifffile.imwrite(path, stored, photometric="rgb", planarconfig=config, compression="zlib", rowsperstrip=5)
    with open_image(path) as reader:
        np.testing.assert_array_equal(read_all(reader)[0, :, 0], colours)


def test_rgb_ome_names_each_sample(tmp_path: Path, read_all: Read) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (2, 33, 47, 3), dtype=np.uint8)
    path = tmp_path / "rgb.ome.tif"
    metadata = {"axes": "ZYXS", "Channel": {"Name": "colour"}}
    tifffile.imwrite(path, colours, photometric="rgb", metadata=metadata)
    with open_image(path) as reader:
        assert reader.images[0].channel_names == ("colour 0", "colour 1", "colour 2")
        np.testing.assert_array_equal(read_all(reader)[0], colours.transpose(3, 0, 1, 2))


def test_12_bit_samples(tmp_path: Path, read_all: Read) -> None:
    image = np.random.default_rng(0).integers(0, 4096, (16, 24), dtype=np.uint16)
    bits = (image[..., None] >> np.arange(11, -1, -1)) & 1  # most significant first, no gap between samples
    path = tmp_path / "packed.tif"
    tifffile.imwrite(path, np.packbits(bits.reshape(16, -1).astype(np.uint8), axis=1), metadata=None)
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages.first.tags["ImageWidth"].overwrite(24)
        tif.pages.first.tags["BitsPerSample"].overwrite(12)
    with open_image(path) as reader:
        assert reader.images[0].bits == 12
        np.testing.assert_array_equal(read_all(reader)[0, 0, 0], image)


def test_sparse_tiles_are_zero(tmp_path: Path, read_all: Read) -> None:
    path = tmp_path / "sparse.tif"
    blocks = [np.ones((16, 16), np.uint8), None, None, np.full((16, 16), 4, np.uint8)]
    tifffile.imwrite(path, iter(blocks), shape=(32, 32), dtype=np.uint8, tile=(16, 16), compression="zlib")
    with open_image(path) as reader:
        found = read_all(reader)[0, 0, 0]
    assert (found[0, 0], found[0, 31], found[31, 0], found[31, 31]) == (1, 0, 0, 4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_box_is_the_box_of_the_whole(tmp_path: Path, planted: np.ndarray, data: st.DataObject) -> None:
    path = tmp_path / "box.ome.tif"
    if not path.exists():
        tifffile.imwrite(path, planted, metadata={"axes": "TCZYX"}, compression="zlib", tile=(16, 32))
    cuts = []
    for size in planted.shape[2:]:
        low = data.draw(st.integers(0, size))
        cuts.append(slice(low, data.draw(st.integers(low, size))))
    with open_image(path) as reader:
        np.testing.assert_array_equal(reader.read(0, 1, 2, *cuts), planted[1, 2][tuple(cuts)])


def test_only_the_strips_of_the_box_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "strips.tif"
    tifffile.imwrite(path, np.zeros((100, 64), np.uint16), compression="zlib", rowsperstrip=10)
    read: list[int] = []
    original = tifffile.FileHandle.read_segments

    def counted(self: Any, offsets: Any, *args: Any, **options: Any) -> Any:
        read.append(len(offsets))
        return original(self, offsets, *args, **options)

    monkeypatch.setattr(tifffile.FileHandle, "read_segments", counted)
    with open_image(path) as reader:
        reader.read(0, 0, 0, slice(None), slice(25, 41), slice(None))
    assert read == [3]  # rows 25 to 40 lie in the strips 20-29, 30-39 and 40-49


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.02, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["ome", "ome_zlib", "plain_lzw", "rgb"])
def test_a_truncated_file_is_never_read_in_silence(
    tmp_path: Path, planted: np.ndarray, read_all: Read, kind: str, kept: float
) -> None:
    path = tmp_path / "cut.tif"
    if kind == "rgb":
        tifffile.imwrite(path, planted[0].transpose(1, 2, 3, 0).astype(np.uint8), photometric="rgb")
    elif kind == "plain_lzw":
        tifffile.imwrite(path, planted[0, 0], photometric="minisblack", compression="lzw")
    else:
        tifffile.imwrite(path, planted, ome=True, compression="zlib" if kind == "ome_zlib" else None)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(InputError, match=r"cut\.tif") as refused, open_image(path) as reader:
        read_all(reader)
    assert "\n" not in str(refused.value) and "again" in str(refused.value)


def test_damaged_pixels_are_refused(tmp_path: Path, read_all: Read) -> None:
    path = tmp_path / "bad.tif"
    image = np.random.default_rng(0).integers(0, 9, (64, 64), dtype=np.uint8)
    tifffile.imwrite(path, image, compression="zlib")
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages.first.dataoffsets[0], tif.pages.first.databytecounts[0]
    content = bytearray(path.read_bytes())
    content[offset + 2 : offset + count] = bytes(count - 2)
    path.write_bytes(content)
    with open_image(path) as reader, pytest.raises(InputError, match=r"bad\.tif cannot be read"):
        read_all(reader)


def test_reader_is_pickled_by_path(tmp_path: Path, planted: np.ndarray, read_all: Read) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, planted, ome=True, metadata={"axes": "TCZYX"})
    with open_image(path) as reader:
        again = pickle.loads(pickle.dumps(reader))
    with again:
        np.testing.assert_array_equal(read_all(again), planted)


def test_reading_outside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((10, 12), np.uint8))
    whole = slice(None)
    with open_image(path) as reader:
        with pytest.raises(InputError, match="12 pixels along x"):
            reader.read(0, 0, 0, whole, whole, slice(0, 13))
        with pytest.raises(InputError, match="channel"):
            reader.read(0, 0, 1, whole, whole, whole)
        with pytest.raises(InputError, match="no series 1"):
            reader.read(1, 0, 0, whole, whole, whole)


def test_read_tile_finds_the_plane(tmp_path: Path, planted: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "t.ome.tif", planted, ome=True, metadata={"axes": "TCZYX"})
    page = (1 * 3 + 2) * 4 + 1  # time point 1, channel 2, plane 1
    tile = Tile(name="t.ome.tif", page=page, depth_px=2)
    np.testing.assert_array_equal(read_tile(tile, tmp_path), planted[1, 2, 1:3])


def test_real_light_sheet_stack(shared_data: Path, read_all: Read) -> None:
    path = shared_data / "light-sheet" / "signal.tif"
    with open_image(path) as reader:
        assert reader.images[0].shape == (1, 1, 26, 1116, 627)
        np.testing.assert_array_equal(read_all(reader)[0, 0], tifffile.imread(path))
