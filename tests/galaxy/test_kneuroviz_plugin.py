"""KNeuroViz in Galaxy: headless Chromium opens datasets of a history, and what it draws is compared with their voxels.

Screenshots are kept in the folder KBRAIN_ARTEFACTS, `build/screenshots` by default.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))  # galaxy_views
from galaxy_views import ARTEFACTS, READY_MS, SHAPE, History, View, address, image16
from test_view_in_browser import CHROMIUM_FLAGS, PANEL
from viewer_volumes import blocks, cells, write_volume

pytestmark = pytest.mark.browser

PLUGIN = "static/plugins/visualizations/kneuroviz/static"
DISPLAY = "visualizations/display?visualization=kneuroviz"
WINDOW = {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def browser(galaxy: Any) -> Iterator[Any]:
    """Windows of one person, whom Galaxy knows."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    assert chromium, "Chromium is missing: apt-get install chromium"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM_FLAGS))
        context = running.new_context(viewport=WINDOW)
        context.request.get(galaxy.url)  # logs in, where Galaxy has only one person
        yield context
        running.close()


@pytest.fixture
def new_page(browser: Any) -> Iterator[Callable[[], Any]]:
    """Windows without an error of JavaScript in any frame."""
    opened, errors = [], []

    def open_one() -> Any:
        page = browser.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        opened.append(page)
        return page

    yield open_one
    for page in opened:
        page.close()
    assert errors == []


@pytest.fixture(scope="module")
def history(galaxy: Any, tmp_path_factory: pytest.TempPathFactory) -> History:
    return History(galaxy, tmp_path_factory.mktemp("volumes"))


@pytest.fixture(scope="module")
def image(history: History) -> str:
    volume = write_volume(history.folder / "membranes", image16(), encoding="raw", chunk_zyx=(16, 64, 64))
    return history.unpacked(history.zipped(volume), "neuroglancer_precomputed")


@pytest.fixture(scope="module")
def labels(history: History) -> str:
    volume = write_volume(history.folder / "neurons", blocks(SHAPE), kind="labels")
    return history.unpacked(history.zipped(volume), "neuroglancer_precomputed")


@pytest.fixture(scope="module")
def ome_zarr(history: History) -> str:
    volume = write_volume(
        history.folder / "nuclei.ome.zarr", image16(), format="ome_zarr", chunk_zyx=(16, 64, 64)
    )
    return history.unpacked(history.zipped(volume, "ome_zarr.zip"), "ome_zarr")


@pytest.fixture
def open_in_galaxy(galaxy: Any, new_page: Any) -> Callable[..., View]:
    """Open a view in Galaxy's own page."""

    def open_one(path: str, layers: int = 1) -> View:
        page = new_page()
        page.goto(f"{galaxy.url}/{path}", timeout=READY_MS)
        frame = page.locator("#galaxy_visualization").element_handle(timeout=READY_MS).content_frame()
        return View(page, frame, layers)

    return open_one


@pytest.fixture
def host(galaxy: Any, new_page: Any) -> Callable[..., Any]:
    """Do for the plugin what Galaxy does, in a page without the rest of Galaxy (ten times faster)."""

    def host_one(
        config: dict[str, Any], prepare: Callable[[Any], None] = lambda page: None, prefix: str = ""
    ) -> Any:
        page = new_page()
        prepare(page)
        page.goto(f"{galaxy.url}/api/version")
        incoming = {"root": f"{galaxy.url}/{prefix}", "visualization_config": config}
        page.evaluate(
            """([incoming, script]) => {
              const app = document.createElement("div");
              app.id = "app";
              app.dataset.incoming = incoming;
              const module = Object.assign(document.createElement("script"), { type: "module", src: script });
              document.body.replaceChildren(app, module);
            }""",
            [json.dumps(incoming), f"{galaxy.url}/{prefix}{PLUGIN}/index.js"],
        )
        return page

    return host_one


def message(page: Any) -> str:
    """What the plugin says instead of showing something."""
    alert = page.get_by_role("alert")
    alert.wait_for(timeout=READY_MS)
    return str(alert.inner_text())


