"""The parts of the client that need no server: labels, settings, names in collections, reports, state."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbrain_core.errors import InputError, KBrainError, OutputExistsError
from kbrain_galaxy.file_types import galaxy_type
from kbrain_galaxy.labels import find
from kbrain_galaxy.run_command import combine_inputs
from kbrain_galaxy.run_outputs import file_name, plain_report, safe_join, unique_paths, with_ending
from kbrain_galaxy.run_state import StateFile, UploadState
from kbrain_galaxy.sources import SourceFile, arrange, choose_collection_type, find_files, single_file
from kbrain_galaxy.uploads import BATCH_BYTES, BATCH_FILES, Upload, batches, make_upload, nested
from kbrain_galaxy.workflow_form import (
    Option,
    WorkflowForm,
    check_value,
    parse_settings,
    read_form,
    resolve_settings,
)
from kbrain_galaxy.workflow_runs import job_reason

# ---------------------------------------------------------------------------------------------------- labels and settings


@given(
    st.lists(
        st.text("abcXYZ ", min_size=1).filter(str.strip),
        min_size=1,
        unique_by=lambda s: " ".join(s.lower().split()),
    )
)
def test_a_label_is_found_whatever_its_case_and_spaces(labels: list[str]) -> None:
    things = {label: number for number, label in enumerate(labels)}
    for label, number in things.items():
        assert find(label, things, "step", "It") == number
        if label.upper() not in things:
            assert find(label.upper().replace(" ", "-"), things, "step", "It") == number


def test_a_mistyped_label_names_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"Workflow 'W' has no step 'Stich tiles'\. Did you mean 'Stitch tiles'\?"
    ):
        find("Stich tiles", {"Stitch tiles": 1, "Align sections": 2}, "step", "Workflow 'W'")
    with pytest.raises(InputError, match="There is: 'Stitch tiles'"):
        find("qqq", {"Stitch tiles": 1}, "step", "It")


def field(name: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "optional": False, "value": None, **more}


def form() -> WorkflowForm:
    """As Galaxy's run form describes a workflow: sections, a choice with cases, a repeat, a connected input."""
    options = [["Linear", "linear", True], ["None", "none", False]]
    cases = [
        {"value": "stage", "inputs": []},
        {"value": "search", "inputs": [field("radius", "float", value="2.5", min=0.0)]},
    ]
    test = field(
        "how", "select", options=[["Stage", "stage", True], ["Search", "search", False]], value="stage"
    )
    advanced = [
        field("blend", "select", options=options, value="linear"),
        {"name": "start", "type": "conditional", "test_param": test, "cases": cases},
        {"name": "items", "type": "repeat", "cache": [[field("channel", "text", value="a")]]},
        field("radius_px", "integer", value="3"),
    ]
    stitch = [
        field("tiles", "data", value={"__class__": "ConnectedValue"}),
        field("max_shift_um", "float", optional=True, min=0, max=1000, value=""),
        field("count", "integer", value="3", min=1, max=9),
        field("verify", "boolean", value=False),
        {"name": "advanced", "type": "section", "inputs": advanced},
    ]
    other = [
        field("blend", "select", options=options, value="none"),
        {"name": "a", "type": "section", "inputs": [field("x", "integer")]},
    ]
    other.append({"name": "b", "type": "section", "inputs": [field("x", "integer")]})
    tiles = field(
        "input",
        "data_collection",
        extensions=["tiff"],
        acceptable_extensions=["tiff", "btf"],
        collection_types=["list"],
    )
    steps = [
        ("data_collection_input", "Tiles", [tiles]),
        (
            "data_input",
            "Layout",
            [field("input", "data", extensions=["txt"], acceptable_extensions=["txt"], optional=True)],
        ),
        ("parameter_input", "Voxel size", [field("input", "float", value="")]),
        ("tool", "Stitch tiles", stitch),
        ("tool", "Align sections", other),
    ]
    return read_form(
        {
            "name": "Volume",
            "steps": [
                {
                    "step_index": number,
                    "step_type": kind,
                    "step_label": label,
                    "step_name": "x",
                    "inputs": inputs,
                }
                for number, (kind, label, inputs) in enumerate(steps)
            ],
        }
    )


