"""MRC files written by mrcfile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from kbrain_core.errors import InputError
from kbrain_core.formats.readers import open_image

Read = Callable[..., np.ndarray]


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.float32])
def test_volume(tmp_path: Path, planted: np.ndarray, read_all: Read, dtype: type) -> None:
    path = tmp_path / "a.mrc"
    volume = planted[0, 0].astype(dtype)
    with mrcfile.new(path) as file:
        file.set_data(volume)
        file.voxel_size = (40.0, 50.0, 600.0)  # x, y, z in angstrom
    with open_image(path) as reader:
        info = reader.images[0]
        assert info.shape == (1, 1, *volume.shape) and info.dtype == dtype
        assert info.voxel_size_um == pytest.approx((0.06, 0.005, 0.004))
        np.testing.assert_array_equal(read_all(reader)[0, 0], volume)
        box = (slice(1, 3), slice(5, 20), slice(40, 47))
        np.testing.assert_array_equal(reader.read(0, 0, 0, *box), volume[box])


def test_one_angstrom_is_the_default_of_writers(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    with mrcfile.new(path) as file:
        file.set_data(np.zeros((2, 3, 4), np.float32))
        file.voxel_size = 1.0
    with open_image(path) as reader:
        assert reader.images[0].voxel_size_um == (None, None, None)


def test_imod_bytes_are_unsigned(tmp_path: Path, read_all: Read) -> None:
    path = tmp_path / "imod.mrc"
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    with mrcfile.new(path) as file:
        file.set_data(image.view(np.int8))
    content = bytearray(path.read_bytes())
    content[152:160] = (1146047817).to_bytes(4, "little") + bytes(4)  # IMOD's stamp; the signed flag is off
    path.write_bytes(content)
    with open_image(path) as reader:
        assert reader.images[0].dtype == np.uint8
        np.testing.assert_array_equal(read_all(reader)[0, 0], image)


def test_truncated_and_fourier(tmp_path: Path) -> None:
    path = tmp_path / "cut.mrc"
    with mrcfile.new(path) as file:
        file.set_data(np.zeros((4, 30, 30), np.int16))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"cut\.mrc cannot be read"):
        open_image(path)
    with mrcfile.new(tmp_path / "f.mrc") as file:
        file.set_data(np.zeros((4, 30, 30), np.complex64))
    with pytest.raises(InputError, match="Fourier"):
        open_image(tmp_path / "f.mrc")
