"""How a volume is cut up: its resolution levels, their chunks and shards, and the blocks that one task writes whole."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import InputError

ZYX = tuple[int, int, int]
Shape = tuple[int, int, int, int, int]
VoxelSizeNm = tuple[float, float, float]
Encoding = Literal["raw", "zstd", "jpeg", "png", "compressed_segmentation"]

# 64^3 voxels, or the same number spread so that a chunk is near to a cube in nm.
CHUNK_VOXELS_LOG2 = 18
# A level stays in a task's pass while its block still holds a chunk of 32^3 voxels; coarser ones get a pass of their own.
SMALLEST_CHUNK_VOXELS_LOG2 = 15
# What one task reads and writes: 512^3 voxels of 8 bits. More makes fewer files, less takes less memory.
TASK_BYTES = 128 * 1024 * 1024
# Levels are made until none of the axes is longer: a plane of it fills a quarter of a screen and is drawn from few chunks.
SCREEN_VOXELS = 256
# An axis is halved together with the finest one while its voxels are at most this much longer: towards isotropic voxels.
ISOTROPIC_RATIO = math.sqrt(2)
# The index of a shard's 2^12 chunks has 96 kB; viewers read it before the first chunk.
MOST_SHARD_BITS = 12


@dataclass(frozen=True)
class Level:
    """One resolution level of a volume; all tuples are (z, y, x).

    Parameters
    ----------
    shape : tuple of int
        Voxels per axis.
    factor : tuple of int
        Voxels of level 0 that one voxel covers, per axis.
    chunk : tuple of int
        Voxels of a chunk: what a reader decodes at least.
    shard : tuple of int
        Voxels of one file; equal to `chunk` when there are no shards.
    """

    shape: ZYX
    factor: ZYX
    chunk: ZYX
    shard: ZYX


@dataclass(frozen=True)
class Pass:
    """One sweep over the volume: every task reads a box of `read_level` and writes whole shards of `write_levels`."""

    read_level: int
    write_levels: tuple[int, ...]
    box: ZYX


def ceil_div(size: int, step: int) -> int:
    """`size / step`, rounded up."""
    return -(-size // step)


def downsampled_shape(shape: ZYX, factor: ZYX) -> ZYX:
    """Shape after downsampling: an edge that is not full makes a voxel too."""
    z, y, x = (ceil_div(size, step) for size, step in zip(shape, factor))
    return (z, y, x)


def auto_factors(
    shape: ZYX, voxel_size_nm: VoxelSizeNm | None, *, mips: int | None = None, factor: ZYX | None = None
) -> tuple[ZYX, ...]:
    """Factors from each level to the next, towards isotropic voxels.

    Parameters
    ----------
    shape : tuple of int
        Voxels of level 0 (z, y, x).
    voxel_size_nm : tuple of float or None
        Voxel size (z, y, x); None counts as isotropic.
    mips : int, optional
        How many levels follow level 0. Default: until no axis has more than 256 voxels.
    factor : tuple of int, optional
        The same factor for every level. Default: halve the axes whose voxels are at most sqrt(2) times the finest.

    Returns
    -------
    tuple of (int, int, int)
        One factor per level after level 0. It ends early when nothing is left to halve.
    """
    size = np.array(voxel_size_nm or (1.0, 1.0, 1.0))
    steps: list[ZYX] = []
    while len(steps) < mips if mips is not None else max(shape) > SCREEN_VOXELS:
        long = np.array(shape) > 1
        if not long.any():
            break
        if factor is None:
            halved = long & (size <= ISOTROPIC_RATIO * size[long].min())
            step = tuple(int(n) for n in np.where(halved, 2, 1))
        else:
            step = factor
        if all(n == 1 for n, longer in zip(step, long) if longer):
            break
        steps.append((step[0], step[1], step[2]))
        shape = downsampled_shape(shape, steps[-1])
        size = size * step
    return tuple(steps)


def choose_chunk(shape: ZYX, voxel_size_nm: VoxelSizeNm, within: ZYX | None = None) -> ZYX:
    """Chunk of 2^18 voxels that is nearest to a cube in nm, its sides powers of two.

    Parameters
    ----------
    shape : tuple of int
        Voxels of the level (z, y, x); a chunk is not much longer than this.
    voxel_size_nm : tuple of float
        Voxel size (z, y, x).
    within : tuple of int, optional
        A block that whole chunks must fill; an axis of it that covers the level does not count.
    """
    limits = [min((size - 1).bit_length(), CHUNK_VOXELS_LOG2) for size in shape]
    best: tuple[float, float, tuple[int, ...]] | None = None
    for exponents in itertools.product(*(range(limit + 1) for limit in limits)):
        if sum(exponents) > CHUNK_VOXELS_LOG2:
            continue
        if within and any(block < size and block % 2**e for block, size, e in zip(within, shape, exponents)):
            continue
        free = [
            math.log2(size_nm) + e for size_nm, e, limit in zip(voxel_size_nm, exponents, limits) if e < limit
        ]
        bounded = [
            math.log2(size_nm) + e
            for size_nm, e, limit in zip(voxel_size_nm, exponents, limits)
            if e == limit
        ]
        # An axis that cannot grow may be shorter than the others, never a reason to keep them short.
        spread = max(free + bounded) - min(free) if free else 0.0
        uneven = 0.75 * abs(exponents[1] - exponents[2])
        cost = (1.5 * (CHUNK_VOXELS_LOG2 - sum(exponents)) * bool(free) + spread + uneven, spread)
        if best is None or (*cost, exponents) < best:
            best = (*cost, exponents)
    assert best is not None  # exponents (0, 0, 0) always qualify
    z, y, x = (2**e for e in best[2])
    return (z, y, x)


def morton_bits(grid: ZYX) -> list[int]:
    """Axes (0 = z, 1 = y, 2 = x) of the bits of a compressed Morton code, lowest bit first.

    A bit of an axis counts only while 2^bit < the chunks along that axis (Neuroglancer's sharded format).
    """
    counts = [(size - 1).bit_length() for size in grid]
    return [axis for bit in range(max(counts)) for axis in (2, 1, 0) if bit < counts[axis]]


def morton_code(position: ZYX, grid: ZYX) -> int:
    """Compressed Morton code of a chunk's position (z, y, x) in its grid."""
    code = 0
    taken = [0, 0, 0]
    for bit, axis in enumerate(morton_bits(grid)):
        code |= (position[axis] >> taken[axis] & 1) << bit
        taken[axis] += 1
    return code


def shard_bits(shape: ZYX, chunk: ZYX, shard: ZYX) -> int:
    """How many low bits of the Morton code number the chunks of one shard."""
    grid = downsampled_shape(shape, chunk)
    sizes = [max(ceil_div(length, side) - 1, 0).bit_length() for length, side in zip(shard, chunk)]
    wanted = [min(size, (n - 1).bit_length()) for size, n in zip(sizes, grid)]
    return sum(wanted)


def morton_shard(shape: ZYX, chunk: ZYX, block: ZYX) -> ZYX:
    """Largest shard of the sharded precomputed format that fills a task's block in whole numbers.

    Chunks of a shard share the high bits of their Morton code, so its sides are powers of two times the chunk.
    """
    grid = downsampled_shape(shape, chunk)
    counts = [ceil_div(length, side) for length, side in zip(block, chunk)]
    sides = [1, 1, 1]
    for axis in morton_bits(grid)[:MOST_SHARD_BITS]:
        covers = counts[axis] >= grid[axis]
        if not covers and counts[axis] % (2 * sides[axis]):
            break
        sides[axis] *= 2
    z, y, x = (side * length for side, length in zip(sides, chunk))
    return (z, y, x)


def _grow_block(
    chunk: ZYX, shape: ZYX, steps: tuple[ZYX, ...], most_voxels: int, size_nm: VoxelSizeNm, morton: bool
) -> ZYX:
    """Block of whole chunks that stays whole over as many of the following levels as `most_voxels` allows."""
    block = list(chunk)

    def grown(axis: int, times: int) -> bool:
        if times == 1 or block[axis] >= shape[axis] or math.prod(block) * times > most_voxels:
            return False
        block[axis] *= times
        return True

    def length(axis: int) -> float:
        """Morton codes need as many chunks along each axis; otherwise blocks near to a cube are read fastest."""
        return block[axis] / chunk[axis] if morton else block[axis] * size_nm[axis]

    for step in () if morton else steps:
        if math.prod(block) * math.prod(step) > most_voxels:
            break
        for axis, times in enumerate(step):
            grown(axis, times)
    while any(grown(axis, 2) for axis in sorted(range(3), key=lambda axis: (length(axis), -axis))):
        pass
    return (block[0], block[1], block[2])


@dataclass(frozen=True)
class Layout:
    """Levels of a volume and the passes that write them."""

    levels: tuple[Level, ...]
    passes: tuple[Pass, ...]


def plan_layout(
    shape: ZYX,
    itemsize: int,
    voxel_size_nm: VoxelSizeNm | None,
    steps: tuple[ZYX, ...],
    *,
    chunk: ZYX | None = None,
    block: ZYX | None = None,
    sharded: bool = True,
    morton: bool = False,
    task_bytes: int = TASK_BYTES,
) -> Layout:
    """Cut a volume into levels, chunks, shards and passes so that no two tasks write the same file.

    Parameters
    ----------
    shape : tuple of int
        Voxels of level 0 (z, y, x).
    itemsize : int
        Bytes of a voxel.
    voxel_size_nm : tuple of float or None
        Voxel size (z, y, x).
    steps : tuple of (int, int, int)
        Factor from each level to the next.
    chunk : tuple of int, optional
        Chunk of every level. Default: near to a cube in nm, level by level.
    block : tuple of int, optional
        Box of level 0 that one task writes: a multiple of the chunk. Default: as `task_bytes` allows.
    sharded : bool
        One file per shard instead of one per chunk.
    morton : bool
        Shards of Neuroglancer's precomputed format, which are powers of two of the chunk.
    task_bytes : int
        Most bytes of level 0 in one task.

    Raises
    ------
    InputError
        When `block` is no multiple of `chunk`.
    """
    size_nm = voxel_size_nm or (1.0, 1.0, 1.0)
    most_voxels = max(task_bytes // itemsize, 1)
    shapes, factors = [shape], [(1, 1, 1)]
    for step in steps:
        shapes.append(downsampled_shape(shapes[-1], step))
        factors.append(tuple(a * b for a, b in zip(factors[-1], step)))  # type: ignore[arg-type]
    levels: list[Level] = []
    passes: list[Pass] = []

    def level_size(level: int) -> VoxelSizeNm:
        z, y, x = (size * n for size, n in zip(size_nm, factors[level]))
        return (z, y, x)

    def add_level(level: int, level_chunk: ZYX, level_block: ZYX) -> None:
        shard = level_chunk
        if sharded and morton:
            shard = morton_shard(shapes[level], level_chunk, level_block)
        elif sharded:
            z, y, x = (
                length if length < size else ceil_div(size, side) * side
                for length, size, side in zip(level_block, shapes[level], level_chunk)
            )
            shard = (z, y, x)
        levels.append(Level(shapes[level], factors[level], level_chunk, shard))

    while len(levels) < len(shapes):
        first = len(levels)
        step = steps[first - 1] if first else (1, 1, 1)
        first_chunk = chunk or choose_chunk(shapes[first], level_size(first), block if not first else None)
        current = block if block and not first else None
        if current is None:
            current = _grow_block(
                first_chunk,
                shapes[first],
                steps[first:],
                most_voxels // math.prod(step),
                level_size(first),
                sharded and morton,
            )
        if any(length % side for length, side in zip(current, first_chunk)):
            raise InputError(
                f"The block {current} is no multiple of the chunk {first_chunk} (z, y, x): make it one"
            )
        read_z, read_y, read_x = (a * b for a, b in zip(current, step))
        add_level(first, first_chunk, current)
        while len(levels) < len(shapes):
            following = _following_block(current, steps[len(levels) - 1], shapes[len(levels) - 1])
            next_chunk = _following_chunk(following, shapes[len(levels)], level_size(len(levels)), chunk)
            if following is None or next_chunk is None:
                break
            current = following
            add_level(len(levels), next_chunk, current)
        passes.append(Pass(max(first - 1, 0), tuple(range(first, len(levels))), (read_z, read_y, read_x)))
    return Layout(tuple(levels), tuple(passes))


def _following_block(block: ZYX, step: ZYX, shape: ZYX) -> ZYX | None:
    """The block one level coarser; None when it is not whole there. An axis that covers the level stays covered."""
    if any(length < size and length % n for length, size, n in zip(block, shape, step)):
        return None
    z, y, x = (ceil_div(length, n) for length, n in zip(block, step))
    return (z, y, x)


def _following_chunk(block: ZYX | None, shape: ZYX, size_nm: VoxelSizeNm, chunk: ZYX | None) -> ZYX | None:
    """A chunk that fills the block in whole numbers; None when only one too small does."""
    if block is None:
        return None
    covers = [length >= size for length, size in zip(block, shape)]
    if chunk is not None:
        whole = all(length % side == 0 or cover for length, side, cover in zip(block, chunk, covers))
        return chunk if whole else None
    chosen = choose_chunk(shape, size_nm, block)
    return chosen if all(covers) or math.prod(chosen) >= 2**SMALLEST_CHUNK_VOXELS_LOG2 else None
