"""Every form says what its stage says: names, kinds, defaults, bounds, choices. Galaxy's own parser reads the forms.

Each test says which mistake it catches. Not compared, because it cannot be or need not be: the wording of labels and help
(written for the form), which datatypes an input takes, the order of the fields, and how values reach the command line
(`test_commands.py` runs that).
"""

from __future__ import annotations

import re
import tomllib
import typing
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from annotated_types import Ge, Gt, Le, Lt
from tool_forms import STAGE_NAMES, TOOLS, Field, Form, form_of, forms, is_choice, value_type

from kbrain_core.geometry import AxisInts, Box, VoxelSize
from kbrain_core.stage import STAGES, Parameter

# Parameters that no form has. Outputs are not listed: Galaxy says where they go.
NOT_IN_FORM = {
    ("sort_tiles", "tiles_folder"): "the command says where it put the files",
    ("correct_illumination", "tiles_folder"): "the command says where it put the images",
    ("stitch_tiles", "tiles_folder"): "the command says where it put the images",
    ("view_volume", "name"): "layers have the names of the datasets",
    ("view_volume", "address"): "a dataset's address in Galaxy",
    ("view_volume", "data"): "for pages that stand alone; in Galaxy volumes are found by their address",
}
# Fields that fill no parameter.
FORM_ONLY = {
    ("sort_tiles", "source|what"): "which kind of dataset holds the tiles",
    ("convert_image", "source|what"): "which kind of dataset is converted",
    ("align_sections", "source|what"): "which kind of dataset holds the sections",
    ("correct_illumination", "source|what"): "which kind of dataset holds the images",
    ("correct_illumination", "source|images"): "linked under the names that the table gives them",
    ("correct_illumination", "source|folder"): "holds images and table",
    ("correct_illumination", "fields"): "asks for the output --flat-field-output",
    ("correct_illumination", "advanced|dark_images"): "asks for the output --dark-output",
    ("stitch_tiles", "source|what"): "which kind of dataset holds the images",
    ("stitch_tiles", "source|images"): "linked under the names that the tables give them",
    ("stitch_tiles", "source|folder"): "holds images and table",
}
# Fields that may stay empty although the stage needs the parameter.
EMPTY_ALLOWED = {
    ("correct_illumination", "source|tiles"): "the table in the folder is taken",
    ("stitch_tiles", "source|tiles"): "the tables in the folders are taken",
    ("view_volume", "input"): "volumes may be given by URL instead",
}
# Fields with a name of their own.
OTHER_NAMES = {("view_volume", "remote|input_by_url"): "Galaxy's tests take two fields of one name for one"}
# Whole numbers that are written as text.
NUMBERS_AS_TEXT = {("view_volume", "advanced|segment_items|segment"): "browsers lose digits above 2^53"}
AXES_KINDS = {VoxelSize: "float", Box: "text", AxisInts: "integer"}
NUMBER_KINDS = {int: "integer", float: "float"}
UNITS = {"um": "um", "px": "px", "gb": "GB", "mb": "MB"}

stages = pytest.mark.parametrize("stage", STAGE_NAMES)


def test_every_stage_is_a_tool() -> None:
    """Catches a stage that nobody can find in Galaxy."""
    sections = {section.get("id"): section for section in ET.parse(TOOLS / "tool_conf.xml").getroot()}
    for path in STAGES:
        step, stage = path.split(".")
        file = f"{stage}/{stage}.xml"
        section = sections.get(f"kbrain_{step}")
        assert section is not None, f'tools/tool_conf.xml: add <section id="kbrain_{step}" name="..."/>'
        listed = [tool.get("file") for tool in section]
        assert file in listed, f'tools/tool_conf.xml: add <tool file="{file}"/> to the section kbrain_{step}'
        assert form_of(stage).raw["id"] == f"kbrain_{stage}", f'tools/{file}: write id="kbrain_{stage}"'