def check_grey(view: View, voxels: NDArray[Any]) -> None:
    """The first panel shows the voxels, from black to white between the percentiles that `kbrain view-volume` takes."""
    drawn, y, x = view.plane()
    state = view.state()
    assert len(y) > 50
    assert len(x) > 80
    black, white = state["layers"][0]["shaderControls"]["contrast"]["range"]
    expected_range = np.percentile(voxels[voxels > 0], [0.35, 99.65])
    assert [black, white] == pytest.approx(expected_range, abs=0.01 * (expected_range[1] - expected_range[0]))
    shown = voxels[int(state["position"][2])][np.ix_(y, x)]
    expected = np.clip((shown.astype(float) - black) / (white - black), 0, 1) * 255
    assert np.ptp(expected) > 200
    assert (
        np.abs(drawn.astype(float) - expected[..., np.newaxis]).max() <= 1
    )  # rounding on the way to the screen


def test_a_16_bit_volume_of_a_history_is_drawn(open_in_galaxy: Any, image: str) -> None:
    view = open_in_galaxy(f"{DISPLAY}&dataset_id={image}")
    view.keep_screenshot("kneuroviz-precomputed")
    # The volume just fits its panel: it is not cut, and not a stamp in the middle.
    panel = view.client.evaluate(PANEL)
    filled = max(SHAPE[2] / panel["width"], SHAPE[1] / panel["height"]) / panel["scale"]
    assert filled == pytest.approx(1 / 1.04, rel=0.02)
    check_grey(view, image16())


def test_an_ome_zarr_of_a_history_is_drawn(host: Any, ome_zarr: str) -> None:
    page = host({"dataset_id": ome_zarr})
    view = View(page, page.main_frame, 1)
    view.keep_screenshot("kneuroviz-ome-zarr")
    assert address(view.state()["layers"][0]).endswith("|zarr3:")
    check_grey(view, image16())


def test_a_zip_file_is_drawn_as_it_is(host: Any, history: History) -> None:
    volume = write_volume(history.folder / "a b#c", image16(), encoding="raw", chunk_zyx=(16, 64, 64))
    page = host({"dataset_id": history.zipped(volume)})
    view = View(page, page.main_frame, 1)
    assert "/display|zip:a%20b%23c/" in address(view.state()["layers"][0])
    check_grey(view, image16())


def test_channels_have_their_colours(host: Any, history: History) -> None:
    """The same two channels in both formats: each in its own contrast and colour, adding up."""
    channels = np.full((2, 8, 96, 96), 100, dtype=np.uint16)
    channels[0, :, 16:48, 16:80] = 3000  # membranes
    channels[1, :, 32:64, 16:80] = 900  # nuclei: dim, so a contrast of its own is needed
    names = ("membranes", "nuclei")
    zarr = write_volume(history.folder / "two.ome.zarr", channels, format="ome_zarr", channel_names=names)
    folder = write_volume(history.folder / "two", channels, encoding="raw", channel_names=names)
    for dataset_id in (history.zipped(zarr, "ome_zarr.zip"), history.zipped(folder)):
        page = host({"dataset_id": dataset_id})
        view = View(page, page.main_frame, 2)
        drawn, y, x = view.plane((96, 96))
        shown = [layer["name"] for layer in view.state()["layers"]]
        assert [name.split(".zip ")[1] for name in shown] == list(names)
        column = int(np.flatnonzero(x == 48)[0])
        at = {int(row): drawn[index, column].tolist() for index, row in enumerate(y)}
        assert at[24] == [0, 255, 0]
        assert at[40] == [255, 255, 255]
        assert at[56] == [255, 0, 255]
        assert at[8] == [0, 0, 0]


def test_a_deferred_dataset_is_read_where_it_is(galaxy: Any, host: Any, history: History, image: str) -> None:
    where = f"{galaxy.url}/api/datasets/{image}/extra_files/raw/membranes"
    item = {
        "src": "url",
        "url": where,
        "ext": "neuroglancer_precomputed",
        "deferred": True,
        "name": "elsewhere",
    }
    targets = [{"destination": {"type": "hdas"}, "items": [item]}]
    made = history.ask("tools/fetch", history_id=history.id, targets=targets)["outputs"][0]["id"]
    for _ in range(240):
        if history.show(made)["state"] == "deferred":
            break
        time.sleep(0.5)
    assert history.show(made)["state"] == "deferred"
    page = host({"dataset_id": made})
    view = View(page, page.main_frame, 1)
    assert address(view.state()["layers"][0]).startswith(where)
    check_grey(view, image16())


