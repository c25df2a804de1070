"""The block engine: a job is an output with its markers; its tasks run on processes here or on a Dask cluster.

One code path serves a laptop, a cluster and many machines that share one output. A task writes files of its own only, so no
lock is needed; a marker per finished task makes a killed job resumable; `complete` is written last.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from . import __version__, store
from .errors import AlreadyComplete, InputError, OutputExistsError, ResourceError, StageStopped
from .stage import RunOptions
from .store import MARKER_FOLDER

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLOSC_NTHREADS")


class Task(Protocol):
    """What `run_tasks` needs to know of a task: a unique key that may be a file name."""

    @property
    def key(self) -> str:
        """Name of the task's marker."""


T = TypeVar("T", bound=Task)
R = TypeVar("R")


def say(text: str) -> None:
    """Print a line for people; results go to stdout, this goes to stderr."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Plan:
    """What a job will cost, said before it starts."""

    tasks: int
    read_bytes: int
    write_bytes: int
    memory_bytes: int
    cpu_s: float

    def text(self, workers: int) -> str:
        """The plan in one line."""
        return (
            f"Plan: {self.tasks} tasks, {_size(self.read_bytes)} to read, at most {_size(self.write_bytes)} to write, "
            f"about {_size(self.memory_bytes)} of memory a worker, about {self.cpu_s:.0f} CPU seconds "
            f"({self.cpu_s / workers / 60:.1f} minutes with {workers} workers)"
        )


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


class Job:
    """An output in the making: `.kbrain/job.json` first, a marker per task, `.kbrain/complete` last.

    `open` only looks; `start` makes the first file; the stage decorator calls `complete`.
    """

    def __init__(
        self, output: str, identity: dict[str, Any], run: RunOptions, side_outputs: Sequence[Path]
    ) -> None:
        self.output = output
        self.run = run
        self.side_outputs = tuple(side_outputs)
        self.resumed = False
        self._identity = identity

    @classmethod
    def open(
        cls,
        output: str | Path,
        run: RunOptions,
        side_outputs: Sequence[Path] = (),
        sources: Sequence[Path] = (),
    ) -> Job:
        """Look at the output's place and decide: new, resumed, or complete.

        Parameters
        ----------
        output : str or Path
            Folder or URL of the output.
        run : RunOptions
            As the stage got it.
        side_outputs : sequence of Path
            Files the job writes elsewhere: when one of them or the report is missing or empty, the job does not count as
            complete and is gone through again; finished tasks are not done again.
        sources : sequence of Path
            Files the job reads beyond the stage's own inputs, such as the tiles that a table names.

        Raises
        ------
        OutputExistsError
            When something else lies there and `overwrite` is not set, or it is nothing KBrain wrote.
        InputError
            When a source has changed since the job was begun.
        """
        if run.call is None:
            raise TypeError("Job.open needs the run options of a stage call")
        identity = {
            "stage": run.call.name,
            "version": __version__,
            "options": run.call.options(),
            "sources": [store.fingerprint(path) for _, path in run.call.paths("in")],
            "files": _fingerprint_files(sources),
        }
        report = run.report or run.call.beside_output("-report.html")
        job = cls(str(output), identity, run, [*side_outputs, report])
        stored = store.read_bytes(job._path("job.json"))
        if stored is None:
            job._check_empty()
            return job
        if json.loads(stored) != identity:
            if not run.overwrite:
                raise _other_job(str(output), json.loads(stored), identity)
            if not run.dry_run:
                job._clear()
            return job
        job.resumed = True
        complete = store.read_bytes(job._path("complete"))
        if complete is not None and all(path.is_file() and path.stat().st_size for path in job.side_outputs):
            if not run.overwrite:
                raise AlreadyComplete(str(output), json.loads(complete)["figures"])
            if not run.dry_run:
                job._clear()
            job.resumed = False
        return job

    def start(self, plan: Plan) -> None:
        """Check the disk, say the plan and begin; a dry run ends here.

        Raises
        ------
        ResourceError
            When the disk does not suffice (a resumed job needs only what is not written yet).
        StageStopped
            On a dry run.
        """
        done = len(store.list_keys(self._path("tasks"))) if self.resumed else 0
        left = 1 - min(1.0, done / max(1, plan.tasks))
        say(plan.text(self.run.worker_count))
        store.require_disk(self.output, int(plan.write_bytes * left))
        if self.run.dry_run:
            raise StageStopped("Dry run: nothing was written")
        if self.resumed:
            say(f"Resuming: {done} tasks were finished before")
        else:
            store.write_bytes(self._path("job.json"), json.dumps(self._identity, indent=1).encode())

    def save(self, name: str, data: bytes) -> None:
        """Keep a small intermediate result, so that a resumed job does not compute it again."""
        store.write_bytes(self._path("state", name), data)

    def load(self, name: str) -> bytes | None:
        """An intermediate result kept before, None when there is none."""
        return store.read_bytes(self._path("state", name))

    def finished_keys(self) -> set[str]:
        """Keys of the tasks that have a marker."""
        return {
            name.removesuffix(".json")
            for name in store.list_keys(self._path("tasks"))
            if name.endswith(".json")
        }

    def result_of(self, key: str) -> Any:
        """What a finished task returned."""
        data = store.read_bytes(self._path("tasks", f"{key}.json"))
        return json.loads(data) if data else None

    def mark(self, key: str, result: Any) -> None:
        """Say that a task is finished, and what it returned."""
        store.write_bytes(self._path("tasks", f"{key}.json"), json.dumps(result).encode())

    def complete(self, figures: dict[str, Any]) -> None:
        """Remove what killed runs left, then mark the output as finished; the last thing a job does."""
        if not store.is_remote(self.output) and not self.run.part:  # another part may be at work there
            shutil.rmtree(store.local_path(self._path("tmp")), ignore_errors=True)
            for path in self.side_outputs:
                store.remove_leftovers(path)
        store.write_bytes(self._path("complete"), json.dumps({"figures": figures}).encode())

    def _path(self, *parts: str) -> str:
        return store.join(self.output, MARKER_FOLDER, *parts)

    def _check_empty(self) -> None:
        others = set(store.list_keys(self.output)) - {
            MARKER_FOLDER
        }  # a kill may leave that folder without its first file
        if others or (not store.is_remote(self.output) and store.local_path(self.output).is_file()):
            raise OutputExistsError(
                f"'{self.output}' exists and is not an output of this command: choose another name, or remove it yourself"
            )

    def _clear(self) -> None:
        """Remove an output of KBrain: its completion first and its identity last, so that a kill leaves it recognised."""
        if store.is_remote(self.output):
            raise OutputExistsError(
                f"'{self.output}' is a URL: remove what lies there yourself before overwriting"
            )
        folder = store.local_path(self.output)
        (folder / MARKER_FOLDER / "complete").unlink(missing_ok=True)
        for entry in folder.iterdir():
            if entry.name != MARKER_FOLDER:
                _remove(entry)
        for entry in (folder / MARKER_FOLDER).iterdir():
            if entry.name != "job.json":
                _remove(entry)
        (folder / MARKER_FOLDER / "job.json").unlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _fingerprint_files(paths: Sequence[Path]) -> str:
    """Size and time of change of many files as one text; reading them all would cost as much as the work itself."""
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(set(paths)):
        status = path.stat() if path.exists() else None
        digest.update(f"{path.name}\0{status and (status.st_size, status.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


def _other_job(output: str, stored: dict[str, Any], wanted: dict[str, Any]) -> OutputExistsError | InputError:
    """Say in one line how the job that lies there differs from the one that is asked for."""
    if stored.get("stage") != wanted["stage"]:
        what = f"was written by {stored.get('stage')}"
    elif stored.get("options") != wanted["options"]:
        old, new = stored.get("options", {}), wanted["options"]
        names = [name for name in new if old.get(name) != new[name]]
        what = (
            "was begun with other options ("
            + ", ".join(f"{n}: {old.get(n)} before, {new[n]} now" for n in names)
            + ")"
        )
    elif stored.get("version") != wanted["version"]:
        what = f"was begun by KBrain {stored.get('version')}"
    else:
        return InputError(
            f"'{output}' was begun from inputs that have changed since: restore them, or pass --overwrite to begin again"
        )
    return OutputExistsError(f"'{output}' {what}: pass --overwrite to replace it, or choose another name")


def run_tasks(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    job: Job | None,
    run: RunOptions,
    label: str,
    task_bytes: int = 0,
    shared: bool = True,
) -> list[R]:
    """Run a function over tasks, each once, and give their results in the order of the tasks.

    Parameters
    ----------
    function : callable
        Picklable (top-level) function of one task. With a job its result must be JSON: it is stored in the task's marker
        and handed back when a resumed job finds the task finished.
    tasks : sequence
        Picklable objects with a unique `key` that may be a file name.
    job : Job or None
        Where markers go; None when the tasks leave nothing behind.
    run : RunOptions
        Workers, memory, cluster and part.
    label : str
        What the progress bar says, like "Fusing chunks".
    task_bytes : int
        Memory one task takes; with `memory_gb` it limits how many run at a time.
    shared : bool
        Whether `--part` splits these tasks; False for a small pass that follows when all parts are through.

    Raises
    ------
    ResourceError
        When one task alone takes more memory than allowed.
    StageStopped
        When this part is through and others are outstanding.
    """
    finished = job.finished_keys() if job else set()
    mine = [task for index, task in enumerate(tasks) if not (shared and job) or _is_mine(index, run)]
    todo = [task for task in mine if task.key not in finished]
    fresh: dict[str, R] = {}
    with progress(label, len(todo)) as advance:
        for key, result in _execute(function, todo, run, task_bytes):
            if job:
                job.mark(key, result)
            fresh[key] = result
            advance()
    if job and shared and run.part:
        outstanding = {task.key for task in tasks} - job.finished_keys()
        if outstanding:
            raise StageStopped(
                f"Part {run.part} is through ({len(mine)} of {len(tasks)} tasks); {len(outstanding)} tasks of other parts "
                "are outstanding"
            )
    return [fresh[task.key] if task.key in fresh else _stored(job, task.key) for task in tasks]


def _stored(job: Job | None, key: str) -> Any:
    return job.result_of(key) if job else None


def _is_mine(index: int, run: RunOptions) -> bool:
    return run.part is None or index % run.part.count == run.part.index - 1


def _execute(
    function: Callable[[T], R], tasks: Sequence[T], run: RunOptions, task_bytes: int
) -> Iterator[tuple[str, R]]:
    """Run tasks as they come, at most as many at a time as workers and memory allow."""
    if not tasks:
        return
    workers = min(run.worker_count, len(tasks))
    if task_bytes:
        affordable = run.memory_bytes // task_bytes
        if affordable < 1:
            raise ResourceError(
                f"One task takes about {_size(task_bytes)} and {_size(run.memory_bytes)} are allowed: "
                "raise --memory-gb, or choose smaller chunks"
            )
        workers = min(workers, int(affordable))
    if run.cluster:
        with _dask_executor(run.cluster) as executor:
            yield from _on_executor(function, tasks, executor, ahead=len(tasks))
    elif workers == 1:
        limit_threads()
        for task in tasks:
            yield task.key, function(task)
    else:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([function.__module__])
        with concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker) as executor:
            yield from _on_executor(function, tasks, executor, ahead=2 * workers)


def _on_executor(
    function: Callable[[T], R], tasks: Sequence[T], executor: concurrent.futures.Executor, ahead: int
) -> Iterator[tuple[str, R]]:
    """Keep `ahead` tasks submitted; the first failure cancels what has not begun."""
    waiting = iter(tasks)
    running: dict[concurrent.futures.Future[tuple[R, float, int]], T] = {}
    try:
        while True:
            while len(running) < ahead and (task := next(waiting, None)) is not None:
                running[executor.submit(_measured, function, task)] = task
            if not running:
                return
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                result, cpu_s, peak_bytes = future.result()
                worker_usage.cpu_s += cpu_s
                worker_usage.peak_bytes = max(worker_usage.peak_bytes, peak_bytes)
                yield running.pop(future).key, result
    finally:
        for future in running:
            future.cancel()


@dataclass
class WorkerUsage:
    """What tasks in other processes have cost this process so far; the system does not count those for us."""

    cpu_s: float = 0.0
    peak_bytes: int = 0


worker_usage = WorkerUsage()


def _measured(function: Callable[[T], R], task: T) -> tuple[R, float, int]:
    """Run a task in a worker; give its result, its CPU seconds and the worker's peak memory in bytes."""
    before = time.process_time()
    result = function(task)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return result, time.process_time() - before, peak


