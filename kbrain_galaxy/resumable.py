"""Send a file to Galaxy in pieces, by the TUS protocol, so that what was sent before a failure is not sent again.

BioBlend's own uploader knows a file by its first 64 KB: two tiles with the same header would become one. It also waits
for ever on a lost network, and for ever on a full disk, where the server takes nothing and reports no error.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urljoin

import requests

from kbrain_core.errors import InputError, ResourceError

from .connection import BUSY, Server

CHUNK_BYTES = 8 * 1024 * 1024
TIMEOUT_S = (20.0, 120.0)
STALLS = 5  # how often a piece is sent again before it is given up
_GONE = (400, 404, 410)  # the server keeps half a file for some days
_MOVED = 409  # another offset than the server's
_TOO_LARGE = 413


class ResumableUpload:
    """One file on its way to the server.

    Parameters
    ----------
    server : Server
        The Galaxy.
    path : Path
        The file.
    session : str or None
        Where an earlier attempt sent its bytes.
    started : callable
        Is called with the session as soon as there is one, so that it can be kept.
    """

    def __init__(
        self, server: Server, path: Path, session: str | None, started: Callable[[str], None]
    ) -> None:
        self._server = server
        self._path = path
        self._size = path.stat().st_size
        self._session = session
        self._started = started
        self._http = requests.Session()
        self._http.headers.update({"Tus-Resumable": "1.0.0", "x-api-key": server.key or ""})

    def send(self, advance: Callable[[int], None]) -> str:
        """Send what the server has not got yet.

        Parameters
        ----------
        advance : callable
            Is called with the number of bytes that are there, as they arrive.

        Returns
        -------
        str
            The session, by which Galaxy finds the file.

        Raises
        ------
        ResourceError
            When the server takes no more bytes.
        InputError
            When the file changes while it is sent.
        """
        with self._http, self._path.open("rb") as stream:
            offset = self._resume()
            advance(offset)
            stalled = 0
            while offset < self._size:
                stream.seek(offset)
                chunk = stream.read(CHUNK_BYTES)
                if not chunk:
                    raise InputError(
                        f"'{self._path}' became shorter while it was sent: run the same command again"
                    )
                reached = self._send_chunk(chunk, offset)
                stalled = stalled + 1 if reached == offset else 0
                if stalled == STALLS:
                    self._no_room()
                time.sleep(stalled)
                advance(reached - offset)
                offset = reached
        assert self._session is not None
        return self._session

    def _resume(self) -> int:
        """How many bytes the server has; a new session when it has forgotten the old one."""
        if self._session is not None:
            answer = self._ask("HEAD", self._session)
            if answer.status_code < 300 and int(answer.headers.get("Upload-Length", -1)) == self._size:
                return int(answer.headers["Upload-Offset"])
            if answer.status_code >= 300 and answer.status_code not in _GONE:
                self._refuse(answer)
        metadata = ",".join(f"{key} {_encoded(value)}" for key, value in self._metadata().items())
        address = f"{self._server.url}/upload/resumable_upload"
        headers = {"Upload-Length": str(self._size), "Upload-Metadata": metadata}
        answer = self._ask("POST", address, headers=headers)
        if answer.status_code != 201 or "Location" not in answer.headers:
            self._refuse(answer)
        self._session = urljoin(address, answer.headers["Location"])
        self._started(self._session)
        return 0

    def _metadata(self) -> dict[str, str]:
        # the server does not tell how far an upload is when it lacks one of these
        return {"filename": self._path.name, "filetype": "application/octet-stream"}

    def _send_chunk(self, chunk: bytes, offset: int) -> int:
        """Send a piece; the offset that is reached, asked for when the answer was lost."""
        assert self._session is not None
        headers = {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
        try:
            answer = self._http.patch(self._session, data=chunk, headers=headers, timeout=TIMEOUT_S)
        except requests.RequestException:
            answer = None
        if answer is not None and answer.status_code == 204:
            return int(answer.headers["Upload-Offset"])
        if answer is not None and "No space left" in answer.text:
            self._no_room()
        if answer is not None and answer.status_code not in (*BUSY, _MOVED, 500):
            self._refuse(answer)
        answer = self._ask("HEAD", self._session)
        if answer.status_code >= 300:
            self._refuse(answer)
        return int(answer.headers["Upload-Offset"])

    def _no_room(self) -> None:
        raise ResourceError(
            f"Galaxy at {self._server.base_url} takes no more bytes of '{self._path.name}': its disk is full? Make room "
            "there and run the same command again"
        )

    def _ask(self, method: str, address: str, headers: dict[str, str] | None = None) -> requests.Response:
        def send() -> requests.Response:
            return self._http.request(method, address, headers=headers, timeout=TIMEOUT_S)

        answer: requests.Response = self._server.repeat(send, changes=False)
        return answer

    def _refuse(self, answer: requests.Response) -> None:
        from bioblend import ConnectionError as GalaxyAnswerError

        if answer.status_code == _TOO_LARGE:
            raise ResourceError(
                f"'{self._path.name}' ({self._size / 1e9:.1f} GB) is larger than {self._server.base_url} takes: ask its "
                "administrator to raise maximum_upload_file_size, or give a URL"
            )
        raise GalaxyAnswerError("upload refused", answer.text, answer.status_code)


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "replace")).decode("ascii")
