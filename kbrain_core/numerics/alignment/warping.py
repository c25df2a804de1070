"""Resampling of a section onto a box of the canvas, from just the pixels that box needs."""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from .plane_transforms import Floats, apply, compose

Interpolation = Literal["linear", "cubic", "nearest"]
FLAGS = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}
REACH_PX = {"linear": 1, "cubic": 2, "nearest": 1}
"""How far beside a point its interpolation looks."""
# OpenCV interpolates these exactly; it rounds the coordinates of int16 to 1/32 px, knows no int8, and gives the wrong
# type for wide integers without a word.
NATIVE_TYPES = ("uint8", "uint16", "float32")

Pixels = npt.NDArray[Any]


def source_box(
    to_source: Floats,
    box: tuple[slice, slice],
    source_shape_yx: tuple[int, int],
    interpolation: Interpolation,
) -> tuple[slice, slice] | None:
    """The pixels of a section that a box of the canvas needs; None when it needs none.

    Parameters
    ----------
    to_source : (2, 3) ndarray
        Takes pixels of the canvas to pixels of the section.
    box : (2,) slice
        Rows and columns of the canvas.
    source_shape_yx : (2,) int
    interpolation : {"linear", "cubic", "nearest"}
    """
    corners = np.array(
        [(y, x) for y in (box[0].start, box[0].stop - 1) for x in (box[1].start, box[1].stop - 1)], float
    )
    seen = apply(to_source, corners)
    reach = REACH_PX[interpolation] + 1
    slices = []
    for axis, size in enumerate(source_shape_yx):
        low = max(0, int(np.floor(seen[:, axis].min())) - reach)
        high = min(size, int(np.ceil(seen[:, axis].max())) + reach + 1)
        if low >= high:
            return None
        slices.append(slice(low, high))
    return slices[0], slices[1]


def warp_section(
    pixels: Pixels,
    pixels_origin_yx: tuple[int, int],
    to_source: Floats,
    box: tuple[slice, slice],
    *,
    interpolation: Interpolation,
    fill_value: float,
) -> Pixels:
    """A box of the canvas, from the pixels of the section that `source_box` names.

    Parameters
    ----------
    pixels : (Y, X) ndarray of uint8, int8, uint16, int16 or float32; with "nearest" any type
    pixels_origin_yx : (2,) int
        Where they begin in the section.
    to_source : (2, 3) ndarray
        Takes pixels of the canvas to pixels of the section.
    box : (2,) slice
        Rows and columns of the canvas.
    interpolation : {"linear", "cubic", "nearest"}
        "nearest" keeps grey values as they were measured, at half a pixel's error; "cubic" is sharpest and may overshoot.
    fill_value : float
        Where the section does not reach.

    Returns
    -------
    warped : (rows, columns) ndarray of the section's type
    """
    into = np.column_stack([np.eye(2), -np.array(pixels_origin_yx, float)])
    from_box = np.column_stack([np.eye(2), np.array([box[0].start, box[1].start], float)])
    transform = compose(into, compose(to_source, from_box))
    # OpenCV counts (x, y).
    swapped = np.ascontiguousarray(transform[::-1][:, [1, 0, 2]])
    shape = (box[0].stop - box[0].start, box[1].stop - box[1].start)
    if interpolation == "nearest":
        return _nearest(pixels, transform, shape, fill_value)
    native = pixels.dtype.name in NATIVE_TYPES
    warped: Pixels = cv2.warpAffine(
        np.ascontiguousarray(pixels, pixels.dtype if native else np.float32),
        swapped,
        (shape[1], shape[0]),
        flags=FLAGS[interpolation] | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=fill_value,
    )
    if native:
        return warped
    limits = np.iinfo(pixels.dtype)
    return np.clip(np.rint(warped), limits.min, limits.max).astype(pixels.dtype)


def _nearest(pixels: Pixels, to_pixels: Floats, shape: tuple[int, int], fill_value: float) -> Pixels:
    """The pixel nearest to each point, of any type and untouched; halves go up."""
    result = np.full(shape, fill_value, pixels.dtype)
    columns = np.arange(shape[1])
    for row in range(shape[0]):
        y = np.floor(to_pixels[0, 0] * row + to_pixels[0, 1] * columns + to_pixels[0, 2] + 0.5).astype(
            np.intp
        )
        x = np.floor(to_pixels[1, 0] * row + to_pixels[1, 1] * columns + to_pixels[1, 2] + 0.5).astype(
            np.intp
        )
        inside = (y >= 0) & (y < pixels.shape[0]) & (x >= 0) & (x < pixels.shape[1])
        result[row, inside] = pixels[y[inside], x[inside]]
    return result
