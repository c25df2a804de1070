"""The embedded Galaxy as it runs: found again, reachable by its owner alone, with KBrain's tools in their order."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from kbrain_core.errors import EXIT_BAD_INPUT, EXIT_OK
from kbrain_galaxy.cli import main
from kbrain_galaxy.server import open_instance, read_connection, start_server
from kbrain_galaxy.server_status import read_status

pytestmark = pytest.mark.galaxy


@pytest.fixture
def embedded(galaxy: Any) -> Path:
    """The folder of the embedded Galaxy."""
    if galaxy.folder is None:
        pytest.skip("GALAXY_URL names a Galaxy that is not the embedded one")
    return galaxy.folder


def test_a_second_start_finds_the_first(
    galaxy: Any, embedded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    assert start_server(embedded) == read_connection(embedded)
    assert time.monotonic() - began < 10
    assert "runs already" in capsys.readouterr().err
    assert main(["start", "--folder", str(embedded), "--port", "1"]) == EXIT_BAD_INPUT
    assert "stop it first" in capsys.readouterr().err


def test_status(galaxy: Any, embedded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--folder", str(embedded)]) == EXIT_OK
    shown = capsys.readouterr().out
    assert f"URL:       {galaxy.url}\n" in shown
    assert galaxy.key not in shown
    assert read_status(embedded).tools >= 8


def test_start_prints_its_address_last_and_brings_the_workflows(
    galaxy: Any, embedded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["start", "--folder", str(embedded)]) == EXIT_OK
    assert capsys.readouterr().out == f"{galaxy.url}\n"
    names = {workflow["name"] for workflow in galaxy.client.workflows.get_workflows()}
    assert {"Raw tiles to a 3D volume", "Image stack to a browsable volume"} <= names


def test_install_finds_nothing_missing(
    galaxy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(galaxy.key + "\n")
    code = main(["install", "--url", galaxy.url, "--key-file", str(key_file)])
    captured = capsys.readouterr()
    assert code == EXIT_OK, captured.out + captured.err
    assert "Tools: all are there" in captured.out
    assert "Datatypes: all are there" in captured.out
    assert "strips the pages" not in captured.out  # our own reports are shown as they are
    assert galaxy.key not in captured.out + captured.err


def test_a_wrong_key(
    galaxy: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KBRAIN_GALAXY_KEY", "0" * 32)
    assert main(["install", "--url", galaxy.url]) == EXIT_BAD_INPUT
    assert "does not know this API key" in capsys.readouterr().err


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}],
)
def test_other_sites_cannot_use_it(galaxy: Any, embedded: Path, headers: dict[str, str]) -> None:
    answer = requests.post(
        f"{galaxy.url}/api/histories", json={"name": "stolen"}, headers=headers, timeout=30
    )
    assert answer.status_code == 403
    assert "KBrain's Galaxy refuses this" in answer.text


def test_it_listens_on_loopback_alone(galaxy: Any, embedded: Path) -> None:
    port = f":{urlsplit(galaxy.url).port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A" and row[1].endswith(port)]
    assert listening == [f"0100007F{port}"]


def test_keys_are_their_owners_alone(galaxy: Any, embedded: Path) -> None:
    instance = open_instance(embedded)
    for file in (instance.key_file, instance.secrets_file, instance.config_file):
        assert file.stat().st_mode & 0o077 == 0, file
    assert embedded.stat().st_mode & 0o077 == 0


def test_the_first_page_and_the_panel(galaxy: Any, embedded: Path) -> None:
    page = requests.get(f"{galaxy.url}/static/welcome.html", timeout=30)
    assert "<h1>KBrain</h1>" in page.text
    panel = [entry["name"] for entry in galaxy.client.tools.get_tool_panel() if entry.get("elems")]
    ours = [name.removeprefix("KBrain: ") for name in panel if name.startswith("KBrain")]
    steps = ["Ingest", "Storage", "Processing", "Analysis", "Visualization"]
    assert ours == [step for step in steps if step in ours]
    assert len(ours) >= 4
    assert len(panel) - len(ours) <= 2  # of Galaxy's own only what workflows need: collections and values


def test_a_page_that_somebody_uploads_cannot_act(galaxy: Any, embedded: Path) -> None:
    history = galaxy.client.histories.create_history("pages")["id"]
    page = "<html><body><p>kept</p><script>alert(1)</script></body></html>"
    element = {"src": "pasted", "paste_content": page, "name": "page", "ext": "html"}
    request = {"history_id": history, "targets": [{"destination": {"type": "hdas"}, "elements": [element]}]}
    answer = galaxy.client.make_post_request(f"{galaxy.client.url}/tools/fetch", payload=request)
    dataset = answer["outputs"][0]["id"]
    galaxy.client.datasets.wait_for_dataset(dataset, maxwait=120, check=False)
    refused = galaxy.client.datasets.show_dataset(dataset)
    assert refused["state"] == "error"
    assert "invalid HTML content" in refused["misc_info"]
    configuration = json.loads(open_instance(embedded).config_file.read_text())["galaxy"]
    assert configuration.get(
        "sanitize_all_html", True
    )  # and what came by another way is shown without its scripts
