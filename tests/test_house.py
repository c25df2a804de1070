"""The house rules a machine can check: which way imports run, how long files are, what no file may say."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbrain_core.stage import STAGES

PROJECT = Path(__file__).parent.parent
PACKAGE = PROJECT / "kbrain_core"
WINGS = ("ingest", "processing", "storage", "analysis", "visualization", "database")
# Floors from the ground up: a module imports its own floor and those below it.
FLOORS = {"ground": 0, "formats": 1, "numerics": 2, **dict.fromkeys(WINGS, 3), "cli": 4}
HEAVY = (
    "numpy",
    "scipy",
    "cv2",
    "tensorstore",
    "skimage",
    "tifffile",
    "zarr",
    "numba",
    "matplotlib",
    "imagecodecs",
    "pandas",
    "dask",
)
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def place(module: str) -> str:
    """Where a module of ours lives: a wing, formats, numerics, cli, or the ground (engine, store, stage ...)."""
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else "ground"
    return name if name in FLOORS else "ground"


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts)


def imports_of(path: Path, *, top_only: bool = False) -> Iterator[str]:
    """Absolute names of the modules a file imports; those for type checking alone are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_only else _runtime_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = dotted(path).split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            # `from ..numerics import pyramid` names a module, `from ..errors import InputError` does not.
            yield from ([base] if node.module else [f"{base}.{alias.name}" for alias in node.names])


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _runtime_nodes(node)


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_run_one_way(path: Path) -> None:
    own = place(dotted(path))
    for name in imports_of(path):
        if not name.startswith("kbrain_core"):
            continue
        other = place(name)
        assert FLOORS[other] <= FLOORS[own], f"{dotted(path)} imports {name}, which lies above it"
        if own in WINGS and other in WINGS:  # cli stands above all of them
            assert own == other, f"{dotted(path)} imports {name} of another wing"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_the_core_knows_no_portal(path: Path) -> None:
    portals = {"kbrain_galaxy", "galaxy", "bioblend"}
    assert not portals & {name.split(".")[0] for name in imports_of(path)}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_nothing_heavy_at_its_top(stage: str) -> None:
    path = PACKAGE / Path(*stage.split(".")).with_suffix(".py")
    heavy = {name.split(".")[0] for name in imports_of(path, top_only=True)} & set(HEAVY)
    assert not heavy


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_its_tests(stage: str) -> None:
    wing, name = stage.split(".")
    assert (PROJECT / "tests" / wing / f"test_{name}.py").is_file()


def files_of_ours() -> list[Path]:
    """Everything in the repository, and what is not ignored by it."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("this is no git checkout")
    return [PROJECT / name for name in listed.stdout.split("\0") if name and (PROJECT / name).is_file()]


def test_files_are_short_enough_to_read() -> None:
    # "About 500 lines": a file a little longer is not worth a cut in the wrong place.
    lines = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for path in files_of_ours()
        if path.suffix == ".py"
    }
    assert not {str(path.relative_to(PROJECT)): count for path, count in lines.items() if count > 520}


def test_no_file_names_a_machine_or_a_registry() -> None:
    forbidden = re.compile(
        r"(?<![\w./])/(work|root|home/\w+|tmp/(scratch|bash))/|"
        + r"pypi\.org/simple|file:///|--index-url [^<]"
    )
    found = []
    for path in files_of_ours():
        if path == Path(__file__) or path.suffix in (".tif", ".png", ".woff2", ".wasm", ".lock"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(PROJECT)}: {match.group()}" for match in forbidden.finditer(text)]
    assert not found


def test_locks_are_hashed_and_name_no_address() -> None:
    locks = sorted(path.with_suffix(".txt") for path in (PROJECT / "requirements").glob("*.in"))
    assert locks
    for lock in locks:
        text = lock.read_text(encoding="utf-8")
        assert "://" not in text
        pinned = re.findall(r"^[A-Za-z0-9._-]+(?:\[[^]]*\])?==", text, re.MULTILINE)
        assert pinned and len(pinned) <= text.count("--hash=sha256:")
