"""Galaxy in a real browser: headless Chromium does by clicking what a biologist does.

Every station is kept as a picture in the folder KBRAIN_ARTEFACTS, `build/screenshots` by default.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kbrain_galaxy.connection import open_server
from kbrain_galaxy.run_state import StateFile
from kbrain_galaxy.server import Connection
from kbrain_galaxy.sources import Element, single_file
from kbrain_galaxy.uploads import HistoryUploads, make_upload
from kbrain_galaxy.workflow_library import import_workflow, packaged_workflows

PROJECT = Path(__file__).parents[2]
SCREENSHOTS = Path(os.environ.get("KBRAIN_ARTEFACTS", PROJECT / "build" / "screenshots"))
CELLS = (
    PROJECT / "tools" / "convert_image" / "test-data" / "cells.ome.tif"
)  # 8 x 40 x 56 voxels, DAPI and GFP
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
)
WINDOW = {"width": 1400, "height": 900}
PAGE_MS = 60_000  # Galaxy draws in 1-3 s on a quiet machine
JOBS_MS = 180_000  # a job takes about 5 s there, the workflow 20 s
REASON = (
    "kbrain convert-image: --channel Cy5: image/cells.ome.tif has the channels DAPI, GFP (numbers 0 to 1); "
    "give each once, by number where names are alike"
)
READY = "() => window.viewer && viewer.layerManager.managedLayers.length >= 2 && viewer.isReady()"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    assert chromium, "Chromium is missing: apt-get install chromium"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM_FLAGS))
        yield running
        running.close()


@dataclass(frozen=True)
class Bench:
    """What is there before a person comes: a history with an image, a list with it, and a text."""

    url: str
    history: str
    workflow: str


@pytest.fixture(scope="module")
def bench(galaxy: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "notes.txt").write_text("kept at 4 degrees\n")
    server = open_server(Connection(galaxy.url, galaxy.key))
    state = StateFile(folder / "out")
    state.run.history = history = str(server.histories.create_history("Clicking")["id"])
    image, notes = single_file(str(CELLS)), single_file(str(folder / "notes.txt"))
    files = {"image": (image, "tiff"), "member": (image, "tiff"), "notes": (notes, "txt")}
    datasets = HistoryUploads(server, state)
    known = datasets.upload(
        [make_upload(key, file, kind, None, deferred=False) for key, (file, kind) in files.items()]
    )
    datasets.collection("Images", "list", [Element(("cells",), image)], [known["member"]])
    workflow = import_workflow(server, packaged_workflows()["image-to-volume"])
    yield Bench(galaxy.url, history, workflow)
    server.histories.delete_history(history, purge=True)


class Desk:
    """Galaxy's page as a person sees it, in one history."""

    def __init__(self, page: Any, test: str) -> None:
        self.page = page
        self.test = test
        self.stations = 0
        self.centre = page.locator("#center")
        self.history = page.locator("#current-history-panel")

    def keep(self, station: str) -> None:
        """Keep what is on the screen."""
        self.stations += 1
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{self.test}-{self.stations}-{station}.png")

    def open_tool(self, search: str, tool: str) -> None:
        """Find a tool in the panel on the left and open its form."""
        self.page.get_by_placeholder("search tools").fill(search)
        self.page.locator(f'[data-description="panel toolbox"] a[href*="tool_id={tool}&"]').first.click()
        self.page.locator("button#execute").first.wait_for()

    def field(self, name: str) -> Any:
        """A field of the form; sections and conditionals are part of its name."""
        return self.page.locator(f'[id="form-element-{name}"]')

    def offered(self, name: str) -> list[str]:
        """What the list of a field offers."""
        self.field(name).locator(".multiselect").first.click()
        options = self.field(name).locator(".multiselect__content-wrapper li.multiselect__element")
        options.first.wait_for()
        return [str(text).strip() for text in options.all_inner_texts()]

    def choose(self, name: str, option: str) -> None:
        """Open the list of a field and take what has this text."""
        self.offered(name)
        self.field(name).locator("li.multiselect__element", has_text=option).click()

    def insert(self, repeat: str, name: str) -> None:
        """Add a group of fields, and wait until the server has looked at the form: it may redraw it under quick hands."""
        with self.page.expect_response(lambda response: name in (response.request.post_data or "")):
            self.page.get_by_role("button", name=f"Insert {repeat}").click()
        self.field(name).wait_for()

    def run_tool(self) -> dict[str, Any]:
        """Press the button; the results in the history, by what their names end with."""
        self.page.locator("button#execute").first.click()
        self.centre.get_by_text("successfully added 1 job").wait_for()
        self.keep("started")
        made = [text.split(": ") for text in self.centre.locator("li").all_inner_texts()]
        return {words[-1]: self.history.locator(f'[data-hid="{words[0]}"]') for words in made}

    def item(self, name: str) -> Any:
        """The newest dataset or list in the history whose name is, or ends with, this one."""
        named = re.compile(rf"(^|: ){re.escape(name)}\s*$")
        title = self.page.locator(".content-title", has_text=named)
        return self.history.locator(".content-item").filter(has=title).first

    def wait_for(self, item: Any, state: str) -> None:
        """Wait until a dataset has the state, which is also its colour: ok is green, error is red."""
        from playwright.sync_api import expect

        expect(item).to_have_attribute("data-state", re.compile("ok|error"), timeout=JOBS_MS)
        assert item.get_attribute("data-state") == state

    def open_workflow(self, workflow: str) -> None:
        """Find a workflow in the list and open its form."""
        self.page.locator("#activity-workflows").click()
        self.page.locator(f"#g-card-action-workflow-run-{workflow}").click()
        self.page.locator("#run-workflow").wait_for()

    def wait_for_workflow(self) -> None:
        """Watch the bars of a run until all steps and jobs are done."""
        state = self.page.locator('[data-description="workflow invocation state"]')
        for all_done in (r"(\d+) of \1 steps successfully scheduled\.", r"(\d+) of \1 jobs complete\."):
            state.get_by_text(re.compile(all_done)).first.wait_for(timeout=JOBS_MS)

    def drawn(self) -> NDArray[np.uint8]:
        """Wait until KNeuroViz, two frames deep in the page, has drawn; its pixels (Y, X, 3)."""
        import imagecodecs

        frame = self.page.frame_locator("#galaxy_visualization")
        client = frame.locator("iframe").element_handle(timeout=PAGE_MS).content_frame()
        client.wait_for_function(READY, timeout=PAGE_MS)
        # The last chunk is on the screen one frame after the viewer says it is ready.
        client.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        picture = client.locator("canvas").first.screenshot()
        return np.asarray(imagecodecs.png_decode(picture))[..., :3]


