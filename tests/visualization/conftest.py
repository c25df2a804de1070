"""A real server on a free port, with a record of what it was asked for."""

from __future__ import annotations

import contextlib
import http.client
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from kbrain_core.visualization.serve import listen, make_app

sys.path.insert(0, str(Path(__file__).parent))  # viewer_volumes


@dataclass
class Requested:
    """One answered request."""

    method: str
    path: str
    status: int
    body_bytes: int


@dataclass
class RunningServer:
    port: int
    requests: list[Requested] = field(default_factory=list)
    folder: str = ""  # of the page, below the root

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/{self.folder}"

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower-case names) and body; the path is sent as it is written."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()


def _recording(app: Any, requests: list[Requested]) -> Any:
    async def recorded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        entry = Requested(scope["method"], scope["path"], 0, 0)
        requests.append(entry)

        async def count(message: Any) -> None:
            entry.status = message.get("status", entry.status)
            entry.body_bytes += len(message.get("body", b""))
            await send(message)

        await app(scope, receive, count)

    return recorded


@contextlib.contextmanager
def run_server(folder: Path) -> Iterator[RunningServer]:
    listener = listen("127.0.0.1", 0)
    running = RunningServer(listener.getsockname()[1])
    app = _recording(make_app(folder), running.requests)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server stopped before it answered"
        time.sleep(0.01)
    try:
        yield running
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()


@pytest.fixture(scope="session")
def serving() -> Callable[[Path], contextlib.AbstractContextManager[RunningServer]]:
    """Serve a folder inside a `with` block."""
    return run_server
