"""Files that say where tiles lie: Fiji's TileConfiguration.txt, SerialEM's .mdoc, and tables."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError

MAX_LAYOUT_BYTES = 256 * 1024 * 1024
MAX_FIJI_LINE = 4096
UM_PER_ANGSTROM = 1e-4


@dataclass(frozen=True, kw_only=True)
class LayoutEntry:
    """What a layout says of one tile; None where it says nothing. y grows downwards, as the rows of the image do."""

    file: str
    series: int | None = None
    page: int | None = None
    channel: str | None = None
    view: str | None = None
    t: int | None = None
    z: int | None = None
    row: int | None = None
    col: int | None = None
    x_px: float | None = None
    y_px: float | None = None
    z_px: float | None = None
    x_um: float | None = None
    y_um: float | None = None
    z_um: float | None = None
    pixel_um: float | None = None
    acquired_at: str | None = None


@dataclass(frozen=True)
class Layout:
    """A layout file, what kind it is in words, and its entries."""

    path: Path
    kind: str
    entries: tuple[LayoutEntry, ...]


def read_layout(path: Path) -> Layout:
    """Read a layout file; its kind is told from its content.

    Parameters
    ----------
    path : Path
        Fiji TileConfiguration (2D or 3D), SerialEM .mdoc, or a table with tabs, commas or semicolons and a header: a column
        `file` and any of series, page, channel, view, t, z, row, col, x_px, y_px, z_px, stage_x_um, stage_y_um, stage_z_um.

    Raises
    ------
    InputError
        When it is none of these, or a line cannot be read; the message names the line.
    """
    text = _read_text(path)
    if re.search(r"^\s*\[(ZValue|Image|MontSection|FrameSet)\s*=", text, re.MULTILINE):
        return _read_mdoc(path, text)
    if re.search(r"^\s*dim\s*=\s*\d", text, re.MULTILINE):
        return _read_fiji(path, text)
    return _read_table(path, text)


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_LAYOUT_BYTES:
            raise InputError(f"'{path}' has {path.stat().st_size / 1e6:.0f} MB: that is no layout of tiles")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror}): check the layout's path") from error
    if b"\0" in data:
        raise InputError(f"'{path}' is no text: a layout is a TileConfiguration.txt, an .mdoc or a table")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")  # Windows instruments write their own code page


def _finite(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: '{text.strip()[:60]}' is not a finite number: correct it")
    return value


def _whole(text: str, where: str) -> int:
    value = _finite(text, where)
    if value != int(value):
        raise InputError(f"{where}: '{text.strip()[:60]}' is not a whole number: correct it")
    return int(value)


# ---- Fiji -----------------------------------------------------------------------------------------------------------

_FIJI_LINE = re.compile(r"([^;]+);([^;]*);\s*\(([^()]*)\)\s*")


def _read_fiji(path: Path, text: str) -> Layout:
    """`name ; series ; (x, y[, z])`, in px; `dim = 3` has a z."""
    dimensions, multiseries = 0, False
    entries = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        where = f"'{path}' line {number}"
        if not line or line.startswith("#"):
            continue
        if setting := re.fullmatch(r"(dim|multiseries)\s*=\s*(\w+)", line):
            if setting[1] == "multiseries":
                multiseries = setting[2].lower() == "true"
            else:
                dimensions = _whole(setting[2], where)
            continue
        match = _FIJI_LINE.fullmatch(line) if len(line) <= MAX_FIJI_LINE else None
        if match is None:
            raise InputError(f"{where}: '{line[:60]}' is not 'name; ; (x, y)': correct the line")
        numbers = [_finite(part, where) for part in match[3].split(",")]
        if dimensions not in (2, 3) or len(numbers) != dimensions:
            raise InputError(
                f"{where}: {len(numbers)} coordinates, but dim = {dimensions}: both must be 2 or 3"
            )
        z_px = numbers[2] if dimensions == 3 else None
        series = _whole(match[2], where) if multiseries and match[2].strip() else None
        entries.append(
            LayoutEntry(
                file=_clean_name(match[1]), series=series, x_px=numbers[0], y_px=numbers[1], z_px=z_px
            )
        )
    if not entries:
        raise InputError(f"'{path}' lists no tiles: each needs a line 'name; ; (x, y)'")
    return Layout(path, f"Fiji tile configuration ({dimensions}D)", tuple(entries))


def _clean_name(text: str) -> str:
    return text.strip().strip('"').replace("\\", "/")


# ---- SerialEM -------------------------------------------------------------------------------------------------------


def _read_mdoc(path: Path, text: str) -> Layout:
    """SerialEM's metadata: a section per image of an MRC stack (`[ZValue = n]`) or per file (`[Image = name]`).

    Piece coordinates are px from the lower left corner. An MRC file stores its rows from the bottom up, so there they are
    array coordinates; images in other files are stored from the top down, so their y is turned round.
    """
    common: dict[str, str] = {}
    sections: list[tuple[str, str, dict[str, str]]] = []
    for raw in text.splitlines():
        line = raw.strip()
        if header := re.fullmatch(r"\[\s*(\w+)\s*=\s*(.*?)\s*\]", line):
            if header[1] in ("ZValue", "Image", "MontSection", "FrameSet"):
                sections.append((header[1], header[2], {}))
        elif "=" in line and not line.startswith("["):
            key, _, value = line.partition("=")
            (sections[-1][2] if sections else common)[key.strip()] = value.strip()
    stack = _clean_name(common.get("ImageFile", path.name.removesuffix(".mdoc"))).rsplit("/", 1)[-1]
    entries = [
        _mdoc_entry(path, kind, value, common | values, stack)
        for kind, value, values in sections
        if kind in ("ZValue", "Image")
    ]
    if not entries:
        raise InputError(f"'{path}' has no [ZValue = n] or [Image = name] section: it describes no tiles")
    return Layout(path, "SerialEM metadata", tuple(entries))


def _mdoc_entry(path: Path, kind: str, value: str, values: dict[str, str], stack: str) -> LayoutEntry:
    where = f"'{path}' section [{kind} = {value[:60]}]"
    spacing = values.get("PixelSpacing")
    entry = LayoutEntry(
        file=stack if kind == "ZValue" else _clean_name(value).rsplit("/", 1)[-1],
        series=0 if kind == "ZValue" else None,
        page=_whole(value, where) if kind == "ZValue" else None,
        pixel_um=_finite(spacing, where) * UM_PER_ANGSTROM if spacing else None,
        acquired_at=values.get("DateTime"),
    )
    if piece := values.get("PieceCoordinates"):
        x, y, z = _numbers(piece, 3, f"{where} PieceCoordinates")
        bottom_up = entry.file.lower().endswith((".mrc", ".st", ".map", ".rec"))
        return replace(entry, x_px=x, y_px=y if bottom_up else -y, z=int(z))
    if stage := values.get("StagePosition"):
        x, y = _numbers(stage, 2, f"{where} StagePosition")
        z_um = _finite(values["StageZ"], where) if "StageZ" in values else None
        return replace(entry, x_um=x, y_um=y, z_um=z_um)
    return entry


def _numbers(text: str, count: int, where: str) -> list[float]:
    parts = text.split()
    if len(parts) < count:
        raise InputError(f"{where}: '{text[:60]}' has {len(parts)} numbers, {count} are needed: correct it")
    return [_finite(part, where) for part in parts[:count]]


# ---- tables ---------------------------------------------------------------------------------------------------------

_COLUMN_NAMES = {
    **dict.fromkeys(("file", "filename", "file_name", "name", "image", "path"), "file"),
    **dict.fromkeys(("stage_x_um", "x_um"), "x_um"),
    **dict.fromkeys(("stage_y_um", "y_um"), "y_um"),
    **dict.fromkeys(("stage_z_um", "z_um"), "z_um"),
    **dict.fromkeys(("col", "column"), "col"),
    **dict.fromkeys(("z", "section"), "z"),
    **{
        name: name
        for name in ("x_px", "y_px", "z_px", "series", "page", "channel", "view", "t", "row", "acquired_at")
    },
}
_WHOLE_COLUMNS = ("series", "page", "t", "z", "row", "col")
_TEXT_COLUMNS = ("file", "channel", "view", "acquired_at")


def _read_table(path: Path, text: str) -> Layout:
    header_line = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max("\t;,", key=header_line.count)
    rows = csv.reader(io.StringIO(text.lstrip("\r\n")), delimiter=delimiter)
    try:
        header = [_COLUMN_NAMES.get(cell.strip().lower().lstrip("#").strip(), "") for cell in next(rows, [])]
        columns = [name for name in header if name]
        if "file" not in columns or len(columns) < 2 or len(set(columns)) < len(columns):
            raise InputError(
                f"'{path}' is no layout of tiles: its header '{header_line.strip()[:80]}' needs a column file and others "
                "such as x_px, y_px, z, row, col, stage_x_um, stage_y_um, each once"
            )
        entries = [
            _table_entry(dict(zip(header, row)), f"'{path}' line {rows.line_num}")
            for row in rows
            if any(map(str.strip, row))
        ]
    except csv.Error as error:
        raise InputError(f"'{path}' line {rows.line_num}: {error}: correct the table") from error
    if not entries:
        raise InputError(f"'{path}' lists no tiles: it has a header and no rows")
    return Layout(path, "layout table", tuple(entries))


def _table_entry(cells: dict[str, str], where: str) -> LayoutEntry:
    values: dict[str, Any] = {}
    for name, cell in cells.items():
        text = cell.strip()
        if not name or not text:
            continue
        at = f"{where}, column {name}"
        values[name] = (
            text
            if name in _TEXT_COLUMNS
            else _whole(text, at)
            if name in _WHOLE_COLUMNS
            else _finite(text, at)
        )
    if "file" not in values:
        raise InputError(f"{where}: the cell of the file is empty: fill it in or remove the row")
    return LayoutEntry(**values | {"file": _clean_name(values["file"])})


# ---- finding them ---------------------------------------------------------------------------------------------------

_TABLE_SIDE_FILES = ("layout.tsv", "layout.csv", "layout.txt")
_FIJI_SIDE_FILES = ("TileConfiguration.txt", "TileConfiguration.registered.txt")


def find_side_files(folders: Iterable[Path]) -> list[Path]:
    """Layouts that lie beside tiles, at most one kind a folder.

    A layout table comes before SerialEM's metadata, and that before Fiji's configuration; of Fiji's two the nominal one is
    taken, because the registered one may hold tiles that a failed registration threw far away.
    """
    found: list[Path] = []
    for folder in sorted(set(folders)):
        names = (*_TABLE_SIDE_FILES, *_FIJI_SIDE_FILES)
        paths = {name: folder / name for name in names if (folder / name).is_file()}
        mdocs = sorted(path for path in folder.glob("*.mdoc") if path.is_file())
        tables = [paths[name] for name in _TABLE_SIDE_FILES if name in paths][:1]
        fiji = [paths[name] for name in _FIJI_SIDE_FILES if name in paths][:1]
        found += tables or mdocs or fiji
    return found
