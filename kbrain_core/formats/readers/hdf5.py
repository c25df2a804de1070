"""HDF5: any data set by its name; the volumes of ilastik, Fiji and of our own making."""

from __future__ import annotations

import json
import math
from typing import Any

import h5py
import numpy as np

from ...errors import InputError
from .base import (
    UNKNOWN,
    ZYX,
    ImageInfo,
    ImageReader,
    length_um,
    native,
    numbered,
    refuse,
)

_TCZYX = "tczyx"
_MOST_LISTED = 20


class Hdf5Reader(ImageReader):
    """Reads one data set of an HDF5 file.

    Axes are taken from the data set's dimension labels or ilastik's axis tags, otherwise they are the last of
    (t, c, z, y, x). Voxel sizes are taken from the `element_size_um` attribute that Fiji writes (z, y, x).
    """

    def __init__(self, path: str, dataset: str | None = None) -> None:
        self.path = path
        self._file = open_hdf5(path)
        try:
            self.dataset = dataset or _only_dataset(self._file, path)
            self._data = local_dataset(self._file, path, self.dataset)
            axes = _axes(self._data)
            if axes is None:
                raise InputError(
                    f"{path}: data set {self.dataset} is {self._data.shape}, which is no image of 2 to 5 axes "
                    "(t, c, z, y, x): choose another with --dataset."
                )
            self._axes = axes
            sizes = dict(zip(axes, self._data.shape, strict=True))
            # without chunks any row can be read by itself
            chunks = dict(zip(axes, self._data.chunks or self._data.shape, strict=True))
            if self._data.chunks is None:
                chunks |= {"z": 1, "y": 1}
            voxel = _voxel_size_um(self._data)
            self.images = (
                ImageInfo(
                    name=self.dataset,
                    shape=(
                        sizes.get("t", 1),
                        sizes.get("c", 1),
                        sizes.get("z", 1),
                        sizes["y"],
                        sizes["x"],
                    ),
                    dtype=native(self._data.dtype),
                    voxel_size_um=voxel,
                    channel_names=numbered(sizes.get("c", 1)),
                    stage_um=UNKNOWN,
                    acquired_at=None,
                    bits=self._data.dtype.itemsize * 8,
                    voxel_size_from="HDF5 attribute element_size_um" if any(voxel) else "not given",
                    block_zyx=(chunks.get("z", 1), chunks["y"], chunks["x"]),
                ),
            )
        except Exception as error:  # h5py raises OSError, KeyError, RuntimeError on damaged files
            self.close()
            refuse(path, error)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(
        self, series: int, t: int, c: int, z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]
    ) -> np.ndarray:
        chosen = {"t": t, "c": c, "z": slice(*z), "y": slice(*y), "x": slice(*x)}
        found = self._data[tuple(chosen[axis] for axis in self._axes)]
        left = [axis for axis in self._axes if axis in "zyx"]
        ordered = found.transpose([left.index(axis) for axis in "zyx" if axis in left])
        shape = (z[1] - z[0], y[1] - y[0], x[1] - x[0])
        return np.ascontiguousarray(ordered, self.images[0].dtype).reshape(shape)


def open_hdf5(path: str) -> h5py.File:
    """Open an HDF5 file for reading, or refuse it in one line."""
    try:
        return h5py.File(path, "r")
    except Exception as error:  # h5py raises OSError and more on damaged files
        refuse(path, error)


def local_dataset(file: h5py.File, path: str, name: str) -> h5py.Dataset:
    """A data set whose pixels lie in this file; links and storage elsewhere could point at anything.

    Raises
    ------
    InputError
        If there is no such data set (those that exist are listed), or its pixels lie in another file.
    """
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise InputError(f"{path} has no data set {name}. It has: {_listed(_datasets(file))}.")
    outside = found.file.filename != file.filename or bool(found.external)
    if outside or (found.is_virtual and any(source.file_name != "." for source in found.virtual_sources())):
        raise InputError(f"{path}: data set {name} is kept in another file: give that file instead.")
    return found


def _datasets(file: h5py.File) -> list[str]:
    """Names and shapes of all data sets that could be images."""
    found: list[str] = []

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "uif" and _axes(node) is not None:
            found.append(name)

    file.visititems(visit)
    return found


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return (", ".join(names[:_MOST_LISTED]) + more) or "none that is an image"


def _only_dataset(file: h5py.File, path: str) -> str:
    names = _datasets(file)
    if len(names) != 1:
        raise InputError(
            f"{path} holds {len(names)} data sets: choose one with --dataset ({_listed(names)})."
        )
    return names[0]


def _axes(data: h5py.Dataset) -> str | None:
    """The axes of a data set, one letter each; None when it is no image."""
    if not 2 <= data.ndim <= len(_TCZYX) or math.prod(data.shape) == 0:
        return None
    labels = "".join(str(dimension.label).lower()[:1] or "?" for dimension in data.dims)
    if "axistags" in data.attrs:
        try:
            labels = "".join(axis["key"] for axis in json.loads(data.attrs["axistags"])["axes"])
        except (ValueError, KeyError, TypeError):
            labels = "?"
    valid = len(labels) == data.ndim == len(set(labels)) and set("yx") <= set(labels) <= set(_TCZYX)
    return labels if valid else _TCZYX[-data.ndim :]


def _voxel_size_um(data: h5py.Dataset) -> ZYX:
    sizes = np.ravel(data.attrs.get("element_size_um", ()))
    if len(sizes) != 3:
        return UNKNOWN
    z, y, x = (length_um(float(size), "um") for size in sizes)
    return z, y, x


def attribute_text(node: h5py.Group, name: str) -> str | None:
    """An attribute as text; Imaris stores texts as arrays of single characters."""
    value = node.attrs.get(name)
    if value is None:
        return None
    if isinstance(value, np.ndarray):
        value = b"".join(value.astype("S").ravel().tolist())
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text.strip()