@contextlib.contextmanager
def _dask_executor(address: str) -> Iterator[concurrent.futures.Executor]:
    try:
        import distributed

        client: Any = distributed.Client(address, timeout="10s", set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            f"--cluster: no Dask scheduler answers at '{address}' ({error}): check the address"
        ) from error
    with client:
        client.run(limit_threads)
        yield client.get_executor(pure=False)


def limit_threads() -> None:
    """Keep the libraries of this process to one thread: the workers are the parallelism, `--workers` bounds them all."""
    for variable in THREAD_VARIABLES:
        os.environ.setdefault(variable, "1")
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)
    if "numba" in sys.modules:
        sys.modules["numba"].set_num_threads(1)
    else:  # once loaded, numba refuses another value
        os.environ.setdefault("NUMBA_NUM_THREADS", "1")


def _start_worker() -> None:
    """Prepare a worker process: one thread, and an end of its own when the command is killed."""
    limit_threads()
    command = multiprocessing.parent_process()

    def watch() -> None:
        if command:
            command.join()  # the end of a pipe, so a killed command counts as gone before anyone has waited for it
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[..., None]]:
    """Show progress on stderr: a bar on a terminal, a line for every tenth of the work in a job's log.

    Yields
    ------
    callable
        `advance(n=1)`: n more are done.
    """
    if total and sys.stderr.isatty():
        import rich.console
        import rich.progress as bars

        columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn())
        times = (bars.TimeElapsedColumn(), bars.TimeRemainingColumn())
        with bars.Progress(*columns, *times, console=rich.console.Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total)
            yield lambda n=1: bar.advance(task, n)
        return
    started, done, shown = time.monotonic(), 0, 0

    def advance(n: int = 1) -> None:
        nonlocal done, shown
        done += n
        if total and done * 10 // total > shown:
            shown = done * 10 // total
            say(f"{label}: {done} of {total} ({time.monotonic() - started:.0f} s)")

    yield advance


def safe_key(text: str) -> str:
    """A task key made from any text: letters, digits, '.', '_' and '-' alone."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)
