"""What every stage does around its own work: checks, summary, report, completion."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from sample_stage import sample_stage

from kbrain_core.errors import CheckFailedError, InputError, OutputExistsError
from kbrain_core.geometry import VoxelSize
from kbrain_core.stage import (
    STAGES,
    STEPS,
    Part,
    RunOptions,
    load_stage,
    parameters_of,
    run_parameters,
    step_of,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("hello")
    return path


def test_summary_and_report_lie_beside_the_output(tmp_path: Path, source: Path) -> None:
    result = sample_stage(source, tmp_path / "out", voxel_size=VoxelSize(1, 2, 3), run=RunOptions(workers=1))
    assert result.square_sum == sum(n * n for n in range(12))
    summary = json.loads((tmp_path / "out-summary.json").read_text())
    assert summary["outcome"] == "complete"
    assert summary["figures"] == {"square_sum": result.square_sum}
    assert summary["parameters"]["voxel_size"] == "x=3nm,y=2nm,z=1nm"
    assert summary["inputs"][0]["fingerprint"].startswith("sha256:")
    assert summary["cpu_s"] > 0
    assert summary["peak_memory_bytes"] > 1e6
    assert "Squares &lt;of numbers&gt;" in (tmp_path / "out-report.html").read_text()


def test_chosen_paths_for_summary_and_report(tmp_path: Path, source: Path) -> None:
    run = RunOptions(workers=1, report=tmp_path / "r" / "a.html", summary=tmp_path / "s" / "b.json")
    sample_stage(source, tmp_path / "out", run=run)
    assert (tmp_path / "r" / "a.md").exists()
    assert json.loads((tmp_path / "s" / "b.json").read_text())["stage"] == "sample-stage"


def test_a_failure_is_told_in_the_summary_and_nothing_looks_finished(tmp_path: Path, source: Path) -> None:
    with pytest.raises(CheckFailedError, match="not round"):
        sample_stage(source, tmp_path / "out", fail=True, run=RunOptions(workers=1))
    summary = json.loads((tmp_path / "out-summary.json").read_text())
    assert (summary["outcome"], summary["message"]) == (
        "failed",
        "The squares are not round: pass other numbers",
    )
    assert not (tmp_path / "out" / ".kbrain" / "complete").exists()


def test_a_refused_command_leaves_the_summary_of_finished_work(tmp_path: Path, source: Path) -> None:
    sample_stage(source, tmp_path / "out", run=RunOptions(workers=1))
    with pytest.raises(OutputExistsError):
        sample_stage(source, tmp_path / "out", count=3, run=RunOptions(workers=1))
    assert json.loads((tmp_path / "out-summary.json").read_text())["outcome"] == "complete"


def test_a_missing_report_is_made_again_without_the_work(tmp_path: Path, source: Path) -> None:
    sample_stage(source, tmp_path / "out", run=RunOptions(workers=1))
    (tmp_path / "out-report.html").unlink()
    sample_stage(source, tmp_path / "out", run=RunOptions(workers=1))
    assert (tmp_path / "out-report.html").exists()
    assert len((tmp_path / "out" / "trace.log").read_text().splitlines()) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "--count is 0: it must be at least 1"),
        ({"count": 51}, "--count is 51: it must be at most 50"),
        ({"scale": math.nan}, "--scale is nan: give a finite number"),
        ({"scale": -0.5}, "--scale is -0.5: it must be at least 0"),
        ({"kind": "odd"}, "--kind is 'odd': choose one of plain, fancy"),
        ({"run": RunOptions(workers=0)}, "--workers is 0: it must be at least 1"),
        ({"run": RunOptions(memory_gb=0)}, "--memory-gb is 0: it must be above 0"),
    ],
)
def test_values_outside_the_signature_are_refused(
    tmp_path: Path, source: Path, options: dict, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        sample_stage(source, tmp_path / "out", **options)
    assert str(caught.value) == message
    assert not (tmp_path / "out").exists()


def test_an_input_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--input: there is no '.*absent"):
        sample_stage(tmp_path / "absent", tmp_path / "out")


def test_parts_are_read_as_people_write_them() -> None:
    assert Part.from_text("2/3") == Part(2, 3)
    for text in ("0/3", "4/3", "1", "a/b", "1/0"):
        with pytest.raises(InputError, match="write i/n"):
            Part.from_text(text)


@pytest.mark.parametrize("path", STAGES)
def test_every_stage_is_whole(path: str) -> None:
    step, module = path.split(".")
    function = load_stage(module.replace("_", "-"))
    assert step_of(function) == step
    assert step in STEPS
    names = [parameter.name for parameter in parameters_of(function)]
    documented = function.__doc__ or ""
    missing = [name for name in names if f"\n    {name} : " not in documented]
    assert not missing, f"{path}: not explained in the docstring: {missing}"
    assert any(p.port and p.port.direction == "out" for p in parameters_of(function))


def test_run_options_are_explained() -> None:
    missing = [p.name for p in run_parameters() if f"\n    {p.name} : " not in (RunOptions.__doc__ or "")]
    assert not missing
