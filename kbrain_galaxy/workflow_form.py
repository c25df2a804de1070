"""What a workflow asks for, as Galaxy's run form knows it: inputs and every step's options, found by their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kbrain_core.errors import InputError

from .labels import find, hint, plain

INPUT_KINDS: dict[str, Literal["dataset", "collection", "value"]] = {
    "data_input": "dataset",
    "data_collection_input": "collection",
    "parameter_input": "value",
}
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Option:
    """A parameter of a step or of the workflow.

    `path` is its name with the sections and conditionals it lies in, `needs` the choices of other parameters under which
    it counts, and `connected` says that another step gives its value.
    """

    path: str
    kind: str
    choices: tuple[tuple[str, str], ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    optional: bool = False
    multiple: bool = False
    connected: bool = False
    value: str = ""
    needs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class WorkflowInput:
    """Something a workflow is given: a dataset, a collection or a value. `types` are the datatypes it takes; none: all."""

    index: int
    label: str
    kind: Literal["dataset", "collection", "value"]
    optional: bool
    types: frozenset[str] = frozenset()
    declared_types: tuple[str, ...] = ()
    collection_types: tuple[str, ...] = ()
    option: Option | None = None

    @property
    def wants(self) -> str:
        """What it takes, in words."""
        if self.kind == "value":
            return self.option.kind if self.option else "a value"
        types = "/".join(kind for kind in self.declared_types if kind != "data") or "any type"
        return f"{'collection of files' if self.kind == 'collection' else 'file'}, {types}"


@dataclass(frozen=True)
class Step:
    """A tool in a workflow."""

    index: int
    label: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class WorkflowForm:
    """A workflow as a person fills it in. `remarks`: options that it does not know and whose defaults the tools take."""

    name: str
    inputs: tuple[WorkflowInput, ...]
    steps: tuple[Step, ...]
    remarks: tuple[str, ...] = ()

    def input_named(self, label: str) -> WorkflowInput:
        """The input with a label."""
        return find(label, {entry.label: entry for entry in self.inputs}, "input", f"Workflow '{self.name}'")

    def only_input(self) -> WorkflowInput:
        """The input that data are for when no label is given.

        Raises
        ------
        InputError
            When several could be meant.
        """
        files = [entry for entry in self.inputs if entry.kind != "value"]
        needed = [entry for entry in files if not entry.optional]
        if len(needed) == 1 or len(files) == 1:
            return (needed or files)[0]
        labels = ", ".join(f"'{entry.label}' ({entry.wants})" for entry in files) or "none"
        raise InputError(
            f"Workflow '{self.name}' has several inputs: {labels}. Name the one that is meant, like --input 'LABEL=PATH'"
        )

    def check_complete(self, given: Sequence[int]) -> None:
        """Check that nothing which the workflow needs is missing.

        Raises
        ------
        InputError
            When something is.
        """
        for entry in self.inputs:
            if entry.optional or entry.index in given:
                continue
            how = f"--set '{entry.label}=VALUE'" if entry.kind == "value" else f"--input '{entry.label}=PATH'"
            raise InputError(
                f"Workflow '{self.name}' needs '{entry.label}' ({entry.wants}): give it with {how}"
            )


@dataclass(frozen=True)
class Settings:
    """Values for a run: of workflow inputs by index, and of steps by index and path, as Galaxy's API takes them."""

    inputs: dict[int, Any]
    steps: dict[int, dict[str, Any]]


def read_form(description: Mapping[str, Any]) -> WorkflowForm:
    """Read what `GET /api/workflows/ID/download?style=run` answers."""
    inputs: list[WorkflowInput] = []
    steps: list[Step] = []
    for step in description["steps"]:
        index, label = int(step["step_index"]), step["step_label"] or step["step_name"]
        if step["step_type"] in INPUT_KINDS:
            inputs.append(_read_input(index, label, INPUT_KINDS[step["step_type"]], step["inputs"][0]))
        elif step["step_type"] == "tool":
            steps.append(Step(index, label, tuple(_read_options(step["inputs"], "", ()))))
    remarks = [
        f"Step '{step['step_label'] or step['step_name']}': {message}"
        for step in description["steps"]
        for message in (step.get("messages") or {}).values()
        if isinstance(message, str) and "Using default" in message
    ]
    return WorkflowForm(description["name"], tuple(inputs), tuple(steps), tuple(remarks))


