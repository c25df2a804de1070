"""What is read from tile files: every image in them once, damaged ones with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from kbrain_core.numerics.sorting.tile_measurement import MeasuredTile, MeasureTask, measure_file

RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 4000, (2, 5, 48, 64)).astype(np.uint16)  # channels, planes


def measure(path: Path, split: bool = False) -> list[MeasuredTile]:
    return measure_file(MeasureTask(0, str(path), split, 32))


@pytest.fixture
def ome(tmp_path: Path) -> Path:
    path = tmp_path / "stack.ome.tif"
    metadata = {
        "axes": "CZYX", "Channel": {"Name": ["DAPI", "GFP"]}, "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm", "PhysicalSizeZ": 2.0, "PhysicalSizeZUnit": "µm",
    }  # fmt: skip
    tifffile.imwrite(path, STACK, ome=True, metadata=metadata, photometric="minisblack")
    return path


def test_a_row_per_channel(ome: Path) -> None:
    first, second = measure(ome)
    assert (first.channel_name, second.channel_name) == ("DAPI", "GFP")
    assert (first.page, second.page) == (0, 5)
    assert first.shape_zyx == (5, 48, 64)
    assert first.voxel_um == (2.0, 0.5, 0.5)
    assert first.sha256 != second.sha256
    assert first.thumbnail is not None and first.thumbnail.shape == (24, 32)


def test_planes_can_be_tiles(ome: Path) -> None:
    tiles = measure(ome, split=True)
    assert [(t.channel, t.plane, t.page) for t in tiles] == [
        (c, z, 5 * c + z) for c in range(2) for z in range(5)
    ]
    assert all(t.shape_zyx == (1, 48, 64) for t in tiles)
    assert len({t.sha256 for t in tiles}) == 10


def test_checksum_is_of_the_pixels_and_not_of_the_file(tmp_path: Path) -> None:
    for name, options in {"a.tif": {}, "b.tif": {"compression": "zlib"}, "c.tif": {"byteorder": ">"}}.items():
        tifffile.imwrite(tmp_path / name, STACK[0, 0], **options)
    tifffile.imwrite(tmp_path / "d.tif", STACK[0, 0].T.copy())
    sums = [measure(tmp_path / name)[0].sha256 for name in ("a.tif", "b.tif", "c.tif", "d.tif")]
    assert sums[0] == sums[1] == sums[2] != sums[3]


def test_saturation_counts_all_planes(tmp_path: Path) -> None:
    stack = np.minimum(STACK[0], 4000)
    stack[3, :12, :16] = 4095  # a 12-bit camera gives itself away
    stack[0, 0, 0] = 1023
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    assert measure(tmp_path / "a.tif")[0].saturated_fraction == pytest.approx(12 * 16 / stack.size)
    tifffile.imwrite(tmp_path / "f.tif", stack.astype(np.float32), photometric="minisblack")
    assert measure(tmp_path / "f.tif")[0].saturated_fraction is None


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "header"])
def test_unreadable_files_have_a_reason(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[0, 0], compression="zlib")
    whole = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "text": b"no image", "truncated": whole[:2000], "header": whole[:20]}[damage]
    )
    tiles = measure(path)
    assert len(tiles) == 1
    assert tiles[0].reason and "\n" not in tiles[0].reason and str(tmp_path) not in tiles[0].reason
    assert tiles[0].sha256 is None
