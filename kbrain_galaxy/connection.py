"""A Galaxy server as KBrain's client sees it: found, checked, asked again when it does not answer, explained in one line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests
from bioblend import ConnectionError as GalaxyAnswerError
from bioblend.galaxy import GalaxyInstance

from kbrain_core.engine import say
from kbrain_core.errors import InputError, KBrainError, ResourceError

from .places import instance_folder
from .server import Connection, read_connection

URL_VARIABLE = "KBRAIN_GALAXY_URL"
KEY_VARIABLE = "KBRAIN_GALAXY_KEY"
OLDEST_GALAXY = (25, 1)
PATIENCE_S = (
    300.0  # how long a server that does not answer is asked again: a restart of Galaxy takes a minute or two
)
TIMEOUT_S = 300.0  # of one answer: Galaxy needs minutes to make a collection of thousands of files
BUSY = (429, 502, 503, 504)  # a server that is restarted or overloaded; it has not done what it was asked
_LOST = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


class UnreachableError(ResourceError):
    """The server does not answer."""


def find_connection(url: str | None = None, key_file: Path | None = None) -> Connection:
    """Address and key of the Galaxy that is meant; keys never stand on a command line, where others could read them.

    Parameters
    ----------
    url : str, optional
        Address of a Galaxy. Default: the variable KBRAIN_GALAXY_URL, or else the embedded Galaxy.
    key_file : Path, optional
        File that holds the API key alone. Default: the variable KBRAIN_GALAXY_KEY.

    Raises
    ------
    InputError
        When there is an address and no key, or no address and the embedded Galaxy does not run.
    """
    address = (url or os.environ.get(URL_VARIABLE) or "").rstrip("/")
    if not address:
        if key_file is not None:
            raise InputError(f"There is a key file but no address: add --url, or set {URL_VARIABLE}")
        return read_connection()
    if not re.match(r"https?://[^/]", address):
        raise InputError(f"'{address}' is no address of a Galaxy: it begins with https:// or http://")
    if key_file is not None:
        try:
            key = key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The key file '{key_file}' cannot be read: {error}") from None
    else:
        key = os.environ.get(KEY_VARIABLE, "").strip() or _embedded_key(address)
    if not key:
        raise InputError(
            f"There is no API key for {address}: make one there under User > Preferences > Manage API Key, and give it "
            f"in a file (--key-file) or in the variable {KEY_VARIABLE}"
        )
    return Connection(address, key)


def _embedded_key(address: str) -> str:
    return read_connection().key if embedded_folder(address) is not None else ""


def embedded_folder(url: str) -> Path | None:
    """Where the Galaxy at an address keeps its data, when it is the embedded one."""
    try:
        embedded = read_connection()
    except KBrainError:
        return None
    return instance_folder() if embedded.url.rstrip("/") == url.rstrip("/") else None


class Server(GalaxyInstance):
    """BioBlend's client that outlives a restart of the server and a lost network.

    Reading is always repeated. What changes something is repeated only when the server surely has not seen it, because
    a second run of a workflow would be worse than an error.
    """

    def __init__(self, url: str, key: str) -> None:
        super().__init__(url, key=key)
        self.timeout = TIMEOUT_S
        self.patience_s = PATIENCE_S

    def make_get_request(self, url: str, **kwargs: Any) -> requests.Response:
        """As BioBlend's, asked again while the server does not answer."""

        def send() -> requests.Response:
            return super(Server, self).make_get_request(url, **kwargs)

        answer: requests.Response = self.repeat(send, changes=False)
        return answer

    def make_post_request(self, *args: Any, **kwargs: Any) -> Any:
        """As BioBlend's, asked again while the server cannot be reached."""

        def send() -> Any:
            return super(Server, self).make_post_request(*args, **kwargs)

        return self.repeat(send, changes=True)

    def read(self, path: str, **parameters: Any) -> Any:
        """The decoded answer to a GET of what BioBlend has no method for."""
        response = self.make_get_request(f"{self.url}/{path}", params=parameters or None)
        if response.status_code != 200:
            raise GalaxyAnswerError(
                f"Unexpected HTTP status code: {response.status_code}", response.text, response.status_code
            )
        return response.json()

    def repeat(self, send: Callable[[], Any], *, changes: bool) -> Any:
        """Call `send` until the server answers, with growing pauses, for `patience_s` at most."""
        deadline = time.monotonic() + self.patience_s
        pause = 0.5
        while True:
            try:
                answer = send()
                if not (isinstance(answer, requests.Response) and answer.status_code in BUSY):
                    return answer
                error: Exception = GalaxyAnswerError("busy", answer.text, answer.status_code)
            except _LOST as lost:
                if changes and not _never_arrived(lost):
                    raise
                error = lost
            except GalaxyAnswerError as answered:
                if answered.status_code not in (429, 503):
                    raise
                error = answered
            if time.monotonic() + pause > deadline:
                raise error
            if pause == 0.5 and self.patience_s >= 60:
                say(f"{self.base_url} does not answer; asking again for {self.patience_s / 60:.0f} minutes")
            time.sleep(pause)
            pause = min(2 * pause, 20.0)


