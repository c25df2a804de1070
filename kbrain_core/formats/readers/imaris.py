"""Imaris IMS: an HDF5 file with one group per resolution level, time point and channel."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np

from ...errors import InputError
from .base import UNKNOWN, ZYX, ImageInfo, ImageReader, length_um, native, refuse
from .hdf5 import attribute_text, local_dataset, open_hdf5

_DATE = re.compile(r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}")


class ImarisReader(ImageReader):
    """Reads the full resolution of an Imaris file; chunks at the border are stored padded and are cut here."""

    def __init__(self, path: str, dataset: str | None = None) -> None:
        if dataset is not None:
            raise InputError(
                f"{path} is an Imaris file: its data sets are its channels, choose with --channel."
            )
        self.path = path
        self._file = open_hdf5(path)
        try:
            level = self._file["DataSet/ResolutionLevel 0"]
            times = sum(name.startswith("TimePoint ") for name in level)
            channels = sum(name.startswith("Channel ") for name in level["TimePoint 0"])
            first = self._data(0, 0)
            info = self._file["DataSetInfo/Image"]
            size_z, size_y, size_x = (int(attribute_text(info, axis) or 0) for axis in "ZYX")
            if min(size_z, size_y, size_x) < 1 or any(
                size > stored for size, stored in zip((size_z, size_y, size_x), first.shape, strict=True)
            ):
                raise ValueError(f"it says {(size_z, size_y, size_x)} and stores {first.shape} (z, y, x)")
            voxel = _voxel_size_um(info, (size_z, size_y, size_x))
            date = _DATE.match(attribute_text(info, "RecordingDate") or "")
            chunk_z, chunk_y, chunk_x = first.chunks or first.shape
            self.images = (
                ImageInfo(
                    name=attribute_text(info, "Name") or Path(path).name,
                    shape=(times, channels, size_z, size_y, size_x),
                    dtype=native(first.dtype),
                    voxel_size_um=voxel,
                    channel_names=_channel_names(self._file, channels),
                    stage_um=UNKNOWN,
                    acquired_at=date[0].replace(" ", "T") if date else None,
                    bits=first.dtype.itemsize * 8,
                    voxel_size_from="Imaris extents" if any(voxel) else "not given",
                    block_zyx=(chunk_z, chunk_y, chunk_x),
                ),
            )
        except Exception as error:  # h5py raises OSError, KeyError, RuntimeError on damaged files
            self.close()
            refuse(path, error)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _data(self, t: int, c: int) -> h5py.Dataset:
        return local_dataset(
            self._file, self.path, f"DataSet/ResolutionLevel 0/TimePoint {t}/Channel {c}/Data"
        )

    def _read(
        self, series: int, t: int, c: int, z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]
    ) -> np.ndarray:
        found = self._data(t, c)[slice(*z), slice(*y), slice(*x)]
        return np.ascontiguousarray(found, self.images[0].dtype)


def _voxel_size_um(info: h5py.Group, sizes_zyx: tuple[int, int, int]) -> ZYX:
    """Extent over size for each axis; axis 0 of Imaris is x."""
    unit = attribute_text(info, "Unit") or "um"
    voxel = []
    for axis, size in zip((2, 1, 0), sizes_zyx, strict=True):
        low, high = attribute_text(info, f"ExtMin{axis}"), attribute_text(info, f"ExtMax{axis}")
        extent = float(high) - float(low) if low and high else 0.0
        voxel.append(length_um(extent / size, unit))
    return voxel[0], voxel[1], voxel[2]


def _channel_names(file: h5py.File, count: int) -> tuple[str, ...]:
    names = []
    for channel in range(count):
        node = file.get(f"DataSetInfo/Channel {channel}")
        name = attribute_text(node, "Name") if isinstance(node, h5py.Group) else None
        names.append(name if name and name != "(name not specified)" else str(channel))
    return tuple(names) if len(set(names)) == count else tuple(map(str, range(count)))
