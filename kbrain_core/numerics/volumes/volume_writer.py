"""`VolumeWriter`: blocks in, a whole pyramid on disk, every voxel read once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engine import Job, run_tasks
from ...errors import InputError
from ...formats import ome_zarr
from ...formats.layout import ZYX, Pass
from ...formats.volume import Volume, write_region
from ...formats.volume_spec import MOST_LABEL, VolumeSpec
from ...geometry import Box
from ...stage import RunOptions
from .contrast import contrast_limits
from .pyramid import average_levels, mode_levels, weighted_sum


@dataclass(frozen=True)
class VolumeWriter:
    """Writes the blocks of a volume that `create_volume` began; picklable, so that tasks can carry it.

    Every block of `task_boxes` owns whole shards at every level it writes: blocks may be written in any order, by any
    process, more than once, and no two of them touch the same file.

    Parameters
    ----------
    uri : str
        Path or URL of the volume.
    spec : VolumeSpec
        What it was created with.
    """

    uri: str
    spec: VolumeSpec

    def task_boxes(self) -> list[Box]:
        """Boxes of level 0 that tasks write, one shard each; they tile the volume."""
        return list(_boxes(self.spec, self.spec.passes[0]))

    def write_block(self, t: int, c: int, box: Box, voxels: NDArray[Any]) -> tuple[float, ...]:
        """Write level 0 and all levels that belong to one of the `task_boxes`.

        Parameters
        ----------
        t : int
            Time point.
        c : int
            Channel, or the first of the channels given.
        box : Box
            One of `task_boxes`.
        voxels : (Z, Y, X) or (C, Z, Y, X) ndarray
            Voxels of the box. A precomputed volume takes all its channels at once.

        Returns
        -------
        tuple of float
            For images, the sum of the voxels of each level written, each as often as it covers voxels of level 0: the
            mean grey value of every level comes out of these. For labels, nothing.

        Raises
        ------
        InputError
            When a label is 2^63 or above, or the voxels do not fit the type.
        """
        block = voxels if voxels.ndim == 4 else voxels[None]
        slices = box.slices(self.spec.levels[0].shape)
        expected = tuple(cut.stop - cut.start for cut in slices)
        channels = self.spec.shape[1] if self.spec.format == "precomputed" else len(block)
        if block.shape != (channels, *expected):
            raise ValueError(
                f"The block is {block.shape} (c, z, y, x) but its box holds {(channels, *expected)}"
            )
        block = _as_stored(block, self.spec)
        return self._write_pass(
            self.spec.passes[0], t, c, (slices[0].start, slices[1].start, slices[2].start), block
        )

    def finish_levels(self, job: Job | None, run: RunOptions) -> tuple[float, ...]:
        """Make the levels that are too coarse for the tasks, and set the contrast that viewers start with.

        Call it once, after every block was written.

        Parameters
        ----------
        job : Job or None
            The stage's job; its markers make the passes resumable.
        run : RunOptions
            As the stage got it.

        Returns
        -------
        tuple of float
            For images, the sum of the voxels of each level made here, as `write_block` gives them.
        """
        sums: list[float] = []
        for index in range(1, len(self.spec.passes)):
            tasks = list(self._pass_tasks(index))
            results = run_tasks(
                _run_pass_task,
                tasks,
                job=job,
                run=run,
                label=f"Making level {self.spec.passes[index].write_levels[0]} and coarser",
                task_bytes=4 * self.spec.task_bytes,
                shared=False,
            )
            sums += [math.fsum(column) for column in zip(*results, strict=True)]
        if self.spec.format == "ome_zarr" and self.spec.kind == "image":
            volume = Volume.open(self.uri, allow_incomplete=True)
            windows = tuple(contrast_limits(volume, channel) for channel in range(self.spec.shape[1]))
            ome_zarr.write_metadata(self.uri, self.spec, windows)
        return tuple(sums)

    def _pass_tasks(self, index: int) -> Iterator[PassTask]:
        at_once = self.spec.shape[1] if self.spec.format == "precomputed" else 1
        times, channels = range(self.spec.shape[0]), range(0, self.spec.shape[1], at_once)
        for t, c, box in itertools.product(times, channels, _boxes(self.spec, self.spec.passes[index])):
            yield PassTask(self, index, t, c, at_once, box)

    def _write_pass(self, sweep: Pass, t: int, c: int, start: ZYX, block: NDArray[Any]) -> tuple[float, ...]:
        """Write the levels of a pass from a block of its read level that begins at `start`; give their sums."""
        spec = self.spec
        channels = [self._pyramid(sweep, start, voxels) for voxels in block]
        sums = []
        for index, level in enumerate(sweep.write_levels):
            ratio = _ratio(spec, sweep.read_level, level)
            first: ZYX = (start[0] // ratio[0], start[1] // ratio[1], start[2] // ratio[2])
            alone = channels[0][index]
            voxels = alone[None] if len(block) == 1 else np.stack([levels[index] for levels in channels])
            write_region(self.uri, spec, level, t, c, first, voxels)
            if spec.kind == "image":
                counts = _covered_voxels(spec, level, first, alone.shape)
                sums.append(math.fsum(weighted_sum(channel, *counts) for channel in voxels))
        return tuple(sums)

    def _pyramid(self, sweep: Pass, start: ZYX, voxels: NDArray[Any]) -> list[NDArray[Any]]:
        """One array per level that the pass writes."""
        spec = self.spec
        levels = [voxels] if sweep.write_levels[0] == sweep.read_level else []
        coarser = [level for level in sweep.write_levels if level > sweep.read_level]
        steps = tuple(
            _ratio(spec, before, level) for before, level in zip([sweep.read_level, *coarser], coarser)
        )
        if spec.kind == "labels":
            return levels + mode_levels(voxels, steps)
        covered = _covered_voxels(spec, sweep.read_level, start, voxels.shape) if sweep.read_level else None
        return levels + average_levels(voxels, steps, covered)


@dataclass(frozen=True)
class PassTask:
    """One box of a pass that begins from a level already written."""

    writer: VolumeWriter
    index: int
    t: int
    c: int
    channels: int
    box: Box

    @property
    def key(self) -> str:
        """Name of the task's marker."""
        return f"pass{self.index}-t{self.t}-c{self.c}-{box_key(self.box)}"


