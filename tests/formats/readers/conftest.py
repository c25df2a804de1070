"""What the reader tests share: images in which every voxel is different, and reading all of an image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kbrain_core.formats.readers import ImageReader


@pytest.fixture
def planted() -> np.ndarray:
    """(t, c, z, y, x) = (2, 3, 4, 33, 47) of uint16; a value tells its place, so swapped axes cannot pass."""
    return np.arange(2 * 3 * 4 * 33 * 47, dtype=np.uint32).reshape(2, 3, 4, 33, 47).astype(np.uint16)


@pytest.fixture
def read_all() -> Callable[..., np.ndarray]:
    def read(reader: ImageReader, series: int = 0) -> np.ndarray:
        times, channels = reader.images[series].shape[:2]
        whole = slice(None)
        return np.stack(
            [
                np.stack([reader.read(series, t, c, whole, whole, whole) for c in range(channels)])
                for t in range(times)
            ]
        )

    return read
