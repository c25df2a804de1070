"""Which line of a layout belongs to which tile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...errors import InputError
from ...formats.tile_layouts import Layout, LayoutEntry
from .tile_measurement import MeasuredTile

_LEAST_SIDE_FILE_SHARE = 0.5


@dataclass
class LayoutMatch:
    """The entry of every tile (None for none), the entries without a file, and what is to be said."""

    entries: list[LayoutEntry | None]
    missing: list[LayoutEntry] = field(default_factory=list)
    decision: str = ""
    warning: str = ""


def match_layouts(
    names: Sequence[str],
    measured: Sequence[MeasuredTile],
    layout: Layout | None,
    side_files: Sequence[Layout],
) -> LayoutMatch:
    """Match tiles with a layout that was given, or with the side files when they list at least half of the tiles.

    Parameters
    ----------
    names : sequence of str
        Relative path of every tile's file, with `/`.
    measured : sequence of MeasuredTile
        The tiles, in the same order.
    layout : Layout or None
        Given by a person: it must list tiles.
    side_files : sequence of Layout
        Found beside the tiles.

    Raises
    ------
    InputError
        When the layout lists no tile, lists one twice, or a line fits several files.
    """
    if layout is not None:
        match = _match(layout.entries, names, measured, str(layout.path))
        if all(entry is None for entry in match.entries):
            raise InputError(
                f"'{layout.path}' lists none of the {len(set(names))} files: it lists '{layout.entries[0].file}', and the "
                f"first file is '{names[0]}': check --layout"
            )
        match.decision = f"Positions from {layout.path.name} ({layout.kind})"
        return match
    every = tuple(entry for side in side_files for entry in side.entries)
    if not every:
        return LayoutMatch([None] * len(names))
    where = ", ".join(side.path.name for side in side_files)
    match = _match(every, names, measured, where)
    share = sum(entry is not None for entry in match.entries) / len(names)
    if share < _LEAST_SIDE_FILE_SHARE:
        warning = f"{where} lies beside the tiles but lists {share:.0%} of them, so it was not used"
        return LayoutMatch([None] * len(names), warning=warning)
    match.decision = f"Positions from {where} beside the tiles ({side_files[0].kind})"
    return match


def _match(
    entries: Sequence[LayoutEntry], names: Sequence[str], measured: Sequence[MeasuredTile], where: str
) -> LayoutMatch:
    """Match by path where one fits, otherwise by file name; series, page and channel where the entry tells them."""
    by_base: dict[str, set[str]] = defaultdict(set)
    for name in names:
        by_base[name.rsplit("/", 1)[-1]].add(name)
    by_name: dict[str, list[LayoutEntry]] = defaultdict(list)
    missing = []
    for entry in entries:
        same = by_base.get(entry.file.rsplit("/", 1)[-1], set())
        exact = {name for name in same if name == entry.file or name.endswith("/" + entry.file)}
        found = exact or same
        if len(found) > 1:
            fitting_files = ", ".join(sorted(found)[:3])
            raise InputError(
                f"{where} lists '{entry.file}', which fits {len(found)} files ({fitting_files}): write it with its folder"
            )
        if found:
            by_name[found.pop()].append(entry)
        else:
            missing.append(entry)
    result: list[LayoutEntry | None] = []
    for name, tile in zip(names, measured):
        fitting = [entry for entry in by_name[name] if _fits(entry, tile)]
        if len(fitting) > 1:
            raise InputError(f"{where} lists '{fitting[0].file}' twice: keep one line of it")
        result.append(fitting[0] if fitting else None)
    return LayoutMatch(result, missing)


def _fits(entry: LayoutEntry, tile: MeasuredTile) -> bool:
    if tile.shape_zyx is None:  # unreadable: any line of its file says where it should be
        return True
    if tile.channel_count > 1 and entry.channel not in (None, tile.channel_name, str(tile.channel)):
        return False
    return entry.series in (None, tile.series) and entry.page in (None, tile.page)


def files_with_pages(layouts: Sequence[Layout]) -> set[str]:
    """Names of files whose planes a layout places one by one, such as the stack of a SerialEM montage."""
    pages: dict[tuple[object, ...], set[int]] = defaultdict(set)
    for layout in layouts:
        for entry in layout.entries:
            if entry.page is not None:
                name = entry.file.rsplit("/", 1)[-1]
                pages[name, entry.series, entry.channel, entry.t].add(entry.page)
    return {str(key[0]) for key, found in pages.items() if len(found) > 1}
