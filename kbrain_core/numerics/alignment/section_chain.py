"""All sections together: where each lies in one aligned frame, from links between near and next-to-near neighbours.

The answer does not depend on the order of the links: every link has its say at once, and those that disagree with the rest
lose it (Cauchy weights, iteratively reweighted), so that one bad section does not break the chain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from scipy.sparse import csgraph
from scipy.sparse.linalg import spsolve

from .plane_transforms import (
    Floats,
    Model,
    angle_of,
    apply,
    compose,
    identity,
    invert,
    mean_distance,
    nearest_rigid,
    rotation,
)

ITERATIONS = 40
REST_PX = 1e-4
CAUCHY_FACTOR = 2.385
"""Of the residuals' standard deviation: 95 % efficient on normal errors."""
OUTLIER_FACTOR = 4.0
"""A link whose residual is this many Cauchy scales is rejected: its weight is under 6 %."""
CLOSED_FACTOR = 6.0
"""Three links agree when going around them ends this many link errors from the start, at most."""
LARGEST_ERROR = 0.02
"""Of a section's longest side: links that miss by more are wrong, not imprecise."""
RIGID_PRIOR = 1e-3
"""Weight, beside a link's, of the wish that a section is not stretched: without it a chain of affine links creeps."""


@dataclass(frozen=True)
class SectionLink:
    """A pair of sections as registered.

    Parameters
    ----------
    first, second : int
        Indices of the sections.
    first_to_second : (2, 3) ndarray
        Takes pixels of the first section to pixels of the second, at full resolution.
    weight : float
        How much it counts beside other links.
    """

    first: int
    second: int
    first_to_second: Floats
    weight: float


@dataclass(frozen=True)
class Chain:
    """The solution.

    Parameters
    ----------
    to_aligned : list of (2, 3) ndarray, or None for a section that no link reaches
        Takes pixels of the section to the aligned frame.
    residual_px : (n_links,) ndarray
        Root mean square distance, over the section, between where a link and the solution put it.
    kept : (n_links,) ndarray of bool
        Links that agree with the solution.
    component : list of int
        Sections of one number are joined by links; -1 for a section that no link reaches.
    """

    to_aligned: list[Floats | None]
    residual_px: Floats
    kept: np.ndarray[tuple[int], np.dtype[np.bool_]]
    component: list[int]


def solve_chain(
    points: Sequence[Floats],
    links: Sequence[SectionLink],
    model: Model,
    *,
    link_error_px: float,
) -> Chain:
    """Place all sections so that the links agree best.

    Parameters
    ----------
    points : sequence of (K, 2) ndarray
        For every section, the points of it (pixels) at which links are compared: corners and middle of its tissue.
    links : sequence of SectionLink
    model : {"translation", "rigid", "similarity", "affine"}
    link_error_px : float
        The least error to expect of a right link; more is learnt from how links close to triangles.

    Returns
    -------
    chain : Chain
        In the frame of the section in the middle, which keeps its place.
    """
    order = sorted(range(len(links)), key=lambda i: (links[i].first, links[i].second))
    sorted_links = [links[i] for i in order]
    chain = _solve_sorted(points, sorted_links, model, link_error_px)
    residual = np.zeros(len(links))
    kept = np.zeros(len(links), bool)
    residual[order], kept[order] = chain.residual_px, chain.kept
    return replace(chain, residual_px=residual, kept=kept)


