"""Which measured links to believe, what they say together, and whether the result can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .tile_graph import OFF_PX, Floats, Ints, StageModel, solve_positions
from .tile_layout import Mosaic
from .tile_pairs import PATCH_TILES, Measurement, Pair, PairTask, Structure

# Pairs that do not touch, measured to learn what chance gives; their mean and scatter need no more.
NULL_PAIRS = 100
# Fewer null pairs than this tell little of their scatter: links must agree at least as well as the threshold then.
CHANCE_LEAST, UNSURE_THRESHOLD = 6, 0.3
# The best offset must beat the next by this factor: a periodic structure fits at several.
PEAK_RATIO = 1.05
# An overlap has to match when at least this share of its variance is structure, not noise, and its contrast is at least
# this fraction of what verified overlaps have: shading and traces of dust are structure too, but faint.
STRUCTURED_SHARE, STRUCTURED_CONTRAST = 0.6, 0.3


def plan_pairs(mosaic: Mosaic, links: Ints, margin: tuple[int, int, int]) -> list[list[Pair]]:
    """Pairs to register, in patches of the mosaic, with pairs that do not touch among them.

    Parameters
    ----------
    mosaic : Mosaic
    links : (m, 2) ndarray of int
    margin : (3,) int
        Largest shift from the stage, px.

    Returns
    -------
    list of list of Pair
    """
    nominal, shapes = mosaic.nominal, mosaic.shapes
    patches: dict[tuple[int, ...], list[Pair]] = {}
    for first, second in links:
        cell = tuple(int(v) for v in nominal[first, 1:] // (PATCH_TILES * shapes[first, 1:]))
        offset = nominal[second] - nominal[first]
        pair = Pair(int(first), int(second), (float(offset[0]), float(offset[1]), float(offset[2])))
        patches.setdefault((int(mosaic.groups[first]), *cell), []).append(pair)
    step = -(-len(links) // NULL_PAIRS)
    planned = []
    for _, pairs in sorted(patches.items()):
        members = np.unique([(pair.first, pair.second) for pair in pairs])
        nulls = [null for pair in pairs[::step] if (null := _null_pair(pair, members, mosaic, margin))]
        planned.append(_in_reading_order([*pairs, *nulls]))
    return planned


def _null_pair(pair: Pair, members: Ints, mosaic: Mosaic, margin: tuple[int, int, int]) -> Pair | None:
    """A pair with the same nominal offset whose second tile lies elsewhere: a neighbour's neighbour, when there is one."""
    nominal, shapes = mosaic.nominal, mosaic.shapes
    away = np.abs(nominal[members] - nominal[pair.first])[:, 1:] > (shapes[members] + np.array(margin))[:, 1:]
    alike = (shapes[members] == shapes[pair.second]).all(axis=1)
    candidates = members[away.any(axis=1) & alike]
    if len(candidates) == 0:
        return Pair(pair.first, pair.second, pair.offset, null=True, turned=True)
    # the nearest in the order of reading, so that it is still in memory
    return Pair(
        pair.first, int(candidates[np.argmin(np.abs(candidates - pair.first))]), pair.offset, null=True
    )


def _in_reading_order(pairs: list[Pair]) -> list[Pair]:
    return sorted(
        pairs, key=lambda pair: (max(pair.first, pair.second), min(pair.first, pair.second), pair.null)
    )


def pair_tasks(planned: Sequence[Sequence[Pair]], mosaic: Mosaic, template: PairTask) -> list[PairTask]:
    """Tasks of planned pairs; `template` gives what all have in common."""
    tasks = []
    for number, pairs in enumerate(planned):
        used = sorted({site for pair in pairs for site in (pair.first, pair.second)})
        tasks.append(
            PairTask(
                f"{template.key}-{number:05d}",
                template.folder,
                {site: mosaic.sites[site] for site in used},
                tuple(pairs),
                template.margin,
                template.reduction,
                template.patterns,
            )
        )
    return tasks


@dataclass(frozen=True)
class Links:
    """Measured links of a mosaic and which of them are believed.

    Attributes
    ----------
    found : tuple of Measurement
        Neighbours only.
    accepted : (m,) ndarray of bool
    threshold : float
        NCC from which a link is believed: mean + 4 standard deviations of pairs that do not touch.
    chance : (k,) ndarray
        NCC of those pairs.
    """

    found: tuple[Measurement, ...]
    accepted: np.ndarray[tuple[int], np.dtype[np.bool_]]
    threshold: float
    chance: Floats

    @property
    def ends(self) -> Ints:
        """(m, 2) site numbers."""
        return np.array([(link.first, link.second) for link in self.found], np.int64).reshape(-1, 2)

    @property
    def offsets(self) -> Floats:
        """(m, 3) measured offsets, px."""
        return np.array([link.offset for link in self.found], np.float64).reshape(-1, 3)

    @property
    def ncc(self) -> Floats:
        """(m,) NCC at full resolution."""
        return np.array([link.fine_ncc for link in self.found])

    @property
    def usual_contrast(self) -> float:
        """Median contrast of verified overlaps; of all where none is."""
        some = self.accepted if self.accepted.any() else np.ones(len(self.found), bool)
        contrasts = [link.structure.contrast for link, used in zip(self.found, some, strict=True) if used]
        return float(np.median(contrasts)) if contrasts else 0.0

    def must_match(self, structure: Structure) -> bool:
        """Whether both sides of an overlap hold enough for a match to be expected."""
        enough = structure.contrast >= STRUCTURED_CONTRAST * self.usual_contrast
        return structure.share >= STRUCTURED_SHARE and enough


