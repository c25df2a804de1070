"""Sub-pixel registration of two images by the enhanced correlation coefficient (doi 10.1109/TPAMI.2008.113).

Each iteration is one pass over the pixels: everything the step needs (the correlation, its gradient, the normal matrix of
any linear model) is in the Gram matrix of nine signals, six of them the derivatives of the moving image by the affine
parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from .plane_transforms import Floats, Model, rotation
from .section_features import Features

ONE, FIXED, MOVING = 6, 7, 8


@dataclass(frozen=True)
class Refinement:
    """Where a refinement ended.

    Parameters
    ----------
    transform : (2, 3) ndarray
        Takes points of the fixed image to points of the moving one.
    correlation : float
        Mean-subtracted NCC of the two on their overlap.
    overlap_px : int
        Pixels (of this scale) that both show.
    """

    transform: Floats
    correlation: float
    overlap_px: int


@numba.njit(cache=True, fastmath=True, nogil=True)
def _gram(fixed, fixed_mask, moving, moving_mask, transform, centre_y, centre_x, stride):  # type: ignore[no-untyped-def]
    gram = np.zeros((9, 9))
    height, width = fixed.shape
    moving_height, moving_width = moving.shape
    m_yy, m_yx, t_y = transform[0]
    m_xy, m_xx, t_x = transform[1]
    for row in range(0, height, stride):
        y = row - centre_y
        yy0 = m_yy * row + t_y
        xx0 = m_xy * row + t_x
        # Products of the derivatives (gy, gx) with each other and with one, fixed and moving, by power of x.
        gyy0 = gyy1 = gyy2 = gyx0 = gyx1 = gyx2 = gxx0 = gxx1 = gxx2 = 0.0
        gy0 = gy1 = gx0 = gx1 = gyf0 = gyf1 = gxf0 = gxf1 = gym0 = gym1 = gxm0 = gxm1 = 0.0
        count = s_f = s_m = s_ff = s_mm = s_fm = 0.0
        for column in range(0, width, stride):
            if fixed_mask[row, column] == 0:
                continue
            at_y = yy0 + m_yx * column
            at_x = xx0 + m_xx * column
            if not (0.0 <= at_y < moving_height - 1 and 0.0 <= at_x < moving_width - 1):
                continue
            i, j = int(at_y), int(at_x)
            if moving_mask[i, j] == 0:
                continue
            u, v = at_y - i, at_x - j
            p00, p01 = moving[i, j], moving[i, j + 1]
            p10, p11 = moving[i + 1, j], moving[i + 1, j + 1]
            top, bottom = p00 + v * (p01 - p00), p10 + v * (p11 - p10)
            m = top + u * (bottom - top)
            gy = bottom - top
            gx = (1.0 - u) * (p01 - p00) + u * (p11 - p10)
            f = fixed[row, column]
            x = column - centre_x
            gyy, gyx, gxx = gy * gy, gy * gx, gx * gx
            gyy0 += gyy
            gyy1 += gyy * x
            gyy2 += gyy * x * x
            gyx0 += gyx
            gyx1 += gyx * x
            gyx2 += gyx * x * x
            gxx0 += gxx
            gxx1 += gxx * x
            gxx2 += gxx * x * x
            gy0 += gy
            gy1 += gy * x
            gx0 += gx
            gx1 += gx * x
            gyf0 += gy * f
            gyf1 += gy * f * x
            gxf0 += gx * f
            gxf1 += gx * f * x
            gym0 += gy * m
            gym1 += gy * m * x
            gxm0 += gx * m
            gxm1 += gx * m * x
            count += 1.0
            s_f += f
            s_m += m
            s_ff += f * f
            s_mm += m * m
            s_fm += f * m
        # Signals: 0 gy*y, 1 gy*x, 2 gy, 3 gx*y, 4 gx*x, 5 gx, 6 one, 7 fixed, 8 moving.
        gram[0, 0] += gyy0 * y * y
        gram[0, 1] += gyy1 * y
        gram[0, 2] += gyy0 * y
        gram[0, 3] += gyx0 * y * y
        gram[0, 4] += gyx1 * y
        gram[0, 5] += gyx0 * y
        gram[1, 1] += gyy2
        gram[1, 2] += gyy1
        gram[1, 3] += gyx1 * y
        gram[1, 4] += gyx2
        gram[1, 5] += gyx1
        gram[2, 2] += gyy0
        gram[2, 3] += gyx0 * y
        gram[2, 4] += gyx1
        gram[2, 5] += gyx0
        gram[3, 3] += gxx0 * y * y
        gram[3, 4] += gxx1 * y
        gram[3, 5] += gxx0 * y
        gram[4, 4] += gxx2
        gram[4, 5] += gxx1
        gram[5, 5] += gxx0
        gram[0, 6] += gy0 * y
        gram[1, 6] += gy1
        gram[2, 6] += gy0
        gram[3, 6] += gx0 * y
        gram[4, 6] += gx1
        gram[5, 6] += gx0
        gram[0, 7] += gyf0 * y
        gram[1, 7] += gyf1
        gram[2, 7] += gyf0
        gram[3, 7] += gxf0 * y
        gram[4, 7] += gxf1
        gram[5, 7] += gxf0
        gram[0, 8] += gym0 * y
        gram[1, 8] += gym1
        gram[2, 8] += gym0
        gram[3, 8] += gxm0 * y
        gram[4, 8] += gxm1
        gram[5, 8] += gxm0
        gram[6, 6] += count
        gram[6, 7] += s_f
        gram[6, 8] += s_m
        gram[7, 7] += s_ff
        gram[7, 8] += s_fm
        gram[8, 8] += s_mm
    for one in range(9):
        for other in range(one):
            gram[one, other] = gram[other, one]
    return gram


def _centred(gram: Floats) -> Floats:
    """The Gram matrix after every signal's mean is taken out."""
    result: Floats = gram - np.outer(gram[:, ONE], gram[ONE]) / max(float(gram[ONE, ONE]), 1.0)
    return result


