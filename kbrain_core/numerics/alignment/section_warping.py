"""Writing the aligned volume: each task warps the sections onto one box of the canvas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...formats.section_inputs import SectionInput, SectionReader
from ...geometry import Box
from ..volumes.volume_writer import VolumeWriter, box_key
from .plane_transforms import Floats
from .warping import Interpolation, source_box, warp_section

UNION_GROWTH = 2.0
"""Planes of one volume are read at once unless that reads more than this many times the pixels."""


@dataclass(frozen=True)
class WarpTask:
    """A box of the aligned volume.

    Parameters
    ----------
    sections : tuple of (SectionInput, transform) or None
        For every plane of the box, in order: the section and the (2, 3) transform from the canvas to it; None for a plane
        that is left empty.
    """

    writer: VolumeWriter
    t: int
    c: int
    box: Box
    sections: tuple[tuple[SectionInput, Floats] | None, ...]
    interpolation: Interpolation
    fill_value: float

    @property
    def key(self) -> str:
        """Name of the task's marker."""
        return f"warp-t{self.t}-c{self.c}-{box_key(self.box)}"


def warp_box(task: WarpTask) -> None:
    """Warp and write a box, with its levels of the pyramid."""
    planes, rows, columns = task.box.slices(task.writer.spec.levels[0].shape)
    shape = (planes.stop - planes.start, rows.stop - rows.start, columns.stop - columns.start)
    block = np.full(shape, task.fill_value, task.writer.spec.dtype)
    with SectionReader() as reader:
        for index, pixels, origin in _sources(task, (rows, columns), reader):
            entry = task.sections[index]
            if entry is not None:
                block[index] = warp_section(
                    pixels,
                    origin,
                    entry[1],
                    (rows, columns),
                    interpolation=task.interpolation,
                    fill_value=task.fill_value,
                )
    task.writer.write_block(task.t, task.c, task.box, block)


def _sources(
    task: WarpTask, box: tuple[slice, slice], reader: SectionReader
) -> Iterator[tuple[int, npt.NDArray[np.generic], tuple[int, int]]]:
    """For every plane that shows something: its index, the pixels it needs, and where they begin in the section."""
    needs: list[tuple[int, SectionInput, tuple[slice, slice]]] = []
    for index, entry in enumerate(task.sections):
        if entry is not None:
            need = source_box(entry[1], box, entry[0].shape_yx, task.interpolation)
            if need is not None:
                needs.append((index, entry[0], need))
    for group in _groups(needs):
        rows = slice(min(need[0].start for _, _, need in group), max(need[0].stop for _, _, need in group))
        columns = slice(min(need[1].start for _, _, need in group), max(need[1].stop for _, _, need in group))
        stack = reader.planes([section for _, section, _ in group], task.t, task.c, rows, columns)
        for (index, _, _), pixels in zip(group, stack, strict=True):
            yield index, pixels, (rows.start, columns.start)


def _groups(
    needs: list[tuple[int, SectionInput, tuple[slice, slice]]],
) -> list[list[tuple[int, SectionInput, tuple[slice, slice]]]]:
    """Runs of planes of one source that are cheaper to read at once: chunks hold many planes."""
    groups: list[list[tuple[int, SectionInput, tuple[slice, slice]]]] = []
    for item in needs:
        if groups:
            last = groups[-1][-1][1]
            follows = last.uri == item[1].uri and last.z + 1 == item[1].z
            joined = [*groups[-1], item]
            alone = sum(_area(need) for _, _, need in joined)
            if follows and len(joined) * _union_area([need for _, _, need in joined]) <= UNION_GROWTH * alone:
                groups[-1].append(item)
                continue
        groups.append([item])
    return groups


def _area(need: tuple[slice, slice]) -> int:
    return int((need[0].stop - need[0].start) * (need[1].stop - need[1].start))


def _union_area(needs: list[tuple[slice, slice]]) -> int:
    height = max(need[0].stop for need in needs) - min(need[0].start for need in needs)
    width = max(need[1].stop for need in needs) - min(need[1].start for need in needs)
    return int(height * width)
