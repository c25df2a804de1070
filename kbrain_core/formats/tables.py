"""The tables that pass between stages: UTF-8 text, tabs between the cells, a header, an empty cell for "not known".

People edit these tables with a spreadsheet and run the next stage again, so columns may come in any order and further
columns are left alone.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..errors import InputError, OutputExistsError
from ..store import atomic_path

TileStatus = Literal["ok", "missing", "duplicate", "unreadable", "blank", "excluded"]
PositionStatus = Literal["registered", "stage_only", "excluded"]
_LONGEST_STEM = 60  # characters of a channel in a file name: 180 bytes of Korean; a file system takes 255


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One tile of one channel: where it is stored, where the microscope saw it and how good it is.

    `page` is the tile's first plane inside its series, planes counted ((t * C + c) * Z + z).
    """

    name: str
    series: int = 0
    page: int = 0
    channel: str = "0"
    t: int = 0
    z: int = 0
    row: int | None = None
    col: int | None = None
    view: str | None = None
    stage_x_um: float | None = None
    stage_y_um: float | None = None
    stage_z_um: float | None = None
    width_px: int | None = None
    height_px: int | None = None
    depth_px: int | None = None
    pixel_x_um: float | None = None
    pixel_y_um: float | None = None
    step_z_um: float | None = None
    dtype: str | None = None
    bits: int | None = None
    acquired_at: str | None = None
    saturated_fraction: float | None = None
    focus_score: float | None = None
    signal_to_noise: float | None = None
    sha256: str | None = None
    status: TileStatus = "ok"


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a tile lies in the stitched volume, in px of the canvas, and how well that is known."""

    name: str
    series: int = 0
    page: int = 0
    channel: str = "0"
    t: int = 0
    z: int = 0
    row: int | None = None
    col: int | None = None
    x_px: float
    y_px: float
    z_px: float = 0.0
    confidence: float | None = None
    links: int | None = None
    component: int | None = None
    status: PositionStatus = "registered"


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Affine transform of one section, from output to input pixel centres at full resolution, canvas offset included."""

    z: int
    m_yy: float
    m_yx: float
    m_xy: float
    m_xx: float
    t_y_px: float
    t_x_px: float
    residual_px: float | None = None
    inliers: int | None = None
    method: str | None = None
    status: str = "registered"


Row = TypeVar("Row", Tile, Position, Transform)


