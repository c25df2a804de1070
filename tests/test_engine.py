"""Jobs and tasks: resumed, refused, shared between machines, bounded in memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sample_stage import SquareTask, sample_stage, write_square

from kbrain_core import engine
from kbrain_core.errors import InputError, KBrainError, OutputExistsError, ResourceError, StageStopped
from kbrain_core.stage import Part, RunOptions

ONE = RunOptions(workers=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("hello")
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def trace(output: Path) -> list[int]:
    return sorted(int(line.split()[0]) for line in (output / "trace.log").read_text().splitlines())


def test_a_complete_job_is_not_done_again(
    source: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = sample_stage(source, output, run=ONE)
    second = sample_stage(source, output, run=ONE)
    assert "already complete" in capsys.readouterr().err
    assert second.square_sum == first.square_sum
    assert trace(output) == list(range(12))


def test_an_unfinished_job_goes_on_where_it_stopped(source: Path, output: Path) -> None:
    sample_stage(source, output, run=ONE)
    (output / ".kbrain" / "complete").unlink()
    for number in (3, 7):
        (output / ".kbrain" / "tasks" / f"number-{number}.json").unlink()
    result = sample_stage(source, output, run=ONE)
    assert result.square_sum == sum(n * n for n in range(12))
    assert trace(output) == sorted([*range(12), 3, 7])


def test_other_options_or_another_source_are_refused(source: Path, output: Path) -> None:
    sample_stage(source, output, run=ONE)
    with pytest.raises(
        OutputExistsError, match=r"other options \(count: 12 before, 5 now\): pass --overwrite"
    ):
        sample_stage(source, output, count=5, run=ONE)
    assert sample_stage(source, output, count=5, run=RunOptions(workers=1, overwrite=True)).square_sum == 30
    assert not (output / "11.txt").exists()
    source.write_text("changed")
    with pytest.raises(InputError, match="inputs that have changed"):
        sample_stage(source, output, count=5, run=ONE)


def test_what_kbrain_did_not_write_is_never_removed(source: Path, output: Path) -> None:
    output.mkdir()
    (output / "thesis.txt").write_text("ten years")
    with pytest.raises(OutputExistsError, match="remove it yourself"):
        sample_stage(source, output, run=RunOptions(workers=1, overwrite=True))
    assert (output / "thesis.txt").read_text() == "ten years"


def test_an_empty_folder_counts_as_absent(source: Path, output: Path) -> None:
    (output / ".kbrain" / "tmp").mkdir(parents=True)  # as a kill before the job's first file leaves it
    assert sample_stage(source, output, run=ONE).square_sum > 0


def test_dry_run_writes_nothing(source: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StageStopped, match="Dry run"):
        sample_stage(source, output, run=RunOptions(dry_run=True))
    assert not output.exists()
    assert "Plan: 12 tasks" in capsys.readouterr().err


def test_processes_give_what_one_process_gives(source: Path, output: Path) -> None:
    result = sample_stage(source, output, run=RunOptions(workers=2))
    assert result.square_sum == sum(n * n for n in range(12))
    assert trace(output) == list(range(12))
    assert engine.worker_usage.cpu_s > 0, "what workers cost is counted"
    assert engine.worker_usage.peak_bytes > 1e6


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_three_parts_make_one_output(source: Path, output: Path, order: tuple[int, ...]) -> None:
    for index in order[:2]:
        with pytest.raises(StageStopped, match="outstanding"):
            sample_stage(source, output, run=RunOptions(workers=1, part=Part(index, 3)))
        assert not (output / ".kbrain" / "complete").exists()
    result = sample_stage(source, output, run=RunOptions(workers=1, part=Part(order[2], 3)))
    assert result.square_sum == sum(n * n for n in range(12))
    assert trace(output) == list(range(12))


def test_a_dask_cluster_gives_what_one_process_gives(source: Path, output: Path, dask_scheduler: str) -> None:
    result = sample_stage(source, output, run=RunOptions(cluster=dask_scheduler))
    assert result.square_sum == sum(n * n for n in range(12))
    pids = {line.split()[1] for line in (output / "trace.log").read_text().splitlines()}
    assert len(pids) == 2, "both workers of the cluster take part"


def test_an_absent_cluster_is_one_line(source: Path, output: Path) -> None:
    with pytest.raises(InputError, match="no Dask scheduler answers"):
        sample_stage(source, output, run=RunOptions(cluster="tcp://127.0.0.1:9"))


def test_memory_bounds_the_number_of_workers(tmp_path: Path) -> None:
    tasks = [SquareTask(str(tmp_path), number) for number in range(4)]
    run = RunOptions(workers=4, memory_gb=0.25)
    engine.run_tasks(write_square, tasks, job=None, run=run, label="x", task_bytes=200_000_000)
    assert len({line.split()[1] for line in (tmp_path / "trace.log").read_text().splitlines()}) == 1
    with pytest.raises(ResourceError, match="raise --memory-gb"):
        engine.run_tasks(write_square, tasks, job=None, run=run, label="x", task_bytes=300_000_000)


def test_a_task_that_fails_stops_the_job(tmp_path: Path) -> None:
    tasks = [SquareTask(str(tmp_path / "absent"), number) for number in range(4)]
    with pytest.raises(FileNotFoundError):
        engine.run_tasks(write_square, tasks, job=None, run=RunOptions(workers=2), label="x")


def test_workers_of_a_killed_command_end_with_it(tmp_path: Path) -> None:
    code = (
        "import sample_stage as s, kbrain_core.engine as e, kbrain_core.stage as k;"
        f"tasks = [s.SquareTask({str(tmp_path)!r}, n) for n in (0, 1)];"
        "e.run_tasks(s.take_long, tasks, job=None, run=k.RunOptions(workers=2), label='x')"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    while len(list(tmp_path.glob("*.begun"))) < 2:
        assert command.poll() is None
        time.sleep(0.05)
    command.kill()
    # Output ends only when the last process that inherited it has ended; the killed one is not waited for before.
    assert command.communicate(timeout=20) == (b"", None)


def test_a_full_disk_is_seen_before_the_work(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(source)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3))
    with pytest.raises(ResourceError, match="GB are free") as caught:
        sample_stage(source, output, run=ONE)
    assert isinstance(caught.value, KBrainError)
    assert not output.exists()


def test_progress_lines_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with engine.progress("Working", 40) as advance:
        for _ in range(40):
            advance()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("Working: 40 of 40")
