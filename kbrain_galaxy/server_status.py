"""What the embedded Galaxy does right now."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kbrain_core.errors import InputError, ResourceError

from .server import Connection, open_instance, read_process

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class ServerStatus:
    """A server that runs, and what it has to do."""

    url: str
    pid: int
    version: str
    tools: int
    jobs_running: int
    jobs_waiting: int
    data_bytes: int
    free_bytes: int
    folder: Path
    key_file: Path

    def lines(self) -> list[tuple[str, str]]:
        """Names and values as a person reads them."""
        return [
            ("URL", self.url),
            ("Galaxy", f"{self.version}, process {self.pid}"),
            ("Tools", f"{self.tools} of KBrain"),
            ("Jobs", f"{self.jobs_running} running, {self.jobs_waiting} waiting"),
            ("Data", f"{self.data_bytes / 1e9:.2f} GB, {self.free_bytes / 1e9:.1f} GB left on the disk"),
            ("Folder", str(self.folder)),
            ("API key", f"in {self.key_file}"),
        ]


def read_status(folder: Path | None = None) -> ServerStatus:
    """Ask the embedded Galaxy what it does.

    Parameters
    ----------
    folder : Path, optional
        The instance's folder. Default: where `kbrain-galaxy start` keeps it.

    Raises
    ------
    InputError
        When it does not run.
    ResourceError
        When it runs and does not answer.
    """
    instance = open_instance(folder)
    process = read_process(instance)
    if process is None:
        if instance.process_file.exists():
            raise InputError(
                "The embedded Galaxy does not run; it was killed, or this computer was switched off. Its data are there: "
                "`kbrain-galaxy start` goes on"
            )
        raise InputError("The embedded Galaxy does not run: start it with `kbrain-galaxy start`")
    try:
        connection = Connection(process.url, instance.key_file.read_text().strip())
        return ServerStatus(
            url=process.url,
            pid=process.pid,
            version=_ask(connection, "version")["version_major"],
            tools=sum(tool["id"].startswith("kbrain_") for tool in _ask(connection, "tools?in_panel=false")),
            jobs_running=len(_ask(connection, "jobs?state=running")),
            jobs_waiting=len(_ask(connection, "jobs?state=new&state=queued&state=waiting")),
            data_bytes=int(_ask(connection, "users/current")["total_disk_usage"]),
            free_bytes=shutil.disk_usage(instance.folder).free,
            folder=instance.folder,
            key_file=instance.key_file,
        )
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ResourceError(
            f"Galaxy (process {process.pid}) does not answer at {process.url}: it starts, or see {instance.log_file}"
        ) from error


def _ask(connection: Connection, path: str) -> Any:
    request = urllib.request.Request(f"{connection.url}/api/{path}", headers={"x-api-key": connection.key})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        return json.load(response)
