"""The `kbrain` command: every stage as a batch command, made from its signature and docstring."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import cyclopts

from .command import new_app, run_command
from .geometry import AxisInts, Box, VoxelSize
from .stage import STAGES, STEPS, Part, RunOptions, command_name, load_stage, step_of

STEP_TITLES = {step: f"{number}. {step.capitalize()}" for number, step in enumerate(STEPS, start=1)}
TEXT_TYPES = (
    VoxelSize,
    Box,
    AxisInts,
    Part,
)  # values a person writes as one text, each with its own `from_text`


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `kbrain` command and return its exit code; a failure is one line on stderr.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.
    """
    return run_command("kbrain", _make_app, argv)


def _make_app(name: str) -> cyclopts.App:
    """The command-line application; only the stage that is asked for is loaded, or all of them for the overview."""
    app = new_app(
        "kbrain", "From raw brain-microscope tiles to a 3D volume one can browse, measure and share."
    )
    services = {"serve": _load_serve}
    commands = [path.split(".")[1].replace("_", "-") for path in STAGES]
    groups = {step: cyclopts.Group(STEP_TITLES[step], sort_key=order) for order, step in enumerate(STEPS)}
    for command in [name] if name in commands else commands if name not in services else []:
        function = load_stage(command)
        app.command(_as_command(function), name=command_name(function), group=groups[step_of(function)])
    if name not in commands:
        group = cyclopts.Group("Services", sort_key=len(STEPS))
        for service, load in services.items():
            app.command(_as_command(load()), name=service, group=group)
    return app


def _load_serve() -> Callable[..., Any]:
    from .visualization.serve import serve

    return serve


def _as_command(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a signature that says how each value is read from the command line."""
    hints = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=_readable(hints[name])) for name, p in signature.parameters.items()]

    def command(*args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)

    command.__name__, command.__doc__, command.__module__ = (
        function.__name__,
        function.__doc__,
        function.__module__,
    )
    command.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _readable(hint: Any) -> Any:
    """Tell cyclopts how to read a hint: run options are spread out, a list is a repeated option."""
    if hint is RunOptions:
        return Annotated[RunOptions, cyclopts.Parameter(name="*", group="Run options")]
    if typing.get_origin(hint) is list or any(
        typing.get_origin(inner) is list for inner in typing.get_args(hint)
    ):
        return Annotated[hint, cyclopts.Parameter(consume_multiple=False, negative=())]
    return hint


def _read_as_text(kind: Any) -> None:
    """Tell cyclopts that a value of this type is one text, read by its `from_text`."""

    def convert(type_: Any, tokens: Sequence[cyclopts.Token]) -> Any:
        return kind.from_text(tokens[0].value)

    cyclopts.Parameter(converter=convert, n_tokens=1, accepts_keys=False)(kind)


for text_type in TEXT_TYPES:
    _read_as_text(text_type)

if __name__ == "__main__":
    sys.exit(main())