def _correlation(centred: Floats) -> float:
    energy = centred[FIXED, FIXED] * centred[MOVING, MOVING]
    return float(centred[FIXED, MOVING] / np.sqrt(energy)) if energy > 1e-12 else 0.0


def _basis(model: Model, matrix: Floats) -> Floats:
    """(6, n) derivatives of ``(a_yy, a_yx, b_y, a_xy, a_xx, b_x)`` by the model's n free parameters."""
    columns = [np.array([0, 0, 1.0, 0, 0, 0]), np.array([0, 0, 0, 0, 0, 1.0])]
    if model == "affine":
        return np.eye(6)
    if model in ("rigid", "similarity"):
        turned = matrix @ np.array([[0.0, -1.0], [1.0, 0.0]])
        columns.append(np.array([turned[0, 0], turned[0, 1], 0, turned[1, 0], turned[1, 1], 0]))
    if model == "similarity":
        columns.append(np.array([matrix[0, 0], matrix[0, 1], 0, matrix[1, 0], matrix[1, 1], 0]))
    return np.column_stack(columns)


def _step(centred: Floats, model: Model, matrix: Floats) -> Floats | None:
    """The model's step that raises the correlation most, to first order; None where the images have no structure."""
    basis = _basis(model, matrix)
    normal = basis.T @ centred[:6, :6] @ basis
    to_fixed, to_moving = basis.T @ centred[:6, FIXED], basis.T @ centred[:6, MOVING]
    scale = np.sqrt(np.maximum(np.diag(normal), 1e-12))
    damped = normal / np.outer(scale, scale) + 1e-6 * np.eye(len(scale))
    try:
        solved = (
            np.linalg.solve(damped, np.column_stack([to_fixed, to_moving]) / scale[:, None]) / scale[:, None]
        )
    except np.linalg.LinAlgError:
        return None
    explained_moving = to_moving @ solved[:, 1]
    explained_both = to_fixed @ solved[:, 1]
    denominator = float(centred[FIXED, MOVING] - explained_both)
    if denominator > 0:
        gain = (centred[MOVING, MOVING] - explained_moving) / denominator
    else:  # far from the peak: the smallest gain for which the correlation still rises (second case of the method)
        explained_fixed = max(float(to_fixed @ solved[:, 0]), 1e-12)
        least = float(np.sqrt(max(float(explained_moving), 0.0) / explained_fixed))
        gain = max(least, -denominator / explained_fixed)
    step: Floats = gain * solved[:, 0] - solved[:, 1]
    return step


def _moved(model: Model, matrix: Floats, at_centre: Floats, step: Floats) -> tuple[Floats, Floats]:
    """Matrix and image of the centre after a step."""
    if model == "affine":
        full = step.reshape(2, 3)
        return matrix + full[:, :2], at_centre + full[:, 2]
    if model in ("rigid", "similarity"):
        matrix = matrix @ rotation(step[2], scale=float(np.exp(step[3])) if model == "similarity" else 1.0)
    return matrix, at_centre + step[:2]


def correlate(fixed: Features, moving: Features, fixed_to_moving: Floats) -> Refinement:
    """How alike two sections are where a transform lays them."""
    gram = _gram(fixed.image, fixed.mask, moving.image, moving.mask, fixed_to_moving, 0.0, 0.0, 1)
    return Refinement(fixed_to_moving, _correlation(_centred(gram)), int(gram[ONE, ONE]))


def refine(
    fixed: Features,
    moving: Features,
    fixed_to_moving: Floats,
    model: Model,
    *,
    iterations: int,
    tolerance_px: float = 0.01,
    stride: int = 1,
) -> Refinement:
    """Move a transform to the nearest peak of the correlation.

    Parameters
    ----------
    fixed, moving : Features
        Of one scale.
    fixed_to_moving : (2, 3) ndarray
        The start, right to within a few pixels of this scale.
    model : {"translation", "rigid", "similarity", "affine"}
    iterations : int
        At most.
    tolerance_px : float
        A step that moves no corner by more ends it.
    stride : int
        Uses every so-many-th pixel of the fixed image, in rows and columns.

    Returns
    -------
    refinement : Refinement
        The best point seen, never worse than the start.
    """
    height, width = fixed.image.shape
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    matrix = fixed_to_moving[:, :2].copy()
    at_centre = matrix @ centre + fixed_to_moving[:, 2]
    best = Refinement(fixed_to_moving, -1.0, 0)
    moved_px = np.inf
    for _ in range(iterations + 1):
        transform = np.column_stack([matrix, at_centre - matrix @ centre])
        gram = _gram(
            fixed.image, fixed.mask, moving.image, moving.mask, transform, centre[0], centre[1], stride
        )
        centred = _centred(gram)
        correlation = _correlation(centred)
        if correlation > best.correlation:
            best = Refinement(transform, correlation, int(gram[ONE, ONE]) * stride * stride)
        if moved_px < tolerance_px or gram[ONE, ONE] < 64:
            break
        step = _step(centred, model, matrix)
        if step is None or not np.isfinite(step).all():
            break
        new_matrix, new_at_centre = _moved(model, matrix, at_centre, step)
        turned = np.abs(new_matrix - matrix).sum(axis=1).max() * max(height, width) / 2
        moved_px = float(turned + np.abs(new_at_centre - at_centre).max())
        if moved_px > max(height, width):
            break
        matrix, at_centre = new_matrix, new_at_centre
    return best
