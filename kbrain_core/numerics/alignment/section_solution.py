"""From links to one transform a section, with how far each can be trusted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from ...errors import InputError
from ...formats.tables import Transform
from .plane_transforms import Floats, Model, angle_of, apply, box_points, invert
from .section_canvas import Canvas, PixelBox, fit_canvas, interpolate_missing
from .section_chain import Chain, SectionLink, solve_chain
from .section_linking import Linked, PairLink, SectionFacts
from .section_reference import hold_to_reference

UNLIKE_FACTOR = 0.6
"""Of the usual correlation of next neighbours: a section below it is not what it should be."""
LINK_ERROR_PX = 0.3
"""To be expected of a link, in px of the resolution that was registered."""

CanvasExtent = Literal["whole", "tissue"]


@dataclass(frozen=True)
class LinkReview:
    """A link and what became of it: "kept", "rejected" (disagrees with the others) or "chance" (not believed at all)."""

    link: PairLink
    residual_px: float | None
    verdict: Literal["kept", "rejected", "chance"]


@dataclass(frozen=True)
class Solution:
    """Where every section goes.

    Parameters
    ----------
    rows : tuple of Transform
        One a section, in order: from pixels of the canvas to pixels of the section.
    canvas : Canvas
    links : tuple of LinkReview
    pieces : int
        Groups of sections that links join; more than one means that their places to each other are not known.
    """

    rows: tuple[Transform, ...]
    canvas: Canvas
    links: tuple[LinkReview, ...]
    pieces: int

    def to_json(self) -> bytes:
        """The solution as text that keeps every digit."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Solution:
        """The way back of `to_json`."""
        stored = json.loads(text)
        rows = tuple(Transform(**row) for row in stored["rows"])
        canvas = Canvas(tuple(stored["canvas"]["shape_yx"]), tuple(stored["canvas"]["origin_yx"]))
        links = tuple(
            LinkReview(PairLink(**item["link"]), item["residual_px"], item["verdict"])
            for item in stored["links"]
        )
        return cls(rows, canvas, links, stored["pieces"])


def solve_sections(
    linked: Linked,
    reference: Linked | None,
    *,
    count: int,
    excluded: frozenset[int],
    model: Model,
    method: str,
    halvings: int,
    canvas: CanvasExtent,
) -> Solution:
    """Solve for all sections and fit a canvas.

    Parameters
    ----------
    linked : Linked
        Links between sections.
    reference : Linked, optional
        Links of sections to a reference (their ``second`` has no meaning).
    count : int
    excluded : frozenset of int
    model : {"translation", "rigid", "similarity", "affine"}
    method : str
        For the table.
    halvings : int
        Of the sections, when they were registered.
    canvas : {"whole", "tissue"}
        What must not be cut.
    """
    pairs = linked.believed
    points = [_points(linked.facts.get(index)) for index in range(count)]
    links = [
        SectionLink(
            pair.first, pair.second, pair.transform, pair.correlation**2 * float(np.sqrt(pair.overlap))
        )
        for pair in pairs
    ]
    chain = solve_chain(points, links, model, link_error_px=LINK_ERROR_PX * 2.0**halvings)
    if reference is not None:
        to_reference = {pair.first: pair.transform for pair in reference.believed}
        chain = replace(chain, to_aligned=hold_to_reference(chain, points, to_reference))
        held_by_it = set(to_reference)
    else:
        held_by_it = set()
    reviews = [
        LinkReview(pair, float(residual), "kept" if kept else "rejected")
        for pair, residual, kept in zip(pairs, chain.residual_px, chain.kept, strict=True)
    ]
    believed = set(map(id, pairs))
    reviews += [LinkReview(pair, None, "chance") for pair in linked.links if id(pair) not in believed]
    states = _states(chain, linked, excluded, reviews, held_by_it)
    # A section whose links were all rejected is where a wrong link put it: its neighbours know better.
    centres = [p.mean(axis=0) for p in points]
    known = [
        transform if state != "interpolated" else None for transform, state in zip(chain.to_aligned, states)
    ]
    to_aligned = interpolate_missing(known, centres)
    boxes = [_shown(linked.facts.get(index), states[index], canvas) for index in range(count)]
    plane = fit_canvas(to_aligned, boxes)
    rows = tuple(
        _row(index, plane.to_section(to_aligned[index]), states[index], method, reviews)
        for index in range(count)
    )
    pieces = len({chain.component[row.z] for row in rows if row.status == "detached"}) + 1
    return Solution(rows, plane, tuple(reviews), pieces)


def _points(facts: SectionFacts | None) -> Floats:
    """Points of a section's tissue at which links are compared."""
    if facts is None or facts.blank:
        return np.zeros((9, 2))
    top, left, bottom, right = facts.tissue_box
    points: Floats = box_points((bottom - top, right - left), 3) + np.array([top, left], float)
    return points


def _states(
    chain: Chain,
    linked: Linked,
    excluded: frozenset[int],
    reviews: Sequence[LinkReview],
    held_by_reference: set[int],
) -> list[str]:
    """What became of each section."""
    sizes = Counter(number for number in chain.component if number >= 0)
    main = max(sizes, key=lambda number: (sizes[number], -number), default=-1)
    held = {
        end
        for review in reviews
        if review.verdict == "kept"
        for end in (review.link.first, review.link.second)
    }
    held |= held_by_reference
    framed = {chain.component[index] for index in held_by_reference} - {-1}
    states = []
    for index, number in enumerate(chain.component):
        facts = linked.facts.get(index)
        if index in excluded:
            states.append("excluded")
        elif facts is None or facts.blank:
            states.append("blank")
        elif index not in held and len(chain.component) > 1:
            states.append("interpolated")
        else:
            joined = number == main or number in framed or index in held_by_reference
            states.append("registered" if joined or len(chain.component) == 1 else "detached")
    return states


