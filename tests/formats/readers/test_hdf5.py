"""HDF5 files written by h5py: plain data sets, Imaris, BigDataViewer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from kbrain_core.errors import InputError
from kbrain_core.formats.readers import open_image

Read = Callable[..., np.ndarray]


def test_the_only_data_set_and_a_chosen_one(tmp_path: Path, planted: np.ndarray, read_all: Read) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["entry/volume"] = planted[0, 0]
        file["entry/volume"].attrs["element_size_um"] = (2.0, 0.4, 0.5)
        file["entry/volume/"].attrs["note"] = "x"
        file["names"] = np.array([1, 2, 3])  # no image
    with open_image(path) as reader:
        assert reader.images[0].voxel_size_um == (2.0, 0.4, 0.5)
        np.testing.assert_array_equal(read_all(reader)[0, 0], planted[0, 0])
    with h5py.File(path, "a") as file:
        file.create_dataset("all", data=planted, chunks=(1, 1, 2, 16, 16), compression="gzip")
    with pytest.raises(InputError, match=r"2 data sets.*all, entry/volume"):
        open_image(path)
    with open_image(path, "all") as reader:
        assert reader.images[0].block_zyx == (2, 16, 16)
        np.testing.assert_array_equal(read_all(reader), planted)
    with pytest.raises(InputError, match=r"no data set nothing\. It has: all, entry/volume"):
        open_image(path, "nothing")


@pytest.mark.parametrize("how", ["labels", "axistags"])
def test_axes_from_attributes(tmp_path: Path, planted: np.ndarray, read_all: Read, how: str) -> None:
    path = tmp_path / "ilastik.h5"
    axes = "xzyc"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("exported", data=planted[0].transpose(3, 1, 2, 0))  # czyx -> xzyc
        if how == "labels":
            for number, axis in enumerate(axes):
                data.dims[number].label = axis
        else:
            data.attrs["axistags"] = json.dumps({"axes": [{"key": axis} for axis in axes]})
    with open_image(path) as reader:
        np.testing.assert_array_equal(read_all(reader), planted[:1])
        np.testing.assert_array_equal(
            reader.read(0, 0, 2, slice(1, 3), slice(4, 9), slice(0, 11)), planted[0, 2, 1:3, 4:9, 0:11]
        )


def test_pixels_in_other_files_are_refused(tmp_path: Path, planted: np.ndarray) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["data"] = planted[0, 0]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["linked"] = h5py.ExternalLink("secret.h5", "data")
        layout = h5py.VirtualLayout(planted[0, 0].shape, planted.dtype)
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "data", planted[0, 0].shape)
        file.create_virtual_dataset("virtual", layout)
        external = [(str(tmp_path / "raw.bin"), 0, planted[0, 0].nbytes)]
        file.create_dataset("external", planted[0, 0].shape, planted.dtype, external=external)
    for name in ("linked", "virtual", "external"):
        with pytest.raises(InputError, match="kept in another file"):
            open_image(tmp_path / "a.h5", name)


def test_truncated(tmp_path: Path, planted: np.ndarray) -> None:
    path = tmp_path / "cut.h5"
    with h5py.File(path, "w") as file:
        file["a"] = planted
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"cut\.h5 cannot be read .*truncated"):
        open_image(path)


def _text(value: str) -> np.ndarray:
    """Imaris keeps texts as arrays of single characters."""
    return np.array([character.encode() for character in value], "S1")


def test_imaris(tmp_path: Path, planted: np.ndarray, read_all: Read) -> None:
    path = tmp_path / "a.ims"
    times, channels, depth, height, width = planted.shape
    with h5py.File(path, "w") as file:
        image = file.create_group("DataSetInfo/Image")
        facts = {
            "X": str(width), "Y": str(height), "Z": str(depth), "Unit": "um", "Name": "brain",
            "ExtMin0": "10", "ExtMax0": str(10 + 0.5 * width), "ExtMin1": "-5", "ExtMax1": str(-5 + 0.4 * height),
            "ExtMin2": "0", "ExtMax2": str(2.0 * depth), "RecordingDate": "2020-01-02 03:04:05.678",
        }  # fmt: skip
        for key, value in facts.items():
            image.attrs[key] = _text(value)
        for channel, name in enumerate(("red", "green", "(name not specified)")):
            file.create_group(f"DataSetInfo/Channel {channel}").attrs["Name"] = _text(name)
        for t in range(times):
            for c in range(channels):
                padded = np.zeros((8, 64, 64), np.uint16)
                padded[:depth, :height, :width] = planted[t, c]
                group = f"DataSet/ResolutionLevel 0/TimePoint {t}/Channel {c}"
                file.create_dataset(f"{group}/Data", data=padded, chunks=(4, 32, 32), compression="gzip")
                file[group]["Histogram"] = np.zeros(256, np.uint64)
    with open_image(path) as reader:
        info = reader.images[0]
        assert info.shape == planted.shape and info.name == "brain"
        assert info.voxel_size_um == pytest.approx((2.0, 0.4, 0.5))
        assert info.channel_names == ("red", "green", "2")
        assert info.acquired_at == "2020-01-02T03:04:05"
        np.testing.assert_array_equal(read_all(reader), planted)


BDV = """<?xml version="1.0"?><SpimData version="0.2"><BasePath type="relative">.</BasePath><SequenceDescription>
<ImageLoader format="bdv.hdf5"><hdf5 type="relative">{store}</hdf5></ImageLoader><ViewSetups>
{setups}<Attributes name="channel"><Channel><id>0</id><name>DAPI</name></Channel>
<Channel><id>1</id><name>GFP</name></Channel></Attributes></ViewSetups></SequenceDescription></SpimData>"""
BDV_SETUP = """<ViewSetup><id>{number}</id><size>47 33 4</size><voxelSize><unit>um</unit><size>0.5 0.4 2.0</size></voxelSize>
<attributes><channel>{channel}</channel><angle>{angle}</angle><illumination>0</illumination></attributes></ViewSetup>"""


def _write_big_data_viewer(folder: Path, planted: np.ndarray, store: str = "a.h5") -> Path:
    """Two angles of two channels at two time points: setup = 2 * angle + channel."""
    setups = "".join(BDV_SETUP.format(number=n, channel=n % 2, angle=n // 2) for n in range(4))
    (folder / "a.xml").write_text(BDV.format(setups=setups, store=store))
    with h5py.File(folder / "a.h5", "w") as file:
        for setup in range(4):
            file[f"s{setup:02d}/resolutions"] = np.ones((1, 3))
            for t in range(2):
                data = (planted[t, setup % 2] + 1000 * (setup // 2)).astype(np.uint16)
                file[f"t{t:05d}/s{setup:02d}/0/cells"] = data.view(np.int16)  # as Java writes it
    return folder / "a.xml"


@pytest.mark.parametrize("given", ["a.xml", "a.h5"])
def test_big_data_viewer(tmp_path: Path, planted: np.ndarray, read_all: Read, given: str) -> None:
    shifted = planted + np.uint16(20000)  # above 32767: signed reading would show
    _write_big_data_viewer(tmp_path, shifted)
    with open_image(tmp_path / given) as reader:
        assert len(reader.images) == 2
        info = reader.images[1]
        assert info.shape == (2, 2, 4, 33, 47) and info.dtype == np.uint16
        assert info.voxel_size_um == (2.0, 0.4, 0.5) and info.channel_names == ("DAPI", "GFP")
        np.testing.assert_array_equal(read_all(reader, 1), shifted[:, :2] + np.uint16(1000))


def test_big_data_viewer_without_xml_and_with_a_bad_one(
    tmp_path: Path, planted: np.ndarray, read_all: Read
) -> None:
    xml = _write_big_data_viewer(tmp_path, planted, store="../a.h5")
    with pytest.raises(InputError, match="not beside it"):
        open_image(xml)
    xml.unlink()
    with open_image(tmp_path / "a.h5") as reader:
        assert len(reader.images) == 4
        np.testing.assert_array_equal(read_all(reader, 1)[:, 0], planted[:, 1])
