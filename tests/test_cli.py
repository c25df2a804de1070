"""The command: stages made from signatures, failures in one line, light to start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sample_stage

from kbrain_core import cli
from kbrain_core.errors import EXIT_BAD_INPUT, EXIT_CHECK_FAILED, EXIT_OK
from kbrain_core.stage import STAGES


@pytest.fixture
def only_the_sample_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "STAGES", ("ingest.sample_stage",))
    monkeypatch.setattr(cli, "load_stage", lambda name: sample_stage.sample_stage)
    monkeypatch.setattr(cli, "step_of", lambda function: "ingest")


@pytest.mark.usefixtures("only_the_sample_stage")
def test_options_arrive_as_written(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("x")
    options = "--count 4 --workers 1 --voxel-size x=4nm,y=4nm,z=50nm --bbox x=0:5 --channel a --channel b"
    code = cli.main(
        ["sample-stage", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out"), *options.split()]
    )
    assert code == EXIT_OK
    parameters = json.loads((tmp_path / "out-summary.json").read_text())["parameters"]
    assert parameters["voxel_size"] == "x=4nm,y=4nm,z=50nm"
    assert parameters["bbox"] == "x=0:5"
    assert parameters["channel"] == "a b"


@pytest.mark.usefixtures("only_the_sample_stage")
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--count", "0"], EXIT_BAD_INPUT, "--count is 0: it must be at least 1"),
        (["--scale", "nan"], EXIT_BAD_INPUT, "--scale is nan"),
        (["--scale", "-1"], EXIT_BAD_INPUT, "--scale is -1.0: it must be at least 0"),
        (["--cuont", "3"], EXIT_BAD_INPUT, "Did you mean --count?"),
        (["--kind", "odd"], EXIT_BAD_INPUT, "plain"),
        (["--bbox", "x=5:"], EXIT_OK, ""),
        (["--bbox", "left"], EXIT_BAD_INPUT, "is not a value per axis"),
        (["--part", "4/3"], EXIT_BAD_INPUT, "write i/n"),
        (["--fail"], EXIT_CHECK_FAILED, "The squares are not round: pass other numbers"),
    ],
)
def test_failures_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    (tmp_path / "in.txt").write_text("x")
    arguments = [
        "sample-stage",
        "--input",
        str(tmp_path / "in.txt"),
        "--output",
        str(tmp_path / "out"),
        "--workers",
        "1",
    ]
    assert cli.main(arguments + options) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kbrain")]
    assert len(lines) == bool(message)
    assert not message or message in lines[0]


def test_help_groups_the_stages_by_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == EXIT_OK
    text = capsys.readouterr().out
    for path in STAGES:
        step, module = path.split(".")
        assert text.index(cli.STEP_TITLES[step]) < text.index(module.replace("_", "-"))


def test_the_command_starts_without_heavy_libraries() -> None:
    code = (
        "import sys, kbrain_core.cli as c; c.main(['--help']);"
        "heavy = {'numpy', 'scipy', 'tensorstore', 'cv2', 'numba', 'skimage', 'tifffile', 'matplotlib'};"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"loaded by kbrain --help: {done.stderr}"


def test_unknown_commands_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["stitch-tile"]) == EXIT_BAD_INPUT
    assert "stitch-tiles" in capsys.readouterr().err