def test_settings_are_found_by_their_short_names() -> None:
    found = resolve_settings(
        form(),
        {
            "stitch-tiles|max-shift-um": "20",
            "Stitch tiles|blend": "None",
            "Stitch tiles|verify": "yes",
            "Stitch tiles|how": "search",
            "Stitch tiles|radius": 4,
            "Stitch tiles|channel": "DAPI",
            "Align sections|b|x": 5,
            "voxel size": "0.5",
        },
    )
    assert found.inputs == {2: 0.5}
    assert found.steps == {
        3: {
            "max_shift_um": 20.0,
            "advanced|blend": "none",
            "verify": True,
            "advanced|start|how": "search",
            "advanced|start|radius": 4.0,
            "advanced|items_0|channel": "DAPI",
        },
        4: {"b|x": 5},
    }


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("Stich tiles|count", 1, "has no step 'Stich tiles'. Did you mean 'Stitch tiles'?"),
        ("Stitch tiles|cuont", 1, "has no parameter 'cuont'. Did you mean 'count'?"),
        ("Stitch tiles|count", "two", "'Stitch tiles|count' is 'two': write a whole number"),
        ("Stitch tiles|count", 10, "must be at least 1 and at most 9"),
        ("Stitch tiles|max_shift_um", "nan", "must be at least 0"),
        ("Stitch tiles|verify", "maybe", "write true or false"),
        ("Stitch tiles|blend", "cubic", "choose one of linear, none"),
        ("Stitch tiles|tiles", "x", "comes from another step"),
        ("Stitch tiles|radius", 3, "counts only when 'advanced|start|how' is 'search'"),
        (
            "Align sections|x",
            3,
            "may mean several parameters: write one of 'Align sections|a|x', 'Align sections|b|x'",
        ),
        ("count", 3, "write 'Stitch tiles|count'"),
        ("Tiles", "t/", "is an input for files: give it with --input 'Tiles=PATH'"),
        ("Voxelsize", 3, "Did you mean 'Voxel size'?"),
        ("Stitch tiles|count", "", "needs a value"),
    ],
)
def test_a_wrong_setting_is_one_line_that_helps(setting: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        resolve_settings(form(), {setting: value})
    assert "\n" not in str(caught.value)


@given(st.integers(-1000, 1000), st.integers(-50, 50), st.integers(0, 50))
def test_whole_numbers_are_held_to_their_bounds(number: int, low: int, width: int) -> None:
    option = Option("n", "integer", minimum=low, maximum=low + width)
    if low <= number <= low + width:
        assert check_value("n", option, str(number)) == number
    else:
        with pytest.raises(InputError):
            check_value("n", option, str(number))


def test_settings_from_a_command_line() -> None:
    assert parse_settings(["A|b=c=d", "X=1"]) == {"A|b": "c=d", "X": "1"}
    for texts in (["no value"], ["=3"], ["A|b=1", "A|b=2"]):
        with pytest.raises(InputError):
            parse_settings(texts)


def test_inputs_from_a_command_line() -> None:
    assert combine_inputs(["a"], []) == ["a"]
    assert combine_inputs([], ["Tiles=a", "Tiles=b=c", "Layout=l.txt"]) == {
        "Tiles": ["a", "b=c"],
        "Layout": ["l.txt"],
    }
    for data, inputs in ((["a"], ["Tiles=b"]), ([], ["Tiles"]), ([], ["Tiles="])):
        with pytest.raises(InputError):
            combine_inputs(data, inputs)


def test_what_is_missing_is_told_with_how_to_give_it() -> None:
    with pytest.raises(
        InputError,
        match=re.escape("needs 'Tiles' (collection of files, tiff): give it with --input 'Tiles=PATH'"),
    ):
        form().check_complete([])
    with pytest.raises(
        InputError, match=re.escape("needs 'Voxel size' (float): give it with --set 'Voxel size=VALUE'")
    ):
        form().check_complete([0])
    form().check_complete([0, 2])
    assert form().only_input().label == "Tiles"


# --------------------------------------------------------------------------------------------- files and their names


@pytest.mark.parametrize(
    ("name", "taken", "expected"),
    [
        ("a.ome.tif", ("tiff", "ome.tiff"), "ome.tiff"),
        ("a.ome.tif", ("tiff",), "tiff"),
        ("a.TIF", ("tiff", "ome.tiff"), "tiff"),
        ("positions.tsv", ("tabular",), "tabular"),
        ("positions.tsv", (), "tsv"),
        ("a.pdf", ("tiff",), None),
        ("a.unheard", ("tiff",), "auto"),  # Galaxy looks inside
        ("tile", (), "auto"),
        ("a.zip", ("zip",), "zip"),
    ],
)
def test_the_datatype_follows_the_ending_and_what_the_input_takes(
    name: str, taken: tuple[str, ...], expected: str | None
) -> None:
    known = {"tiff", "ome.tiff", "tsv", "tabular", "pdf", "zip", "txt"}
    assert galaxy_type(name, taken, known) == expected


def test_files_of_a_folder_with_what_is_left_out(tmp_path: Path) -> None:
    tiles = tmp_path / "tiles"
    (tiles / "s10").mkdir(parents=True)
    (tiles / "s2").mkdir()
    (tiles / "stack.zarr").mkdir()
    (tiles / "stack.zarr" / "zarr.json").touch()
    (tmp_path / "elsewhere.tif").touch()
    for name in ("s10/a.tif", "s2/a.tif", "s2/b.tif", ".hidden", "s2/.DS_Store"):
        (tiles / name).write_text(name)
    (tiles / "inside.tif").symlink_to(tiles / "s2" / "a.tif")
    (tiles / "outside.tif").symlink_to(tmp_path / "elsewhere.tif")
    (tiles / "lost.tif").symlink_to(tmp_path / "nothing")
    found = find_files([str(tiles)], tmp_path / "unpacked")
    assert [file.name for file in found.files] == ["inside.tif", "s2/a.tif", "s2/b.tif", "s10/a.tif"]
    assert sorted(found.left_out) == [
        ".hidden (hidden)",
        "lost.tif (a link to nothing)",
        "outside.tif (a link that leads out of the folder)",
        "s2/.DS_Store (hidden)",
        "stack.zarr (a volume, not tiles)",
    ]


def test_an_archive_and_urls_are_sources_too(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("s1/a.tif", b"1")
        archive.writestr("s2/a.tif", b"2")
    found = find_files([str(tmp_path / "set.zip")], tmp_path / "unpacked")
    assert [file.name for file in found.files] == ["s1/a.tif", "s2/a.tif"]
    assert single_file("https://example.org/data/my%20tile.tif?x=1").name == "my tile.tif"
    with pytest.raises(InputError, match="There is no"):
        find_files([str(tmp_path / "none")], tmp_path)
    with pytest.raises(InputError, match="is a folder and one file is needed"):
        single_file(str(tmp_path))


def sources(*names: str) -> list[SourceFile]:
    return [SourceFile(tuple(name.split("/")), Path("/data") / name) for name in names]


def identifiers(elements: list[Any]) -> list[str]:
    return ["/".join(element.identifiers) for element in elements]


def test_names_in_collections() -> None:
    flat, deep = sources("a.tif", "b.tif"), sources("s1/a.tif", "s2/a.tif", "s2/x/b.tif")
    assert identifiers(arrange(flat, "list", None, "home")) == ["a.tif", "b.tif"]
    assert identifiers(arrange(deep, "list", None, "home")) == ["s1_a.tif", "s2_a.tif", "s2_x_b.tif"]
    assert identifiers(arrange(deep, "list:list", None, "home")) == ["s1/a.tif", "s2/a.tif", "s2_x/b.tif"]
    assert identifiers(arrange(flat, "list:list", None, "home")) == ["home/a.tif", "home/b.tif"]
    by_name = sources("t_s01_a.tif", "t_s02_a.tif")
    assert identifiers(arrange(by_name, "list:list", r"_s(\d+)_", "home")) == [
        "01/t_s01_a.tif",
        "02/t_s02_a.tif",
    ]
    for pattern, message in (
        (r"_z(\d+)", "does not fit"),
        ("_s", "has no group"),
        ("(", "is no regular expression"),
    ):
        with pytest.raises(InputError, match=message):
            arrange(by_name, "list:list", pattern, "home")
    with pytest.raises(InputError, match=r"would both be called 'a_b\.tif'"):
        arrange(sources("a/b.tif", "c/b.tif", "a_b.tif"), "list", None, "home")


def test_the_kind_of_collection_follows_input_and_folders() -> None:
    flat, deep = sources("a.tif"), sources("s1/a.tif", "s2/a.tif")
    assert choose_collection_type(["list", "list:list"], flat, False) == "list"
    assert choose_collection_type(["list", "list:list"], deep, False) == "list:list"
    assert choose_collection_type(["list"], deep, False) == "list"
    assert choose_collection_type(["list:list"], flat, False) == "list:list"
    with pytest.raises(InputError, match="paired"):
        choose_collection_type(["paired"], flat, False)


part = st.text("abc_12", min_size=1, max_size=4)


@given(
    st.lists(st.tuples(part, part, part), min_size=1, max_size=12, unique=True),
    st.sampled_from(["list", "list:list"]),
)
def test_names_in_a_collection_are_unique_and_keep_their_endings(
    paths: list[tuple[str, ...]], kind: str
) -> None:
    files = [
        SourceFile((*folders, f"{name}.ome.tif"), Path("/d", *folders, name)) for *folders, name in paths
    ]
    try:
        elements = arrange(files, kind, None, "home")
    except InputError as error:
        assert "would both be called" in str(error)  # a_b/c and a/b_c: refused, never lost
        return
    names = [element.identifiers for element in elements]
    assert len(set(names)) == len(files)
    assert all(len(name) == kind.count("list") and name[-1].endswith(".ome.tif") for name in names)
    assert [element.file for element in elements] == files


def test_nested_names_as_galaxy_wants_them() -> None:
    made = nested([(("s1", "a"), "1"), (("s2", "a"), "2"), (("s1", "b"), "3")])
    assert [(entry["name"], [inner["id"] for inner in entry["element_identifiers"]]) for entry in made] == [
        ("s1", ["1", "3"]),
        ("s2", ["2"]),
    ]
    assert nested([(("a",), "1")]) == [{"src": "hda", "id": "1", "name": "a"}]


@given(st.lists(st.integers(0, BATCH_BYTES * 2), max_size=150))
def test_batches_keep_order_and_bounds(sizes: list[int]) -> None:
    uploads = [Upload(str(n), SourceFile(("x",), "u"), "tiff", size, 0, "f") for n, size in enumerate(sizes)]
    made = list(batches(uploads))
    assert [upload for batch in made for upload in batch] == uploads
    for batch in made:
        assert len(batch) <= BATCH_FILES
        assert len(batch) == 1 or sum(upload.size for upload in batch) <= BATCH_BYTES


def test_outputs_get_plain_names() -> None:
    assert file_name("Stitching report (all)") == "Stitching_report_(all)"
    assert file_name("../../etc/passwd") == "etc_passwd"
    assert file_name("...") == "output"
    names = [Path("a"), Path("a"), Path("a_2"), Path("a")]
    assert len(set(unique_paths(names))) == len(names)
    assert with_ending("Report", "html") == "Report.html"
    assert with_ending("t.tif", "tiff") == "t.tif"
    assert with_ending("Positions", "tabular") == "Positions.tsv"
    assert with_ending("Volume", "ome_zarr") == "Volume.zarr"
    assert with_ending("Tiles", "directory") == "Tiles"
    for inner in ("../x", "/etc/passwd", "a/../../x", ""):
        with pytest.raises(KBrainError, match="outside"):
            safe_join(Path("out"), inner)


def test_a_report_shows_the_files_that_were_fetched(tmp_path: Path) -> None:
    (tmp_path / "Pictures").mkdir()
    (tmp_path / "Pictures" / "plane 1.png").touch()
    (tmp_path / "Summary.md").write_text("All is![not fetched](report_files/a.png) well.")
    places = {
        "Pictures": tmp_path / "Pictures",
        "Summary": tmp_path / "Summary.md",
        "Table": tmp_path / "Table.tsv",
    }
    text = '# R\n```galaxy\nhistory_dataset_as_image(invocation_id=1, output="Pictures")\n```\n'
    text += (
        '${galaxy history_dataset_embedded(output="Summary")} ${galaxy invocation_time(invocation_id=1)}|\n'
    )
    text += '```galaxy\nhistory_dataset_as_table(output="Table")\n```\n'
    text += '```galaxy\nhistory_dataset_link(output="Volume")\n```\n'
    assert plain_report(text, tmp_path, places) == (
        "# R\n![plane 1](Pictures/plane%201.png)\nAll is well. |\n[Table](Table.tsv)\n*Volume: in Galaxy*\n"
    )


# ----------------------------------------------------------------------------------------------------------- state


def test_state_survives_and_holds_no_key(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "out")
    state.belongs_to("http://one")
    state.run.uploads["Tiles/a.tif"] = UploadState("sha256:1", 3, 5, session="http://one/s")
    state.save()
    again = StateFile(tmp_path / "out")
    assert again.run == state.run
    assert "key" not in json.loads(again.path.read_text())
    assert [path.name for path in (tmp_path / "out").iterdir()] == [again.path.name]
    with pytest.raises(OutputExistsError, match="holds a run on http://one"):
        again.belongs_to("http://two")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 99}', '{"version": 1}', '{"version": 1, "uploads": {"a": {}}}']
)
def test_a_damaged_state_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / ".kbrain-galaxy.json").write_text(text)
    with pytest.raises(InputError, match=r"\.kbrain-galaxy\.json"):
        StateFile(tmp_path)


