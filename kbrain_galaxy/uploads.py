"""Bring files into a Galaxy history: each once, several at a time, and on from where a killed client was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kbrain_core.engine import progress, say
from kbrain_core.errors import CheckFailedError, InputError, ResourceError
from kbrain_core.store import fingerprint, require_disk

from .connection import Server, embedded_folder
from .progress_display import bytes_progress
from .resumable import CHUNK_BYTES, ResumableUpload
from .run_state import StateFile, UploadState
from .sources import Element, SourceFile
from .transfers import Transfers

BATCH_FILES = 50  # files that one Galaxy job takes in: few jobs, and not much to do again after a failure
BATCH_BYTES = 10**9
FIRST_POLL_S, LAST_POLL_S = 0.5, 5.0
_UNFINISHED = ("new", "upload", "queued", "running", "setting_metadata")
_GOOD = ("ok", "empty", "deferred", "failed_metadata")


@dataclass(frozen=True)
class Upload:
    """A file and what becomes of it: its key in the run's state, its datatype, and what its content is known by."""

    key: str
    file: SourceFile
    extension: str
    size: int
    changed_ns: int
    fingerprint: str
    deferred: bool = False

    @property
    def identity(self) -> str:
        """What must be the same for a file not to be uploaded again."""
        return f"{self.fingerprint} as {self.extension}"


def make_upload(
    key: str, file: SourceFile, extension: str, known: UploadState | None, *, deferred: bool
) -> Upload:
    """Look at a file; its content is read only when size or time of change differ from what is known."""
    if file.path is None:
        return Upload(key, file, extension, 0, 0, f"url:{file.place}", deferred)
    status = file.path.stat()
    if known is not None and (known.size, known.changed_ns) == (status.st_size, status.st_mtime_ns):
        content = known.fingerprint.partition(" as ")[0]
    else:
        content = fingerprint(file.path)
    return Upload(key, file, extension, status.st_size, status.st_mtime_ns, content, deferred)


