"""Registration of a stack of sections, a few at a time: what each shows, and how it lies on its next neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from ...formats.section_inputs import SectionInput, SectionReader
from .plane_transforms import Floats, Model, compose, identity, rescale
from .section_canvas import PixelBox
from .section_features import Section, prepare_section
from .section_registration import CONVINCING, Link, Method, mirrored, register_sections

LEAST_SIGNIFICANCE = 8.0
"""A link below this is chance whatever the data: a search over circle and field alone reaches 6 to 8."""
CHANCE_SIGMAS = 4.0
CHANCE_EVERY = 5
"""Of the sections that a reference finds: what chance reaches there is learnt from these."""
LEAST_CHANCE_SIGMA = 0.5
"""Mirrored pairs are few: their spread is not believed to be smaller."""


@dataclass(frozen=True)
class SectionFacts:
    """What registration saw of a section; boxes are top, left, bottom, right (past the last) in px of full resolution."""

    index: int
    blank: bool
    tissue_box: PixelBox
    field_box: PixelBox


@dataclass(frozen=True)
class PairLink:
    """Two sections, one on the other: see `section_registration.Link`; the transform is between full resolutions."""

    first: int
    second: int
    first_to_second: tuple[tuple[float, float, float], tuple[float, float, float]]
    correlation: float
    overlap: float
    significance: float

    @property
    def transform(self) -> Floats:
        """(2, 3) ndarray that takes pixels of the first section to pixels of the second."""
        return np.array(self.first_to_second)


@dataclass(frozen=True)
class LinkTask:
    """A run of sections to be registered with the next neighbours of each.

    Parameters
    ----------
    sections : tuple of (int, SectionInput)
        Index and place of each, those beyond the run that its last ones are neighbours of included. Excluded sections are
        not among them.
    own : int
        How many of them, from the first, are this task's to start links from.
    neighbours : int
        How far a neighbour may be, in sections; 0 only looks at the sections.
    """

    sections: tuple[tuple[int, SectionInput], ...]
    own: int
    neighbours: int
    channel: int
    halvings: int
    method: Method
    model: Model

    @property
    def key(self) -> str:
        """Name of the task's marker."""
        return f"link-{self.sections[0][0]:06d}"


def link_sections(task: LinkTask) -> dict[str, Any]:
    """Look at the task's sections and register them; JSON that `read_links` understands."""
    factor = 2**task.halvings
    prepared: dict[int, Section] = {}
    facts = []
    with SectionReader() as reader:
        for position, (index, place) in enumerate(task.sections):
            section = prepare_section(reader.reduced(place, 0, task.channel, task.halvings))
            prepared[index] = section
            if position < task.own:
                facts.append(_facts(index, section, factor, place.shape_yx))
    indices = [index for index, _ in task.sections]
    links: dict[tuple[int, int], Link] = {}
    # Next neighbours first: what they say is where the others begin.
    for distance in range(1, task.neighbours + 1):
        for first in indices[: task.own]:
            second = first + distance
            if second in prepared:
                start = _predicted(links, first, second)
                found = register_sections(
                    prepared[first], prepared[second], method=task.method, model=task.model, start=start
                )
                if found is not None:
                    links[first, second] = found
    pairs = [_pair(first, second, link, factor) for (first, second), link in links.items()]
    chance = _chance(task, prepared, indices) if task.neighbours else None
    return {
        "sections": [asdict(f) for f in facts],
        "links": [asdict(pair) for pair in pairs],
        "chance": chance,
    }


def _facts(index: int, section: Section, factor: int, shape_yx: tuple[int, int]) -> SectionFacts:
    """Boxes at full resolution, within the section."""

    def whole(box: PixelBox) -> PixelBox:
        bottom = shape_yx[0] if box[2] == section.shape_yx[0] else box[2] * factor
        right = shape_yx[1] if box[3] == section.shape_yx[1] else box[3] * factor
        return box[0] * factor, box[1] * factor, min(bottom, shape_yx[0]), min(right, shape_yx[1])

    return SectionFacts(index, section.blank, whole(section.tissue_box), whole(section.field_box))


def _predicted(links: dict[tuple[int, int], Link], first: int, second: int) -> Floats | None:
    """Where two sections should lie by what is known of those between, when that is convincing."""
    transform = identity()
    for index in range(first, second):
        link = links.get((index, index + 1))
        if second == first + 1 or link is None or link.significance < CONVINCING:
            return None
        transform = compose(link.fixed_to_moving, transform)
    return transform