def test_content_is_read_again_only_when_a_file_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"one")
    file = single_file(str(path))
    first = make_upload("k", file, "tiff", None, deferred=False)
    known = UploadState("sha256:known as tiff", first.size, first.changed_ns)
    assert make_upload("k", file, "tiff", known, deferred=False).fingerprint == "sha256:known"
    path.write_bytes(b"two and more")
    assert make_upload("k", file, "tiff", known, deferred=False).fingerprint not in (
        first.fingerprint,
        "sha256:known",
    )


# --------------------------------------------------------------------------------------------- what a failed job says


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (
            {"tool_stderr": "Fusing: 1 of 2\nkbrain stitch-tiles: no overlap\n"},
            "kbrain stitch-tiles: no overlap",
        ),
        (
            {"tool_stderr": "x\n", "job_messages": [{"desc": "Fatal error: the disk is full"}]},
            "the disk is full",
        ),
        (
            {
                "tool_stderr": "Traceback\nValueError: 3\n\n",
                "exit_code": 1,
                "job_messages": [{"desc": "Fatal error: Exit code 1 ()"}],
            },
            "ValueError: 3 (exit code 1)",
        ),
        ({"job_messages": [{"desc": "Fatal error: Exit code 137 ()"}]}, "Fatal error: Exit code 137 ()"),
        ({}, ""),
    ],
)
def test_the_reason_of_a_failed_job(job: dict[str, Any], expected: str) -> None:
    assert job_reason(job) == expected
