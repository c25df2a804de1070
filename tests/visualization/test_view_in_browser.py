"""The page in a real browser: headless Chromium draws it, and what it draws is compared with the volume.

Screenshots are kept in the folder KBRAIN_ARTEFACTS, `build/artefacts` by default.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from viewer_volumes import blocks, cells, write_volume

from kbrain_core.formats.volume import Volume
from kbrain_core.visualization.view_volume import view_volume

pytestmark = pytest.mark.browser

ARTEFACTS = Path(os.environ.get("KBRAIN_ARTEFACTS", Path(__file__).parents[2] / "build" / "artefacts"))
# Software WebGL; nothing of the browser's own may reach for the network.
CHROMIUM_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
RIM_PX = 8  # a panel's frame
WINDOW = {"width": 800, "height": 640}
READY = "window.viewer && viewer.layerManager.managedLayers.length >= {layers} && viewer.isReady()"
READY_MS = 30_000  # drawn in 2-8 s on two idle cores; a busy machine takes its time
# Without lines and scale bar every pixel is a voxel; the first slice panel and what it shows, from the viewer itself.
BARE = """() => {
  viewer.showAxisLines.value = false;
  viewer.showDefaultAnnotations.value = false;
  viewer.showScaleBar.value = false;
}"""
HIDDEN = ".neuroglancer-display-dimensions-widget, .neuroglancer-data-panel-layout-controls { display: none !important; }"
PANEL = """() => {
  const panel = [...viewer.display.panels][0];
  const box = panel.element.getBoundingClientRect();
  const { logicalWidth, logicalHeight } = panel.renderViewport;
  return {
    left: box.left + panel.element.clientLeft, top: box.top + panel.element.clientTop,
    width: logicalWidth, height: logicalHeight,
    position: [...viewer.position.value], scale: viewer.navigationState.zoomFactor.value,
  };
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    assert chromium, "Chromium is missing: apt-get install chromium"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM_FLAGS))
        yield running
        running.close()


