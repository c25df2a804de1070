"""Channels and time points against the registered one: imaged in another cycle, they may lie shifted or turned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...engine import Job, run_tasks
from ...formats.tables import Tile
from ...stage import RunOptions
from .tile_graph import Floats
from .tile_layout import Mosaic, Site
from .tile_links import PEAK_RATIO, Links
from .tile_pairs import Measurement, Pair, PairTask, register_pairs, task_bytes

# Sites looked at for each cycle, spread over the mosaic; a shift and an angle need no more.
SITES = 24
# Fewer matching tiles than this give no angle.
LEAST_SITES = 3


@dataclass(frozen=True)
class Cycle:
    """How one channel of one time point lies on the registered one.

    Attributes
    ----------
    channel : str
    t : int
    sites, matched : int
        Places compared, and those that match well enough to be believed.
    shift_px : (2,) float or None
        Median shift (y, x) against the registered images.
    angle_deg : float or None
        Rotation about the mosaic's middle; positive turns x towards y.
    off_px : float or None
        Largest displacement among the matched places: what a user sees as colour fringes.
    """

    channel: str
    t: int
    sites: int
    matched: int
    shift_px: tuple[float, float] | None
    angle_deg: float | None
    off_px: float | None


def check_cycles(
    mosaic: Mosaic, links: Links, positions: Floats, template: PairTask, job: Job, run: RunOptions
) -> list[Cycle]:
    """Compare every channel and time point with the registered one, at the same places.

    Parameters
    ----------
    mosaic : Mosaic
    links : Links
        Their threshold says what agreement chance gives.
    positions : (n, 3) ndarray
        Solved positions, px.
    template : PairTask
    job, run
        As the stage has them.

    Returns
    -------
    list of Cycle
        Empty when there is one channel and one time point. A channel of another stain may match nowhere.
    """
    tasks: list[PairTask] = []
    layers: list[tuple[tuple[int, str], list[int]]] = []
    for layer in sorted({(tile.t, tile.channel) for site in mosaic.sites for tile in site.tiles}):
        members = [number for number, site in enumerate(mosaic.sites) if _compared(site, layer) is not None]
        if members:
            chosen = [
                members[i] for i in np.unique(np.linspace(0, len(members) - 1, SITES).round().astype(int))
            ]
            tasks.append(_task(mosaic, chosen, layer, replace(template, key=f"cycles-{len(tasks):05d}")))
            layers.append((layer, chosen))
    if not tasks:
        return []
    most = task_bytes(mosaic.sites, template.reduction)
    results = run_tasks(
        register_pairs, tasks, job=job, run=run, label="Comparing channels", task_bytes=most, shared=False
    )
    return [
        _fit(layer, chosen, [Measurement.from_row(row) for row in rows], links, positions)
        for (layer, chosen), rows in zip(layers, results, strict=True)
    ]


def _compared(site: Site, layer: tuple[int, str]) -> Tile | None:
    """The tile of a layer to compare at a site: of a plane that is registered there, and not registered itself."""
    if site.blank:
        return None
    t, channel = layer
    z = site.registration[0].z
    found = [tile for tile in site.tiles if (tile.t, tile.channel, tile.z) == (t, channel, z)]
    return found[0] if found and found[0] not in site.registration else None


def _task(mosaic: Mosaic, chosen: Sequence[int], layer: tuple[int, str], template: PairTask) -> PairTask:
    sites, pairs = {}, []
    for number in chosen:
        site, tile = mosaic.sites[number], _compared(mosaic.sites[number], layer)
        if tile is not None:
            other = len(mosaic.sites) + number
            sites[number] = replace(site, registration=site.registration[:1])
            sites[other] = replace(site, registration=(tile,))
            pairs.append(Pair(number, other, (0.0, 0.0, 0.0)))
    return replace(template, sites=sites, pairs=tuple(pairs))


def _fit(
    layer: tuple[int, str],
    chosen: Sequence[int],
    measured: Sequence[Measurement],
    links: Links,
    positions: Floats,
) -> Cycle:
    t, channel = layer
    good = [
        m for m in measured if m.ncc >= max(links.threshold, PEAK_RATIO * m.second_ncc) and m.fine_ncc > 0
    ]
    if len(good) < LEAST_SITES:
        return Cycle(channel, t, len(chosen), len(good), None, None, None)
    # where the second image lies in the first one's frame is minus the way its content has moved
    moved = -np.array([m.offset[1:] for m in good])
    places = positions[[m.first for m in good], 1:]
    shift = np.median(moved, axis=0)
    centred = places - places.mean(axis=0)
    rest = moved - moved.mean(axis=0)
    spread = float((centred**2).sum())
    # a small rotation by a moves (y, x) by (a x, -a y), with x turned towards y
    angle = (
        float((centred[:, 1] * rest[:, 0] - centred[:, 0] * rest[:, 1]).sum() / spread) if spread > 0 else 0.0
    )
    off = float(np.linalg.norm(moved, axis=1).max())
    return Cycle(
        channel, t, len(chosen), len(good), (float(shift[0]), float(shift[1])), float(np.degrees(angle)), off
    )
