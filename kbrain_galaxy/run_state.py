"""How far a run has come: a small file in its output folder, from which a killed client goes on."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kbrain_core.errors import InputError, OutputExistsError, ResourceError
from kbrain_core.store import atomic_path, remove_leftovers

STATE_NAME = ".kbrain-galaxy.json"
VERSION = 1
SAVE_EVERY_S = 2.0  # thousands of small tiles would otherwise write the file thousands of times


@dataclass
class UploadState:
    """What is known of one file: which content it had, where its bytes go, and the dataset it became."""

    fingerprint: str
    size: int
    changed_ns: int
    session: str | None = None
    dataset: str | None = None


@dataclass
class RunState:
    """What a run has done so far. The key of the server is never part of it.

    `request` is what was asked for; `failure` what was told about a run that failed, so that the same command starts anew.
    """

    url: str = ""
    history: str | None = None
    request: dict[str, Any] | None = None
    invocation: str | None = None
    failure: str | None = None
    uploads: dict[str, UploadState] = field(default_factory=dict)
    collections: dict[str, dict[str, Any]] = field(default_factory=dict)
    fetched: dict[str, dict[str, Any]] = field(default_factory=dict)


class StateFile:
    """The state of the run that writes to `folder`, read when it is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / STATE_NAME
        self.lock = threading.RLock()
        self._saved_at = 0.0
        self.run = self._read()

    def _read(self) -> RunState:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return RunState()
        except (OSError, ValueError) as error:
            raise InputError(f"'{self.path}' cannot be read ({error}): remove it to start anew") from None
        if not isinstance(found, dict) or found.pop("version", None) != VERSION:
            raise InputError(
                f"'{self.path}' was written by another version of KBrain: choose another --output"
            )
        try:
            uploads = {name: UploadState(**entry) for name, entry in found.pop("uploads").items()}
            return RunState(uploads=uploads, **found)
        except (TypeError, KeyError, AttributeError):
            raise InputError(f"'{self.path}' is damaged: remove it to start anew") from None

    def belongs_to(self, url: str) -> None:
        """Check that the folder is free or holds a run on the same server.

        Raises
        ------
        OutputExistsError
            When it holds a run on another server.
        """
        if self.run.url and self.run.url != url:
            raise OutputExistsError(
                f"'{self.folder}' holds a run on {self.run.url}, not {url}: choose another --output"
            )
        self.run.url = url

    def save(self) -> None:
        """Write the state, whole or not at all."""
        with self.lock:
            text = json.dumps({"version": VERSION, **asdict(self.run)}, indent=1, ensure_ascii=False)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                remove_leftovers(self.path)
                with atomic_path(self.path) as temporary:
                    temporary.write_text(text + "\n", encoding="utf-8")
            except OSError as error:
                raise ResourceError(
                    f"'{self.folder}' cannot be written ({error.strerror}): choose another --output"
                ) from error
            self._saved_at = time.monotonic()

    def save_soon(self) -> None:
        """Write the state unless that was done a moment ago."""
        with self.lock:
            if time.monotonic() - self._saved_at > SAVE_EVERY_S:
                self.save()