class Shown:
    """An opened page."""

    def __init__(self, page: Any, name: str) -> None:
        self.page = page
        self.name = name

    def pixels(self) -> NDArray[np.uint8]:
        """The screen (Y, X, 3)."""
        import imagecodecs

        return np.asarray(imagecodecs.png_decode(self.page.screenshot()))[..., :3]

    def keep_screenshot(self) -> None:
        """Keep what a user would see now."""
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=ARTEFACTS / f"{self.name}.png")

    def plane(self) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """Colours (Y, X, 3) on the screen at the middle of each whole voxel of the first panel, with the voxels' y and x."""
        self.page.evaluate(BARE)
        self.wait()
        panel = self.page.evaluate(PANEL)
        screen = self.pixels()
        rows, y = _voxel_pixels(panel["height"], panel["position"][1], panel["scale"], panel["top"])
        columns, x = _voxel_pixels(panel["width"], panel["position"][0], panel["scale"], panel["left"])
        return screen[np.ix_(rows, columns)], y, x

    def wait(self, layers: int = 1) -> None:
        self.page.wait_for_function(READY.format(layers=layers), timeout=READY_MS)
        # The last chunk is on the screen one frame after the viewer says it is ready.
        self.page.evaluate(
            "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def state(self) -> Any:
        return self.page.evaluate("JSON.parse(JSON.stringify(viewer.state.toJSON()))")


def _voxel_pixels(
    length_px: float, position: float, scale: float, start_px: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels at the middles of the voxels inside a panel's rim, and these voxels; the panel's middle is at `position`."""
    half = (length_px / 2 - RIM_PX) * scale
    first, last = math.ceil(position - half), math.floor(position + half)
    voxels = np.arange(first, last)
    pixels = (voxels + 0.5 - position) / scale + length_px / 2 + start_px
    return np.floor(pixels).astype(np.int64), voxels


@pytest.fixture
def show(
    browser: Any, serving: Callable[[Path], Any], request: pytest.FixtureRequest
) -> Iterator[Callable[..., Any]]:
    """Open a view (or any page below it) in a window of its own; errors on the page fail the test."""
    opened = []

    def open_page(running: Any, *, layers: int = 1) -> Shown:
        page = browser.new_page(viewport=WINDOW)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        opened.append((page, errors))
        page.goto(running.address)
        page.add_style_tag(content=HIDDEN)
        shown = Shown(page, request.node.name.replace("[", "-").rstrip("]"))
        try:
            shown.wait(layers)
        finally:
            shown.keep_screenshot()
        return shown

    yield open_page
    for page, errors in opened:
        messages = page.evaluate(
            "[...document.querySelectorAll('.neuroglancer-status-container')].map(e => e.textContent)"
        )
        page.close()
        assert errors == []
        assert "".join(messages) == ""


def expected_grey(
    volume: Volume, state: Any, y: NDArray[np.int64], x: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Grey values (0 to 255) that the page should show of the plane it is at."""
    black, white = state["layers"][0]["shaderControls"]["contrast"]["range"]
    z = math.floor(state["position"][2])
    plane = volume.read((slice(0, 1), slice(0, 1), slice(z, z + 1), slice(None), slice(None)))[0, 0, 0]
    return np.asarray(np.clip((plane[np.ix_(y, x)].astype(float) - black) / (white - black), 0, 1) * 255)


@pytest.mark.parametrize(
    ("format", "encoding"),
    [("precomputed", "jpeg"), ("precomputed", "raw"), ("ome_zarr", None)],
    ids=["precomputed-sharded-jpeg", "precomputed-sharded-raw", "ome-zarr-sharded"],
)
def test_a_drawn_slice_is_the_volume(
    tmp_path: Path, show: Any, serving: Any, format: Any, encoding: Any
) -> None:
    path = write_volume(
        tmp_path / "cells.vol",
        cells((40, 180, 240)),
        format=format,
        encoding=encoding,
        chunk_zyx=(32, 64, 64),
    )
    # 4 screen pixels per voxel of 10 nm: pixel and voxel borders coincide, and the view is smaller than the volume.
    view_volume([str(path)], tmp_path / "view", layout="xy", zoom_um_per_px=0.0025)
    with serving(tmp_path / "view") as running:
        page = show(running)
        drawn, y, x = page.plane()
    assert len(y) > 100 and len(x) > 150  # the panel shows a large part of the slice
    expected = expected_grey(Volume.open(str(path)), page.state(), y, x)
    difference = np.abs(drawn.astype(float) - expected[..., np.newaxis])
    # One grey level is rounding on its way to the screen. JPEG: two decoders may differ by 2 levels, which the contrast
    # of this volume (about 170 levels to 255) makes 3.
    assert difference.max() <= (4 if encoding == "jpeg" else 1)


def test_a_volume_that_does_not_begin_at_zero_and_two_formats_coincide(
    tmp_path: Path, show: Any, serving: Any
) -> None:
    """OME-Zarr counts from voxel middles and precomputed from corners: a spot must be at one place in both."""
    spots = np.full((8, 96, 96), 20, dtype=np.uint8)
    spots[:, 40:44, 30:34] = 220
    offset_nm = (200.0, 500.0, 300.0)
    first = write_volume(tmp_path / "a.precomputed", spots, encoding="raw", offset_nm=offset_nm)
    second = write_volume(tmp_path / "b.ome.zarr", spots, format="ome_zarr", offset_nm=offset_nm)
    view_volume([str(first), str(second)], tmp_path / "view", layout="xy", zoom_um_per_px=0.0025)
    with serving(tmp_path / "view") as running:
        page = show(running, layers=2)
        drawn, y, x = page.plane()
    green, magenta = drawn[..., 1] > 128, drawn[..., 0] > 128
    assert green.sum() == 16
    assert np.array_equal(green, magenta)
    # The spot begins at voxel (40, 30), the volume at (50, 30).
    assert y[green.any(axis=1)].tolist() == [90, 91, 92, 93]
    assert x[green.any(axis=0)].tolist() == [60, 61, 62, 63]


def test_image_and_labels_in_four_panels(tmp_path: Path, show: Any, serving: Any) -> None:
    shape = (60, 128, 128)
    image = write_volume(tmp_path / "image.precomputed", cells(shape), encoding="jpeg")
    labels = write_volume(tmp_path / "labels.precomputed", blocks(shape), kind="labels")
    view_volume([str(image), str(labels)], tmp_path / "view", title='Cells <img src=x onerror="alert(1)">')
    with serving(tmp_path / "view") as running:
        page = show(running, layers=2)
        screen = page.pixels()
        assert page.page.title() == 'Cells <img src=x onerror="alert(1)"> - KNeuroViz'
        assert page.page.locator("img").count() == 0
        fit = page.page.evaluate(PANEL)
    panels = screen[60:, :]
    middle_y, middle_x = panels.shape[0] // 2, panels.shape[1] // 2
    quarters = [
        panels[:middle_y, :middle_x],
        panels[:middle_y, middle_x:],
        panels[middle_y:, :middle_x],
        panels[middle_y:, middle_x:],
    ]
    for quarter in quarters:  # every panel shows something, and not all of one colour
        assert quarter.reshape(-1, 3).std(axis=0).max() > 20
    # The volume just fits: 128 voxels take 1/1.04 of the panel's shorter side.
    assert fit["scale"] * min(fit["width"], fit["height"]) == pytest.approx(128 * 1.04, rel=0.01)


def test_every_object_has_its_own_colour(tmp_path: Path, show: Any, serving: Any) -> None:
    truth = blocks((16, 96, 96))
    labels = write_volume(tmp_path / "labels.precomputed", truth, kind="labels")
    view_volume([str(labels)], tmp_path / "view", layout="xy", zoom_um_per_px=0.0025)
    with serving(tmp_path / "view") as running:
        page = show(running)
        drawn, y, x = page.plane()
    inside = [(y >= 0) & (y < 96), (x >= 0) & (x < 96)]
    drawn, shown_ids = drawn[np.ix_(*inside)], truth[0][np.ix_(y[inside[0]], x[inside[1]])]
    colours = {}
    for label in np.unique(shown_ids):
        found = np.unique(drawn[shown_ids == label].reshape(-1, 3), axis=0)
        assert len(found) == 1, f"object {label} has {len(found)} colours"
        colours[int(label)] = tuple(found[0].tolist())
    assert colours[0] == (0, 0, 0)
    assert len(set(colours.values())) == 5  # background and four objects, the one of 2^63 - 1 among them


def test_channels_add_up_in_their_colours(tmp_path: Path, show: Any, serving: Any) -> None:
    channels = np.full((2, 8, 96, 96), 100, dtype=np.uint16)
    channels[0, :, 16:48, 16:80] = 3000  # membranes
    channels[1, :, 32:64, 16:80] = 900  # nuclei: dim, so a contrast of its own is needed
    for format, name in (("ome_zarr", "two.ome.zarr"), ("precomputed", "two.precomputed")):
        path = write_volume(
            tmp_path / name, channels, format=format, encoding=None if format == "ome_zarr" else "raw",
            channel_names=("membranes", "nuclei"),
        )  # fmt: skip
        view = tmp_path / f"view-{format}"
        view_volume([str(path)], view, layout="xy", zoom_um_per_px=0.0025)
        with serving(view) as running:
            page = show(running, layers=2)
            drawn, y, x = page.plane()
        assert [layer["name"] for layer in page.state()["layers"]] == ["two membranes", "two nuclei"]
        column = int(np.flatnonzero(x == 48)[0])
        at = {int(row): drawn[index, column].tolist() for index, row in enumerate(y)}
        assert at[24] == [0, 255, 0]
        assert at[40] == [255, 255, 255]
        assert at[56] == [255, 0, 255]
        assert at[8] == [0, 0, 0]


def test_meshes_and_skeletons_of_objects_are_drawn_in_3d(tmp_path: Path, show: Any, serving: Any) -> None:
    labels = write_volume(tmp_path / "labels.precomputed", blocks((32, 64, 64)), kind="labels")
    for label in (7, 12):
        write_tetrahedron(tmp_path / "meshes", label, corner_nm=(50, 50) if label == 7 else (400, 100))
        write_line(tmp_path / "skeletons", label)
    inputs = [str(labels), str(tmp_path / "meshes"), str(tmp_path / "skeletons")]
    view_volume(inputs, tmp_path / "view", layout="3d")
    with serving(tmp_path / "view") as running:
        page = show(running)
        page.page.evaluate("() => { viewer.showPerspectiveSliceViews.value = false; }")
        page.page.evaluate(BARE)
        page.wait()
        screen = page.pixels()[60:]
        asked = {entry.path for entry in running.requests if entry.status in (200, 206)}
    assert page.state()["layers"][0]["segments"] == ["7", "12"]
    wanted = {f"/data/meshes/{label}:0" for label in (7, 12)} | {
        f"/data/skeletons/{label}" for label in (7, 12)
    }
    assert wanted <= asked
    lit = screen.max(axis=2) > 60
    assert lit.mean() > 0.02  # two tetrahedra of 250 nm in a box of 640 nm
    # Below both tetrahedra there are only the two lines, each in the colour of its object.
    lines = screen[int(0.68 * len(screen)) :].astype(int)
    assert np.count_nonzero(lines[..., 1] > lines[..., 0] + 40) > 20  # green, object 7
    assert np.count_nonzero(lines[..., 0] > lines[..., 1] + 40) > 20  # magenta, object 12


def write_tetrahedron(folder: Path, label: int, corner_nm: tuple[int, int]) -> None:
    """A legacy precomputed mesh: a tetrahedron of 250 nm with its right-angled corner at (x, y) and z = 50 nm."""
    folder.mkdir(exist_ok=True)
    corner = np.array([*corner_nm, 50], dtype="<f4")
    vertices = np.vstack([corner, corner + 250 * np.eye(3, dtype="<f4")])
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], dtype="<u4")
    (folder / "info").write_text(json.dumps({"@type": "neuroglancer_legacy_mesh"}))
    (folder / f"{label}:0").write_text(json.dumps({"fragments": [f"fragment{label}"]}))
    (folder / f"fragment{label}").write_bytes(np.uint32(4).tobytes() + vertices.tobytes() + faces.tobytes())


