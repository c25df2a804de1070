"""stitch-tiles: register overlapping tiles, solve for their positions, fuse them into one volume."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Gt, Lt

from ..geometry import VoxelSize
from ..stage import FolderIn, PositionsIn, PositionsOut, RunOptions, StageResult, TilesIn, VolumeOut, stage

if TYPE_CHECKING:
    from ..engine import Job, Plan
    from ..formats.volume_spec import VolumeSpec
    from ..numerics.stitching.tile_canvas import Canvas
    from ..numerics.stitching.tile_layout import Mosaic
    from ..numerics.stitching.tile_solution import Registration
    from ..numerics.volumes.volume_writer import VolumeWriter

# What a fusing task takes beyond its box: decoded tiles and accumulators.
FUSE_CACHE_BYTES = 100_000_000
# Level-0 bytes of a fusing task: small enough for many workers, large enough that few tiles are read twice.
BOX_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class StitchResult(StageResult):
    """Key figures of a stitch.

    Attributes
    ----------
    passed : bool
        Whether the stitch can be trusted; `verdict` says why.
    tiles, links, accepted_links, components, stage_only_tiles : int
        Places of the mosaic, neighbouring pairs, pairs whose overlap was verified, groups of tiles that links join,
        places without a verified link.
    seams_off, unmatched_links, lost_tiles : int
        Seams that the solution puts wrong by more than 2 px, overlaps with structure that do not match, tiles with
        structure that match no neighbour.
    median_residual_px, max_residual_px : float
        Distance of accepted links from the solution.
    ncc_threshold, median_ncc : float
        Agreement that chance gives at most, and that of the accepted links.
    max_shift_px, max_shift_um, overlap_px : float
        Largest shift from the stage that was searched; nominal overlap.
    stage_scale_x, stage_scale_y, stage_angle_deg, backlash_px : float
        Fitted steps over nominal steps, angle between camera and stage, play of a stage that scans to and fro; medians
        over sections.
    max_cycle_rotation_deg, max_cycle_shift_px : float
        Largest rotation and displacement of a channel or time point, on the same solution, against the registered one.
    shape_tczyx : (5,) int
        Shape of the volume.
    """

    passed: bool
    verdict: str
    tiles: int
    links: int
    accepted_links: int
    components: int
    stage_only_tiles: int
    seams_off: int
    unmatched_links: int
    lost_tiles: int
    median_residual_px: float | None
    max_residual_px: float | None
    ncc_threshold: float | None
    median_ncc: float | None
    max_shift_px: float
    max_shift_um: float | None
    overlap_px: float
    stage_scale_x: float
    stage_scale_y: float
    stage_angle_deg: float
    backlash_px: float
    max_cycle_rotation_deg: float | None
    max_cycle_shift_px: float | None
    shape_tczyx: tuple[int, int, int, int, int]


@stage
def stitch_tiles(
    tiles: list[TilesIn],
    output: VolumeOut,
    *,
    positions_output: PositionsOut | None = None,
    tiles_folder: FolderIn | None = None,
    positions: PositionsIn | None = None,
    overlap: Annotated[float, Gt(0), Lt(1)] | None = None,
    max_shift_um: Annotated[float, Gt(0)] | None = None,
    voxel_size: VoxelSize | None = None,
    registration_channel: str | None = None,
    per_channel: bool = False,
    per_time_point: bool = False,
    planes: Literal["sections", "stack"] = "sections",
    blend: Literal["linear", "none"] = "linear",
    subpixel: Literal["nearest", "linear", "cubic"] = "nearest",
    run: RunOptions = RunOptions(),
) -> StitchResult:
    """Stitch overlapping tiles into one volume, and say how far the result can be trusted.

    Neighbouring tiles are registered by Fourier phase correlation (Kuglin & Hines 1975), each candidate verified by the
    correlation of the real overlap and refined below a pixel. What chance gives is learnt from tiles that do not touch;
    links above that are solved together, robustly, with the fitted stage (step, angle, backlash) as a weak prior. Tiles
    without a verified link, empty ones above all, lie where the fitted stage puts them. One or many sections are
    stitched in one call, each a plane of the volume.

    Parameters
    ----------
    tiles : list of Path
        Table of tiles, from sort-tiles or correct-illumination, or many that belong to one mosaic, such as one for each
        channel. Tiles with the status ok are registered; blank ones are placed by the stage; all others are left out.
        Edit the status to drop a tile.
    output : str
        The stitched volume, OME-Zarr with a pyramid.
    positions_output : Path, optional
        Table of the tiles' positions in the volume. Default: `<output>-positions.tsv`.
    tiles_folder : Path, optional
        Folder that the names in the tables are relative to. Default: each table's own folder.
    positions : Path, optional
        Positions from an earlier run, perhaps edited: tiles are fused there and nothing is registered. Tiles that it
        does not name, or marks excluded, are left out. Options of registration have no effect then.
    overlap : float, optional
        Nominal overlap of neighbours as a fraction of the tile, for grids without stage positions; given, it replaces
        stage positions by row and column. Default: from the stage positions.
    max_shift_um : float, optional
        Largest shift of neighbouring tiles against each other from where the stage put them, in um. Default: half the
        nominal overlap, because a larger one leaves too little to verify; it is printed.
    voxel_size : VoxelSize, optional
        Size of a voxel, like x=0.5um,y=0.5um,z=2um; z is the distance of planes or the section's thickness. Default:
        from the table.
    registration_channel : str, optional
        Channel that positions are solved on, or `sum` for all together. Default: the first in the table.
    per_channel : bool
        Solve every channel by itself instead of all on one solution (for channels imaged in separate runs).
    per_time_point : bool
        Solve every time point by itself instead of all on the first.
    planes : str
        What different z in the table are: `sections`, each solved by itself, or planes of one `stack`, which move
        together (files of one plane each from an optical stack).
    blend : str
        `linear` fades tiles into each other by the distance to their edge; `none` takes each pixel from the one tile
        whose edge is furthest, which keeps noise and values for measurement.
    subpixel : str
        `nearest` rounds tiles to whole pixels, at most half a pixel off, so that every value stays as the camera wrote
        it; `linear` and `cubic` interpolate tiles to their exact place (linear smooths noise unevenly).
    run : RunOptions
        How the stage runs. With a part, each part registers by itself (it is the smaller work) and fuses its share.

    Returns
    -------
    StitchResult

    Raises
    ------
    InputError
        When no tile is ok, tiles differ in type, positions or pixel sizes are missing, two tiles lie at one place, or
        tiles overlap too little to be registered.

    References
    ----------
    Kuglin & Hines 1975, The phase correlation image alignment method. Muhlich et al. 2022, ASHLAR,
    doi 10.1093/bioinformatics/btac544. Chalfoun et al. 2017, MIST, doi 10.1038/s41598-017-04567-y.
    """
    from ..engine import Job, say
    from ..errors import InputError
    from ..formats.tables import Position, read_table, read_tile_tables, write_table
    from ..formats.volume import create_volume
    from ..numerics.stitching.tile_canvas import check_given_rows, make_canvas
    from ..numerics.stitching.tile_layout import LayoutOptions, build_mosaic, check_overlap, mosaic_pairs
    from ..numerics.stitching.tile_solution import register_mosaic, search_margin
    from ..numerics.volumes.volume_writer import VolumeWriter
    from .stitch_tiles_report import stitch_report

    rows, folder = read_tile_tables(tiles, tiles_folder)
    layout = LayoutOptions(overlap, voxel_size, planes, per_channel, per_time_point, registration_channel)
    mosaic = build_mosaic(rows, layout)
    files = sorted({folder / tile.name for site in mosaic.sites for tile in site.tiles})
    absent = [file for file in files if not file.exists()]
    if absent:
        raise InputError(
            f"The table names '{absent[0].name}', which is not in '{folder}': pass --tiles-folder"
        )
    given = check_given_rows(mosaic, read_table(positions, Position)) if positions is not None else None
    pairs = mosaic_pairs(mosaic)
    overlap_px = check_overlap(mosaic, pairs, refuse=given is None)
    table = positions_output or _beside(run, "-positions.tsv")
    job = Job.open(output, run, side_outputs=[table], sources=files)
    job.start(_plan(mosaic))

    margin = search_margin(mosaic, overlap_px, max_shift_um)
    search = Search(overlap_px, margin[2], _in_um(margin[2], mosaic))
    say(search.text() if given is None else "Tiles are fused at the given positions; nothing is registered")
    found = register_mosaic(mosaic, pairs, margin, overlap_px, folder, given, job, run)

    canvas = make_canvas(mosaic, found.rows)
    spec, warnings = _volume_spec(mosaic, canvas)
    create_volume(output, spec)
    writer = VolumeWriter(output, spec)
    _fuse(mosaic, canvas, writer, folder, blend, subpixel, job, run)
    writer.finish_levels(job, run)
    write_table(table, canvas.rows, Position)
    result = _result(mosaic, found, canvas, search, warnings)
    return replace(result, job=job, report=stitch_report(mosaic, found, canvas, output, result.figures()))


def _beside(run: RunOptions, suffix: str) -> Path:
    if run.call is None:
        raise TypeError("stitch_tiles runs as a stage")
    return run.call.beside_output(suffix)


def _in_um(px: float, mosaic: Mosaic) -> float | None:
    size = mosaic.voxel_size.zyx_um[2]
    return None if size is None else px * size


@dataclass(frozen=True)
class Search:
    """How far from the stage's positions matches are looked for."""

    overlap_px: float
    max_shift_px: int
    max_shift_um: float | None

    def text(self) -> str:
        """The search in one line."""
        um = "pixel size unknown" if self.max_shift_um is None else f"{self.max_shift_um:.4g} um"
        return (
            f"Nominal overlap {self.overlap_px:.0f} px; neighbours are looked for up to {self.max_shift_px} px ({um}) from "
            "where the stage put them"
        )


