"""Run a workflow and follow it: jobs of every step, and what the failing one says itself."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kbrain_core.errors import EXIT_CHECK_FAILED, EXIT_INTERRUPTED, KBrainError

from .connection import Server
from .progress_display import StepBoard
from .workflow_form import Settings

FIRST_POLL_S = 1.0
LAST_POLL_S = 5.0
_ENDED = ("ok", "skipped", "error", "failed", "deleted", "deleting", "stopped", "stop", "paused")
_BROKEN = ("error", "failed", "deleted", "deleting", "paused")
_GOOD_END = ("scheduled", "completed")
_OWN_LINE = re.compile(r"^kbrain(-[\w-]+)?( [\w-]+)?: .+")


class RunFailedError(KBrainError):
    """A step of the workflow failed; the message is the failing job's own."""

    exit_code = EXIT_CHECK_FAILED


class DetachedError(KBrainError):
    """The client was interrupted; the run goes on at the server."""

    exit_code = EXIT_INTERRUPTED


@dataclass(frozen=True)
class StepJobs:
    """The jobs of one step: counts by state, and where they are found."""

    label: str
    states: Mapping[str, int]
    job: str | None
    jobs_of_collection: str | None
    counted: bool = True

    @property
    def through(self) -> bool:
        """Whether all jobs have ended; mapped over an empty collection there are none."""
        return self.counted and self.ended == self.total

    @property
    def total(self) -> int:
        """How many jobs."""
        return sum(self.states.values())

    @property
    def ended(self) -> int:
        """How many jobs are through, well or not."""
        return sum(count for state, count in self.states.items() if state in _ENDED)

    @property
    def note(self) -> str:
        """What else is to be said of them."""
        told = [f"{self.states[state]} {word}" for state, word in _WORDS.items() if self.states.get(state)]
        return ", ".join(told) or ("" if self.total else "waiting")


_WORDS = {
    "error": "failed",
    "paused": "paused",
    "running": "running",
    "skipped": "skipped",
    "deleted": "deleted",
}


def invoke(
    server: Server,
    workflow: str,
    history: str,
    data: Mapping[int, dict[str, str]],
    settings: Settings,
    *,
    reuse: bool,
) -> str:
    """Start a workflow.

    Parameters
    ----------
    server : Server
        The Galaxy.
    workflow, history : str
        What runs, and where its results go.
    data : mapping of int to dict
        Datasets and collections by index of the input.
    settings : Settings
        Values.
    reuse : bool
        Whether Galaxy may take results of equal jobs that ended well before.

    Returns
    -------
    str
        The invocation.
    """
    answer = server.workflows.invoke_workflow(
        workflow,
        inputs={str(index): value for index, value in {**data, **settings.inputs}.items()},
        parameters={str(index): values for index, values in settings.steps.items()} or None,
        history_id=history,
        parameters_normalized=True,
        inputs_by="step_index",
        use_cached_job=reuse,
        allow_tool_state_corrections=True,  # options that a tool got since the workflow was made take their defaults
    )
    return str(answer["id"])


def unnoted_invocation(server: Server, workflow: str, history: str, known: str | None) -> str | None:
    """The newest run of a workflow in a history, unless it is the known one.

    There is one when the client was killed between starting a run and noting it; a second start would compute all twice.
    """
    found = server.invocations.get_invocations(workflow_id=workflow, history_id=history)
    newest = max(found, key=lambda entry: str(entry["create_time"]), default=None)
    return None if newest is None or newest["id"] == known else str(newest["id"])


def wait_for_run(server: Server, invocation: str, labels: Mapping[int, str]) -> dict[str, Any]:
    """Wait until a run is through, and show how far every step is.

    Parameters
    ----------
    server : Server
        The Galaxy.
    invocation : str
        The run.
    labels : mapping of int to str
        What the steps are called, by index.

    Returns
    -------
    dict
        The invocation, with its outputs by label.

    Raises
    ------
    RunFailedError
        When a step failed, with the message of its job.
    """
    pause = FIRST_POLL_S
    with StepBoard() as board:
        while True:
            found: dict[str, Any] = server.invocations.show_invocation(invocation)
            steps = list(_step_jobs(server, found, labels))
            for step in steps:
                board.show(step.label, step.ended, step.total, step.note)
            broken = next((step for step in steps if any(step.states.get(state) for state in _BROKEN)), None)
            if broken is not None:
                raise RunFailedError(failure_message(server, broken))
            if found["state"] in ("failed", "cancelled", "cancelling"):
                raise RunFailedError(_scheduling_failure(found, labels))
            if found["state"] in _GOOD_END and all(step.through for step in steps):
                return found
            time.sleep(pause)
            pause = min(pause * 1.2, LAST_POLL_S)