def write_line(folder: Path, label: int) -> None:
    """A precomputed skeleton (vertices in nm): one straight line along x, at a height of its own."""
    folder.mkdir(exist_ok=True)
    info = {
        "@type": "neuroglancer_skeletons",
        "transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
        "vertex_attributes": [],
    }
    (folder / "info").write_text(json.dumps(info))
    vertices = np.array([[50, 560, 20 * label], [600, 560, 20 * label]], dtype="<f4")
    header = np.array([2, 1], dtype="<u4")
    (folder / str(label)).write_bytes(
        header.tobytes() + vertices.tobytes() + np.array([[0, 1]], "<u4").tobytes()
    )


def test_opening_reads_only_what_is_on_the_screen(tmp_path: Path, show: Any, serving: Any) -> None:
    """256^3 voxels of noise (nothing compresses them), looked at through a window of 200 x 160 voxels."""
    noise = np.random.default_rng(1).integers(1, 255, (256, 256, 256), dtype=np.uint8)
    path = write_volume(
        tmp_path / "noise.precomputed",
        noise,
        encoding="raw",
        chunk_zyx=(32, 32, 32),
        voxel_size_nm=(10, 10, 10),
    )
    view_volume([str(path)], tmp_path / "view", layout="xy", zoom_um_per_px=0.0025)
    with serving(tmp_path / "view") as running:
        show(running)
        read = sum(entry.body_bytes for entry in running.requests if entry.path.startswith("/data/"))
        requests = sum(entry.path.startswith("/data/") for entry in running.requests)
    # The window covers 200 x 160 voxels: at most 8 x 6 chunks of 32^3, and coarser levels below them at an eighth.
    assert read < 48 * 32**3 * 1.3
    assert read < noise.size / 8
    assert requests < 100


