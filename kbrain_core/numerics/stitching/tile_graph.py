"""Tiles as a graph: who is whose neighbour, where the stage put them, and one solution for all measured links.

Positions are (n, 3) arrays in px (z, y, x); links are rows of two tile numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import factorized

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Weight of the stage against that of a typical link: enough to hold a tile without links, and so little that 20 px of
# stage error pull a tile by 0.02 px even where its only link has a hundredth of the usual weight.
STAGE_WEIGHT = 1e-5
# A link further off than this from the common solution is a wrong link or a bad seam, not measurement noise.
OFF_PX = 2.0


def neighbour_pairs(corners: Floats, sizes: Floats) -> Ints:
    """Pairs of tiles that share a seam, from nominal positions; works for any arrangement.

    Parameters
    ----------
    corners : (n, 3) ndarray
        Nominal origins, px (z, y, x).
    sizes : (n, 3) ndarray
        Shapes, px.

    Returns
    -------
    (m, 2) ndarray of int
        First tile before the second, sorted. A pair counts when it shares at least a third of the largest overlap
        that either tile has: diagonal neighbours share a corner only, which adds work and no knowledge.
    """
    from rtree import index

    boxes = np.hstack([corners, corners + sizes])
    # strictly inside: boxes that only touch share no pixel
    inner = boxes + np.repeat([0.5, -0.5], 3)
    properties = index.Property(dimension=3)
    tree = index.Index(((i, tuple(box), None) for i, box in enumerate(inner)), properties=properties)
    pairs, areas = [], []
    for i, box in enumerate(inner):
        for j in tree.intersection(tuple(box)):
            if j > i:
                shared = np.minimum(boxes[i, 3:], boxes[j, 3:]) - np.maximum(boxes[i, :3], boxes[j, :3])
                pairs.append((i, j))
                areas.append(float(np.prod(shared)))
    if not pairs:
        return np.empty((0, 2), np.int64)
    links, area = np.array(pairs, np.int64), np.array(areas)
    largest = np.zeros(len(corners))
    for side in (0, 1):
        np.maximum.at(largest, links[:, side], area)
    keep = area >= np.maximum(largest[links[:, 0]], largest[links[:, 1]]) / 3
    # a tile that only meets others by a corner keeps its best link
    for tile in np.setdiff1d(links, links[keep]):
        own = np.flatnonzero((links == tile).any(axis=1))
        keep[own[np.argmax(area[own])]] = True
    kept: Ints = links[keep]
    return kept[np.lexsort((kept[:, 1], kept[:, 0]))]


@dataclass(frozen=True)
class StageModel:
    """How the stage really moved: position = matrix @ nominal + offset + backlash, in px.

    Attributes
    ----------
    matrix : (2, 2) ndarray
        Nominal to real steps, (y, x): scale of the steps, angle between camera and stage, skew.
    row_backlash_px : (2,) ndarray
        By how much odd rows lie off (y, x): the play of a stage that scans rows to and fro.
    col_backlash_px : (2,) ndarray
        The same for odd columns.
    jitter_px : float
        Scatter that is left, standard deviation per axis.
    """

    matrix: Floats
    row_backlash_px: Floats
    col_backlash_px: Floats
    jitter_px: float

    @property
    def angle_deg(self) -> float:
        """Rotation of the camera against the stage, degrees; positive turns x towards y."""
        m = self.matrix
        return float(np.degrees(np.arctan2(m[0, 1] - m[1, 0], m[0, 0] + m[1, 1])))

    @property
    def scale_yx(self) -> tuple[float, float]:
        """Real step over nominal step along rows (y) and columns (x)."""
        return float(np.hypot(*self.matrix[:, 0])), float(np.hypot(*self.matrix[:, 1]))

    @property
    def backlash_px(self) -> float:
        """Length of the larger of the two backlashes."""
        return float(max(np.hypot(*self.row_backlash_px), np.hypot(*self.col_backlash_px)))

    def predict(self, nominal: Floats, parity: Floats) -> Floats:
        """Where the stage puts tiles, up to one common offset.

        Parameters
        ----------
        nominal : (n, 3) ndarray
        parity : (n, 2) ndarray
            1 in odd rows and in odd columns, 0 elsewhere.
        """
        out = nominal.copy()
        out[:, 1:] = nominal[:, 1:] @ self.matrix.T
        out[:, 1:] += parity[:, :1] * self.row_backlash_px + parity[:, 1:] * self.col_backlash_px
        return out


def unfitted_stage() -> StageModel:
    """The stage as it says of itself."""
    return StageModel(np.eye(2), np.zeros(2), np.zeros(2), 0.0)


def fit_stage(nominal: Floats, parity: Floats, positions: Floats, group: Ints) -> StageModel:
    """Fit step, angle and backlash to solved positions.

    Parameters
    ----------
    nominal : (n, 3) ndarray
        Nominal positions, px.
    parity : (n, 2) ndarray
        Odd row, odd column.
    positions : (n, 3) ndarray
        Solved positions of tiles that links hold, px.
    group : (n,) ndarray of int
        Component of each tile: components have offsets of their own.

    Returns
    -------
    StageModel
        Backlash only where the Bayesian information criterion (Schwarz 1978) finds it: a stage without it gets none
        fitted to its jitter. Fewer than five tiles keep the nominal steps.
    """
    moved = (positions - nominal)[:, 1:]
    groups = (group[:, None] == np.unique(group)[None, :]).astype(np.float64)
    centred = nominal[:, 1:] - (groups @ (groups.T @ nominal[:, 1:] / groups.sum(axis=0)[:, None]))
    length = max(1.0, float(np.abs(centred).max(initial=0)))
    blocks = {"steps": centred / length, "rows": parity[:, :1], "cols": parity[:, 1:]}
    best, best_score, least_rank = unfitted_stage(), np.inf, 0
    for names in ((), ("steps",), ("steps", "rows"), ("steps", "cols"), ("steps", "rows", "cols")):
        design = np.hstack([groups, *(blocks[name] for name in names)])
        rank = int(np.linalg.matrix_rank(design))
        # in two columns the parity is the step itself: what adds no rank explains nothing
        if names and (len(moved) - rank < 2 or rank <= least_rank):
            continue
        solution, scatter = _robust_fit(design, moved)
        score = 2 * len(moved) * np.log(max(scatter, 1e-3) ** 2) + 2 * rank * np.log(2 * len(moved))
        # steps and angle are fitted wherever the tiles allow it, backlash only on evidence
        if names == ("steps",) or score < best_score:
            best, best_score = _stage_model(solution[groups.shape[1] :], names, length, scatter), score
        if names in ((), ("steps",)):
            least_rank = rank
    return best


def _stage_model(solution: Floats, names: tuple[str, ...], length: float, scatter: float) -> StageModel:
    matrix, rows, cols = np.eye(2), np.zeros(2), np.zeros(2)
    at = 0
    for name in names:
        if name == "steps":
            matrix = matrix + solution[at : at + 2].T / length
            at += 2
        elif name == "rows":
            rows = solution[at]
            at += 1
        else:
            cols = solution[at]
            at += 1
    return StageModel(matrix, rows, cols, scatter)


def _robust_fit(design: Floats, values: Floats) -> tuple[Floats, float]:
    """Huber fit of the smallest norm, so that a direction nobody moved in keeps its nominal step; and its scatter."""
    weight = np.ones(len(values))
    for _ in range(10):
        root = np.sqrt(weight)[:, None]
        solution = np.linalg.lstsq(design * root, values * root, rcond=1e-9)[0]
        distance = np.linalg.norm(values - design @ solution, axis=1)
        limit = max(3 * 0.85 * float(np.median(distance)), 1e-6)
        weight = np.minimum(1.0, limit / np.maximum(distance, 1e-12))
    residual = values - design @ solution
    spare = max(1, len(values) - int(np.linalg.matrix_rank(design)))
    scatter = float(np.sqrt((weight[:, None] * residual**2).sum() / (2 * spare)))
    return solution.astype(np.float64), scatter


@dataclass(frozen=True)
class Solution:
    """Positions that agree best with all links.

    Attributes
    ----------
    positions : (n, 3) ndarray
        px (z, y, x).
    residuals : (m,) ndarray
        Distance of every link from the solution, px.
    trust : (m,) ndarray
        Robust weight of every link, 0 (ignored) to 1.
    component : (n,) ndarray of int
        Tiles that links join share a number; 0 is the largest component.
    stage : StageModel
        What the stage did.
    """

    positions: Floats
    residuals: Floats
    trust: Floats
    component: Ints
    stage: StageModel


def solve_positions(
    nominal: Floats, parity: Floats, links: Ints, offsets: Floats, weights: Floats
) -> Solution:
    """Solve all links together, robustly, with the fitted stage as a weak prior.

    Parameters
    ----------
    nominal : (n, 3) ndarray
        Nominal positions, px (z, y, x).
    parity : (n, 2) ndarray
        Odd row, odd column (0 or 1): which way a scanning stage came.
    links : (m, 2) ndarray of int
        Accepted links.
    offsets : (m, 3) ndarray
        Measured position of the second tile less that of the first, px.
    weights : (m,) ndarray
        Relative trust in the links, such as NCC^2 sqrt(area).

    Returns
    -------
    Solution
        A tile without links lies where the fitted stage puts it; so does a component that no link joins to the rest.

    Notes
    -----
    Sparse least squares with Cauchy weights, iterated; the scale shrinks from the largest residual to that of the
    measurement noise, so that one wrong link cannot pull its neighbours along at the start.
    """
    count = len(nominal)
    component = _components(count, links)
    linked = np.zeros(count, bool)
    linked[links.ravel()] = True
    stage = unfitted_stage()
    positions, trust, residuals = nominal.copy(), np.ones(len(links)), np.zeros(len(links))
    weights = weights / np.median(weights) if len(weights) else weights
    for _ in range(2):  # the stage is fitted to the first solution and is the prior of the second
        prior = stage.predict(nominal, parity)
        positions, residuals, trust = _solve_cauchy(prior, links, offsets, weights)
        if linked.sum() >= 3:
            stage = fit_stage(nominal[linked], parity[linked], positions[linked], component[linked])
    prior = stage.predict(nominal, parity)
    positions, residuals, trust = _solve_cauchy(prior, links, offsets, weights)
    return Solution(positions, residuals, trust, component, stage)


def _components(count: int, links: Ints) -> Ints:
    graph = sparse.coo_matrix((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    sizes = np.bincount(labels)
    rank = np.empty(len(sizes), np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    numbered: Ints = rank[labels]
    return numbered


def _solve_cauchy(
    prior: Floats, links: Ints, offsets: Floats, weights: Floats
) -> tuple[Floats, Floats, Floats]:
    count, number = len(prior), len(links)
    rows = np.repeat(np.arange(number), 2)
    signs = np.tile([-1.0, 1.0], number)
    incidence = sparse.csr_matrix((signs, (rows, links.ravel())), shape=(number, count))
    held = sparse.identity(count, format="csr") * STAGE_WEIGHT
    trust = np.ones(number)
    positions, residuals = prior, np.zeros(number)
    scale = np.inf
    for step in range(30):
        scaled = sparse.diags_array(weights * trust) if number else sparse.diags_array(np.zeros(0))
        normal = (incidence.T @ scaled @ incidence + held).tocsc()
        right = incidence.T @ (scaled @ offsets) + STAGE_WEIGHT * prior
        solve = factorized(normal)
        moved = np.column_stack([solve(np.ascontiguousarray(right[:, axis])) for axis in range(3)])
        change = float(np.abs(moved - positions).max(initial=0))
        positions = moved
        residuals = np.linalg.norm(positions[links[:, 1]] - positions[links[:, 0]] - offsets, axis=1)
        noise = max(2.385 * 1.4826 * float(np.median(residuals)) if number else 0.0, 0.1)
        scale = max(noise, min(scale, float(residuals.max(initial=0))) / 2)
        if step > 3 and change < 1e-4:
            break
        trust = 1 / (1 + (residuals / scale) ** 2)
    return positions, residuals, trust
