"""The command of every branch of every form, as Galaxy writes it, run by a shell and read by the real command line.

`render_commands.py` fills in forms as a person would, by Galaxy's own code: validators, sanitizers, wrappers, template. Each
command then runs for real in bash, in a folder of its own, with a `kbrain` that only notes the words it was called with;
the command line of `kbrain_core.cli` reads these words into values. They must be exactly the values that were put in the
form, and every file must be the right one, whatever the datasets are called: quotes, `$(...)`, `../`, Korean letters.

Not tested here: what Galaxy does with the outputs, and the stages themselves.
"""

from __future__ import annotations

import fcntl
import functools
import itertools
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cyclopts
import pytest
from tool_cases import BOXES, FOLDER_TYPES, NAMES_ON_DISK, POSITIONS, Case, all_cases, flatten
from tool_forms import STAGE_NAMES, TOOLS, Form, form_of, is_choice, program, value_type

from kbrain_core import cli
from kbrain_core.geometry import AxisInts, Box, VoxelSize
from kbrain_core.stage import Parameter, RunOptions


@dataclass(frozen=True)
class Ran:
    """What became of a case: the form's refusal, or the words and the folder of the command that ran."""

    case: Case
    root: Path
    command: str
    refused: dict[str, str] | None

    @property
    def job(self) -> Path:
        """The folder the command ran in."""
        return self.root / "job"