def test_datasets_are_added_as_layers_and_the_view_comes_back(
    galaxy: Any, open_in_galaxy: Any, history: History, image: str, labels: str
) -> None:
    title = f"Neurons in their tissue {history.id}"  # a Galaxy may have seen this test before
    view = open_in_galaxy(f"{DISPLAY}&dataset_id={image}")
    picker = view.plugin.get_by_label("Add a dataset")
    picker.focus()
    picker.locator(f"option[value='{labels}']").wait_for(state="attached", timeout=READY_MS)
    picker.select_option(labels)
    view.plugin.get_by_text("Added '").wait_for(timeout=READY_MS)
    view.wait(layers=2)
    view.keep_screenshot("kneuroviz-two-layers")
    view.client.evaluate("() => { viewer.position.value = new Float32Array([70.5, 60.5, 5.5]); }")
    drawn, y, x = view.plane()
    check_labels_over_grey(drawn, y, x, view.state())

    view.plugin.get_by_label("Name of the view").fill(title)
    view.plugin.get_by_role("button", name="Save view").click()
    view.plugin.get_by_text(f"Saved as '{title}'").wait_for(timeout=READY_MS)
    saved = find_saved(galaxy, title)
    layers = saved["latest_revision"]["config"]["settings"]["state"]["layers"]
    assert galaxy.url not in json.dumps(layers)  # another name of the server must not break it
    # Saving again changes the same view.
    view.client.evaluate("() => { viewer.position.value = new Float32Array([80.5, 60.5, 5.5]); }")
    with view.page.expect_response(lambda answer: "/api/visualizations/" in answer.url and answer.ok):
        view.plugin.get_by_role("button", name="Save view").click()

    again = open_in_galaxy(f"{DISPLAY}&visualization_id={saved['id']}", layers=2)
    again.keep_screenshot("kneuroviz-saved-view")
    assert again.plugin.get_by_label("Name of the view").input_value() == title
    state = again.state()
    assert state["position"] == [80.5, 60.5, 5.5]
    assert [layer["type"] for layer in state["layers"]] == ["image", "segmentation"]
    drawn, y, x = again.plane()
    check_labels_over_grey(drawn, y, x, state)
    # Saving what was opened from the list changes it, and makes no second one.
    again.client.evaluate("() => { viewer.position.value = new Float32Array([90.5, 60.5, 5.5]); }")
    again.plugin.get_by_role("button", name="Save view").click()
    again.plugin.get_by_text(f"Saved as '{title}'").wait_for(timeout=READY_MS)
    latest = find_saved(galaxy, title)
    assert latest["id"] == saved["id"]
    assert latest["latest_revision"]["config"]["settings"]["state"]["position"] == [90.5, 60.5, 5.5]


def find_saved(galaxy: Any, title: str) -> dict[str, Any]:
    """The only saved visualization of that title."""
    headers = {"x-api-key": galaxy.key}
    found = requests.get(f"{galaxy.url}/api/visualizations", headers=headers, timeout=60).json()
    (one,) = [entry for entry in found if entry["title"] == title]
    saved: dict[str, Any] = requests.get(
        f"{galaxy.url}/api/visualizations/{one['id']}", headers=headers, timeout=60
    ).json()
    return saved


def check_labels_over_grey(
    drawn: NDArray[np.uint8], y: NDArray[np.int64], x: NDArray[np.int64], state: Any
) -> None:
    """Outside of objects the plain image; in them its light and dark places in the object's colour."""
    voxels, ids = image16(), blocks(SHAPE)
    z = int(state["position"][2])
    black, white = state["layers"][0]["shaderControls"]["contrast"]["range"]
    grey = np.clip((voxels[z][np.ix_(y, x)].astype(float) - black) / (white - black), 0, 1) * 255
    shown = ids[z][np.ix_(y, x)]
    background = shown == 0
    assert background.sum() > 50
    assert np.abs(drawn[background].astype(float) - grey[background][:, np.newaxis]).max() <= 1
    tints = set()
    for label in np.unique(shown[~background]):
        # colour = 0.6 x grey + 0.4 x tint, so that the remainder is one colour for the whole object
        rest = drawn[shown == label].astype(float) - 0.6 * grey[shown == label][:, np.newaxis]
        assert np.ptp(rest, axis=0).max() <= 2, f"object {label}"
        tints.add(tuple(np.rint(rest.mean(axis=0) / 10).tolist()))
    assert len(tints) == len(np.unique(shown[~background])) >= 2