def _chance(task: LinkTask, prepared: dict[int, Section], indices: list[int]) -> float | None:
    """How significant a link between a section and its neighbour seen in a mirror seems: no such link is true."""
    for first in indices[: task.own]:
        second = first + 1
        if second in prepared and not (prepared[first].blank or prepared[second].blank):
            found = register_sections(
                prepared[first], mirrored(prepared[second]), method=task.method, model=task.model
            )
            return found.significance if found is not None else 0.0
    return None


def _pair(first: int, second: int, link: Link, factor: float) -> PairLink:
    top, bottom = rescale(link.fixed_to_moving, factor, factor).tolist()
    return PairLink(
        first, second, (tuple(top), tuple(bottom)), link.correlation, link.overlap, link.significance
    )


@dataclass(frozen=True)
class Linked:
    """What all tasks found.

    Parameters
    ----------
    facts : dict of int to SectionFacts
    links : tuple of PairLink
        All that were found, true or not.
    threshold : float
        Significance above which a link is believed.
    """

    facts: dict[int, SectionFacts]
    links: tuple[PairLink, ...]
    threshold: float

    @property
    def believed(self) -> tuple[PairLink, ...]:
        """Links that chance does not explain."""
        return tuple(link for link in self.links if link.significance >= self.threshold)


def read_links(results: Sequence[dict[str, Any]]) -> Linked:
    """Put the results of `link_sections` or `link_reference` together."""
    facts = {}
    links = []
    chances = []
    for result in results:
        for item in result["sections"]:
            fact = SectionFacts(
                item["index"], item["blank"], tuple(item["tissue_box"]), tuple(item["field_box"])
            )
            facts[fact.index] = fact
        links += [PairLink(**link) for link in result["links"]]
        chances += [] if result["chance"] is None else [result["chance"]]
    return Linked(facts, tuple(links), chance_threshold(chances))


def chance_threshold(chances: Sequence[float]) -> float:
    """The significance that chance does not reach: mean and four standard deviations of mirrored pairs."""
    if not chances:
        return LEAST_SIGNIFICANCE
    spread = max(float(np.std(chances)), LEAST_CHANCE_SIGMA)
    return max(LEAST_SIGNIFICANCE, float(np.mean(chances)) + CHANCE_SIGMAS * spread)


@dataclass(frozen=True)
class ReferenceTask:
    """A section to be registered with its plane of a reference.

    Parameters
    ----------
    index : int
    section : SectionInput
    reference : SectionInput
        The plane of the reference.
    pixel_ratio : float
        Pixels of the section that one pixel of the reference is wide.
    sections : int
        How many sections there are: the reference's index.
    """

    index: int
    section: SectionInput
    reference: SectionInput
    pixel_ratio: float
    sections: int
    channel: int
    method: Method

    @property
    def key(self) -> str:
        """Name of the task's marker."""
        return f"reference-{self.index:06d}"


def link_reference(task: ReferenceTask) -> dict[str, Any]:
    """Register a section with the reference, at the reference's resolution; JSON that `read_links` understands."""
    halvings = max(0, int(np.floor(np.log2(max(task.pixel_ratio, 1.0)))))
    with SectionReader() as reader:
        pixels = reader.reduced(task.section, 0, task.channel, halvings)
        reference_pixels = reader.reduced(task.reference, 0, 0, 0)
    scale = 2**halvings / task.pixel_ratio
    size = [max(1, round(extent * scale)) for extent in pixels.shape]
    small = cv2.resize(
        np.ascontiguousarray(pixels, np.float32), (size[1], size[0]), interpolation=cv2.INTER_AREA
    )
    section = prepare_section(small)
    reference = prepare_section(reference_pixels)
    # A reference is of another instrument: its pixel size is right to a per cent or so, which a rigid match survives.
    found = register_sections(section, reference, method=task.method, model="rigid")
    chance = None
    if found is not None and task.index % CHANCE_EVERY == 0:
        chance = register_sections(section, mirrored(reference), method=task.method, model="rigid")
    links = [] if found is None else [_pair(task.index, task.sections, found, task.pixel_ratio)]
    return {
        "sections": [],
        "links": [asdict(link) for link in links],
        "chance": chance.significance if chance is not None else None,
    }