# --- rendering and running them


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Ran]]:
    """All cases of all forms, run: by stage. Workers of one test run share the work."""
    run_id = os.environ.get("PYTEST_XDIST_TESTRUNUID", "")
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if run_id else base) / f"commands-{run_id}"
    root.mkdir(exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        answers = root / "answers.json"
        if not answers.exists():
            prepare_data(root / "data")
            answers.write_text(json.dumps(render(root)))
    found: dict[str, list[Ran]] = {stage: [] for stage in STAGE_NAMES}
    for number, (case, answer) in enumerate(zip(all_cases(), json.loads(answers.read_text()))):
        folder = root / str(number)
        found[case.stage].append(Ran(case, folder, answer.get("command", ""), answer.get("refused")))
    return found


def prepare_data(folder: Path) -> None:
    """A file and a folder for every dataset of the cases."""
    given = [
        value for case in all_cases() for value in case.values.values() if isinstance(value, list | dict)
    ]
    for path in {data["path"].replace("@DATA@", str(folder)) for data in flatten(given)}:
        inside = Path(path.replace(".dat", "_files"))
        inside.mkdir(parents=True)
        for file in (Path(path), inside / "tiles.tsv", inside / "tile.tif"):
            file.write_text("data")


def render(root: Path) -> list[dict[str, Any]]:
    """The commands of all cases, from Galaxy."""
    galaxy = program("galaxy", "python")
    sample = next(
        galaxy.parent.parent.glob("lib/python*/site-packages/galaxy/config/sample/datatypes_conf.xml.sample")
    )
    asked = [
        {
            "tool": form_of(case.stage).raw["file"],
            "folder": str(root / str(number) / "job"),
            "fields": {**case.chosen, **case.values},
        }
        for number, case in enumerate(all_cases())
    ]
    (root / "cwd").mkdir()
    done = subprocess.run(
        [galaxy, Path(__file__).with_name("render_commands.py"), sample, TOOLS / "datatypes_conf.xml"],
        input=json.dumps(asked).replace("@DATA@", str(root / "data")),
        capture_output=True,
        text=True,
        check=False,
        cwd=root / "cwd",
        env={**os.environ, "PYTHONPATH": str(TOOLS / "datatypes"), "TMPDIR": str(root)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


NOTE = '#!/bin/bash\nprintf "%s\\0" "$@" > "$NOTE"\n'


def run_in_shell(ran: Ran, number: int, programs: Path) -> list[str]:
    """Run a command in a folder of its own with a `kbrain` that notes its words; return them, or why it failed."""
    outputs = ran.job / "outputs"
    for output in form_of(ran.case.stage).raw["outputs"]:
        (outputs / f"{output['name']}_files").mkdir(parents=True)
        (outputs / f"{output['name']}.dat").touch()
    note = ran.root / "words"
    resources = {"GALAXY_SLOTS": "3", "GALAXY_MEMORY_MB": "1500"} if number % 2 else {}
    done = subprocess.run(
        ["bash", "-c", f"set -e\n{ran.command}"],
        cwd=ran.job,
        env={"PATH": f"{programs}:{os.environ['PATH']}", "NOTE": str(note), **resources},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return [f"the command fails: {done.stderr.strip()}"]
    return note.read_bytes().decode().split("\0")[:-1]


@functools.cache
def command_line(stage: str) -> Any:
    """The real command line of a stage."""
    return cli._make_app(stage.replace("_", "-"))


# --- what must come out


def target(data: dict[str, str], root: Path) -> str:
    """Where a dataset really is: a file, a folder or a URL."""
    path = data["path"].replace("@DATA@", str(root.parent / "data"))
    if "uri" in data:
        return data["uri"]
    return path.replace(".dat", "_files") if data["extension"] in FOLDER_TYPES else path


def reached(value: Any, job: Path) -> list[str]:
    """The real files and folders behind a value of the command line; those in a folder that the command made, sorted."""
    if isinstance(value, list):
        return [path for item in value for path in reached(item, job)]
    if "://" in str(value):
        return [str(value)]
    path = job / value
    if path.is_dir() and path.resolve().is_relative_to(job) and "outputs" not in path.parts:
        return sorted(str(p.resolve()) for p in path.rglob("*") if not p.is_dir() or p.is_symlink())
    return [str(path.resolve())]


def given_data(form: Form, case: Case, name: str) -> list[dict[str, str]]:
    """The datasets that were put into the fields of a name, or that fill the parameter of that name."""
    patterns = set()
    for field in form.fields:
        parameter = form.parameter_of(field)
        if field.kind.startswith("data") and name in (field.name, parameter and parameter.name):
            pattern = re.escape(field.path)
            if field.repeat:
                repeat = re.escape(field.repeat)
                pattern = pattern.replace(repeat, f"{repeat}_\\d+", 1)
            patterns.add(pattern)
    given = [value for path, value in case.values.items() if any(re.fullmatch(p, path) for p in patterns)]
    return flatten(given)


def expected_value(form: Form, case: Case, parameter: Parameter) -> Any:
    """What the stage must get for a parameter that is neither input nor output."""
    kind, is_list = value_type(parameter.hint)
    by_name: dict[str, list[Any]] = {}
    for path, value in case.values.items():
        by_name.setdefault(path.rpartition("|")[2], []).append(value)
    if kind in (VoxelSize, Box, AxisInts):
        axes = [by_name.get(f"{parameter.name}_{axis}", [None])[0] for axis in "zyx"]
        if axes == [None, None, None]:
            return parameter.default
        if kind is VoxelSize:
            return VoxelSize.from_um(*axes)
        if kind is AxisInts:
            return AxisInts(*axes)
        return Box(*[(None, None) if text is None else {**BOXES, **POSITIONS}[text] for text in axes])
    values = [typed(kind, value) for value in by_name.get(parameter.name, [])]
    if is_list:
        return values or None
    return values[0] if values else parameter.default


def typed(kind: Any, value: Any) -> Any:
    """The value of a field as the stage's type."""
    return value == "true" if kind is bool else value if is_choice(kind) else kind(value)


def expected_inputs(form: Form, case: Case, root: Path) -> dict[str, list[str]]:
    """The real files behind every input parameter."""
    found = {
        name: [target(data, root) for data in given_data(form, case, name)]
        for name, parameter in form.parameters.items()
        if parameter.port and parameter.port.direction == "in"
    }
    if form.stage == "sort_tiles":
        unpacked = str(root / "job" / "outputs" / "extract_to_files")
        found["tiles_folder"] = [unpacked] if case.chosen["source|what"] == "archive" else found["input"]
    if form.stage in ("correct_illumination", "stitch_tiles"):
        folders = [target(data, root) for data in given_data(form, case, "folder")]
        images = [target(data, root) for data in given_data(form, case, "images")]
        found["tiles"] = found["tiles"] or [f"{folder}/tiles.tsv" for folder in folders]
        found["tiles_folder"] = images or (folders if form.stage == "correct_illumination" else [])
    return found


def expected_outputs(form: Form, case: Case, parameter: Parameter, job: Path) -> str | None:
    """Where the stage must write, as Galaxy will look for it."""
    outputs = {output["name"]: output for output in form.raw["outputs"]}
    asked = {"flat_field_output": "fields", "dark_output": "advanced|dark_images", "extract_to": ""}
    if parameter.name in asked:
        wanted = case.values.get(asked[parameter.name]) == "true"
        if not (wanted or case.chosen.get("source|what") == "archive"):
            return None
    if (form.stage, parameter.name) == ("view_volume", "output"):
        return "page"  # stays in the job's folder: the view is the output
    if case.values.get("format") == "series":
        return "planes"
    if parameter.name == "tiles_output":
        return f"{job}/outputs/output_files/tiles.tsv"  # in the folder of the tiles that it names
    output = outputs[parameter.name]
    if output["type"] == "collection":
        return str(output["discover_datasets"][0]["directory"])
    if output["from_work_dir"]:
        return str(output["from_work_dir"])
    path = f"{job}/outputs/{parameter.name}"
    folder = parameter.port is not None and parameter.port.format in ("volume", "folder")
    return f"{path}_files" if folder else f"{path}.dat"


def problems(ran: Ran, words: list[str], number: int) -> Iterator[str]:
    """What differs between the form and what the stage would get."""
    form, case = form_of(ran.case.stage), ran.case
    if words[0] != form.stage.replace("_", "-"):
        yield words[0]
        return
    try:
        bound = command_line(form.stage).parse_args(words, exit_on_error=False, print_error=False)[1]
    except cyclopts.CycloptsError as error:
        yield f"the command line is refused: {error}"
        return
    inputs = expected_inputs(form, case, ran.root)
    for name, parameter in form.parameters.items():
        value = bound.arguments.get(name, parameter.default)
        if parameter.port is None:
            expected = expected_names(form, case, name) or expected_value(form, case, parameter)
            if (form.stage, name) == ("view_volume", "address"):
                yield from address_problems(form, case, value)
            elif value != expected:
                yield f"--{name}: {value!r} instead of {expected!r}"
        elif parameter.port.direction == "out":
            expected = expected_outputs(form, case, parameter, ran.job)
            if (None if value is None else str(value)) != expected:
                yield f"--{name}: {value} instead of {expected}"
        else:
            real = [] if value is None else reached(value, ran.job)
            in_order = isinstance(value, list) and len(value) == len(
                real
            )  # else they are in a folder, by their names
            if (real if in_order else sorted(real)) != (inputs[name] if in_order else sorted(inputs[name])):
                yield f"--{name} leads to {real} instead of {inputs[name]}".replace(f"{ran.root.parent}/", "")
    yield from run_option_problems(bound.arguments.get("run", RunOptions()), number)
    yield from name_problems(case, ran)


def name_problems(case: Case, ran: Ran) -> Iterator[str]:
    """Whether files that the table of tiles may name have kept their names."""
    links = {str(path.resolve()): path.name for path in ran.job.rglob("*") if path.is_symlink()}
    for data in flatten([v for v in case.values.values() if isinstance(v, list | dict)]):
        name = NAMES_ON_DISK.get(data.get("identifier", data["name"]))
        linked = links.get(target(data, ran.root))
        if name and linked and data["extension"] not in FOLDER_TYPES and linked != name:
            yield f"{data} is linked as '{linked}'"


def expected_names(form: Form, case: Case, name: str) -> list[str] | None:
    """The names of the layers of a view: those of the datasets, as they are."""
    if (form.stage, name) != ("view_volume", "name"):
        return None
    shown = given_data(form, case, "input") + given_data(form, case, "labels")
    return [data.get("identifier", data["name"]) for data in shown]


def address_problems(form: Form, case: Case, value: list[str]) -> Iterator[str]:
    """Whether every layer is looked for where its dataset is."""
    shown = given_data(form, case, "input") + given_data(form, case, "labels")
    local = re.compile(r"/api/datasets/[0-9a-f]{16}/extra_files/raw")
    for data, address in itertools.zip_longest(shown, value):
        if not (address == data["uri"] if "uri" in data else local.fullmatch(address)):
            yield f"--address: {address} for {data}"


def run_option_problems(run: RunOptions, number: int) -> Iterator[str]:
    """Whether a job takes the processors and the memory that Galaxy gives it, and nothing else is set."""
    wanted = RunOptions(
        report=Path("report.html"),
        summary=Path("summary.json"),
        workers=3 if number % 2 else 1,
        memory_gb=1.5 if number % 2 else None,
    )
    if run != wanted:
        yield f"run options: {run} instead of {wanted}"


# --- tests


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the `kbrain` that only notes its words."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "kbrain").write_text(NOTE)
    (folder / "kbrain").chmod(0o755)
    return folder


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_what_is_put_in_comes_out(stage: str, ran: dict[str, list[Ran]], programs: Path) -> None:
    """Catches an option lost, doubled or swapped in any branch, a wrong file, and a name that leaves its quotes."""
    cases = [one for one in ran[form_of(stage).stage] if one.case.outcome == "runs"]
    wrong = []
    for number, one in enumerate(cases):
        if one.refused is not None:
            found = [f"the form refuses {one.refused}"]
        else:
            words = run_in_shell(one, number, programs)
            found = list(problems(one, words, number))
            strangers = [p for p in one.root.iterdir() if p.name not in ("job", "words")]
            escaped = [*strangers, *one.root.rglob("escaped")]
            found += [f"a name has left its quotes or its folder: {escaped}"] if escaped else []
        wrong += [f"{problem}\n    {one.command}" for problem in found]
    assert not wrong, f"{len(wrong)} problems in {len(cases)} commands\n" + "\n".join(wrong[:12])


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_the_form_refuses_what_the_stage_would(stage: str, ran: dict[str, list[Ran]]) -> None:
    """Catches a job that fails after hours in the queue although its form could have said so."""
    cases = [one for one in ran[stage] if one.case.outcome == "form refuses"]
    accepted = [f"{one.case}\n    {one.command}" for one in cases if one.refused is None]
    assert cases
    assert not accepted, "\n".join(accepted)


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_names_that_clash_are_told(stage: str, ran: dict[str, list[Ran]], programs: Path) -> None:
    """Catches a tile that hides another one, or is linked into another dataset, because both get one name."""
    for number, one in enumerate(ran[stage]):
        if one.case.outcome == "names clash":
            said = run_in_shell(one, number, programs)
            assert "kbrain: Two inputs would have the name" in said[0], f"{one.command}\n{said}"
            inside = [path for path in (one.root.parent / "data").rglob("*") if path.is_symlink()]
            assert not inside, f"{one.command}\nhas written into datasets: {inside}"