def judge_links(measurements: Sequence[Measurement]) -> Links:
    """Decide which links to believe, from what pairs that do not touch give.

    Parameters
    ----------
    measurements : sequence of Measurement
        Neighbours and null pairs.
    """
    chance = np.array([item.ncc for item in measurements if item.null])
    found = tuple(item for item in measurements if not item.null)
    threshold = _chance_limit(chance) if len(chance) else 0.5
    accepted = np.array(
        [
            item.ncc >= threshold and item.ncc >= PEAK_RATIO * item.second_ncc and item.fine_ncc > 0
            for item in found
        ],
        bool,
    )
    return Links(found, accepted, threshold, chance)


def _chance_limit(chance: Floats) -> float:
    """Mean + 4 standard deviations, without values far outside: those are tiles that do match, put at a wrong place."""
    middle = np.median(chance)
    spread = 1.4826 * float(np.median(np.abs(chance - middle)))
    kept = chance[chance <= middle + 10 * spread]
    limit = float(kept.mean() + 4 * kept.std())
    return limit if len(kept) >= CHANCE_LEAST else max(limit, UNSURE_THRESHOLD)


@dataclass(frozen=True)
class Placement:
    """Positions of all sites, and how well each link agrees with them.

    Attributes
    ----------
    positions : (n, 3) ndarray
        px (z, y, x); groups have frames of their own, held together by the stage.
    component : (n,) ndarray of int
        Number of the component inside its group, 0 the largest.
    linked : (n,) ndarray of int
        Accepted links of each site.
    residuals : (m,) ndarray
        Distance of every accepted link from the solution, px; NaN for rejected ones.
    trust : (m,) ndarray
        Robust weight of every link, 0 to 1; 0 for rejected ones.
    stages : tuple of StageModel
        What the stage did, by group.
    """

    positions: Floats
    component: Ints
    linked: Ints
    residuals: Floats
    trust: Floats
    stages: tuple[StageModel, ...]


def solve_mosaic(mosaic: Mosaic, links: Links) -> Placement:
    """Solve every group of a mosaic."""
    count = len(mosaic.sites)
    nominal, parity, ends = mosaic.nominal, mosaic.parity, links.ends
    positions, component = nominal.copy(), np.zeros(count, np.int64)
    residuals, trust = np.full(len(ends), np.nan), np.zeros(len(ends))
    # the information a seam holds on a shift grows with its area and with signal over noise
    ncc = np.clip(links.ncc, 0, 0.999)
    weights = np.array([link.area for link in links.found]) * ncc**2 / (1 - ncc**2) + 1e-9
    stages = []
    for group in range(len(mosaic.group_names)):
        members = np.flatnonzero(mosaic.groups == group)
        chosen = (
            np.flatnonzero(links.accepted & np.isin(ends[:, 0], members))
            if len(ends)
            else np.empty(0, np.int64)
        )
        local = np.searchsorted(members, ends[chosen])
        solution = solve_positions(
            nominal[members], parity[members], local.reshape(-1, 2), links.offsets[chosen], weights[chosen]
        )
        positions[members], component[members] = solution.positions, solution.component
        residuals[chosen], trust[chosen] = solution.residuals, solution.trust
        stages.append(solution.stage)
    linked = (
        np.bincount(ends[links.accepted].ravel(), minlength=count) if len(ends) else np.zeros(count, np.int64)
    )
    return Placement(positions, component, linked, residuals, trust, tuple(stages))


def doubtful_links(links: Links, placement: Placement) -> Ints:
    """Links whose seam has to be looked at where the solution puts it: rejected ones, and those it disagrees with."""
    return np.flatnonzero(~links.accepted | (placement.residuals > OFF_PX))


@dataclass(frozen=True)
class Seam:
    """What an overlap shows where a solution puts it."""

    ncc: float
    structure: Structure


@dataclass(frozen=True)
class Verdict:
    """Whether a stitch can be trusted.

    Attributes
    ----------
    passed : bool
    line : str
        One line that says why.
    seams_off : tuple of int
        Numbers of links whose seam the solution puts wrong by more than 2 px.
    unmatched : tuple of int
        Links with structure on both sides that do not match.
    lost : tuple of int
        Sites with structure that no link joins to the largest component.
    """

    passed: bool
    line: str
    seams_off: tuple[int, ...]
    unmatched: tuple[int, ...]
    lost: tuple[int, ...]


