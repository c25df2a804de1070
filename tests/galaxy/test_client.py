"""The client against a running Galaxy: uploads, runs, failures, results, and what happens when it is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tifffile
from galaxy_workflows import CONNECTED, collection_input, data_input, tool_step, value_input, write_workflow

from kbrain_core.errors import CheckFailedError, InputError, OutputExistsError
from kbrain_core.formats.volume import Volume
from kbrain_galaxy import Galaxy, WorkflowRun
from kbrain_galaxy.connection import Server
from kbrain_galaxy.run_state import StateFile
from kbrain_galaxy.server_check import check_server, packaged_tools
from kbrain_galaxy.sources import arrange, find_files
from kbrain_galaxy.uploads import HistoryUploads, make_upload
from kbrain_galaxy.workflow_runs import RunFailedError

VOXELS = {f"Convert image|voxel_size_{axis}": 0.5 for axis in "xyz"}
PROGRAM = """
import json, sys
from kbrain_galaxy import Galaxy
from kbrain_core.errors import KBrainError
url, key, workflow, data, output, settings = json.load(sys.stdin)
try:
    run = Galaxy(url, key).run(workflow, data, output=output, set=settings)
except KBrainError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
print(json.dumps({label: str(path) for label, path in run.outputs.items()}))
"""


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images one by one to volumes, with the reports."""
    state = {"source": {"what": "file", "__current_case__": 0, "input": CONNECTED}}
    outputs = {"output": "Volumes", "report": "Reports", "report_pictures": "Report pictures"}
    step = tool_step("Convert image", "kbrain_convert_image", {"source|input": 0}, state, outputs)
    path = tmp_path_factory.mktemp("workflows") / "convert.ga"
    return write_workflow(path, "Client test: convert", [collection_input("Images", "list"), step])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two planes with planted values: the number of the plane."""
    return write_planes(tmp_path / "images")


def write_planes(folder: Path) -> Path:
    folder.mkdir()
    for number in (1, 2):
        tifffile.imwrite(folder / f"plane {number}.tif", np.full((40, 48), number, np.uint8))
    return folder


@pytest.fixture(scope="module")
def finished(
    galaxy: Any, convert: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[WorkflowRun, Path, Path]:
    """A run that ended well, its images and its output."""
    folder = tmp_path_factory.mktemp("finished")
    images = write_planes(folder / "images")
    (images / "notes.md").write_text("not an image")
    server = Galaxy(galaxy.url, galaxy.key)
    run = server.run(str(convert), images, output=folder / "out", set=VOXELS, fetch_volumes=True)
    return run, images, folder / "out"


def history_of(output: Path) -> str:
    return str(StateFile(output).run.history)


def datasets(galaxy: Any, output: Path) -> list[dict[str, Any]]:
    contents = galaxy.client.histories.show_history(history_of(output), contents=True)
    return [item for item in contents if item["history_content_type"] == "dataset"]


def test_a_run_brings_its_results(galaxy: Any, finished: tuple[WorkflowRun, Path, Path]) -> None:
    run, _, output = finished
    assert run.outputs == {
        "Volumes": output / "Volumes",
        "Reports": output / "Reports",
        "Report pictures": output / "Report_pictures",
    }
    for number in (1, 2):
        volume = Volume.open(str(output / "Volumes" / f"plane_{number}.tif.zarr"))
        assert (volume.read((slice(None),) * 5) == number).all()
        assert "<html" in (output / "Reports" / f"plane_{number}.tif.html").read_text()
    pictures = list((output / "Report_pictures").rglob("*.png"))
    assert pictures
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    with zipfile.ZipFile(output / "run.rocrate.zip") as crate:
        parts = json.loads(crate.read("ro-crate-metadata.json"))["@graph"]
    assert any("Client test: convert" in str(part.get("name")) for part in parts)
    assert "[Reports](Reports)" in (output / "run_report.md").read_text()
    assert galaxy.key not in (output / ".kbrain-galaxy.json").read_text()
    assert not list(output.rglob("*.part"))
    for page in (run.url, run.link("reports")):
        assert requests.get(page, timeout=30).status_code == 200


def test_a_second_call_does_nothing_twice(
    galaxy: Any, convert: Path, finished: tuple[WorkflowRun, Path, Path]
) -> None:
    """Even when the client was killed between starting the run and noting it."""
    run, images, output = finished
    server = Galaxy(galaxy.url, galaxy.key)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    count = len(datasets(galaxy, output))
    for noted in (True, False):
        if not noted:
            state = StateFile(output)
            state.run.invocation = None
            state.save()
        again = server.run(str(convert), images, output=output, set=VOXELS, fetch_volumes=True)
        assert again.outputs == run.outputs
        assert again.url == run.url
    assert len(datasets(galaxy, output)) == count
    changed = {path.name for path, stamp in before.items() if path.stat().st_mtime_ns != stamp}
    assert changed <= {"run_report.md", ".kbrain-galaxy.json"}
    with pytest.raises(OutputExistsError, match="holds a run with other data or settings"):
        server.run(str(convert), images, output=output, set={**VOXELS, "Convert image|kind": "labels"})


def test_the_failing_job_speaks_for_itself_and_the_cause_can_be_mended(
    galaxy: Any, convert: Path, images: Path, tmp_path: Path
) -> None:
    whole = (images / "plane 2.tif").read_bytes()
    (images / "plane 2.tif").write_bytes(whole[: len(whole) // 2])
    server = Galaxy(galaxy.url, galaxy.key)
    with pytest.raises(RunFailedError) as caught:
        server.run(str(convert), images, output=tmp_path / "out", set=VOXELS)
    message = str(caught.value)
    assert message.startswith("Step 'Convert image', element 'plane 2.tif' failed: kbrain convert-image: ")
    assert "\n" not in message
    assert caught.value.exit_code == 6
    uploaded = StateFile(tmp_path / "out").run.uploads["Images/plane 1.tif"].dataset

    (images / "plane 2.tif").write_bytes(whole)
    run = server.run(str(convert), images, output=tmp_path / "out", set=VOXELS)
    assert set(run.outputs) == {"Reports", "Report pictures"}  # volumes stay in Galaxy
    assert "Volumes" in run.labels
    assert StateFile(tmp_path / "out").run.uploads["Images/plane 1.tif"].dataset == uploaded


def test_what_is_wrong_is_told_before_anything_is_uploaded(
    galaxy: Any, convert: Path, images: Path, tmp_path: Path
) -> None:
    server = Galaxy(galaxy.url, galaxy.key)
    known = {entry["id"] for entry in galaxy.client.histories.get_histories()}
    (tmp_path / "page.pdf").write_text("x")
    for data, settings, message in (
        (images, {"Convert imag|kind": "labels"}, "no step 'Convert imag'. Did you mean 'Convert image'?"),
        (images, {"Convert image|knid": "labels"}, "no parameter 'knid'. Did you mean 'kind'?"),
        (images, {"Convert image|kind": "lables"}, "choose one of auto, image, labels"),
        (images, {"Convert image|voxel_size_x": "wide"}, "write a number"),
        (
            (),
            {},
            "needs 'Images' (collection of files, tiff/ome.tiff/png): give it with --input 'Images=PATH'",
        ),
        ({"Image": images}, {}, "no input 'Image'. Did you mean 'Images'?"),
        (
            tmp_path / "page.pdf",
            {},
            "No file is what input 'Images' takes (collection of files, tiff/ome.tiff/png)",
        ),
        (tmp_path / "none", {}, "There is no"),
    ):
        with pytest.raises(InputError) as caught:
            server.run(str(convert), data, output=tmp_path / "out", set=settings)
        assert message in str(caught.value)
    with pytest.raises(InputError, match="There is no workflow 'tiles-to-vollume'"):
        server.run("tiles-to-vollume", images, output=tmp_path / "out")
    assert {entry["id"] for entry in galaxy.client.histories.get_histories()} == known
    assert not (tmp_path / "out").exists()


def test_sections_values_and_single_files(galaxy: Any, tmp_path: Path) -> None:
    """Folders become sections; a value and a file reach the step they are for."""
    tiles = tmp_path / "tiles"
    for name in ("s1/a.txt", "s1/b.txt", "s2/a.txt"):
        (tiles / name).parent.mkdir(parents=True, exist_ok=True)
        (tiles / name).write_text(name)
    (tmp_path / "note.txt").write_text("a note")
    steps = [
        collection_input("Sections", "list:list", formats=("txt",)),
        data_input("Note", formats=("txt",), optional=True),
        value_input("Which", "integer", optional=False),
        tool_step(
            "Flatten",
            "__FLATTEN__",
            {"input": 0},
            {"input": CONNECTED, "join_identifier": "_"},
            {"output": "Flat"},
            version=None,
        ),
        tool_step(
            "Pick",
            "__EXTRACT_DATASET__",
            {"input": (3, "output"), "which|index": 2},
            {
                "input": CONNECTED,
                "which": {"which_dataset": "by_index", "__current_case__": 2, "index": CONNECTED},
            },
            {"output": "Picked"},
            version=None,
        ),
    ]
    workflow = write_workflow(tmp_path / "sections.ga", "Client test: sections", steps)
    data = {"sections": tiles, "note": tmp_path / "note.txt"}
    run = Galaxy(galaxy.url, galaxy.key).run(str(workflow), data, output=tmp_path / "out", set={"which": 1})
    flat = {path.name: path.read_text().strip() for path in run.outputs["Flat"].iterdir()}
    assert flat == {"s1_a.txt": "s1/a.txt", "s1_b.txt": "s1/b.txt", "s2_a.txt": "s2/a.txt"}
    assert run.outputs["Picked"].read_text().strip() == "s1/b.txt"  # the second, counted from 0


def test_five_clients_upload_at_once(galaxy: Any, tmp_path: Path) -> None:
    """Each gets its own files, byte for byte, though all have the same names and the same first 64 KB."""

    def upload(client: int) -> dict[str, tuple[str, bytes]]:
        folder = tmp_path / f"client{client}"
        folder.mkdir()
        rng = np.random.default_rng(client)
        for number in range(3):
            content = bytes(100_000) + rng.bytes(200_000 + number)
            (folder / f"tile{number}.bin").write_bytes(content)
        server = Server(galaxy.url, galaxy.key)
        state = StateFile(tmp_path / f"out{client}")
        state.run.history = str(server.histories.create_history(f"Client test: upload {client}")["id"])
        elements = arrange(find_files([str(folder)], tmp_path).files, "list", None, "home")
        uploads = [make_upload(e.file.name, e.file, "binary", None, deferred=False) for e in elements]
        known = HistoryUploads(server, state).upload(uploads)
        return {known[u.key]: (u.key, (folder / u.key).read_bytes()) for u in uploads}

    with ThreadPoolExecutor(5) as pool:
        found = [entry for made in pool.map(upload, range(5)) for entry in made.items()]
    assert len({dataset for dataset, _ in found}) == 15
    for dataset, (name, content) in found:
        assert galaxy.client.datasets.show_dataset(dataset)["name"] == name
        assert galaxy.client.datasets.download_dataset(dataset) == content


def test_urls_and_files_that_galaxy_refuses(galaxy: Any, tmp_path: Path) -> None:
    server = Server(galaxy.url, galaxy.key)
    state = StateFile(tmp_path / "out")
    state.run.history = str(server.histories.create_history("Client test: refused")["id"])
    found = find_files(["http://127.0.0.1:9/tile.tif"], tmp_path)
    uploads = [make_upload("tile", found.files[0], "tiff", None, deferred=False)]
    with pytest.raises(CheckFailedError, match=r"Galaxy could not take 'tile\.tif' in: .*127\.0\.0\.1"):
        HistoryUploads(server, state).upload(uploads)
    deferred = [make_upload("later", found.files[0], "tiff", None, deferred=True)]
    known = HistoryUploads(server, state).upload(deferred)
    assert galaxy.client.datasets.show_dataset(known["later"])["state"] == "deferred"


class CountingProxy:
    """A way to Galaxy that counts the bytes of uploads that arrived, and is slow enough to kill a client on it."""

    def __init__(self, target: str) -> None:
        self.arrived = 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.command == "PATCH":
                    time.sleep(0.4)
                headers = {
                    name: value for name, value in self.headers.items() if name.lower() != "connection"
                }
                answer = requests.request(
                    self.command,
                    target + self.path,
                    data=body,
                    headers=headers,
                    timeout=120,
                    allow_redirects=False,
                )
                if self.command == "PATCH" and answer.status_code == 204:
                    proxy.arrived += len(body)
                self.reply(answer)

            def reply(self, answer: requests.Response) -> None:
                try:
                    self.send_response(answer.status_code)
                    for name, value in answer.headers.items():
                        if name.lower() not in (
                            "content-length",
                            "transfer-encoding",
                            "content-encoding",
                            "connection",
                        ):
                            self.send_header(name, value)
                    self.send_header("Content-Length", str(len(answer.content)))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(answer.content)
                except OSError:  # the client was killed
                    self.close_connection = True

            do_GET = do_POST = do_PATCH = do_HEAD = do_PUT = do_DELETE = forward

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def proxy(galaxy: Any) -> Iterator[CountingProxy]:
    made = CountingProxy(galaxy.url)
    yield made
    made.close()


def start_client(
    url: str, key: str, workflow: Path, data: Path, output: Path, settings: dict[str, Any]
) -> subprocess.Popen[str]:
    project = Path(__file__).parents[2]
    client = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(project)},
    )
    assert client.stdin is not None
    client.stdin.write(json.dumps([url, key, str(workflow), str(data), str(output), settings]))
    client.stdin.close()
    client.stdin = None
    return client


def until(true: Callable[[], bool], client: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert client.poll() is None, client.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_upload_goes_on_where_it_was(
    galaxy: Any, proxy: CountingProxy, convert: Path, tmp_path: Path
) -> None:
    """Killed after 2 of 5 pieces: the second client sends the other bytes and no byte twice."""
    images = tmp_path / "images"
    images.mkdir()
    content = np.random.default_rng(1).integers(0, 255, (10, 2000, 2000), dtype=np.uint8)
    tifffile.imwrite(images / "stack.tif", content)
    size = (images / "stack.tif").stat().st_size
    first = start_client(proxy.url, galaxy.key, convert, images, tmp_path / "out", VOXELS)
    until(lambda: proxy.arrived >= 2 * 8 * 1024 * 1024, first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    time.sleep(1)  # a piece that was under way arrives or not
    before = proxy.arrived
    assert before < size

    second = start_client(proxy.url, galaxy.key, convert, images, tmp_path / "out", VOXELS)
    told, error = second.communicate(timeout=240)
    assert second.returncode == 0, error
    assert proxy.arrived == size
    assert set(json.loads(told)) == {"Reports", "Report pictures"}
    uploaded = StateFile(tmp_path / "out").run.uploads["Images/stack.tif"].dataset
    assert uploaded is not None
    assert galaxy.client.datasets.download_dataset(uploaded) == (images / "stack.tif").read_bytes()


def test_an_interrupted_client_leaves_the_run_going(
    galaxy: Any, convert: Path, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    first = start_client(galaxy.url, galaxy.key, convert, images, output, VOXELS)
    state = output / ".kbrain-galaxy.json"
    until(lambda: state.is_file() and json.loads(state.read_text())["invocation"] is not None, first)
    first.send_signal(signal.SIGINT)
    _, error = first.communicate(timeout=30)
    assert first.returncode == 130, error
    assert "the run goes on at" in error.splitlines()[-1]
    started = StateFile(output).run.invocation

    run: WorkflowRun = Galaxy(galaxy.url, galaxy.key).run(str(convert), images, output=output, set=VOXELS)
    assert set(run.outputs) == {"Reports", "Report pictures"}
    assert StateFile(output).run.invocation == started
    assert len(galaxy.client.invocations.get_invocations(history_id=history_of(output))) == 1


def test_a_server_is_compared_with_what_kbrain_brings(galaxy: Any) -> None:
    found = check_server(Galaxy(galaxy.url, galaxy.key).connection)
    assert found.complete, found
    assert found.has_viewer
    assert len(packaged_tools()) >= 8
    assert all(tool.version.count("@") == 0 for tool in packaged_tools())