def test_two_images_become_green_and_magenta(host: Any, history: History, image: str, ome_zarr: str) -> None:
    """Precomputed and OME-Zarr of the same voxels: over each other they are grey, if not half a voxel apart."""
    page = host({"dataset_id": image})
    view = View(page, page.main_frame, 1)
    picker = page.get_by_label("Add a dataset")
    picker.locator(f"option[value='{ome_zarr}']").wait_for(state="attached", timeout=READY_MS)
    picker.select_option(ome_zarr)
    page.get_by_text("Added '").wait_for(timeout=READY_MS)
    view.wait(layers=2)
    colours = [layer["shaderControls"]["color"] for layer in view.state()["layers"]]
    assert colours == ["#00ff00", "#ff00ff"]
    drawn, _, _ = view.plane()
    assert np.ptp(drawn) > 200
    assert np.ptp(drawn.astype(int), axis=2).max() <= 1


def saved_view(history: History, image: str, name: str) -> str:
    """A view as `kbrain view-volume --address /api/datasets/... --state-output` writes it, as a dataset."""
    state = {
        "title": "From a workflow",
        "dimensions": {"x": [1e-8, "m"], "y": [1e-8, "m"], "z": [2e-8, "m"]},
        "position": [100.5, 75.5, 3.5],
        "layout": "xy",
        "layers": [
            {
                "type": "image",
                "name": "membranes",
                "source": {
                    "url": f"/api/datasets/{image}/extra_files/raw/membranes/|neuroglancer-precomputed:"
                },
                "shader": "#uicontrol invlerp contrast\nvoid main() { emitGrayscale(contrast()); }\n",
                "shaderControls": {"contrast": {"range": [0, 5000]}},
            }
        ],
    }
    path = history.folder / name
    path.write_text(json.dumps(state))
    return history.upload(path)


def test_a_saved_view_of_a_history_opens(open_in_galaxy: Any, history: History, image: str) -> None:
    view_id = saved_view(history, image, "view.json")
    found = history.show(view_id)
    assert found["extension"] == "kneuroviz_view"
    assert "membranes (image)" in found["peek"]
    view = open_in_galaxy(f"datasets/{view_id}/preview")  # what a click on the eye in the history opens
    view.keep_screenshot("kneuroviz-view-dataset")
    drawn, y, x = view.plane()
    state = view.state()
    assert state["position"] == [100.5, 75.5, 3.5]
    expected = np.clip(image16()[3][np.ix_(y, x)] / 5000.0, 0, 1) * 255
    assert np.abs(drawn.astype(float) - expected[..., np.newaxis]).max() <= 1


def test_a_galaxy_below_a_prefix(galaxy: Any, host: Any, history: History, image: str) -> None:
    """https://lab.org/galaxy/...: a saved view counts from Galaxy's root, not from the server's."""

    def serve_below_prefix(page: Any) -> None:
        page.route(
            re.compile(r"/lab/galaxy/"),
            lambda route: route.continue_(url=route.request.url.replace("/lab/galaxy/", "/")),
        )

    page = host({"dataset_id": saved_view(history, image, "prefix.json")}, serve_below_prefix, "lab/galaxy/")
    view = View(page, page.main_frame, 1)
    url = address(view.state()["layers"][0])
    assert url.startswith(f"{galaxy.url}/lab/galaxy/api/datasets/{image}/")
    drawn, _, _ = view.plane()
    assert np.ptp(drawn) > 100


