"""Neuroglancer precomputed volumes: the `info` file, chunks and shards.

Specification: https://github.com/google/neuroglancer/tree/master/src/datasource/precomputed
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..store import join, read_bytes, write_bytes
from .chunk_codecs import (
    atomic_file,
    chunk_positions,
    encode_gzip,
    encode_jpeg,
    encode_png,
    raw_bytes,
)
from .compressed_segmentation import BLOCK_SIZE, encode_compressed_segmentation
from .layout import ZYX, Level, downsampled_shape, morton_bits, morton_code, shard_bits
from .volume_info import KBRAIN_KEY, VolumeInfo, kbrain_metadata, read_kbrain_metadata
from .volume_spec import VolumeSpec

# A minishard of 2^9 chunks has an index of 12 kB: one small request before the first chunk.
MOST_PRESHIFT_BITS = 9


# -- writing ---------------------------------------------------------------------------------------------------------


def write_metadata(uri: str, spec: VolumeSpec) -> None:
    """Write the `info` file."""
    if spec.voxel_size_nm is None:
        raise InputError(
            "A precomputed volume needs its voxel size: pass it, like --voxel-size x=4nm,y=4nm,z=40nm"
        )
    info = {
        "@type": "neuroglancer_multiscale_volume",
        "type": "segmentation" if spec.kind == "labels" else "image",
        "data_type": spec.dtype,
        "num_channels": spec.shape[1],
        "scales": [_scale(spec, level) for level in spec.levels],
        KBRAIN_KEY: kbrain_metadata(spec),
    }
    write_bytes(join(uri, "info"), (json.dumps(info, indent=2, ensure_ascii=False) + "\n").encode())


def voxel_offset(spec: VolumeSpec, level: Level) -> ZYX:
    """Position (z, y, x) of the first voxel of a level, in voxels of that level: a whole number in this format."""
    assert spec.voxel_size_nm is not None
    z, y, x = (
        round(round(offset / size) / factor)
        for offset, size, factor in zip(spec.offset_nm, spec.voxel_size_nm, level.factor)
    )
    return (z, y, x)


def _scale(spec: VolumeSpec, level: Level) -> dict[str, Any]:
    scale: dict[str, Any] = {
        "key": level_key(spec, level),
        "size": list(reversed(level.shape)),
        "resolution": _resolution(spec, level),
        "voxel_offset": list(reversed(voxel_offset(spec, level))),
        "chunk_sizes": [list(reversed(level.chunk))],
        "encoding": spec.encoding,
    }
    if spec.encoding == "compressed_segmentation":
        scale["compressed_segmentation_block_size"] = list(BLOCK_SIZE)
    if spec.encoding == "jpeg":
        scale["jpeg_quality"] = spec.quality
    if spec.sharded:
        in_shard = shard_bits(level.shape, level.chunk, level.shard)
        scale["sharding"] = {
            "@type": "neuroglancer_uint64_sharded_v1",
            "hash": "identity",
            "preshift_bits": min(in_shard, MOST_PRESHIFT_BITS),
            "minishard_bits": max(in_shard - MOST_PRESHIFT_BITS, 0),
            "shard_bits": len(morton_bits(downsampled_shape(level.shape, level.chunk))) - in_shard,
            "minishard_index_encoding": "gzip",
            "data_encoding": "gzip" if _gzipped(spec) else "raw",
        }
    return scale


def _gzipped(spec: VolumeSpec) -> bool:
    """Labels shrink several times under gzip; on EM it costs 6 times the processor time for a fifth of the size."""
    return spec.sharded and spec.kind == "labels"


def _resolution(spec: VolumeSpec, level: Level) -> list[float]:
    assert spec.voxel_size_nm is not None
    sizes = [size * factor for size, factor in zip(spec.voxel_size_nm, level.factor)]
    return [int(size) if float(size).is_integer() else size for size in reversed(sizes)]


def level_key(spec: VolumeSpec, level: Level) -> str:
    """Name of a level's folder: its voxel size in nm, like 4_4_40."""
    return "_".join(f"{size:.12g}" for size in _resolution(spec, level))


def write_region(uri: str, spec: VolumeSpec, level: int, start: ZYX, voxels: NDArray[Any]) -> None:
    """Write whole shards (or chunks) of one level: `voxels` (c, z, y, x) begin at voxel `start`, all channels."""
    layout = spec.levels[level]
    folder = join(uri, level_key(spec, layout))
    shape = voxels.shape[1:]
    offset = voxel_offset(spec, layout)
    for _, (cut_z, cut_y, cut_x) in chunk_positions(start, shape, layout.shard):
        part = voxels[:, cut_z, cut_y, cut_x]
        first: ZYX = (start[0] + cut_z.start, start[1] + cut_y.start, start[2] + cut_x.start)
        if spec.sharded:
            _write_shard(folder, spec, layout, first, part)
            continue
        ranges = zip(reversed(first), reversed(part.shape[1:]), reversed(offset))
        name = "_".join(f"{low + shift}-{low + shift + length}" for low, length, shift in ranges)
        with atomic_file(join(folder, name)) as file:
            file.write(_encode(spec, part))


