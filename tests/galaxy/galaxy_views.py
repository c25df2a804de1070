"""KNeuroViz in a page of Galaxy, and the volumes in a history that it shows: helpers of `test_kneuroviz_plugin`."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import requests
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "visualization"))  # what the page's own tests are made of
from test_view_in_browser import BARE, HIDDEN, PANEL, _voxel_pixels
from viewer_volumes import cells

ARTEFACTS = Path(os.environ.get("KBRAIN_ARTEFACTS", Path(__file__).parents[2] / "build" / "screenshots"))
SHAPE = (24, 150, 200)
READY_MS = 120_000  # Galaxy's page and software WebGL on two cores: 10-20 s when idle
READY = "layers => window.viewer && viewer.layerManager.managedLayers.length >= layers && viewer.isReady()"
# Nobody chose a contrast: it is there as soon as the data of the coarsest level are.
CONTRAST = "viewer.state.toJSON().layers.every(l => l.type !== 'image' || l.shaderControls?.contrast?.range)"
TWO_FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
# 2 screen pixels a voxel, so that the borders of pixels and voxels coincide.
PIXELS_PER_VOXEL = 2


class View:
    """KNeuroViz as it runs in a page of Galaxy (or in a page that does for the plugin what Galaxy does)."""

    def __init__(self, page: Any, plugin: Any, layers: int) -> None:
        self.page = page
        self.plugin = plugin  # the frame with the plugin
        plugin.locator("iframe").wait_for(timeout=READY_MS)
        self.element = plugin.locator("iframe").element_handle()
        self.client = self.element.content_frame()  # the frame with Neuroglancer
        self.wait(layers)

    def wait(self, layers: int = 1) -> None:
        self.client.wait_for_function(READY, arg=layers, timeout=READY_MS)
        self.client.wait_for_function(CONTRAST, timeout=READY_MS)
        self.client.wait_for_function(READY, arg=layers, timeout=READY_MS)
        self.client.evaluate(TWO_FRAMES)

    def state(self) -> Any:
        return self.client.evaluate("JSON.parse(JSON.stringify(viewer.state.toJSON()))")

    def keep_screenshot(self, name: str) -> None:
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=ARTEFACTS / f"{name}.png")

    def plane(
        self, size_yx: tuple[int, int] = SHAPE[1:]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """Colours (Y, X, 3) of the volume's voxels in the first panel, with the voxels' y and x."""
        import imagecodecs

        layers = self.client.evaluate("viewer.layerManager.managedLayers.length")
        self.client.add_style_tag(content=HIDDEN)
        self.client.evaluate(BARE)
        self.client.evaluate(f"() => {{ viewer.navigationState.zoomFactor.value = 1 / {PIXELS_PER_VOXEL}; }}")
        self.wait(layers)
        panel, frame = self.client.evaluate(PANEL), self.element.bounding_box()
        screen = np.asarray(imagecodecs.png_decode(self.page.screenshot()))[..., :3]
        rows, y = _voxel_pixels(
            panel["height"], panel["position"][1], panel["scale"], panel["top"] + frame["y"]
        )
        columns, x = _voxel_pixels(
            panel["width"], panel["position"][0], panel["scale"], panel["left"] + frame["x"]
        )
        inside_y, inside_x = (y >= 0) & (y < size_yx[0]), (x >= 0) & (x < size_yx[1])
        return screen[np.ix_(rows[inside_y], columns[inside_x])], y[inside_y], x[inside_x]


def address(layer: Any) -> str:
    """Address of a layer's only source."""
    source = layer["source"]
    return str(source if isinstance(source, str) else source["url"])


class History:
    """Datasets made of known volumes, uploaded as people upload them."""

    def __init__(self, galaxy: Any, folder: Path) -> None:
        self.galaxy = galaxy
        self.folder = folder
        self.id = galaxy.client.histories.create_history("KNeuroViz")["id"]
        self.made: dict[str, str] = {}

    def upload(self, path: Path, file_type: str = "auto") -> str:
        item = {"src": "files", "ext": file_type, "name": path.name, "auto_decompress": False}
        targets = [{"destination": {"type": "hdas"}, "items": [item]}]
        with path.open("rb") as file:
            answer = requests.post(
                f"{self.galaxy.url}/api/tools/fetch",
                data={"history_id": self.id, "targets": json.dumps(targets)},
                files={"files_0|file_data": file},
                headers={"x-api-key": self.galaxy.key},
                timeout=300,
            )
        assert answer.ok, answer.text
        return self.wait(answer.json()["outputs"][0]["id"])

    def wait(self, dataset_id: str) -> str:
        found = self.galaxy.client.datasets.wait_for_dataset(dataset_id, maxwait=300, interval=0.5)
        assert found["state"] == "ok", found["misc_info"]
        return dataset_id

    def ask(self, path: str, **body: Any) -> Any:
        answer = requests.post(
            f"{self.galaxy.url}/api/{path}", json=body, headers={"x-api-key": self.galaxy.key}, timeout=60
        )
        assert answer.ok, answer.text
        return answer.json()

    def show(self, dataset_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.galaxy.client.datasets.show_dataset(dataset_id)
        return found

    def zipped(self, volume: Path, file_type: str = "auto", compressed: bool = False) -> str:
        """A zip file of the volume's folder as a dataset."""
        path = volume.with_name(volume.name + ".zip")
        method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", method) as archive:
            for file in sorted(volume.rglob("*")):
                archive.write(file, file.relative_to(volume.parent))
        return self.upload(path, file_type)

    def unpacked(self, zip_id: str, target: str) -> str:
        """The folder of a zip file as a dataset."""
        own = target == "neuroglancer_precomputed"
        converter = f"CONVERTER_{'kbrain_archive_to_precomputed' if own else 'archive_to_directory'}"
        source = self.show(zip_id)["extension"]
        body = {"src": "hda", "id": zip_id, "source_type": source, "target_type": target}
        return self.wait(self.ask(f"tools/{converter}/convert", **body)["outputs"][0]["id"])


def image16(shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint16]:
    """A dim 16-bit image with black margins: without a contrast of its own it is nearly black."""
    image = cells(shape).astype(np.uint16) * 16
    image[:, :10] = 0
    return image
