"""The command `kbrain-galaxy` where no server needs to run: what it refuses, and how it says so."""

from __future__ import annotations

import fcntl
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from kbrain_core.errors import EXIT_BAD_INPUT, EXIT_OK, EXIT_RESOURCES
from kbrain_galaxy import instance as instances
from kbrain_galaxy.cli import main
from kbrain_galaxy.installation import _findings, _steps
from kbrain_galaxy.server import open_instance, read_process
from kbrain_galaxy.server_check import PackagedTool, ServerCheck, packaged_datatypes, packaged_tools


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for an instance; no environment is made and no Galaxy started."""

    def refuse(name: str) -> Path:
        raise AssertionError(f"the environment for {name} was asked for")

    monkeypatch.setattr("kbrain_galaxy.server.ensure_environment", refuse)
    for variable in ("KBRAIN_GALAXY_URL", "KBRAIN_GALAXY_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("KBRAIN_GALAXY_FOLDER", str(tmp_path / "instance"))
    return tmp_path / "instance"


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    assert main(arguments) == code
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert lines[-1].startswith("kbrain-galaxy"), captured.err
    assert captured.out == ""
    return lines[-1]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == EXIT_OK
    shown = capsys.readouterr().out
    for command in ("start", "stop", "status", "test", "install", "run"):
        assert f" {command} " in shown


def test_no_option_takes_a_key_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("start", "test", "install", "run"):
        assert main([command, "--help"]) == EXIT_OK
        assert "--key " not in capsys.readouterr().out
    message = refused(capsys, EXIT_BAD_INPUT, "install", "--url", "http://127.0.0.1:1", "--key", "abc")
    assert "--key" in message


def test_status_and_stop_without_a_server(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "start it with `kbrain-galaxy start`" in refused(capsys, EXIT_BAD_INPUT, "status")
    assert main(["stop"]) == EXIT_OK
    assert "does not run" in capsys.readouterr().err
    assert not folder.exists()  # looking leaves nothing behind


def test_status_after_a_kill_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.mkdir()
    # The id of a process that lives, as when it was given away again: only the lock tells whether a server runs.
    open_instance(folder).process_file.write_text('{"pid": 1, "port": 8080}')
    assert "it was killed" in refused(capsys, EXIT_BAD_INPUT, "status")
    assert read_process(open_instance(folder)) is None


def test_port_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused(capsys, EXIT_BAD_INPUT, "start", "--port", str(port))
    assert f"Port {port} cannot be used" in message
    assert "--port" in message


def test_no_such_port(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such port" in refused(capsys, EXIT_BAD_INPUT, "start", "--port", "70000")


def test_folder_that_cannot_be_written(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    message = refused(capsys, EXIT_RESOURCES, "start", "--folder", str(file / "instance"))
    assert "cannot be written" in message
    assert "--folder" in message


def test_full_disk_is_known_before_the_start(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    assert "0.5 GB left" in refused(capsys, EXIT_RESOURCES, "start")


def test_two_starts_at_a_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.mkdir()
    with open_instance(folder).lock_file.open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "Another `kbrain-galaxy start` is at work" in refused(capsys, EXIT_BAD_INPUT, "start")


def a_galaxy(tmp_path: Path, version: str) -> Path:
    """`bin` of an environment that seems to hold a release of Galaxy."""
    packages = tmp_path / "environment" / "lib" / "python3.11" / "site-packages"
    (packages / "galaxy").mkdir(parents=True)
    (packages / f"galaxy_app-{version}.dist-info").mkdir()
    return tmp_path / "environment" / "bin"


@pytest.fixture
def used_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds the database of a Galaxy 26.1 that KBrain made."""
    (folder / "database").mkdir(parents=True)
    (folder / "database" / "universe.sqlite").write_text("rows")
    instance = open_instance(folder)
    instance.read_secrets()
    instance.version_file.write_text("26.1")
    return folder


def test_a_database_of_a_newer_galaxy_is_refused(
    used_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = a_galaxy(tmp_path, "25.1.3")
    monkeypatch.setattr("kbrain_galaxy.server.ensure_environment", lambda name: programs)
    message = refused(capsys, EXIT_BAD_INPUT, "start", "--port", "0")
    assert "used with Galaxy 26.1" in message
    assert "brings 25.1" in message


def test_a_database_of_an_older_galaxy_is_kept_aside(
    used_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    galaxy = a_galaxy(tmp_path, "27.0.1").parent / "lib" / "python3.11" / "site-packages" / "galaxy"
    instances._check_version(open_instance(used_folder), galaxy)
    assert (used_folder / "database" / "universe-26.1.sqlite").read_text() == "rows"
    assert "brings the database of 26.1 up to date" in capsys.readouterr().err


def test_a_database_that_is_not_ours_is_refused(
    used_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    instance = open_instance(used_folder)
    instance.version_file.unlink()
    instance.secrets_file.unlink()
    programs = a_galaxy(tmp_path, "26.1.2")
    monkeypatch.setattr("kbrain_galaxy.server.ensure_environment", lambda name: programs)
    assert "that KBrain did not make" in refused(capsys, EXIT_BAD_INPUT, "start", "--port", "0")


def test_secrets_can_be_read_by_their_owner_alone(folder: Path) -> None:
    instance = open_instance(folder)
    first = instance.read_secrets()
    assert instance.read_secrets() == first
    assert instance.secrets_file.stat().st_mode & 0o777 == 0o600


def test_unknown_tool(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KBRAIN_GALAXY_KEY", "abc")
    message = refused(capsys, EXIT_BAD_INPUT, "test", "--url", "http://127.0.0.1:1", "--tool", "sew-tiles")
    assert "There is no tool 'kbrain_sew_tiles'" in message
    assert "kbrain_stitch_tiles" in message


def test_what_an_administrator_must_add() -> None:
    tool = packaged_tools()[0]
    bare = ServerCheck(
        version="25.1",
        is_admin=True,
        missing_tools=packaged_tools()[1:],
        other_versions=((tool, "0.0.1"),),
        missing_datatypes=packaged_datatypes(),
        has_viewer=False,
        stripped_reports=(tool.id,),
    )
    assert not bare.complete
    found, text = "\n".join(_findings(bare)), "\n".join(_steps(bare))
    assert f"{tool.id} is there as 0.0.1, the workflows need {tool.version}" in found
    for needed in (
        "tool_config_file",
        "datatypes_config_file",
        "PYTHONPATH",
        "plugins/visualizations",
        "job_conf.yml",
    ):
        assert needed in text
    for line in ("allowlist", tool.id, "kbrain_(stitch_tiles|precompute_volume)"):
        assert line in text
    for path in (word.strip("'") for word in text.split() if word.startswith("'/")):
        assert Path(path.replace("*.xml", "")).exists(), path


def test_nothing_to_add_to_a_complete_server() -> None:
    complete = ServerCheck("26.1", True, (), (), (), True, ())
    assert complete.complete
    assert list(_steps(complete)) == []
    missing = ServerCheck("26.1", False, (PackagedTool("x", "1", "x.xml"),), (), (), True, ())
    assert not missing.complete
    assert "administrator's key" in "\n".join(_findings(missing))
