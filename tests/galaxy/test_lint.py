"""What the Galaxy community asks of tools and workflows, by its own checker, planemo: not one warning is let through."""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import subprocess
import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from tool_forms import STAGE_NAMES, TOOLS, program

# those of the checkout: what only a repository needs (.dockstore.yml, test data) is not in the package
WORKFLOWS = sorted((Path(__file__).parents[2] / "workflows").glob("*/*.ga"))
NEED_INTERNET = (
    "BioToolsValid,version_bumped"  # one asks bio.tools, the other the Tool Shed for older versions
)


def planemo(*arguments: str | Path, datatypes: Path | None = None, folder: Path | None = None) -> str:
    """What planemo says; it must succeed, without a warning."""
    command = [str(program("planemo", "planemo")), *map(str, arguments)]
    environment = os.environ | ({"DATATYPES_CONF": str(datatypes)} if datatypes else {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    said = done.stdout + done.stderr
    complaints = [line for line in said.splitlines() if re.search(r"\b(WARNING|ERROR)\b", line)]
    shown = "\n".join(complaints) or said
    assert not complaints and done.returncode == 0, f"{' '.join(command)}:\n{shown}"
    return said


@pytest.fixture(scope="module")
def datatypes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Galaxy's datatypes and ours in one file: planemo knows only Galaxy's by itself."""
    environment = program("planemo", "planemo").parent.parent
    galaxy = next(
        environment.glob("lib/python*/site-packages/galaxy/tool_util/linters/datatypes_conf.xml.sample")
    )
    known = ET.parse(galaxy)
    registration = known.getroot().find("registration")
    assert registration is not None
    registration.extend(ET.parse(TOOLS / "datatypes_conf.xml").iter("datatype"))
    path = tmp_path_factory.mktemp("datatypes") / "datatypes_conf.xml"
    known.write(path)
    return path


@pytest.fixture
def copied_tools(tmp_path: Path) -> Path:
    """A copy of the tools, under the path that the project's address ends in; planemo writes archives beside it."""
    return shutil.copytree(TOOLS, tmp_path / "main" / "tools", ignore=shutil.ignore_patterns("__pycache__"))


def test_tools(datatypes: Path) -> None:
    """Catches XML that Galaxy's schema refuses, tests of parameters that do not exist, and help that is no valid text."""
    files = [TOOLS / stage / f"{stage}.xml" for stage in STAGE_NAMES]
    said = planemo("lint", "--skip", NEED_INTERNET, *files, datatypes=datatypes)
    assert said.count("Linting tool") == len(files)


def test_macros_are_used() -> None:
    """Catches a macro or token that nobody expands any more (one that is missing fails in every other test)."""
    shared = ET.parse(TOOLS / "macros.xml").getroot()
    defined = {macro.get("name") for macro in shared.iter("xml")}
    text = "".join(path.read_text() for path in TOOLS.rglob("*.xml"))
    unused = defined - set(re.findall(r'<expand macro="([^"]+)"', text))
    assert not unused, f"macros of macros.xml that no tool expands: {unused}"
    tokens = {str(token.get("name")) for token in shared.iter("token")}
    unused = {token for token in tokens if text.count(token) < 2}
    assert not unused, f"tokens of macros.xml that no tool uses: {unused}"


def test_tool_shed_accepts_the_suite(copied_tools: Path, datatypes: Path) -> None:
    """Catches a repository that the Tool Shed would refuse."""
    planemo(
        "shed_lint",
        "--tools",
        "--ensure_metadata",
        "--skip",
        NEED_INTERNET,
        copied_tools,
        datatypes=datatypes,
    )


def test_packages_for_the_tool_shed_are_complete(copied_tools: Path, tmp_path: Path) -> None:
    """Catches a tool whose package lacks the macros or the data that its tests need."""
    assert (TOOLS / ".shed.yml").is_file(), "tools/.shed.yml is missing: it says how the tools are packed"
    assert planemo("shed_build", copied_tools).count("Created:") == len(STAGE_NAMES) + 1  # and the suite
    planemo(
        "shed_upload", "--tar_only", "--shed_target", "local", copied_tools, folder=tmp_path
    )  # packs, no more
    packed = {path.name: content_of(path) for path in tmp_path.glob("shed_upload_*.tar.gz")}
    for stage in STAGE_NAMES:
        tool = ET.parse(TOOLS / stage / f"{stage}.xml").getroot()
        holding = [names for names in packed.values() if f"{stage}/{stage}.xml" in names]
        assert len(holding) == 1, f"{stage} is in {len(holding)} of the packages {sorted(packed)}"
        needed = {posixpath.normpath(f"{stage}/{macro.text}") for macro in tool.iter("import")}
        needed |= {f"{stage}/test-data/{name}" for name in data_of_tests(tool)}
        assert needed <= holding[0], f"the package of {stage} lacks {sorted(needed - holding[0])}"


def content_of(package: Path) -> set[str]:
    """The files in a package."""
    with tarfile.open(package) as archive:
        return {posixpath.normpath(name) for name in archive.getnames()}


def data_of_tests(tool: ET.Element) -> set[str]:
    """The files that a tool's tests read."""
    typed = [element for element in tool.iter() if element.get("ftype") and element.get("value")]
    return {name for element in typed for name in str(element.get("value")).split(",")}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.parent.name)
def test_workflows(workflow: Path) -> None:
    """Catches a workflow without licence, creator, release, labels, tests or README."""
    planemo("workflow_lint", "--iwc", workflow.parent)
