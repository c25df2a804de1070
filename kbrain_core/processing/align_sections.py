"""align-sections: register sections to each other, place them all together, write them as one volume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Le

from ..errors import InputError
from ..geometry import VoxelSize
from ..stage import RunOptions, StageResult, TransformsIn, TransformsOut, VolumeIn, VolumeOut, stage

if TYPE_CHECKING:
    from ..engine import Job, Plan
    from ..formats.section_inputs import SectionStack
    from ..formats.volume_spec import VolumeSpec
    from ..numerics.alignment.section_solution import Solution
    from ..numerics.alignment.section_warping import WarpTask
    from ..numerics.volumes.volume_writer import VolumeWriter
    from .align_sections_registration import Registration
    from .align_sections_report import AlignedStack

# Registration reads sections at the first level whose sides are no longer: structure of a few pixels is left, and an
# error of a tenth of a pixel there is a fraction of what sections differ by.
REGISTRATION_SIDE_PX = 2048
# Level-0 bytes of a task that writes: small enough for many workers, large enough that few pixels are read twice.
BOX_BYTES = 16 * 2**20
# CPU seconds for the plan: a link between two sections of 768^2 px, and a pixel that is warped, compressed and averaged.
LINK_CPU_S_PER_PX = 0.25 / 768**2
WARP_CPU_S_PER_PX = 30e-9


@dataclass(frozen=True, kw_only=True)
class AlignResult(StageResult):
    """Key figures of an alignment.

    Attributes
    ----------
    passed : bool
        Whether the alignment can be trusted; `verdict` says why.
    sections, registered_sections, interpolated_sections, detached_sections, blank_sections, excluded_sections : int
        All; those that links hold; those without a link that holds, placed between their neighbours; those in a piece that
        no link joins to the rest; those without tissue; those left out by hand.
    links, kept_links, rejected_links : int
        Pairs registered, those that agree with the solution, and those that do not though chance does not explain them.
    median_residual_px, max_residual_px : float
        Between kept links and the solution, over the section.
    median_correlation : float
        NCC of kept links on the shared tissue.
    drift_y_px, drift_x_px, drift_deg : float
        From the least to the greatest displacement and turn of a section.
    """

    passed: bool
    verdict: str
    sections: int
    registered_sections: int
    interpolated_sections: int
    detached_sections: int
    blank_sections: int
    excluded_sections: int
    links: int
    kept_links: int
    rejected_links: int
    median_residual_px: float | None
    max_residual_px: float | None
    median_correlation: float | None
    drift_y_px: float
    drift_x_px: float
    drift_deg: float
    registration_level: int
    shape_tczyx: tuple[int, int, int, int, int]


@stage
def align_sections(
    input: list[VolumeIn],
    output: VolumeOut,
    *,
    transforms_output: TransformsOut | None = None,
    transforms: TransformsIn | None = None,
    reference: VolumeIn | None = None,
    registration_channel: str | None = None,
    method: Literal["ecc", "fourier", "sift"] = "ecc",
    model: Literal["translation", "rigid", "similarity", "affine"] = "rigid",
    neighbours: Annotated[int, Ge(1), Le(10)] = 3,
    exclude_section: list[Annotated[int, Ge(0)]] | None = None,
    registration_level: Annotated[int, Ge(0), Le(12)] | None = None,
    canvas: Literal["whole", "tissue"] = "whole",
    interpolation: Literal["linear", "cubic", "nearest"] = "linear",
    fill_value: float = 0.0,
    voxel_size: VoxelSize | None = None,
    run: RunOptions = RunOptions(),
) -> AlignResult:
    """Align serial sections into one volume, and say how far the result can be trusted.

    Each section is registered with its next neighbours on both sides: first over the full circle and the whole field, since
    sections may lie at any angle, then to a fraction of a pixel. All links are then solved together, robustly: a torn,
    folded or blank section does not break the chain, and the order of the links does not matter. The canvas grows so that
    nothing is cut off.

    A chain of sections cannot tell a structure that really runs aslant or bends from sections that were shifted: it
    straightens real curvature. Where shape matters, give a `--reference` of the uncut tissue, such as block-face pictures.

    Parameters
    ----------
    input : list of str
        One volume whose planes are the sections, or many volumes, images, or folders of images, one section each, taken in
        the natural order of their names.
    output : str
        The aligned volume, OME-Zarr with a pyramid; all channels and time points move together.
    transforms_output : Path, optional
        Table of the transform of every section, from pixels of the output to pixels of the input. Default:
        `<output>-transforms.tsv`.
    transforms : Path, optional
        Table from an earlier run, perhaps edited: sections are placed as it says and nothing is registered. Sections it
        marks excluded are left empty. Options of registration have no effect then.
    reference : str, optional
        Volume of the same tissue before it was cut, at a lower resolution, its planes parallel to the sections: the chain
        is held to it over long distances and keeps its own precision over short ones. Its voxel size must be known.
    registration_channel : str, optional
        Name or number (from 0) of the channel that is registered. Default: the first.
    method : str
        ecc: correlation over the full circle, then ascent of the correlation coefficient (the most precise). fourier: the
        same search, refined by correlation alone. sift: matched key points, for sections whose grey values hardly compare.
    model : str
        What may differ between sections. rigid: shift and turn. similarity also lets them swell, affine also shear; both
        take up real growth of structures too, so use them only for sections that are known to be distorted.
    neighbours : int
        How many sections on, at most, two sections are registered: 3 bridges two bad sections in a row.
    exclude_section : list of int, optional
        Sections to leave out, counted from 0: their planes are left empty.
    registration_level : int, optional
        How many times sections are halved before they are registered. Default: until no side is over 2048 px.
    canvas : str
        whole: holds everything that was imaged. tissue: only what has structure; the empty resin around it may be cut.
    interpolation : str
        linear; cubic is sharper and may overshoot at edges; nearest keeps every value as it was measured, at up to half a
        pixel's error (and is the only one for labels, with --transforms).
    fill_value : float
        Grey value where no section reaches.
    voxel_size : VoxelSize, optional
        Size of a voxel, like x=4nm,y=4nm,z=50nm; z is the thickness of a section. Default: as the input says.
    run : RunOptions
        How the stage runs.

    Returns
    -------
    AlignResult
        Residuals, drift, and what became of each section.

    Raises
    ------
    InputError
        When sections differ in type, channels or pixel size, a section number is beyond the last, the transforms do not
        fit, or the canvas would be absurdly large.
    IncompleteError
        When the input is unfinished.
    ResourceError
        When the disk that is left is smaller than the volume may become.

    References
    ----------
    Evangelidis & Psarakis 2008, doi 10.1109/TPAMI.2008.113 (ecc). Lowe 2004, doi 10.1023/B:VISI.0000029664.99615.94 (sift).
    """
    from dataclasses import replace

    from ..engine import Job, run_tasks
    from ..formats.section_inputs import open_sections
    from ..formats.tables import Transform, read_table, write_table
    from ..formats.volume import create_volume
    from ..numerics.alignment.section_registration import check_method
    from ..numerics.alignment.section_warping import warp_box
    from ..numerics.volumes.volume_writer import VolumeWriter
    from .align_sections_registration import Registration, find_solution, open_reference
    from .align_sections_report import AlignedStack, align_report, review

    check_method(method, model)
    stack = open_sections(input)
    given = read_table(transforms, Transform) if transforms else None
    _check_types(stack, fill_value, labels_allowed=given is not None and interpolation == "nearest")
    size = (voxel_size or VoxelSize()).with_defaults(stack.voxel_size)
    registration = Registration(
        method,
        model,
        0 if given is not None else neighbours,
        _excluded(exclude_section, len(stack.sections)),
        stack.channel_index(registration_channel),
        _halvings(stack, registration_level),
        canvas,
    )
    planes = open_reference(reference, stack, size) if reference and given is None else None
    table = transforms_output or _beside(run, "-transforms.tsv")
    job = Job.open(output, run, side_outputs=[table])
    job.start(_plan(stack, registration))

    solution, linked = find_solution(stack, registration, planes, given, job, run)
    spec, warnings = _volume_spec(stack, solution, size)
    _say_canvas(spec, job)
    create_volume(output, spec)
    writer = VolumeWriter(output, spec)
    tasks = _warp_tasks(writer, stack, solution, interpolation, fill_value)
    run_tasks(warp_box, tasks, job=job, run=run, label="Writing sections", task_bytes=6 * spec.task_bytes)
    writer.finish_levels(job, run)
    write_table(table, solution.rows, Transform)

    aligned = AlignedStack(stack, solution, linked, output, registration.channel, registration.halvings)
    verdict = review(aligned, registered=given is None)
    result = _result(aligned, verdict.passed, verdict.line, spec.shape, (*verdict.warnings, *warnings))
    report = align_report(aligned, verdict, result.figures(), referenced=planes is not None)
    return replace(result, job=job, report=report)


def _beside(run: RunOptions, suffix: str) -> Path:
    if run.call is None:
        raise TypeError("align_sections runs as a stage")
    return run.call.beside_output(suffix)


def _check_types(stack: SectionStack, fill_value: float, *, labels_allowed: bool) -> None:
    """Refuse labels unless they are only moved, and a fill value the type cannot hold."""
    import numpy as np

    if stack.is_labels and not labels_allowed:
        raise InputError(
            "The input holds labels: align the image they belong to, then move the labels along with --transforms and "
            "--interpolation nearest"
        )
    dtype = np.dtype(stack.dtype)
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        if not limits.min <= fill_value <= limits.max or fill_value != int(fill_value):
            raise InputError(
                f"--fill-value is {fill_value:g}, but the sections are {dtype.name}: give a whole number from {limits.min} "
                f"to {limits.max}"
            )


def _excluded(numbers: list[int] | None, count: int) -> frozenset[int]:
    beyond = [number for number in numbers or () if number >= count]
    if beyond:
        raise InputError(
            f"--exclude-section {beyond[0]}: there are {count} sections, numbered from 0 to {count - 1}"
        )
    return frozenset(numbers or ())


def _halvings(stack: SectionStack, level: int | None) -> int:
    """How many times sections are halved for registration."""
    longest = max(max(section.shape_yx) for section in stack.sections)
    if level is None:
        level = 0
        while longest >> level > REGISTRATION_SIDE_PX:
            level += 1
    return level


def _plan(stack: SectionStack, registration: Registration) -> Plan:
    """Costs as long as nobody knows how sections lie: the canvas may turn out larger."""
    from ..engine import Plan
    from .align_sections_registration import FEATURE_BYTES, RUN_SECTIONS

    seen = stack.pixels // 4**registration.halvings
    largest = max(height * width for height, width in (section.shape_yx for section in stack.sections))
    pixels = stack.pixels * len(stack.channel_names) * stack.times
    held = (RUN_SECTIONS + registration.neighbours) * FEATURE_BYTES * largest // 4**registration.halvings
    return Plan(
        tasks=-(-len(stack.sections) // RUN_SECTIONS) + -(-pixels * stack.itemsize // BOX_BYTES),
        read_bytes=(pixels + 2 * seen) * stack.itemsize,
        write_bytes=int(1.5 * pixels * stack.itemsize),
        memory_bytes=max(held, 6 * BOX_BYTES),
        cpu_s=2 + seen * registration.neighbours * LINK_CPU_S_PER_PX + pixels * WARP_CPU_S_PER_PX,
    )


def _volume_spec(
    stack: SectionStack, solution: Solution, size: VoxelSize
) -> tuple[VolumeSpec, tuple[str, ...]]:
    """The volume to write, in place where its frame lies; a voxel size that is not known whole is left out."""
    from ..formats.volume_spec import VolumeSpec

    z, y, x = size.zyx_nm
    known = (z, y, x) if z is not None and y is not None and x is not None else None
    warnings: tuple[str, ...] = ()
    if known is None:
        warnings = ("The voxel size is not known whole: the volume has none; pass --voxel-size",)
    offset = stack.offset_nm
    if known is not None:
        origin = solution.canvas.origin_yx
        offset = (offset[0], offset[1] + origin[0] * known[1], offset[2] + origin[1] * known[2])
    shape = (stack.times, len(stack.channel_names), len(stack.sections), *solution.canvas.shape_yx)
    spec = VolumeSpec.plan(
        shape,
        stack.dtype,
        voxel_size_nm=known,
        kind="labels" if stack.is_labels else "image",
        offset_nm=offset,
        channel_names=stack.channel_names,
        task_bytes=BOX_BYTES,
        lossy_source=stack.lossy,
    )
    return spec, warnings


def _say_canvas(spec: VolumeSpec, job: Job) -> None:
    """Say how large the result is and, the first time, that the disk holds it."""
    from ..engine import say
    from ..store import require_disk

    _, _, depth, height, width = spec.shape
    say(f"Canvas: x={width}, y={height} px for {depth} sections, at most {spec.voxel_bytes / 1e6:.1f} MB")
    if not any(key.startswith("warp-") for key in job.finished_keys()):
        require_disk(job.output, spec.voxel_bytes)


def _warp_tasks(
    writer: VolumeWriter,
    stack: SectionStack,
    solution: Solution,
    interpolation: Literal["linear", "cubic", "nearest"],
    fill_value: float,
) -> list[WarpTask]:
    """One task a channel and box; excluded sections are left empty."""
    from ..numerics.alignment.section_solution import matrix_of
    from ..numerics.alignment.section_warping import WarpTask

    placed = [
        None if row.status == "excluded" else (section, matrix_of(row))
        for section, row in zip(stack.sections, solution.rows, strict=True)
    ]
    shape = writer.spec.levels[0].shape
    return [
        WarpTask(writer, t, c, box, tuple(placed[box.slices(shape)[0]]), interpolation, fill_value)
        for t in range(stack.times)
        for c in range(len(stack.channel_names))
        for box in writer.task_boxes()
    ]


def _result(
    aligned: AlignedStack,
    passed: bool,
    line: str,
    shape: tuple[int, int, int, int, int],
    warnings: tuple[str, ...],
) -> AlignResult:
    from collections import Counter

    import numpy as np

    rows, links = aligned.solution.rows, aligned.solution.links
    states = Counter(row.status for row in rows)
    kept = [review for review in links if review.verdict == "kept"]
    residuals = [review.residual_px for review in kept if review.residual_px is not None]
    span = np.ptp(aligned.drift, axis=0)
    return AlignResult(
        passed=passed,
        verdict=line,
        sections=len(rows),
        registered_sections=states["registered"],
        interpolated_sections=states["interpolated"],
        detached_sections=states["detached"],
        blank_sections=states["blank"],
        excluded_sections=states["excluded"],
        links=len(links),
        kept_links=len(kept),
        rejected_links=sum(review.verdict == "rejected" for review in links),
        median_residual_px=float(np.median(residuals)) if residuals else None,
        max_residual_px=max(residuals, default=None),
        median_correlation=float(np.median([review.link.correlation for review in kept])) if kept else None,
        drift_y_px=float(span[0]),
        drift_x_px=float(span[1]),
        drift_deg=float(span[2]),
        registration_level=aligned.halvings,
        shape_tczyx=shape,
        warnings=warnings,
    )
