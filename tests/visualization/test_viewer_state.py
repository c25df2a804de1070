"""The state that a page opens with."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbrain_core.visualization.view_page import page_html
from kbrain_core.visualization.viewer_state import (
    Address,
    Contrast,
    ImageLayer,
    LabelLayer,
    Scene,
    viewer_state,
)

CONTRAST = Contrast(10, 200, 0, 255)
SCENE = Scene(
    title="title",
    layers=(ImageLayer("em", Address("data/em/|neuroglancer-precomputed:"), CONTRAST),),
    voxel_size_nm=(40.0, 8.0, 8.0),
    position_zyx=(3.5, 2.5, 1.5),
    layout="4panel",
    scale_bar=True,
    zoom_um_per_px=None,
    gpu_memory_gb=1.5,
    system_memory_gb=2.0,
    concurrent_downloads=10,
)


def test_axes_are_xyz_and_metres() -> None:
    state = viewer_state(SCENE)
    assert list(state["dimensions"]) == ["x", "y", "z"]
    assert state["dimensions"]["x"] == [pytest.approx(8e-9), "m"]
    assert state["dimensions"]["z"] == [pytest.approx(40e-9), "m"]
    assert state["position"] == [1.5, 2.5, 3.5]


def test_limits_and_closed_shader_panel() -> None:
    state = viewer_state(SCENE)
    assert (state["gpuMemoryLimit"], state["systemMemoryLimit"]) == (1_500_000_000, 2_000_000_000)
    assert state["concurrentDownloads"] == 10
    assert state["toolPalettes"]["Shader controls"]["visible"] is False
    assert "crossSectionScale" not in state  # the page fits the volume into its window


def test_zoom_is_counted_in_the_smallest_voxel_side() -> None:
    state = viewer_state(dataclasses.replace(SCENE, zoom_um_per_px=0.016))
    assert state["crossSectionScale"] == pytest.approx(2.0)  # 16 nm a pixel, 8 nm a voxel


def test_unknown_voxel_size_is_counted_in_voxels() -> None:
    assert viewer_state(dataclasses.replace(SCENE, voxel_size_nm=None))["dimensions"]["z"] == [1, ""]


def test_grey_for_one_channel_and_additive_colours_for_several() -> None:
    grey = viewer_state(SCENE)["layers"][0]
    assert "blend" not in grey
    assert grey["shaderControls"] == {"contrast": {"range": [10, 200], "window": [0, 255]}}
    precomputed = ImageLayer(
        "a", Address("a/|neuroglancer-precomputed:"), CONTRAST, channel=1, color="#00ff00"
    )
    zarr_address = Address("b/|zarr3:", "tczyx", (40.0, 8.0, 8.0))
    zarr = ImageLayer("b", zarr_address, CONTRAST, channel=1, color="#ff00ff")
    first, second = viewer_state(dataclasses.replace(SCENE, layers=(precomputed, zarr)))["layers"]
    assert first["blend"] == second["blend"] == "additive"
    assert first["shaderControls"]["contrast"]["channel"] == [1]
    assert second["localPosition"] == [1]
    # Half a voxel along z, y and x, none along t and c.
    assert [row[-1] for row in second["source"]["transform"]["matrix"]] == [0, 0, 0.5, 0.5, 0.5]
    assert list(second["source"]["transform"]["outputDimensions"]) == ["t", "c'", "z", "y", "x"]


def test_more_channels_than_one_can_tell_apart_wait_hidden() -> None:
    layers = tuple(ImageLayer(str(i), Address("a"), CONTRAST, i, "#00ff00") for i in range(6))
    states = viewer_state(dataclasses.replace(SCENE, layers=layers))["layers"]
    assert [state.get("visible", True) for state in states] == [True] * 4 + [False] * 2


@given(st.lists(st.integers(1, 2**63 - 1), max_size=5))
def test_ids_survive_json_as_text(ids: list[int]) -> None:
    layer = LabelLayer("labels", (Address("a"),), tuple(ids))
    state = json.loads(json.dumps(viewer_state(dataclasses.replace(SCENE, layers=(layer,)))))
    assert [int(text) for text in state["layers"][0].get("segments", [])] == ids


@given(st.text(max_size=60))
def test_a_title_cannot_break_out_of_the_page(title: str) -> None:
    page = page_html("<head><title>KNeuroViz</title></head>", title)
    inside = page.removeprefix("<head><title>").split("</title>")[0]
    assert "<" not in inside and ">" not in inside
    assert page.count("<title>") == page.count("</title>") == 1
    assert page.endswith('content="state.json"></head>')
