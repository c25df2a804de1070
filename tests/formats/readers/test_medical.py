"""NIfTI written by nibabel, NRRD written by pynrrd."""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest

from kbrain_core.errors import InputError
from kbrain_core.formats.readers import open_image

Read = Callable[..., np.ndarray]
BOX = (slice(1, 3), slice(5, 20), slice(40, 47))


def _nifti(path: Path, data_xyz: np.ndarray, unit: str = "micron") -> None:
    image = nibabel.Nifti1Image(data_xyz, np.diag([0.5, 0.4, 2.0, 1.0]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti(tmp_path: Path, planted: np.ndarray, read_all: Read, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    _nifti(path, planted[:, 0].transpose(3, 2, 1, 0))  # tzyx -> xyzt
    with open_image(path) as reader:
        info = reader.images[0]
        assert info.shape == (2, 1, 4, 33, 47) and info.dtype == np.uint16
        assert info.voxel_size_um == pytest.approx((2.0, 0.4, 0.5))  # stored as float32
        np.testing.assert_array_equal(read_all(reader), planted[:, :1])
        np.testing.assert_array_equal(reader.read(0, 1, 0, *BOX), planted[1, 0][BOX])


def test_nifti_that_scales_is_read_as_values(tmp_path: Path, planted: np.ndarray, read_all: Read) -> None:
    path = tmp_path / "a.nii"
    _nifti(path, planted[0, 0].T, "mm")
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([0.5, 3.0], "<f4").tobytes()  # scl_slope and scl_inter of the header
    path.write_bytes(content)
    with open_image(path) as reader:
        assert reader.images[0].dtype == np.float32 and reader.images[0].voxel_size_um == pytest.approx(
            (2000, 400, 500)
        )
        # halves up to 20000 are exact in float32
        np.testing.assert_array_equal(read_all(reader)[0, 0], planted[0, 0] * np.float32(0.5) + 3)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_truncated_nifti(tmp_path: Path, planted: np.ndarray, ending: str) -> None:
    path = tmp_path / f"cut{ending}"
    _nifti(path, planted[0, 0].T)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="cut"):
        open_image(path)


def test_a_gzip_bomb_stops_at_the_size_the_header_says(tmp_path: Path, planted: np.ndarray) -> None:
    path = tmp_path / "bomb.nii"
    _nifti(path, planted[0, 0].T)
    packed = tmp_path / "bomb.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes() + bytes(50_000_000)))
    with pytest.raises(InputError, match="longer than its header says"):
        open_image(packed)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
def test_nrrd(tmp_path: Path, planted: np.ndarray, read_all: Read, encoding: str) -> None:
    path = tmp_path / "a.nrrd"
    header = {"encoding": encoding, "spacings": [0.5, 0.4, 2.0], "units": ["um", "um", "um"], "endian": "big"}
    nrrd.write(str(path), planted[0, 0].T.astype(">u2"), header)
    with open_image(path) as reader:
        assert reader.images[0].voxel_size_um == (2.0, 0.4, 0.5)
        assert reader.images[0].dtype == np.uint16
        np.testing.assert_array_equal(read_all(reader)[0, 0], planted[0, 0])
        np.testing.assert_array_equal(reader.read(0, 0, 0, *BOX), planted[0, 0][BOX])


def test_nrrd_with_channels_and_directions(tmp_path: Path, planted: np.ndarray, read_all: Read) -> None:
    path = tmp_path / "a.nrrd"
    header: dict[str, Any] = {
        "encoding": "raw",
        "kinds": ["vector", "domain", "domain", "domain"],
        "space dimension": 3,
        "space units": ["um", "um", "um"],
        "space directions": [[np.nan] * 3, [0.5, 0, 0], [0, 0.4, 0], [0, 0, 2.0]],
    }
    nrrd.write(str(path), planted[0].transpose(0, 3, 2, 1), header)  # czyx -> cxyz
    with open_image(path) as reader:
        assert reader.images[0].voxel_size_um == (2.0, 0.4, 0.5)
        np.testing.assert_array_equal(read_all(reader), planted[:1])


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_truncated_nrrd(tmp_path: Path, planted: np.ndarray, encoding: str) -> None:
    path = tmp_path / "cut.nrrd"
    nrrd.write(str(path), planted[0, 0].T, {"encoding": encoding})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"cut\.nrrd"):
        open_image(path)


@pytest.mark.parametrize(("encoding", "pack"), [("raw", bytes), ("gz", zlib.compress), ("bz2", bz2.compress)])
def test_detached_header(
    tmp_path: Path, planted: np.ndarray, read_all: Read, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "a.bin").write_bytes(pack(planted[0, 0].tobytes()))
    header = f"NRRD0004\ntype: uint16\ndimension: 3\nsizes: 47 33 4\nendian: little\nencoding: {encoding}\n"
    path = tmp_path / "a.nhdr"
    path.write_text(header + "data file: a.bin\n\n")
    with open_image(path) as reader:
        assert reader.files == (tmp_path / "a.bin",)
        np.testing.assert_array_equal(read_all(reader)[0, 0], planted[0, 0])
    path.write_text(header + "data file: ../a.bin\n\n")
    with pytest.raises(InputError, match="only one file beside it"):
        open_image(path)