def test_every_tool_is_a_stage() -> None:
    """Catches a tool that stayed when its stage was renamed."""
    listed = {tool.get("file") for tool in ET.parse(TOOLS / "tool_conf.xml").iter("tool")}
    assert listed == {f"{stage}/{stage}.xml" for stage in STAGE_NAMES}
    assert {path.stem for path in TOOLS.glob("*/*.xml") if path.stem == path.parent.name} == set(STAGE_NAMES)


@stages
def test_same_names(stage: str) -> None:
    """Catches an option that the form lacks, and a field that is left over or misspelt."""
    form = form_of(stage)
    wanted = {p.name for p in form.parameters.values() if not (p.port and p.port.direction == "out")}
    filled = {p.name for field in form.fields if (p := form.parameter_of(field))}
    left_out = {name for of_stage, name in NOT_IN_FORM if of_stage == stage}
    assert wanted - filled == left_out, "options that are in neither the form nor the list NOT_IN_FORM"
    unknown = {field.path for field in form.fields if form.parameter_of(field) is None}
    assert unknown == {path for of_stage, path in FORM_ONLY if of_stage == stage}, "fields of no parameter"
    wrong = [f.path for f in form.fields if (p := form.parameter_of(f)) and f.argument != p.flag]
    assert not wrong, 'fields whose argument="..." is not the option they fill'


def expected_fields(parameter: Parameter) -> dict[str, str]:
    """The names and kinds of the fields that a parameter needs."""
    kind = value_type(parameter.hint)[0]
    if kind in AXES_KINDS:
        return {f"{parameter.name}_{axis}": AXES_KINDS[kind] for axis in "xyz"}
    if parameter.port:
        return {parameter.name: "data"}
    if is_choice(kind):
        return {parameter.name: "select"}
    return {parameter.name: {bool: "boolean", str: "text", **NUMBER_KINDS}[kind]}


@stages
def test_same_kinds(stage: str) -> None:
    """Catches a number asked for as text, an axis that is missing, a list that takes one value only and the reverse."""
    form = form_of(stage)
    for parameter in form.parameters.values():
        fields = form.fields_of(parameter.name)
        if not fields:
            continue
        expected = expected_fields(parameter)
        if parameter.name == "grid":  # columns and rows: a scan has no third axis
            del expected["grid_z"]
        assert {f.name for f in fields if (stage, f.path) not in OTHER_NAMES} == set(expected)
        is_list = value_type(parameter.hint)[1]
        for field in fields:
            kind = field.kind.replace("data_collection", "data")
            if parameter.name == "color":
                assert (kind, field.sanitized) == (
                    "color",
                    True,
                )  # a text for the stage, a palette in the form
            elif (stage, field.path) in NUMBERS_AS_TEXT:
                assert kind == "text"
            else:
                assert kind == expected.get(field.name, expected.get(parameter.name)), (
                    f"{field.path} is {kind}"
                )
            many = bool(field.repeat or field.kind == "data_collection" or field.model.get("multiple"))
            assert is_list or not many, f"{field.path} takes several values, the stage one"
            if is_list and not parameter.port:
                assert field.repeat == _in_same_group(field, f"{parameter.name}_items"), (
                    f"{field.path}: put into a repeat"
                )


def _in_same_group(field: Field, name: str) -> str:
    return "|".join([*field.path.split("|")[:-2], name])


@stages
def test_same_defaults(stage: str) -> None:
    """Catches a default that has drifted from the stage's, and a field one must fill in although the stage needs it not."""
    form = form_of(stage)
    for field in form.fields:
        parameter = form.parameter_of(field)
        if parameter is None:
            continue
        kind, is_list = value_type(parameter.hint)
        optional = field.model.get("optional")
        if is_list and field.repeat:
            limits = next(group for group in field.inside if "repeat" in group)
            assert int(limits["min"] or 0) == 0, f"{field.path}: a list may be empty"
            assert parameter.port or parameter.default is None
        elif parameter.port:
            assert optional or parameter.required, f"{field.path} must be optional"
            allowed = (stage, field.path) in EMPTY_ALLOWED
            assert allowed or not (optional and parameter.required), f"{field.path} must not be optional"
        elif kind in AXES_KINDS or parameter.default is None:
            assert optional, f"{field.path} must be optional"
            assert field.opening_value is None, f"{field.path} must begin empty"
        else:
            assert not optional, f"{field.path} has a default and cannot be empty"
            assert field.opening_value == parameter.default, f"{field.path} begins with another default"
            assert type(field.opening_value) is type(parameter.default), f"{field.path} has another type"


