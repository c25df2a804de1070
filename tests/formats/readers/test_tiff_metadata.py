"""Calibration in instrument tags: planted in TIFF tags by tifffile, found by ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from kbrain_core.formats.readers import ImageInfo, open_image

FEI = """[User]
Date=03/12/2019
Time=01:22:33 PM
[Scan]
PixelWidth=4e-009
PixelHeight=5e-009
[Stage]
StageX=0.001
StageY=-0.002
StageZ=0.004
"""
ZEISS = """DP_X
Dummy = 1
AP_IMAGE_PIXEL_SIZE
Image Pixel Size = 7.5 nm
AP_STAGE_AT_X
Stage at X = 12.5 mm
AP_STAGE_AT_Y
Stage at Y = -3.25 mm
AP_STAGE_AT_Z
Stage at Z = 41 mm
AP_DATE
Date :12 Mar 2019
AP_TIME
Time :13:22:33
"""


def _info(path: Path, tags: list[Any], **options: Any) -> ImageInfo:
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8), metadata=None, extratags=tags, **options)
    with open_image(path) as reader:
        return reader.images[0]


@pytest.mark.parametrize("tag", [34680, 34682])
def test_thermo(tmp_path: Path, tag: int) -> None:
    info = _info(tmp_path / "fei.tif", [(tag, "s", 0, FEI, True)])
    assert info.voxel_size_um == pytest.approx((None, 0.005, 0.004))  # metres in the tag
    assert info.stage_um == pytest.approx((4000, -2000, 1000))
    assert info.acquired_at == "2019-03-12T13:22:33"
    assert info.voxel_size_from == "Thermo (FEI) tag"


def test_zeiss_sem(tmp_path: Path) -> None:
    info = _info(tmp_path / "zeiss.tif", [(34118, "s", 0, ZEISS, True)])
    assert info.voxel_size_um == pytest.approx((None, 0.0075, 0.0075))
    assert info.stage_um == pytest.approx((41000, -3250, 12500))
    assert info.acquired_at == "2019-03-12T13:22:33"
    assert info.voxel_size_from == "Zeiss SEM tag"


def test_micro_manager(tmp_path: Path) -> None:
    tag = json.dumps(
        {
            "PixelSizeUm": 0.65, "z-step_um": 2.0, "XPositionUm": 1200.5, "YPositionUm": -7.0, "ZPositionUm": 3.0,
            "ReceivedTime": "2021-05-06 07:08:09.123 +0200",
        }
    )  # fmt: skip
    info = _info(tmp_path / "mm.tif", [(51123, "s", 0, tag, True)])
    assert info.voxel_size_um == (2.0, 0.65, 0.65)
    assert info.stage_um == (3.0, -7.0, 1200.5)
    assert info.acquired_at == "2021-05-06T07:08:09"


def test_zeiss_lsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tifffile reads the LSM tag and writes none: its dictionary is planted."""
    facts = {"VoxelSizeX": 5e-07, "VoxelSizeY": 4e-07, "VoxelSizeZ": 2e-06, "Positions": [(1e-3, 2e-3, 3e-6)]}
    monkeypatch.setattr(tifffile.TiffFile, "lsm_metadata", facts)
    info = _info(tmp_path / "a.lsm", [])
    assert info.voxel_size_um == pytest.approx((2.0, 0.4, 0.5))
    assert info.stage_um == pytest.approx((3.0, 2000.0, 1000.0))


def test_plain_resolution_counts_only_in_centimetres(tmp_path: Path) -> None:
    micro = _info(tmp_path / "cm.tif", [], resolution=(20000, 40000), resolutionunit="CENTIMETER")
    assert micro.voxel_size_um == pytest.approx((None, 0.25, 0.5))
    printer = _info(tmp_path / "inch.tif", [], resolution=(300, 300), resolutionunit="INCH")
    assert printer.voxel_size_um == (None, None, None) and printer.voxel_size_from == "not given"
    coarse = _info(tmp_path / "page.tif", [], resolution=(118, 118), resolutionunit="CENTIMETER")  # 300 dpi
    assert coarse.voxel_size_um == (None, None, None)


def test_date_of_the_file_is_the_last_resort(tmp_path: Path) -> None:
    assert _info(tmp_path / "d.tif", [], datetime="2020:01:02 03:04:05").acquired_at == "2020-01-02T03:04:05"


@pytest.mark.parametrize(
    "text", ["[Scan]\nPixelWidth=nan\nPixelHeight=-1\n", "[Stage]\nStageX=inf\n", "garbage"]
)
def test_nonsense_is_not_known(tmp_path: Path, text: str) -> None:
    info = _info(tmp_path / "bad.tif", [(34682, "s", 0, text, True)])
    assert info.voxel_size_um == (None, None, None) and info.stage_um == (None, None, None)
