"""Per-axis values as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbrain_core.errors import InputError
from kbrain_core.geometry import AxisInts, Box, VoxelSize, length_nm

sizes_nm = st.floats(0.001, 1e7).map(lambda value: float(f"{value:g}"))


@given(sizes_nm, sizes_nm, sizes_nm)
def test_voxel_size_reads_back_what_it_writes(z: float, y: float, x: float) -> None:
    size = VoxelSize(z, y, x)
    assert VoxelSize.from_text(str(size)) == size


@pytest.mark.parametrize(
    ("text", "zyx_nm"),
    [
        ("x=0.5um,y=0.5um,z=2um", (2000, 500, 500)),
        ("x=4nm;y=4nm", (None, 4, 4)),
        ("0.5um", (500, 500, 500)),
        ("z=3µm x=1e-3mm y=10A", (3000, 1, 1000)),
    ],
)
def test_voxel_size_units(text: str, zyx_nm: tuple[float | None, ...]) -> None:
    assert VoxelSize.from_text(text).zyx_nm == pytest.approx(zyx_nm)


@pytest.mark.parametrize(
    "text", ["", "x=0.5", "x=0um", "x=-1um", "q=1um", "x=1um,x=2um", "x=nanum", "x=1parsec", "x=infum"]
)
def test_voxel_size_refuses(text: str) -> None:
    with pytest.raises(InputError, match="write"):
        VoxelSize.from_text(text)


def test_voxel_size_defaults_and_requirement() -> None:
    assert VoxelSize(None, 4, 4).with_defaults(VoxelSize(50, 1, 1)) == VoxelSize(50, 4, 4)
    assert VoxelSize.from_um(2, 0.5, 0.5).zyx_nm == (2000, 500, 500)
    with pytest.raises(InputError, match=r"tile\.tif is unknown along z: pass it"):
        VoxelSize(None, 4, 4).required_nm("tile.tif")


axis_bounds = st.tuples(st.integers(0, 50), st.integers(1, 50)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(axis_bounds, axis_bounds, axis_bounds)
def test_box_reads_back_what_it_writes_and_slices(
    z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]
) -> None:
    box = Box(z, y, x)
    assert Box.from_text(str(box)) == box
    assert box.slices((100, 100, 100)) == (slice(*z), slice(*y), slice(*x))


def test_box_open_ends_and_single_planes() -> None:
    assert Box.from_text("x=:5,y=3:,z=7").slices((10, 11, 12)) == (slice(7, 8), slice(3, 11), slice(0, 5))
    assert Box().slices((1, 2, 3)) == (slice(0, 1), slice(0, 2), slice(0, 3))


@pytest.mark.parametrize("text", ["x=5:5", "x=6:5", "x=0:13", "z=10"])
def test_box_must_lie_inside(text: str) -> None:
    with pytest.raises(InputError, match="choose a range inside"):
        Box.from_text(text).slices((10, 11, 12))


@pytest.mark.parametrize("text", ["5", "x=a:b", "x=-1:5", "x=:", "x=1:2:3", "w=1:2"])
def test_box_refuses(text: str) -> None:
    with pytest.raises(InputError, match="write"):
        Box.from_text(text)


def test_axis_ints() -> None:
    assert AxisInts.from_text("x=64,y=32").zyx == (None, 32, 64)
    assert AxisInts.from_text("64").zyx == (64, 64, 64)
    assert AxisInts.from_text(str(AxisInts(1, 2, 3))) == AxisInts(1, 2, 3)
    for text in ("0", "x=0", "x=1.5", "x=-1", "", "x=²"):
        with pytest.raises(InputError, match="write"):
            AxisInts.from_text(text)


def test_length_needs_a_unit() -> None:
    assert length_nm("2 mm") == 2e6
    with pytest.raises(InputError, match="with its unit"):
        length_nm("2")