def _step_jobs(
    server: Server, invocation: Mapping[str, Any], labels: Mapping[int, str]
) -> Iterator[StepJobs]:
    """The steps that have jobs, in the order of the workflow; those of a workflow inside it as one's own."""
    summaries = {
        (summary["model"], summary["id"]): summary
        for summary in server.invocations.get_invocation_step_jobs_summary(invocation["id"])
    }
    for step in sorted(invocation["steps"], key=lambda step: step["order_index"]):
        label = (
            step["workflow_step_label"]
            or labels.get(step["order_index"])
            or f"Step {step['order_index'] + 1}"
        )
        if step.get("subworkflow_invocation_id"):
            inner = server.invocations.show_invocation(step["subworkflow_invocation_id"])
            for one in _step_jobs(server, inner, {}):
                yield replace(one, label=f"{label}: {one.label}")
        elif step["job_id"] or step["implicit_collection_jobs_id"]:
            of_collection = step["implicit_collection_jobs_id"]
            key = ("ImplicitCollectionJobs", of_collection) if of_collection else ("Job", step["job_id"])
            summary = summaries.get(key)
            yield StepJobs(
                label,
                summary["states"] if summary else {},
                step["job_id"],
                of_collection,
                counted=summary is not None and summary["populated_state"] == "ok",
            )


def failure_message(server: Server, step: StepJobs) -> str:
    """Which step and which element failed, and what the job itself says."""
    broken = _broken_jobs(server, step)
    if not broken:
        return f"Step '{step.label}' failed; Galaxy does not say which job"
    job = server.jobs.show_job(broken[0]["id"], full_details=True)
    element = _element_of(server, job)
    where = f"Step '{step.label}'" + (f", element '{element}'" if element else "")
    more = f" ({len(broken)} of {step.total} jobs failed)" if len(broken) > 1 else ""
    if job["state"] == "paused":
        return f"{where} is paused: {_dataset_reason(server, job)}{more}"
    if job["state"] in ("deleted", "deleting"):
        return f"{where} was cancelled{more}"
    return f"{where} failed: {job_reason(job) or _dataset_reason(server, job)}{more}"


def _broken_jobs(server: Server, step: StepJobs) -> list[dict[str, Any]]:
    if step.job is not None:
        return [{"id": step.job}]
    found: list[dict[str, Any]] = []
    for state in _BROKEN:
        if step.states.get(state):
            found += server.read("jobs", implicit_collection_jobs_id=step.jobs_of_collection, state=state)
    return found


def job_reason(job: Mapping[str, Any]) -> str:
    """What a failed job says: KBrain's own line, the line a rule of the tool picked out, or the last line of its output."""
    lines = [line.strip() for line in str(job.get("tool_stderr") or job.get("stderr") or "").splitlines()]
    own = [line for line in lines if _OWN_LINE.match(line)]
    if own:
        return own[-1]
    told = [
        str(message.get("desc") or "")
        for message in job.get("job_messages") or ()
        if isinstance(message, Mapping)
    ]
    picked = [text for text in told if text and not re.match(r"Fatal error: Exit code \d+ \(\)$", text)]
    if picked:
        return " ".join(picked[-1].removeprefix("Fatal error: ").split())[:1000]
    last = next((line for line in reversed(lines) if line), "")
    code = job.get("exit_code")
    return f"{last[:1000]} (exit code {code})" if last and code else last[:1000] or (told[-1] if told else "")


def _dataset_reason(server: Server, job: Mapping[str, Any]) -> str:
    for output in job["outputs"].values():
        said = server.datasets.show_dataset(output["id"]).get("misc_info")
        if said:
            return " ".join(said.split())[-1000:]
    return "Galaxy gives no reason"


def _element_of(server: Server, job: Mapping[str, Any]) -> str:
    """The element of a collection that a job made, with its section; empty when the step makes single datasets."""
    datasets = {output["id"] for output in job["outputs"].values()}
    for collection in job.get("output_collections", {}).values():
        if collection.get("src") == "hdca":
            shown = server.histories.show_dataset_collection(job["history_id"], collection["id"])
            for path, element in leaves(shown["elements"]):
                if element["id"] in datasets:
                    return "/".join(path)
    return ""


def leaves(
    elements: list[dict[str, Any]], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The datasets of a collection with their names, sections first."""
    for element in elements:
        inner = (*path, str(element["element_identifier"]))
        if element["element_type"] == "hda":
            yield inner, element["object"]
        elif element["object"]:
            yield from leaves(element["object"]["elements"], inner)


def _scheduling_failure(invocation: Mapping[str, Any], labels: Mapping[int, str]) -> str:
    """Why Galaxy did not start all steps."""
    for message in invocation.get("messages") or ():
        index = message.get("workflow_step_id")
        where = f" at step '{labels.get(index, index)}'" if index is not None else ""
        details = message.get("details") or message.get("output_name") or ""
        return f"Galaxy stopped the run{where}: {str(message['reason']).replace('_', ' ')}. {details}".strip()
    return f"The run was {invocation['state']} in Galaxy"