def parameter_bounds(parameter: Parameter) -> tuple[tuple[float, bool] | None, tuple[float, bool] | None]:
    """The bounds of the values of a parameter, each with whether it is excluded."""
    low = high = None
    for bound in parameter.metadata:
        if isinstance(bound, Ge | Gt):
            low = (bound.ge, False) if isinstance(bound, Ge) else (bound.gt, True)
        elif isinstance(bound, Le | Lt):
            high = (bound.le, False) if isinstance(bound, Le) else (bound.lt, True)
    kind = value_type(parameter.hint)[0]
    if kind is VoxelSize:
        low = (0, True)  # lengths: refused by their reader, not by a bound in the signature
    elif kind is AxisInts:
        low = (1, False)
    return typing.cast(Any, (low, high))


@stages
def test_same_bounds(stage: str) -> None:
    """Catches a form that refuses what the stage takes, and one that lets a job fail which it could have refused."""
    form = form_of(stage)
    for field in form.fields:
        parameter = form.parameter_of(field)
        if parameter and field.kind in ("integer", "float"):
            assert field.bounds() == parameter_bounds(parameter), (
                f"{field.path}: (low, excluded), (high, excluded)"
            )


@stages
def test_same_choices(stage: str) -> None:
    """Catches a choice that is missing, misspelt or in another order, and a flag that says the reverse."""
    form = form_of(stage)
    for field in form.fields:
        parameter = form.parameter_of(field)
        if parameter and field.kind == "select":
            choices = list(typing.get_args(value_type(parameter.hint)[0]))
            assert [option["value"] for option in field.model["options"]] == choices, field.path
            assert [o["value"] for o in field.model["options"] if o["selected"]] == [parameter.default], (
                field.path
            )
        elif parameter and field.kind == "boolean":
            negative = parameter.flag.replace("--", "--no-", 1)
            flags = ("", negative) if parameter.default else (parameter.flag, "")
            assert (field.model["truevalue"], field.model["falsevalue"]) == flags, field.path


@stages
def test_whens_are_complete(stage: str) -> None:
    """Catches a choice of a conditional without a branch, which Galaxy refuses only when somebody chooses it."""
    for field in form_of(stage).fields:
        if field.whens is not None:
            assert list(field.whens) == [option["value"] for option in field.model["options"]], field.path


@stages
def test_labels(stage: str) -> None:
    """Catches a number without its unit, a field without a word, and a label that ends in a colon or full stop."""
    form = form_of(stage)
    for field in form.fields:
        label = field.model["label"] or ""
        assert label and label[0] == label[0].upper() and label[-1] not in ".:", (
            f"{field.path}: label '{label}'"
        )
        assert field.model["help"] or field.whens or field.kind == "color", f"{field.path}: help is missing"
        parameter = form.parameter_of(field)
        words = parameter.name.split("_") if parameter else []
        unit = re.search(r"\(([^)]*)\)", label)
        for word in words[1:]:
            if word in UNITS:
                said = unit.group(1).replace("pixel", "px").split() if unit else []
                assert UNITS[word] in said, f"{field.path}: label '{label}' lacks ({UNITS[word]})"
        if parameter and value_type(parameter.hint)[0] is VoxelSize:
            assert label.endswith("(um)"), f"{field.path}: label '{label}' lacks (um)"


@stages
def test_text_reaches_the_stage_unharmed(stage: str) -> None:
    r"""Catches a text that Galaxy changes on its way (' becomes __sq__, Korean letters become X).

    Free text must say `<sanitizer sanitize="false"/>`, which the command then quotes. A text that must match a pattern may
    keep Galaxy's sanitizer when that leaves every text of the pattern alone, as it does these letters.
    """
    harmless = re.compile(r"[\w\d .,:?^$()*+|{}\[\]\\-]*")
    for field in form_of(stage).fields:
        if field.kind == "text" and field.sanitized:
            patterns = field.patterns()
            assert patterns, f'{field.path}: free text needs <sanitizer sanitize="false"/>'
            assert all(harmless.fullmatch(pattern) for pattern in patterns), f"{field.path}: {patterns}"


