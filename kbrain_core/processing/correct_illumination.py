"""Stage correct-illumination: the same thing is equally bright wherever in a tile it lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from ..errors import InputError
from ..stage import FileIn, FileOut, FolderIn, FolderOut, RunOptions, StageResult, TilesIn, TilesOut, stage

if TYPE_CHECKING:
    from ..engine import Job, Plan
    from ..formats.tables import Tile
    from ..numerics.illumination.illumination_estimate import GroupFields
    from ..numerics.illumination.illumination_tasks import CorrectTask, Group
    from ..numerics.illumination.plane_lines import PlaneLines
    from ..numerics.illumination.tile_correction import Recipe, Steps

Switch = Literal["auto", "on", "off"]

_TASK_PIXELS = 32_000_000  # a marker per 32 megapixels: little is lost by a kill, little is spent on markers
_PREVIEW_TILES = 400
# Measured on a plane corrected by flat field and dark level, CPU seconds a byte: for the plan only.
_CPU_S_PER_BYTE = 2e-8


@dataclass(frozen=True, kw_only=True)
class IlluminationResult(StageResult):
    """What correct-illumination did.

    Shading is ``(max - min) / mean`` over the field; the worst channel counts. The residual is what is expected to remain.
    """

    passed: bool = False
    verdict: str = ""
    steps: tuple[str, ...] = ()
    tiles_corrected: int = 0
    tiles_carried: int = 0
    channels: tuple[str, ...] = ()
    shading_percent: float | None = None
    residual_shading_percent: float | None = None
    dark_levels: tuple[float, ...] = ()
    clipped_low_fraction: float = 0.0
    clipped_high_fraction: float = 0.0


@stage
def correct_illumination(
    tiles: TilesIn,
    output: FolderOut,
    tiles_output: TilesOut,
    *,
    tiles_folder: FolderIn | None = None,
    preset: Literal["fluorescence", "confocal", "light-sheet", "bright-field", "em", "none"] = "fluorescence",
    flat_field: Switch = "auto",
    flat_field_input: FileIn | None = None,
    flat_field_output: FileOut | None = None,
    dark: Switch = "auto",
    dark_input: FileIn | None = None,
    dark_level: Annotated[float, Ge(0)] | None = None,
    dark_output: FileOut | None = None,
    estimate_planes: Annotated[int, Ge(6), Le(1000)] = 128,
    depth_loss: Switch = "auto",
    stripes: Switch = "auto",
    curtains: Switch = "auto",
    stripe_direction: Literal["auto", "horizontal", "vertical"] = "auto",
    stripe_level: Annotated[int, Ge(1), Le(12)] | None = None,
    stripe_sigma: Annotated[float, Gt(0), Le(100)] = 2.0,
    background: Switch = "auto",
    background_radius_um: Annotated[float, Gt(0)] = 50.0,
    denoise: Literal["auto", "none", "median", "gaussian", "nl-means"] = "auto",
    section_contrast: Switch = "auto",
    invert: Switch = "auto",
    clahe: bool = False,
    clahe_limit: Annotated[float, Gt(0), Le(1)] = 0.01,
    compression: Literal["none", "zlib"] = "none",
    run: RunOptions = RunOptions(),
) -> IlluminationResult:
    """Correct the illumination of tiles: shading over the field, loss with depth, stripes, background and contrast.

    A preset says which steps are done, and each step can be switched on or off by its own option. fluorescence: dark
    level, flat field. confocal: dark level, flat field, loss with depth. light-sheet: dark level, flat field, loss
    with depth, stripes. bright-field: flat field. em: dark level (only where blank tiles tell it, because the black
    of an EM detector is set by hand), flat field, contrast of sections. none: nothing. Curtains, background,
    denoising, inversion and CLAHE are done only when asked for; with none and nothing else, tiles are handed on as they
    are, so that a workflow can switch the correction off. The order is always: dark level, flat field, stripes,
    curtains, background, denoising, loss with depth or contrast of sections, inversion, CLAHE.

    Flat field and dark level are estimated for each channel from a sample of its tiles, or given as images. The type of
    the tiles is kept: values are rounded half to even, and clipped pixels are counted. Every tile becomes an
    OME-TIFF of its own.

    Parameters
    ----------
    tiles : Path
        Table of tiles, from sort-tiles. Tiles with the status ok teach the correction and are corrected; blank ones are
        corrected where they can be read; rows with another status are handed on as they are.
    output : Path
        Folder for the corrected tiles.
    tiles_output : Path
        Table of the corrected tiles, for stitch-tiles: the same rows with the new files.
    tiles_folder : Path, optional
        Folder that the names in the table are relative to. Default: the table's own folder.
    preset : str
        The microscope: fluorescence (wide field), confocal, light-sheet, bright-field, em (electron microscope), or none,
        which does only the steps that are switched on.
    flat_field : str
        Divide by the relative brightness over the field: auto (as the preset says), on or off.
    flat_field_input : Path, optional
        A measured flat field, an image without a sample at the size of the tiles, one for all channels or one for each, in
        the order of the table. Integer images are raw (the dark level is subtracted), floating point is taken as it is.
    flat_field_output : Path, optional
        Where the flat fields go, OME-TIFF of 32-bit floating point, mean 1, a channel each.
    dark : str
        Subtract the grey value without light: auto (as the preset says), on or off.
    dark_input : Path, optional
        Image taken without light at the size of the tiles; planes are averaged.
    dark_level : float, optional
        The grey value without light, when it is known (many cameras: 100).
    dark_output : Path, optional
        Where the dark images go, as for --flat-field-output.
    estimate_planes : int
        Most planes per channel that are looked at to estimate flat field and dark level. 128 planes put content's share in
        the estimate below a tenth.
    depth_loss : str
        Lift deep planes by the exponential loss of light that is fitted to the stack: auto (as the preset says, and only for
        tiles that are stacks), on (also for single planes with their z in the table) or off.
    stripes : str
        Remove shadow stripes of light sheets, by wavelets and Fourier transform: auto (as the preset says), on or off.
    curtains : str
        Remove curtains of FIB milling, in the same way: auto (as the preset says), on or off.
    stripe_direction : str
        The way the stripes run: auto (stripes horizontal, curtains vertical), horizontal (along x) or vertical (along y).
    stripe_level : int, optional
        Wavelet levels: stripes up to about 2 to this power pixels wide are removed. Default: up to an eighth of the tile.
    stripe_sigma : float
        How far along the stripe it may change, in Fourier coefficients of the tile's length: 2 takes stripes that cross the
        tile; larger values take shorter ones, and more of the image.
    background : str
        Subtract the background, found by an opening with a disk: auto (as the preset says), on or off.
    background_radius_um : float
        Radius of the disk in um, larger than what is to be kept: 50 is above the largest cell bodies.
    denoise : str
        Take out noise: auto (as the preset says), none, median (3 x 3), gaussian (sigma 1 px) or nl-means (non-local means;
        slow). Never before quantification of noise or texture.
    section_contrast : str
        Bring median and spread of the grey values of each section (and each plane of a stack) to those of the middle section
        of the channel: auto (as the preset says), on or off. Never before quantification of brightness.
    invert : str
        Turn dark and bright around, for EM recorded with bright membranes: auto (as the preset says), on or off.
    clahe : bool
        Equalise contrast locally (contrast-limited adaptive histogram equalisation, 8 x 8 windows). For looking only: never
        before quantification, because equal brightness no longer means equal signal.
    clahe_limit : float
        Largest share of a window that one of 256 grey levels may count, 0 to 1; larger is stronger. 0.01 keeps noise down.
    compression : str
        Of the corrected files: none (fast to write and read) or zlib.
    run : RunOptions
        How the stage runs.

    Returns
    -------
    IlluminationResult

    Raises
    ------
    InputError
        When no tile is ok, a tile is not there, the flat field is asked for and cannot be estimated, a given image is of
        another size, or a step lacks what it needs (pixel size for the background).

    References
    ----------
    Peng et al. 2017, BaSiC, doi 10.1038/ncomms14836. Münch et al. 2009, stripes, doi 10.1364/OE.17.008567.
    """
    from ..engine import Job, run_tasks
    from ..formats.tables import read_tiles
    from ..numerics.illumination.illumination_estimate import FieldsRequest, estimate_fields
    from ..numerics.illumination.illumination_tasks import correct_tiles
    from ..numerics.illumination.tile_correction import PRESETS, Recipe, Steps

    base = PRESETS[preset]
    steps = Steps(
        dark="on" if dark_input or dark_level is not None else base.dark if dark == "auto" else dark,
        flat_field=flat_field_input is not None or _is_on(flat_field, base.flat_field),
        depth_loss=_is_on(depth_loss, base.depth_loss),
        stripes=_is_on(stripes, base.stripes),
        curtains=_is_on(curtains, base.curtains),
        background=_is_on(background, base.background),
        denoise=base.denoise if denoise == "auto" else denoise,
        section_contrast=_is_on(section_contrast, base.section_contrast),
        invert=_is_on(invert, base.invert),
        clahe=clahe,
    )
    _check_given(
        flat_field, (flat_field_input, flat_field_output), dark, (dark_input, dark_level, dark_output)
    )
    recipe = Recipe(
        steps=steps,
        stripe_direction=stripe_direction,
        stripe_level=stripe_level,
        stripe_sigma=stripe_sigma,
        background_radius_um=background_radius_um,
        clahe_limit=clahe_limit,
    )
    folder = tiles_folder or tiles.parent
    rows = read_tiles(tiles)
    chosen = _choose(rows, folder, steps)
    side_outputs = [path for path in (tiles_output, flat_field_output, dark_output) if path is not None]
    job = Job.open(output, run, side_outputs, sources=sorted({folder / tile.name for tile in chosen}))
    _prepare(side_outputs, job, run)
    job.start(_plan(chosen))

    request = FieldsRequest(
        flat=steps.flat_field,
        dark=steps.dark,
        flat_required=flat_field == "on",
        flat_input=flat_field_input,
        dark_input=dark_input,
        dark_level=dark_level,
        planes=estimate_planes,
    )
    found = (
        estimate_fields(chosen, folder, request, job, run) if steps.flat_field or steps.dark != "off" else {}
    )
    lines = _plane_lines(chosen, folder, found, steps, depth_loss == "on", run)
    tasks = _tasks(chosen, folder, output, found, lines, recipe, compression)
    pixels = max((tile.height_px or 0) * (tile.width_px or 0) for tile in chosen)
    results = run_tasks(
        correct_tiles, tasks, job=job, run=run, label="Correcting tiles", task_bytes=40 * pixels + 64_000_000
    )
    done = [result for part in results for result in part]
    warnings = _write_outputs(
        rows, chosen, done, tasks, output, tiles_output, found, flat_field_output, dark_output
    )
    result = _result(rows, chosen, done, found, steps, (*warnings, *_warnings(found, lines, steps)))
    return replace(result, job=job, report=_report(chosen, folder, tasks, done, found, lines, recipe, result))


def _is_on(switch: Switch, preset: bool) -> bool:
    return preset if switch == "auto" else switch == "on"


def _check_given(
    flat_field: Switch, flat_files: Sequence[Path | None], dark: Switch, dark_given: Sequence[Any]
) -> None:
    """Refuse options that contradict each other; `dark_given` is the dark image, the dark level and the output."""
    if flat_field == "off" and any(flat_files):
        raise InputError("--flat-field is off and a flat field is given or asked for: leave one of them out")
    if dark == "off" and any(item is not None for item in dark_given):
        raise InputError("--dark is off and a dark level is given or asked for: leave one of them out")
    if dark_given[0] is not None and dark_given[1] is not None:
        raise InputError("--dark-input and --dark-level are both given: leave one of them out")


def _choose(rows: Sequence[Tile], folder: Path, steps: Steps) -> list[Tile]:
    """Choose the tiles to correct; everything that can be wrong with them is found before any work."""
    if steps.depth_loss and steps.section_contrast:
        raise InputError(
            "--depth-loss and --section-contrast both level the brightness over z: switch one of them off"
        )
    ok = [tile for tile in rows if tile.status == "ok"]
    if not ok:
        raise InputError(
            "No tile in the table has the status ok: look at the report of sort-tiles, and correct the table"
        )
    for tile in ok:
        if not (tile.width_px and tile.height_px and tile.dtype):
            raise InputError(f"'{tile.name}' has no size or type in the table: run sort-tiles again")
        if not (folder / tile.name).exists():
            raise InputError(
                f"The table names '{tile.name}', which is not in '{folder}': pass --tiles-folder"
            )
        if steps.background and tile.pixel_x_um is None:
            raise InputError(
                f"'{tile.name}' has no pixel size, which the background's radius in um needs: run sort-tiles with "
                "--voxel-size, or pass --background off"
            )
        if (steps.invert or steps.clahe) and tile.dtype.startswith("float"):
            raise InputError(
                f"'{tile.name}' is {tile.dtype}, which has no white: inversion and CLAHE need integer images"
            )
    blank = [
        tile
        for tile in rows
        if tile.status == "blank" and tile.width_px and tile.height_px and (folder / tile.name).exists()
    ]
    both = {id(tile) for tile in (*ok, *blank)}
    return [tile for tile in rows if id(tile) in both]


def _prepare(side_outputs: Sequence[Path], job: Job, run: RunOptions) -> None:
    """Refuse to replace files, but for those that this same job wrote before it was interrupted."""
    from ..store import prepare_file_output

    for path in side_outputs:
        prepare_file_output(path, run.overwrite or job.resumed)


def _plan(tiles: Sequence[Tile]) -> Plan:
    import numpy as np

    from ..engine import Plan

    sizes = [
        (tile.depth_px or 1) * (tile.height_px or 0) * (tile.width_px or 0) * np.dtype(tile.dtype).itemsize
        for tile in tiles
    ]
    largest = max((tile.height_px or 0) * (tile.width_px or 0) for tile in tiles)
    total = sum(sizes)
    return Plan(
        tasks=len(_batches(tiles)),
        read_bytes=total,
        write_bytes=total + 4000 * len(tiles),
        memory_bytes=40 * largest + 64_000_000,
        cpu_s=total * _CPU_S_PER_BYTE,
    )


def _batches(tiles: Sequence[Tile]) -> list[tuple[int, int]]:
    """Cut the tiles into tasks of about 32 megapixels: (start, stop) of each."""
    found, start, pixels = [], 0, 0
    for index, tile in enumerate(tiles):
        pixels += (tile.depth_px or 1) * (tile.height_px or 0) * (tile.width_px or 0)
        if pixels >= _TASK_PIXELS or index == len(tiles) - 1:
            found.append((start, index + 1))
            start, pixels = index + 1, 0
    return found


def _plane_lines(
    tiles: Sequence[Tile],
    folder: Path,
    found: dict[Group, GroupFields],
    steps: Steps,
    single_planes: bool,
    run: RunOptions,
) -> PlaneLines:
    """Measure what changes from plane to plane, where a step wants it."""
    from ..numerics.illumination.plane_lines import NO_LINES, depth_loss, section_contrast

    paths = {group: estimate.path for group, estimate in found.items()}
    if steps.section_contrast:
        return section_contrast(tiles, folder, paths, run)
    if steps.depth_loss and (single_planes or any((tile.depth_px or 1) > 1 for tile in tiles)):
        return depth_loss(tiles, folder, paths, run)
    return NO_LINES


def _tasks(
    tiles: Sequence[Tile],
    folder: Path,
    output: Path,
    found: dict[Group, GroupFields],
    lines: PlaneLines,
    recipe: Recipe,
    compression: Literal["none", "zlib"],
) -> list[CorrectTask]:
    from ..formats.tile_files import tile_file_names
    from ..numerics.illumination.illumination_tasks import CorrectTask, TileWork, group_of
    from ..numerics.illumination.plane_lines import stack_planes

    planes, first_z = stack_planes(tiles)
    shown = {id(tile) for tile in _preview_tiles(tiles)}
    preview_px = min(256, 1600 // math.isqrt(len(shown)))  # the mosaic fills a page
    works = [
        TileWork(
            tile=tile,
            output=str(output / name),
            fields=found[group_of(tile)].path if found else None,
            lines=lines.of_tile(tile, planes, first_z),
            preview_px=preview_px if id(tile) in shown else 0,
        )
        for tile, name in zip(tiles, tile_file_names(tiles))
    ]
    return [
        CorrectTask(f"tiles-{start:06d}", str(folder), tuple(works[start:stop]), recipe, compression)
        for start, stop in _batches(tiles)
    ]


def _preview_tiles(tiles: Sequence[Tile]) -> list[Tile]:
    """Tiles of the report's mosaic: the first channel's section (and time point) with the most of them."""
    places: dict[tuple[str, int, int], list[Tile]] = {}
    for tile in tiles:
        if tile.channel == tiles[0].channel:
            places.setdefault((tile.channel, tile.t, tile.z), []).append(tile)
    return max(places.values(), key=len)[:_PREVIEW_TILES]


def _write_outputs(
    rows: Sequence[Tile],
    chosen: Sequence[Tile],
    done: Sequence[dict[str, Any]],
    tasks: Sequence[CorrectTask],
    output: Path,
    tiles_output: Path,
    found: dict[Group, GroupFields],
    flat_field_output: Path | None,
    dark_output: Path | None,
) -> tuple[str, ...]:
    """Write the table of corrected tiles and the fields; return warnings."""
    from ..formats.tables import write_tiles
    from ..numerics.illumination.illumination_estimate import write_fields

    base, folder = tiles_output.absolute().parent, output.absolute()
    inside = folder.is_relative_to(base)
    prefix = folder.relative_to(base).as_posix() + "/" if inside and folder != base else ""
    works = [work for task in tasks for work in task.works]
    renamed = {
        id(tile): replace(
            tile, name=prefix + Path(work.output).name, series=0, page=0, sha256=result["sha256"]
        )
        for tile, work, result in zip(chosen, works, done)
        if result["sha256"] is not None
    }
    write_tiles(tiles_output, [renamed.get(id(tile), tile) for tile in rows])
    if flat_field_output is not None:
        write_fields(flat_field_output, found, "flat")
    if dark_output is not None:
        write_fields(dark_output, found, "dark")
    if inside:
        return ()
    return (
        f"'{tiles_output.name}' names files in '{output}': pass --tiles-folder {output} to the next stage",
    )


def _warnings(found: dict[Group, GroupFields], lines: PlaneLines, steps: Steps) -> tuple[str, ...]:
    warnings = [warning for estimate in found.values() for warning in estimate.warnings]
    if steps.clahe:
        warnings.append(
            "CLAHE was asked for: these tiles are for looking only, never measure brightness in them"
        )
    if steps.depth_loss and lines.light and not lines.loss:
        warnings.append("No certain loss of light with depth was found: planes keep their brightness")
    return tuple(warnings)


def _result(
    rows: Sequence[Tile],
    chosen: Sequence[Tile],
    done: Sequence[dict[str, Any]],
    found: dict[Group, GroupFields],
    steps: Steps,
    warnings: tuple[str, ...],
) -> IlluminationResult:
    from .correct_illumination_report import verdict_of

    pixels = sum((t.depth_px or 1) * (t.height_px or 0) * (t.width_px or 0) for t in chosen)
    residuals = [e.residual_percent for e in found.values() if e.residual_percent is not None]
    shadings = [e.shading_percent for e in found.values() if e.shading_percent is not None]
    corrected = sum(result["sha256"] is not None for result in done)
    result = IlluminationResult(
        steps=steps.names(),
        tiles_corrected=corrected,
        tiles_carried=len(rows) - corrected,
        channels=tuple(dict.fromkeys(tile.channel for tile in chosen)),
        shading_percent=round(max(shadings), 3) if shadings else None,
        residual_shading_percent=round(max(residuals), 3) if residuals else None,
        dark_levels=tuple(round(estimate.dark_level, 3) for estimate in found.values()),
        clipped_low_fraction=sum(result["below"] for result in done) / pixels,
        clipped_high_fraction=sum(result["above"] for result in done) / pixels,
        warnings=warnings,
    )
    passed, verdict = verdict_of(found, steps, result.clipped_high_fraction)
    return replace(result, passed=passed, verdict=verdict)


def _report(
    tiles: Sequence[Tile],
    folder: Path,
    tasks: Sequence[CorrectTask],
    done: Sequence[dict[str, Any]],
    found: dict[Group, GroupFields],
    lines: PlaneLines,
    recipe: Recipe,
    result: IlluminationResult,
) -> Any:
    from .correct_illumination_report import make_report

    works = [work for task in tasks for work in task.works]
    return make_report(works, done, folder, found, lines, recipe, result.figures(), result.warnings)
