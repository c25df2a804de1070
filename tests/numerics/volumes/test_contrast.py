"""Contrast limits and the intensity window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kbrain_core.formats.volume import Volume, create_volume
from kbrain_core.formats.volume_spec import VolumeSpec
from kbrain_core.numerics.volumes import contrast
from kbrain_core.numerics.volumes.volume_writer import VolumeWriter
from kbrain_core.stage import RunOptions


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "float32"])
def test_window_maps_low_and_high_to_0_and_255(dtype: str) -> None:
    values = (
        np.array([[[-100, 10, 20, 60, 110, 120]]]).clip(0 if dtype[0] == "u" else -100, 120).astype(dtype)
    )
    # 60 is half-way: 127.5 rounds half to even, 128; 20 is 25.5, which becomes 26.
    expected = [[[0, 0, 26, 128, 255, 255]]]
    np.testing.assert_array_equal(contrast.apply_window(values, (10, 110)), expected)


def test_window_makes_nan_black() -> None:
    voxels = np.array([[[np.nan, np.inf, -np.inf, 1.0]]], np.float32)
    np.testing.assert_array_equal(contrast.apply_window(voxels, (0, 2)), [[[0, 255, 0, 128]]])


def test_limits_ignore_empty_margins_and_hot_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    voxels = rng.integers(1000, 2001, (20, 120, 130)).astype(np.uint16)
    voxels[:, :60] = 0
    voxels[3, 100, 100:110] = 65535
    spec = VolumeSpec.plan((1, 1, *voxels.shape), "uint16", voxel_size_nm=None, mips=0, chunk_zyx=(8, 16, 16))
    uri = str(tmp_path / "v")
    create_volume(uri, spec)
    writer = VolumeWriter(uri, spec)
    for box in writer.task_boxes():
        writer.write_block(0, 0, box, voxels[box.slices(voxels.shape)])
    writer.finish_levels(None, RunOptions(workers=1))
    volume = Volume.open(uri)
    # Values are even between 1000 and 2000: the 0.35th percentile is 3.5 above the lowest.
    assert contrast.contrast_limits(volume, 0) == pytest.approx((1003.5, 1996.5), abs=1)
    monkeypatch.setattr(contrast, "SAMPLE_VOXELS", 1000)
    sample = contrast.sample_voxels(volume, 0)
    assert sample.size < voxels.size / 3
    # A third of the chunks: the percentiles of a random sample of 30,000 are within a few grey levels of those of all.
    assert contrast.contrast_limits(volume, 0) == pytest.approx((1003.5, 1996.5), abs=5)
