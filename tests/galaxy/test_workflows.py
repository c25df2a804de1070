"""The workflows on the running Galaxy: their own tests, the README's script, and real data."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kbrain_galaxy import Galaxy
from kbrain_galaxy.environment import ensure_environment

from .conftest import RunningGalaxy

PROJECT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", ["image-to-volume", "tiles-to-volume"])
def test_a_workflow_passes_its_own_tests(galaxy: RunningGalaxy, tmp_path: Path, name: str) -> None:
    planemo = ensure_environment("planemo") / "planemo"
    server = ["--engine", "external_galaxy", "--galaxy_url", galaxy.url]
    keys = ["--galaxy_user_key", galaxy.key, "--galaxy_admin_key", galaxy.key]
    outcome = tmp_path / "outcome.json"
    files = ["--test_output_json", str(outcome), "--test_output", str(tmp_path / "outcome.html")]
    done = subprocess.run(
        [planemo, "test", *server, *keys, *files, PROJECT / "workflows" / name / f"{name}.ga"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    summary = json.loads(outcome.read_text())["summary"]
    assert summary["num_tests"] == 1 and not summary["num_failures"] + summary["num_errors"]


def test_the_readme_script_runs_as_printed(galaxy: RunningGalaxy, tmp_path: Path) -> None:
    script = re.search(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert script and len(script.group(1).split("\n")) <= 11
    (tmp_path / "test-data").symlink_to(PROJECT / "test-data")
    environment = {**os.environ, "KBRAIN_GALAXY_URL": galaxy.url, "KBRAIN_GALAXY_KEY": galaxy.key}
    done = subprocess.run(
        [sys.executable, "-c", script.group(1)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report, link = done.stdout.split()
    assert "PASS" in (tmp_path / report).read_text(encoding="utf-8")
    assert link.startswith(galaxy.url) and "kneuroviz" in link
    positions = _rows(tmp_path / "results" / "Positions_of_tiles.tsv")
    truth = json.loads((PROJECT / "test-data" / "sample" / "truth.json").read_text())["tiles"]
    assert len(positions) == 2 * len(truth)
    for z in range(5):
        errors = [
            [float(row[f"{axis}_px"]) - true for axis, true in zip("yx", tile["true_px"][1:], strict=True)]
            for tile in truth
            for row in positions
            if tile["z"] == z and tile["name"] in row["name"] and row["status"] == "registered"
        ]
        assert len(errors) >= 2 * 8
        # the canvas of a section begins anywhere; the tiles on it lie within 0.3 px of where they were planted
        off = np.asarray(errors) - np.median(errors, axis=0)
        assert np.abs(off).max() < 0.3


def test_a_real_section_becomes_a_volume(galaxy: RunningGalaxy, shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "array-tomography"
    section = [row for row in _rows(folder / "layout.tsv") if row["z"] == "0"]
    layout = tmp_path / "layout.tsv"
    layout.write_text(
        "\n".join(["\t".join(section[0]), *("\t".join(row.values()) for row in section)]) + "\n"
    )
    run = Galaxy(galaxy.url, galaxy.key).run(
        "Raw tiles to a 3D volume",
        {"Raw tiles": [folder / "tiles" / row["file"] for row in section], "Tile layout": layout},
        set={"Illumination preset": "none", "Pixel size (um)": 0.1, "Section thickness (um)": 0.1},
        output=tmp_path / "results",
    )
    positions = _rows(run.outputs["Positions of tiles"])
    assert len(positions) == 14 and all(row["status"] == "registered" for row in positions)
    assert all(float(row["confidence"]) > 0.5 for row in positions)
    figures = run.outputs["Stitching figures"].read_text(encoding="utf-8")
    assert "**PASS**" in figures and "| components | 1 |" in figures


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))