@pytest.fixture
def sit_down(browser: Any, bench: Bench, request: pytest.FixtureRequest) -> Iterator[Callable[..., Desk]]:
    """Open Galaxy in a fresh browser, at a history; errors of the page's own code fail the test."""
    opened = []

    def open_desk(history: str = bench.history) -> Desk:
        context = browser.new_context(viewport=WINDOW)
        context.set_default_timeout(PAGE_MS)
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        opened.append((context, errors))
        context.request.get(f"{bench.url}/history/set_as_current", params={"id": history})
        page.goto(bench.url)
        desk = Desk(page, request.node.name.removeprefix("test_"))
        desks.append(desk)
        return desk

    desks: list[Desk] = []
    yield open_desk
    for desk in desks:
        desk.keep("end")
    for context, errors in opened:
        context.close()
        assert errors == []


def test_a_tool_is_run_by_its_form_and_its_report_is_read(sit_down: Callable[..., Desk]) -> None:
    desk = sit_down()
    desk.open_tool("convert image", "kbrain_convert_image")
    desk.choose("source|input", "cells.ome.tif")
    desk.field("voxel_size|voxel_size_z").locator("input").fill("4")
    desk.keep("form")
    results = desk.run_tool()
    desk.wait_for(results["volume"], "ok")
    desk.wait_for(results["report"], "ok")
    results["report"].locator(".display-btn").click()
    report = desk.page.frame_locator('iframe[src*="/display"]')
    report.get_by_text("PASS").first.wait_for()
    report.get_by_role("row", name="z 8 4", exact=True).wait_for()  # planes, and the size that was filled in
    widths = report.locator("img").evaluate_all("all => all.map(image => image.naturalWidth)")
    assert widths and min(widths) >= 56
    desk.keep("report")