@pytest.mark.parametrize("data", ["copy", "relative"])
def test_any_static_server_will_do(tmp_path: Path, browser: Any, show: Any, serving: Any, data: Any) -> None:
    path = write_volume(tmp_path / "a b.precomputed", cells((16, 64, 64)), encoding="jpeg")
    view_volume([str(path)], tmp_path / "view", layout="xy", data=data)
    # The page is not told where it lies: it is served from a folder below the root.
    root = tmp_path / "site"
    root.mkdir()
    shutil.move(tmp_path / "view", root / "view")
    if data == "relative":
        shutil.move(path, root / path.name)
    else:
        assert Volume.open(str(root / "view" / "data" / "a-b")).shape[2:] == (16, 64, 64)
    with serving(root) as running:
        running.folder = "view/"
        page = show(running)
        assert page.pixels()[60:].std() > 10


def test_an_address_from_the_root_of_the_server(tmp_path: Path, show: Any, serving: Any) -> None:
    root = tmp_path / "site"
    path = write_volume(root / "api" / "1 f" / "raw", cells((16, 64, 64)), encoding="jpeg")
    view_volume([str(path)], root / "deep" / "view", layout="xy", address=["/api/1 f/raw"])
    with serving(root) as running:
        running.folder = "deep/view/"
        page = show(running)
        assert page.pixels()[60:].std() > 10


