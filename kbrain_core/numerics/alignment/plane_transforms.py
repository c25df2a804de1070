"""Linear transforms of the plane: how one section's pixels lie in another's.

A transform is a (2, 3) array of float64 ``[[m_yy, m_yx, t_y], [m_xy, m_xx, t_x]]`` that maps a point ``(y, x)`` in pixels
(pixel centres are integers) to another. Which point goes where is in the name: ``a_to_b`` takes points of a to points of b.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ...errors import InputError

Model = Literal["translation", "rigid", "similarity", "affine"]
MODELS: tuple[Model, ...] = get_args(Model)
Floats = npt.NDArray[np.float64]

# The smallest number of point pairs that fixes a model.
MINIMUM_POINTS = {"translation": 1, "rigid": 2, "similarity": 2, "affine": 3}


def identity() -> Floats:
    """The transform that moves nothing."""
    return np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def rotation(angle_rad: float, scale: float = 1.0) -> Floats:
    """(2, 2) matrix that turns ``(y, x)`` by an angle (from y towards x) and scales it."""
    cosine, sine = scale * np.cos(angle_rad), scale * np.sin(angle_rad)
    return np.array([[cosine, -sine], [sine, cosine]])


def rigid(
    angle_rad: float, shift_yx: tuple[float, float], centre_yx: tuple[float, float] = (0.0, 0.0)
) -> Floats:
    """A turn about a centre, then a shift."""
    turn = rotation(angle_rad)
    centre = np.asarray(centre_yx, float)
    return np.column_stack([turn, centre - turn @ centre + np.asarray(shift_yx, float)])


def compose(second: Floats, first: Floats) -> Floats:
    """The transform that applies ``first``, then ``second``."""
    return np.column_stack([second[:, :2] @ first[:, :2], second[:, :2] @ first[:, 2] + second[:, 2]])


def invert(transform: Floats) -> Floats:
    """The transform's way back.

    Raises
    ------
    InputError
        When the transform squeezes the plane to a line.
    """
    if abs(np.linalg.det(transform[:, :2])) < 1e-9:
        raise InputError(
            f"The transform {transform.round(6).tolist()} has no inverse (its matrix is singular)."
        )
    inverse = np.linalg.inv(transform[:, :2])
    return np.column_stack([inverse, -inverse @ transform[:, 2]])


def apply(transform: Floats, points: Floats) -> Floats:
    """Move points, (..., 2) in the order (y, x)."""
    moved: Floats = points @ transform[:, :2].T + transform[:, 2]
    return moved


def rescale(transform: Floats, factor_from: float, factor_to: float) -> Floats:
    """The same transform between images at other scales.

    Parameters
    ----------
    transform : (2, 3) ndarray
        Between two images, in their own pixels.
    factor_from, factor_to : float
        How many *new* pixels one pixel of the image it maps from, and of the one it maps to, is wide (2 takes a transform
        of a two-fold reduced image to the full one). Pixel centres stay centres: ``new = (old + 0.5) * factor - 0.5``.
    """
    matrix = transform[:, :2] * (factor_to / factor_from)
    old_of_origin = 0.5 / factor_from - 0.5
    origin = apply(transform, np.full(2, old_of_origin))
    return np.column_stack([matrix, (origin + 0.5) * factor_to - 0.5])


def angle_of(transform: Floats) -> float:
    """The transform's turn in radians: of the rotation nearest to its matrix."""
    matrix = transform[:, :2]
    return float(np.arctan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1]))


def nearest_rigid(transform: Floats, centre_yx: Floats) -> Floats:
    """The rigid transform with the same turn that moves the centre to the same point."""
    turn = rotation(angle_of(transform))
    return np.column_stack([turn, apply(transform, centre_yx) - turn @ centre_yx])


def box_points(shape_yx: tuple[int, int], count: int = 5) -> Floats:
    """A grid of ``count**2`` points over an image, its corners included: (count**2, 2)."""
    axes = [np.linspace(0, max(size - 1, 0), count) for size in shape_yx]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def mean_distance(one: Floats, other: Floats, points: Floats) -> float:
    """How far two transforms take the same points apart, on average, in px."""
    return float(np.linalg.norm(apply(one, points) - apply(other, points), axis=1).mean())


def fit(source: Floats, target: Floats, model: Model, weights: Floats | None = None) -> Floats:
    """The transform of a model that takes points to points with the least squares.

    Parameters
    ----------
    source, target : (N, 2) ndarray
        Matched points, (y, x).
    model : {"translation", "rigid", "similarity", "affine"}
        "rigid" and "similarity" by Umeyama (doi 10.1109/34.88573), mirrored solutions excluded.
    weights : (N,) ndarray, optional
        One weight a pair, all alike when not given.
    """
    weight = np.ones(len(source)) if weights is None else weights
    weight = weight / weight.sum()
    source_mean, target_mean = weight @ source, weight @ target
    from_centre, to_centre = source - source_mean, target - target_mean
    matrix = np.eye(2)
    if model == "affine":
        root = np.sqrt(weight)[:, None]
        matrix = np.linalg.lstsq(from_centre * root, to_centre * root, rcond=None)[0].T
    elif model != "translation":
        left, _, right = np.linalg.svd((to_centre * weight[:, None]).T @ from_centre)
        matrix = left @ np.diag([1.0, np.sign(np.linalg.det(left @ right)) or 1.0]) @ right
        if model == "similarity":
            spread = float((weight[:, None] * from_centre**2).sum())
            matrix = matrix * (
                float((weight[:, None] * to_centre * (from_centre @ matrix.T)).sum()) / max(spread, 1e-12)
            )
    return np.column_stack([matrix, target_mean - matrix @ source_mean])
