"""Ends of the server in the middle of a workflow: jobs go on, each runs once, and everything is there afterwards."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bioblend.galaxy import GalaxyInstance

from kbrain_core import __version__
from kbrain_galaxy.server import open_instance, read_process, start_server, stop_server

pytestmark = pytest.mark.galaxy
TOOLS = Path(__file__).parent / "restart_tools"
ELEMENTS = ("left", "middle", "right")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of an instance that has the tool whose runs are counted."""
    folder = tmp_path_factory.mktemp("restart")
    own_tools = open_instance(folder).own_tools_file
    own_tools.parent.mkdir()
    own_tools.write_text(
        f'<toolbox><section id="tests" name="Tests"><tool file="{TOOLS / "note_run.xml"}"/></section></toolbox>'
    )
    try:
        yield folder
    finally:
        stop_server(folder)


def client(folder: Path) -> GalaxyInstance:
    connection = start_server(folder, port=0)
    return GalaxyInstance(connection.url, key=connection.key)


def kill(folder: Path) -> None:
    process = read_process(open_instance(folder))
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: read_process(open_instance(folder)) is None, "the killed server to be gone")


def wait_for(condition: Callable[[], Any], what: str, limit_s: float = 180) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s:.0f} s for {what}"
        time.sleep(0.1)


def two_steps(journal: Path, seconds: float) -> dict[str, Any]:
    """A workflow of two steps, both mapped over a collection."""

    def step(number: int, source: str) -> dict[str, Any]:
        state = {"journal": str(journal), "step": f"step{number}", "seconds": seconds}
        return {"tool_id": "note_run", "tool_version": "1", "in": {"input": source}, "state": state}

    return {
        "class": "GalaxyWorkflow",
        "name": "Two steps",
        "inputs": {"Texts": {"type": "collection", "collection_type": "list"}},
        "outputs": {"Texts with notes": {"outputSource": "step2/output"}},
        "steps": {"step1": step(1, "Texts"), "step2": step(2, "step1/output")},
    }


def upload(galaxy: GalaxyInstance, history: str, name: str) -> str:
    element = {"src": "pasted", "paste_content": f"text of {name}", "name": name, "ext": "txt"}
    request = {
        "history_id": history,
        "targets": [{"destination": {"type": "hdas"}, "elements": [element]}],
    }
    answer = galaxy.make_post_request(f"{galaxy.url}/tools/fetch", payload=request)
    dataset: str = answer["outputs"][0]["id"]
    return dataset


def invoke(galaxy: GalaxyInstance, journal: Path, seconds: float) -> tuple[str, str]:
    history = galaxy.histories.create_history("restart")["id"]
    elements = [{"name": name, "src": "hda", "id": upload(galaxy, history, name)} for name in ELEMENTS]
    collection = galaxy.histories.create_dataset_collection(
        history, {"collection_type": "list", "name": "Texts", "element_identifiers": elements}
    )
    workflow = galaxy.workflows.import_workflow_dict(two_steps(journal, seconds))["id"]
    inputs = {"0": {"src": "hdca", "id": collection["id"]}}
    return galaxy.workflows.invoke_workflow(workflow, inputs, history_id=history)["id"], history


def lines(journal: Path) -> list[str]:
    return journal.read_text().splitlines() if journal.exists() else []


def check_all_there(galaxy: GalaxyInstance, invocation: str, history: str, journal: Path) -> None:
    def ended() -> bool:
        states = Counter(job["state"] for job in galaxy.jobs.get_jobs(invocation_id=invocation))
        assert not states["error"] and not states["paused"], states
        return states["ok"] == 2 * len(ELEMENTS)

    wait_for(ended, "every job to end well")
    expected = [
        f"step{number} {name} {event}" for number in (1, 2) for name in ELEMENTS for event in ("start", "end")
    ]
    assert Counter(lines(journal)) == Counter(expected)  # nothing twice, nothing lost
    contents = galaxy.histories.show_history(history, contents=True, types=["dataset"])
    assert {dataset["state"] for dataset in contents} == {"ok"}
    last = galaxy.datasets.download_dataset(contents[-1]["id"]).decode()
    assert f"text of {ELEMENTS[-1]}" in last
    # The job has what the server was told to give it, and nothing of Galaxy's own environment.
    assert re.search(r"slots=\d+ memory=\d+ path=none environment=none", last)
    assert __version__ in last


def test_a_killed_server_loses_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "journal"
    galaxy = client(folder)
    invocation, history = invoke(galaxy, journal, seconds=8)
    wait_for(lambda: len(lines(journal)) == 2, "two jobs of the first step to run")
    kill(folder)
    wait_for(
        lambda: sum(line.endswith("end") for line in lines(journal)) == 2, "them to end without a server"
    )
    check_all_there(client(folder), invocation, history, journal)
    assert "not stopped but killed" in capsys.readouterr().err


def test_a_server_that_was_stopped_goes_on(folder: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    invocation, history = invoke(client(folder), journal, seconds=4)
    wait_for(lambda: "step2" in "".join(lines(journal)), "the second step to begin")
    assert stop_server(folder)
    assert not stop_server(folder)
    check_all_there(client(folder), invocation, history, journal)


def test_uploads_cut_off_by_a_kill_are_taken_up(folder: Path) -> None:
    galaxy = client(folder)
    history = galaxy.histories.create_history("uploads")["id"]
    names = [f"cut {number}" for number in range(4)]
    uploads = [upload(galaxy, history, name) for name in names]
    kill(folder)
    galaxy = client(folder)

    def states() -> list[str]:
        return [galaxy.datasets.show_dataset(dataset)["state"] for dataset in uploads]

    wait_for(lambda: set(states()) == {"ok"}, "the uploads")
    contents = [galaxy.datasets.download_dataset(dataset).decode().strip() for dataset in uploads]
    assert contents == [f"text of {name}" for name in names]


def run_for_ever(galaxy: GalaxyInstance, history: str, journal: Path) -> tuple[str, int]:
    """A job that only ends when it is ended; its id in Galaxy and its process."""
    before = len(lines(journal))
    dataset = upload(galaxy, history, f"job {before}")
    inputs = {
        "input": {"src": "hda", "id": dataset},
        "journal": str(journal),
        "step": "endless",
        "seconds": 3600,
    }
    job = galaxy.tools.run_tool(history, "note_run", inputs)["jobs"][0]["id"]
    wait_for(lambda: len(lines(journal)) > before, "the job to run")
    return job, int(galaxy.jobs.show_job(job, full_details=True)["external_id"].split(":")[0])


def is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_jobs_that_are_ended_by_people_and_by_accident(folder: Path, tmp_path: Path) -> None:
    galaxy, journal = client(folder), tmp_path / "journal"
    history = galaxy.histories.create_history("ended")["id"]
    deleted, group = run_for_ever(galaxy, history, journal)
    assert galaxy.jobs.cancel_job(deleted)
    wait_for(lambda: is_gone(group), "the deleted job's processes to be gone", 30)

    killed, group = run_for_ever(galaxy, history, journal)
    os.killpg(group, signal.SIGKILL)
    wait_for(lambda: galaxy.jobs.get_state(killed) == "error", "the killed job to have failed", 30)
    failed = galaxy.jobs.show_job(killed)["outputs"]["output"]["id"]
    assert "it was killed" in galaxy.datasets.show_dataset(failed)["misc_info"]
    assert galaxy.jobs.get_state(deleted) == "deleted"
    work = list((folder / "database" / "jobs_directory").rglob("galaxy_*.sh"))
    assert len(work) <= 1  # the deleted job's folder is gone; a failed one's may stay
