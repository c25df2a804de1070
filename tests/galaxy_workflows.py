"""Small workflows for tests, in the form in which Galaxy exports them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONNECTED = {"__class__": "ConnectedValue"}
KBRAIN_TOOLS = "0.1.0+galaxy0"
Step = dict[str, Any]


def collection_input(label: str, kind: str, formats: Sequence[str] = ("tiff", "ome.tiff", "png")) -> Step:
    """An input for a collection."""
    return _input(
        "data_collection_input", label, {"optional": False, "collection_type": kind, "format": list(formats)}
    )


def data_input(label: str, formats: Sequence[str], *, optional: bool) -> Step:
    """An input for one dataset."""
    return _input("data_input", label, {"optional": optional, "format": list(formats)})


def value_input(label: str, kind: str, *, optional: bool) -> Step:
    """A parameter of the workflow."""
    return _input("parameter_input", label, {"parameter_type": kind, "optional": optional})


def _input(kind: str, label: str, state: Mapping[str, Any]) -> Step:
    return {
        "type": kind,
        "label": label,
        "tool_id": None,
        "state": state,
        "inputs": [{"name": label, "description": ""}],
    }


def tool_step(
    label: str,
    tool: str,
    connections: Mapping[str, int | tuple[int, str]],
    state: Mapping[str, Any],
    outputs: Mapping[str, str],
    version: str | None = KBRAIN_TOOLS,
) -> Step:
    """A tool; `connections` name the step (and its output) that an input comes from, `outputs` the labels of outputs."""
    return {
        "type": "tool",
        "label": label,
        "tool_id": tool,
        "content_id": tool,
        "tool_version": version,
        "state": state,
        "input_connections": {
            name: {"id": source, "output_name": "output"}
            if isinstance(source, int)
            else {"id": source[0], "output_name": source[1]}
            for name, source in connections.items()
        },
        "workflow_outputs": [{"output_name": name, "label": text} for name, text in outputs.items()],
    }


def write_workflow(path: Path, name: str, steps: Sequence[Step]) -> Path:
    """Write a `.ga` file."""
    common = {
        "annotation": "",
        "inputs": [],
        "outputs": [],
        "input_connections": {},
        "workflow_outputs": [],
        "position": {"left": 0, "top": 0},
    }
    made = {
        str(number): {
            **common,
            "id": number,
            "name": step["label"],
            **{key: value for key, value in step.items() if key != "state"},
            "tool_state": json.dumps(step["state"]),
        }
        for number, step in enumerate(steps)
    }
    workflow = {
        "a_galaxy_workflow": "true",
        "format-version": "0.1",
        "name": name,
        "annotation": "",
        "tags": [],
        "steps": made,
    }
    path.write_text(json.dumps(workflow))
    return path
