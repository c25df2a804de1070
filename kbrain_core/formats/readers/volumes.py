"""Chunked volumes: OME-Zarr and precomputed through `Volume`; plain N5 data sets and Zarr arrays by tensorstore."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tensorstore

from ...errors import InputError
from ...geometry import NM_PER_UM
from ...store import is_remote, join, kvstore_spec, local_path, read_bytes
from ..volume import Volume
from .base import UNKNOWN, ZYX, ImageInfo, ImageReader, length_um, native, numbered, refuse

_CACHE_BYTES = 64 * 1024 * 1024
_MOST_LISTED = 20
_MOST_SEARCHED = 2000


class VolumeReader(ImageReader):
    """Reads level 0 of an OME-Zarr or Neuroglancer precomputed volume."""

    def __init__(self, path: str, dataset: str | None = None) -> None:
        self.path, self.dataset = path, dataset
        self.volume = volume = Volume.open(path if dataset is None else join(path, *_parts(path, dataset)))
        voxel: ZYX = UNKNOWN
        if volume.voxel_size_nm is not None:
            z, y, x = volume.voxel_size_nm
            voxel = (z / NM_PER_UM, y / NM_PER_UM, x / NM_PER_UM)
        z_nm, y_nm, x_nm = volume.offset_nm
        self.images = (
            ImageInfo(
                name=volume.uri.rpartition("/")[2],
                shape=volume.shape,
                dtype=native(volume.dtype),
                voxel_size_um=voxel,
                channel_names=volume.channel_names,
                stage_um=(z_nm / NM_PER_UM, y_nm / NM_PER_UM, x_nm / NM_PER_UM),
                acquired_at=None,
                bits=volume.dtype.itemsize * 8,
                voxel_size_from="volume metadata" if any(voxel) else "not given",
                block_zyx=volume.levels[0].chunk,
            ),
        )

    def close(self) -> None:
        """Nothing stays open."""

    def _read(
        self, series: int, t: int, c: int, z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]
    ) -> np.ndarray:
        region = (slice(t, t + 1), slice(c, c + 1), slice(*z), slice(*y), slice(*x))
        voxels: np.ndarray = self.volume.read(region)[0, 0]
        return voxels


class ChunkedReader(ImageReader):
    """Reads an N5 data set or a Zarr array that carries no OME metadata.

    Zarr arrays are (t, c, z, y, x) or the last of it, N5 data sets the reverse, as their programs write them.
    N5 voxel sizes are taken from `resolution` or `pixelResolution`, with `downsamplingFactors`.
    """

    def __init__(self, path: str, dataset: str | None = None) -> None:
        self.path, self.dataset = path, dataset
        where = path if dataset is None else join(path, *_parts(path, dataset))
        driver = _array_driver(where)
        if driver is None:
            raise _choose(path, dataset)
        context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
        spec = {"driver": driver, "kvstore": kvstore_spec(where), "recheck_cached_data": False}
        try:
            stored = tensorstore.open(spec, read=True, context=context).result()
        except ValueError as error:  # tensorstore's word for every damaged or unknown metadata
            refuse(where, error)
        chunk = stored.chunk_layout.read_chunk.shape
        if driver == "n5":
            stored, chunk = stored.T, chunk[::-1]
        dtype = np.dtype(stored.dtype.numpy_dtype)
        if not 2 <= stored.ndim <= 5 or dtype.kind not in "uif":
            raise InputError(
                f"{where} is {dtype} {stored.shape}, which is no image of 2 to 5 axes: give another."
            )
        self._array = stored[(np.newaxis,) * (5 - stored.ndim)]
        voxel = _n5_voxel_size_um(where) if driver == "n5" else UNKNOWN
        blocks = (1, *chunk)[-3:]
        self.images = (
            ImageInfo(
                name=where.rstrip("/").rpartition("/")[2],
                shape=self._array.shape,
                dtype=native(dtype),
                voxel_size_um=voxel,
                channel_names=numbered(self._array.shape[1]),
                stage_um=UNKNOWN,
                acquired_at=None,
                bits=dtype.itemsize * 8,
                voxel_size_from="N5 attributes" if any(voxel) else "not given",
                block_zyx=(blocks[0], blocks[1], blocks[2]),
            ),
        )

    def close(self) -> None:
        """Nothing stays open."""

    def _read(
        self, series: int, t: int, c: int, z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]
    ) -> np.ndarray:
        box = self._array[t, c, slice(*z), slice(*y), slice(*x)]
        return np.ascontiguousarray(box.read(order="C").result(), self.images[0].dtype)


def is_chunked(path: str) -> bool:
    """Whether a folder or URL is an N5 or Zarr group or array."""
    names = ("attributes.json", ".zarray", ".zgroup", "zarr.json")
    return any(read_bytes(join(path, name)) is not None for name in names)


def open_chunked(path: str, dataset: str | None) -> ImageReader:
    """Open a chunked volume: an OME-Zarr or precomputed one, else a plain array.

    Raises
    ------
    InputError
        If `dataset` names neither; the arrays inside are listed.
    """
    where = path if dataset is None else join(path, *_parts(path, dataset))
    if _array_driver(where) is not None:
        return ChunkedReader(path, dataset)
    attributes = _attributes(where)
    if "multiscales" in attributes or "ome" in attributes or read_bytes(join(where, "info")) is not None:
        return VolumeReader(path, dataset)
    if is_chunked(where) or dataset is not None:
        raise _choose(path, dataset)
    return VolumeReader(path, dataset)


def _parts(path: str, dataset: str) -> list[str]:
    """The folders of a data set's name, which must stay inside `path`."""
    parts = [part for part in dataset.split("/") if part]
    if any(part in (".", "..") for part in parts):
        raise InputError(f"The data set '{dataset}' leads out of {path}: give its name inside it.")
    return parts


