"""MRC and its IMOD dialect (.mrc, .rec, .st, .map), memory mapped through mrcfile."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import mrcfile
import numpy as np

from ...errors import InputError
from .base import UNKNOWN, ImageInfo, ImageReader, length_um, native, numbered, refuse

_IMOD_STAMP = 1146047817
_IMOD_SIGNED_BYTES = 1


class MrcReader(ImageReader):
    """Reads MRC images and volumes. Voxel sizes in the header are in angstrom; 1 means nobody set it."""

    def __init__(self, path: str, dataset: str | None = None) -> None:
        if dataset is not None:
            raise InputError(f"{path} is an MRC file and has no data sets.")
        self.path = path
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # remarks on header fields that are not used here
                self._file = mrcfile.mmap(path, mode="r", permissive=False)
        except Exception as error:  # mrcfile raises ValueError and more on damaged headers
            refuse(path, error)
        data = self._data = self._file.data
        if data is None or data.dtype.kind == "c":
            self.close()
            raise InputError(f"{path} holds a Fourier transform, not an image: transform it back first.")
        if _unsigned_bytes(self._file):
            data = self._data = data.view(np.uint8)
        shape = (1,) * (4 - data.ndim) + data.shape
        voxel = self._file.voxel_size
        sizes = [length_um(float(voxel[axis]), "angstrom") for axis in "zyx"]
        known = any(abs(float(voxel[axis]) - 1.0) > 1e-6 for axis in "zyx") and any(sizes)
        self.images = (
            ImageInfo(
                name=Path(path).name,
                shape=(shape[0], 1, *shape[1:]),
                dtype=native(data.dtype),
                voxel_size_um=(sizes[0], sizes[1], sizes[2]) if known else UNKNOWN,
                channel_names=numbered(1),
                stage_um=UNKNOWN,
                acquired_at=None,
                bits=data.dtype.itemsize * 8,
                voxel_size_from="MRC header" if known else "not given",
                block_zyx=(1, 1, shape[3]),
            ),
        )

    def close(self) -> None:
        """Close the file and drop its memory map."""
        self._data = None
        self._file.close()

    def _read(
        self, series: int, t: int, c: int, z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]
    ) -> np.ndarray:
        info = self.images[0]
        volume = self._data.reshape((info.shape[0], *info.shape[2:]))
        return np.array(volume[t, z[0] : z[1], y[0] : y[1], x[0] : x[1]], info.dtype)


def _unsigned_bytes(file: mrcfile.mrcmemmap.MrcMemmap) -> bool:
    """Whether mode 0 means unsigned bytes: IMOD says so in flags that mrcfile does not read."""
    if int(file.header.mode) != 0:
        return False
    stamp, flags = struct.unpack("<ii", file.header.extra2.tobytes()[40:48])
    return bool(stamp == _IMOD_STAMP and not flags & _IMOD_SIGNED_BYTES)
