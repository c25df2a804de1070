"""Run `kbrain` commands that get killed: a warm process forks each run, so that imports are paid for once.

As a program this is the warm process: it reads one request per line on stdin, and answers with the run's process id and,
when the run is over, with its exit code.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KILLED = -signal.SIGKILL
KILLS_PER_OUTPUT = 4
TASK_BYTES = 2**16


class Launcher:
    """Starts commands from a warm process; use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **threads, "MPLBACKEND": "Agg"},
        )

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def run(self, arguments: Sequence[str], kill_after_s: float | None = None, learn: bool = False) -> int:
        """Run `kbrain` with arguments in a process group of its own; returns its exit code, KILLED when killed.

        Parameters
        ----------
        arguments : sequence of str
        kill_after_s : float, optional
            Send SIGKILL to the group at this time, if it still runs.
        learn : bool
            Have the warm process import everything the run imported.
        """
        learnt = self.folder / "modules.json" if learn else None
        request = {
            "arguments": list(arguments),
            "log": str(self.log),
            "modules": str(learnt) if learnt else None,
        }
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        pid = self._answer()
        if kill_after_s is not None and not select.select([self.process.stdout], [], [], kill_after_s)[0]:
            os.killpg(pid, signal.SIGKILL)
        code = self._answer()
        _wait_for_group(pid)
        return code

    @property
    def log(self) -> Path:
        """Where the last run's stdout and stderr are."""
        return self.folder / "log.txt"

    def _answer(self) -> int:
        # Read byte by byte: a buffered reader would hide the second answer from select.
        text = b""
        while not text.endswith(b"\n"):
            byte = os.read(self.process.stdout.fileno(), 1)
            if not byte:
                raise RuntimeError("the warm process ended")
            text += byte
        return int(text)


def _wait_for_group(group: int) -> None:
    """Wait until no process of a group is alive (dead ones may wait for their parent)."""
    while any(_is_alive_in(stat, group) for stat in Path("/proc").glob("[0-9]*/stat")):
        time.sleep(0.01)


def _is_alive_in(stat: Path, group: int) -> bool:
    try:
        state, _, process_group = stat.read_text().rpartition(")")[2].split()[:3]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(process_group) == group and state not in "ZX"


@dataclass(frozen=True)
class KillReport:
    """What a series of kills came to.

    Attributes
    ----------
    kills : runs that were killed
    mid_work : kills that left a begun, unfinished output
    tasks : tasks of the job, each with its marker
    """

    kills: int
    mid_work: int
    tasks: int


def kill_and_compare(
    launcher: Launcher,
    command: Callable[[Path], list[str]],
    folder: Path,
    *,
    kills: int,
    seed: int,
) -> KillReport:
    """Kill a command at random points, some times on one output, and let it finish; compare with an undisturbed run.

    Most points lie in the time until the last data is written, one in five anywhere in the run.

    Parameters
    ----------
    command : callable
        Arguments of the command for the folder all its outputs go to; the volume or tile folder is `out`.
    folder : Path
        Scratch space.
    kills : int
        How many kills to survive.
    """
    draw = random.Random(seed)
    assert launcher.run(command(folder / "first"), learn=True) == 0, launcher.log.read_text()
    begun_at = time.time()
    assert launcher.run(command(folder / "whole")) == 0, launcher.log.read_text()
    whole_s = time.time() - begun_at
    work_s = _last_data_at(folder / "whole" / "out") - begun_at
    expected = snapshot(folder / "whole")
    differences = _differences(snapshot(folder / "first"), expected)
    assert not differences, f"two undisturbed runs differ: {differences}"
    done = mid_work = rounds = 0
    while done < kills:
        outputs = folder / f"round{rounds}"
        for _ in range(min(KILLS_PER_OUTPUT, kills - done)):
            code = launcher.run(
                command(outputs), draw.uniform(0.02, 1) * draw.choices((work_s, whole_s), (4, 1))[0]
            )
            if code == 0:
                break
            assert code == KILLED, launcher.log.read_text()
            done += 1
            begun = (outputs / "out" / ".kbrain" / "job.json").exists()
            mid_work += begun and not (outputs / "out" / ".kbrain" / "complete").exists()
        assert launcher.run(command(outputs)) == 0, launcher.log.read_text()
        differences = _differences(snapshot(outputs), expected)
        assert not differences, f"after {done} kills: {differences}"
        shutil.rmtree(outputs)
        rounds += 1
    return KillReport(done, mid_work, len(list((folder / "whole" / "out" / ".kbrain" / "tasks").iterdir())))


def _last_data_at(output: Path) -> float:
    """When the last file of an output was written, markers aside."""
    return max(
        path.stat().st_mtime for path in output.rglob("*") if path.is_file() and ".kbrain" not in path.parts
    )


def _differences(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """What is found and what was expected, of the files that differ; None stands for no such file."""
    names = sorted({*found, *expected})
    return {
        name: (found.get(name), expected.get(name)) for name in names if found.get(name) != expected.get(name)
    }


def snapshot(folder: Path) -> dict[str, Any]:
    """What a command left in a folder: checksums of its data, names of the rest, and its key figures.

    Reports and summaries say how long a run took, and markers how its time was shared: of these only the names count.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            continue
        if path.name == "complete" and path.parent.name == ".kbrain":
            found[name] = json.loads(path.read_text())["figures"]
        elif ".kbrain" in name or "-report" in name or "-summary" in name:
            found[name] = "there"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _serve() -> None:
    """The warm process."""
    for line in sys.stdin.buffer:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            _run(request)
        print(pid, flush=True)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if request["modules"]:
            for name in json.loads(Path(request["modules"]).read_text()):
                try:
                    importlib.import_module(name)
                except Exception:  # some modules can only be imported by their parents; those come along
                    continue
        print(code, flush=True)


def _run(request: dict[str, Any]) -> None:
    """The forked child: run the command and leave at once, as a program does."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    from kbrain_core.cli import main

    _shrink_tasks()
    code = main(request["arguments"])
    if request["modules"]:
        Path(request["modules"]).write_text(json.dumps(sorted(set(sys.modules) - {"__main__"})))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _shrink_tasks() -> None:
    """Cut the work into small blocks, so that small data has many tasks to be killed in."""
    from kbrain_core.formats.volume_spec import VolumeSpec
    from kbrain_core.processing import (
        align_sections,
        align_sections_registration,
        correct_illumination,
        stitch_tiles,
    )

    VolumeSpec.plan.__func__.__kwdefaults__["task_bytes"] = TASK_BYTES
    stitch_tiles.BOX_BYTES = align_sections.BOX_BYTES = TASK_BYTES
    align_sections_registration.RUN_SECTIONS = 2
    correct_illumination._TASK_PIXELS = TASK_BYTES


if __name__ == "__main__":
    _serve()