def _never_arrived(error: Exception) -> bool:
    return isinstance(error, requests.ConnectTimeout) or "Failed to establish a new connection" in str(error)


def open_server(connection: Connection) -> Server:
    """Check that a Galaxy new enough answers at the address and knows the key.

    Raises
    ------
    InputError
        When the address is no Galaxy, the Galaxy too old, or the key wrong.
    UnreachableError
        When nothing answers.
    """
    server = Server(connection.url, connection.key)
    server.patience_s = 0.0  # a wrong address is told at once
    with plain_errors(connection.url):
        response = server.make_get_request(f"{server.url}/version")
        try:
            major = str(response.json()["version_major"])
            version = tuple(int(part) for part in major.split(".")[:2])
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"What answers at {connection.url} is no Galaxy (status {response.status_code}): check the address"
            ) from None
        if version < OLDEST_GALAXY:
            wanted = ".".join(map(str, OLDEST_GALAXY))
            raise InputError(
                f"The Galaxy at {connection.url} is version {major}: KBrain needs {wanted} or newer"
            )
        server.users.get_current_user()
    server.patience_s = PATIENCE_S
    return server


@contextlib.contextmanager
def plain_errors(url: str) -> Iterator[None]:
    """Turn what BioBlend and requests raise into one line that says what to do."""
    try:
        yield
    except GalaxyAnswerError as error:
        raise _explain_answer(error, url) from error
    except _LOST as error:
        reason = re.findall(
            r"(Connection refused|timed out|Name or service not known|[Cc]ertificate[^'\")]*)", str(error)
        )
        raise UnreachableError(
            f"Galaxy at {url} does not answer ({reason[-1] if reason else type(error).__name__}): check the address and "
            "whether it runs (the embedded one: `kbrain-galaxy status`), then run the same command again to go on"
        ) from error


def _explain_answer(error: GalaxyAnswerError, url: str) -> KBrainError:
    message = answer_text(error.body)
    if error.status_code == 401 or (error.status_code in (400, 403) and "api key" in message.lower()):
        return InputError(
            f"Galaxy at {url} does not know this API key: make a new one there under User > Preferences > Manage API Key"
        )
    if re.search(r"No space left|disk full|database or disk is full|quota", message, re.IGNORECASE):
        return ResourceError(f"Galaxy at {url} has no room left: {message}")
    return KBrainError(f"Galaxy at {url} refused ({error.status_code}): {message}")


def answer_text(body: bytes | str | None) -> str:
    """What Galaxy said, out of the body of its answer."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else body or "no reason given"
    try:
        said = json.loads(text)
        text = str(said.get("err_msg") or said.get("detail") or text)
    except (ValueError, AttributeError):
        text = re.sub(r"<[^>]+>", " ", text)
    return " ".join(text.split())[:500]