def _shown(facts: SectionFacts | None, state: str, canvas: CanvasExtent) -> PixelBox | None:
    """What of a section the canvas must hold."""
    if facts is None or state in ("excluded", "blank"):
        return None
    return facts.field_box if canvas == "whole" else facts.tissue_box


def _row(index: int, to_section: Floats, state: str, method: str, reviews: Sequence[LinkReview]) -> Transform:
    residuals = [
        review.residual_px
        for review in reviews
        if review.verdict == "kept"
        and review.residual_px is not None
        and index in (review.link.first, review.link.second)
    ]
    (m_yy, m_yx, t_y), (m_xy, m_xx, t_x) = to_section.tolist()
    return Transform(
        z=index,
        m_yy=m_yy,
        m_yx=m_yx,
        m_xy=m_xy,
        m_xx=m_xx,
        t_y_px=t_y,
        t_x_px=t_x,
        residual_px=float(np.median(residuals)) if residuals else None,
        inliers=len(residuals),
        method=method if state in ("registered", "detached") else None,
        status=state,
    )


def matrix_of(row: Transform) -> Floats:
    """The (2, 3) array of a row: from pixels of the canvas to pixels of the section."""
    return np.array([[row.m_yy, row.m_yx, row.t_y_px], [row.m_xy, row.m_xx, row.t_x_px]])


def given_solution(
    table: Sequence[Transform], linked: Linked, *, count: int, excluded: frozenset[int], canvas: CanvasExtent
) -> Solution:
    """The solution that a table, perhaps edited, says.

    The canvas keeps its first pixel where the table has it, and grows where an edit moves a section beyond it.

    Raises
    ------
    InputError
        When the table lacks a section, names one twice or one that is not there, or a matrix has no inverse.
    """
    by_z = Counter(row.z for row in table)
    wrong = sorted(z for z, times in by_z.items() if times > 1 or not 0 <= z < count)
    missing = sorted(set(range(count)) - set(by_z))
    if wrong or missing:
        raise InputError(
            f"The transforms do not fit {count} sections: "
            + (f"z {', '.join(map(str, wrong[:5]))} named twice or beyond the last" if wrong else "")
            + (" and " if wrong and missing else "")
            + (f"z {', '.join(map(str, missing[:5]))} missing" if missing else "")
            + ". Give every section one row; mark those to leave out as excluded."
        )
    rows = [
        replace(row, status="excluded") if row.z in excluded else row
        for row in sorted(table, key=lambda row: row.z)
    ]
    to_canvas = [invert(matrix_of(row)) for row in rows]
    boxes = [_shown(linked.facts.get(row.z), row.status, canvas) for row in rows]
    fitted = fit_canvas(to_canvas, boxes)
    low = tuple(min(0, origin) for origin in fitted.origin_yx)
    high = tuple(o + s for o, s in zip(fitted.origin_yx, fitted.shape_yx, strict=True))
    plane = Canvas((high[0] - low[0], high[1] - low[1]), (low[0], low[1]))
    moved = []
    for row, transform in zip(rows, to_canvas, strict=True):
        (m_yy, m_yx, t_y), (m_xy, m_xx, t_x) = plane.to_section(transform).tolist()
        unchanged = plane.origin_yx == (0, 0)
        new = replace(row, m_yy=m_yy, m_yx=m_yx, m_xy=m_xy, m_xx=m_xx, t_y_px=t_y, t_x_px=t_x)
        moved.append(row if unchanged else new)
    return Solution(tuple(moved), plane, (), 1)


def drift(rows: Sequence[Transform], centres: Sequence[Floats]) -> Floats:
    """How far each section's middle is moved and turned: (Z, 3) of y px, x px, angle in degrees.

    Angles are counted from their circular mean: what all sections turn together is no drift.
    """
    result = np.empty((len(rows), 3))
    turns = np.empty(len(rows), complex)
    for index, (row, centre) in enumerate(zip(rows, centres, strict=True)):
        to_canvas = invert(matrix_of(row))
        result[index, :2] = apply(to_canvas, centre) - centre
        turns[index] = np.exp(1j * angle_of(to_canvas))
    result[:, 2] = np.rad2deg(np.angle(turns * np.conj(turns.mean())))
    return result


def unlike_neighbours(reviews: Sequence[LinkReview], count: int) -> list[int]:
    """Sections that agree much less with their next neighbours than other sections do: torn, folded, dirty, out of focus.

    The best link to a next neighbour counts, so that the neighbours of such a section are not suspected with it.
    """
    best = np.full(count, np.nan)
    for review in reviews:
        first, second = review.link.first, review.link.second
        if second - first == 1 and second < count:
            for index in (first, second):
                best[index] = np.fmax(best[index], review.link.correlation)
    usual = np.nanmedian(best) if np.isfinite(best).any() else np.nan
    return [int(index) for index in np.flatnonzero(best < UNLIKE_FACTOR * usual)]
