"""CZI phantoms: mosaics, compressions, colours, stored pyramids, damage."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from czi_phantom import COMPRESSIONS, Plane, write_czi

from kbrain_core.errors import InputError
from kbrain_core.formats.readers import open_image

Read = Callable[..., np.ndarray]
METADATA = """<ImageDocument><Metadata><Information><Image>
<ComponentBitCount>12</ComponentBitCount><AcquisitionDateAndTime>2022-02-03T04:05:06Z</AcquisitionDateAndTime>
<Dimensions><Channels><Channel Id="Channel:0" Name="DAPI"/><Channel Id="Channel:1" Name="GFP"/></Channels></Dimensions>
</Image></Information><Scaling><Items><Distance Id="X"><Value>5E-07</Value></Distance>
<Distance Id="Y"><Value>4E-07</Value></Distance><Distance Id="Z"><Value>2E-06</Value></Distance></Items></Scaling>
</Metadata></ImageDocument>"""
FOCUS = "<METADATA><Tags><FocusPosition>1234.5</FocusPosition></Tags></METADATA>"


def _mosaic() -> tuple[np.ndarray, list[Plane]]:
    """(m, c, z, y, x) = (3, 2, 4, 40, 50) of smooth 12-bit planes, 45 pixels from tile to tile."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 4096, (3, 2, 4, 40, 50), dtype=np.uint16)
    planes = [
        Plane(tiles[m, c, z], {"X": 45 * m - 10, "Y": 7 * m, "C": c, "Z": z, "T": 0, "M": m})
        for m in range(3)
        for c in range(2)
        for z in range(4)
    ]
    return tiles, planes


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_tile_of_a_mosaic_is_an_image(tmp_path: Path, read_all: Read, compression: str) -> None:
    tiles, planes = _mosaic()
    path = tmp_path / "mosaic.czi"
    write_czi(path, planes, compression, METADATA, FOCUS)
    with open_image(path) as reader:
        assert len(reader.images) == 3
        info = reader.images[2]
        assert info.shape == (1, 2, 4, 40, 50) and info.bits == 12 and info.name == "M2"
        assert info.channel_names == ("DAPI", "GFP")
        assert info.acquired_at == "2022-02-03T04:05:06Z"
        assert info.voxel_size_um == pytest.approx((2.0, 0.4, 0.5))
        # tile 2 begins at pixel (14, 80) of the instrument's mosaic
        assert info.stage_um == pytest.approx((1234.5, 14 * 0.4, 80 * 0.5))
        for number, tile in enumerate(tiles):
            np.testing.assert_array_equal(read_all(reader, number)[0], tile)


@pytest.mark.parametrize("compression", ["none", "zstd1_hilo"])
def test_colours_are_stored_blue_first(tmp_path: Path, read_all: Read, compression: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 60000, (20, 30, 3), dtype=np.uint16)
    path = tmp_path / "rgb.czi"
    write_czi(path, [Plane(pixels, {"X": 0, "Y": 0, "C": 0})], compression)
    with open_image(path) as reader:
        assert reader.images[0].channel_names == ("0 R", "0 G", "0 B")
        np.testing.assert_array_equal(read_all(reader)[0, :, 0], pixels.transpose(2, 0, 1)[::-1])


def test_stored_pyramids_are_left_out_and_scenes_kept_apart(tmp_path: Path, read_all: Read) -> None:
    planes = [Plane(np.full((20, 30), s + 1, np.uint8), {"X": 0, "Y": 0, "C": 0, "S": s}) for s in range(2)]
    planes.append(Plane(np.full((10, 15), 99, np.uint8), {"X": 0, "Y": 0, "C": 0, "S": 0}, pyramid_factor=2))
    path = tmp_path / "scenes.czi"
    write_czi(path, planes)
    with open_image(path) as reader:
        assert [info.name for info in reader.images] == ["S0", "S1"]
        assert [int(read_all(reader, s).mean()) for s in range(2)] == [1, 2]


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.7, 0.95])
def test_truncated(tmp_path: Path, read_all: Read, kept: float) -> None:
    path = tmp_path / "cut.czi"
    write_czi(path, _mosaic()[1], metadata=METADATA)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(InputError, match=r"cut\.czi"), open_image(path) as reader:
        read_all(reader)


def test_interrupted_acquisition_and_missing_plane(tmp_path: Path, read_all: Read) -> None:
    path = tmp_path / "a.czi"
    write_czi(path, _mosaic()[1][:-1])
    with open_image(path) as reader, pytest.raises(InputError, match="lacks the plane t=0, c=1, z=3"):
        read_all(reader, 2)
    content = bytearray(path.read_bytes())
    content[32 + 52 : 32 + 60] = bytes(8)  # no directory yet
    path.write_bytes(content)
    with pytest.raises(InputError, match="interrupted"):
        open_image(path)


def test_unknown_compression(tmp_path: Path, read_all: Read) -> None:
    path = tmp_path / "lzw.czi"
    write_czi(path, [Plane(np.zeros((20, 30), np.uint8), {"X": 0, "Y": 0, "C": 0})])
    content = path.read_bytes()
    entry = content.rindex(b"DV")  # the directory's entry
    path.write_bytes(content[: entry + 18] + b"\2\0\0\0" + content[entry + 22 :])
    with open_image(path) as reader, pytest.raises(InputError, match="compression 2"):
        read_all(reader)
