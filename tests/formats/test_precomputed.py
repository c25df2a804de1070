"""Precomputed volumes against cloud-volume, and the `info` file against the specification."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_volumes import label_blobs, write_volume

with warnings.catch_warnings():  # its dependencies use what Python has deprecated
    warnings.simplefilter("ignore")
    from cloudvolume import CloudVolume

SHAPE = (37, 75, 101)  # no axis is a multiple of a chunk


def read_with_cloud_volume(path: Path, mip: int) -> NDArray[Any]:
    """A whole level as (c, z, y, x); a chunk that is missing is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        volume = CloudVolume(f"file://{path}", mip=mip, progress=False, fill_missing=False)
        return np.asarray(volume[:]).T


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "dtype", "options"),
    [
        ("image", "uint8", {"encoding": "raw"}),
        ("image", "uint8", {"encoding": "raw", "sharded": False}),
        ("image", "uint16", {"encoding": "raw", "channels": 2}),
        ("image", "float32", {"encoding": "raw"}),
        ("image", "uint8", {"encoding": "png"}),
        (
            "image",
            "uint8",
            {"encoding": "png", "sharded": False},
        ),  # cloud-volume 12.15 reads PNG of 8 bits only
        ("labels", "uint32", {}),
        ("labels", "uint64", {}),
        ("labels", "uint64", {"sharded": False}),
        ("labels", "uint64", {"encoding": "raw"}),
    ],
)
def test_cloud_volume_reads_the_same_voxels(
    tmp_path: Path, kind: Any, dtype: str, options: dict[str, Any]
) -> None:
    channels = options.pop("channels", 1)
    if kind == "labels":
        voxels = label_blobs(SHAPE, dtype)
    else:
        voxels = np.random.default_rng(0).integers(0, 255, (1, channels, *SHAPE)).astype(dtype)
    voxels[..., 16:32, :32, 32:64] = 0  # empty chunks must be there too
    volume = write_volume(
        tmp_path / "v",
        voxels,
        format="precomputed",
        kind=kind,
        chunk_zyx=(16, 32, 32),
        mips=3,
        task_bytes=2**17,
        offset_nm=(800.0, 320.0, 640.0),
        **options,
    )
    assert len(volume.levels) == 4
    for mip in range(4):
        expected = volume.read((slice(None),) * 5, mip)[0]
        np.testing.assert_array_equal(read_with_cloud_volume(tmp_path / "v", mip), expected)
    np.testing.assert_array_equal(volume.read((slice(None),) * 5), voxels)


@pytest.mark.filterwarnings("ignore")
def test_cloud_volume_and_tensorstore_decode_the_same_jpeg(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 255, (1, 1, *SHAPE), np.uint8)
    volume = write_volume(tmp_path / "v", voxels, format="precomputed", encoding="jpeg", mips=1)
    for mip in range(2):
        ours = volume.read((slice(None),) * 5, mip)[0].astype(int)
        # Decoders may round the inverse transform differently by one grey level.
        assert np.abs(read_with_cloud_volume(tmp_path / "v", mip) - ours).max() <= 1


def test_info_says_what_the_specification_asks(tmp_path: Path) -> None:
    voxels = np.zeros((1, 1, 100, 300, 400), np.uint8)
    write_volume(
        tmp_path / "v",
        voxels,
        format="precomputed",
        voxel_size_nm=(40.0, 4.5, 4.0),
        offset_nm=(400.0, 45.0, 80.0),
        chunk_zyx=(16, 64, 64),
        mips=2,
        factor=(1, 2, 2),
    )
    info = json.loads((tmp_path / "v" / "info").read_text())
    assert (info["@type"], info["type"]) == ("neuroglancer_multiscale_volume", "image")
    assert (info["data_type"], info["num_channels"]) == ("uint8", 1)
    first, second, third = info["scales"]
    assert first["resolution"] == [4, 4.5, 40]
    assert first["key"] == "4_4.5_40"
    assert (first["size"], first["voxel_offset"]) == ([400, 300, 100], [20, 10, 10])
    assert first["chunk_sizes"] == [[64, 64, 16]]
    assert (second["size"], second["voxel_offset"]) == ([200, 150, 100], [10, 5, 10])
    assert (third["resolution"], third["size"]) == ([16, 18, 40], [100, 75, 100])
    # 7 x 5 x 7 chunks have 3 bits an axis: 9 bits, all of them in one shard as the volume is small.
    assert first["sharding"] == {
        "@type": "neuroglancer_uint64_sharded_v1",
        "hash": "identity",
        "preshift_bits": 9,
        "minishard_bits": 0,
        "shard_bits": 0,
        "minishard_index_encoding": "gzip",
        "data_encoding": "raw",
    }


def test_shards_with_several_minishards_are_read(tmp_path: Path) -> None:
    """More than 2^9 chunks in a shard: the minishard bits are used."""
    voxels = np.random.default_rng(0).integers(0, 255, (1, 1, 40, 40, 40), np.uint8)
    volume = write_volume(tmp_path / "v", voxels, format="precomputed", chunk_zyx=(4, 4, 4), mips=0)
    sharding = json.loads((tmp_path / "v" / "info").read_text())["scales"][0]["sharding"]
    assert (sharding["preshift_bits"], sharding["minishard_bits"]) == (9, 3)
    np.testing.assert_array_equal(volume.read((slice(None),) * 5), voxels)
    assert len(list((tmp_path / "v").rglob("*.shard"))) == 1
