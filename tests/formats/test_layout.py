"""Levels, chunks, shards and passes of volumes of any shape."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbrain_core.errors import InputError
from kbrain_core.formats.layout import (
    Layout,
    auto_factors,
    choose_chunk,
    downsampled_shape,
    morton_code,
    plan_layout,
    shard_bits,
)

shapes = st.tuples(st.integers(1, 300), st.integers(1, 3000), st.integers(1, 3000))
sizes_nm = st.sampled_from(
    [(10.0, 10.0, 10.0), (40.0, 4.0, 4.0), (5000.0, 2000.0, 2000.0), (50.0, 100.0, 20.0)]
)
factors = st.sampled_from([None, (2, 2, 2), (1, 2, 2), (3, 3, 3), (2, 4, 4), (1, 3, 2)])
chunks = st.sampled_from([None, (64, 64, 64), (16, 128, 128), (10, 50, 60), (1, 256, 256)])


@given(
    shapes,
    sizes_nm,
    factors,
    chunks,
    st.booleans(),
    st.booleans(),
    st.integers(0, 5),
    st.sampled_from([2**18, 2**22]),
)
def test_no_two_tasks_of_a_pass_write_the_same_file(
    shape: tuple[int, int, int],
    size_nm: tuple[float, float, float],
    factor: tuple[int, int, int] | None,
    chunk: tuple[int, int, int] | None,
    sharded: bool,
    morton: bool,
    mips: int,
    task_bytes: int,
) -> None:
    steps = auto_factors(shape, size_nm, mips=mips, factor=factor)
    layout = plan_layout(
        shape, 1, size_nm, steps, chunk=chunk, sharded=sharded, morton=morton, task_bytes=task_bytes
    )
    assert [level for sweep in layout.passes for level in sweep.write_levels] == list(range(len(steps) + 1))
    for sweep in layout.passes:
        read = layout.levels[sweep.read_level]
        for index in sweep.write_levels:
            level = layout.levels[index]
            for axis in range(3):
                ratio = level.factor[axis] // read.factor[axis]
                if sweep.box[axis] < read.shape[axis]:  # several tasks along this axis
                    assert sweep.box[axis] % ratio == 0
                    assert (sweep.box[axis] // ratio) % level.shard[axis] == 0
                assert level.shard[axis] % level.chunk[axis] == 0
        _check_levels(layout, steps)


def _check_levels(layout: Layout, steps: tuple[tuple[int, int, int], ...]) -> None:
    for before, after, step in zip(layout.levels, layout.levels[1:], steps):
        assert after.shape == downsampled_shape(before.shape, step)
        assert after.factor == tuple(a * b for a, b in zip(before.factor, step))


@given(shapes, chunks.filter(bool), st.integers(0, 12))
def test_shards_of_the_precomputed_format_are_boxes_of_chunks(
    shape: tuple[int, int, int], chunk: tuple[int, int, int], doublings: int
) -> None:
    """All chunks in the box of a shard, and no others, share the high bits of their Morton code."""
    block = tuple(side * 2 ** (doublings // 3 + (axis < doublings % 3)) for axis, side in enumerate(chunk))
    layout = plan_layout(shape, 1, None, (), chunk=chunk, block=block, morton=True)  # type: ignore[arg-type]
    shard = layout.levels[0].shard
    grid = downsampled_shape(shape, chunk)
    bits = shard_bits(shape, chunk, shard)
    numbers: dict[int, tuple[int, ...]] = {}
    codes = set()
    for position in itertools.product(*map(range, [min(n, 24) for n in grid])):
        code = morton_code(position, grid)  # type: ignore[arg-type]
        codes.add(code)
        box = tuple(i * side // length for i, side, length in zip(position, chunk, shard))
        assert numbers.setdefault(code >> bits, box) == box
    assert len(numbers) == len(set(numbers.values()))
    assert len(codes) == math.prod(min(n, 24) for n in grid)


def test_morton_code_is_compressed() -> None:
    """Worked by hand for a grid of 1 x 2 x 4 chunks (z, y, x): bits from the lowest are x0, y0, x1; z has none."""
    assert [morton_code((0, y, x), (1, 2, 4)) for y in (0, 1) for x in range(4)] == [0, 1, 4, 5, 2, 3, 6, 7]


def test_levels_go_towards_isotropic_voxels() -> None:
    """40 x 4 x 4 nm: z is left alone until y and x have 32 nm, within sqrt(2) of 40."""
    steps = auto_factors((1000, 20000, 20000), (40, 4, 4), mips=5)
    assert steps == ((1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))


def test_levels_end_when_one_fits_a_screen_or_nothing_is_left() -> None:
    assert len(auto_factors((100, 1024, 500), None)) == 2  # 1024 -> 256
    assert auto_factors((1, 1, 1), None, mips=5) == ()
    assert auto_factors((1, 3, 2), None, mips=9) == ((1, 2, 2), (1, 2, 1))  # y 3 -> 2 -> 1, x 2 -> 1
    assert auto_factors((8, 8, 8), None, mips=9, factor=(1, 1, 1)) == ()


@pytest.mark.parametrize(
    ("shape", "size_nm", "chunk"),
    [
        ((1000, 1000, 1000), (8, 8, 8), (64, 64, 64)),
        ((1000, 9000, 9000), (40, 4, 4), (16, 128, 128)),
        ((1, 9000, 9000), (1, 1, 1), (1, 512, 512)),
        ((26, 1116, 627), (5000, 2000, 2000), (16, 128, 128)),
        ((3, 5, 9), (1, 1, 1), (4, 8, 16)),  # one chunk holds a volume this small
    ],
)
def test_chunks_are_near_to_cubes(
    shape: tuple[int, int, int], size_nm: tuple[float, float, float], chunk: tuple[int, int, int]
) -> None:
    assert choose_chunk(shape, size_nm) == chunk


def test_block_that_is_no_multiple_of_the_chunk_is_refused() -> None:
    with pytest.raises(InputError, match="no multiple of the chunk"):
        plan_layout((100, 100, 100), 1, None, (), chunk=(64, 64, 64), block=(100, 64, 64))
