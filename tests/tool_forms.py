"""The tools' forms as Galaxy's parser reads them, beside the stages they belong to."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from kbrain_core.stage import STAGES, Parameter, load_stage, parameters_of
from kbrain_galaxy.places import environments_folder, packaged

TOOLS = packaged("tools")
STAGE_NAMES = tuple(path.split(".")[1] for path in STAGES)


def program(environment: str, name: str) -> Path:
    """A program of the environment of Galaxy or planemo; without it the test is skipped, and fails in CI."""
    path = environments_folder() / environment / "bin" / name
    if not path.exists():
        assert os.environ.get("CI") != "true", f"{path} is missing: run `make environments`"
        pytest.skip(f"the environment of {environment} is not made yet: run `make environments`")
    return path


@dataclass(frozen=True)
class Field:
    """One thing that can be filled in."""

    path: str
    name: str
    argument: str | None
    inside: Sequence[dict[str, Any]]
    sanitized: bool
    model: dict[str, Any]
    protocols: str | None
    whens: Sequence[str] | None

    @property
    def kind(self) -> str:
        """Galaxy's type of the field: `select`, `integer`, `data`, ..."""
        return str(self.model["type"])

    @property
    def repeat(self) -> str | None:
        """Path of the repeat it lies in."""
        return next((group["repeat"] for group in self.inside if "repeat" in group), None)

    @property
    def cases(self) -> dict[str, str]:
        """What must be chosen where for the field to be there."""
        return {group["field"]: group["value"] for group in self.inside if "field" in group}

    @property
    def opening_value(self) -> Any:
        """What the form shows before anybody touches it."""
        if self.kind == "select":
            options = self.model["options"]
            return next((o["value"] for o in options if o["selected"]), options[0]["value"])
        if self.kind == "text":
            return self.model["default_value"] or None
        return self.model.get("value")

    def patterns(self) -> list[str]:
        """Regular expressions that a text must match."""
        return [v["expression"] for v in self.model.get("validators", ()) if v["type"] == "regex"]

    def bounds(self) -> tuple[tuple[float, bool] | None, tuple[float, bool] | None]:
        """The lower and the upper bound of a number, each with whether it is excluded; from min, max and validators."""
        ranges = [v for v in self.model.get("validators", ()) if v["type"] == "in_range"]
        lows = [(v["min"], v["exclude_min"]) for v in ranges] + [(self.model.get("min"), False)]
        highs = [(v["max"], v["exclude_max"]) for v in ranges] + [(self.model.get("max"), False)]
        low = max((b for b in lows if b[0] is not None), default=None)
        high = min((b for b in highs if b[0] is not None), key=lambda b: (b[0], not b[1]), default=None)
        return low, high


@dataclass(frozen=True)
class Form:
    """One tool."""

    stage: str
    raw: dict[str, Any]
    fields: tuple[Field, ...]

    @property
    def function(self) -> Callable[..., Any]:
        """The stage."""
        return load_stage(self.stage.replace("_", "-"))

    @functools.cached_property
    def parameters(self) -> dict[str, Parameter]:
        """The stage's parameters by name."""
        return {p.name: p for p in parameters_of(self.function)}

    def parameter_of(self, field: Field) -> Parameter | None:
        """The stage's parameter that a field fills, by the option it names or by its own name."""
        parameters = self.parameters
        by_flag = {p.flag: p for p in parameters.values()}
        return by_flag.get(field.argument or "") or parameters.get(field.name)

    def fields_of(self, parameter: str) -> list[Field]:
        """All fields that fill a parameter."""
        return [f for f in self.fields if (p := self.parameter_of(f)) and p.name == parameter]


@functools.cache
def dumped() -> tuple[dict[str, Any], ...]:
    """What Galaxy's parser says of every stage's tool."""
    files = [str(path) for name in STAGE_NAMES if (path := TOOLS / name / f"{name}.xml").is_file()]
    command = [str(program("galaxy", "python")), str(Path(__file__).parent / "galaxy" / "dump_tools.py")]
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout))


@functools.cache
def forms() -> dict[str, Form]:
    """The forms that Galaxy's parser takes, by the name of their stage."""
    found = {}
    for raw in dumped():
        if "refused" not in raw:
            stage = Path(raw["file"]).stem
            fields = tuple(Field(**field) for field in raw["fields"])
            found[stage] = Form(stage, raw, fields)
    return found


def form_of(stage: str) -> Form:
    """The form of a stage."""
    refused = {Path(raw["file"]).stem: raw["refused"] for raw in dumped() if "refused" in raw}
    assert stage not in refused, f"Galaxy's parser refuses tools/{stage}/{stage}.xml: {refused[stage]}"
    assert stage in forms(), f"tools/{stage}/{stage}.xml is missing: every stage needs a form"
    return forms()[stage]


def value_type(hint: Any) -> tuple[Any, bool]:
    """The type of one value of a hint without `Annotated` and `None`, and whether it is a list of such values."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return value_type(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return value_type(next(inner for inner in typing.get_args(hint) if inner is not type(None)))
    if origin is list:
        return value_type(typing.get_args(hint)[0])[0], True
    return hint, False


def is_choice(kind: Any) -> bool:
    """Whether a type is a `Literal`."""
    return typing.get_origin(kind) is Literal
