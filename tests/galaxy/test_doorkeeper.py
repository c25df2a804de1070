"""Who may talk to the embedded Galaxy, which has no login."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import kbrain_galaxy

OURS = "127.0.0.1:8080"


@pytest.fixture(scope="module")
def doorkeeper() -> ModuleType:
    """The module as Galaxy loads it: by its file, since it is no part of the package's own environment."""
    path = Path(kbrain_galaxy.__file__).parent / "galaxy_modules" / "doorkeeper.py"
    specification = importlib.util.spec_from_file_location("doorkeeper", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def client() -> Iterator[tuple[str, int]]:
    """Address of this process's end of a connection over loopback."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as end,
    ):
        yield end.getsockname()


def request(client: tuple[str, int], **headers: str) -> dict[str, Any]:
    pairs = [
        (name.replace("_", "-").encode(), value.encode()) for name, value in {"host": OURS, **headers}.items()
    ]
    return {"type": "http", "method": "GET", "headers": pairs, "client": client}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "localhost:8080"},
        {"host": "localhost:9000"},  # a tunnel made with ssh -L 9000:127.0.0.1:8080
        {"origin": f"http://{OURS}", "sec_fetch_site": "same-origin", "sec_fetch_mode": "cors"},
        {"sec_fetch_site": "none", "sec_fetch_mode": "navigate"},  # typed into the address bar
        {
            "sec_fetch_site": "cross-site",
            "sec_fetch_mode": "navigate",
        },  # a link in a document that was clicked
    ],
)
def test_own_programs_and_pages_pass(
    doorkeeper: ModuleType, client: tuple[str, int], headers: dict[str, str]
) -> None:
    assert doorkeeper.refusal(request(client, **headers)) is None


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        (
            {"host": "evil.example:8080"},
            "not as 'evil.example:8080'",
        ),  # a name that its owner let point to 127.0.0.1
        ({"host": "127.0.0.1.evil.example"}, "not as"),
        ({"host": ""}, "not as"),
        ({"origin": "https://evil.example"}, "another origin"),
        ({"origin": "null"}, "another origin"),
        ({"origin": "http://127.0.0.1:9999"}, "another origin"),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}, "another site"),  # an image or a form
        ({"sec_fetch_site": "same-site", "sec_fetch_mode": "no-cors"}, "another site"),
    ],
)
def test_pages_of_others_are_refused(
    doorkeeper: ModuleType, client: tuple[str, int], headers: dict[str, str], reason: str
) -> None:
    assert reason in doorkeeper.refusal(request(client, **headers))


def test_a_form_of_another_site_is_refused_though_it_navigates(
    doorkeeper: ModuleType, client: tuple[str, int]
) -> None:
    scope = {**request(client, sec_fetch_site="cross-site", sec_fetch_mode="navigate"), "method": "POST"}
    assert "another site" in doorkeeper.refusal(scope)


def test_other_peoples_processes_are_refused(
    doorkeeper: ModuleType, client: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doorkeeper.user_of(*client) == os.getuid()
    monkeypatch.setattr(doorkeeper, "ALLOWED_USERS", (os.getuid() + 1,))
    assert "another person" in doorkeeper.refusal(request(client))
    assert doorkeeper.user_of("10.1.2.3", 1) is None  # no such connection: refused too


def test_a_refusal_is_403_with_the_reason(doorkeeper: ModuleType, client: tuple[str, int]) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def never(*_: Any) -> None:
        raise AssertionError("the request was handed on")

    asyncio.run(doorkeeper.Doorkeeper(never)(request(client, host="evil.example"), never, send))
    assert sent[0]["status"] == 403
    assert b"evil.example" in sent[1]["body"]
    sent.clear()
    websocket = {**request(client, origin="https://evil.example"), "type": "websocket"}
    asyncio.run(doorkeeper.Doorkeeper(never)(websocket, never, send))
    assert sent[0]["type"] == "websocket.close"
