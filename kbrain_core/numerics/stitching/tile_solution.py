"""The whole registration of a mosaic: fixed pattern, pairs, solution, seams; each step resumable."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...engine import Job, run_tasks
from ...formats.tables import Position
from ...stage import RunOptions
from .cycle_check import Cycle, check_cycles
from .tile_canvas import given_placement, solved_rows
from .tile_filter import Signal
from .tile_graph import Ints
from .tile_layout import Mosaic
from .tile_links import (
    Links,
    Placement,
    Seam,
    Verdict,
    doubtful_links,
    judge_given,
    judge_links,
    judge_mosaic,
    pair_tasks,
    plan_pairs,
    solve_mosaic,
)
from .tile_pairs import (
    Measurement,
    Pair,
    PairTask,
    SeamTask,
    Structure,
    check_seams,
    choose_reduction,
    register_pairs,
    task_bytes,
)
from .tile_pattern import measure_pattern, pattern_tasks


@dataclass(frozen=True)
class Registration:
    """Everything known about a registered mosaic.

    Attributes
    ----------
    links : Links
    placement : Placement
    verdict : Verdict
    rows : tuple of Position
        In px of the sections' common frame.
    seams : dict of int to Seam
        Doubtful overlaps where the solution puts them, by number of the link.
    template : PairTask
        What the tasks had in common, without pairs.
    cycles : tuple of Cycle
        How channels and time points that share a solution lie on the registered one.
    """

    links: Links
    placement: Placement
    verdict: Verdict
    rows: tuple[Position, ...]
    seams: dict[int, Seam]
    template: PairTask
    cycles: tuple[Cycle, ...]


def search_margin(mosaic: Mosaic, overlap_px: float, max_shift_um: float | None) -> tuple[int, int, int]:
    """Largest shift from the stage that is searched, px (z, y, x).

    Parameters
    ----------
    mosaic : Mosaic
    overlap_px : float
        Median nominal overlap.
    max_shift_um : float or None
        The user's choice; by default half the overlap in y and x, and the same length in z.
    """
    z_um, y_um, x_um = mosaic.voxel_size.zyx_um
    depth = max(site.shape[0] for site in mosaic.sites)
    half = overlap_px / 2
    y = x = max(1, round(half))
    if max_shift_um is not None:
        y, x = (max(1, round(max_shift_um / size)) for size in (y_um or 1.0, x_um or 1.0))
    if depth == 1:
        return 0, y, x
    z = depth // 4
    if z_um is not None and y_um is not None:
        z = round((max_shift_um if max_shift_um is not None else half * y_um) / z_um)
    return max(1, min(z, depth // 2)), y, x


def register_mosaic(
    mosaic: Mosaic,
    pairs: Ints,
    margin: tuple[int, int, int],
    overlap_px: float,
    folder: Path,
    given: Sequence[Position] | None,
    job: Job,
    run: RunOptions,
) -> Registration:
    """Measure all links of a mosaic and solve it; or look at the seams of given positions.

    Parameters
    ----------
    mosaic : Mosaic
    pairs : (m, 2) ndarray of int
        Neighbours.
    margin : (3,) int
        Largest shift from the stage, px.
    overlap_px : float
        Median nominal overlap.
    folder : Path
        The folder that tile names are relative to.
    given : sequence of Position or None
        Positions that are taken as they are.
    job, run
        As the stage has them. `--part` does not split the registration: every part needs the solution.
    """
    template = _template(mosaic, margin, overlap_px, folder, job, run)
    planned = plan_pairs(mosaic, pairs, margin)
    if given is not None:
        return _look_at_given(mosaic, pairs, given, template, planned, job, run)
    tasks = pair_tasks(planned, mosaic, template)
    results = run_tasks(
        register_pairs,
        tasks,
        job=job,
        run=run,
        label="Registering tiles",
        task_bytes=task_bytes(mosaic.sites, template.reduction),
        shared=False,
    )
    links = judge_links([Measurement.from_row(row) for rows in results for row in rows])
    placement = solve_mosaic(mosaic, links)
    seams = _measure_seams(
        mosaic, [links.found[i] for i in doubtful_links(links, placement)], placement, template, job, run
    )
    numbered = dict(zip((int(i) for i in doubtful_links(links, placement)), seams, strict=True))
    verdict = judge_mosaic(mosaic, links, placement, numbered)
    rows = tuple(solved_rows(mosaic, links, placement))
    cycles = tuple(check_cycles(mosaic, links, placement.positions, template, job, run))
    return Registration(links, placement, verdict, rows, numbered, template, cycles)


def _template(
    mosaic: Mosaic, margin: tuple[int, int, int], overlap_px: float, folder: Path, job: Job, run: RunOptions
) -> PairTask:
    shape = max((site.shape for site in mosaic.sites), key=lambda shape: int(np.prod(shape)))
    z_um, _, x_um = mosaic.voxel_size.zyx_um
    ratio = z_um / x_um if z_um is not None and x_um is not None else None
    reduction = choose_reduction(shape, overlap_px or min(shape[1:]) / 10, ratio)
    template = PairTask("pairs", folder, {}, (), margin, reduction, {})
    if len(mosaic.sites) == len(mosaic.group_names):  # nothing to register
        return template
    stored = job.load("patterns.npz")
    if stored is None:
        tasks = pattern_tasks(mosaic, folder, reduction)
        label = "Looking for dust"
        found = run_tasks(measure_pattern, tasks, job=None, run=replace(run, part=None), label=label)
        buffer = io.BytesIO()
        np.savez(
            buffer,
            allow_pickle=False,
            **{task.key: pattern for task, pattern in zip(tasks, found, strict=True)},
        )
        stored = buffer.getvalue()
        job.save("patterns.npz", stored)
    with np.load(io.BytesIO(stored), allow_pickle=False) as arrays:
        patterns = {_size_of(key): arrays[key] for key in arrays.files}
    return replace(template, patterns=patterns)


def _size_of(key: str) -> tuple[int, int]:
    height, width = key.removeprefix("pattern-").split("x")
    return int(height), int(width)


def _measure_seams(
    mosaic: Mosaic,
    ends: Sequence[Measurement | Pair],
    placement: Placement,
    template: PairTask,
    job: Job,
    run: RunOptions,
) -> list[Seam]:
    """What pairs show where a placement puts them."""
    chunk = 64  # pairs in a task
    planned = [
        [Pair(end.first, end.second, (0.0, 0.0, 0.0)) for end in ends[start : start + chunk]]
        for start in range(0, len(ends), chunk)
    ]
    tasks = []
    for task in pair_tasks(planned, mosaic, replace(template, key="seams")):
        moves = [placement.positions[pair.second] - placement.positions[pair.first] for pair in task.pairs]
        placed = tuple((float(move[0]), float(move[1]), float(move[2])) for move in moves)
        tasks.append(SeamTask(task.key, task, placed))
    results = run_tasks(
        check_seams,
        tasks,
        job=job,
        run=run,
        label="Looking at doubtful seams",
        task_bytes=task_bytes(mosaic.sites, template.reduction),
        shared=False,
    )
    return [Seam(ncc, Structure(share, contrast)) for rows in results for ncc, share, contrast in rows]


def _look_at_given(
    mosaic: Mosaic,
    pairs: Ints,
    given: Sequence[Position],
    template: PairTask,
    planned: Sequence[Sequence[Pair]],
    job: Job,
    run: RunOptions,
) -> Registration:
    placement = given_placement(mosaic, given, len(pairs))
    wanted = [pair for patch in planned for pair in patch if not pair.null]
    seams = _measure_seams(mosaic, wanted, placement, template, job, run)
    found = tuple(_as_measured(pair, placement, seam) for pair, seam in zip(wanted, seams, strict=True))
    accepted: NDArray[np.bool_] = np.zeros(len(found), bool)
    links = Links(found, accepted, float("nan"), np.zeros(0))
    verdict = judge_given(mosaic, links)
    return Registration(links, placement, verdict, tuple(given), dict(enumerate(seams)), template, ())


def _as_measured(pair: Pair, placement: Placement, seam: Seam) -> Measurement:
    move = placement.positions[pair.second] - placement.positions[pair.first]
    offset = (float(move[0]), float(move[1]), float(move[2]))
    return Measurement(pair.first, pair.second, False, offset, seam.ncc, 0.0, seam.ncc, 0, seam.structure)


def patterns_of(registration: Registration) -> list[Signal]:
    """Fixed patterns that were taken from the tiles, reduced."""
    return list(registration.template.patterns.values())