def test_a_volume_that_is_gone_is_told(tmp_path: Path, browser: Any, serving: Any) -> None:
    path = write_volume(tmp_path / "gone.precomputed", cells((16, 64, 64)), encoding="jpeg")
    view_volume([str(path)], tmp_path / "view")
    with serving(tmp_path / "view") as running:
        path.rename(tmp_path / "elsewhere")
        page = browser.new_page(viewport=WINDOW)
        page.goto(running.address)
        page.get_by_text("gone cannot be shown").wait_for(timeout=READY_MS)
        page.close()


def test_a_state_in_the_address_wins(tmp_path: Path, browser: Any, show: Any, serving: Any) -> None:
    """A copied address shows what the sender saw, not where the page begins."""
    path = write_volume(tmp_path / "v.precomputed", cells((16, 64, 64)), encoding="jpeg")
    view_volume([str(path)], tmp_path / "view", layout="xy", position=None)
    with serving(tmp_path / "view") as running:
        page = show(running)
        page.page.evaluate("() => { viewer.position.value = new Float32Array([10.5, 20.5, 3.5]); }")
        page.page.wait_for_function("decodeURIComponent(location.hash).includes('10.5')", timeout=READY_MS)
        page.page.reload()
        page.wait()
        assert page.state()["position"] == [10.5, 20.5, 3.5]


def test_a_real_light_sheet_brain(tmp_path: Path, show: Any, serving: Any, shared_data: Path) -> None:
    """16-bit, two channels, thick sections: not dark, not washed out, in the middle of the window and filling it."""
    import tifffile

    files = [shared_data / "light-sheet" / f"{name}.tif" for name in ("signal", "background")]
    channels = np.stack([tifffile.imread(file, key=range(8, 18)) for file in files])
    path = write_volume(
        tmp_path / "brain.ome.zarr", channels, format="ome_zarr", voxel_size_nm=(5000, 2000, 2000),
        channel_names=("signal", "background"),
    )  # fmt: skip
    view_volume([str(path)], tmp_path / "view", layout="xy")
    with serving(tmp_path / "view") as running:
        page = show(running, layers=2)
        page.page.evaluate("() => { viewer.layerManager.managedLayers[1].setVisible(false); }")
        page.page.evaluate(BARE)
        page.wait()
        screen = page.pixels().astype(float)
        panel = page.page.evaluate(PANEL)
    # The sheet is 1116 x 627 voxels: its height fills the panel but for the rim of 4 %.
    shown_px = 1116 / panel["scale"]
    assert shown_px == pytest.approx(panel["height"] / 1.04, abs=2)
    top, left = (
        panel["top"] + (panel["height"] - shown_px) / 2,
        panel["left"] + (panel["width"] - 627 / panel["scale"]) / 2,
    )
    tissue = screen[
        round(top) + 2 : round(top + shown_px) - 2,
        round(left) + 2 : round(left + 627 / panel["scale"]) - 2,
        1,
    ]
    # Most of the sheet is dim tissue, so the median is dark grey; some is near white, less than 2 % is saturated.
    assert 15 < np.median(tissue) < 200
    assert np.percentile(tissue, 99) > 150
    assert (tissue == 255).mean() < 0.02
    # A thumbnail made here of the same plane: the page shows the same brain, the same way up.
    level = Volume.open(str(path)).levels[1]
    plane = Volume.open(str(path)).read((slice(0, 1), slice(0, 1), slice(5, 6), slice(None), slice(None)), 0)[
        0, 0, 0
    ]
    assert level.factor[1] > 1
    rows = np.linspace(0, plane.shape[0] - 1, tissue.shape[0]).astype(int)
    columns = np.linspace(0, plane.shape[1] - 1, tissue.shape[1]).astype(int)
    assert np.corrcoef(np.log1p(plane[np.ix_(rows, columns)]).ravel(), np.log1p(tissue).ravel())[0, 1] > 0.8
