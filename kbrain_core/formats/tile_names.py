"""What instruments put into the names of tile files: row, column, section, channel, time point, view.

A set of names is read together, because one name alone is ambiguous: a number that never changes says nothing, and a
number without a label is a section in one set and a grid position in another.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import InputError

MAX_PATTERN_CHARACTERS = 500
MAX_NAME_CHARACTERS = 1000
PATTERN_SECONDS = 20.0

_IMAGE_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,5}$")
_OME_ENDING = re.compile(r"\.ome$", re.IGNORECASE)


@dataclass(frozen=True)
class NameFields:
    """What one name says; None where it says nothing.

    `tile` is a running number of the tile in its grid, `section` a label (a well, a wafer position) that stands for a
    section, and `x_um, y_um, z_um` a stage position.
    """

    row: int | None = None
    col: int | None = None
    z: int | None = None
    t: int | None = None
    tile: int | None = None
    channel: str | None = None
    view: str | None = None
    section: str | None = None
    x_um: float | None = None
    y_um: float | None = None
    z_um: float | None = None


@dataclass(frozen=True)
class ParsedNames:
    """The fields of every name, and in words which scheme the set follows."""

    scheme: str
    fields: tuple[NameFields, ...]


WHOLE_FIELDS = ("row", "col", "z", "t", "tile")
TEXT_FIELDS = ("channel", "view", "section")
LENGTH_FIELDS = ("x_um", "y_um", "z_um")
ALL_FIELDS = (*WHOLE_FIELDS, *TEXT_FIELDS, *LENGTH_FIELDS)


def natural_key(text: str) -> tuple[tuple[tuple[str, int, str], ...], str]:
    """Sort key that counts as people do: `t2` before `t10`, upper and lower case together.

    Digits are compared by value without conversion, so numbers of any length do; names equal but for case or leading
    zeros are ordered by the text itself, so the order never depends on the input order.
    """
    parts: list[tuple[str, int, str]] = []
    for word, number in re.findall(r"([^0-9]*)([0-9]*)", text):
        digits = number.lstrip("0")
        parts.append((word.casefold(), len(digits) if number else -1, digits))
    return (tuple(parts), text)


def name_stem(name: str) -> str:
    """A relative file name without `.tif`, `.ome.tif` and the like; folders are kept, with `/` between them."""
    stem = _IMAGE_ENDING.sub("", name.replace("\\", "/"))
    return _OME_ENDING.sub("", stem)


_PLAIN_SCHEME = (
    "section, tile number and channel"  # no labels: its third number counts as channel only where it changes
)

# Names that need more than labelled numbers. Each is searched in the name without its ending; what it does not say is
# read from the rest of the name. `*_dum` are tenths of a micrometre.
_INSTRUMENTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (instrument, re.compile(pattern, re.ASCII))
    for instrument, pattern in (
        (
            "Yokogawa CellVoyager",
            r"_(?P<section>[A-P]\d\d)_T(?P<t>\d{4})F(?P<tile>\d{3,4})L\d\dA\d\dZ(?P<z>\d{2,4})C(?P<channel>\d\d)$",
        ),
        (
            "Opera Phenix",
            r"(?:^|/)(?P<section>r\d\dc\d\d)f(?P<tile>\d{2,4})p(?P<z>\d{2,4})-ch(?P<channel>\d+)sk(?P<t>\d+)fk\d+fl\d+$",
        ),
        (
            "ImageXpress",
            r"_(?P<section>[A-P]\d\d)_s(?P<tile>\d+)(?:_w(?P<channel>\d))?(?:[0-9A-Fa-f]{8}-[0-9A-Fa-f-]{27})?$",
        ),
        (
            "ZEN export",
            r"_(?:b\d+)?(?:v(?P<view>\d+))?(?:s(?P<section>\d+))?(?:t(?P<t>\d+))?(?:z(?P<z>\d+))?"
            r"(?:c(?P<channel>\d+))?(?:x\d+-\d+y\d+-\d+)?m(?P<tile>\d+)(?=_|$)",
        ),
        (
            "Thermo Fisher MAPS",
            r"(?:^|/)Tile_(?P<row>\d{3})-(?P<col>\d{3})-(?P<z>\d{6})_(?P<t>\d+)-(?P<channel>\d{3})(?=\.|$)",
        ),
        (
            "LaVision UltraMicroscope",
            r"\[(?P<row>\d+) x (?P<col>\d+)\](?:_C(?P<channel>\d+))?(?:_xyz-Table Z(?P<z>\d+))?",
        ),
        (
            "Micro-Manager image files",
            r"Pos_?(?P<col>\d{1,3})_(?P<row>\d{1,3})/img_(?P<t>\d{9})_(?P<channel>.+)_(?P<z>\d{3})$",
        ),
        ("Micro-Manager grid", r"Pos[-_]?(?P<col>\d{1,3})_(?P<row>\d{1,3})(?=[_/.]|$)"),
        (
            "TeraStitcher",
            r"^(?:.*/)?(?P<x_dum>-?\d{6})_(?P<y_dum>-?\d{6})(?:_(?P<z_dum>-?\d{6})$|/)",
        ),
        (
            "Nikon NIS-Elements",
            r"(?:t(?P<t>\d+))?xy(?P<tile>\d+)(?:t\d+)?(?:z(?P<z>\d+))?(?:c(?P<channel>\d+))?$",
        ),
        ("SBEMimage", r"_g(?P<view>\d{4})_t(?P<tile>\d{4})_s(?P<z>\d{5})$"),
        (
            _PLAIN_SCHEME,
            r"(?:^|/)(?P<section>[A-Z]\d{1,2})_(?P<tile>\d+)(?:_(?P<channel>\d+))?$",
        ),
    )
)

_LABELS = {
    **dict.fromkeys(("r", "row", "y"), "row"),
    **dict.fromkeys(("col", "column", "x"), "col"),
    **dict.fromkeys(("z", "zstep", "zplane", "plane", "slice", "sl", "slc", "sec", "sect", "section", "layer"), "z"),
    **dict.fromkeys(("ch", "chan", "channel", "w", "wv", "wavelength", "lambda"), "channel"),
    **dict.fromkeys(("t", "tp", "time", "timepoint"), "t"),
    **dict.fromkeys(("v", "view", "angle", "ang"), "view"),
    **dict.fromkeys(("tile", "m", "f", "fov", "field", "site", "pos", "position", "xy", "mosaic"), "tile"),
    "c": "c",  # a column beside a row, otherwise a channel
    "s": "s",  # a site, or a section where the tile is known otherwise
}  # fmt: skip

_TOKEN = re.compile(r"(?P<label>[A-Za-z]*)(?P<gap>[ _=#-]?)(?P<number>[0-9]+)", re.ASCII)
_CHANNEL_WORD = re.compile(
    r"(?<![A-Za-z0-9])(dapi|hoechst(?:\d{5})?|[em]?gfp|yfp|rfp|cfp|bfp|fitc|tritc|mcherry|tdtomato|cy[357]|texasred|"
    r"(?:alexa|af)[ -]?\d{3}|brightfield|phase|autofluo[a-z]*)(?![A-Za-z0-9])",
    re.IGNORECASE,
)
# A name after "ch": chDAPI, channel_GFP.
_NAMED_CHANNEL = re.compile(
    r"(?<![A-Za-z0-9])ch(?:annel|an)?+[-_ ]?([A-Z][A-Za-z0-9+]*|[a-z]+)(?![A-Za-z0-9])", re.ASCII
)


@dataclass(frozen=True)
class _Slot:
    """A number in a name: what its label means (None: no known label) and its digits."""

    field: str | None
    digits: str


def parse_names(names: Sequence[str], *, number_is: Literal["z", "tile"] = "z") -> ParsedNames:
    """Read the names of a set of tiles.

    Parameters
    ----------
    names : sequence of str
        Names relative to their common folder, with `/` between folders.
    number_is : {"z", "tile"}
        What a single number without a label counts, when it is all that tells the files apart: sections, or the tiles of
        a grid.

    Returns
    -------
    ParsedNames
        Fields in the order of `names`.
    """
    stems = [name_stem(name)[:MAX_NAME_CHARACTERS] for name in names]
    instrument, found, rest = _match_instrument(stems)
    labelled, numbers = _labelled_fields(rest)
    fields = [_merged(mine, other) for mine, other in zip(found, labelled)]
    fields, numbered = _use_plain_numbers(fields, numbers, number_is)
    fields = _without_constants(fields, ("t", "view", *(["channel"] if instrument == _PLAIN_SCHEME else [])))
    seen = [name for name in ALL_FIELDS if any(getattr(f, name) is not None for f in fields)]
    words = ", ".join(seen) if seen else "nothing"
    scheme = f"{instrument} names" if instrument else "plain numbers" if numbered else "labelled numbers"
    return ParsedNames(f"{scheme} ({words})", tuple(fields))


def _match_instrument(stems: Sequence[str]) -> tuple[str | None, list[NameFields], list[str]]:
    """The instrument whose scheme most names follow (the first of equals), its fields, and what is left of each name."""
    counts = [sum(pattern.search(stem) is not None for stem in stems) for _, pattern in _INSTRUMENTS]
    best = max(range(len(counts)), key=lambda index: counts[index])
    if counts[best] * 2 <= len(stems):
        return None, [NameFields()] * len(stems), list(stems)
    instrument, pattern = _INSTRUMENTS[best]
    fields, rest = [], []
    for stem in stems:
        match = pattern.search(stem)
        fields.append(_fields_of(match.groupdict()) if match else NameFields())
        rest.append(stem[: match.start()] + "/" + stem[match.end() :] if match else stem)
    return instrument, fields, rest


def _fields_of(groups: Mapping[str, str | None]) -> NameFields:
    values: dict[str, int | float | str] = {}
    for name, text in groups.items():
        if text is None:
            continue
        if name in WHOLE_FIELDS:
            values[name] = int(text)
        elif name.endswith("_dum"):
            values[name.replace("_dum", "_um")] = int(text) / 10
        else:
            values[name] = text.lstrip("0") or "0" if text.isdigit() and name != "section" else text
    return replace(NameFields(), **values)  # type: ignore[arg-type]


def _merged(first: NameFields, second: NameFields) -> NameFields:
    """`first`, with what it does not say taken from `second`; a place in the grid is taken whole or not at all."""
    placed = first.row is not None or first.tile is not None or first.x_um is not None
    skip = {"row", "col", "tile"} if placed else set()
    taken = {
        name: getattr(second, name)
        for name in ALL_FIELDS
        if getattr(first, name) is None and name not in skip
    }
    return replace(first, **taken)


def _slots(text: str) -> Iterator[_Slot]:
    for match in _TOKEN.finditer(text):
        label, gap, start = match["label"], match["gap"], match.start()
        if label not in ("", label.lower(), label.upper(), label.capitalize()):
            label = re.split(r"(?<=[a-z])(?=[A-Z])", label)[-1]  # posX01 -> X
        magnification = gap and len(label) == 1 and text[max(0, start - 1) : start].isalnum()  # 20x_1
        field = None if magnification else _LABELS.get(label.lower())
        yield _Slot(field, match["number"])


def _labelled_fields(stems: Sequence[str]) -> tuple[list[NameFields], list[list[str]]]:
    """Fields from labelled numbers and channel words, and the plain numbers that change within names of one shape."""
    fields: list[NameFields] = [NameFields()] * len(stems)
    numbers: list[list[str]] = [[] for _ in stems]
    shapes: dict[str, list[int]] = defaultdict(list)
    texts, words = [], []
    channel_word = _channel_words(stems)
    for index, stem in enumerate(stems):
        found = channel_word.findall(stem)
        words.append(found[-1] if found else None)
        texts.append(channel_word.sub("~", stem))
        shapes[re.sub(r"[0-9]+", "#", texts[-1])].append(index)
    for members in shapes.values():
        slots = [list(_slots(texts[index])) for index in members]
        varying = [len({row[i].digits for row in slots}) > 1 for i in range(len(slots[0]))]
        chosen = _choose_slots([slot.field for slot in slots[0]], varying)
        for index, row in zip(members, slots):
            groups: dict[str, str | None] = {name: row[i].digits[:18] for name, i in chosen.items()}
            groups.setdefault("channel", words[index])
            fields[index] = _fields_of(groups)
            numbers[index] = [slot.digits[:18] for slot, v in zip(row, varying) if v and slot.field is None]
    return fields, numbers


def _channel_words(stems: Sequence[str]) -> re.Pattern[str]:
    """What tells channels by name in this set: a name after "ch" when it changes, otherwise the usual dyes."""
    after_ch = {match[1] for stem in stems for match in _NAMED_CHANNEL.finditer(stem)}
    return _NAMED_CHANNEL if len(after_ch) > 1 else _CHANNEL_WORD


def _choose_slots(labels: Sequence[str | None], varying: Sequence[bool]) -> dict[str, int]:
    """The slot of every field: the last that changes, otherwise the last; the letters c and s settled by the others."""
    by_weight = sorted(range(len(labels)), key=lambda index: (varying[index], index))
    chosen = {label: index for index in by_weight if (label := labels[index]) is not None}
    if "c" in chosen:
        index = chosen.pop("c")
        chosen.setdefault("col" if "row" in chosen and "col" not in chosen else "channel", index)
    if "s" in chosen:
        index = chosen.pop("s")
        placed = "tile" in chosen or {"row", "col"} <= chosen.keys()
        chosen.setdefault("z" if placed else "tile", index)
    if ("row" in chosen) != ("col" in chosen):  # one alone is no place in a grid
        chosen.pop("row", None)
        chosen.pop("col", None)
    return chosen


def _use_plain_numbers(
    fields: Sequence[NameFields], numbers: Sequence[Sequence[str]], number_is: Literal["z", "tile"]
) -> tuple[list[NameFields], bool]:
    """Give meaning to numbers without a label, where the labelled ones do not tell the files apart."""
    counts = {len(row) for row in numbers}
    distinct = len(set(fields)) == len(fields)
    if distinct or len(counts) != 1 or counts == {0} or max(counts) > 2:
        return list(fields), False
    placed = any(f.row is not None or f.tile is not None or f.x_um is not None for f in fields)
    sectioned = any(f.z is not None or f.section is not None for f in fields)
    if counts == {2} and not placed:
        return [replace(f, row=int(a), col=int(b)) for f, (a, b) in zip(fields, numbers)], True
    if counts == {2} or (placed and sectioned):
        return list(fields), False
    use = "z" if placed else "tile" if sectioned else number_is
    if use == "z":
        return [replace(f, z=int(row[0])) for f, row in zip(fields, numbers)], True
    return [replace(f, tile=int(row[0])) for f, row in zip(fields, numbers)], True


def _without_constants(fields: Sequence[NameFields], names: Sequence[str]) -> list[NameFields]:
    """Drop those fields that are the same in all names and so tell nothing apart (`view_2`, `run_t1`)."""
    drop = {name: None for name in names if len({getattr(f, name) for f in fields}) == 1}
    return [replace(f, **drop) for f in fields]


def compile_pattern(text: str) -> re.Pattern[str]:
    r"""Compile a pattern a person gave for the names of tiles.

    Parameters
    ----------
    text : str
        Regular expression with named groups out of row, col, z, t, tile, channel, view, section, x_um, y_um, z_um, such
        as `(?P<section>[A-Z]\d)_r(?P<row>\d+)_c(?P<col>\d+)`.

    Raises
    ------
    InputError
        When it is too long, no regular expression, has no or unknown groups, or a row without a column.
    """
    example = r"(?P<row>\d+)_(?P<col>\d+)"
    if len(text) > MAX_PATTERN_CHARACTERS:
        raise InputError(
            f"--pattern has {len(text)} characters: at most {MAX_PATTERN_CHARACTERS} are allowed"
        )
    try:
        pattern = re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"--pattern is no regular expression ({error}): write it like {example}") from error
    groups = set(pattern.groupindex)
    if unknown := groups - set(ALL_FIELDS):
        raise InputError(f"--pattern has a group {_listed(unknown)}: the groups are {', '.join(ALL_FIELDS)}")
    if not groups:
        raise InputError(f"--pattern has no named group: name what it finds, like {example}")
    for one, other in (("row", "col"), ("col", "row"), ("x_um", "y_um"), ("y_um", "x_um")):
        if one in groups and other not in groups:
            raise InputError(f"--pattern has a group {one} but needs {other} too: add (?P<{other}>...)")
    return pattern


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


# The match runs in a bare interpreter of its own: a pattern like (a+)+$ can take hours, and only a process can be stopped.
_MATCH_PROGRAM = """
import json, re, sys
text, names = json.load(sys.stdin)
pattern = re.compile(text)
matches = (pattern.search(name) for name in names)
json.dump([match and match.groupdict() for match in matches], sys.stdout)
"""


def match_pattern(
    pattern: re.Pattern[str], names: Sequence[str], seconds: float = PATTERN_SECONDS
) -> tuple[NameFields | None, ...]:
    """The fields that a pattern finds in every name (searched in the name with its ending); None where it does not match.

    Raises
    ------
    InputError
        When it matches no name, takes longer than `seconds`, or finds no number where one is needed.
    """
    request = json.dumps([pattern.pattern, [name[:MAX_NAME_CHARACTERS] for name in names]])
    command = [sys.executable, "-I", "-S", "-c", _MATCH_PROGRAM]
    try:
        answer = subprocess.run(
            command, input=request, text=True, capture_output=True, timeout=seconds, check=True
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"--pattern takes more than {seconds:g} s on {len(names)} names: repeat no group that repeats itself, like (a+)+"
        ) from None
    found: list[dict[str, str | None] | None] = json.loads(answer.stdout)
    if not any(found):
        raise InputError(f"--pattern matches no tile: the first name is '{names[0] if names else ''}'")
    return tuple(_pattern_fields(groups, name) if groups else None for groups, name in zip(found, names))


def _pattern_fields(groups: Mapping[str, str | None], name: str) -> NameFields:
    values: dict[str, int | float | str] = {}
    for field, text in groups.items():
        if text is None:
            continue
        try:
            whole, length = field in WHOLE_FIELDS, field in LENGTH_FIELDS
            values[field] = int(text[:18]) if whole else float(text) if length else text
        except ValueError:
            raise InputError(
                f"--pattern finds {field} '{text}' in '{name}': {field} must be a number"
            ) from None
    return replace(NameFields(), **values)  # type: ignore[arg-type]


def section_numbers(labels: Iterable[str]) -> dict[str, int]:
    """Number section labels from 0 in natural order: A1, A2, A10, B1."""
    return {label: index for index, label in enumerate(sorted(set(labels), key=natural_key))}
