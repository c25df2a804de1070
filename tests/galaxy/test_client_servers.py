"""The client against servers made for the test: too old, restarting, full; and what is sent to them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kbrain_core.errors import InputError, ResourceError
from kbrain_galaxy import connection as connections
from kbrain_galaxy.connection import Server, UnreachableError, find_connection, open_server
from kbrain_galaxy.resumable import CHUNK_BYTES, ResumableUpload
from kbrain_galaxy.server import Connection
from kbrain_galaxy.transfers import Transfers

# ---------------------------------------------------------------------------------------------------------- transfers


def test_the_first_failure_ends_all_transfers_and_is_told() -> None:
    """The file that is waited for goes on for ever, the third one fails: its error is told at once."""
    begun: list[int] = []

    def forever() -> None:
        while True:
            time.sleep(0.01)
            transfers.advance(1)

    def fail() -> None:
        time.sleep(0.2)  # the others are under way
        raise ResourceError("no room")

    told: list[int] = []
    with pytest.raises(ResourceError, match="no room"), Transfers(told.append) as transfers:
        first, *_ = [transfers.start(job) for job in (forever, forever, fail, lambda: begun.append(1))]
        transfers.wait(first)
    assert sum(told) > 0
    assert not begun


# ------------------------------------------------------------------------------------------------ a server of our own

Answer = Callable[[BaseHTTPRequestHandler, bytes], tuple[int, dict[str, str], bytes]]


@contextmanager
def serve(answer: Answer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, content = answer(self, body)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_HEAD = handle_one

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def galaxy_answers(version: str, *, user: int = 200) -> Answer:
    def answer(request: BaseHTTPRequestHandler, _: bytes) -> tuple[int, dict[str, str], bytes]:
        if request.path == "/api/version":
            return 200, {}, json.dumps({"version_major": version}).encode()
        return user, {}, b'{"err_msg": "Provided API key is not valid.", "id": "1"}'

    return answer


def test_servers_that_will_not_do() -> None:
    with (
        serve(galaxy_answers("24.2")) as url,
        pytest.raises(InputError, match=r"version 24\.2: KBrain needs 25\.1 or newer"),
    ):
        open_server(Connection(url, "k"))
    with (
        serve(galaxy_answers("26.1", user=401)) as url,
        pytest.raises(InputError, match="does not know this API key"),
    ):
        open_server(Connection(url, "k"))
    with serve(lambda *_: (200, {}, b"<html>")) as url, pytest.raises(InputError, match="is no Galaxy"):
        open_server(Connection(url, "k"))
    with pytest.raises(UnreachableError, match=r"does not answer \(Connection refused\)"):
        open_server(Connection("http://127.0.0.1:9", "k"))
    with serve(galaxy_answers("25.1")) as url:
        assert open_server(Connection(url, "k")).patience_s == connections.PATIENCE_S


def test_a_server_that_restarts_is_asked_again() -> None:
    asked: list[str] = []

    def answer(request: BaseHTTPRequestHandler, _: bytes) -> tuple[int, dict[str, str], bytes]:
        asked.append(request.path)
        return (503, {}, b"") if len(asked) < 3 else (200, {}, b'{"version_major": "26.1"}')

    with serve(answer) as url:
        server = Server(url, "k")
        assert server.read("version") == {"version_major": "26.1"}
    assert len(asked) == 3


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KBRAIN_GALAXY_FOLDER", str(tmp_path / "no instance"))
    monkeypatch.delenv("KBRAIN_GALAXY_URL", raising=False)
    monkeypatch.delenv("KBRAIN_GALAXY_KEY", raising=False)
    (tmp_path / "key").write_text("secret\n")
    assert find_connection("https://g.org/", tmp_path / "key") == Connection("https://g.org", "secret")
    with pytest.raises(InputError, match=r"no API key for https://g\.org"):
        find_connection("https://g.org")
    with pytest.raises(InputError, match="no address of a Galaxy"):
        find_connection("g.org")
    with pytest.raises(InputError, match="kbrain-galaxy start"):
        find_connection()
    monkeypatch.setenv("KBRAIN_GALAXY_URL", "https://g.org")
    monkeypatch.setenv("KBRAIN_GALAXY_KEY", "other")
    assert find_connection() == Connection("https://g.org", "other")


class TusStore:
    """An upload server that takes `capacity` bytes in all, and loses some answers and some sessions."""

    def __init__(self, capacity: int = 10**9, lose_answers: int = 0) -> None:
        self.content: dict[str, bytearray] = {}
        self.length: dict[str, int] = {}
        self.received = 0
        self._capacity, self._lose = capacity, lose_answers

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        name = request.path.rpartition("/")[2]
        if request.command == "POST":
            name = f"s{len(self.content)}"
            self.content[name], self.length[name] = bytearray(), int(request.headers["Upload-Length"])
            return 201, {"Location": f"{request.path}/{name}"}, b""
        if name not in self.content:
            return 404, {}, b""
        held = self.content[name]
        if request.command == "HEAD":
            return 200, {"Upload-Offset": str(len(held)), "Upload-Length": str(self.length[name])}, b""
        if int(request.headers["Upload-Offset"]) != len(held):
            return 409, {}, b"Offset mismatch"
        room = max(0, self._capacity - self.received)
        held += body[:room]
        self.received += min(len(body), room)
        if self._lose:
            self._lose -= 1
            return 502, {}, b""
        return 204, {"Upload-Offset": str(len(held))}, b""


def send(url: str, path: Path, session: str | None = None) -> tuple[str, list[str]]:
    sessions: list[str] = []
    return ResumableUpload(Server(url, "k"), path, session, sessions.append).send(lambda _: None), sessions


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    path = tmp_path / "big.tif"
    path.write_bytes(bytes(range(256)) * (CHUNK_BYTES // 256 * 2) + b"end")
    return path


def test_a_file_arrives_whole_though_answers_are_lost(big_file: Path) -> None:
    store = TusStore(lose_answers=2)
    with serve(store.answer) as url:
        session, sessions = send(url, big_file)
    assert sessions == [session]
    assert bytes(store.content["s0"]) == big_file.read_bytes()
    assert store.received == big_file.stat().st_size


def test_only_what_is_missing_is_sent(big_file: Path) -> None:
    store = TusStore()
    store.content["s0"], store.length["s0"] = (
        bytearray(big_file.read_bytes()[:12345]),
        big_file.stat().st_size,
    )
    with serve(store.answer) as url:
        session, sessions = send(url, big_file, f"{url}/api/upload/resumable_upload/s0")
    assert session.endswith("/s0")
    assert sessions == []
    assert store.received == big_file.stat().st_size - 12345
    assert bytes(store.content["s0"]) == big_file.read_bytes()


def test_a_session_that_the_server_forgot_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "empty.tif"
    path.touch()  # a file without bytes needs a session too
    store = TusStore()
    with serve(store.answer) as url:
        session, sessions = send(url, path, f"{url}/api/upload/resumable_upload/gone")
    assert sessions == [session]


def test_a_full_disk_ends_the_upload(big_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kbrain_galaxy.resumable.time.sleep", lambda _: None)
    with serve(TusStore(capacity=1000).answer) as url, pytest.raises(ResourceError, match="its disk is full"):
        send(url, big_file)
