"""A tiny stage for the tests of the machinery that all stages share; a module of its own so that workers can import it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from kbrain_core.engine import Job, Plan, run_tasks
from kbrain_core.errors import CheckFailedError
from kbrain_core.geometry import Box, VoxelSize
from kbrain_core.report import Report
from kbrain_core.stage import FileIn, FolderOut, RunOptions, StageResult, stage


@dataclass(frozen=True)
class SquareTask:
    """Write the square of one number."""

    folder: str
    number: int

    @property
    def key(self) -> str:
        """Name of the marker."""
        return f"number-{self.number}"


def write_square(task: SquareTask) -> dict[str, int]:
    """Write one square; every run leaves a trace, so that tests see which tasks ran."""
    square = task.number**2
    Path(task.folder, f"{task.number}.txt").write_text(str(square))
    with Path(task.folder, "trace.log").open("a") as trace:
        trace.write(f"{task.number} {os.getpid()}\n")
    return {"square": square}


def take_long(task: SquareTask) -> None:
    """Say that the task has begun, and do not end."""
    Path(task.folder, f"{task.number}.begun").touch()
    time.sleep(120)


@dataclass(frozen=True, kw_only=True)
class SquaresResult(StageResult):
    """The sum of the squares."""

    square_sum: int


@stage
def sample_stage(
    input: FileIn,
    output: FolderOut,
    *,
    count: Annotated[int, Ge(1), Le(50)] = 12,
    scale: Annotated[float, Ge(0)] = 1.0,
    kind: Literal["plain", "fancy"] = "plain",
    voxel_size: VoxelSize | None = None,
    bbox: Box = Box(),
    channel: list[str] | None = None,
    fail: bool = False,
    run: RunOptions = RunOptions(),
) -> SquaresResult:
    """Square the numbers below a count.

    Parameters
    ----------
    input : Path
        Any file.
    output : Path
        Folder for the squares.
    count : int
        How many numbers.
    scale : float
        Not used by the squares.
    kind : {"plain", "fancy"}
        Kind of square.
    voxel_size : VoxelSize, optional
        Size of a voxel.
    bbox : Box
        Which box.
    channel : list of str, optional
        Channels.
    fail : bool
        Fail after the work.
    """
    job = Job.open(output, run)
    job.start(Plan(tasks=count, read_bytes=0, write_bytes=count, memory_bytes=1, cpu_s=0.1))
    tasks = [SquareTask(str(output), number) for number in range(count)]
    results = run_tasks(write_square, tasks, job=job, run=run, label="Squaring")
    if fail:
        raise CheckFailedError("The squares are\nnot round: pass other numbers")
    report = Report("Squares <of numbers>", "All of them.")
    report.verdict(True, "every square is right")
    return SquaresResult(square_sum=sum(result["square"] for result in results), report=report, job=job)
