"""Volumes with known content for the viewer's tests, written by the package's own writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kbrain_core.formats.volume import create_volume
from kbrain_core.formats.volume_spec import Encoding, VolumeFormat, VolumeKind, VolumeSpec
from kbrain_core.numerics.volumes.volume_writer import VolumeWriter
from kbrain_core.stage import RunOptions

VOXEL_NM = (20.0, 10.0, 10.0)


def write_volume(
    path: Path,
    voxels: NDArray[Any],
    *,
    format: VolumeFormat = "precomputed",
    kind: VolumeKind = "image",
    encoding: Encoding | None = None,
    channel_names: tuple[str, ...] = (),
    offset_nm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    voxel_size_nm: tuple[float, float, float] | None = VOXEL_NM,
    chunk_zyx: tuple[int, int, int] | None = None,
) -> Path:
    """Write a (Z, Y, X) or (C, Z, Y, X) array with its pyramid."""
    channels = voxels if voxels.ndim == 4 else voxels[np.newaxis]
    spec = VolumeSpec.plan(
        (1, *channels.shape),
        channels.dtype,
        voxel_size_nm=voxel_size_nm,
        format=format,
        kind=kind,
        encoding=encoding,
        channel_names=channel_names,
        offset_nm=offset_nm,
        chunk_zyx=chunk_zyx,
        quality=90,
    )
    create_volume(str(path), spec)
    writer = VolumeWriter(str(path), spec)
    for box in writer.task_boxes():
        block = channels[(slice(None), *box.slices(spec.levels[0].shape))]
        if format == "precomputed":
            writer.write_block(0, 0, box, block)
        else:
            for channel, voxels_of_channel in enumerate(block):
                writer.write_block(0, channel, box, voxels_of_channel)
    writer.finish_levels(None, RunOptions(workers=1))
    return path


def cells(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Smooth blobs over a slope: every direction and every place looks different, and JPEG keeps it well."""
    z, y, x = np.meshgrid(*(np.linspace(0, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    waves = np.sin(14 * x + 3 * z + seed) * np.cos(11 * y - 2 * z)
    return np.asarray(np.rint(120 + 50 * waves + 40 * (x - 0.5) + 30 * (y - 0.5)), dtype=np.uint8)


def blocks(shape: tuple[int, int, int]) -> NDArray[np.uint64]:
    """Four objects side by side, one of them with the largest ID that is allowed, in a rim of background."""
    labels = np.zeros(shape, dtype=np.uint64)
    _, height, width = shape
    rim = 4
    labels[:, rim : height // 2, rim : width // 2] = 7
    labels[:, rim : height // 2, width // 2 : -rim] = 2**53 + 1
    labels[:, height // 2 : -rim, rim : width // 2] = 2**63 - 1
    labels[:, height // 2 : -rim, width // 2 : -rim] = 12
    return labels
