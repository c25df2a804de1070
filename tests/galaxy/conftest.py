"""One Galaxy for all tests of a run: an embedded one in a folder of its own, or the one that GALAXY_URL names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bioblend.galaxy import GalaxyInstance

from kbrain_galaxy.server import start_server, stop_server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that asks for the running Galaxy, so that a suite can leave them out."""
    for item in items:
        if "galaxy" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.galaxy)


@dataclass(frozen=True)
class RunningGalaxy:
    """A Galaxy that tests may use, each in histories of its own."""

    url: str
    key: str
    client: GalaxyInstance
    folder: Path | None  # of the embedded one


@pytest.fixture(scope="session")
def galaxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGalaxy]:
    """A Galaxy with KBrain's tools, started once and ended after the last test."""
    if os.environ.get("GALAXY_URL"):
        url, key = os.environ["GALAXY_URL"], os.environ["GALAXY_KEY"]
        yield RunningGalaxy(url, key, GalaxyInstance(url, key=key), None)
        return
    folder = tmp_path_factory.mktemp("galaxy")
    connection = start_server(folder, port=0)
    try:
        yield RunningGalaxy(
            connection.url, connection.key, GalaxyInstance(connection.url, key=connection.key), folder
        )
    finally:
        stop_server(folder)
