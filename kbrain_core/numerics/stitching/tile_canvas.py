"""From solved sites to a canvas: the rows of the positions table, and the tiles each channel is fused from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...errors import InputError
from ...formats.tables import Position, PositionStatus, Tile
from .fusion import Placed
from .tile_graph import Floats, unfitted_stage
from .tile_layout import Mosaic
from .tile_links import Links, Placement

TileKey = tuple[str, int, int, str, int, int]


@dataclass(frozen=True)
class Canvas:
    """The output volume's extent and where every tile lies in it.

    Attributes
    ----------
    rows : tuple of Position
        All tiles, those that are not fused too (status excluded).
    shape : (5,) int
        t, c, z, y, x.
    """

    rows: tuple[Position, ...]
    shape: tuple[int, int, int, int, int]


def key_of(row: Tile | Position) -> TileKey:
    """What identifies a tile in both tables."""
    return row.name, row.series, row.page, row.channel, row.t, row.z


def confidence_of(mosaic: Mosaic, links: Links, placement: Placement) -> Floats:
    """Confidence of every site: mean NCC of its accepted links by their trust; 0 where the stage alone places it."""
    total, weight = np.zeros(len(mosaic.sites)), np.full(len(mosaic.sites), 1e-12)
    for side in (0, 1):
        np.add.at(total, links.ends[:, side], placement.trust * np.clip(links.ncc, 0, 1) * links.accepted)
        np.add.at(weight, links.ends[:, side], links.accepted.astype(float))
    confidence: Floats = total / weight
    return confidence


def solved_rows(mosaic: Mosaic, links: Links, placement: Placement) -> list[Position]:
    """Rows of the positions table, in px of the sections' common frame (`make_canvas` moves them to the canvas)."""
    confidence = confidence_of(mosaic, links, placement)
    height = placement.positions[:, 0]
    lowest = [float(height[mosaic.groups == group].min()) for group in range(len(mosaic.group_names))]
    deepest = max(site.shape[0] for site in mosaic.sites)
    # stacks of one section, moved along z against each other, must not reach into the next section
    slab = 1 if deepest == 1 else deepest + int(np.ceil(max(height - np.array(lowest)[mosaic.groups])))
    rows = []
    for number, site in enumerate(mosaic.sites):
        section = mosaic.group_sections[site.group]
        z, y, x = (float(value) for value in placement.positions[number])
        for tile in site.tiles:
            plane = section * slab + tile.z - mosaic.first_z - section
            place = (plane + z - lowest[site.group], y, x)
            held = bool(placement.linked[number])
            rows.append(
                replace(
                    _row(tile, place, "registered" if held else "stage_only"),
                    confidence=round(float(confidence[number]), 4),
                    links=int(placement.linked[number]),
                    component=int(placement.component[number]),
                )
            )
    return rows


def _row(tile: Tile, place: tuple[float, float, float], status: PositionStatus) -> Position:
    return Position(
        name=tile.name,
        series=tile.series,
        page=tile.page,
        channel=tile.channel,
        t=tile.t,
        z=tile.z,
        row=tile.row,
        col=tile.col,
        z_px=place[0],
        y_px=place[1],
        x_px=place[2],
        status=status,
    )


def make_canvas(mosaic: Mosaic, rows: Sequence[Position]) -> Canvas:
    """Move rows to a canvas whose first pixel is the first that a tile covers, and measure its extent."""
    tiles = {key_of(tile): tile for site in mosaic.sites for tile in site.tiles}
    used = [row for row in rows if row.status != "excluded"]
    if not used:
        raise InputError("Every tile in the positions table is excluded: there is nothing to fuse")
    top, left = (int(np.floor(min(values))) for values in ([r.y_px for r in used], [r.x_px for r in used]))
    first = int(np.floor(min(row.z_px for row in used)))
    moved = [replace(r, y_px=r.y_px - top, x_px=r.x_px - left, z_px=r.z_px - first) for r in rows]
    moved += [
        _row(tile, (float(max(0, tile.z - mosaic.first_z)), place[1] - top, place[2] - left), "excluded")
        for tile, place in mosaic.dropped
    ]
    ends = [_end(row, tiles[key_of(row)]) for row in moved if row.status != "excluded"]
    depth, height, width = (max(end[axis] for end in ends) for axis in range(3))
    return Canvas(tuple(moved), (len(mosaic.times), len(mosaic.channels), depth, height, width))


def _end(row: Position, tile: Tile) -> tuple[int, int, int]:
    shape = (tile.depth_px or 1, tile.height_px or 0, tile.width_px or 0)
    starts = (row.z_px, row.y_px, row.x_px)
    z, y, x = (int(np.floor(start + 0.5)) + size for start, size in zip(starts, shape, strict=True))
    return z, y, x


def placed_tiles(mosaic: Mosaic, canvas: Canvas) -> dict[tuple[int, int], list[Placed]]:
    """Tiles to fuse by (time point, number of the channel)."""
    tiles = {key_of(tile): tile for site in mosaic.sites for tile in site.tiles}
    layers: dict[tuple[int, int], list[Placed]] = {}
    for row in canvas.rows:
        if row.status != "excluded":
            tile = tiles[key_of(row)]
            layer = (tile.t, mosaic.channels.index(tile.channel))
            layers.setdefault(layer, []).append(Placed(tile, (row.z_px, row.y_px, row.x_px)))
    return layers


def check_given_rows(mosaic: Mosaic, rows: Sequence[Position]) -> list[Position]:
    """Rows of an edited positions table, checked against the tiles.

    A tile that the table does not name is not fused, and neither is one that the tiles table excludes.

    Raises
    ------
    InputError
        When the table names a tile that is not there, or one twice.
    """
    tiles = {key_of(tile) for site in mosaic.sites for tile in site.tiles}
    dropped = {key_of(tile) for tile, _ in mosaic.dropped}
    seen: set[TileKey] = set()
    kept = []
    for row in rows:
        key = key_of(row)
        if key in seen:
            raise InputError(
                f"The positions table names tile '{row.name}' (series {row.series}, page {row.page}) twice"
            )
        seen.add(key)
        if key in tiles:
            kept.append(row)
        elif key not in dropped and row.status != "excluded":
            raise InputError(
                f"The positions table names tile '{row.name}' (series {row.series}, page {row.page}), which the tiles "
                "table does not have: use the tables of one data set"
            )
    return kept


def given_placement(mosaic: Mosaic, rows: Sequence[Position], links: int) -> Placement:
    """Edited positions as a placement of sites, for looking at their seams."""
    places = {key_of(row): row for row in rows if row.status != "excluded"}
    positions = mosaic.nominal.copy()
    held = np.zeros(len(mosaic.sites), np.int64)
    for number, site in enumerate(mosaic.sites):
        for tile in site.registration:
            row = places.get(key_of(tile))
            if row is not None:
                positions[number] = row.z_px - tile.z + mosaic.first_z, row.y_px, row.x_px
                held[number] = row.links or 0
    component = np.zeros(len(mosaic.sites), np.int64)
    stages = tuple(unfitted_stage() for _ in mosaic.group_names)
    return Placement(positions, component, held, np.full(links, np.nan), np.zeros(links), stages)
