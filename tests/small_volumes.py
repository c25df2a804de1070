"""Small volumes for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kbrain_core.formats.volume import Volume, create_volume
from kbrain_core.formats.volume_spec import VolumeSpec
from kbrain_core.numerics.volumes.volume_writer import VolumeWriter
from kbrain_core.stage import RunOptions

EVERYTHING = (slice(None),) * 5


def write_volume(path: Path, voxels: NDArray[Any], **options: Any) -> Volume:
    """Write voxels (t, c, z, y, x) with `VolumeSpec.plan`'s options, blocks in reverse order, and open the result."""
    options.setdefault("voxel_size_nm", (40.0, 10.0, 10.0))
    spec = VolumeSpec.plan(voxels.shape, voxels.dtype, **options)  # type: ignore[arg-type]
    create_volume(str(path), spec)
    writer = VolumeWriter(str(path), spec)
    for box in reversed(writer.task_boxes()):
        cut = box.slices(voxels.shape[2:])  # type: ignore[arg-type]
        for t in range(len(voxels)):
            if spec.format == "precomputed":
                writer.write_block(t, 0, box, voxels[t][:, *cut])
            else:
                for c in range(voxels.shape[1]):
                    writer.write_block(t, c, box, voxels[t, c][cut])
    writer.finish_levels(None, RunOptions(workers=1))
    return Volume.open(str(path))


def label_blobs(shape: tuple[int, int, int], dtype: str, seed: int = 0) -> NDArray[Any]:
    """Labels with large IDs in blocks of a few voxels, as (1, 1, z, y, x)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 9, [-(-size // 5) for size in shape])
    fine = coarse.repeat(5, 0).repeat(5, 1).repeat(5, 2)[tuple(map(slice, shape))]
    ids = np.arange(9, dtype=np.uint64) * (2**31 if dtype == "uint64" else 2**27)
    return ids.astype(dtype)[fine][None, None]