@stages
def test_head_of_the_tool(stage: str) -> None:
    """Catches a version that was not raised with the project's, and what the Galaxy community asks of every tool."""
    tool = form_of(stage).raw
    version = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["version"]
    assert re.fullmatch(rf"{re.escape(version)}\+galaxy\d+", tool["version"]), tool["version"]
    assert float(tool["profile"]) >= 25.1
    assert tool["detect_errors"] == "exit_code"
    assert tool["description"] and tool["edam_operations"] and tool["edam_topics"]
    assert {"name": "kbrain", "version": version} in [
        {"name": need.get("name"), "version": need.get("version")} for need in tool["requirements"]
    ]
    assert [container["container_id"].rpartition(":")[2] for container in tool["containers"]] == [version]
    for title in ("What it does", "Inputs?", "Outputs?"):
        assert re.search(rf"^\*\*{title}\*\*", tool["help_text"], re.MULTILINE), (
            f"help lacks the part '{title}'"
        )
    assert tool["citations"], "a citation is missing"
    for citation in tool["citations"]:
        doi = citation["content"]
        assert citation["type"] == "doi" and re.fullmatch(r"10\.\d{4,9}/\S+", doi), f"not a bare DOI: {doi!r}"


def values_in_tests(form: Form, field: Field) -> set[Any]:
    """The values that the tool's tests of successful runs give a field, its opening value included where they leave it."""
    used = set()
    for test in form.raw["tests"]:
        given = {
            path: value[0] if isinstance(value, list) else value for path, value in test["inputs"].items()
        }
        chosen = {f.path: given.get(f.path, f.opening_value) for f in form.fields if f.whens}
        if not test["expect_failure"] and all(chosen[path] == case for path, case in field.cases.items()):
            used.add(given.get(field.path, field.opening_value))
    return used


@stages
def test_every_branch_is_tested(stage: str) -> None:
    """Catches a branch of a form that nobody ever ran: every `<when>`, and every box both ticked and not."""
    form = form_of(stage)
    unused = []
    for field in form.fields:
        wanted = field.whens or ((True, False) if field.kind == "boolean" else ())
        unused += [f"{field.path} = {value}" for value in wanted if value not in values_in_tests(form, field)]
    assert not unused, f"no <test> that succeeds uses {', '.join(unused)}"


@stages
def test_tests_say_what_they_expect(stage: str) -> None:
    """Catches an output that appears or is lost unnoticed, and a tool whose failure nobody has seen."""
    tests = form_of(stage).raw["tests"]
    failing = [test for test in tests if test["expect_failure"]]
    assert len(failing) == 1, f"{len(failing)} tests with expect_failure"
    assert failing[0]["stderr"] or failing[0]["stdout"], "the failing test must assert its message"
    for test in tests:
        if not test["expect_failure"]:
            assert test["num_outputs"], f"{test['name']} needs expect_num_outputs"
            contents = [output["attributes"] for output in test["outputs"]]
            contents += [e[1] for c in test["output_collections"] for e in c["element_tests"].values()]
            assert any(c["assert_list"] or c["extra_files"] for c in contents), (
                f"{test['name']} asserts no content"
            )


def test_lists_of_exceptions_are_current() -> None:
    """Catches an exception that stayed in a list of this file when its reason had gone."""
    paths = {(form.stage, field.path) for form in forms().values() for field in form.fields}
    for exceptions in (FORM_ONLY, EMPTY_ALLOWED, OTHER_NAMES, NUMBERS_AS_TEXT):
        assert set(exceptions) <= paths, sorted(set(exceptions) - paths)
    parameters = {(form.stage, name) for form in forms().values() for name in form.parameters}
    assert set(NOT_IN_FORM) <= parameters
