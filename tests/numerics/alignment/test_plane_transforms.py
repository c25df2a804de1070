"""Linear transforms of the plane."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbrain_core.errors import InputError
from kbrain_core.numerics.alignment import plane_transforms as pt

POINTS = pt.box_points((100, 60), 4)
transforms = st.builds(
    lambda angle, y, x, scale, shear: np.array(
        [
            [scale * np.cos(angle), -scale * np.sin(angle) + shear, y],
            [scale * np.sin(angle), scale * np.cos(angle), x],
        ]
    ),
    st.floats(-4, 4),
    st.floats(-1000, 1000),
    st.floats(-1000, 1000),
    st.floats(0.5, 2),
    st.floats(-0.1, 0.1),
)


@given(transforms)
def test_a_transform_and_its_inverse_cancel(transform: pt.Floats) -> None:
    there_and_back = pt.compose(pt.invert(transform), transform)
    np.testing.assert_allclose(pt.apply(there_and_back, POINTS), POINTS, atol=1e-8)


@given(transforms, transforms)
def test_composition_applies_the_first_first(one: pt.Floats, other: pt.Floats) -> None:
    expected = pt.apply(other, pt.apply(one, POINTS))
    np.testing.assert_allclose(pt.apply(pt.compose(other, one), POINTS), expected, atol=1e-7)


@given(transforms, st.sampled_from([1.0, 2.0, 4.0, 5.3]), st.sampled_from([1.0, 2.0, 8.0]))
def test_rescaling_keeps_pixel_centres(transform: pt.Floats, factor_from: float, factor_to: float) -> None:
    """A point of the reduced image, and the same point counted in the pixels of the other scale, agree."""
    rescaled = pt.rescale(transform, factor_from, factor_to)
    points = (POINTS + 0.5) * factor_from - 0.5
    expected = (pt.apply(transform, POINTS) + 0.5) * factor_to - 0.5
    np.testing.assert_allclose(pt.apply(rescaled, points), expected, atol=1e-6)


@pytest.mark.parametrize("model", pt.MODELS)
def test_fit_finds_what_moved_the_points(model: pt.Model) -> None:
    made = {
        "translation": np.array([[1, 0, 3.5], [0, 1, -7]]),
        "rigid": pt.rigid(2.5, (3.5, -7.0), (50, 30)),
        "similarity": np.column_stack([pt.rotation(-1.2, 1.3), [4, 5]]),
        "affine": np.array([[1.1, 0.2, 3], [-0.1, 0.9, 4]]),
    }[model]
    np.testing.assert_allclose(pt.fit(POINTS, pt.apply(made, POINTS), model), made, atol=1e-9)


def test_fit_never_mirrors() -> None:
    mirrored = POINTS * [1, -1]
    assert np.linalg.det(pt.fit(POINTS, mirrored, "rigid")[:, :2]) == pytest.approx(1)


def test_a_singular_transform_is_refused() -> None:
    with pytest.raises(InputError, match="no inverse"):
        pt.invert(np.array([[1.0, 1, 0], [1, 1, 0]]))
