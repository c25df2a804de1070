"""How align-sections comes to its transforms: tasks that register, and the solution from their links."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..engine import Job, run_tasks
from ..errors import InputError
from ..formats.section_inputs import SectionInput, SectionStack, open_sections
from ..formats.tables import Transform
from ..geometry import VoxelSize
from ..numerics.alignment.section_linking import (
    Linked,
    LinkTask,
    ReferenceTask,
    link_reference,
    link_sections,
    read_links,
)
from ..numerics.alignment.section_solution import Solution, given_solution, solve_sections
from ..stage import RunOptions

# Sections a registration task starts links from: their features are made once, and few are made twice.
RUN_SECTIONS = 6
# Features of a section at all scales, in bytes a pixel.
FEATURE_BYTES = 14


@dataclass(frozen=True)
class Registration:
    """How sections are registered; `neighbours` is 0 when transforms are given."""

    method: Literal["ecc", "fourier", "sift"]
    model: Literal["translation", "rigid", "similarity", "affine"]
    neighbours: int
    excluded: frozenset[int]
    channel: int
    halvings: int
    canvas: Literal["whole", "tissue"]


@dataclass(frozen=True)
class ReferencePlanes:
    """For every section its plane of the reference, and how many section pixels one of its pixels is wide."""

    planes: tuple[SectionInput, ...]
    pixel_ratio: float


def open_reference(uri: str, stack: SectionStack, size: VoxelSize) -> ReferencePlanes:
    """The reference's plane for every section, by their positions along z."""
    found = open_sections([uri])
    z_nm, y_nm, _ = size.required_nm("the sections")
    reference_z_nm, reference_y_nm, _ = found.voxel_size.required_nm("the reference")
    ratio = reference_y_nm / y_nm
    if ratio < 1:
        raise InputError(
            f"The reference's pixels ({reference_y_nm:g} nm) are smaller than the sections' ({y_nm:g} nm): downsample it"
        )
    at_nm = [index * z_nm for index in range(len(stack.sections))]
    depth = len(found.sections)
    if at_nm[-1] > (depth + 0.5) * reference_z_nm:
        raise InputError(
            f"The reference is {depth * reference_z_nm / 1000:g} um deep but the sections are {at_nm[-1] / 1000:g} um: "
            "check both voxel sizes (--voxel-size)"
        )
    planes = tuple(found.sections[min(round(z / reference_z_nm), depth - 1)] for z in at_nm)
    return ReferencePlanes(planes, ratio)


def find_solution(
    stack: SectionStack,
    registration: Registration,
    reference: ReferencePlanes | None,
    given: list[Transform] | None,
    job: Job,
    run: RunOptions,
) -> tuple[Solution, Linked]:
    """Every section's transform: as a table says, as solved before, or from the links."""
    height, width = map(max, zip(*(section.shape_yx for section in stack.sections), strict=True))
    section_bytes = FEATURE_BYTES * height * width // 4**registration.halvings
    # Not shared between parts: each needs the whole solution, and registering is the smaller half of the work.
    results = run_tasks(
        link_sections,
        _link_tasks(stack, registration),
        job=job,
        run=run,
        label="Registering sections" if registration.neighbours else "Looking at sections",
        task_bytes=(RUN_SECTIONS + registration.neighbours) * section_bytes,
        shared=False,
    )
    linked = read_links(results)
    stored = job.load("solution.json")
    if stored is not None:
        return Solution.from_json(stored), linked
    count = len(stack.sections)
    if given is not None:
        solution = given_solution(
            given, linked, count=count, excluded=registration.excluded, canvas=registration.canvas
        )
    else:
        held = None
        if reference is not None:
            tasks = _reference_tasks(stack, registration, reference, linked)
            held = read_links(
                run_tasks(
                    link_reference,
                    tasks,
                    job=job,
                    run=run,
                    label="Registering with the reference",
                    task_bytes=4 * section_bytes,
                    shared=False,
                )
            )
            if not held.believed:
                raise InputError(
                    "No section could be registered with the reference: check that it shows the same tissue, unmirrored, "
                    "and both voxel sizes"
                )
        solution = solve_sections(
            linked,
            held,
            count=count,
            excluded=registration.excluded,
            model=registration.model,
            method=registration.method,
            halvings=registration.halvings,
            canvas=registration.canvas,
        )
    job.save("solution.json", solution.to_json())
    return solution, linked


def _link_tasks(stack: SectionStack, registration: Registration) -> list[LinkTask]:
    """Runs of sections, each with the sections beyond its end that its last ones are neighbours of."""
    included = [
        (index, section) for index, section in enumerate(stack.sections) if index not in registration.excluded
    ]
    if not included:
        raise InputError("All sections are excluded: leave at least one in")
    tasks = []
    for start in range(0, len(included), RUN_SECTIONS):
        own = included[start : start + RUN_SECTIONS]
        beyond = [
            item
            for item in included[start + RUN_SECTIONS :]
            if item[0] <= own[-1][0] + registration.neighbours
        ]
        tasks.append(
            LinkTask(
                sections=(*own, *beyond),
                own=len(own),
                neighbours=registration.neighbours,
                channel=registration.channel,
                halvings=registration.halvings,
                method=registration.method,
                model=registration.model,
            )
        )
    return tasks


def _reference_tasks(
    stack: SectionStack, registration: Registration, reference: ReferencePlanes, linked: Linked
) -> list[ReferenceTask]:
    return [
        ReferenceTask(
            index=index,
            section=stack.sections[index],
            reference=reference.planes[index],
            pixel_ratio=reference.pixel_ratio,
            sections=len(stack.sections),
            channel=registration.channel,
            method=registration.method,
        )
        for index, facts in sorted(linked.facts.items())
        if not facts.blank
    ]