def judge_mosaic(mosaic: Mosaic, links: Links, placement: Placement, seams: dict[int, Seam]) -> Verdict:
    """Say in one line whether a stitch can be trusted.

    Parameters
    ----------
    mosaic, links, placement
    seams : dict of int to Seam
        What doubtful links show where the solution puts them, by number.

    Notes
    -----
    Empty tiles are no failure: they lie where the stage says. Tiles with structure that does not match are.
    """
    count, total, used = len(mosaic.sites), len(links.found), int(links.accepted.sum())
    if total == 0:
        return Verdict(
            count == len(mosaic.group_names),
            f"{count} tiles without neighbours: nothing to check",
            (),
            (),
            (),
        )
    off: list[int] = []
    unmatched: list[int] = []
    for number, seam in seams.items():
        link = links.found[number]
        matches = seam.ncc >= max(links.threshold, 0.5 * seam.structure.share)
        joined = placement.component[link.first] == placement.component[link.second]
        if links.accepted[number]:
            off += [number] * (not matches)
        elif joined and links.must_match(seam.structure) and not matches:
            unmatched.append(number)
    structured = np.zeros(count, np.int64)
    for link in _rejected(links):
        if links.must_match(link.structure):
            structured[[link.first, link.second]] += 1
    stray = (placement.component > 0) | (placement.linked == 0)
    # one structured seam of a stray tile may be an object that only one side holds; two are not
    enough = np.minimum(2, np.bincount(links.ends.ravel(), minlength=count))
    lost = {int(i) for i in np.flatnonzero(stray & (structured >= enough)) if not mosaic.sites[i].blank}
    lost |= _split(mosaic, links, placement)
    # a tile with as many seams that do not match as verified ones may hang on a link that chance verified
    wrong = (
        np.bincount(links.ends[unmatched].ravel(), minlength=count)
        if unmatched
        else np.zeros(count, np.int64)
    )
    lost |= {int(i) for i in np.flatnonzero((wrong > 0) & (wrong >= placement.linked))}
    summary = _summary(links, placement, used, total)
    if used == 0:
        reason = f"no link of {total} could be verified (nothing agrees better than chance, NCC {links.threshold:.2f})"
    elif off:
        reason = f"{len(off)} of {total} seams are off by more than {OFF_PX:g} px"
    elif lost:
        reason = f"{len(lost)} tiles with structure match none of their neighbours (first: {mosaic.sites[min(lost)].name})"
    elif len(unmatched) > max(1, 0.05 * total):
        reason = f"{len(unmatched)} of {total} seams with structure on both sides do not match"
    else:
        return Verdict(True, summary, (), tuple(unmatched), ())
    return Verdict(False, f"{reason}; {summary}", tuple(off), tuple(unmatched), tuple(sorted(lost)))


def judge_given(mosaic: Mosaic, links: Links) -> Verdict:
    """Say whether seams of given positions match; nothing was registered, so only their agreement is known."""
    structured = [
        i
        for i, link in enumerate(links.found)
        if links.must_match(link.structure)
        and not (mosaic.sites[link.first].blank or mosaic.sites[link.second].blank)
    ]
    if not structured:
        return Verdict(True, "positions were given; no seam has enough structure to check them", (), (), ())
    bad = tuple(i for i in structured if links.found[i].ncc < 0.5 * links.found[i].structure.share)
    median = np.median([links.found[i].ncc for i in structured])
    line = f"positions were given: {len(bad)} of {len(structured)} seams with structure do not match, NCC {median:.2f}"
    return Verdict(len(bad) <= 0.05 * len(structured), line, (), bad, ())


def _rejected(links: Links) -> list[Measurement]:
    return [link for link, accepted in zip(links.found, links.accepted, strict=True) if not accepted]


def _split(mosaic: Mosaic, links: Links, placement: Placement) -> set[int]:
    """Sites of components that structured seams, rejected, part from the largest one."""
    lost: set[int] = set()
    for link in _rejected(links):
        one, other = placement.component[link.first], placement.component[link.second]
        if one != other and links.must_match(link.structure):
            for site, component in ((link.first, one), (link.second, other)):
                if component > 0 and placement.linked[site] > 0:
                    lost.add(site)
    return lost


def _summary(links: Links, placement: Placement, used: int, total: int) -> str:
    if used == 0:
        return "all tiles lie where the stage put them"
    residuals = placement.residuals[links.accepted]
    stage_only = int((placement.linked == 0).sum())
    empty = f", {stage_only} tiles by the stage alone" if stage_only else ""
    return (
        f"{used} of {total} links verified, residual {np.median(residuals):.2f} px (largest {residuals.max():.2f} px), "
        f"median NCC {np.median(links.ncc[links.accepted]):.2f}{empty}"
    )