def _plan(mosaic: Mosaic) -> Plan:
    """Costs from the nominal layout; the fused canvas is a little smaller than its tiles."""
    import numpy as np

    from ..engine import Plan

    voxels = sum(int(np.prod(site.shape)) * len(site.tiles) for site in mosaic.sites)
    pixel_bytes = np.dtype(mosaic.dtype).itemsize
    extent = (mosaic.nominal + mosaic.shapes).max(axis=0) - mosaic.nominal.min(axis=0)
    canvas = float(np.prod(extent)) * mosaic.sections * len(mosaic.channels) * len(mosaic.times)
    boxes = -(-int(canvas * pixel_bytes) // BOX_BYTES)
    return Plan(
        tasks=boxes + -(-len(mosaic.sites) // 64),
        read_bytes=2 * voxels * pixel_bytes,
        write_bytes=int(1.4 * min(canvas, 2 * voxels) * pixel_bytes),
        memory_bytes=FUSE_CACHE_BYTES + 4 * BOX_BYTES,
        cpu_s=2.0 + voxels / 25e6,
    )


def _volume_spec(mosaic: Mosaic, canvas: Canvas) -> tuple[VolumeSpec, tuple[str, ...]]:
    """The volume to write; a voxel size that is not known whole is left out, with a warning."""
    from ..formats.volume_spec import VolumeSpec

    z, y, x = mosaic.voxel_size.zyx_nm
    warnings: tuple[str, ...] = ()
    if z is None and x is not None and canvas.shape[2] == 1:
        z = x  # a single plane has no distance to a next one
    size = (z, y, x) if z is not None and y is not None and x is not None else None
    if size is None:
        warnings = ("The voxel size is not known whole: the volume has none; pass --voxel-size",)
    spec = VolumeSpec.plan(
        canvas.shape, mosaic.dtype, voxel_size_nm=size, channel_names=mosaic.channels, task_bytes=BOX_BYTES
    )
    return spec, warnings


def _fuse(
    mosaic: Mosaic,
    canvas: Canvas,
    writer: VolumeWriter,
    folder: Path,
    blend: Literal["linear", "none"],
    subpixel: Literal["nearest", "linear", "cubic"],
    job: Job,
    run: RunOptions,
) -> None:
    from ..engine import run_tasks
    from ..numerics.stitching.fusion import FuseTask, TileIndex, fuse_box
    from ..numerics.stitching.tile_canvas import placed_tiles

    tasks = []
    shape = writer.spec.levels[0].shape
    for (t, c), placed in sorted(placed_tiles(mosaic, canvas).items()):
        index = TileIndex(placed)
        for box in writer.task_boxes():
            parts = box.slices(shape)
            near = index.touching([part.start for part in parts], [part.stop for part in parts])
            tasks.append(FuseTask(writer, folder, t, c, box, tuple(near), blend, subpixel))
    task_bytes = FUSE_CACHE_BYTES + 4 * writer.spec.task_bytes
    run_tasks(fuse_box, tasks, job=job, run=run, label="Fusing tiles", task_bytes=task_bytes)


def _result(
    mosaic: Mosaic, found: Registration, canvas: Canvas, search: Search, warnings: tuple[str, ...]
) -> StitchResult:
    import numpy as np

    from ..numerics.stitching.tile_graph import OFF_PX

    links, placement, verdict = found.links, found.placement, found.verdict
    residuals = placement.residuals[links.accepted]
    some, held = len(residuals) > 0, placement.linked > 0
    stages = placement.stages
    angles = [abs(cycle.angle_deg) for cycle in found.cycles if cycle.angle_deg is not None]
    shifts = [cycle.off_px for cycle in found.cycles if cycle.off_px is not None]
    if shifts and max(shifts) > OFF_PX:
        warnings = (
            f"A channel or time point lies up to {max(shifts):.1f} px off the registered one (rotation up to "
            f"{max(angles):.2f} deg): solve it by itself (--per-channel, --per-time-point) and align the volumes",
            *warnings,
        )
    if not verdict.passed:
        warnings = (f"FAIL: {verdict.line}", *warnings)
    return StitchResult(
        passed=verdict.passed,
        verdict=verdict.line,
        tiles=len(mosaic.sites),
        links=len(links.found),
        accepted_links=int(links.accepted.sum()),
        components=len(
            {(int(g), int(c)) for g, c in zip(mosaic.groups[held], placement.component[held], strict=True)}
        ),
        stage_only_tiles=int((~held).sum()),
        seams_off=len(verdict.seams_off),
        unmatched_links=len(verdict.unmatched),
        lost_tiles=len(verdict.lost),
        median_residual_px=float(np.median(residuals)) if some else None,
        max_residual_px=float(residuals.max()) if some else None,
        ncc_threshold=links.threshold if some else None,
        median_ncc=float(np.median(links.ncc[links.accepted])) if some else None,
        max_shift_px=search.max_shift_px,
        max_shift_um=search.max_shift_um,
        overlap_px=search.overlap_px,
        stage_scale_x=float(np.median([stage.scale_yx[1] for stage in stages])),
        stage_scale_y=float(np.median([stage.scale_yx[0] for stage in stages])),
        stage_angle_deg=float(np.median([stage.angle_deg for stage in stages])),
        backlash_px=float(np.median([stage.backlash_px for stage in stages])),
        max_cycle_rotation_deg=max(angles) if angles else None,
        max_cycle_shift_px=max(shifts) if shifts else None,
        shape_tczyx=canvas.shape,
        warnings=warnings,
    )