def _solve_sorted(
    points: Sequence[Floats], links: Sequence[SectionLink], model: Model, link_error_px: float
) -> Chain:
    """The solution from links in the order of their sections."""
    count = len(points)
    residual = np.zeros(len(links))
    weight_now = np.zeros(len(links))
    gaps = _triangle_gaps(points, links)
    link_error_px = _usual_error(gaps, points, link_error_px)
    trusted = _trusted(links, gaps, link_error_px)
    graph = _graph(links, trusted, count)
    _, numbers = csgraph.connected_components(graph, directed=False)
    linked = sorted({end for link in links for end in (link.first, link.second)})
    parts = sorted(
        (
            [node for node in linked if numbers[node] == number]
            for number in {numbers[node] for node in linked}
        ),
        key=lambda part: part[0],
    )
    component = [-1] * count
    placed: list[Floats | None] = [None] * count
    for number, part in enumerate(parts):
        anchor = part[len(part) // 2]
        inside = [index for index, link in enumerate(links) if link.first in part]
        start = _along_tree(links, graph, anchor)
        solved, distances, factors = _solve(
            [links[i] for i in inside], start, points, model, anchor, link_error_px
        )
        residual[inside], weight_now[inside] = distances, factors
        for node, transform in solved.items():
            placed[node], component[node] = transform, number
    join_pieces(placed, component, roots={0})
    kept = weight_now > 1 / (1 + OUTLIER_FACTOR**2)
    return Chain(placed[:count], residual, kept, component)


def _triangle_gaps(points: Sequence[Floats], links: Sequence[SectionLink]) -> list[tuple[float, list[int]]]:
    """For every three links between three sections: how far going around them ends from the start (px), and which."""
    index = {(link.first, link.second): i for i, link in enumerate(links)}
    onward: dict[int, set[int]] = defaultdict(set)
    for first, second in index:
        onward[first].add(second)
    gaps = []
    for (first, second), one in index.items():
        for third in sorted(onward[second] & onward[first]):
            two, three = index[second, third], index[first, third]
            around = compose(links[two].first_to_second, links[one].first_to_second)
            gap = mean_distance(around, links[three].first_to_second, points[first])
            gaps.append((gap, [one, two, three]))
    return gaps


def _usual_error(gaps: Sequence[tuple[float, list[int]]], points: Sequence[Floats], least_px: float) -> float:
    """The error of a link, from the triangles that close: sections differ by real tissue, and links err by that.

    Residuals alone would not tell: a chain fits its most trusted links exactly, however wrong they are.
    """
    largest = LARGEST_ERROR * max((float(np.ptp(p, axis=0).max()) for p in points), default=0.0)
    closing = [gap for gap, _ in gaps if gap < largest * np.sqrt(3)]
    return max(least_px, float(np.median(closing)) / float(np.sqrt(3)) if closing else 0.0)


def _trusted(
    links: Sequence[SectionLink], gaps: Sequence[tuple[float, list[int]]], error_px: float
) -> Floats:
    """Confidence in each link before any is solved: its weight, and a step more for every triangle that closes with it."""
    closes = np.zeros(len(links))
    for gap, members in gaps:
        if gap < CLOSED_FACTOR * error_px:
            closes[members] += 1
    weights = np.array([link.weight for link in links])
    return closes + weights / max(float(weights.max(initial=0)), 1e-12)


def _graph(links: Sequence[SectionLink], trusted: Floats, nodes: int) -> sp.csr_array:
    """Sections joined by links, the cheaper the more they are trusted."""
    ends = np.array([(link.first, link.second) for link in links], int).reshape(-1, 2)
    cost = 1 + float(trusted.max(initial=0)) - trusted
    return sp.csr_array((cost, (ends[:, 0], ends[:, 1])), shape=(nodes, nodes))


def _along_tree(links: Sequence[SectionLink], graph: sp.csr_array, anchor: int) -> dict[int, Floats]:
    """Transforms to the aligned frame along the tree of the most trusted links."""
    tree = csgraph.minimum_spanning_tree(graph)
    nodes, before = csgraph.breadth_first_order(tree, anchor, directed=False)
    by_ends = {(link.first, link.second): link.first_to_second for link in links}
    result = {anchor: identity()}
    for node in nodes[1:].tolist():
        known = int(before[node])
        forward = by_ends.get((known, node))
        to_known = by_ends[node, known] if forward is None else invert(forward)
        result[node] = compose(result[known], to_known)
    return result


def _solve(
    links: Sequence[SectionLink],
    start: dict[int, Floats],
    points: Sequence[Floats],
    model: Model,
    anchor: int,
    link_error_px: float,
) -> tuple[dict[int, Floats], Floats, Floats]:
    """Gauss-Newton steps over all sections, with Cauchy weights that sharpen from step to step."""
    nodes = sorted(start)
    place = {node: i for i, node in enumerate(nodes)}
    first = np.array([place[link.first] for link in links], int)
    second = np.array([place[link.second] for link in links], int)
    at_first = np.stack([points[link.first] for link in links]) if links else np.zeros((0, 1, 2))
    at_second = (
        np.stack([apply(link.first_to_second, points[link.first]) for link in links]) if links else at_first
    )
    weight = np.array([link.weight for link in links])
    middles = np.stack([points[node].mean(axis=0) for node in nodes])
    half_px = max(float(np.abs(points[nodes[0]] - middles[0]).max()), 1.0)
    transforms = np.stack(
        [
            start[node] if model != "rigid" else nearest_rigid(start[node], m)
            for node, m in zip(nodes, middles, strict=True)
        ]
    )
    if model == "translation":
        transforms[:, :, :2] = np.eye(2)
    sharpness = 16.0
    factor = np.ones(len(links))
    distance = np.zeros(len(links))
    for _ in range(ITERATIONS):
        seen_first, seen_second = _map(transforms[first], at_first), _map(transforms[second], at_second)
        distance = np.sqrt(((seen_second - seen_first) ** 2).sum(axis=2).mean(axis=1))
        limit = CAUCHY_FACTOR * max(link_error_px, 1.4826 * float(np.median(distance)))
        factor = 1 / (1 + (distance / limit) ** 2)
        centres = _map(transforms, middles[:, None])[:, 0]
        seen = (seen_first, seen_second, centres)
        soft = weight / (1 + (distance / (limit * sharpness)) ** 2)
        step = _step(seen, (first, second), soft, transforms, model, place[anchor], half_px)
        transforms = _advance(transforms, centres, step, model, half_px)
        if sharpness == 1 and np.abs(step).max(initial=0) < REST_PX:
            break
        sharpness = max(1.0, sharpness / 2)
    return {node: transforms[i] for node, i in place.items()}, distance, factor


def _map(transforms: Floats, points: Floats) -> Floats:
    """Each transform (N, 2, 3) applied to its own points (N, K, 2)."""
    result: Floats = np.einsum("nij,nkj->nki", transforms[:, :, :2], points) + transforms[:, None, :, 2]
    return result


def _directions(offsets: Floats, model: Model, half_px: float) -> Floats:
    """How points at ``offsets`` (N, K, 2) from their section's centre move by its free parameters: (N, K, 2, P).

    Parameters are in px: of shift, or of what a turn or stretch does at the rim.
    """
    y, x = offsets[..., 0] / half_px, offsets[..., 1] / half_px
    zero, one = np.zeros_like(y), np.ones_like(y)
    fields = [(one, zero), (zero, one)]
    if model in ("rigid", "similarity", "affine"):
        fields.append((-x, y))
    if model in ("similarity", "affine"):
        fields.append((y, x))
    if model == "affine":
        fields += [(y, -x), (x, y)]
    return np.stack([np.stack(field, axis=-1) for field in fields], axis=-1)


def _step(
    seen: tuple[Floats, Floats, Floats],
    ends: tuple[np.ndarray[tuple[int], np.dtype[np.int_]], np.ndarray[tuple[int], np.dtype[np.int_]]],
    weight: Floats,
    transforms: Floats,
    model: Model,
    anchor: int,
    half_px: float,
) -> Floats:
    """(N, P) least-squares step of all sections from the links' weighted gaps."""
    at_first, at_second, centres = seen
    first, second = ends
    count = len(transforms)
    by_first = _directions(at_first - centres[first][:, None], model, half_px)
    by_second = _directions(at_second - centres[second][:, None], model, half_px)
    gap = at_second - at_first
    size = by_first.shape[-1]
    shared = np.einsum("l,lkip,lkiq->lpq", weight, by_first, by_second)
    blocks = [
        (first, first, np.einsum("l,lkip,lkiq->lpq", weight, by_first, by_first)),
        (second, second, np.einsum("l,lkip,lkiq->lpq", weight, by_second, by_second)),
        (first, second, -shared),
        (second, first, -shared.transpose(0, 2, 1)),
    ]
    right = np.zeros((count, size))
    np.add.at(right, first, np.einsum("l,lkip,lki->lp", weight, by_first, gap))
    np.add.at(right, second, -np.einsum("l,lkip,lki->lp", weight, by_second, gap))
    typical = float(np.median(weight)) if len(weight) else 1.0
    diagonal = np.full((count, size), 1e-9 * typical)
    if size > 3:
        stretch = RIGID_PRIOR * typical * at_first.shape[1]
        diagonal[:, 3:] += stretch
        right[:, 3:] -= stretch * _stretch(transforms, half_px)[:, : size - 3]
    diagonal[anchor] += 1e9 * typical
    right[anchor] = 0
    everyone = np.arange(count)
    blocks.append((everyone, everyone, np.einsum("np,pq->npq", diagonal, np.eye(size))))
    rows = np.concatenate(
        [np.repeat(a[:, None] * size + np.arange(size), size, axis=1).ravel() for a, _, _ in blocks]
    )
    columns = np.concatenate(
        [np.tile(b[:, None] * size + np.arange(size), (1, size)).ravel() for _, b, _ in blocks]
    )
    values = np.concatenate([block.ravel() for _, _, block in blocks])
    normal = sp.csc_array((values, (rows, columns)), shape=(count * size, count * size))
    result: Floats = np.asarray(spsolve(normal, right.ravel())).reshape(count, size)
    return result


def _stretch(transforms: Floats, half_px: float) -> Floats:
    """(N, 3) how far each matrix is from a rotation: scale, and the two shears, in px at the rim."""
    result = np.empty((len(transforms), 3))
    for row, transform in zip(result, transforms, strict=True):
        # What is left of the matrix after its turn is taken out, from the left as steps are applied.
        rest = transform[:, :2] @ rotation(angle_of(transform)).T
        row[:] = (
            (rest[0, 0] + rest[1, 1]) / 2 - 1,
            (rest[0, 0] - rest[1, 1]) / 2,
            (rest[0, 1] + rest[1, 0]) / 2,
        )
    return result * half_px


def _advance(transforms: Floats, centres: Floats, step: Floats, model: Model, half_px: float) -> Floats:
    """Transforms after a step, each about its section's centre."""
    result = np.empty_like(transforms)
    for i, (transform, centre, move) in enumerate(zip(transforms, centres, step, strict=True)):
        matrix = np.eye(2)
        rest = move[2:] / half_px
        if model == "affine":
            turn, scale, stretch, shear = rest
            matrix = np.array([[1 + scale + stretch, shear - turn], [shear + turn, 1 + scale - stretch]])
        elif model != "translation":
            matrix = rotation(rest[0], scale=float(np.exp(rest[1])) if model == "similarity" else 1.0)
        result[i] = compose(np.column_stack([matrix, centre - matrix @ centre + move[:2]]), transform)
    return result


def join_pieces(placed: list[Floats | None], component: list[int], roots: set[int]) -> None:
    """Lay pieces that no link joins beside each other as they were imaged.

    From the pieces ``roots`` on, which stay, each piece is carried along so that its section nearest to one that is
    placed already gets the same transform as that.
    """
    done = {i for i, number in enumerate(component) if number in roots}
    left = {i for i, number in enumerate(component) if number >= 0} - done
    while done and left:
        _, near, head = min((abs(i - j), i, j) for i in done for j in left)
        there, here = placed[near], placed[head]
        assert there is not None and here is not None  # both have a component
        change = compose(there, invert(here))
        piece = {i for i in left if component[i] == component[head]}
        for i in piece:
            transform = placed[i]
            placed[i] = None if transform is None else compose(change, transform)
        done |= piece
        left -= piece
