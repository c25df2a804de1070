"""OME-Zarr (NGFF 0.5 on zarr 3 with shards, and 0.4 on zarr 2): metadata and chunks.

Specification: https://ngff.openmicroscopy.org/0.5/
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..store import join, read_bytes, write_bytes
from .chunk_codecs import ZSTD_LEVEL, atomic_file, chunk_positions, encode_blosc, encode_zstd, raw_bytes
from .layout import ZYX, Level, VoxelSizeNm
from .volume_info import KBRAIN_KEY, VolumeInfo, kbrain_metadata, read_kbrain_metadata
from .volume_spec import VolumeKind, VolumeSpec

AXES = "tczyx"
AXIS_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
NM_PER_NGFF_UNIT = {
    "angstrom": 0.1,
    "picometer": 1e-3,
    "nanometer": 1.0,
    "micrometer": 1e3,
    "millimeter": 1e6,
    "centimeter": 1e7,
    "meter": 1e9,
}
# Colours of the channels in the order microscopists read them; a single channel is white.
COLORS = ("00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF")
MISSING_CHUNK = 2**64 - 1


# -- writing ---------------------------------------------------------------------------------------------------------


def write_metadata(uri: str, spec: VolumeSpec, windows: tuple[tuple[float, float], ...] = ()) -> None:
    """Write the group and array metadata of a volume; `windows` are the contrast limits of its channels."""
    attributes = {"ome": _ome_attributes(spec, windows), KBRAIN_KEY: kbrain_metadata(spec)}
    if spec.ngff_version == "0.4":
        _write_json(join(uri, ".zgroup"), {"zarr_format": 2})
        _write_json(join(uri, ".zattrs"), {**attributes["ome"], KBRAIN_KEY: attributes[KBRAIN_KEY]})
        for index, level in enumerate(spec.levels):
            _write_json(join(uri, str(index), ".zarray"), _zarr2_array(spec, level))
        return
    for index, level in enumerate(spec.levels):
        _write_json(join(uri, str(index), "zarr.json"), _zarr3_array(spec, level))
    _write_json(join(uri, "zarr.json"), {"zarr_format": 3, "node_type": "group", "attributes": attributes})


def _write_json(uri: str, content: dict[str, Any]) -> None:
    write_bytes(uri, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _ome_attributes(spec: VolumeSpec, windows: tuple[tuple[float, float], ...]) -> dict[str, Any]:
    space = {} if spec.voxel_size_nm is None else {"unit": "nanometer"}
    axes = [
        {"name": name, "type": AXIS_TYPES[name], **(space if AXIS_TYPES[name] == "space" else {})}
        for name in AXES
    ]
    size_nm = spec.voxel_size_nm or (1.0, 1.0, 1.0)
    datasets = []
    for index, level in enumerate(spec.levels):
        scale = [1.0, 1.0, *(size * factor for size, factor in zip(size_nm, level.factor))]
        # A voxel of a coarser level is centred between the voxels it stands for.
        centre = (
            offset + size * (factor - 1) / 2
            for offset, size, factor in zip(spec.offset_nm, size_nm, level.factor)
        )
        transformations = [
            {"type": "scale", "scale": scale},
            {"type": "translation", "translation": [0.0, 0.0, *centre]},
        ]
        datasets.append({"path": str(index), "coordinateTransformations": transformations})
    multiscale: dict[str, Any] = {
        "name": "image" if spec.kind == "image" else "labels",
        "axes": axes,
        "datasets": datasets,
        "type": "mean" if spec.kind == "image" else "mode",
        "metadata": {"method": "kbrain_core.numerics.volumes.pyramid"},
    }
    if spec.ngff_version == "0.4":
        multiscale["version"] = "0.4"
    attributes: dict[str, Any] = {"version": "0.5"} if spec.ngff_version == "0.5" else {}
    attributes["multiscales"] = [multiscale]
    if spec.kind == "labels":
        attributes["image-label"] = {"version": spec.ngff_version}
    else:
        attributes["omero"] = {"channels": _omero_channels(spec, windows)}
    return attributes


def _omero_channels(spec: VolumeSpec, windows: tuple[tuple[float, float], ...]) -> list[dict[str, Any]]:
    integer = np.issubdtype(np.dtype(spec.dtype), np.integer)
    lowest, highest = (
        (float(np.iinfo(spec.dtype).min), float(np.iinfo(spec.dtype).max)) if integer else (0.0, 1.0)
    )
    channels = []
    for index, name in enumerate(spec.channel_names):
        low, high = windows[index] if windows else (lowest, highest)
        channels.append(
            {
                "label": name,
                "active": True,
                "color": "FFFFFF" if len(spec.channel_names) == 1 else COLORS[index % len(COLORS)],
                "window": {"min": lowest, "max": highest, "start": low, "end": high},
            }
        )
    return channels


def _zarr3_array(spec: VolumeSpec, level: Level) -> dict[str, Any]:
    endian = {} if np.dtype(spec.dtype).itemsize == 1 else {"configuration": {"endian": "little"}}
    codecs: list[dict[str, Any]] = [{"name": "bytes", **endian}]
    if spec.encoding == "zstd" and np.dtype(spec.dtype).itemsize == 1:
        codecs.append({"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}})
    elif spec.encoding == "zstd":
        codecs.append(
            {
                "name": "blosc",
                "configuration": {
                    "cname": "zstd",
                    "clevel": ZSTD_LEVEL,
                    "shuffle": "shuffle",
                    "typesize": np.dtype(spec.dtype).itemsize,
                    "blocksize": 0,
                },
            }
        )
    if spec.sharded:
        sharding = {
            "chunk_shape": [1, 1, *level.chunk],
            "codecs": codecs,
            "index_codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "crc32c"},
            ],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [*spec.shape[:2], *level.shape],
        "data_type": spec.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 1, *level.shard]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": codecs,
        "attributes": {},
        "dimension_names": list(AXES),
    }


def _zarr2_array(spec: VolumeSpec, level: Level) -> dict[str, Any]:
    blosc = {"id": "blosc", "cname": "zstd", "clevel": ZSTD_LEVEL, "shuffle": 1, "blocksize": 0}
    return {
        "zarr_format": 2,
        "shape": [*spec.shape[:2], *level.shape],
        "chunks": [1, 1, *level.chunk],
        "dtype": np.dtype(spec.dtype).newbyteorder("<").str,
        "compressor": blosc if spec.encoding == "zstd" else None,
        "fill_value": 0,
        "order": "C",
        "filters": None,
        "dimension_separator": "/",
    }


def write_region(
    uri: str, spec: VolumeSpec, level: int, t: int, c: int, start: ZYX, voxels: NDArray[Any]
) -> None:
    """Write whole shards (or chunks) of one level: `voxels` (c, z, y, x) begin at channel `c` and voxel `start`."""
    shard = spec.levels[level].shard
    folder = join(uri, str(level)) if spec.ngff_version == "0.4" else join(uri, str(level), "c")
    for channel, plane in enumerate(voxels, start=c):
        for (z, y, x), cut in chunk_positions(start, plane.shape, shard):
            key = join(folder, str(t), str(channel), str(z), str(y), str(x))
            if spec.sharded:
                _write_shard(key, spec, spec.levels[level], plane[cut])
            elif (part := plane[cut]).any():
                with atomic_file(key) as file:
                    file.write(_encode(spec, _full_chunk(part, shard)))


def _write_shard(uri: str, spec: VolumeSpec, level: Level, voxels: NDArray[Any]) -> None:
    grid = [size // side for size, side in zip(level.shard, level.chunk)]
    index = np.full((*grid, 2), MISSING_CHUNK, np.uint64)
    if not voxels.any():
        return
    with atomic_file(uri) as file:
        for position, data in _encoded_chunks(spec, level, voxels):
            index[position] = (file.tell(), len(data))
            file.write(data)
        index_bytes = index.astype("<u8", copy=False).tobytes()
        file.write(index_bytes)
        file.write(google_crc32c.value(index_bytes).to_bytes(4, "little"))


def _encoded_chunks(
    spec: VolumeSpec, level: Level, voxels: NDArray[Any]
) -> Iterator[tuple[ZYX, bytes | memoryview]]:
    """Grid position and bytes of every chunk that is not empty."""
    for position, cut in chunk_positions((0, 0, 0), voxels.shape, level.chunk):
        chunk = voxels[cut]
        if chunk.any():
            yield position, _encode(spec, _full_chunk(chunk, level.chunk))


def _full_chunk(chunk: NDArray[Any], shape: ZYX) -> NDArray[Any]:
    """The chunk filled up with zeros at the edge of the volume: zarr stores whole chunks."""
    if chunk.shape == shape:
        return chunk
    full = np.zeros(shape, chunk.dtype)
    full[: chunk.shape[0], : chunk.shape[1], : chunk.shape[2]] = chunk
    return full


def _encode(spec: VolumeSpec, chunk: NDArray[Any]) -> bytes | memoryview:
    if spec.encoding == "raw":
        return raw_bytes(chunk)
    return encode_zstd(chunk) if chunk.itemsize == 1 and spec.ngff_version == "0.5" else encode_blosc(chunk)


# -- reading ---------------------------------------------------------------------------------------------------------


def read_metadata(uri: str) -> VolumeInfo | None:
    """What the OME-Zarr group at `uri` says of itself; None when there is no such group.

    Raises
    ------
    InputError
        When the metadata are there and cannot be used.
    """
    found = _read_attributes(uri)
    if found is None:
        return None
    driver, attributes, ome = found
    try:
        return _volume_info(uri, driver, attributes, ome)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"The OME-Zarr metadata of '{uri}' are damaged ({type(error).__name__}: {error}): convert the image again"
        ) from error


def _read_attributes(uri: str) -> tuple[str, dict[str, Any], dict[str, Any]] | None:
    """Driver, attributes and their NGFF part of a group that is an image."""
    for name, driver in (("zarr.json", "zarr3"), (".zattrs", "zarr")):
        data = read_bytes(join(uri, name))
        if data is None:
            continue
        try:
            content = json.loads(data)
            attributes = content.get("attributes", {}) if driver == "zarr3" else content
            ome = attributes.get("ome", {}) if driver == "zarr3" else attributes
            if isinstance(ome, dict) and ome.get("multiscales"):
                return driver, attributes, ome
        except (ValueError, AttributeError) as error:
            raise InputError(
                f"'{join(uri, name)}' is no zarr metadata ({error}): convert the image again"
            ) from error
    return None


def _volume_info(uri: str, driver: str, attributes: dict[str, Any], ome: dict[str, Any]) -> VolumeInfo:
    multiscale = ome["multiscales"][0]
    names = "".join(axis["name"] for axis in multiscale["axes"])
    if len(set(names)) != len(names) or not set("yx") <= set(names) <= set(AXES):
        raise InputError(f"'{uri}' has the axes {names}: KBrain reads t, c, z, y, x (y and x at least)")
    arrays = [_array_metadata(join(uri, dataset["path"]), driver) for dataset in multiscale["datasets"]]
    scales, translations = _transformations(multiscale, names)
    units = {axis["name"]: axis.get("unit") for axis in multiscale["axes"]}
    voxel_size_nm, offset_nm = _physical(scales[0], translations[0], units)
    levels = []
    for array, scale in zip(arrays, scales):
        shape = _five(names, array[0], 1)
        factor = tuple(max(1, round(a / b)) for a, b in zip(scale[2:], scales[0][2:]))
        chunk, shard = (_five(names, sizes, 1)[2:] for sizes in array[2:])
        levels.append(Level(shape[2:], (factor[0], factor[1], factor[2]), chunk, shard))
    shape = _five(names, arrays[0][0], 1)
    own = read_kbrain_metadata(attributes.get(KBRAIN_KEY))
    kind: VolumeKind = "labels" if "image-label" in ome else "image"
    channels = ome.get("omero", {}).get("channels", [])
    labels = [str(channels[i].get("label", i)) if i < len(channels) else str(i) for i in range(shape[1])]
    return VolumeInfo(
        format="ome_zarr",
        kind=kind,
        shape=shape,
        dtype=arrays[0][1],
        voxel_size_nm=voxel_size_nm,
        offset_nm=offset_nm,
        channel_names=tuple(labels),
        levels=tuple(levels),
        lossy=own.lossy,
        encoding=own.encoding,
        intensity_windows=own.intensity_windows,
        paths=tuple(join(uri, dataset["path"]) for dataset in multiscale["datasets"]),
        driver=driver,
        axes=names,
    )


def _array_metadata(uri: str, driver: str) -> tuple[list[int], str, list[int], list[int]]:
    """Shape, type, chunk and shard of one array."""
    data = read_bytes(join(uri, "zarr.json" if driver == "zarr3" else ".zarray"))
    if data is None:
        raise InputError(
            f"The array '{uri}' of the OME-Zarr volume is missing: copy or convert the volume again"
        )
    content = json.loads(data)
    if driver == "zarr":
        chunk = [int(n) for n in content["chunks"]]
        return [int(n) for n in content["shape"]], np.dtype(content["dtype"]).name, chunk, chunk
    shard = [int(n) for n in content["chunk_grid"]["configuration"]["chunk_shape"]]
    first = content["codecs"][0]
    chunk = first["configuration"]["chunk_shape"] if first["name"] == "sharding_indexed" else shard
    return [int(n) for n in content["shape"]], str(content["data_type"]), [int(n) for n in chunk], shard


def _five(names: str, values: list[int], missing: int) -> tuple[int, int, int, int, int]:
    """Values of the stored axes as (t, c, z, y, x)."""
    by_name = dict(zip(names, values, strict=True))
    t, c, z, y, x = (by_name.get(axis, missing) for axis in AXES)
    return (t, c, z, y, x)


def _transformations(multiscale: dict[str, Any], names: str) -> tuple[list[list[float]], list[list[float]]]:
    """Scale and translation of every level as (t, c, z, y, x), those of the whole image included."""
    scales, translations = [], []
    for dataset in multiscale["datasets"]:
        scale, translation = np.ones(len(names)), np.zeros(len(names))
        for step in [
            *dataset.get("coordinateTransformations", []),
            *multiscale.get("coordinateTransformations", []),
        ]:
            if step["type"] == "scale":
                factors = np.array(step["scale"], dtype=float)
                scale, translation = scale * factors, translation * factors
            elif step["type"] == "translation":
                translation = translation + np.array(step["translation"], dtype=float)
        if not np.isfinite([scale, translation]).all() or (scale <= 0).any():
            raise ValueError("a scale is not above zero")
        by_axis = dict(zip(names, zip(scale, translation), strict=True))
        scales.append([float(by_axis.get(axis, (1.0, 0.0))[0]) for axis in AXES])
        translations.append([float(by_axis.get(axis, (1.0, 0.0))[1]) for axis in AXES])
    return scales, translations


def _physical(
    scale: list[float], translation: list[float], units: dict[str, str | None]
) -> tuple[VoxelSizeNm | None, VoxelSizeNm]:
    """Voxel size and offset in nm; without units nobody knows the size."""
    present = [axis for axis in "zyx" if axis in units]
    if any(units[axis] not in NM_PER_NGFF_UNIT for axis in present):
        return None, (0.0, 0.0, 0.0)
    nm = [NM_PER_NGFF_UNIT[units.get(axis) or units["x"] or ""] for axis in "zyx"]
    size = [value * per for value, per in zip(scale[2:], nm)]
    if "z" not in units:
        size[0] = math.sqrt(size[1] * size[2])  # a plane has no thickness of its own
    offset = [value * per for value, per in zip(translation[2:], nm)]
    return (size[0], size[1], size[2]), (offset[0], offset[1], offset[2])
