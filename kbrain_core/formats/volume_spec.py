"""What a volume is, before a voxel of it is written: `VolumeSpec`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import InputError
from .layout import TASK_BYTES, ZYX, Encoding, Level, Pass, Shape, VoxelSizeNm, auto_factors, plan_layout

VolumeFormat = Literal["ome_zarr", "precomputed"]
VolumeKind = Literal["image", "labels"]
NgffVersion = Literal["0.5", "0.4"]

IMAGE_DTYPES = ("uint8", "uint16", "int8", "int16", "float32")
LABEL_DTYPES = ("uint8", "uint16", "uint32", "uint64")
# A chunk is stored as a picture z * y high, and JPEG pictures have at most so many rows.
JPEG_SIDE = 65500
# Databases and JSON readers hold signed 64-bit integers.
MOST_LABEL = 2**63 - 1


@dataclass(frozen=True)
class VolumeSpec:
    """Everything needed to write a volume; made by `VolumeSpec.plan`. It is small, frozen and picklable.

    Parameters
    ----------
    format : {"ome_zarr", "precomputed"}
        OME-Zarr between stages, Neuroglancer precomputed for the viewer.
    kind : {"image", "labels"}
        Images are averaged in the pyramid, labels take the most frequent value.
    shape : tuple of int
        (t, c, z, y, x) of level 0.
    dtype : str
        numpy name of the voxel type.
    voxel_size_nm : tuple of float or None
        (z, y, x); None when nobody knows it (OME-Zarr only).
    offset_nm : tuple of float
        Position (z, y, x) of the centre of the first voxel.
    channel_names : tuple of str
        One per channel.
    levels : tuple of Level
        Resolution levels, finest first.
    passes : tuple of Pass
        Which levels are written in which sweep over the volume.
    encoding : {"raw", "zstd", "jpeg", "png", "compressed_segmentation"}
        How the voxels of a chunk are compressed.
    quality : int
        JPEG quality.
    sharded : bool
        Chunks are put together in shards.
    ngff_version : {"0.5", "0.4"}
        Version of OME-Zarr.
    lossy : bool
        The voxels are not what the microscope wrote: they were compressed with loss, here or before.
    intensity_windows : tuple of (float, float)
        Intensities (low, high) of each channel that became 0 and 255; empty when they are as they were.
    """

    format: VolumeFormat
    kind: VolumeKind
    shape: Shape
    dtype: str
    voxel_size_nm: VoxelSizeNm | None
    offset_nm: VoxelSizeNm
    channel_names: tuple[str, ...]
    levels: tuple[Level, ...]
    passes: tuple[Pass, ...]
    encoding: Encoding
    quality: int
    sharded: bool
    ngff_version: NgffVersion
    lossy: bool
    intensity_windows: tuple[tuple[float, float], ...]

    @classmethod
    def plan(
        cls,
        shape: Shape,
        dtype: str | np.dtype[np.generic],
        *,
        voxel_size_nm: VoxelSizeNm | None,
        format: VolumeFormat = "ome_zarr",
        kind: VolumeKind = "image",
        offset_nm: VoxelSizeNm = (0.0, 0.0, 0.0),
        channel_names: tuple[str, ...] = (),
        mips: int | None = None,
        factor: ZYX | None = None,
        chunk_zyx: ZYX | None = None,
        block_zyx: ZYX | None = None,
        task_bytes: int = TASK_BYTES,
        encoding: Encoding | None = None,
        quality: int = 75,
        sharded: bool = True,
        ngff_version: NgffVersion = "0.5",
        lossy_source: bool = False,
        intensity_windows: tuple[tuple[float, float], ...] = (),
    ) -> VolumeSpec:
        """Choose levels, chunks, shards and encoding for a volume, and check that they can be written.

        Parameters
        ----------
        shape, dtype, voxel_size_nm, format, kind, offset_nm, channel_names, quality, sharded, ngff_version
            As in the class. Channels without a name are called "0", "1", ...
        intensity_windows : tuple of (float, float)
            As in the class.
        mips : int, optional
            How many levels follow level 0. Default: until no axis has more than 256 voxels.
        factor : (int, int, int), optional
            Factor (z, y, x) from each level to the next. Default: towards isotropic voxels.
        chunk_zyx : (int, int, int), optional
            Chunk of every level. Default: 2^18 voxels, near to a cube in nm.
        block_zyx : (int, int, int), optional
            Box of level 0 that one task writes, a multiple of the chunk. Default: as `task_bytes` allows.
        task_bytes : int
            Most bytes of level 0 in one task. Default: 128 MB, which is 512^3 voxels of 8 bits.
        encoding : str, optional
            Default: zstd in OME-Zarr; raw for images and compressed_segmentation for labels in precomputed.
        lossy_source : bool
            The voxels come from a lossy volume.

        Raises
        ------
        InputError
            When the type, the encoding or a size cannot be written.
        """
        name = np.dtype(dtype).name
        if len(shape) != 5 or any(size < 1 for size in shape):
            raise InputError(
                f"A volume of shape {tuple(shape)} has no voxels: (t, c, z, y, x) must all be above zero"
            )
        if encoding is None:
            by_kind: Encoding = "compressed_segmentation" if kind == "labels" else "raw"
            encoding = "zstd" if format == "ome_zarr" else by_kind
        if format == "precomputed" and kind == "labels" and name in ("uint8", "uint16"):
            name = "uint32"  # what viewers take for segment IDs
        _check_numbers(voxel_size_nm, offset_nm, quality, factor, chunk_zyx)
        _check_types(format, kind, name, encoding, shape)
        steps = auto_factors(shape[2:], voxel_size_nm, mips=mips, factor=factor)
        if format == "ome_zarr" and ngff_version == "0.4":
            sharded = False
        layout = plan_layout(
            shape[2:],
            np.dtype(name).itemsize * (shape[1] if format == "precomputed" else 1),
            voxel_size_nm,
            steps,
            chunk=chunk_zyx,
            block=block_zyx,
            sharded=sharded,
            morton=format == "precomputed",
            task_bytes=task_bytes,
        )
        widest = max(level.chunk[0] * level.chunk[1] for level in layout.levels)
        if encoding == "jpeg" and widest > JPEG_SIDE:
            raise InputError(
                f"A chunk of {widest} rows (z times y) is too large for JPEG: at most {JPEG_SIDE}"
            )
        names = tuple(channel_names[i] if i < len(channel_names) else str(i) for i in range(shape[1]))
        return cls(
            format=format,
            kind=kind,
            shape=shape,
            dtype=name,
            voxel_size_nm=voxel_size_nm,
            offset_nm=offset_nm,
            channel_names=names,
            levels=layout.levels,
            passes=layout.passes,
            encoding=encoding,
            quality=quality,
            sharded=sharded,
            ngff_version=ngff_version,
            lossy=lossy_source or encoding == "jpeg",
            intensity_windows=intensity_windows,
        )

    @property
    def voxel_bytes(self) -> int:
        """Bytes of all voxels of all levels, uncompressed: the most that the volume takes on disk."""
        voxels = sum(math.prod(level.shape) for level in self.levels)
        return voxels * self.shape[0] * self.shape[1] * np.dtype(self.dtype).itemsize

    @property
    def task_bytes(self) -> int:
        """Bytes of the largest box that a task reads (one channel, or all of them in precomputed)."""
        channels = self.shape[1] if self.format == "precomputed" else 1
        boxes = (
            math.prod(min(a, b) for a, b in zip(p.box, self.levels[p.read_level].shape)) for p in self.passes
        )
        return max(boxes) * channels * np.dtype(self.dtype).itemsize


def _check_numbers(
    voxel_size_nm: VoxelSizeNm | None,
    offset_nm: VoxelSizeNm,
    quality: int,
    factor: ZYX | None,
    chunk: ZYX | None,
) -> None:
    if voxel_size_nm is not None and not all(math.isfinite(size) and size > 0 for size in voxel_size_nm):
        raise InputError(f"The voxel size is {voxel_size_nm} nm (z, y, x): it must be above zero")
    if not all(math.isfinite(offset) for offset in offset_nm):
        raise InputError(f"The offset is {offset_nm} nm (z, y, x): it must be finite")
    if not 1 <= quality <= 100:
        raise InputError(f"The JPEG quality is {quality}: choose it from 1 to 100")
    for what, sizes in (("factor", factor), ("chunk", chunk)):
        if sizes is not None and any(size < 1 for size in sizes):
            raise InputError(f"The {what} is {sizes} (z, y, x): every number must be at least 1")


def _check_types(
    format: VolumeFormat, kind: VolumeKind, dtype: str, encoding: Encoding, shape: Shape
) -> None:
    channels = shape[1]
    allowed = LABEL_DTYPES if kind == "labels" else IMAGE_DTYPES
    if kind == "image" and dtype in ("uint32", "uint64"):
        raise InputError(
            f"An image of {dtype} cannot be averaged exactly: convert it to float32, or pass --kind labels"
        )
    if dtype not in allowed:
        raise InputError(
            f"{kind.capitalize()} of type {dtype} cannot be written: convert to one of {', '.join(allowed)}"
        )
    if kind == "labels" and encoding == "jpeg":
        raise InputError(
            "Labels cannot be compressed with loss: pass --encoding compressed_segmentation (or raw)"
        )
    if format == "ome_zarr":
        if encoding not in ("raw", "zstd"):
            raise InputError(f"OME-Zarr is written with the encodings raw and zstd, not {encoding}")
        return
    if encoding == "zstd":
        raise InputError(
            "Precomputed volumes have no zstd encoding: choose raw, jpeg, png or compressed_segmentation"
        )
    if shape[0] != 1:
        raise InputError(
            f"Precomputed volumes hold one time point, this has {shape[0]}: choose one with --time-point"
        )
    if encoding == "compressed_segmentation" and dtype not in ("uint32", "uint64"):
        raise InputError(
            f"compressed_segmentation holds labels of uint32 or uint64, this is {dtype}: pass --kind labels"
        )
    if encoding == "jpeg" and (dtype != "uint8" or channels not in (1, 3)):
        mend = (
            "pass --window percentile"
            if dtype != "uint8"
            else "pass --channel 0, then 1 ... to volumes of their own"
        )
        raise InputError(
            f"JPEG holds 8 bits of 1 or 3 channels, this is {dtype} of {channels}: {mend}, or choose another --encoding"
        )
    if encoding == "png" and (dtype not in ("uint8", "uint16") or channels > 4):
        raise InputError(
            f"PNG holds 8 or 16 bits of at most 4 channels, this is {channels} of {dtype}: choose another --encoding"
        )
