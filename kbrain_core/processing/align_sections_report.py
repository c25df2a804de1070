"""What an alignment's report says and shows: can it be trusted, how sections drift, how neighbours fit."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..formats.section_inputs import SectionReader, SectionStack
from ..formats.volume import Volume
from ..numerics.alignment.plane_transforms import Floats
from ..numerics.alignment.section_linking import Linked
from ..numerics.alignment.section_solution import Solution, drift, unlike_neighbours
from ..report import Report, new_figure, overview_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# More sections without a link that holds: the chain is guessed, not measured.
MOST_INTERPOLATED = 0.1
# A residual over the section that the eye sees as a jump: in px of the resolution that was registered, or as a share of the
# longest side of the tissue, whichever is more (neighbours of thick sections differ by real tissue).
MOST_RESIDUAL_PX = 3.0
MOST_RESIDUAL = 0.01
PICTURE_PX = 600
CHECKER_PX = 48
MOST_ROWS = 200
CURVATURE = (
    "A chain of sections cannot tell a structure that really runs aslant or bends from sections that were shifted: it "
    "straightens real curvature. Do not read directions of long structures off this volume without a reference of the "
    "uncut tissue (--reference)."
)


@dataclass(frozen=True)
class AlignedStack:
    """An alignment with what it came from."""

    stack: SectionStack
    solution: Solution
    linked: Linked
    output: str
    channel: int
    halvings: int

    @cached_property
    def drift(self) -> Floats:
        """(Z, 3) displacement y, x in px and turn in degrees of every section."""
        centres = [np.array([(size - 1) / 2 for size in section.shape_yx]) for section in self.stack.sections]
        return drift(self.solution.rows, centres)


@dataclass(frozen=True)
class Verdict:
    """Whether an alignment can be trusted, in a line, and what to look at."""

    passed: bool
    line: str
    warnings: tuple[str, ...]


def review(aligned: AlignedStack, *, registered: bool) -> Verdict:
    """Judge an alignment by its sections and the residuals of its links."""
    rows = aligned.solution.rows
    by_state: dict[str, list[int]] = {}
    for row in rows:
        by_state.setdefault(row.status, []).append(row.z)
    warnings = tuple(
        f"Sections {_numbers(by_state[state])} {what}"
        for state, what in (
            (
                "interpolated",
                "could not be registered and lie between their neighbours: look at them, or exclude them",
            ),
            ("detached", "are joined to the rest by no link: their place to it is as they were imaged"),
            ("blank", "are blank"),
        )
        if state in by_state
    )
    unlike = unlike_neighbours(aligned.solution.links, len(rows))
    if unlike:
        warnings += (
            f"Sections {_numbers(unlike)} are much less like their neighbours than others: torn, folded, dirty?",
        )
    if not registered:
        return Verdict(
            True, f"{len(rows)} sections placed as the given transforms say; nothing was measured", warnings
        )
    held = len(by_state.get("registered", ()))
    usable = held + len(by_state.get("interpolated", ())) + len(by_state.get("detached", ()))
    residuals = [row.residual_px for row in rows if row.residual_px is not None]
    worst = max(residuals, default=0.0)
    boxes = [facts.tissue_box for facts in aligned.linked.facts.values()]
    longest = max((max(box[2] - box[0], box[3] - box[1]) for box in boxes), default=0)
    limit = max(MOST_RESIDUAL_PX * 2**aligned.halvings, MOST_RESIDUAL * longest)
    if usable == 1:
        return Verdict(True, "One section: nothing to align", warnings)
    if aligned.solution.pieces > 1:
        return Verdict(
            False, f"The sections fall into {aligned.solution.pieces} pieces that no link joins", warnings
        )
    if usable - held > MOST_INTERPOLATED * usable:
        return Verdict(False, f"Only {held} of {usable} sections with tissue could be registered", warnings)
    if worst > limit:
        where = max(rows, key=lambda row: row.residual_px or 0).z
        return Verdict(
            False,
            f"Section {where} fits its neighbours only to {worst:.1f} px (at most {limit:g} px)",
            warnings,
        )
    middle = float(np.median(residuals)) if residuals else 0.0
    return Verdict(
        True,
        f"{held} of {usable} sections registered; links agree to {middle:.2f} px (worst section {worst:.2f} px)",
        warnings,
    )


def _numbers(sections: Sequence[int]) -> str:
    """Section numbers as people list them, not more than a dozen."""
    text = ", ".join(map(str, sections[:12]))
    return text + (f" and {len(sections) - 12} more" if len(sections) > 12 else "")


def align_report(
    aligned: AlignedStack, verdict: Verdict, figures: dict[str, Any], *, referenced: bool
) -> Report:
    """The report of an alignment."""
    report = Report("Section alignment", f"{len(aligned.solution.rows)} sections aligned into one volume.")
    report.verdict(verdict.passed, verdict.line)
    height, width = aligned.solution.canvas.shape_yx
    report.figures(
        {
            "Canvas": f"{width} x {height} px (x, y)",
            "Sections registered": str(figures["registered_sections"]),
            "Links kept / rejected / all": f"{figures['kept_links']} / {figures['rejected_links']} / {figures['links']}",
            "Residual of kept links, median": _px(figures["median_residual_px"]),
            "Correlation of kept links, median": _number(figures["median_correlation"]),
            "Drift x, y, turn": (
                f"{figures['drift_x_px']:.1f} px, {figures['drift_y_px']:.1f} px, {figures['drift_deg']:.2f} degrees"
            ),
            "Significance that chance reaches": f"{aligned.linked.threshold:.1f}",
        }
    )
    for warning in verdict.warnings:
        report.text("Look at", warning)
    report.text("Curvature", "A reference held the chain over long distances." if referenced else CURVATURE)
    _add_pictures(report, aligned)
    _add_table(report, aligned)
    return report


def _px(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f} px"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


def _add_pictures(report: Report, aligned: AlignedStack) -> None:
    report.picture(
        "drift",
        "How far each section was moved and turned. A jump is one section; a bend is drift.",
        _drift(aligned),
    )
    if aligned.solution.links:
        report.picture(
            "links",
            "Every pair of sections: how alike they are, and how far the pair is from the common solution. Grey pairs are "
            "no better than chance; red ones contradict the others.",
            _link_picture(aligned),
        )
    before, after = _side_views(aligned)
    for axis in ("xz", "yz"):
        report.picture(
            f"{axis}-before-after",
            f"The stack from the side ({axis}, each section drawn thick), before (left) and after (right). Structures "
            "should run on from section to section.",
            _beside(before[axis], after[axis]),
        )
    for name, index in _pairs_to_show(aligned):
        report.picture(
            f"checkerboard-{name}",
            f"Sections {index} and {index + 1} in turns, before (left) and after (right): {name.replace('-', ' ')} pair. "
            "Edges should run on across the squares.",
            _checkerboards(aligned, index),
        )


def _drift(aligned: AlignedStack) -> Figure:
    rows = aligned.solution.rows
    z = np.array([row.z for row in rows])
    figure = new_figure(8, 6)
    axes = figure.subplots(3, 1, sharex=True)
    colours = {
        "registered": "tab:blue",
        "interpolated": "tab:orange",
        "detached": "tab:red",
        "blank": "0.6",
        "excluded": "0.8",
    }
    states = np.array([row.status for row in rows])
    for axis, column, label in zip(axes, (1, 0, 2), ("x (px)", "y (px)", "turn (degrees)"), strict=True):
        axis.plot(z, aligned.drift[:, column], color="0.8", linewidth=1)
        for state in dict.fromkeys(states):
            chosen = states == state
            axis.plot(
                z[chosen],
                aligned.drift[chosen, column],
                ".",
                color=colours.get(state, "tab:blue"),
                label=state,
            )
        axis.set_ylabel(label)
    axes[0].legend(loc="best", fontsize="small")
    axes[-1].set_xlabel("section (z)")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def _link_picture(aligned: AlignedStack) -> Figure:
    figure = new_figure(8, 5)
    top, bottom = figure.subplots(2, 1, sharex=True)
    for verdict, colour in (("chance", "0.7"), ("rejected", "tab:red"), ("kept", "tab:blue")):
        links = [review for review in aligned.solution.links if review.verdict == verdict]
        at = [(review.link.first + review.link.second) / 2 for review in links]
        top.plot(
            at,
            [review.link.correlation for review in links],
            ".",
            color=colour,
            label=f"{verdict} ({len(links)})",
        )
        measured = [
            (z, review.residual_px)
            for z, review in zip(at, links, strict=True)
            if review.residual_px is not None
        ]
        if measured:
            bottom.plot(*zip(*measured, strict=True), ".", color=colour)
    top.set_ylabel("correlation (NCC)")
    top.legend(loc="best", fontsize="small")
    if any((review.residual_px or 0) > 1 for review in aligned.solution.links):
        # Linear where links are good; a contradicting link a hundred px off must not flatten the others.
        bottom.set_yscale("symlog", linthresh=1)
        bottom.yaxis.set_major_formatter("{x:g}")
    bottom.set_ylim(bottom=0)
    bottom.set_ylabel("residual (px)")
    bottom.set_xlabel("section (z)")
    bottom.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _side_views(aligned: AlignedStack) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Planes through the middle of the tissue, before and after: (Z, X) and (Z, Y)."""
    volume = Volume.open(aligned.output, allow_incomplete=True)
    height, width = aligned.solution.canvas.shape_yx
    after = {
        "xz": _cut(volume, aligned.channel, y=height // 2),
        "yz": _cut(volume, aligned.channel, x=width // 2),
    }
    rows, columns = zip(*(section.shape_yx for section in aligned.stack.sections), strict=True)
    before = {
        "xz": np.zeros((len(rows), max(columns)), aligned.stack.dtype),
        "yz": np.zeros((len(rows), max(rows)), aligned.stack.dtype),
    }
    with SectionReader() as reader:
        for z, section in enumerate(aligned.stack.sections):
            high, wide = section.shape_yx
            row, column = slice(high // 2, high // 2 + 1), slice(wide // 2, wide // 2 + 1)
            along_x = reader.planes([section], 0, aligned.channel, row, slice(0, wide))
            along_y = reader.planes([section], 0, aligned.channel, slice(0, high), column)
            before["xz"][z, :wide], before["yz"][z, :high] = along_x.ravel(), along_y.ravel()
    return before, after


def _cut(volume: Volume, channel: int, *, y: int | None = None, x: int | None = None) -> NDArray[Any]:
    rows = slice(None) if y is None else slice(y, y + 1)
    columns = slice(None) if x is None else slice(x, x + 1)
    block = volume.read((slice(0, 1), slice(channel, channel + 1), slice(None), rows, columns))[0, 0]
    line: NDArray[Any] = block[:, 0] if y is not None else block[:, :, 0]
    return line


def _beside(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.uint8]:
    """Two side views next to each other, sections drawn as bands."""
    pictures = []
    for view in (left, right):
        step = max(1, -(-view.shape[1] // PICTURE_PX))
        thick = max(1, 240 // max(view.shape[0], 1))
        pictures.append(np.repeat(overview_picture(view[:, ::step]), thick, axis=0))
    return _side_by_side(pictures)


def _side_by_side(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    height = max(picture.shape[0] for picture in pictures)
    padded = [
        np.pad(picture, ((0, height - picture.shape[0]), (0, 8)), constant_values=255) for picture in pictures
    ]
    return np.concatenate(padded, axis=1)[:, :-8]


def _pairs_to_show(aligned: AlignedStack) -> list[tuple[str, int]]:
    """A typical pair of neighbours and the worst, as (name, first section)."""
    rows = aligned.solution.rows
    seen = [
        (max(one.residual_px or 0.0, two.residual_px or 0.0), one.z)
        for one, two in itertools.pairwise(rows)
        if {one.status, two.status} <= {"registered", "detached"}
    ]
    if not seen:
        return []
    ordered = sorted(seen)
    typical, worst = ordered[len(ordered) // 2][1], ordered[-1][1]
    return [("typical", typical)] + ([("worst", worst)] if worst != typical else [])


def _checkerboards(aligned: AlignedStack, index: int) -> NDArray[np.uint8]:
    """Squares of two sections in turns, before and after."""
    pair = aligned.stack.sections[index : index + 2]
    halvings = 0
    while (
        max(max(section.shape_yx) for section in aligned.stack.sections[index : index + 2]) >> halvings
        > PICTURE_PX
    ):
        halvings += 1
    with SectionReader() as reader:
        before = [reader.reduced(section, 0, aligned.channel, halvings) for section in pair]
    volume = Volume.open(aligned.output, allow_incomplete=True)
    flat = [level for level, found in enumerate(volume.levels) if found.factor[0] == 1]
    level = min(flat, key=lambda level: abs(volume.levels[level].factor[1] - 2**halvings))
    planes = slice(index, index + 2)
    after = volume.read(
        (slice(0, 1), slice(aligned.channel, aligned.channel + 1), planes, slice(None), slice(None)), level
    )
    return _side_by_side([_in_turns(before[0], before[1]), _in_turns(*after[0, 0])])


def _in_turns(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.uint8]:
    height, width = (min(a, b) for a, b in zip(one.shape, other.shape, strict=True))
    pictures = [overview_picture(picture[:height, :width]) for picture in (one, other)]
    rows, columns = np.ogrid[: pictures[0].shape[0], : pictures[0].shape[1]]
    return np.where((rows // CHECKER_PX + columns // CHECKER_PX) % 2 == 0, pictures[0], pictures[1])


def _add_table(report: Report, aligned: AlignedStack) -> None:
    """Every section; for long stacks those that need a look."""
    rows = aligned.solution.rows
    shown = [row for row in rows if len(rows) <= MOST_ROWS or row.status != "registered"][:MOST_ROWS]
    heading = "Sections" if len(rows) <= MOST_ROWS else f"Sections that need a look (of {len(rows)})"
    kept: Counter[int] = Counter()
    lost: Counter[int] = Counter()
    for review_ in aligned.solution.links:
        counter = kept if review_.verdict == "kept" else lost
        counter.update((review_.link.first, review_.link.second))
    cells = [
        (
            row.z,
            aligned.stack.sections[row.z].label,
            row.status,
            f"{aligned.drift[row.z, 1]:.1f}",
            f"{aligned.drift[row.z, 0]:.1f}",
            f"{aligned.drift[row.z, 2]:.2f}",
            None if row.residual_px is None else f"{row.residual_px:.2f}",
            kept[row.z],
            lost[row.z],
        )
        for row in shown
    ]
    header = (
        "z",
        "source",
        "status",
        "x (px)",
        "y (px)",
        "turn (deg)",
        "residual (px)",
        "links used",
        "links not used",
    )
    report.table(heading, header, cells)
