"""A chain of sections held to a low-resolution reference: its long drift goes, its precision between neighbours stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import spsolve

from .plane_transforms import Floats, angle_of, apply, compose, fit, identity, rotation
from .section_chain import Chain, join_pieces

SHORTEST_DRIFT = 16.0
"""Sections in a wave of the drift that is corrected by half; shorter ones are the reference's own error."""
ROUNDS = 10


def hold_to_reference(
    chain: Chain, points: Sequence[Floats], to_reference: Mapping[int, Floats]
) -> list[Floats | None]:
    """Bring a chain into the frame of a reference.

    Each piece of the chain is laid onto the reference as a whole; what is left of the difference, section by section, is
    smoothed along z (a Whittaker smoother with robust weights, doi 10.1021/ac034173t) and taken out. Links between
    neighbours are far more precise than the reference: over short distances they alone decide.

    Parameters
    ----------
    chain : Chain
    points : sequence of (K, 2) ndarray
        Points of each section's tissue, px.
    to_reference : mapping of int to (2, 3) ndarray
        For the sections that could be registered with the reference: from their pixels to its frame, in section pixels.

    Returns
    -------
    to_aligned : list of (2, 3) ndarray, or None
        As in the chain, in the frame of the reference; sections that only the reference reaches are placed by it.
    """
    placed = list(chain.to_aligned)
    component = list(chain.component)
    roots = set()
    for number in sorted(set(component) - {-1}):
        members = [index for index, piece in enumerate(component) if piece == number]
        if any(index in to_reference for index in members):
            roots.add(number)
            _correct(placed, members, points, to_reference)
    own = max(component, default=-1) + 1
    for index, transform in to_reference.items():
        if placed[index] is None:
            placed[index], component[index] = transform, own
            roots.add(own)
    join_pieces(placed, component, roots)
    return placed


def _correct(
    placed: list[Floats | None],
    members: list[int],
    points: Sequence[Floats],
    to_reference: Mapping[int, Floats],
) -> None:
    """Move the sections of one piece, in place."""
    chained = {index: transform for index in members if (transform := placed[index]) is not None}
    known = [index for index in members if index in to_reference]
    whole = _onto(
        np.concatenate([apply(chained[index], points[index]) for index in known]),
        np.concatenate([apply(to_reference[index], points[index]) for index in known]),
    )
    moved = {index: compose(whole, transform) for index, transform in chained.items()}
    drift = np.full((members[-1] - members[0] + 1, 3), np.nan)
    for index in known:
        centre = points[index].mean(axis=0)
        drift[index - members[0], :2] = apply(to_reference[index], centre) - apply(moved[index], centre)
        turn = angle_of(to_reference[index]) - angle_of(moved[index])
        drift[index - members[0], 2] = (turn + np.pi) % (2 * np.pi) - np.pi
    smooth = np.column_stack([_smooth(column) for column in drift.T])
    for index, transform in moved.items():
        shift_y, shift_x, turn = smooth[index - members[0]]
        centre = apply(transform, points[index].mean(axis=0))
        matrix = rotation(turn)
        step = np.column_stack([matrix, centre - matrix @ centre + np.array([shift_y, shift_x])])
        placed[index] = compose(step, transform)


def _onto(source: Floats, target: Floats) -> Floats:
    """The rigid transform that most of the points agree on."""
    weight = np.ones(len(source))
    transform = identity()
    for _ in range(ROUNDS):
        transform = fit(source, target, "rigid", weight)
        distance = np.linalg.norm(apply(transform, source) - target, axis=1)
        weight = 1 / (1 + (distance / max(2 * float(np.median(distance)), 1e-6)) ** 2)
    return transform


def _smooth(values: Floats) -> Floats:
    """A curve through values along z, of which some are unknown (NaN) and some are wrong."""
    count = len(values)
    known = np.isfinite(values)
    if known.sum() < 5:
        return np.full(count, float(np.median(values[known])))
    # Third differences: an arc, the curvature that a chain straightens, is left as it is up to its ends.
    bend = sp.diags_array([-1.0, 3.0, -3.0, 1.0], offsets=[0, 1, 2, 3], shape=(count - 3, count))
    stiffness = (SHORTEST_DRIFT / (2 * np.pi)) ** 6 * (bend.T @ bend)
    weight = known.astype(float)
    curve = np.zeros(count)
    for _ in range(ROUNDS):
        curve = np.asarray(
            spsolve(sp.csc_array(sp.diags_array(weight) + stiffness), weight * np.nan_to_num(values))
        )
        gap = np.abs(np.nan_to_num(values) - curve)
        scale = max(3 * 1.4826 * float(np.median(gap[known])), 1e-9)
        weight = known / (1 + (gap / scale) ** 2)
    return curve
