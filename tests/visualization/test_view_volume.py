"""The stage that makes a page: what it writes, and what it refuses. The page in a browser: test_view_in_browser.py."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from viewer_volumes import VOXEL_NM, blocks, cells, write_volume

from kbrain_core.errors import IncompleteError, InputError, OutputExistsError, ResourceError, StageStopped
from kbrain_core.geometry import Box
from kbrain_core.stage import RunOptions
from kbrain_core.visualization import view_page
from kbrain_core.visualization.view_volume import view_volume

SHAPE = (12, 40, 48)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_volume(
        tmp_path_factory.mktemp("volumes") / "cells.ome.zarr", cells(SHAPE), format="ome_zarr"
    )


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_volume(
        tmp_path_factory.mktemp("volumes") / "objects.precomputed", blocks(SHAPE), kind="labels"
    )


def state_of(view: Path) -> Any:
    return json.loads((view / "state.json").read_text())


def test_a_page_is_whole_and_says_how_it_was_made(tmp_path: Path, image: Path, labels: Path) -> None:
    result = view_volume([str(image), str(labels)], tmp_path / "view", title="A </title><script>x</script>")
    view = tmp_path / "view"
    assert (result.image_layers, result.label_layers, result.copied_bytes) == (1, 1, 0)
    assert result.volume_voxels == 2 * np.prod(SHAPE)
    page = (view / "index.html").read_text()
    assert "<script>x" not in page and "A &lt;/title&gt;" in page
    scripts = [path.name for path in (view / "assets").iterdir()]
    assert any(name in page for name in scripts if name.startswith("index-"))
    state = state_of(view)
    assert [layer["name"] for layer in state["layers"]] == ["cells", "objects"]
    assert state["layers"][0]["source"]["url"] == "data/cells/|zarr3:"
    assert state["layers"][1]["source"][0]["url"] == "data/objects/|neuroglancer-precomputed:"
    assert state["position"] == [SHAPE[2] / 2 + 0.5, SHAPE[1] / 2 + 0.5, SHAPE[0] / 2 + 0.5]
    assert state["dimensions"]["z"][0] == pytest.approx(VOXEL_NM[0] * 1e-9)
    mounts = json.loads((view / "kneuroviz.json").read_text())["volumes"]
    assert (view / mounts["cells"]).resolve() == image.resolve()
    summary = json.loads((tmp_path / "view-summary.json").read_text())
    assert summary["outcome"] == "complete"
    assert "A </title>" not in (tmp_path / "view-report.html").read_text()


def test_the_same_page_again_is_done_and_a_killed_one_is_finished(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view = tmp_path / "view"
    first = view_volume([str(image)], view)
    before = state_of(view)
    assert view_volume([str(image)], view).figures() == first.figures()
    assert "already complete" in capsys.readouterr().err
    with pytest.raises(OutputExistsError, match="layout"):
        view_volume([str(image)], view, layout="xy")
    (view / ".kbrain" / "complete").unlink()
    (view / "index.html").unlink()
    (view / "state.json").unlink()
    view_volume([str(image)], view)
    assert state_of(view) == before and (view / "index.html").is_file()
    view_volume([str(image)], view, layout="xy", run=RunOptions(overwrite=True))
    assert state_of(view)["layout"] == "xy"


def test_a_dry_run_leaves_nothing(tmp_path: Path, image: Path) -> None:
    with pytest.raises(StageStopped):
        view_volume([str(image)], tmp_path / "view", run=RunOptions(dry_run=True))
    assert list(tmp_path.iterdir()) == []


def test_contrast_follows_the_percentiles(tmp_path: Path) -> None:
    """A ramp of 1 to 10000: percentiles are known. Zeros around it are empty, not dark."""
    ramp = np.zeros((10, 100, 20), dtype=np.uint16)
    ramp[:, :, :10] = np.arange(1, 10001).reshape(10, 100, 10)
    path = write_volume(tmp_path / "ramp.ome.zarr", ramp, format="ome_zarr")
    view_volume([str(path)], tmp_path / "view", black_percentile=10, white_percentile=90)
    control = state_of(tmp_path / "view")["layers"][0]["shaderControls"]["contrast"]
    # The volume has one level, so nothing is averaged: exact but for rounding outwards.
    assert control["range"] == pytest.approx([1000, 9001], abs=1)
    assert control["window"] == [1, 10000]


@pytest.mark.parametrize("value", [0, 7])
def test_a_flat_image_has_a_contrast(tmp_path: Path, value: int) -> None:
    path = write_volume(tmp_path / "flat.ome.zarr", np.full(SHAPE, value, np.uint8), format="ome_zarr")
    view_volume([str(path)], tmp_path / "view")
    black, white = state_of(tmp_path / "view")["layers"][0]["shaderControls"]["contrast"]["range"]
    assert black < white


def test_channels_names_and_colours(tmp_path: Path) -> None:
    channels = np.stack([cells(SHAPE), cells(SHAPE, seed=1), cells(SHAPE, seed=2)])
    names = ("DAPI", '"><script>', "")
    path = write_volume(tmp_path / "three.ome.zarr", channels, format="ome_zarr", channel_names=names)
    view_volume([str(path)], tmp_path / "view", name=["brain"], color=["Cyan", "#FF8000"])
    layers = state_of(tmp_path / "view")["layers"]
    assert [layer["name"] for layer in layers][:2] == ["brain DAPI", 'brain "><script>']
    assert [layer["shaderControls"]["color"] for layer in layers] == ["#00ffff", "#ff8000", "#00ffff"]
    assert [layer["localPosition"] for layer in layers] == [[0], [1], [2]]
    assert "<script>" not in (tmp_path / "view-report.html").read_text().split("<body")[1]


def test_two_inputs_of_one_name_stay_apart(tmp_path: Path, image: Path) -> None:
    copy = write_volume(tmp_path / "b" / "cells.ome.zarr", cells(SHAPE, seed=3), format="ome_zarr")
    view_volume([str(image), str(copy)], tmp_path / "view")
    urls = [layer["source"]["url"] for layer in state_of(tmp_path / "view")["layers"]]
    assert urls == ["data/cells/|zarr3:", "data/cells-2/|zarr3:"]


def test_labels_that_do_not_say_so(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "plain.precomputed", np.ones(SHAPE, np.uint16), encoding="raw")
    image = write_volume(tmp_path / "image.precomputed", cells(SHAPE), encoding="raw")
    result = view_volume([str(image)], tmp_path / "view", labels=[str(path)], segment=[2**63 - 1, 5])
    assert (result.image_layers, result.label_layers) == (1, 1)
    layer = state_of(tmp_path / "view")["layers"][1]
    assert (layer["type"], layer["segments"]) == ("segmentation", ["9223372036854775807", "5"])


def test_position_is_the_middle_of_a_box(tmp_path: Path, image: Path) -> None:
    view_volume([str(image)], tmp_path / "view", position=Box.from_text("x=10,y=4:8,z=0"))
    assert state_of(tmp_path / "view")["position"] == [10.5, 6.5, 0.5]


def test_copied_data_are_hard_links_and_whole(tmp_path: Path, labels: Path) -> None:
    result = view_volume([str(labels)], tmp_path / "view", data="copy")
    copied = tmp_path / "view" / "data" / "objects"
    originals = {path.relative_to(labels) for path in labels.rglob("*") if path.is_file()}
    assert {path.relative_to(copied) for path in copied.rglob("*") if path.is_file()} == originals
    assert (copied / "info").stat().st_ino == (labels / "info").stat().st_ino
    assert result.copied_bytes == sum((labels / path).stat().st_size for path in originals)
    assert not (tmp_path / "view" / "kneuroviz.json").exists()


def test_relative_addresses(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "my data" / "v#1.precomputed", cells(SHAPE), encoding="raw")
    view_volume([str(path)], tmp_path / "views" / "one", data="relative")
    url = state_of(tmp_path / "views" / "one")["layers"][0]["source"]["url"]
    assert url == "../../my%20data/v%231.precomputed/|neuroglancer-precomputed:"


def test_given_addresses_replace_those_of_the_page(tmp_path: Path, image: Path, labels: Path) -> None:
    unpacked = tmp_path / "unpacked"
    shutil.copytree(labels, unpacked / "50 % labels")  # an upload that kept the folder it was packed in
    state_file = tmp_path / "state.json"
    state_file.touch()  # the placeholder of a workflow system
    addresses = ["https://else.where/cells/", "/api/datasets/1f/extra_files/raw"]
    result = view_volume(
        [str(image)],
        tmp_path / "view",
        labels=[str(unpacked)],
        name=["Cells", "Objects"],
        title="Slice 7",
        data="copy",
        address=addresses,
        state_output=state_file,
    )
    state = json.loads(state_file.read_text())
    assert state == state_of(tmp_path / "view")
    assert state["title"] == "Slice 7"
    assert state["layers"][0]["source"]["url"] == "https://else.where/cells/|zarr3:"
    (source,) = state["layers"][1]["source"]
    folder = "/api/datasets/1f/extra_files/raw/50%20%25%20labels/"
    assert source["url"] == f"{folder}|neuroglancer-precomputed:"
    assert result.copied_bytes == 0 and not (tmp_path / "view" / "data").exists()


def test_the_state_alone_is_written_again_when_it_is_gone(tmp_path: Path, image: Path) -> None:
    def view(**options: Any) -> None:
        view_volume(
            [str(image)], tmp_path / "view", address=["/v"], state_output=tmp_path / "s.json", **options
        )

    view()
    first = (tmp_path / "s.json").read_text()
    (tmp_path / "s.json").unlink()
    view()
    assert (tmp_path / "s.json").read_text() == first
    with pytest.raises(OutputExistsError, match="--overwrite"):
        view_volume([str(image)], tmp_path / "b", address=["/v"], state_output=tmp_path / "s.json")
    assert not (tmp_path / "b").exists()
    view(layout="xy", run=RunOptions(overwrite=True))
    assert json.loads((tmp_path / "s.json").read_text())["layout"] == "xy"


def test_a_volume_at_a_url(tmp_path: Path, image: Path, serving: Callable[[Path], Any]) -> None:
    with serving(image.parent) as running:
        view_volume([f"{running.address}{image.name}"], tmp_path / "view")
        layer = state_of(tmp_path / "view")["layers"][0]
    assert layer["source"]["url"] == f"{running.address}cells.ome.zarr/|zarr3:"
    assert layer["shaderControls"]["contrast"]["range"][1] > 100


def test_bad_input_is_one_line_and_leaves_no_page(tmp_path: Path, image: Path, labels: Path) -> None:
    def refused(match: str, *inputs: Path, **options: Any) -> None:
        with pytest.raises(InputError, match=match) as caught:
            view_volume([str(path) for path in inputs], tmp_path / "view", **options)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "view").exists() and not (tmp_path / "state.json").exists()

    (tmp_path / "empty").mkdir()
    meshes = tmp_path / "meshes"
    meshes.mkdir()
    (meshes / "info").write_text('{"@type": "neuroglancer_legacy_mesh"}')
    no_size = write_volume(tmp_path / "n.ome.zarr", cells(SHAPE), format="ome_zarr", voxel_size_nm=None)
    refused("no 'missing'", Path("missing"))
    refused("is no volume", tmp_path / "empty")
    refused("No image or label volume", meshes)
    refused("is no colour", image, color=["octarine"])
    refused("2 colours were given for 1 channels", image, color=["red", "green"])
    refused("2 names were given for 1 inputs", image, name=["a", "b"])
    refused("2 addresses were given for 1 inputs", image, address=["/a", "/b"])
    refused("--address 'data/a' is nothing", image, address=["data/a"])
    refused("--address '//else.where/a' is nothing", image, address=["//else.where/a"])
    refused("--address 'javascript:a' is nothing", image, address=["javascript:a"])
    refused("does not find 'data/cells/': say with --address", image, state_output=tmp_path / "state.json")
    refused("black must be below white", image, black_percentile=60, white_percentile=40)
    refused("--zoom-um-per-px is nan", image, zoom_um_per_px=float("nan"))
    refused("--gpu-memory-gb is -1", image, gpu_memory_gb=-1.0)
    refused("--segment is 0", labels, segment=[0])
    refused("--segment is", labels, segment=[2**63])
    refused("x=500 but the volume has x=0:48", image, position=Box.from_text("x=500:501"))
    refused("is unknown, that of other volumes is known", no_size, image)
    refused("--zoom-um-per-px needs a voxel size", no_size, zoom_um_per_px=1.0)
    floats = write_volume(tmp_path / "f.ome.zarr", cells(SHAPE).astype(np.float32), format="ome_zarr")
    refused("labels are whole numbers", image, labels=[str(floats)])


def test_unfinished_volumes_and_pages_inside_volumes_are_refused(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "v.precomputed", cells(SHAPE), encoding="raw")
    with pytest.raises(InputError, match="lie in each other"):
        view_volume([str(path)], path / "view")
    (path / ".kbrain").mkdir()
    (path / ".kbrain" / "job.json").write_text("{}")
    with pytest.raises(IncompleteError):
        view_volume([str(path)], tmp_path / "view")


def test_a_link_out_of_a_volume_is_not_published(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "v.precomputed", cells(SHAPE), encoding="raw")
    (tmp_path / "secret").write_text("secret")
    (path / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="link out of the volume"):
        view_volume([str(path)], tmp_path / "view", data="copy")
    assert not (tmp_path / "view").exists()


def test_unknown_voxel_size_is_told(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "n.ome.zarr", cells(SHAPE), format="ome_zarr", voxel_size_nm=None)
    result = view_volume([str(path)], tmp_path / "view")
    assert result.warnings == ("The voxel size of 'n' is unknown: distances on the page are in voxels",)
    assert state_of(tmp_path / "view")["dimensions"]["x"] == [1, ""]


def test_without_the_client_there_is_one_line(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_page, "CLIENT", tmp_path / "nothing")
    with pytest.raises(ResourceError, match="make viewer"):
        view_volume([str(image)], tmp_path / "view")


def test_meshes_of_a_label_volume_are_selected(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "v.precomputed", blocks(SHAPE), kind="labels")
    info = json.loads((path / "info").read_text())
    (path / "info").write_text(json.dumps({**info, "mesh": "mesh", "skeletons": "../../outside"}))
    (path / "mesh").mkdir()
    for name in ("info", "12:0", "7:0.gz", "fragment", "0000.shard", f"{2**63 - 1}.index"):
        (path / "mesh" / name).write_text("{}")
    os.utime(path / "info")
    view_volume([str(path)], tmp_path / "view")
    assert state_of(tmp_path / "view")["layers"][0]["segments"] == ["7", "12", "9223372036854775807"]