def _json(uri: str) -> dict[str, Any]:
    data = read_bytes(uri)
    try:
        content = json.loads(data) if data else {}
    except ValueError as error:
        raise InputError(f"{uri} is damaged ({error}): copy it again.") from error
    return content if isinstance(content, dict) else {}


def _attributes(where: str) -> dict[str, Any]:
    """Attributes of a Zarr group of either version."""
    found = _json(join(where, ".zattrs")) or _json(join(where, "zarr.json")).get("attributes", {})
    return found if isinstance(found, dict) else {}


def _array_driver(where: str) -> str | None:
    """tensorstore's driver when `where` is an array, else None."""
    if read_bytes(join(where, ".zarray")) is not None:
        return "zarr"
    if _json(join(where, "zarr.json")).get("node_type") == "array":
        return "zarr3"
    return "n5" if {"dimensions", "blockSize"} <= set(_json(join(where, "attributes.json"))) else None


def _choose(path: str, dataset: str | None) -> InputError:
    """The error that lists the arrays to choose from."""
    found: list[str] = []
    if not is_remote(path):
        _search(path, "", found, [0])
    listed = ", ".join(found[:_MOST_LISTED]) or "none was found"
    if dataset is None:
        return InputError(f"{path} holds {len(found)} data sets: choose one with --dataset ({listed}).")
    return InputError(f"{path} has no data set {dataset}. It has: {listed}.")


def _search(path: str, inside: str, found: list[str], visited: list[int]) -> None:
    """Collect the arrays below a folder; chunks are not entered."""
    visited[0] += 1
    where = join(path, inside) if inside else path
    if _array_driver(where) is not None:
        found.append(inside)
        return
    for entry in sorted(local_path(where).iterdir()):
        if visited[0] < _MOST_SEARCHED and entry.is_dir() and not entry.is_symlink():
            _search(path, f"{inside}/{entry.name}".lstrip("/"), found, visited)


def _n5_voxel_size_um(where: str) -> ZYX:
    """N5: `pixelResolution` {dimensions, unit} or `resolution` [x, y, z] with `units`, of the unbinned data."""
    attributes = _json(join(where, "attributes.json"))
    resolution = attributes.get("pixelResolution")
    if isinstance(resolution, dict):
        sizes, units = resolution.get("dimensions"), [resolution.get("unit")] * 3
    else:
        sizes, units = attributes.get("resolution", resolution), attributes.get("units", [])
    binning = attributes.get("downsamplingFactors", [1, 1, 1])
    if not isinstance(sizes, list) or len(sizes) < 3 or not isinstance(units, list) or len(units) < 3:
        return UNKNOWN
    x, y, z = (
        length_um(float(size) * float(factor), str(unit))
        for size, factor, unit in zip(sizes[:3], binning, units, strict=False)
    )
    return z, y, x