def box_key(box: Box) -> str:
    """A box as part of a file name, from its first voxel: `z0-y512-x1024`."""
    return f"z{box.z[0] or 0}-y{box.y[0] or 0}-x{box.x[0] or 0}"


def _run_pass_task(task: PassTask) -> tuple[float, ...]:
    spec = task.writer.spec
    sweep = spec.passes[task.index]
    z, y, x = task.box.slices(spec.levels[sweep.read_level].shape)
    channels = slice(task.c, task.c + task.channels)
    volume = Volume.open(task.writer.uri, allow_incomplete=True)
    block = volume.read((slice(task.t, task.t + 1), channels, z, y, x), sweep.read_level)[0]
    return task.writer._write_pass(sweep, task.t, task.c, (z.start, y.start, x.start), block)


def _boxes(spec: VolumeSpec, sweep: Pass) -> Iterator[Box]:
    shape = spec.levels[sweep.read_level].shape
    ranges = (range(0, size, side) for size, side in zip(shape, sweep.box))
    for start in itertools.product(*ranges):
        z, y, x = ((low, min(low + side, size)) for low, side, size in zip(start, sweep.box, shape))
        yield Box(z=z, y=y, x=x)


def _ratio(spec: VolumeSpec, finer: int, coarser: int) -> ZYX:
    """Voxels of the finer level in one of the coarser, per axis."""
    z, y, x = (a // b for a, b in zip(spec.levels[coarser].factor, spec.levels[finer].factor, strict=True))
    return (z, y, x)


def _covered_voxels(
    spec: VolumeSpec, level: int, start: ZYX, shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Voxels of level 0 that each voxel of a box stands for, along z, y and x."""
    z, y, x = (
        np.minimum(factor, size - (first + np.arange(length)) * factor)
        for factor, size, first, length in zip(spec.levels[level].factor, spec.levels[0].shape, start, shape)
    )
    return z, y, x


def _as_stored(block: NDArray[Any], spec: VolumeSpec) -> NDArray[Any]:
    """The block in the volume's type; a value that does not fit is refused, never wrapped."""
    if spec.kind == "labels" and block.dtype == np.uint64 and block.size and int(block.max()) > MOST_LABEL:
        raise InputError(
            f"A label is {int(block.max())}: IDs must be below 2^63 (databases are signed). Renumber the labels"
        )
    dtype = np.dtype(spec.dtype)
    if block.dtype == dtype:
        return block
    if not np.can_cast(block.dtype, dtype, "safe"):
        raise InputError(f"Voxels are {block.dtype} but the volume holds {dtype}: convert them first")
    return block.astype(dtype)
