"""Factor and offset of every plane of every tile: what is lost with depth, and how contrast differs between sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...engine import run_tasks
from ...formats.tables import Tile
from ...stage import RunOptions
from .illumination_tasks import Group, PlaneOfTile, PlanesTask, group_of, levels_of_planes, sample_planes
from .plane_levels import DepthLoss, Levels, fit_depth_loss, matching_line

_TILES_A_PLANE = 9  # tiles of a section that its levels stand on
_DEPTHS = 64  # depths that the loss is fitted to
Place = tuple[str, int, int, int]  # channel, t, z, plane within the tile


@dataclass(frozen=True)
class PlaneLines:
    """Factor and offset of planes, and what they were made from.

    Attributes
    ----------
    contrast : dict
        Factor and offset of each place (channel, t, z, plane).
    levels : dict
        Grey levels found there.
    loss : dict
        Loss with depth of each channel; channels without a certain loss are left out.
    light : dict
        Mean light at the depths that were looked at, of each channel.
    """

    contrast: Mapping[Place, tuple[float, float]]
    levels: Mapping[Place, Levels]
    loss: Mapping[str, DepthLoss]
    light: Mapping[str, Mapping[int, float]]

    def of_tile(self, tile: Tile, planes: int, first_z: int) -> tuple[tuple[float, float], ...]:
        """Return factor and offset of each plane of a tile; one pair when all are alike.

        Parameters
        ----------
        tile : Tile
        planes : int
            Planes of the whole stack.
        first_z : int
            Lowest z in the table.
        """
        depth = tile.depth_px or 1
        if self.contrast:
            return tuple(self.contrast[tile.channel, tile.t, tile.z, plane] for plane in range(depth))
        loss = self.loss.get(tile.channel)
        if loss is None:
            return ((1.0, 0.0),)
        depths = range(depth) if depth > 1 else [tile.z - first_z]
        return tuple((loss.gain(index, planes), 0.0) for index in depths)


NO_LINES = PlaneLines({}, {}, {}, {})


def stack_planes(tiles: Sequence[Tile]) -> tuple[int, int]:
    """Return how many planes deep the tiles are (in their files, or over z in the table), and the lowest z."""
    first, last = min(tile.z for tile in tiles), max(tile.z for tile in tiles)
    return max(max(tile.depth_px or 1 for tile in tiles), last - first + 1), first


def section_contrast(
    tiles: Sequence[Tile], folder: Path, fields: Mapping[Group, str], run: RunOptions
) -> PlaneLines:
    """Bring every section (and every plane of a stack) of a channel to the median levels of all.

    Parameters
    ----------
    tiles : sequence of Tile
        Blank ones do not count for the levels.
    folder : Path
    fields : dict
        File with flat field and dark level of each group.
    run : RunOptions
    """
    places: dict[Place, list[PlaneOfTile]] = {}
    tasks: list[PlanesTask] = []
    asked: list[Place] = []
    for tile in tiles:
        for plane in range(tile.depth_px or 1):
            members = places.setdefault((tile.channel, tile.t, tile.z, plane), [])
            if tile.status == "ok":
                members.append(PlaneOfTile(tile, plane))
    for place, members in places.items():
        if members:
            chosen = np.random.default_rng(0).permutation(len(members))[:_TILES_A_PLANE]
            tasks.append(_levels_task(len(tasks), [members[i] for i in chosen], folder, fields))
            asked.append(place)
    found = run_tasks(levels_of_planes, tasks, job=None, run=run, label="Measuring the contrast of sections")
    levels = {place: Levels(median, spread) for place, (median, spread, _) in zip(asked, found)}
    lines = {}
    for place in places:
        same = [levels[other] for other in levels if other[0] == place[0]]
        if place not in levels:
            lines[place] = (1.0, 0.0)
            continue
        wanted = Levels(
            float(np.median([level.median for level in same])),
            float(np.median([level.spread for level in same])),
        )
        lines[place] = matching_line(levels[place], wanted)
    return PlaneLines(lines, levels, {}, {})


def depth_loss(
    tiles: Sequence[Tile], folder: Path, fields: Mapping[Group, str], run: RunOptions
) -> PlaneLines:
    """Fit the loss of light with depth of each channel.

    Parameters
    ----------
    tiles : sequence of Tile
        Stacks, or planes with their z in the table.
    folder : Path
    fields : dict
        File with flat field and dark level of each group.
    run : RunOptions
    """
    count, first_z = stack_planes(tiles)
    depths = sorted({int(depth) for depth in np.linspace(0, count - 1, min(count, _DEPTHS)).round()})
    tasks: list[PlanesTask] = []
    asked: list[tuple[str, int]] = []
    for channel in dict.fromkeys(tile.channel for tile in tiles):
        ok = [tile for tile in tiles if tile.channel == channel and tile.status == "ok"]
        # The same tiles at all depths: content then differs as little as it can from depth to depth.
        stacks = [
            place.tile for place in sample_planes([t for t in ok if (t.depth_px or 1) > 1], _TILES_A_PLANE)
        ]
        for depth in depths:
            deep = [
                PlaneOfTile(tile, depth) for tile in dict.fromkeys(stacks) if depth < (tile.depth_px or 1)
            ]
            flat = [PlaneOfTile(t, 0) for t in ok if (t.depth_px or 1) == 1 and t.z - first_z == depth]
            if deep or flat:
                tasks.append(_levels_task(len(tasks), [*deep, *flat[:_TILES_A_PLANE]], folder, fields))
                asked.append((channel, depth))
    found = run_tasks(levels_of_planes, tasks, job=None, run=run, label="Measuring the light at each depth")
    light: dict[str, dict[int, float]] = {}
    for (channel, depth), (_, _, mean) in zip(asked, found):
        light.setdefault(channel, {})[depth] = mean
    fitted = {channel: fit_depth_loss(list(curve), list(curve.values())) for channel, curve in light.items()}
    certain = {channel: loss for channel, loss in fitted.items() if loss is not None and loss.significant}
    return PlaneLines({}, {}, certain, light)


def _levels_task(
    number: int, planes: Sequence[PlaneOfTile], folder: Path, fields: Mapping[Group, str]
) -> PlanesTask:
    # Tiles of one section share their size but for odd ones, which do not decide its levels.
    group = group_of(planes[0].tile)
    alike = tuple(place for place in planes if group_of(place.tile) == group)
    return PlanesTask(f"levels-{number}", str(folder), alike, fields.get(group))
