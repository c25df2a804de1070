"""Bytes at paths and URLs."""

from __future__ import annotations

from pathlib import Path

import pytest

from kbrain_core import store
from kbrain_core.errors import InputError, OutputExistsError, ResourceError


def test_bytes_by_path_and_file_url(tmp_path: Path) -> None:
    path = tmp_path / "a b" / "x.bin"
    store.write_bytes(path, b"1")
    store.write_bytes(path.as_uri(), b"22")
    assert store.read_bytes(path) == b"22" == store.read_bytes(path.as_uri())
    assert store.read_bytes(tmp_path / "absent") is None
    assert store.list_keys(tmp_path / "a b") == ["x.bin"]
    assert store.list_keys(tmp_path / "absent") == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(KeyError), store.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_half_files_never_lie_among_the_data(tmp_path: Path) -> None:
    (tmp_path / ".kbrain").mkdir()
    (tmp_path / "c" / "0").mkdir(parents=True)
    with store.atomic_path(tmp_path / "c" / "0" / "shard") as temporary:
        temporary.write_text("x")
        assert temporary.parent == tmp_path / ".kbrain" / "tmp"
    assert (tmp_path / "c" / "0" / "shard").read_text() == "x"


def test_leftovers_beside_a_file_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".report[1].html.0a1b2c3d.tmp").touch()
    (tmp_path / ".other.html.0a1b2c3d.tmp").touch()
    store.remove_leftovers(tmp_path / "report[1].html")
    assert [p.name for p in tmp_path.iterdir()] == [".other.html.0a1b2c3d.tmp"]


def test_file_outputs(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.touch()
    full.write_text("x")
    store.prepare_file_output(empty, overwrite=False)
    store.prepare_file_output(full, overwrite=True)
    with pytest.raises(OutputExistsError, match="pass --overwrite"):
        store.prepare_file_output(full, overwrite=False)
    with pytest.raises(OutputExistsError):
        store.prepare_file_output(tmp_path, overwrite=True)


def test_disk(tmp_path: Path) -> None:
    store.require_disk(tmp_path / "not" / "yet", 1)
    with pytest.raises(ResourceError, match="free some space"):
        store.require_disk(tmp_path, 10**18)


def test_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.kvstore_spec("https://h.example/a/b c") == {
        "driver": "http",
        "base_url": "https://h.example",
        "path": "/a/b c/",
        "http_request_retries": store.RETRIES,
    }
    assert store.kvstore_spec("s3://bucket/vol")["bucket"] == "bucket"
    with pytest.raises(InputError, match="unknown scheme"):
        store.kvstore_spec("gopher://h/x")
    monkeypatch.setenv(store.ALLOWLIST_VARIABLE, "https://good.example/ s3://ours/")
    assert store.kvstore_spec("s3://ours/x")["path"] == "x/"
    for url in ("https://good.example.evil/x", "https://bad.example/", "s3://ours-not/x"):
        with pytest.raises(InputError, match="allowed URLs"):
            store.kvstore_spec(url)


def test_fingerprints_follow_the_content(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "a").write_text("1")
    before = store.fingerprint(folder), store.fingerprint(folder / "a")
    assert before == (store.fingerprint(folder), store.fingerprint(folder / "a"))
    (folder / "a").write_text("22")
    assert store.fingerprint(folder) != before[0]
    assert store.fingerprint(folder / "a") != before[1]
