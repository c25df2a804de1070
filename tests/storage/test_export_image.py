"""export-image: what convert-image took in comes out again, read by tifffile and by our readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kbrain_core.errors import InputError, OutputExistsError, StageStopped
from kbrain_core.formats.readers import open_image
from kbrain_core.formats.volume import create_volume
from kbrain_core.formats.volume_spec import VolumeSpec
from kbrain_core.geometry import Box
from kbrain_core.numerics.volumes.volume_writer import VolumeWriter
from kbrain_core.stage import RunOptions
from kbrain_core.storage import export_image as module
from kbrain_core.storage.export_image import export_image

ONE = RunOptions(workers=1)


def _write(path: Path, voxels: np.ndarray, **options: Any) -> str:
    """Write a volume of (t, c, z, y, x) voxels."""
    spec = VolumeSpec.plan(
        voxels.shape,
        voxels.dtype,
        voxel_size_nm=(2000.0, 400.0, 500.0),
        offset_nm=(6000.0, 4000.0, 5000.0),
        channel_names=("DAPI", "GFP", "Cy5")[: voxels.shape[1]],
        **options,
    )
    create_volume(str(path), spec)
    writer = VolumeWriter(str(path), spec)
    for t in range(voxels.shape[0]):
        for c in range(voxels.shape[1]):
            for box in writer.task_boxes():
                writer.write_block(t, c, box, voxels[(t, c, *box.slices(voxels.shape[2:]))])
    writer.finish_levels(None, ONE)
    return str(path)


@pytest.fixture(scope="module")
def planted() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60000, (2, 3, 10, 280, 300), dtype=np.uint16)


@pytest.fixture(scope="module")
def volume(planted: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> str:
    return _write(tmp_path_factory.mktemp("volume") / "brain.ome.zarr", planted)


@pytest.mark.parametrize("compression", ["zlib", "zstd", "none"])
def test_ome_tiff(tmp_path: Path, volume: str, planted: np.ndarray, compression: Any) -> None:
    path = tmp_path / "a.ome.tif"
    result = export_image(volume, path, compression=compression, run=ONE)
    assert (result.files, result.planes, result.voxels) == (1, 60, planted.size)
    with tifffile.TiffFile(path) as tif:
        assert tif.is_ome and tif.pages.first.is_tiled and tif.series[0].axes == "TCZYX"
        np.testing.assert_array_equal(tif.asarray(), planted)
    with open_image(path) as reader:
        info = reader.images[0]
        assert info.voxel_size_um == (2.0, 0.4, 0.5) and info.channel_names == ("DAPI", "GFP", "Cy5")
        assert info.stage_um == (6.0, 4.0, 5.0)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_box(tmp_path: Path, volume: str, planted: np.ndarray, data: st.DataObject) -> None:
    cuts = []
    for size, least in zip(planted.shape[2:], (1, 1, 2), strict=True):
        low = data.draw(st.integers(0, size - least))
        cuts.append((low, data.draw(st.integers(low + least, size))))
    channel = data.draw(st.sampled_from([0, 1, 2]))
    box, path = Box(*cuts), tmp_path / "box.ome.tif"
    # less than two planes fit the slab: the planes of a row of chunks are read in turns
    path.unlink(missing_ok=True)
    export_image(volume, path, bbox=box, channel=[str(channel)], run=RunOptions(workers=1, memory_gb=0.0005))
    expected = planted[:, [channel]][(..., *box.slices(planted.shape[2:]))]
    with open_image(path) as reader:
        info = reader.images[0]
        assert info.shape == expected.shape
        for t in range(2):
            whole = (slice(None),) * 3
            np.testing.assert_array_equal(reader.read(0, t, 0, *whole), expected[t, 0])
        # the position of the box's first voxel in um
        place = (6 + 2 * cuts[0][0], 4 + 0.4 * cuts[1][0], 5 + 0.5 * cuts[2][0])
        assert info.stage_um == pytest.approx(place)


def test_a_coarse_level_has_its_own_voxel_size(tmp_path: Path, volume: str) -> None:
    path = tmp_path / "level.ome.tif"
    export_image(volume, path, level=1, run=ONE)
    with open_image(path) as reader:
        info = reader.images[0]
        assert info.shape[3:] == (140, 150) and info.voxel_size_um[1:] == (0.8, 1.0)
        # the first coarse voxel covers pixels 0 and 1: its centre is half a pixel further
        assert info.stage_um[1:] == pytest.approx((4 + 0.2, 5 + 0.25))


def test_imagej_hyperstack(tmp_path: Path, volume: str, planted: np.ndarray) -> None:
    path = tmp_path / "a.tif"
    export_image(volume, path, format="imagej", run=ONE)
    with tifffile.TiffFile(path) as tif:
        assert tif.is_imagej and tif.series[0].axes == "TZCYX"
        np.testing.assert_array_equal(tif.asarray(), planted.transpose(0, 2, 1, 3, 4))
        facts = tif.imagej_metadata or {}
        assert (
            facts["spacing"] == 2.0
            and facts["unit"] == "um"
            and facts["Labels"][:3] == ["DAPI", "GFP", "Cy5"]
        )
    with open_image(path) as reader:
        assert reader.images[0].voxel_size_um == pytest.approx((2.0, 0.4, 0.5))
        np.testing.assert_array_equal(reader.read(0, 1, 2, *(slice(None),) * 3), planted[1, 2])


def test_series_is_read_back_as_a_stack(tmp_path: Path, volume: str, planted: np.ndarray) -> None:
    folder = tmp_path / "series"
    folder.mkdir()  # an empty folder may be there
    result = export_image(volume, folder, format="series", channel=["GFP"], bbox=Box(y=(5, 200)), run=ONE)
    names = sorted(path.name for path in folder.iterdir())
    assert result.files == 20 and names[0] == "t0_z0.tif" and names[-1] == "t1_z9.tif"
    for name in names[10:]:
        (folder / name).unlink()
    with open_image(folder) as reader:
        np.testing.assert_array_equal(reader.read(0, 0, 0, *(slice(None),) * 3), planted[0, 1, :, 5:200])
        assert reader.images[0].voxel_size_um[1:] == pytest.approx((0.4, 0.5))


def test_what_a_format_cannot_hold_is_refused(
    tmp_path: Path, volume: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = _write(tmp_path / "labels", np.full((1, 1, 4, 20, 30), 2**40, np.uint64), kind="labels")
    with pytest.raises(InputError, match="OME-TIFF has no uint64 voxels: pass --format series"):
        export_image(labels, tmp_path / "a.tif", run=ONE)
    with pytest.raises(InputError, match="ImageJ has no uint64"):
        export_image(labels, tmp_path / "a.tif", format="imagej", run=ONE)
    export_image(labels, tmp_path / "series", format="series", run=ONE)
    assert int(tifffile.imread(tmp_path / "series" / "z0.tif").max()) == 2**40
    monkeypatch.setattr(module, "_CLASSIC_TIFF_BYTES", 1_000_000)
    with pytest.raises(InputError, match="an ImageJ hyperstack holds at most"):
        export_image(volume, tmp_path / "a.tif", format="imagej", run=ONE)
    export_image(volume, tmp_path / "big.ome.tif", run=ONE)
    with tifffile.TiffFile(tmp_path / "big.ome.tif") as tif:
        assert tif.is_bigtiff
    with pytest.raises(InputError, match="--level 9"):
        export_image(volume, tmp_path / "a.tif", level=9, run=ONE)
    with pytest.raises(InputError, match="1 voxel wide"):
        export_image(volume, tmp_path / "a.tif", bbox=Box(x=(4, 5)), run=ONE)
    assert not (tmp_path / "a.tif").exists()


def test_nothing_is_overwritten_and_nothing_half_is_left(
    tmp_path: Path, volume: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    path.write_text("mine")
    with pytest.raises(OutputExistsError):
        export_image(volume, path, run=ONE)
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "mine").write_text("mine")
    with pytest.raises(OutputExistsError, match="not empty"):
        export_image(volume, tmp_path / "series", format="series", run=RunOptions(workers=1, overwrite=True))
    export_image(volume, path, run=RunOptions(workers=1, overwrite=True))
    with pytest.raises(StageStopped):
        export_image(volume, tmp_path / "dry.tif", run=RunOptions(workers=1, dry_run=True))

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module, "_report", lambda *_: None)
    monkeypatch.setattr(module._Region, "planes", fail)
    with pytest.raises(OSError, match="disk full"):
        export_image(volume, tmp_path / "failed.tif", run=ONE)
    assert not (tmp_path / "failed.tif").exists() and not (tmp_path / "dry.tif").exists()
    assert not [entry.name for entry in tmp_path.iterdir() if entry.name.endswith(".tmp")]