def _read_input(
    index: int, label: str, kind: Literal["dataset", "collection", "value"], field: Any
) -> WorkflowInput:
    if kind == "value":
        option = _read_option(field, "", ())
        # a parameter with a default value need not be given
        return WorkflowInput(index, label, kind, bool(field["optional"]) or option.value != "", option=option)
    declared = tuple(field.get("extensions") or ())
    everything = "data" in declared or not declared
    return WorkflowInput(
        index,
        label,
        kind,
        bool(field["optional"]),
        types=frozenset() if everything else frozenset(field.get("acceptable_extensions") or declared),
        declared_types=declared,
        collection_types=tuple(field.get("collection_types") or ()),
    )


def _read_options(fields: Sequence[Any], prefix: str, needs: tuple[tuple[str, str], ...]) -> list[Option]:
    options: list[Option] = []
    for field in fields:
        path = f"{prefix}{field.get('name', '')}"
        if field["type"] == "section":
            options += _read_options(field["inputs"], f"{path}|", needs)
        elif field["type"] == "conditional":
            test = _read_option(field["test_param"], f"{path}|", needs)
            options.append(test)
            for case in field["cases"]:
                options += _read_options(
                    case["inputs"], f"{path}|", (*needs, (test.path, str(case["value"])))
                )
        elif field["type"] == "repeat":
            for number, entry in enumerate(field.get("cache") or ()):
                options += _read_options(entry, f"{path}_{number}|", needs)
        else:
            options.append(_read_option(field, prefix, needs))
    return options


def _read_option(field: Mapping[str, Any], prefix: str, needs: tuple[tuple[str, str], ...]) -> Option:
    value = field.get("value")
    choices = field.get("options") if field["type"] == "select" else None
    return Option(
        path=f"{prefix}{field['name']}",
        kind=str(field["type"]),
        choices=tuple((str(choice[0]), str(choice[1])) for choice in choices or ()),
        minimum=None if field.get("min") in (None, "") else float(field["min"]),
        maximum=None if field.get("max") in (None, "") else float(field["max"]),
        optional=bool(field.get("optional")),
        multiple=bool(field.get("multiple")),
        connected=isinstance(value, Mapping) and value.get("__class__") == "ConnectedValue",
        value="" if value is None or isinstance(value, Mapping) else _as_text(value),
        needs=needs,
    )


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_settings(texts: Sequence[str]) -> dict[str, str]:
    """Read `Step label|parameter=value` texts.

    Raises
    ------
    InputError
        When a text has no `=`, or the same parameter comes twice.
    """
    settings: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InputError(f"'{text}' is no setting: write --set 'Step label|parameter=value'")
        if name.strip() in settings:
            raise InputError(f"'{name.strip()}' is set twice: leave one of them out")
        settings[name.strip()] = value
    return settings


def resolve_settings(form: WorkflowForm, settings: Mapping[str, Any]) -> Settings:
    """Find what each setting means and check its value.

    Parameters
    ----------
    form : WorkflowForm
        The workflow.
    settings : mapping of str to object
        Values by `Step label|parameter`, where the parameter may be named without the sections it lies in, or by the label
        of a workflow's own parameter.

    Raises
    ------
    InputError
        When a step, a parameter or a value is unknown, or would have no effect.
    """
    inputs: dict[int, Any] = {}
    chosen: dict[int, dict[str, tuple[Option, Any]]] = {}
    for name, value in settings.items():
        label, bar, rest = name.partition("|")
        if not bar:
            entry = _value_input(form, label)
            assert entry.option is not None
            inputs[entry.index] = check_value(name, entry.option, value)
            continue
        step = _find_step(form, label)
        option = _find_option(step, rest)
        if option.connected:
            raise InputError(f"'{name}' comes from another step of the workflow and cannot be set")
        chosen.setdefault(step.index, {})[option.path] = (option, check_value(name, option, value))
    for step in form.steps:
        _check_needs(step, chosen.get(step.index, {}))
    steps = {index: {path: value for path, (_, value) in found.items()} for index, found in chosen.items()}
    return Settings(inputs, steps)


def _value_input(form: WorkflowForm, label: str) -> WorkflowInput:
    values = {entry.label: entry for entry in form.inputs if entry.kind == "value"}
    if any(plain(label) == plain(entry.label) for entry in form.inputs if entry.kind != "value"):
        raise InputError(f"'{label}' is an input for files: give it with --input '{label}=PATH'")
    owners = [step.label for step in form.steps if any(plain(label) == plain(_name(o)) for o in step.options)]
    if owners and not any(plain(label) == plain(known) for known in values):
        raise InputError(f"'{label}' is a parameter of a step: write '{owners[0]}|{label}'")
    return find(label, values, "parameter", f"Workflow '{form.name}'")


def _find_step(form: WorkflowForm, label: str) -> Step:
    same = [step for step in form.steps if plain(step.label) == plain(label)]
    if len(same) > 1:
        raise InputError(
            f"{len(same)} steps of workflow '{form.name}' are called '{label}': give them labels in Galaxy's editor"
        )
    return find(label, {step.label: step for step in form.steps}, "step", f"Workflow '{form.name}'")