def _write_shard(folder: str, spec: VolumeSpec, level: Level, start: ZYX, voxels: NDArray[Any]) -> None:
    grid = downsampled_shape(level.shape, level.chunk)
    cuts = {
        morton_code(position, grid): cut
        for position, cut in chunk_positions(start, voxels.shape[1:], level.chunk)
    }
    in_shard = shard_bits(level.shape, level.chunk, level.shard)
    preshift = min(in_shard, MOST_PRESHIFT_BITS)
    number = min(cuts) >> in_shard
    digits = -(-(len(morton_bits(grid)) - in_shard) // 4)
    with atomic_file(join(folder, f"{number:0{digits}x}.shard")) as file:
        minishards = 2 ** (in_shard - preshift)
        index_bytes = 16 * minishards
        file.write(bytes(index_bytes))
        index = np.zeros((minishards, 2), "<u8")
        for minishard in range(minishards):
            codes = sorted(code for code in cuts if code >> preshift & (minishards - 1) == minishard)
            sizes, first = [], file.tell() - index_bytes
            for code in codes:
                cut_z, cut_y, cut_x = cuts[code]
                data = _encode(spec, voxels[:, cut_z, cut_y, cut_x])
                data = encode_gzip(data) if _gzipped(spec) else data
                sizes.append(len(data))
                file.write(data)
            if codes:
                begin = file.tell() - index_bytes
                file.write(encode_gzip(_minishard_index(codes, sizes, first)))
                index[minishard] = (begin, file.tell() - index_bytes)
        file.seek(0)
        file.write(index.tobytes())


def _minishard_index(codes: list[int], sizes: list[int], first: int) -> bytes:
    """Chunk IDs, gaps before the chunks, and sizes; IDs and starts are differences to the one before."""
    table = np.zeros((3, len(codes)), "<u8")
    table[0] = np.diff(codes, prepend=0)
    table[1, 0] = first
    table[2] = sizes
    return table.tobytes()


def _encode(spec: VolumeSpec, chunk: NDArray[Any]) -> bytes | memoryview:
    if spec.encoding == "jpeg":
        return encode_jpeg(chunk, spec.quality)
    if spec.encoding == "png":
        return encode_png(chunk)
    if spec.encoding == "compressed_segmentation":
        return encode_compressed_segmentation(chunk)
    return raw_bytes(chunk)


# -- reading ---------------------------------------------------------------------------------------------------------


def read_metadata(uri: str) -> VolumeInfo | None:
    """What the `info` file of a precomputed volume says; None when there is none.

    Raises
    ------
    InputError
        When the file is there and cannot be used.
    """
    data = read_bytes(join(uri, "info"))
    if data is None:
        return None
    try:
        info = json.loads(data)
        if "scales" not in info:
            return None  # meshes, skeletons and annotations have an info file too
        return _volume_info(uri, info)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise InputError(
            f"'{join(uri, 'info')}' is damaged ({type(error).__name__}: {error}): precompute the volume again"
        ) from error


def _volume_info(uri: str, info: dict[str, Any]) -> VolumeInfo:
    scales = info["scales"]
    finest = [float(size) for size in reversed(scales[0]["resolution"])]
    levels = []
    for scale in scales:
        shape, chunk = _zyx(scale["size"]), _zyx(scale["chunk_sizes"][0])
        z, y, x = (max(1, round(float(a) / b)) for a, b in zip(reversed(scale["resolution"]), finest))
        levels.append(Level(shape, (z, y, x), chunk, _stored_shard(shape, chunk, scale.get("sharding"))))
    channels = int(info["num_channels"])
    own = read_kbrain_metadata(info.get(KBRAIN_KEY))
    offset = [size * first for size, first in zip(finest, reversed(scales[0].get("voxel_offset", [0, 0, 0])))]
    names = [own.channel_names[i] if i < len(own.channel_names) else str(i) for i in range(channels)]
    return VolumeInfo(
        format="precomputed",
        kind="labels" if info.get("type") == "segmentation" else "image",
        shape=(1, channels, *levels[0].shape),
        dtype=np.dtype(info["data_type"]).name,
        voxel_size_nm=(finest[0], finest[1], finest[2]),
        offset_nm=(offset[0], offset[1], offset[2]),
        channel_names=tuple(names),
        levels=tuple(levels),
        lossy=own.lossy or any(scale["encoding"] == "jpeg" for scale in scales),
        encoding=str(scales[0]["encoding"]),
        intensity_windows=own.intensity_windows,
        paths=(uri,) * len(scales),
        driver="neuroglancer_precomputed",
        axes="czyx",
    )


def _zyx(values: list[Any]) -> ZYX:
    x, y, z = (int(value) for value in values)
    return (z, y, x)


def _stored_shard(shape: ZYX, chunk: ZYX, sharding: dict[str, Any] | None) -> ZYX:
    """Voxels of one shard of a stored level."""
    if not sharding:
        return chunk
    sides = list(chunk)
    bits = int(sharding["preshift_bits"]) + int(sharding["minishard_bits"])
    for axis in morton_bits(downsampled_shape(shape, chunk))[:bits]:
        sides[axis] *= 2
    return (sides[0], sides[1], sides[2])
