"""Stage sort-tiles: from a folder of raw files to a table that says what every tile is, where it lies and how good it is."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from ..errors import InputError, StageStopped
from ..geometry import AxisInts, VoxelSize
from ..stage import FileIn, FolderIn, FolderOut, ImageIn, RunOptions, StageResult, TilesOut, stage

if TYPE_CHECKING:
    from ..formats.tables import Tile
    from ..formats.tile_layouts import Layout
    from ..numerics.sorting.tile_measurement import MeasuredTile
    from ..numerics.sorting.tile_placing import PlacedTile
    from ..numerics.sorting.tile_review import TileProblem
    from ..report import Report

# All thumbnails together have about this many pixels, so the parent's memory does not follow the number of tiles.
_THUMBNAIL_PIXELS = 6_000_000
_LONGEST_THUMBNAIL_PX = 192
_SHORTEST_THUMBNAIL_PX = 12
# Reading, checksum and measuring, CPU seconds a byte: for the plan only.
_CPU_S_PER_BYTE = 3e-8


@dataclass(frozen=True, kw_only=True)
class SortResult(StageResult):
    """What sort-tiles found."""

    passed: bool = False
    verdict: str = ""
    rows: int = 0
    tiles_ok: int = 0
    tiles_missing: int = 0
    tiles_duplicate: int = 0
    tiles_unreadable: int = 0
    tiles_blank: int = 0
    tiles_excluded: int = 0
    image_again: tuple[str, ...] = ()
    sections: int = 0
    channels: tuple[str, ...] = ()
    grid_rows: int = 0
    grid_columns: int = 0
    overlap_x_share: float | None = None
    overlap_y_share: float | None = None
    placed_share: float = 0.0
    decisions: tuple[str, ...] = ()


@stage
def sort_tiles(
    input: list[ImageIn],
    output: TilesOut,
    *,
    layout: FileIn | None = None,
    pattern: str | None = None,
    voxel_size: VoxelSize | None = None,
    overlap: Annotated[float, Ge(0), Lt(1)] | None = None,
    grid: AxisInts | None = None,
    grid_order: Literal["rows", "rows-snake", "columns", "columns-snake"] = "rows",
    stack_as: Literal["depth", "sections"] = "depth",
    flip_x: bool = False,
    flip_y: bool = False,
    exclude: list[str] | None = None,
    extract_to: FolderOut | None = None,
    tiles_folder: FolderIn | None = None,
    channel_tables_output: FolderOut | None = None,
    max_saturated_fraction: Annotated[float, Ge(0), Le(1)] = 0.01,
    focus_mads: Annotated[float, Gt(0)] = 3.5,
    run: RunOptions = RunOptions(),
) -> SortResult:
    r"""Sort raw tiles: find out what each file holds and where it lies, and say which tiles to image again.

    Every file is read once. Channel, time point, section, row, column, view and stage position come from what you give
    (--layout, --pattern), from side files beside the tiles (layout.tsv, SerialEM .mdoc, Fiji TileConfiguration.txt), from
    the metadata of the images, and from the file names, in this order; the report says which was used. Missing, copied,
    unreadable and blank tiles are rows with a status. The page with the report passes or fails the acquisition.

    Parameters
    ----------
    input : list of str
        Files; folders, searched with the folders in them; zip or tar archives (with --extract-to); text files (.txt) that
        list one path a line.
    output : Path
        Table of the tiles (TSV), one row per tile and channel.
    layout : Path, optional
        File that says where the tiles lie: Fiji TileConfiguration (2D or 3D), SerialEM .mdoc, or a table with a column file
        and x_px, y_px, z (section), or row, col, or stage_x_um, stage_y_um. y grows downwards. Tiles it does not list are
        excluded.
    pattern : str, optional
        Regular expression for file names with named groups out of row, col, z, t, tile, channel, view, section, x_um, y_um,
        z_um, like `r(?P<row>\d+)_c(?P<col>\d+)`. By default the naming schemes of the usual instruments are tried.
    voxel_size : VoxelSize, optional
        Pixel size and z step, like x=0.5um,y=0.5um,z=2um; comes before what the metadata say.
    overlap : float, optional
        Share of a tile that neighbours have in common, 0 to 1. It turns rows and columns into stage positions when nothing
        else gives positions; without it rows and columns alone are kept.
    grid : AxisInts, optional
        Columns and rows of the scan, like x=7,y=2, for files that only count their tiles.
    grid_order : str
        How numbered tiles run over the grid: by rows or by columns, from the top left; snake: to and fro.
    stack_as : str
        What the planes of a multi-page file are: depth, one 3D tile; sections, a section each.
    flip_x : bool
        The stage's x grows to the left of the image (positions in um only).
    flip_y : bool
        The stage's y grows upwards in the image, as on many electron microscopes (positions in um only).
    exclude : list of str, optional
        Names of tiles to leave out; `*` and `?` stand for any text and any character.
    extract_to : Path, optional
        Folder where archives are unpacked, once.
    tiles_folder : Path, optional
        Folder that the names in the table are relative to. Default: the table's own folder.
    channel_tables_output : Path, optional
        Folder for further tables, one for each channel and named after it, for work on channels by themselves. The names in
        them are relative to --tiles-folder, or else to this folder.
    max_saturated_fraction : float
        Share of saturated pixels, 0 to 1, above which a tile is to be imaged again. 1 percent of lost pixels is where
        measured intensities become wrong.
    focus_mads : float
        How many robust standard deviations (1.4826 median absolute deviations) under the median of its channel the
        logarithm of a tile's focus score or signal to noise may be. 3.5 is the usual limit for outliers.
    run : RunOptions
        How the stage runs.

    Returns
    -------
    SortResult
        Counts per status, the verdict, and the tiles to image again.

    Raises
    ------
    InputError
        When there are no tiles, none can be read, two are at one place, the pattern or layout does not fit, or positions in
        px meet an unknown voxel size.
    """
    from ..formats.tables import prepare_channel_tables, write_channel_tables, write_tiles
    from ..formats.tile_names import compile_pattern
    from ..numerics.sorting.tile_placing import PlacingOptions, place_tiles
    from ..numerics.sorting.tile_review import (
        find_problems,
        mark_tiles,
        missing_rows,
        set_warnings,
        sorted_rows,
        with_neighbour_positions,
    )
    from ..store import prepare_file_output
    from .sort_tiles_report import make_report, verdict_line

    options = PlacingOptions(
        voxel_size=voxel_size or VoxelSize(),
        pattern=None if pattern is None else compile_pattern(pattern),
        grid=_grid_shape(grid),
        grid_order=grid_order,
        overlap=overlap,
        flip_x=flip_x,
        flip_y=flip_y,
    )
    prepare_file_output(output, run.overwrite)
    if channel_tables_output:
        prepare_channel_tables(channel_tables_output, run.overwrite)
    files, given, side_files, ignored = _collect(input, layout, extract_to, run)
    measured = _measure(files, [*side_files, *([given] if given else [])], stack_as, run)
    root = _common_folder(files)
    placed = place_tiles(measured, root, given, side_files, options)
    rows = mark_tiles(placed.rows, exclude or [])
    rows += missing_rows(rows, options.grid if placed.numbered else None)
    rows = sorted_rows(with_neighbour_positions(rows))
    problems = find_problems(rows, max_saturated_fraction=max_saturated_fraction, focus_mads=focus_mads)
    warnings = (*placed.warnings, *set_warnings(rows), *(f"Left aside: {text}" for text in ignored))
    verdict = verdict_line(rows, problems)
    report = make_report(rows, problems, placed.decisions, warnings, focus_mads)
    report.verdict(*verdict)
    if channel_tables_output:
        base = (tiles_folder or channel_tables_output).absolute()
        write_channel_tables(channel_tables_output, [_named_from(row, root, base) for row in rows])
    base = (tiles_folder or output.parent).absolute()
    write_tiles(output, [_named_from(row, root, base) for row in rows])
    return _result(rows, problems, placed.decisions, warnings, verdict, report)


def _grid_shape(grid: AxisInts | None) -> tuple[int, int] | None:
    if grid is None:
        return None
    if grid.x is None or grid.y is None:
        raise InputError(f"--grid {grid} lacks an axis: give columns and rows, like x=7,y=2")
    return (grid.y, grid.x)


def _collect(
    inputs: Sequence[str], layout: Path | None, extract_to: Path | None, run: RunOptions
) -> tuple[tuple[Path, ...], Layout | None, list[Layout], tuple[str, ...]]:
    """The image files, the layout that was given, those that lie beside the files, and what was left aside."""
    from ..formats.tile_inputs import collect_tile_files
    from ..formats.tile_layouts import find_side_files, read_layout

    found = collect_tile_files(inputs, extract_to=extract_to, overwrite=run.overwrite, dry_run=run.dry_run)
    named = [*found.layouts, *([layout] if layout else [])]
    if len(set(named)) > 1:
        raise InputError(
            f"There are {len(named)} layouts ({', '.join(path.name for path in named[:3])}): give one"
        )
    given = read_layout(named[0]) if named else None
    side_files = [] if given else [read_layout(path) for path in find_side_files(found.folders)]
    return found.files, given, side_files, found.ignored


def _measure(
    files: Sequence[Path], layouts: Sequence[Layout], stack_as: str, run: RunOptions
) -> list[MeasuredTile]:
    """Read every file once; the order of the files stays."""
    from ..engine import Plan, run_tasks, say
    from ..numerics.sorting.tile_layout_matching import files_with_pages
    from ..numerics.sorting.tile_measurement import MeasureTask, measure_file, task_bytes

    paged = files_with_pages(layouts)
    side = int((_THUMBNAIL_PIXELS / len(files)) ** 0.5)
    thumbnail_px = min(_LONGEST_THUMBNAIL_PX, max(_SHORTEST_THUMBNAIL_PX, side))
    tasks = [
        MeasureTask(index, str(path), stack_as == "sections" or path.name in paged, thumbnail_px)
        for index, path in enumerate(files)
    ]
    sizes = [path.stat().st_size for path in files]
    memory = task_bytes(str(files[sizes.index(max(sizes))]))
    say(Plan(len(tasks), sum(sizes), 0, memory, sum(sizes) * _CPU_S_PER_BYTE).text(run.worker_count))
    if run.dry_run:
        raise StageStopped("Dry run: nothing was written")
    found = run_tasks(measure_file, tasks, job=None, run=run, label="Measuring tiles", task_bytes=memory)
    measured = [tile for tiles in found for tile in tiles]
    if all(tile.reason for tile in measured):
        first = measured[0]
        raise InputError(
            f"None of the {len(files)} files can be read; the first, '{first.path}': {first.reason}: give images of a kind "
            "that convert-image reads"
        )
    return measured


def _common_folder(files: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in files]))


def _named_from(row: PlacedTile, root: Path, base: Path) -> Tile:
    """The tile with its name relative to the folder that the table's names start from."""
    if (
        row.measured is None
    ):  # a missing tile has the name that its file would have, or one that says its place
        return row.tile
    return replace(row.tile, name=Path(os.path.relpath(root / row.tile.name, base)).as_posix())