def _name(option: Option) -> str:
    return option.path.rpartition("|")[2]


def _find_option(step: Step, name: str) -> Option:
    """The parameter with this path, or the only one whose path ends so."""
    wanted = plain(name)
    exact = [option for option in step.options if plain(option.path) == wanted]
    ending = [option for option in step.options if f"|{plain(option.path)}".endswith(f"|{wanted}")]
    paths = {option.path for option in exact or ending}
    if len(paths) > 1:
        ways = ", ".join(repr(f"{step.label}|{path}") for path in sorted(paths))
        raise InputError(f"'{step.label}|{name}' may mean several parameters: write one of {ways}")
    if paths:
        cases = (
            exact or ending
        )  # the same parameter may be in several cases of a choice: the chosen one counts
        current = {option.path: option.value for option in step.options}
        chosen = [
            option for option in cases if all(current.get(path) == value for path, value in option.needs)
        ]
        return (chosen or cases)[0]
    names = {_name(option) for option in step.options}
    raise InputError(
        f"Step '{step.label}' has no parameter '{name}'. {hint(name.rpartition('|')[2], names, 'parameter')}"
    )


def _check_needs(step: Step, chosen: dict[str, tuple[Option, Any]]) -> None:
    """A parameter in a case that is not chosen would be ignored without a word: refuse it."""
    current = {option.path: option.value for option in step.options}
    for path, (option, _) in chosen.items():
        cases = [
            other.needs for other in step.options if other.path == path
        ]  # the same name may be in several cases
        if any(all(_same(chosen, current, *need) for need in needs) for needs in cases):
            continue
        need_path, need_value = next(need for need in option.needs if not _same(chosen, current, *need))
        raise InputError(
            f"'{step.label}|{path}' counts only when '{need_path}' is '{need_value}': add --set "
            f"'{step.label}|{need_path}={need_value}'"
        )


def _same(
    chosen: Mapping[str, tuple[Option, Any]], current: Mapping[str, str], path: str, value: str
) -> bool:
    return (_as_text(chosen[path][1]) if path in chosen else current.get(path, "")) == value


def check_value(name: str, option: Option, value: Any) -> Any:
    """The value as Galaxy takes it.

    Parameters
    ----------
    name : str
        How the parameter was named, for the message.
    option : Option
        The parameter.
    value : object
        Text from a command line, or a Python value.

    Raises
    ------
    InputError
        When it is of the wrong kind, out of bounds or no choice.
    """
    text = _as_text(value).strip()
    if option.kind in ("data", "data_collection"):
        raise InputError(f"'{name}' is a dataset and cannot be set to a text: connect it in Galaxy's editor")
    if value is None or (text == "" and option.kind in ("integer", "float", "select")):
        if not option.optional:
            raise InputError(f"'{name}' needs a value")
        return None
    if option.kind in ("integer", "float"):
        return _check_number(name, option, text)
    if option.kind == "boolean":
        if text.lower() not in (*_TRUE, *_FALSE):
            raise InputError(f"'{name}' is '{text}': write true or false")
        return text.lower() in _TRUE
    if option.kind == "select" and option.choices:
        return _check_choice(name, option, value, text)
    return text if isinstance(value, bool) else str(value)


def _check_number(name: str, option: Option, text: str) -> int | float:
    try:
        number: int | float = int(text) if option.kind == "integer" else float(text)
    except ValueError:
        kind = "a whole number" if option.kind == "integer" else "a number, with a point"
        raise InputError(f"'{name}' is '{text}': write {kind}") from None
    low, high = option.minimum, option.maximum
    if number != number or (low is not None and number < low) or (high is not None and number > high):
        bounds = [f"at least {low:g}"] if low is not None else []
        bounds += [f"at most {high:g}"] if high is not None else []
        raise InputError(f"'{name}' is {text}: it must be {' and '.join(bounds) or 'a number'}")
    return number


def _check_choice(name: str, option: Option, value: Any, text: str) -> str | list[str]:
    wanted = [str(one).strip() for one in value] if isinstance(value, (list, tuple)) else [text]
    if option.multiple and isinstance(value, str):
        wanted = [one.strip() for one in text.split(",")]
    found: list[str] = []
    for one in wanted:
        fitting = [key for label, key in option.choices if one == key] or [
            key for label, key in option.choices if one.casefold() in (key.casefold(), label.casefold())
        ]
        if not fitting:
            choices = ", ".join(key for _, key in option.choices)
            raise InputError(f"'{name}' is '{one}': choose one of {choices[:400]}")
        found.append(fitting[0])
    return found if option.multiple else found[0]
