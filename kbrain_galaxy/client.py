"""KBrain's workflows on any Galaxy, in three calls: connect, run, look.

>>> from kbrain_galaxy import Galaxy
>>> galaxy = Galaxy.local()  # or Galaxy("https://galaxy.example.org", key)
>>> run = galaxy.run("tiles-to-volume", "tiles/", set={"Stitch tiles|max_shift_um": 20}, output="results/")
>>> print(run.link("View"), run.outputs)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from kbrain_core.engine import say
from kbrain_core.errors import InputError, OutputExistsError
from kbrain_core.formats.tile_inputs import IMAGE_ENDINGS

from .connection import find_connection, open_server, plain_errors
from .file_types import file_ending, galaxy_type
from .labels import find
from .run_outputs import OutputFetcher, RunOutput, fetch_crate, fetch_report
from .run_state import StateFile
from .server import Connection
from .sources import (
    Element,
    Selection,
    SourceFile,
    arrange,
    choose_collection_type,
    find_files,
    keep,
    single_file,
)
from .uploads import HistoryUploads, Upload, check_type, make_upload
from .workflow_form import Settings, WorkflowForm, WorkflowInput, resolve_settings
from .workflow_library import find_workflow, load_form
from .workflow_runs import DetachedError, RunFailedError, invoke, unnoted_invocation, wait_for_run

PathLike: TypeAlias = str | Path
Data: TypeAlias = PathLike | Sequence[PathLike] | Mapping[str, PathLike | Sequence[PathLike]]

VIEWER = "kneuroviz"
UNPACKED = ".kbrain-galaxy-unpacked"


@dataclass(frozen=True)
class WorkflowRun:
    """A run that ended well.

    Attributes
    ----------
    workflow : str
        Name of the workflow.
    url : str
        The run in Galaxy.
    outputs : dict of str to Path
        Where the outputs are that were fetched, by label.
    labels : tuple of str
        All outputs, also those that stayed in Galaxy.
    """

    workflow: str
    url: str
    outputs: dict[str, Path]
    labels: tuple[str, ...]
    _links: dict[str, str] = field(repr=False)

    def link(self, label: str) -> str:
        """Address that shows an output in a browser: in the 3D viewer where that can, else in Galaxy."""
        return find(label, self._links, "output", f"Workflow '{self.workflow}'")


@dataclass(frozen=True)
class _Plan:
    """What a run takes, found out before anything is uploaded."""

    uploads: dict[int, list[Upload]]
    collections: dict[int, tuple[str, list[Element]]]
    settings: Settings


class Galaxy:
    """A Galaxy server.

    Parameters
    ----------
    url : str
        Its address.
    key : str
        Your API key there.

    Raises
    ------
    InputError
        When the address is no Galaxy, the Galaxy too old, or the key wrong.
    """

    def __init__(self, url: str, key: str) -> None:
        self.connection = Connection(url.rstrip("/"), key)
        self._server = open_server(self.connection)

    @classmethod
    def local(cls) -> Galaxy:
        """The embedded Galaxy that `kbrain-galaxy start` started, or the one that KBRAIN_GALAXY_URL and _KEY name."""
        connection = find_connection()
        return cls(connection.url, connection.key)

    def run(
        self,
        workflow: str,
        data: Data = (),
        *,
        output: PathLike,
        set: Mapping[str, Any] | None = None,
        section_pattern: str | None = None,
        fetch_volumes: bool = False,
        defer: bool = False,
        overwrite: bool = False,
    ) -> WorkflowRun:
        r"""Upload data, run a workflow on them, wait, and fetch the results.

        The same call again goes on where it was: nothing is uploaded, computed or fetched twice.

        Parameters
        ----------
        workflow : str
            Name of a workflow of KBrain, path of a `.ga` file, or name or id of a workflow on the server.
        data : path, sequence of paths, or mapping of labels to them
            Files, folders, archives and URLs; by the labels of the workflow's inputs when there are several.
        output : path
            Folder for the results. It also remembers how far the run is.
        set : mapping of str to object, optional
            Values by `Step label|parameter`, or by the label of a parameter of the workflow.
        section_pattern : str, optional
            Regular expression whose group tells the section from a file's path, like `_s(\d+)`. Default: the folder.
        fetch_volumes : bool
            Fetch volumes too; they may have terabytes.
        defer : bool
            Galaxy fetches URLs only when a job needs them.
        overwrite : bool
            Start anew where another run's results are; uploads that are the same are kept.

        Raises
        ------
        RunFailedError
            When a step fails, with the message of its job.
        """
        state = StateFile(Path(output))
        state.belongs_to(self.connection.url)
        with plain_errors(self.connection.url):
            history, fresh = self._history(state, workflow)
            try:
                identity = find_workflow(self._server, workflow)
                form = load_form(self._server, identity, history)
                for remark in form.remarks[:5]:
                    say(remark)
                chosen = resolve_settings(form, set or {})
                plan = self._plan(form, data, chosen, state, section_pattern, defer)
            except BaseException:
                if fresh:  # nothing is in it
                    self._server.histories.delete_history(history, purge=True)
                raise
            state.run.history = history
            request = _request(identity, plan)
            invocation = self._start(state, identity, form, plan, request, overwrite)
            found = self._wait(state, invocation, form, workflow)
            return self._collect(state, form, found, fetch_volumes)

    def _history(self, state: StateFile, workflow: str) -> tuple[str, bool]:
        """The history of this run; a new one when there is none, or it was deleted."""
        if state.run.history is not None:
            known = self._server.make_get_request(f"{self._server.url}/histories/{state.run.history}")
            if known.status_code == 200 and not known.json()["deleted"]:
                return state.run.history, False
            say("The history of this run was deleted in Galaxy: starting anew")
            url, folder = state.run.url, state.folder
            state.path.unlink()
            state.run = StateFile(folder).run
            state.run.url = url
        name = f"KBrain: {Path(workflow).stem} to {state.folder.name}"
        return str(self._server.histories.create_history(name)["id"]), True

    def _plan(
        self,
        form: WorkflowForm,
        data: Data,
        settings: Settings,
        state: StateFile,
        pattern: str | None,
        defer: bool,
    ) -> _Plan:
        uploads: dict[int, list[Upload]] = {}
        collections: dict[int, tuple[str, list[Element]]] = {}
        known = frozenset(self._server.read("datatypes", upload_only=False))

        def make(entry: WorkflowInput, file: SourceFile) -> Upload:
            key = f"{entry.label}/{file.name}"
            kind = check_type(
                file.name, galaxy_type(file.parts[-1], entry.types, known), entry.label, entry.wants
            )
            return make_upload(key, file, kind, state.run.uploads.get(key), deferred=defer)

        for entry, paths in _by_input(form, data):
            if entry.kind == "dataset":
                if len(paths) > 1:
                    raise InputError(f"Input '{entry.label}' takes one file and {len(paths)} were given")
                uploads[entry.index] = [make(entry, single_file(paths[0]))]
                continue
            selection = _leave_out(entry, find_files(paths, state.folder / UNPACKED), known)
            kind = choose_collection_type(entry.collection_types, selection.files, pattern is not None)
            home = Path(paths[0]).resolve().name or "tiles"
            elements = arrange(selection.files, kind, pattern, home)
            collections[entry.index] = (kind, elements)
            uploads[entry.index] = [make(entry, element.file) for element in elements]
        form.check_complete([*uploads, *settings.inputs])
        return _Plan(uploads, collections, settings)

    def _start(
        self,
        state: StateFile,
        workflow: str,
        form: WorkflowForm,
        plan: _Plan,
        request: dict[str, Any],
        overwrite: bool,
    ) -> str:
        """The invocation of this run: the one under way, or a new one."""
        run = state.run
        history = run.history or ""
        if run.invocation is not None and run.failure is None:
            if run.request == request:
                return run.invocation
            if not overwrite:
                raise OutputExistsError(
                    f"'{state.folder}' holds a run with other data or settings: choose another --output, or pass --overwrite"
                )
        state.save()
        datasets = HistoryUploads(self._server, state)
        known = datasets.upload([upload for group in plan.uploads.values() for upload in group])
        data: dict[int, dict[str, str]] = {}
        labels = {entry.index: entry.label for entry in form.inputs}
        for index, uploads in plan.uploads.items():
            members = [known[upload.key] for upload in uploads]
            if index in plan.collections:
                kind, elements = plan.collections[index]
                data[index] = {
                    "src": "hdca",
                    "id": datasets.collection(labels[index], kind, elements, members),
                }
            else:
                data[index] = {"src": "hda", "id": members[0]}
        same = run.request == request
        unnoted = unnoted_invocation(self._server, workflow, history, run.invocation) if same else None
        run.request = request
        state.save()
        run.invocation = unnoted or invoke(
            self._server, workflow, history, data, plan.settings, reuse=run.failure is not None
        )
        run.failure = None
        state.save()
        return run.invocation

    def _wait(self, state: StateFile, invocation: str, form: WorkflowForm, workflow: str) -> dict[str, Any]:
        labels = {step.index: step.label for step in form.steps} | {
            entry.index: entry.label for entry in form.inputs
        }
        address = self._page(f"workflows/invocations/{invocation}")
        say(f"Workflow '{form.name}' runs: {address}")
        try:
            return wait_for_run(self._server, invocation, labels)
        except RunFailedError as error:
            state.run.failure = str(error)
            state.save()
            raise
        except KeyboardInterrupt:
            raise DetachedError(
                f"Interrupted; the run goes on at {address}, and `kbrain-galaxy run {workflow}` with the same options waits "
                "for it again"
            ) from None

    def _collect(
        self, state: StateFile, form: WorkflowForm, found: Mapping[str, Any], volumes: bool
    ) -> WorkflowRun:
        outputs = [RunOutput(label, "hda", entry["id"]) for label, entry in found["outputs"].items()]
        outputs += [
            RunOutput(label, "hdca", entry["id"]) for label, entry in found["output_collections"].items()
        ]
        places = OutputFetcher(self._server, state, volumes=volumes).fetch(outputs)
        fetch_crate(self._server, state)
        fetch_report(self._server, state, places)
        links = {output.label: self._link(output, str(found["history_id"])) for output in outputs}
        address = self._page(f"workflows/invocations/{found['id']}")
        return WorkflowRun(form.name, address, places, tuple(output.label for output in outputs), links)

    def _link(self, output: RunOutput, history: str) -> str:
        if output.kind == "hdca":
            return self._page(f"histories/view?id={history}")  # a collection has no page of its own
        plugins = self._server.read("plugins", dataset_id=output.id)
        if any(plugin.get("name") == VIEWER for plugin in plugins):
            return self._page(f"visualizations/display?visualization={VIEWER}&dataset_id={output.id}")
        return self._page(f"datasets/{output.id}/preview")

    def _page(self, path: str) -> str:
        return f"{self.connection.url}/{path}"


def _by_input(form: WorkflowForm, data: Data) -> list[tuple[WorkflowInput, list[str]]]:
    """The inputs that are given, with their files."""
    if isinstance(data, Mapping):
        named = [(form.input_named(label), _texts(paths)) for label, paths in data.items()]
    else:
        paths = _texts(data)
        named = [(form.only_input(), paths)] if paths else []
    for entry, paths in named:
        if entry.kind == "value":
            raise InputError(
                f"'{entry.label}' is a value, not a file: give it with --set '{entry.label}=VALUE'"
            )
        if not paths:
            raise InputError(f"Input '{entry.label}' was given no file")
    doubled = [entry.label for entry, _ in named if sum(entry is other for other, _ in named) > 1]
    if doubled:
        raise InputError(f"Input '{doubled[0]}' is given twice: give all its files together")
    return named


def _texts(paths: PathLike | Sequence[PathLike]) -> list[str]:
    return [str(paths)] if isinstance(paths, (str, Path)) else [str(path) for path in paths]


def _leave_out(entry: WorkflowInput, selection: Selection, known: frozenset[str]) -> Selection:
    """The files that the input takes: by type, or images where it takes any type and there are some."""

    def is_image(name: str) -> bool:
        return name.lower().endswith(IMAGE_ENDINGS)

    named = {file.name: file for file in selection.files}
    if entry.types:
        kept = keep(
            selection,
            lambda name: file_ending(name) != "" and galaxy_type(name, entry.types, known) is not None,
            "not of a type that the input takes",
        )
    elif any(is_image(file.parts[-1]) for file in selection.files):
        kept = keep(selection, is_image, "no image")
    else:
        kept = selection
    for left in kept.left_out[:10]:
        say(f"Left out: {left}")
    if len(kept.left_out) > 10:
        say(f"Left out: {len(kept.left_out) - 10} more")
    if not kept.files:
        first = next(iter(named))
        raise InputError(f"No file is what input '{entry.label}' takes ({entry.wants}): '{first}' is not")
    return kept


def _request(workflow: str, plan: _Plan) -> dict[str, Any]:
    """What was asked for, to tell the same run from another one."""
    files = {upload.key: upload.identity for group in plan.uploads.values() for upload in group}
    names = {
        str(index): [kind, [list(element.identifiers) for element in elements]]
        for index, (kind, elements) in plan.collections.items()
    }
    return {
        "workflow": workflow,
        "files": files,
        "names": names,
        "inputs": {str(index): value for index, value in plan.settings.inputs.items()},
        "steps": {str(index): values for index, values in plan.settings.steps.items()},
    }
