"""Every tool passes the tests in its form, on the running Galaxy."""

from __future__ import annotations

from kbrain_core.stage import STAGES
from kbrain_galaxy.server import Connection
from kbrain_galaxy.tool_tests import run_tool_tests

from .conftest import RunningGalaxy


def test_every_tool_passes_its_tests(galaxy: RunningGalaxy) -> None:
    results = run_tool_tests(Connection(galaxy.url, galaxy.key))
    failed = [f"{r.tool} #{r.index}: {r.problem or r.job}" for r in results if r.status != "success"]
    assert not failed
    assert {r.tool for r in results} == {f"kbrain_{path.split('.')[1]}" for path in STAGES}