def test_a_page_that_has_the_view_in_it_is_told(host: Any, image: str) -> None:
    """Galaxy's pages and reports take over what was saved by a message."""
    page = host({"dataset_id": image, "settings": {"note": "kept"}})
    View(page, page.main_frame, 1)
    page.evaluate(
        "() => { window.told = []; window.addEventListener('message', event => told.push(event.data)); }"
    )
    page.get_by_label("Name of the view").fill("Figure 1")
    page.get_by_role("button", name="Save view").click()
    page.get_by_text("Saved as 'Figure 1'").wait_for(timeout=READY_MS)
    (told,) = [one for one in page.evaluate("told") if one.get("from") == "galaxy-visualization"]
    assert told["visualization_title"] == "Figure 1"
    settings = told["visualization_config"]["settings"]
    assert settings["note"] == "kept"
    assert address(settings["state"]["layers"][0]).startswith(f"/api/datasets/{image}/")


def test_an_unfinished_volume_is_shown_only_on_demand(host: Any, history: History) -> None:
    volume = write_volume(history.folder / "unfinished", cells((8, 64, 64)), encoding="raw")
    (volume / ".kbrain").mkdir(exist_ok=True)
    (volume / ".kbrain" / "job.json").write_text("{}")
    dataset_id = history.unpacked(history.zipped(volume), "neuroglancer_precomputed")
    assert "UNFINISHED" in history.show(dataset_id)["peek"]
    page = host({"dataset_id": dataset_id})
    assert "is unfinished" in message(page)
    page.screenshot(path=ARTEFACTS / "kneuroviz-unfinished.png")
    page.get_by_role("button", name="Show it nevertheless").click()
    view = View(page, page.main_frame, 1)
    drawn, _, _ = view.plane((64, 64))
    assert np.ptp(drawn) > 100


def test_a_folder_without_a_volume_says_so(host: Any, history: History) -> None:
    folder = history.folder / "nothing"
    folder.mkdir()
    (folder / "info.txt").write_text("no volume")
    (folder / "other.txt").write_text("no volume")
    dataset_id = history.unpacked(
        history.zipped(folder, "neuroglancer_precomputed.zip"), "neuroglancer_precomputed"
    )
    assert "holds no volume" in message(host({"dataset_id": dataset_id}))


def test_a_damaged_info_file_says_so(host: Any, history: History) -> None:
    folder = history.folder / "damaged"
    folder.mkdir()
    (folder / "info").write_text('{"type": "image", <img src=x onerror="window.hacked = true">')
    page = host({"dataset_id": history.zipped(folder, "neuroglancer_precomputed.zip")})
    assert "'damaged/info' is damaged" in message(page)
    assert page.evaluate("window.hacked") is None


def test_a_compressed_zip_file_of_shards_says_what_to_do(host: Any, history: History) -> None:
    volume = write_volume(history.folder / "squeezed", cells((8, 64, 64)), encoding="raw")
    said = message(host({"dataset_id": history.zipped(volume, compressed=True)}))
    assert "is a compressed zip file" in said
    assert "Unpack it" in said


def test_a_dataset_that_one_may_not_read_says_so(host: Any, image: str) -> None:
    def refuse(page: Any) -> None:
        page.route("**/extra_files/raw/**", lambda route: route.fulfill(status=403, body="{}"))

    assert "you may not read it. Ask its owner" in message(host({"dataset_id": image}, refuse))


def test_a_dataset_that_is_not_there_says_so(host: Any) -> None:
    assert "cannot be opened" in message(host({"dataset_id": "f" * 16}))


def test_a_browser_without_webgl_says_so(host: Any, image: str) -> None:
    def without_webgl(page: Any) -> None:
        page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null;")

    assert "WebGL 2" in message(host({"dataset_id": image}, without_webgl))


def test_a_plugin_without_its_client_says_so(host: Any, image: str) -> None:
    def without_client(page: Any) -> None:
        page.route("**/client/**", lambda route: route.fulfill(status=404))

    assert "not installed completely" in message(host({"dataset_id": image}, without_client))


def test_a_volume_of_a_saved_view_that_is_gone_is_named(host: Any, history: History) -> None:
    page = host({"dataset_id": saved_view(history, "f" * 16, "gone.json")})
    client = page.frame_locator("iframe")
    client.get_by_text("membranes cannot be shown").wait_for(timeout=READY_MS)
