"""NIfTI (.nii, .nii.gz), through nibabel. Voxels keep the stored order; the orientation matrix is not applied."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np

from ...errors import InputError
from .base import UNKNOWN, ImageInfo, ImageReader, length_um, native, numbered, refuse
from .unpacking import unpack

_UNITS = {"meter": "m", "mm": "mm", "micron": "um", "unknown": "mm"}
_MOST_HEADER_BYTES = 1 << 24


class NiftiReader(ImageReader):
    """Reads NIfTI-1 and -2 files; the fourth axis is time, the fifth channels.

    A file that scales its values (scl_slope, scl_inter) is read as float32. Lengths without a unit are mm, as
    the format's other programs take them.
    """

    def __init__(self, path: str, dataset: str | None = None) -> None:
        if dataset is not None:
            raise InputError(f"{path} is a NIfTI file and has no data sets.")
        self.path = path
        self._folder: TemporaryDirectory[str] | None = None
        try:
            self._image = self._load(path)
            self.images = (self._describe(),)
        except Exception as error:  # nibabel raises its own errors, OSError and ValueError
            self.close()
            refuse(path, error)

    def _load(self, path: str) -> Any:
        """The image with its data in a file that can be read at any place."""
        with Path(path).open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        if not packed:
            return nibabel.load(path, mmap=False)
        header_only = nibabel.load(path)
        offset, header = int(header_only.dataobj.offset), header_only.header
        size = math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
        if offset > _MOST_HEADER_BYTES:
            raise ValueError(f"a header of {offset} bytes")
        self._folder, unpacked = unpack(path, 0, "gzip", offset + size)
        return nibabel.load(unpacked.rename(unpacked.with_suffix(".nii")), mmap=False)

    def close(self) -> None:
        """Remove what was unpacked."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _describe(self) -> ImageInfo:
        header = self._image.header
        x, y, z, t, c, *others = (*header.get_data_shape(), 1, 1, 1, 1, 1)[:7]
        if math.prod(others) != 1 or min(x, y, z, t, c) < 1:
            raise ValueError(f"shape {header.get_data_shape()} is no image over (x, y, z, t, c)")
        proxy, stored = self._image.dataobj, native(header.get_data_dtype())
        size = proxy.offset + math.prod(header.get_data_shape()) * stored.itemsize
        if Path(proxy.file_like).stat().st_size < size:
            raise ValueError("the file ends before its last voxel")
        if stored.kind not in "uif":
            raise ValueError(f"voxels of type {stored} are not supported")
        self._scaled = (proxy.slope, proxy.inter) != (1.0, 0.0)
        dtype = np.dtype(np.float32) if self._scaled else stored
        unit = _UNITS.get(header.get_xyzt_units()[0], "mm")
        zooms = (*header.get_zooms(), 0.0, 0.0, 0.0)
        voxel = tuple(length_um(float(zooms[axis]), unit) for axis in (2, 1, 0))
        return ImageInfo(
            name=Path(self.path).name,
            shape=(t, c, z, y, x),
            dtype=dtype,
            voxel_size_um=(voxel[0], voxel[1], voxel[2]) if any(voxel) else UNKNOWN,
            channel_names=numbered(c),
            stage_um=UNKNOWN,
            acquired_at=None,
            bits=dtype.itemsize * 8,
            voxel_size_from="NIfTI header" if any(voxel) else "not given",
            block_zyx=(1, 1, x),
        )

    def _read(
        self, series: int, t: int, c: int, z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]
    ) -> np.ndarray:
        proxy, dimensions = self._image.dataobj, len(self._image.header.get_data_shape())
        box = (slice(*x), slice(*y), slice(*z), slice(t, t + 1), slice(c, c + 1))[:dimensions]
        found = proxy[box]
        shape = (x[1] - x[0], y[1] - y[0], z[1] - z[0])
        return np.ascontiguousarray(found.reshape(shape).T, self.images[0].dtype)