class HistoryUploads:
    """The files of one run in its history.

    Parameters
    ----------
    server : Server
        The Galaxy.
    state : StateFile
        Of the run; knows the history.
    """

    def __init__(self, server: Server, state: StateFile) -> None:
        self._server = server
        self._state = state
        self._history = state.run.history or ""

    def upload(self, uploads: Sequence[Upload]) -> dict[str, str]:
        """Send files, have Galaxy take them in, and wait until it has.

        Parameters
        ----------
        uploads : sequence of Upload
            The files. Those that are in the history already, with the same name, size and content, are not sent again.

        Returns
        -------
        dict of str to str
            The dataset of each file, by key.

        Raises
        ------
        CheckFailedError
            When Galaxy cannot take a file in.
        ResourceError
            When the quota or the disk does not suffice.
        """
        there = self._datasets_there()
        todo = [upload for upload in uploads if not self._is_there(upload, there)]
        if len(todo) < len(uploads):
            say(f"{len(uploads) - len(todo)} of {len(uploads)} files are in the history already")
        if todo:
            self._check_room(sum(upload.size for upload in todo))
            self._send(todo)
        self._wait(uploads)
        return {upload.key: self._entry(upload).dataset or "" for upload in uploads}

    def _entry(self, upload: Upload) -> UploadState:
        return self._state.run.uploads[upload.key]

    def _datasets_there(self) -> set[str]:
        contents = self._server.histories.show_history(self._history, contents=True)
        return {
            item["id"]
            for item in contents
            if item["history_content_type"] == "dataset" and not item["deleted"] and item["state"] != "error"
        }

    def _is_there(self, upload: Upload, there: set[str]) -> bool:
        """Whether the dataset of this very content is in the history; forget what is known of another content."""
        known = self._state.run.uploads.get(upload.key)
        if known is None or known.fingerprint != upload.identity:
            self._state.run.uploads[upload.key] = UploadState(upload.identity, upload.size, upload.changed_ns)
            return False
        if known.dataset is not None and known.dataset not in there:
            known.dataset = known.session = None
        return known.dataset is not None

    def _check_room(self, needed: int) -> None:
        folder = embedded_folder(self._server.base_url)
        if folder is not None:
            require_disk(folder, needed)
        user = self._server.users.get_current_user()
        quota = user.get("quota_bytes")
        if quota is not None and user["total_disk_usage"] + needed > quota:
            left = max(0, quota - user["total_disk_usage"])
            raise ResourceError(
                f"The files have {needed / 1e9:.2f} GB and {left / 1e9:.2f} GB of your quota on {self._server.base_url} are "
                "left: delete histories there, or ask for more"
            )

    def _send(self, todo: Sequence[Upload]) -> None:
        total = sum(upload.size for upload in todo)
        say(f"Uploading {len(todo)} {'file' if len(todo) == 1 else 'files'} ({total / 1e6:.1f} MB)")
        try:
            with bytes_progress("Uploading", total) as advance, Transfers(advance) as transfers:
                sent = {upload.key: transfers.start(self._sender(upload, transfers)) for upload in todo}
                for batch in batches(todo):
                    for upload in batch:
                        transfers.wait(sent[upload.key])
                    self._fetch(batch)
        finally:
            self._state.save()

    def _sender(self, upload: Upload, transfers: Transfers) -> Callable[[], None]:
        def send() -> None:
            if upload.file.path is not None:
                self._send_one(upload, upload.file.path, transfers.advance)

        return send

    def _send_one(self, upload: Upload, path: Path, advance: Callable[[int], None]) -> None:
        entry = self._entry(upload)

        def keep(session: str) -> None:
            entry.session = session
            if upload.size > CHUNK_BYTES:
                self._state.save()
            else:
                self._state.save_soon()

        transfer = ResumableUpload(self._server, path, entry.session, keep)
        transfer.send(advance)

    def _fetch(self, batch: Sequence[Upload]) -> None:
        """Have Galaxy make datasets of files that were sent, and of URLs."""
        payload: dict[str, Any] = {"history_id": self._history, "auto_decompress": False}
        sent = [upload for upload in batch if upload.file.path is not None]
        for number, upload in enumerate(sent):
            session = (self._entry(upload).session or "").rpartition("/")[2]
            payload[f"files_{number}|file_data"] = {"session_id": session, "name": upload.file.parts[-1]}
        elements = [self._element(upload) for upload in batch]
        payload["targets"] = [{"destination": {"type": "hdas"}, "elements": elements}]
        answer = self._server.make_post_request(f"{self._server.url}/tools/fetch", payload=payload)
        for upload, dataset in zip(batch, answer["outputs"], strict=True):
            entry = self._entry(upload)
            entry.dataset, entry.session = dataset["id"], None
        self._state.save()

    def _element(self, upload: Upload) -> dict[str, Any]:
        element: dict[str, Any] = {
            "name": upload.file.name,
            "ext": upload.extension,
            "auto_decompress": False,
        }
        if upload.file.path is None:
            return {**element, "src": "url", "url": str(upload.file.place), "deferred": upload.deferred}
        kind, _, digest = upload.fingerprint.partition(":")
        if kind == "sha256":  # Galaxy compares it with what arrived
            element["hashes"] = [{"hash_function": "SHA-256", "hash_value": digest}]
        return {**element, "src": "files"}

    def _wait(self, uploads: Sequence[Upload]) -> None:
        by_dataset = {self._entry(upload).dataset: upload for upload in uploads}
        states = self._states(by_dataset)
        with progress("Galaxy takes the files in", len(by_dataset)) as advance:
            done, pause = 0, FIRST_POLL_S
            while True:
                finished = sum(state not in _UNFINISHED for state in states.values())
                advance(finished - done)
                done = finished
                bad = next(
                    (key for key, state in states.items() if state not in (*_UNFINISHED, *_GOOD)), None
                )
                if bad is not None:
                    self._refuse(by_dataset[bad], bad, states[bad])
                if finished == len(by_dataset):
                    return
                time.sleep(pause)
                pause = min(1.3 * pause, LAST_POLL_S)
                states = self._states(by_dataset)

    def _states(self, wanted: Iterable[str | None]) -> dict[str | None, str]:
        contents = self._server.histories.show_history(self._history, contents=True)
        found = {item["id"]: item["state"] for item in contents if item["history_content_type"] == "dataset"}
        return {dataset: found.get(dataset, "deleted") for dataset in wanted}

    def _refuse(self, upload: Upload, dataset: str | None, state: str) -> None:
        details = self._server.datasets.show_dataset(dataset or "")
        reason = " ".join((details.get("misc_info") or f"its dataset is {state}").split())
        if "quota" in reason:
            raise ResourceError(f"Galaxy holds '{upload.file.name}' back: {reason}")
        raise CheckFailedError(f"Galaxy could not take '{upload.file.name}' in: {reason}")

    def collection(self, label: str, kind: str, elements: Sequence[Element], datasets: Sequence[str]) -> str:
        """Make a collection of datasets, or find the one that was made of the same before.

        Parameters
        ----------
        label : str
            Name of the collection: the input it is for.
        kind : str
            `list` or `list:list`.
        elements : sequence of Element
            Names of the datasets.
        datasets : sequence of str
            The datasets, in the same order.

        Returns
        -------
        str
            The collection.
        """
        members = nested(
            [(element.identifiers, dataset) for element, dataset in zip(elements, datasets, strict=True)]
        )
        known = self._state.run.collections.get(label)
        if known is not None and known["kind"] == kind and known["members"] == members:
            return str(known["id"])
        payload = {
            "type": "dataset_collection",
            "name": label,
            "collection_type": kind,
            "element_identifiers": members,
            "copy_elements": False,  # a second dataset for each tile would only fill the history
            "hide_source_items": True,
        }
        url = f"{self._server.url}/histories/{self._history}/contents"
        answer = self._server.make_post_request(url, payload=payload)
        self._state.run.collections[label] = {"id": answer["id"], "kind": kind, "members": members}
        self._state.save()
        return str(answer["id"])


def batches(uploads: Sequence[Upload]) -> Iterator[list[Upload]]:
    """Groups of files, in order, of at most 50 files and 1 GB; a larger file is a group of its own."""
    batch: list[Upload] = []
    size = 0
    for upload in uploads:
        if batch and (len(batch) == BATCH_FILES or size + upload.size > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(upload)
        size += upload.size
    if batch:
        yield batch


def nested(members: Sequence[tuple[tuple[str, ...], str]]) -> list[dict[str, Any]]:
    """Names and datasets as Galaxy wants them for a collection, sections as collections in it."""
    result: list[dict[str, Any]] = []
    sections: dict[str, list[dict[str, Any]]] = {}
    for identifiers, dataset in members:
        home = result
        if len(identifiers) > 1:
            section = identifiers[0]
            if section not in sections:
                sections[section] = []
                result.append(
                    {
                        "src": "new_collection",
                        "collection_type": "list",
                        "name": section,
                        "element_identifiers": sections[section],
                    }
                )
            home = sections[section]
        home.append({"src": "hda", "id": dataset, "name": identifiers[-1]})
    return result


def check_type(name: str, extension: str | None, label: str, wants: str) -> str:
    """The datatype of a file, refused when the input does not take it.

    Raises
    ------
    InputError
        When there is none.
    """
    if extension is None:
        raise InputError(f"'{name}' is not what input '{label}' takes ({wants}): give another file")
    return extension
