"""Make `docs/reference.md` from the stages' signatures and docstrings (`make generate`)."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docstring_parser

from kbrain_core.stage import (
    STAGES,
    STEPS,
    Parameter,
    RunOptions,
    command_name,
    load_stage,
    parameters_of,
    run_parameters,
    step_of,
)

REFERENCE = Path(__file__).parent / "reference.md"


def reference() -> str:
    """The whole reference page as Markdown."""
    lines = [
        "# Reference: every stage and its options",
        "",
        "Made from the signatures and docstrings of the stages by `make generate`; edit those, not this page.",
        "Every stage also takes the [run options](#run-options).",
        "",
    ]
    stages = [load_stage(path.split(".")[1].replace("_", "-")) for path in STAGES]
    for number, step in enumerate(STEPS, start=1):
        members = [function for function in stages if step_of(function) == step]
        if members:
            lines += [f"## Step {number}: {step}", ""]
            for function in members:
                lines += stage_lines(function)
    lines += ["## Run options", "", *option_table(run_parameters(), RunOptions.__doc__ or "")]
    return "\n".join(lines).rstrip() + "\n"


def stage_lines(function: Callable[..., Any]) -> list[str]:
    """Heading, description, options and results of one stage."""
    parsed = docstring_parser.parse(
        inspect.getdoc(function) or "", style=docstring_parser.DocstringStyle.NUMPYDOC
    )
    lines = [f"### kbrain {command_name(function)}", "", parsed.short_description or "", ""]
    if parsed.long_description:
        lines += [parsed.long_description, ""]
    lines += option_table(parameters_of(function), inspect.getdoc(function) or "")
    result = typing.get_type_hints(inspect.unwrap(function))["return"]
    figures = docstring_parser.parse(
        inspect.getdoc(result) or "", style=docstring_parser.DocstringStyle.NUMPYDOC
    ).params
    if figures:
        lines += ["Key figures in `summary.json`:", ""]
        lines += [f"- `{figure.arg_name}`: {one_line(figure.description)}" for figure in figures] + [""]
    return lines


def option_table(parameters: tuple[Parameter, ...], docstring: str) -> list[str]:
    """A table of options: flag, default, choices or bounds, meaning."""
    parsed = docstring_parser.parse(
        inspect.cleandoc(docstring), style=docstring_parser.DocstringStyle.NUMPYDOC
    )
    meanings = {parameter.arg_name: one_line(parameter.description) for parameter in parsed.params}
    rows = ["| option | default | values | meaning |", "|---|---|---|---|"]
    for parameter in parameters:
        default = (
            "required"
            if parameter.required
            else ""
            if parameter.default in (None, ())
            else f"`{parameter.default}`"
        )
        cells = (f"`{parameter.flag}`", default, values_of(parameter), meanings.get(parameter.name, ""))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*rows, ""]


def values_of(parameter: Parameter) -> str:
    """Choices, bounds or the format a parameter carries."""
    literals = [
        hint
        for hint in (parameter.hint, *typing.get_args(parameter.hint))
        if typing.get_origin(hint) is typing.Literal
    ]
    if literals:
        return ", ".join(map(str, typing.get_args(literals[0])))
    if parameter.port:
        return f"{parameter.port.format} {parameter.port.direction}"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{signs[name]} {getattr(item, name)}"
        for item in parameter.metadata
        for name in signs
        if hasattr(item, name)
    ]
    return ", ".join(bounds)


def one_line(text: str | None) -> str:
    """A paragraph without its line breaks."""
    return " ".join((text or "").split())


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
    print(f"docs/{REFERENCE.name} written")
