"""From solved sections to a canvas: sections that could not be registered, and how large the result must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from .plane_transforms import Floats, angle_of, apply, compose, identity, invert, rotation

LARGEST_GROWTH = 25.0
"""A canvas of more times the area of the largest section holds mostly nothing: some section lies far off."""

PixelBox = tuple[int, int, int, int]


@dataclass(frozen=True)
class Canvas:
    """The plane of the output.

    Parameters
    ----------
    shape_yx : (2,) int
        Its size in px.
    origin_yx : (2,) int
        Where its first pixel lies in the aligned frame.
    """

    shape_yx: tuple[int, int]
    origin_yx: tuple[int, int]

    def to_section(self, to_aligned: Floats) -> Floats:
        """The transform from pixels of the canvas to pixels of a section."""
        shift = np.column_stack([np.eye(2), np.array(self.origin_yx, float)])
        return compose(invert(to_aligned), shift)


def interpolate_missing(to_aligned: Sequence[Floats | None], centres: Sequence[Floats]) -> list[Floats]:
    """Give sections without a transform the one between their neighbours.

    The turn goes the short way round, what a matrix is beyond a turn and the place of the section's centre go in a straight
    line. Before the first and after the last known section its transform is kept.

    Parameters
    ----------
    to_aligned : sequence of (2, 3) ndarray or None
    centres : sequence of (2,) ndarray
        A point of each section, px, such as the middle of its tissue.
    """
    known = [i for i, transform in enumerate(to_aligned) if transform is not None]
    if not known:
        return [identity() for _ in to_aligned]
    result = []
    for index, transform in enumerate(to_aligned):
        if transform is None:
            before = max((i for i in known if i < index), default=known[0])
            after = min((i for i in known if i > index), default=known[-1])
            share = (index - before) / (after - before) if after > before else 0.0
            transform = _between(
                to_aligned[before], to_aligned[after], share, centres, (before, index, after)
            )
        result.append(transform)
    return result


def _between(
    one: Floats | None,
    other: Floats | None,
    share: float,
    centres: Sequence[Floats],
    at: tuple[int, int, int],
) -> Floats:
    """The transform at ``share`` of the way from one to another."""
    assert one is not None and other is not None  # both are known sections
    share = min(max(share, 0.0), 1.0)
    start, end = angle_of(one), angle_of(other)
    turn = start + share * ((end - start + np.pi) % (2 * np.pi) - np.pi)
    rests = [transform[:, :2] @ rotation(angle).T for transform, angle in ((one, start), (other, end))]
    matrix = ((1 - share) * rests[0] + share * rests[1]) @ rotation(turn)
    before, here, after = at
    place = (1 - share) * apply(one, centres[before]) + share * apply(other, centres[after])
    return np.column_stack([matrix, place - matrix @ centres[here]])


def fit_canvas(to_aligned: Sequence[Floats], boxes: Sequence[PixelBox | None]) -> Canvas:
    """The smallest canvas of whole pixels that cuts nothing off.

    Parameters
    ----------
    to_aligned : sequence of (2, 3) ndarray
    boxes : sequence of (4,) int or None
        Top, left, bottom and right (past the last) of what is to be seen of each section; None for one that is left out.

    Raises
    ------
    InputError
        When nothing is to be seen, or the canvas would be absurdly larger than any section.
    """
    corners = {
        index: apply(transform, _corners(box))
        for index, (transform, box) in enumerate(zip(to_aligned, boxes, strict=True))
        if box is not None
    }
    if not corners:
        raise InputError(
            "No section is left to align: all are blank or excluded. Include at least one with tissue."
        )
    everything = np.concatenate(list(corners.values()))
    # A thousandth of a pixel beyond a whole one is rounding, not tissue.
    low = np.floor(everything.min(axis=0) + 1e-3).astype(int)
    high = np.ceil(everything.max(axis=0) - 1e-3).astype(int) + 1
    shape = (int(high[0] - low[0]), int(high[1] - low[1]))
    largest = max((box[2] - box[0]) * (box[3] - box[1]) for box in boxes if box is not None)
    if shape[0] * shape[1] > LARGEST_GROWTH * largest:
        middle = np.median([points.mean(axis=0) for points in corners.values()], axis=0)
        far = max(corners, key=lambda i: float(np.linalg.norm(corners[i].mean(axis=0) - middle)))
        raise InputError(
            f"The canvas would be {shape[0]} x {shape[1]} px (y, x), over {LARGEST_GROWTH:.0f} times the largest section: "
            f"section {far} lies far off. Exclude it (--exclude-section {far}), or correct its row in the transforms."
        )
    return Canvas(shape, (int(low[0]), int(low[1])))


def _corners(box: PixelBox) -> Floats:
    top, left, bottom, right = box
    return np.array([(y, x) for y in (top, bottom - 1) for x in (left, right - 1)], float)