def read_table(path: Path, row_type: type[Row]) -> list[Row]:
    """Read a table of one kind of rows.

    Parameters
    ----------
    path : Path
        The table.
    row_type : type
        Tile, Position or Transform: its fields are the columns; fields without a default must be there.

    Raises
    ------
    InputError
        When the file is no such table; the message names line and column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", restkey="")
            header = reader.fieldnames or []
            needed = [f.name for f in dataclasses.fields(row_type) if f.default is dataclasses.MISSING]
            absent = [name for name in needed if name not in header]
            if absent:
                raise InputError(
                    f"'{path}' is not a table of {row_type.__name__.lower()}s: column {', '.join(absent)} is missing "
                    f"(tabs must stand between cells; it has: {' | '.join(header)[:200] or 'nothing'})"
                )
            columns = _column_types(row_type)
            return [
                _parse_row(cells, row_type, columns, f"'{path}' line {reader.line_num}") for cells in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{path}' cannot be read as a table (UTF-8 text with tabs): {error}") from error


def _column_types(row_type: type[Any]) -> dict[str, tuple[Any, bool]]:
    """Type of every column and whether its cell may be empty."""
    columns = {}
    for name, hint in typing.get_type_hints(row_type).items():
        optional = isinstance(hint, types.UnionType)
        columns[name] = (
            next(t for t in typing.get_args(hint) if t is not type(None)) if optional else hint,
            optional,
        )
    return columns


def _parse_row(
    cells: dict[str, str | None], row_type: type[Row], columns: dict[str, tuple[Any, bool]], where: str
) -> Row:
    values: dict[str, Any] = {}
    defaults = {f.name: f.default for f in dataclasses.fields(row_type)}
    for name, (kind, optional) in columns.items():
        text = (cells.get(name) or "").strip()
        if text:
            values[name] = _parse_cell(text, kind, f"{where}, column {name}")
        elif defaults[name] is dataclasses.MISSING and not optional:
            raise InputError(f"{where}, column {name}: the cell is empty: fill it in or remove the row")
    return row_type(**values)


def _parse_cell(text: str, kind: Any, where: str) -> Any:
    if typing.get_origin(kind) is Literal:
        if text not in typing.get_args(kind):
            raise InputError(f"{where}: '{text}' is not one of {', '.join(typing.get_args(kind))}")
        return text
    try:
        value = kind(text)
    except ValueError:
        raise InputError(f"{where}: '{text}' is not a number: correct the cell") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where}: '{text}' is not a finite number: correct the cell, or leave it empty")
    return value


def write_table(path: Path, rows: Iterable[Row], row_type: type[Row]) -> None:
    """Write a table whole or not at all; floats keep every digit that matters (their shortest exact form)."""
    names = [f.name for f in dataclasses.fields(row_type)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            writer.writerow([_cell(getattr(row, name)) for name in names])


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def read_tiles(path: Path) -> list[Tile]:
    """Read a table of tiles; a table without any row is refused."""
    tiles = read_table(path, Tile)
    if not tiles:
        raise InputError(f"'{path}' lists no tiles: run sort-tiles on a folder that holds images")
    return tiles


def write_tiles(path: Path, tiles: Sequence[Tile]) -> None:
    """Write a table of tiles."""
    write_table(path, tiles, Tile)


def read_tile_tables(tables: Sequence[Path], tiles_folder: Path | None) -> tuple[list[Tile], Path]:
    """Read several tables of tiles as one.

    Parameters
    ----------
    tables : sequence of Path
        The tables.
    tiles_folder : Path or None
        Folder that all names are relative to. Default: each table's own folder.

    Returns
    -------
    list of Tile
        The rows in the order of the tables.
    Path
        Folder that their names are relative to: where all tables share one it is that one, and names stay as they are;
        otherwise it is the deepest folder that holds them all.
    """
    folders = [tiles_folder or table.parent for table in tables]
    if len(set(folders)) == 1:
        return [tile for table in tables for tile in read_tiles(table)], folders[0]
    base = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    rows = [
        dataclasses.replace(tile, name=Path(os.path.relpath(folder.absolute() / tile.name, base)).as_posix())
        for table, folder in zip(tables, folders)
        for tile in read_tiles(table)
    ]
    return rows, base


def prepare_channel_tables(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something, unless it may be overwritten."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not overwrite):
        raise OutputExistsError(
            f"'{folder}' exists: choose another folder, or pass --overwrite to replace the tables there"
        )


def write_channel_tables(folder: Path, tiles: Sequence[Tile]) -> None:
    """Write a table for each channel, named after it; tables of tiles that an earlier run left there are removed."""
    header = "\t".join(f.name for f in dataclasses.fields(Tile))
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.tsv"):
        with old.open(encoding="utf-8", errors="replace") as file:
            ours = file.readline().rstrip() == header
        if ours:
            old.unlink()
    channels = list(dict.fromkeys(tile.channel for tile in tiles))
    for channel, name in zip(channels, _file_stems(channels)):
        write_tiles(folder / f"{name}.tsv", [tile for tile in tiles if tile.channel == channel])


def _file_stems(channels: Sequence[str]) -> list[str]:
    """File names for channels: letters, digits and a few marks stay; names that become the same get a number."""
    stems: list[str] = []
    taken: set[str] = set()
    for channel in channels:
        stem = re.sub(r"[^\w.+=@() -]", "_", channel)[:_LONGEST_STEM].strip(" .-") or "channel"
        number, unique = 1, stem
        while unique.lower() in taken:
            number += 1
            unique = f"{stem}_{number}"
        taken.add(unique.lower())
        stems.append(unique)
    return stems
