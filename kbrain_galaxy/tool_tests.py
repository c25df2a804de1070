"""Every tool's own tests, run by Galaxy's test code against a server."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from kbrain_core.engine import progress
from kbrain_core.errors import CheckFailedError, InputError

from .environment import ensure_environment
from .instance import JOBS_AT_A_TIME
from .places import PACKAGE
from .server import Connection
from .server_check import packaged_tools


@dataclass(frozen=True)
class ToolTest:
    """How one test of a tool went.

    Attributes
    ----------
    tool : str
        Id of the tool.
    index : int
        Which of its tests, from 0; -1 when none could be begun.
    status : str
        success, failure, error or skip.
    seconds : float or None
        Wall time with upload, job and checks.
    problem : str
        What was not as the test expects; empty when all was.
    job : str
        What the failing job said.
    """

    tool: str
    index: int
    status: str
    seconds: float | None
    problem: str
    job: str


def run_tool_tests(connection: Connection, tools: Sequence[str] = ()) -> list[ToolTest]:
    """Run the tests of tools.

    Parameters
    ----------
    connection : Connection
        The server.
    tools : sequence of str
        Ids or names (stitch-tiles) of tools; none for all of KBrain's.

    Raises
    ------
    InputError
        When there is no such tool.
    CheckFailedError
        When Galaxy's test code ends before all tests are through.
    """
    known = [tool.id for tool in packaged_tools()]
    wanted = ["kbrain_" + name.removeprefix("kbrain_").replace("-", "_") for name in tools] or known
    for name in wanted:
        if name not in known:
            raise InputError(f"There is no tool '{name}': choose from {', '.join(known)}")
    python = ensure_environment("galaxy") / "python"
    request = {"url": connection.url, "key": connection.key, "tools": wanted, "parallel": JOBS_AT_A_TIME}
    results: list[ToolTest] = []
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [python, PACKAGE / "galaxy_modules" / "tool_tests.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as tests,
    ):
        assert tests.stdin is not None
        assert tests.stdout is not None
        tests.stdin.write(json.dumps(request))
        tests.stdin.close()
        first = tests.stdout.readline()
        total = json.loads(first)["total"] if first else 0
        with progress("Testing tools", total) as advance:
            for line in tests.stdout:
                results.append(ToolTest(**json.loads(line)))
                advance(1)
        code = tests.wait()
        log.seek(0)
        said = [line.strip() for line in log if line.strip()]
    if code or not first:
        raise CheckFailedError(f"Galaxy's test code ended early: {said[-1] if said else f'exit code {code}'}")
    return sorted(results, key=lambda result: (known.index(result.tool), result.index))


def table_of(results: Sequence[ToolTest]) -> str:
    """Results and times as a table in plain text."""
    lines = [f"{'Tool':32} {'Test':>4}  {'Result':8} {'Seconds':>7}"]
    for result in results:
        seconds = "" if result.seconds is None else f"{result.seconds:.1f}"
        lines.append(f"{result.tool:32} {result.index + 1:4}  {result.status:8} {seconds:>7}")
    passed = sum(result.status == "success" for result in results)
    total = sum(result.seconds or 0 for result in results)
    lines.append(f"{passed} of {len(results)} tests passed; {total:.0f} s of tests")
    return "\n".join(lines)
