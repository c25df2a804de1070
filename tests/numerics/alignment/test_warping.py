"""Resampling from just the pixels a box needs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from kbrain_core.numerics.alignment import plane_transforms as pt
from kbrain_core.numerics.alignment.warping import Interpolation, source_box, warp_section

TO_SOURCE = pt.rigid(0.4, (3.3, -8.7), (100, 90))


def picture(dtype: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(200, 180)), 3)
    return (smooth / np.abs(smooth).max() * 100 + (110 if dtype != "int8" else 0)).astype(dtype)


@pytest.mark.parametrize("interpolation", ["linear", "cubic", "nearest"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "float32"])
def test_boxes_join_to_the_whole(dtype: str, interpolation: Interpolation) -> None:
    """Every box reads only its own pixels and is the same as a piece of the whole."""
    source = picture(dtype)
    whole = warp_section(
        source, (0, 0), TO_SOURCE, (slice(0, 210), slice(0, 190)), interpolation=interpolation, fill_value=7
    )
    for top in range(0, 210, 70):
        for left in range(0, 190, 95):
            box = slice(top, top + 70), slice(left, left + 95)
            need = source_box(TO_SOURCE, box, source.shape, interpolation)
            assert need is not None
            part = warp_section(
                source[need],
                (need[0].start, need[1].start),
                TO_SOURCE,
                box,
                interpolation=interpolation,
                fill_value=7,
            )
            assert part.dtype == source.dtype
            expected = whole[box].astype(float)
            if interpolation == "nearest":
                # A pixel halfway between two may round either way from another origin.
                assert (part != expected).mean() < 1e-3
            else:
                # Rounding to the type, from coordinates that differ in their last bit.
                np.testing.assert_allclose(part, expected, atol=0.01 if dtype == "float32" else 1)


def test_linear_agrees_with_scipy() -> None:
    source = picture("float32")
    box = slice(40, 150), slice(40, 140)
    found = warp_section(source, (0, 0), TO_SOURCE, box, interpolation="linear", fill_value=0)
    points = np.stack(np.meshgrid(np.arange(40, 150), np.arange(40, 140), indexing="ij"), -1)
    expected = ndimage.map_coordinates(source, pt.apply(TO_SOURCE, points).transpose(2, 0, 1), order=1)
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_labels_survive_nearest() -> None:
    source = np.zeros((50, 50), np.uint64)
    source[10:20, 10:20] = 2**53 + 1
    moved = np.array([[1.0, 0, 5], [0, 1, 0]])
    found = warp_section(
        source, (0, 0), moved, (slice(0, 50), slice(0, 50)), interpolation="nearest", fill_value=0
    )
    assert found.dtype == np.uint64
    np.testing.assert_array_equal(found[5:15, 10:20], 2**53 + 1)


def test_a_box_beside_the_section_needs_nothing() -> None:
    assert source_box(pt.identity(), (slice(300, 400), slice(0, 10)), (200, 180), "linear") is None
