"""N5 and Zarr arrays written by tensorstore and zarr-python, and OME-Zarr."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr

from kbrain_core.errors import InputError
from kbrain_core.formats.readers import open_image

Read = Callable[..., np.ndarray]
BOX = (slice(1, 3), slice(5, 20), slice(40, 47))


def _write_n5(path: Path, volume_zyx: np.ndarray, attributes: dict[str, Any]) -> None:
    spec = {
        "driver": "n5",
        "kvstore": {"driver": "file", "path": str(path)},
        "metadata": {
            "dataType": str(volume_zyx.dtype), "dimensions": volume_zyx.shape[::-1],
            "blockSize": [16, 16, 2], "compression": {"type": "gzip"},
        },
    }  # fmt: skip
    tensorstore.open(spec, create=True).result().write(volume_zyx.T).result()
    stored = json.loads((path / "attributes.json").read_text())
    (path / "attributes.json").write_text(json.dumps(stored | attributes))


@pytest.mark.parametrize(
    "attributes",
    [
        {"resolution": [500, 400, 2000], "units": ["nm", "nm", "nm"]},
        {"pixelResolution": {"dimensions": [0.25, 0.2, 2.0], "unit": "um"}, "downsamplingFactors": [2, 2, 1]},
    ],
)
def test_n5(tmp_path: Path, planted: np.ndarray, read_all: Read, attributes: dict[str, Any]) -> None:
    root = tmp_path / "a.n5"
    _write_n5(root / "raw" / "s0", planted[0, 0], attributes)
    _write_n5(root / "labels", planted[0, 1], {})
    (root / "attributes.json").write_text('{"n5": "2.0.0"}')
    with pytest.raises(InputError, match=r"2 data sets: choose one with --dataset \(labels, raw/s0\)"):
        open_image(root)
    with open_image(root, "raw/s0") as reader:
        assert reader.images[0].voxel_size_um == (2.0, 0.4, 0.5)
        assert reader.images[0].block_zyx == (2, 16, 16)
        np.testing.assert_array_equal(read_all(reader)[0, 0], planted[0, 0])
        np.testing.assert_array_equal(reader.read(0, 0, 0, *BOX), planted[0, 0][BOX])
    with pytest.raises(InputError, match="leads out"):
        open_image(root, "raw/../../elsewhere")


@pytest.mark.parametrize("version", [2, 3])
def test_plain_zarr(tmp_path: Path, planted: np.ndarray, read_all: Read, version: int) -> None:
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=version)
    root.create_array("deep/volume", data=planted, chunks=(1, 1, 2, 16, 16))
    with pytest.raises(InputError, match="deep/volume"):
        open_image(tmp_path / "a.zarr", "nothing")
    with open_image(tmp_path / "a.zarr", "deep/volume") as reader:
        np.testing.assert_array_equal(read_all(reader), planted)
    with open_image(tmp_path / "a.zarr" / "deep" / "volume") as reader:
        np.testing.assert_array_equal(reader.read(0, 1, 2, *BOX), planted[1, 2][BOX])


def test_damaged_metadata(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), shape=(4, 4), dtype="uint8", chunks=(2, 2), zarr_format=2)
    (tmp_path / "a.zarr" / ".zarray").write_text('{"zarr_format": 2}')
    with pytest.raises(InputError, match=r"a\.zarr cannot be read"):
        open_image(tmp_path / "a.zarr")