def test_a_dataset_of_the_wrong_type_is_not_offered(sit_down: Callable[..., Desk]) -> None:
    desk = sit_down()
    desk.item("notes.txt").wait_for()
    desk.open_tool("convert image", "kbrain_convert_image")
    offered = desk.offered("source|input")
    assert any("cells.ome.tif" in name for name in offered)
    assert not any("notes.txt" in name for name in offered)


def test_a_missing_input_is_told_before_anything_runs(
    sit_down: Callable[..., Desk], galaxy: Any, bench: Bench
) -> None:
    empty = galaxy.client.histories.create_history("Nothing")["id"]
    try:
        desk = sit_down(empty)
        desk.open_tool("precompute", "kbrain_precompute_volume")
        desk.field("input").get_by_text(
            "No datasets with ome_zarr, zarr or neuroglancer_precomputed"
        ).wait_for()
        desk.field("input").get_by_text("Please provide a value for this option").wait_for()
        assert desk.page.locator("button#execute").first.is_disabled()
        desk.keep("tool")
        desk.open_workflow(bench.workflow)
        desk.field("0").get_by_text("No list dataset collections available").wait_for()
        assert desk.page.locator("#run-workflow").is_disabled()
        desk.keep("workflow")
    finally:
        galaxy.client.histories.delete_history(empty, purge=True)


def test_a_job_that_fails_says_why(sit_down: Callable[..., Desk]) -> None:
    desk = sit_down()
    desk.open_tool("convert image", "kbrain_convert_image")
    desk.choose("source|input", "cells.ome.tif")
    desk.insert("Channel to keep", "channel_items_0|channel")
    desk.field("channel_items_0|channel").locator("input").fill("Cy5")
    item = desk.run_tool()["volume"]
    desk.wait_for(item, "error")
    item.locator(".content-title").click()
    item.get_by_text(REASON, exact=True).wait_for()  # this alone, without the progress before it
    desk.keep("item")
    item.get_by_title("Error").first.click()
    desk.centre.get_by_text(REASON.partition(": ")[2]).first.wait_for()
    desk.keep("page")


def test_a_workflow_is_run_and_its_view_is_drawn(sit_down: Callable[..., Desk], bench: Bench) -> None:
    desk = sit_down()
    desk.open_workflow(bench.workflow)
    desk.choose("0", "Images")
    desk.keep("form")
    desk.page.locator("#run-workflow").click()
    desk.centre.get_by_text("Invoked Workflow: Image stack to a browsable volume").wait_for()
    desk.keep("runs")
    desk.wait_for_workflow()
    desk.keep("done")
    read_workflow_report(desk)
    item = desk.item("view")
    desk.wait_for(item, "ok")
    item.locator(".display-btn").click()
    check_cells(desk.drawn())
    desk.keep("preview")
    item.locator(".content-title").click()
    item.locator(".visualize-btn").click()
    desk.page.locator('[data-plugin-name="kneuroviz"]').click()
    desk.page.wait_for_url(re.compile("visualizations/display.*kneuroviz"))
    check_cells(desk.drawn())


def read_workflow_report(desk: Desk) -> None:
    """The page that Galaxy makes of a run shows the figures and the picture of the volume."""
    desk.centre.get_by_role("link", name="Report", exact=True).click()
    report = desk.page.locator(".markdown-wrapper")
    report.get_by_text("0.5 x 0.5 x 2 um").wait_for()
    picture = report.locator("img").first
    picture.wait_for()
    assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [56, 40]
    desk.keep("report")


def check_cells(screen: NDArray[np.uint8]) -> None:
    """The first panel is the middle plane: GFP, in magenta, fills a box of 16 x 16 of its 56 x 40 voxels."""
    panel = screen[: screen.shape[0] // 2, : screen.shape[1] // 2].astype(int)
    magenta = (panel[..., 0] > 150) & (panel[..., 2] > 150) & (panel[..., 1] < 100)
    height, width = magenta.any(axis=1).sum(), magenta.any(axis=0).sum()
    assert width > 50
    assert abs(height - width) <= 2  # px: its borders are drawn sharply
    assert magenta.sum() > 0.9 * height * width  # lines of the axes cross it
