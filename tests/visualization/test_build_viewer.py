"""The build of the client: it must notice a build that succeeds and draws nothing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_viewer", PROJECT / "viewer" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def client(folder: Path, worker_bytes: int) -> Path:
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<title>KNeuroViz</title>")
    (folder / "assets" / "chunk_worker.bundle-abc.js").write_bytes(b" " * worker_bytes)
    return folder


def test_an_unbundled_worker_fails_the_build(tmp_path: Path, build: ModuleType) -> None:
    build.check_client(client(tmp_path / "good", 300_000))
    with pytest.raises(build.BuildError, match="has 660 bytes, expected at least 100000"):
        build.check_client(client(tmp_path / "bad", 660))
    with pytest.raises(build.BuildError, match="found 0"):
        (tmp_path / "good" / "assets" / "chunk_worker.bundle-abc.js").unlink()
        build.check_client(tmp_path / "good")


def test_up_to_date_means_these_sources_and_a_good_build(tmp_path: Path, build: ModuleType) -> None:
    folder = client(tmp_path / "client", 300_000)
    sources = build.fingerprint()
    assert not build.is_up_to_date(folder, sources)
    (folder / "build.json").write_text(json.dumps({"fingerprint": sources}))
    assert build.is_up_to_date(folder, sources)
    assert not build.is_up_to_date(folder, "other sources")
    (folder / "assets" / "chunk_worker.bundle-abc.js").write_bytes(b"import")
    assert not build.is_up_to_date(folder, sources)


def test_the_built_client_carries_every_licence(build: ModuleType) -> None:
    notices = (build.TARGET / "THIRD-PARTY-LICENSES.txt").read_text(encoding="utf-8")
    for name in ("neuroglancer", "ikonate", "codemirror", "gl-matrix"):
        assert f"{name} " in notices
    assert "Apache License" in notices and "MIT" in notices


def test_the_lock_names_no_registry(build: ModuleType) -> None:
    lock = (build.VIEWER / "package-lock.json").read_text(encoding="utf-8")
    assert "http" not in "".join(line for line in lock.splitlines() if '"resolved"' in line)
