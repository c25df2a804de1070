"""Render the commands of tools as Galaxy does for a job: run in Galaxy's environment, with its own evaluator of tools.

    .envs/galaxy/bin/python tests/galaxy/render_commands.py DATATYPES.xml [DATATYPES.xml ...] < cases.json > commands.json

A case is `{"tool": file, "folder": of the job, "fields": {path of a field: value}}`. A dataset is `{"path", "name",
"extension"}`, perhaps with `"uri"` (it is deferred) or `"identifier"` (it is an element that a job is mapped over);
several are a list; a collection is `{"type", "elements": [[identifier, dataset or list of elements], ...]}`. The answer
to a case is `{"command"}`, or `{"refused"}`: the messages of the form, or what is wrong in the template. Nothing is made
up but the database, which is in memory: values go through validators, sanitizers and wrappers as a person's do.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sys
from pathlib import Path
from typing import Any

from galaxy import model
from galaxy.app_unittest_utils.galaxy_mock import MockApp
from galaxy.job_execution.compute_environment import (
    ComputeEnvironment,
    SimpleComputeEnvironment,
    dataset_path_to_extra_path,
)
from galaxy.tool_util.parser import get_tool_source
from galaxy.tools import create_tool_from_source
from galaxy.tools.actions import filter_output
from galaxy.tools.evaluation import ToolEvaluator, ToolTemplatingException
from galaxy.tools.parameters import populate_state, visit_input_values
from galaxy.tools.parameters.basic import DataToolParameter
from galaxy.work.context import WorkRequestContext


class JobFolder(SimpleComputeEnvironment, ComputeEnvironment):
    """Where the files of one job lie: inputs where the case says, outputs in the job's folder."""

    def __init__(self, folder: str, paths: dict[int, str]) -> None:
        super().__init__()
        self.folder = folder
        self.paths = paths  # of datasets, by their number in the database

    def input_path_rewrite(self, dataset):
        """Where a dataset lies."""
        return str(Path(self.folder) / self.paths[dataset.id])

    def input_extra_files_rewrite(self, dataset):
        """Where the folder of a dataset lies."""
        return dataset_path_to_extra_path(self.input_path_rewrite(dataset))

    output_path_rewrite = input_path_rewrite
    output_extra_files_rewrite = input_extra_files_rewrite

    def _folder(self, *arguments: Any) -> str:
        return self.folder

    def _nothing(self, *arguments: Any) -> None:
        return None

    working_directory = env_config_directory = new_file_path = tool_directory = version_path = _folder
    home_directory = tmp_directory = _folder
    input_metadata_rewrite = unstructured_path_rewrite = output_names = galaxy_url = _nothing

    def get_file_sources_dict(self):
        """No file sources."""
        return {}