def _result(
    rows: Sequence[PlacedTile],
    problems: Sequence[TileProblem],
    decisions: Sequence[str],
    warnings: Sequence[str],
    verdict: tuple[bool, str],
    report: Report,
) -> SortResult:
    from ..numerics.sorting.tile_review import nominal_overlap

    counts = Counter(row.tile.status for row in rows)
    cells = {(row.tile.row, row.tile.col) for row in rows if row.tile.row is not None}
    placed = sum(row.tile.stage_x_um is not None for row in rows)
    overlap_x, overlap_y = nominal_overlap(rows)
    return SortResult(
        passed=verdict[0],
        verdict=verdict[1],
        rows=len(rows),
        tiles_ok=counts["ok"],
        tiles_missing=counts["missing"],
        tiles_duplicate=counts["duplicate"],
        tiles_unreadable=counts["unreadable"],
        tiles_blank=counts["blank"],
        tiles_excluded=counts["excluded"],
        image_again=tuple(dict.fromkeys(problem.row.label for problem in problems if problem.again)),
        sections=len({row.tile.z for row in rows}),
        channels=tuple(dict.fromkeys(row.tile.channel for row in rows)),
        grid_rows=len({row for row, _ in cells}),
        grid_columns=len({col for _, col in cells}),
        overlap_x_share=None if overlap_x is None else round(overlap_x, 4),
        overlap_y_share=None if overlap_y is None else round(overlap_y, 4),
        placed_share=round(placed / len(rows), 4),
        decisions=tuple(decisions),
        warnings=tuple(warnings),
        report=report,
    )
