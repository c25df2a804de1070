"""OME-Zarr against zarr-python, and its metadata against the NGFF specification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from small_volumes import EVERYTHING, write_volume

from kbrain_core.errors import InputError
from kbrain_core.formats.volume import Volume


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "uint64"])
@pytest.mark.parametrize("options", [{}, {"encoding": "raw"}, {"sharded": False}, {"ngff_version": "0.4"}])
def test_zarr_python_reads_the_same_voxels(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    voxels = np.random.default_rng(0).integers(0, 100, (1, 2, 13, 70, 90)).astype(dtype)
    kind = "labels" if dtype == "uint64" else "image"
    volume = write_volume(
        tmp_path / "v", voxels, kind=kind, chunk_zyx=(8, 16, 16), mips=2, task_bytes=2**15, **options
    )
    group = zarr.open_group(tmp_path / "v", mode="r")
    for index in range(3):
        np.testing.assert_array_equal(group[str(index)][:], volume.read(EVERYTHING, index))


def metadata(path: Path, version: str) -> dict[str, Any]:
    """The NGFF part of a group's attributes."""
    if version == "0.4":
        content: dict[str, Any] = json.loads((path / ".zattrs").read_text())
        return content
    attributes: dict[str, Any] = json.loads((path / "zarr.json").read_text())["attributes"]
    ome: dict[str, Any] = attributes["ome"]
    return ome


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_averaged_levels_are_centred_between_their_source_voxels(tmp_path: Path, version: Any) -> None:
    voxels = np.ones((1, 1, 10, 40, 40), np.uint8)
    write_volume(
        tmp_path / "v",
        voxels,
        voxel_size_nm=(40.0, 4.0, 4.0),
        offset_nm=(400.0, 0.0, 12.0),
        mips=2,
        ngff_version=version,
    )
    multiscale = metadata(tmp_path / "v", version)["multiscales"][0]
    assert [axis["name"] for axis in multiscale["axes"]] == list("tczyx")
    assert multiscale["axes"][2] == {"name": "z", "type": "space", "unit": "nanometer"}
    found = [
        (dataset["path"], *(step[step["type"]] for step in dataset["coordinateTransformations"]))
        for dataset in multiscale["datasets"]
    ]
    # Two voxels of 4 nm at 0 and 4 nm: their mean lies at 2 nm; four of them: at 6 nm.
    assert found == [
        ("0", [1, 1, 40, 4, 4], [0, 0, 400, 0, 12]),
        ("1", [1, 1, 40, 8, 8], [0, 0, 400, 2, 14]),
        ("2", [1, 1, 40, 16, 16], [0, 0, 400, 6, 18]),
    ]


def test_channels_have_names_and_contrast(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(100, 301, (1, 2, 8, 64, 64)).astype(np.uint16)
    voxels[:, 1] *= 10
    write_volume(tmp_path / "v", voxels, channel_names=("DAPI", "GFP"), mips=0)
    first, second = metadata(tmp_path / "v", "0.5")["omero"]["channels"]
    assert (first["label"], second["label"]) == ("DAPI", "GFP")
    assert (first["window"]["min"], first["window"]["max"]) == (0, 65535)
    # Values are even between 100 and 300: the percentiles 0.35 and 99.65 are within a grey level of the ends.
    assert first["window"]["start"] == pytest.approx(100, abs=2)
    assert second["window"]["end"] == pytest.approx(3000, abs=20)


def test_labels_say_so(tmp_path: Path) -> None:
    write_volume(tmp_path / "v", np.ones((1, 1, 2, 8, 8), np.uint32), kind="labels")
    ome = metadata(tmp_path / "v", "0.5")
    assert "image-label" in ome
    assert "omero" not in ome


def _foreign(path: Path, axes: str, shape: tuple[int, ...], **changes: Any) -> None:
    """A 0.4 volume as another program may write it."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("s0", data=np.arange(np.prod(shape), dtype=np.uint16).reshape(shape))
    kinds = {"t": "time", "c": "channel"}
    multiscale = {
        "axes": [{"name": axis, "type": kinds.get(axis, "space"), "unit": "micrometer"} for axis in axes],
        "datasets": [
            {
                "path": "s0",
                "coordinateTransformations": [{"type": "scale", "scale": [0.5] * len(axes)}],
            }
        ],
        **changes,
    }
    group.attrs["multiscales"] = [multiscale]


@pytest.mark.parametrize(
    ("axes", "shape", "as_five"),
    [
        ("yx", (5, 6), (1, 1, 1, 5, 6)),
        ("zyx", (3, 5, 6), (1, 1, 3, 5, 6)),
        ("czyx", (2, 3, 5, 6), (1, 2, 3, 5, 6)),
        ("tcyx", (2, 2, 5, 6), (2, 2, 1, 5, 6)),
        ("xyz", (6, 5, 3), (1, 1, 3, 5, 6)),
    ],
)
def test_any_axes_are_read(
    tmp_path: Path, axes: str, shape: tuple[int, ...], as_five: tuple[int, ...]
) -> None:
    _foreign(tmp_path / "v", axes, shape)
    volume = Volume.open(str(tmp_path / "v"))
    assert volume.shape == as_five
    assert volume.voxel_size_nm == (500.0, 500.0, 500.0)
    voxels = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    order = [axes.index(axis) for axis in "tczyx" if axis in axes]
    np.testing.assert_array_equal(volume.read(EVERYTHING), voxels.transpose(order).reshape(as_five))


def test_transformations_of_the_whole_image_count(tmp_path: Path) -> None:
    steps = [
        {"type": "scale", "scale": [2.0, 1.0, 1.0]},
        {"type": "translation", "translation": [5.0, 0.0, 1.0]},
    ]
    _foreign(tmp_path / "v", "zyx", (3, 5, 6), coordinateTransformations=steps)
    volume = Volume.open(str(tmp_path / "v"))
    assert volume.voxel_size_nm == (1000.0, 500.0, 500.0)
    assert volume.offset_nm == (5000.0, 0.0, 1000.0)


def test_size_without_unit_is_unknown(tmp_path: Path) -> None:
    _foreign(tmp_path / "v", "zyx", (3, 5, 6))
    attributes = tmp_path / "v" / ".zattrs"
    attributes.write_text(attributes.read_text().replace("micrometer", "unknown"))
    assert Volume.open(str(tmp_path / "v")).voxel_size_nm is None


def test_missing_array_is_named(tmp_path: Path) -> None:
    write_volume(tmp_path / "v", np.ones((1, 1, 4, 64, 64), np.uint8), mips=1)
    (tmp_path / "v" / "1" / "zarr.json").unlink()
    with pytest.raises(InputError, match="/1' of the OME-Zarr volume is missing"):
        Volume.open(str(tmp_path / "v"))
