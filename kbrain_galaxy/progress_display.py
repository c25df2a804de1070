"""How far a run is: bars on a terminal, plain lines in a log; always on stderr."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from kbrain_core.engine import say

if TYPE_CHECKING:
    from rich.progress import TaskID


LINES_FROM_BYTES = 50_000_000  # less is over before anyone reads a line


@contextlib.contextmanager
def bytes_progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how many bytes have gone over the network.

    Yields
    ------
    callable
        `advance(n)`: n more bytes are over; may be called from several threads.
    """
    if total and sys.stderr.isatty():
        import rich.console
        import rich.progress as bars

        columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.DownloadColumn())
        speeds = (bars.TransferSpeedColumn(), bars.TimeRemainingColumn())
        with bars.Progress(*columns, *speeds, console=rich.console.Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total)
            yield lambda n: bar.advance(task, n)
        return
    started, done, shown = time.monotonic(), 0, 0
    lock = threading.Lock()

    def advance(n: int) -> None:
        nonlocal done, shown
        with lock:
            done += n
            if total >= LINES_FROM_BYTES and done * 10 // total > shown:
                shown = done * 10 // total
                say(f"{label}: {done / 1e6:.1f} of {total / 1e6:.1f} MB ({time.monotonic() - started:.0f} s)")

    yield advance


class StepBoard:
    """One line for each step of a workflow: jobs done of jobs there are, and whether any runs."""

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}
        self._bars: dict[str, TaskID] = {}
        self._progress = None
        if sys.stderr.isatty():
            import rich.console
            import rich.progress as bars

            columns = (
                bars.TextColumn("{task.description}"),
                bars.BarColumn(),
                bars.TextColumn("{task.fields[note]}"),
            )
            self._progress = bars.Progress(
                *columns, bars.TimeElapsedColumn(), console=rich.console.Console(stderr=True)
            )

    def __enter__(self) -> StepBoard:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, step: str, done: int, total: int, note: str) -> None:
        """Show where a step is; nothing is printed when that has not changed."""
        text = (
            f"{done} of {total} {'job' if total == 1 else 'jobs'}{', ' + note if note else ''}"
            if total
            else note
        )
        if self._shown.get(step) == text:
            return
        self._shown[step] = text
        if self._progress is None:
            say(f"{step}: {text}")
            return
        if step not in self._bars:
            self._bars[step] = self._progress.add_task(step, total=None, note="")
        self._progress.update(self._bars[step], total=total or None, completed=done, note=text)