class Renderer:
    """A Galaxy without a server."""

    def __init__(self, datatypes: list[str]) -> None:
        self.app = MockApp()
        self.app.config.new_file_path = self.app.config.root
        self.app.config.admin_users = ""
        for configuration in datatypes:
            self.app.datatypes_registry.load_datatypes(
                self.app.config.root, configuration, use_converters=False, use_display_applications=False
            )
        self.session = self.app.model.session
        user = model.User(email="someone@example.org", password="not used")
        self.history = model.History(name="history", user=user)
        self.session.add(self.history)
        self.session.flush()
        self.context = WorkRequestContext(app=self.app, user=user, history=self.history)
        self.paths: dict[int, str] = {}  # of datasets; those of outputs are relative to the job's folder
        self.datasets: dict[str, model.HistoryDatasetAssociation] = {}

    @functools.cache  # noqa: B019 - one renderer lives as long as the process
    def tool(self, path: str) -> Any:
        """A tool, read once."""
        return create_tool_from_source(self.app, get_tool_source(path), config_file=path)

    def dataset(self, case: dict[str, str]) -> model.HistoryDatasetAssociation:
        """A dataset of the history, the same one whenever the same is asked for."""
        key = json.dumps(case)
        if key in self.datasets:
            return self.datasets[key]
        self.datasets[key] = dataset = model.HistoryDatasetAssociation(
            extension=case["extension"],
            name=case["name"],
            history=self.history,
            create_dataset=True,
            sa_session=self.session,
        )
        dataset.dataset.state = "ok"
        if "uri" in case:
            dataset.dataset.state = "deferred"
            dataset.dataset.sources = [model.DatasetSource(source_uri=case["uri"])]
        self.session.add(dataset)
        self.session.flush()
        self.paths[dataset.id] = case["path"]
        return dataset

    def collection(self, kind: str, elements: list[Any]) -> model.DatasetCollection:
        """A collection with what is in it."""
        collection = model.DatasetCollection(collection_type=kind, populated=True)
        for index, (identifier, inner) in enumerate(elements):
            element = (
                self.collection(kind.partition(":")[2], inner)
                if isinstance(inner, list)
                else self.dataset(inner)
            )
            model.DatasetCollectionElement(
                collection=collection, element=element, element_identifier=identifier, element_index=index
            )
        return collection

    def value(self, case: Any) -> Any:
        """The value of a field, as Galaxy holds it."""
        if isinstance(case, dict) and "elements" in case:
            found = model.HistoryDatasetCollectionAssociation(
                collection=self.collection(case["type"], case["elements"]),
                history=self.history,
                name="images",
            )
            self.session.add(found)
            self.session.flush()
            return found
        if isinstance(case, dict):
            return self.dataset(case)
        return [self.value(item) for item in case] if isinstance(case, list) else case

    def render(self, case: dict[str, Any]) -> dict[str, Any]:
        """The command of one case."""
        tool = self.tool(case["tool"])
        incoming = {path: self.value(value) for path, value in case["fields"].items()}
        state: dict[str, Any] = {}
        errors: dict[str, Any] = {}
        populate_state(self.context, tool.inputs, incoming, state, errors)
        if errors:
            return {"refused": {path: str(message) for path, message in errors.items()}}
        evaluator = ToolEvaluator(self.app, tool, self.job(tool, state, case), case["folder"])
        evaluator.set_compute_environment(JobFolder(case["folder"], self.paths))
        try:
            return {"command": evaluator.build()[0]}
        except ToolTemplatingException as error:
            return {"refused": {"command": repr(error.__cause__)}}

    def job(self, tool: Any, state: dict[str, Any], case: dict[str, Any]) -> model.Job:
        """A job with its inputs and outputs."""
        job = model.Job()
        job.tool_id, job.tool_version, job.history = tool.id, tool.version, self.history
        parameters = tool.params_to_strings(state, self.app)

        def add_inputs(input: Any, value: Any, prefixed_name: str, **context: Any) -> None:
            if not isinstance(input, DataToolParameter):
                return
            for number, dataset in enumerate(value if isinstance(value, list) else [value], start=1):
                if dataset is not None:
                    job.add_input_dataset(f"{prefixed_name}{number if input.multiple else ''}", dataset)
            given = case["fields"].get(prefixed_name)
            if isinstance(given, dict) and "identifier" in given:
                parameters[f"{prefixed_name}|__identifier__"] = json.dumps(given["identifier"])

        visit_input_values(tool.inputs, state, add_inputs)
        for name, output in tool.outputs.items():
            if not output.collection and not filter_output(tool, output, state):
                job.add_output_dataset(name, self.output(name))
        for name, value in parameters.items():
            job.add_parameter(name, value)
        return job

    def output(self, name: str) -> model.HistoryDatasetAssociation:
        """A dataset that a job is to write."""
        return self.dataset({"path": f"outputs/{name}.dat", "name": name, "extension": "data"})


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(sys.stderr):  # Galaxy prints; the answer stays alone
        renderer = Renderer(sys.argv[1:])
        answers = [renderer.render(case) for case in json.load(sys.stdin)]
    json.dump(answers, sys.stdout)
