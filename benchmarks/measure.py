"""What a command costs: CPU seconds and memory of its whole process tree, beside what its imports cost.

    from measure import Table, measure_command, import_cost
    ours = measure_command([KBRAIN, "stitch-tiles", "--tiles", tiles, "--output", out])
    floor = import_cost("numpy", "scipy.sparse", "tensorstore")
    table = Table("stitch", ["tool", "CPU s", "beyond imports", "peak MB"])

Linux only. A launcher process adopts every orphan of the command (workers of a fork server outlive their parent for a
moment) and waits for all of them, so that no CPU second is lost; it reads /proc every 100 ms for the memory.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
KBRAIN = str(Path(sys.executable).with_name("kbrain"))
DOCUMENT = PROJECT / "docs" / "benchmarks.md"

_SAMPLE_S = 0.1  # often enough to see a peak, seldom enough not to slow what is measured
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Usage:
    """What a command took.

    Attributes
    ----------
    cpu_s : user and system CPU seconds of all its processes
    wall_s : seconds from start to the end of its last process
    rss_mb : highest sum of resident memory over its processes, MB (shared pages count once per process)
    anonymous_mb : the same for anonymous pages only: what it allocated, without files and libraries
    exit_code : of the command itself
    stdout : what it printed
    """

    cpu_s: float
    wall_s: float
    rss_mb: float
    anonymous_mb: float
    exit_code: int
    stdout: str = field(default="", repr=False)

    def beyond(self, baseline: Usage) -> Usage:
        """What is left after another usage (imports) is taken off."""
        return replace(
            self,
            cpu_s=self.cpu_s - baseline.cpu_s,
            wall_s=self.wall_s - baseline.wall_s,
            rss_mb=self.rss_mb - baseline.rss_mb,
            anonymous_mb=self.anonymous_mb - baseline.anonymous_mb,
        )


class BenchmarkError(RuntimeError):
    """A measured command failed."""


def measure_command(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
) -> Usage:
    """Run a command in a process tree of its own and measure the tree.

    Parameters
    ----------
    command : program and arguments
    env : variables to add to this process's environment
    cwd : folder to run in
    check : raise BenchmarkError, with the end of stderr, when the command fails

    Returns
    -------
    Usage
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err, figures = (Path(folder) / name for name in ("stdout", "stderr", "figures.json"))
        with out.open("wb") as stdout, err.open("wb") as stderr:
            subprocess.run(
                [sys.executable, "-S", __file__, str(figures), *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                check=True,
            )
        usage = Usage(**json.loads(figures.read_text()), stdout=out.read_text(errors="replace"))
        if check and usage.exit_code:
            tail = "\n".join(err.read_text(errors="replace").splitlines()[-15:])
            raise BenchmarkError(f"exit {usage.exit_code}: {shlex.join(map(str, command))}\n{tail}")
    return usage


def measure_call(
    function: str, arguments: Mapping[str, Any], *, python: str = sys.executable
) -> tuple[Usage, Any]:
    """Call "module:function" with JSON arguments in a fresh Python and measure it; returns its JSON-able result too.

    Modules of benchmarks/ and test-data/ are importable.
    """
    module, name = function.split(":")
    code = (
        "import importlib, json, sys\n"
        "module, name, arguments = sys.argv[1:]\n"
        "result = getattr(importlib.import_module(module), name)(**json.loads(arguments))\n"
        "print('\\n' + json.dumps(result))\n"
    )
    path = os.pathsep.join(str(PROJECT / folder) for folder in ("benchmarks", "test-data", "."))
    command = [python, "-c", code, module, name, json.dumps(arguments)]
    usage = measure_command(command, env={"PYTHONPATH": path})
    return usage, json.loads(usage.stdout.splitlines()[-1])


def import_cost(*modules: str, python: str = sys.executable, repeats: int = 3) -> Usage:
    """What `python -c "import ..."` takes: the cheapest of a few runs (the first one fills the disk cache)."""
    code = "".join(f"import {module}\n" for module in modules)
    return min((measure_command([python, "-c", code]) for _ in range(repeats)), key=lambda usage: usage.cpu_s)


@dataclass
class Table:
    """Results as Markdown, with the command that made them.

    Attributes
    ----------
    title : heading in docs/benchmarks.md; a section is found again by it
    header : column names
    """

    title: str
    header: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        """Add a row and print it: floats get three significant digits."""
        row = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells]
        if len(row) != len(self.header):
            raise ValueError(f"{len(row)} cells for {len(self.header)} columns")
        self.rows.append(row)
        print(" | ".join(f"{name}: {cell}" for name, cell in zip(self.header, row, strict=True)), flush=True)

    def note(self, text: str) -> None:
        """Add a line below the table, such as a goal and whether it is reached."""
        self.notes.append(text)
        print(text, flush=True)

    def goal(self, what: str, value: float, limit: float) -> bool:
        """Note a figure that should be at most `limit`, and whether it is."""
        reached = value <= limit
        self.note(f"{'Reached' if reached else 'NOT reached'}: {what} {value:.3g} (at most {limit:.3g}).")
        return reached

    def markdown(self) -> str:
        """The section: heading, command, table, notes."""
        script = Path(sys.argv[0]).resolve()
        shown = script.relative_to(PROJECT) if script.is_relative_to(PROJECT) else script.name
        command = shlex.join(["python", str(shown), *sys.argv[1:]])
        lines = [f"## {self.title}", "", f"`{command}`", ""]
        lines += [_row(self.header), _row(["---"] * len(self.header)), *map(_row, self.rows), ""]
        return "\n".join(lines + [f"- {note}" for note in self.notes] + ([""] if self.notes else []))

    def save(self, document: Path = DOCUMENT) -> None:
        """Put the section into the document, in place of the one with the same title."""
        text = document.read_text() if document.exists() else "# Benchmarks\n"
        head, *sections = text.split("\n## ")
        kept = [section.rstrip("\n") for section in sections if section.split("\n", 1)[0] != self.title]
        kept = sorted([*kept, self.markdown().removeprefix("## ").rstrip("\n")], key=str.lower)
        document.parent.mkdir(exist_ok=True)
        document.write_text("\n\n## ".join([head.rstrip("\n"), *kept]) + "\n")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _launch(figures: Path, command: Sequence[str]) -> None:
    """Run the command, adopt its orphans, wait for the last one, write the figures."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    start = time.perf_counter()
    child = os.posix_spawnp(command[0], command, os.environ)
    exit_code, rss, anonymous = -1, 0, 0
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid == child:
            exit_code = os.waitstatus_to_exitcode(status)
        if pid == 0:
            now_rss, now_anonymous = _tree_memory(os.getpid())
            rss, anonymous = max(rss, now_rss), max(anonymous, now_anonymous)
            time.sleep(_SAMPLE_S)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    usage = Usage(
        cpu_s=used.ru_utime + used.ru_stime,
        wall_s=time.perf_counter() - start,
        # The kernel's own high-water mark of the largest process misses no peak between two looks.
        rss_mb=max(rss, used.ru_maxrss) / 1000,
        anonymous_mb=anonymous / 1000,
        exit_code=exit_code,
    )
    figures.write_text(json.dumps({name: value for name, value in asdict(usage).items() if name != "stdout"}))


def _tree_memory(root: int) -> tuple[int, int]:
    """(resident, anonymous) kB of all descendants of a process, without itself."""
    parents, memory = {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except (FileNotFoundError, ProcessLookupError):
            continue
        pid = int(status.parent.name)
        parents[pid] = int(lines["PPid"])
        memory[pid] = tuple(int(lines[key].split()[0]) if key in lines else 0 for key in ("VmRSS", "RssAnon"))
    tree, added = {root}, True
    while added:
        more = {pid for pid, parent in parents.items() if parent in tree} - tree
        tree |= more
        added = bool(more)
    tree.discard(root)
    return sum(memory[pid][0] for pid in tree), sum(memory[pid][1] for pid in tree)


if __name__ == "__main__":
    _launch(Path(sys.argv[1]), sys.argv[2:])
