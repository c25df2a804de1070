"""Start, find and end the embedded Galaxy: SQLite, jobs on this machine, reachable from this machine alone."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kbrain_core.engine import progress, say
from kbrain_core.errors import InputError, ResourceError

from .environment import ensure_environment
from .instance import USER_EMAIL, Instance, prepare, python_path, write_private
from .places import PACKAGE, instance_folder, tool_path

DEFAULT_PORT = 8080
START_LIMIT_S = 300
STOP_LIMIT_S = 90
NEEDED_BYTES = 500_000_000  # of a database and a first small job
BIND_TRIES_S = 2.0  # somebody who only looks holds the lock for a moment


@dataclass(frozen=True)
class Connection:
    """How a Galaxy is reached."""

    url: str
    key: str


@dataclass(frozen=True)
class Process:
    """A server that runs: its process and its port."""

    pid: int
    port: int

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"


def open_instance(folder: Path | None = None) -> Instance:
    """The instance in a folder, or the one that `kbrain-galaxy start` keeps."""
    return Instance((folder or instance_folder()).absolute())


def read_process(instance: Instance) -> Process | None:
    """The server of an instance, if it runs.

    Its process holds the instance's lock as long as it lives, so what a killed one left in `server.json` deceives nobody.
    """
    if not _is_locked(instance):
        return None
    try:
        return Process(**json.loads(instance.process_file.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def read_connection(folder: Path | None = None) -> Connection:
    """Address and key of the embedded Galaxy that runs.

    Parameters
    ----------
    folder : Path, optional
        The instance's folder. Default: where `kbrain-galaxy start` keeps it.

    Raises
    ------
    InputError
        When it does not run.
    """
    instance = open_instance(folder)
    process = read_process(instance)
    if process is None or not instance.key_file.is_file():
        raise InputError("The embedded Galaxy does not run: start it with `kbrain-galaxy start`")
    return Connection(process.url, instance.key_file.read_text().strip())


def start_server(folder: Path | None = None, port: int | None = None) -> Connection:
    """Start the embedded Galaxy, or find the one that runs already.

    Parameters
    ----------
    folder : Path, optional
        Where it keeps its data. Default: the checkout's `.galaxy`, or the user's data folder.
    port : int, optional
        Port on loopback; 0 takes a free one. Default: 8080, or a free one when that is taken.

    Returns
    -------
    Connection
        Its address and the API key of its user.

    Raises
    ------
    InputError
        When the port is taken, or another start is at work.
    ResourceError
        When the folder cannot be written, the disk is full or Galaxy ends while it starts.
    """
    instance = open_instance(folder)
    with _lock(instance) as lock:
        running = read_process(instance) if lock is None else None
        if running is not None:
            say(f"Galaxy runs already (process {running.pid})")
            if port not in (None, 0, running.port):
                raise InputError(
                    f"It serves at port {running.port}, not {port}: stop it first with `kbrain-galaxy stop`"
                )
            return _connect(instance, running)
        if lock is None:
            raise InputError("Another `kbrain-galaxy start` is at work here: wait for it")
        if instance.process_file.exists():
            say(
                "The last server was not stopped but killed, or this computer was switched off; its jobs are looked for"
            )
            instance.process_file.unlink()
        if shutil.disk_usage(instance.folder).free < NEEDED_BYTES:
            raise ResourceError(f"'{instance.folder}' has less than 0.5 GB left: make room, or pass --folder")
        with _bind(port) as listener:
            programs = ensure_environment("galaxy")
            prepare(instance, programs)
            return _connect(instance, _launch(instance, programs, listener, lock))


def stop_server(folder: Path | None = None) -> bool:
    """End the embedded Galaxy. Jobs go on by themselves and are collected at the next start.

    Returns
    -------
    bool
        Whether one was running.
    """
    instance = open_instance(folder)
    process = read_process(instance)
    if process is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_LIMIT_S
        while _is_locked(instance):
            if time.monotonic() > deadline:
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.2)
    instance.process_file.unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def _lock(instance: Instance) -> Iterator[BinaryIO | None]:
    """The instance's lock, which the server's process inherits and keeps; None when somebody has it."""
    try:
        instance.folder.parent.mkdir(parents=True, exist_ok=True)
        instance.folder.mkdir(mode=0o700, exist_ok=True)  # it holds keys and a person's data
        lock = instance.lock_file.open("wb")
    except OSError as error:
        raise ResourceError(
            f"'{instance.folder}' cannot be written ({error.strerror}): choose another folder with --folder"
        ) from error
    with lock:
        deadline = time.monotonic() + BIND_TRIES_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if read_process(instance) is None and time.monotonic() < deadline:
                    time.sleep(0.1)
                    continue
                yield None
            else:
                yield lock
            return


def _is_locked(instance: Instance) -> bool:
    try:
        with instance.lock_file.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _bind(port: int | None) -> socket.socket:
    """A socket at the port, which is ours from now on."""
    for candidate in (DEFAULT_PORT, 0) if port is None else (port,):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", candidate))
        except (OSError, OverflowError) as error:
            listener.close()
            reason = getattr(error, "strerror", None) or "no such port"
        else:
            return listener
    raise InputError(
        f"Port {port} cannot be used ({reason}): choose another one with --port, or 0 for a free one"
    )


def _launch(instance: Instance, programs: Path, listener: socket.socket, lock: BinaryIO) -> Process:
    port: int = listener.getsockname()[1]
    environment = {
        **os.environ,
        "GALAXY_CONFIG_FILE": str(instance.config_file),
        "PATH": tool_path(),
        "PYTHONPATH": python_path(),
        "PYTHONUNBUFFERED": "1",
    }
    with instance.start_log_file.open("wb") as log:
        child = subprocess.Popen(
            [
                programs / "python",
                PACKAGE / "galaxy_modules" / "launcher.py",
                str(instance.process_file),
                str(listener.fileno()),
                str(lock.fileno()),
            ],
            cwd=instance.folder,
            env=environment,
            pass_fds=(listener.fileno(), lock.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    process = Process(child.pid, port)
    with progress("Starting Galaxy", START_LIMIT_S) as advance:
        for _ in range(START_LIMIT_S):
            if child.poll() is not None:
                reason = _last_error(instance.start_log_file)
                raise ResourceError(
                    f"Galaxy ended while it started: {reason} (see {instance.start_log_file})"
                )
            if _answers(process.url):
                child.returncode = 0  # Python shall not warn that it outlives us: it is meant to
                return process
            time.sleep(1)
            advance(1)
    raise ResourceError(f"Galaxy did not answer within {START_LIMIT_S} s: see {instance.log_file}")


def _connect(instance: Instance, process: Process) -> Connection:
    """Wait for a server, which another `start` may have begun a moment ago, and find its user's key."""
    deadline = time.monotonic() + START_LIMIT_S
    while not _answers(process.url):
        if read_process(instance) != process or time.monotonic() > deadline:
            raise ResourceError(f"Galaxy (process {process.pid}) does not answer: see {instance.log_file}")
        time.sleep(1)
    return Connection(process.url, _user_key(instance, process))


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/version", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()[-400:] if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no message")


def _user_key(instance: Instance, process: Process) -> str:
    """The API key of the instance's user, both made at the first start."""
    import secrets

    from bioblend.galaxy import GalaxyInstance

    if instance.key_file.is_file():
        return instance.key_file.read_text().strip()
    admin = GalaxyInstance(process.url, key=instance.read_secrets()["bootstrap_key"])
    users = admin.users.get_users(f_email=USER_EMAIL)
    user = (
        users[0]
        if users
        else admin.users.create_local_user("biologist", USER_EMAIL, secrets.token_urlsafe(24))
    )
    key: str = admin.users.create_user_apikey(user["id"])
    write_private(instance.key_file, key)
    return key
