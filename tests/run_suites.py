"""Run the test suites one after the other and print the time of each.

    python tests/run_suites.py [SUITE ...]

A suite whose system package is missing is listed as NOT RUN with the line that installs it, and fails under CI=true.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Suite:
    """Commands that must all succeed, and the system program they need."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    program: str | None = None
    install: str = ""


PYTEST = ("pytest", "-q", "-n", "2", "--dist", "worksteal", "--durations", "8")
SUITES = (
    Suite("check", (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",))),
    Suite("core", ((*PYTEST, "-m", "not browser", "--ignore", "tests/galaxy"),)),
    Suite(
        "viewer",
        (("pytest", "-q", "-m", "browser", "--ignore", "tests/galaxy"),),
        "chromium",
        "apt-get install chromium",
    ),
    Suite("wrappers", ((*PYTEST, "-m", "not galaxy", "tests/galaxy"),)),
    # one process: all its tests share one Galaxy
    Suite(
        "galaxy",
        (("pytest", "-q", "-m", "galaxy", "--durations", "12", "tests/galaxy"),),
        "chromium",
        "apt-get install chromium",
    ),
)


def run(suite: Suite) -> str:
    """Run one suite; the outcome is `passed`, `FAILED` or `NOT RUN: ...`."""
    if suite.program and not shutil.which(suite.program):
        return f"NOT RUN: {suite.program} is missing; install it with: {suite.install}"
    for command in suite.commands:
        print(f"[{suite.name}] {' '.join(command)}", flush=True)
        if subprocess.run([BIN / command[0], *command[1:]], cwd=PROJECT, check=False).returncode:
            return "FAILED"
    return "passed"


def main(names: list[str]) -> int:
    """Run the named suites, all by default; 0 when every one that could run has passed."""
    unknown = set(names) - {suite.name for suite in SUITES}
    if unknown:
        sys.exit(f"Unknown suite {', '.join(unknown)}: choose from {', '.join(s.name for s in SUITES)}")
    outcomes: list[tuple[str, str, float]] = []
    for suite in SUITES:
        if not names or suite.name in names:
            started = time.monotonic()
            outcomes.append((suite.name, run(suite), time.monotonic() - started))
    print("\nSuite      minutes  outcome")
    for name, outcome, seconds in outcomes:
        print(f"{name:<10} {seconds / 60:7.1f}  {outcome}")
    passed = sum(outcome == "passed" for _, outcome, _ in outcomes)
    not_run = sum(outcome.startswith("NOT RUN") for _, outcome, _ in outcomes)
    failed = len(outcomes) - passed - not_run + (not_run if os.environ.get("CI") == "true" else 0)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
