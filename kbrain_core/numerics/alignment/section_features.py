"""What of a section can be compared with its neighbour: tissue without borders, structure without stain."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from skimage.filters import threshold_otsu

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]

COARSE_PX = 192
"""Longest side of the image that the full circle is searched in: structure of a hundredth of a section is still there."""
BOX_PX = 33
"""Side of the box whose mean is taken out and whose contrast is made one: stain, shading and gain go, structure stays."""
SMOOTH_SIGMA_PX = 1.0
"""Against noise; less smoothing makes interpolation noise attract whole-pixel solutions."""
CONTRAST_FLOOR = 0.3
"""Empty resin is not amplified to structure: no box counts as less than this share of the section's own contrast."""
CLIP = 3.0
"""Dirt and stain precipitate have the say of three standard deviations at most."""
MARGIN_PX = 3
"""Pixels beside the border of the tissue that interpolation has touched."""
BLANK_FRACTION = 0.02
"""A section with less of its field in tissue than this holds nothing to register."""
TEXTURE_BOX_PX = 9
"""At the coarsest scale: where the structure of a box is much fainter than elsewhere there is resin, not tissue."""
TEXTURE_RATIO = 3.0
"""How much fainter, so that a section that is tissue all over is not split into halves."""


@dataclass(frozen=True)
class Features:
    """One section at one scale: local contrast of zero mean and unit variance where ``mask`` is set, zero elsewhere."""

    image: Image
    mask: Mask
    factor: float

    @cached_property
    def area_px(self) -> int:
        """Pixels of tissue."""
        return int(np.count_nonzero(self.mask))


@dataclass(frozen=True)
class Section:
    """A section ready for registration.

    Parameters
    ----------
    levels : tuple of Features
        At several scales, finest first, of the box around the tissue alone; none when the section is blank.
    shape_yx : (2,) int
        Of the image the section came in.
    tissue_box : (4,) int
        Top, left, bottom and right (past the last) of the tissue: what the levels show.
    field_box : (4,) int
        The same of everything that was imaged, resin too: all but a canvas's empty border.
    blank : bool
        Nothing in it can be registered.
    """

    levels: tuple[Features, ...]
    shape_yx: tuple[int, int]
    tissue_box: tuple[int, int, int, int]
    field_box: tuple[int, int, int, int]
    blank: bool

    @property
    def offset_yx(self) -> tuple[int, int]:
        """Where the levels begin in the image."""
        return self.tissue_box[:2]


def tissue_mask(image: npt.NDArray[Any]) -> Mask:
    """Where a section is: not the canvas it was pasted on, nor what a warp filled in.

    A border of the canvas is one exact value (0, or the largest of the type) in a region that touches the edge of the image
    and is at least 5 pixels wide everywhere: single dark pixels of tissue at the edge stay tissue.

    Parameters
    ----------
    image : (Y, X) ndarray

    Returns
    -------
    mask : (Y, X) ndarray of uint8, 1 for tissue
    """
    mask = np.ones(image.shape, np.uint8)
    values = [0.0]
    if np.issubdtype(image.dtype, np.integer):
        values.append(float(np.iinfo(image.dtype).max))
    else:
        image = np.where(np.isfinite(image), image, 0)
    for value in values:
        same = (image == value).astype(np.uint8)
        edge = np.concatenate([same[0], same[-1], same[:, 0], same[:, -1]])
        if edge.mean() < 0.02:
            continue
        padded = cv2.copyMakeBorder(same, 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=1)
        opened = cv2.morphologyEx(padded, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
        _, parts = cv2.connectedComponents(opened, connectivity=4)
        mask[parts[3:-3, 3:-3] == parts[0, 0]] = 0
    return mask


def local_contrast(image: Image, mask: Mask, smooth_sigma_px: float = SMOOTH_SIGMA_PX) -> tuple[Image, Mask]:
    """High-passed image of unit contrast (a normalised convolution, blind outside the mask), and the mask of where."""
    weight = mask.astype(np.float32)
    share = cv2.boxFilter(weight, -1, (BOX_PX, BOX_PX), borderType=cv2.BORDER_CONSTANT)
    inverse = np.where(share > 0.02, 1 / np.maximum(share, 0.02), 0).astype(np.float32)
    level = float(image[mask > 0].mean()) if mask.any() else 0.0
    inside = (image - level) * weight
    if smooth_sigma_px > 0:
        inside = cv2.GaussianBlur(inside, (0, 0), smooth_sigma_px)
    mean = cv2.boxFilter(inside, -1, (BOX_PX, BOX_PX), borderType=cv2.BORDER_CONSTANT) * inverse
    high = (inside - mean) * weight
    power = cv2.boxFilter(high * high, -1, (BOX_PX, BOX_PX), borderType=cv2.BORDER_CONSTANT) * inverse
    typical = float(np.mean(power[mask > 0])) if mask.any() else 0.0
    if typical <= 1e-12:
        return np.zeros_like(high), np.zeros_like(mask)
    high /= np.sqrt(power + CONTRAST_FLOOR * typical)
    np.clip(high, -CLIP, CLIP, out=high)
    kept = cv2.erode(
        mask, np.ones((2 * MARGIN_PX + 1,) * 2, np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    high *= kept
    return high, kept


def prepare_section(image: npt.NDArray[Any]) -> Section:
    """Make a section ready for registration.

    Parameters
    ----------
    image : (Y, X) ndarray, any real type

    Returns
    -------
    section : Section
        ``blank`` when there is no tissue or no contrast in it; its levels are then empty.
    """
    shape = (int(image.shape[0]), int(image.shape[1]))
    whole = tissue_mask(image)
    field = _bounding_box(whole)
    if whole.mean() < BLANK_FRACTION or min(_box_size(field)) < BOX_PX:
        return Section((), shape, field, field, blank=True)
    pixels, mask = _cut(image, whole, field)
    low, high = np.percentile(pixels[::4, ::4][mask[::4, ::4] > 0], (1, 99))
    if high - low <= 1e-6 * max(abs(float(high)), 1.0):
        return Section((), shape, field, field, blank=True)
    mask *= _textured(pixels, mask)
    inner = _bounding_box(mask)
    if min(_box_size(inner)) < BOX_PX:
        return Section((), shape, field, field, blank=True)
    pixels, mask = _cut(pixels, mask, inner)
    levels, factor = [], 1
    while True:
        features, kept = local_contrast(pixels, mask)
        levels.append(Features(features, kept, float(factor)))
        if max(pixels.shape) <= COARSE_PX:
            break
        pixels, mask = halve(pixels, mask)
        factor *= 2
    top, left = field[0] + inner[0], field[1] + inner[1]
    box = (top, left, top + inner[2] - inner[0], left + inner[3] - inner[1])
    return Section(tuple(levels), shape, box, field, blank=levels[-1].area_px == 0)


def _textured(pixels: Image, mask: Mask) -> Mask:
    """Where a section has structure, when it has none elsewhere (resin around it); otherwise everywhere."""
    small, inside = pixels, mask
    while max(small.shape) > COARSE_PX:
        small, inside = halve(small, inside)
    size = (TEXTURE_BOX_PX, TEXTURE_BOX_PX)
    share = np.maximum(cv2.boxFilter(inside.astype(np.float32), -1, size), 1e-3)
    centred = (small - small[inside > 0].mean()) * inside if inside.any() else small
    high = (centred - cv2.boxFilter(centred, -1, size) / share) * inside
    power = cv2.boxFilter(high * high, -1, size) / share
    log_power = np.log(np.maximum(power, 1e-6 * max(float(power.max()), 1e-30)))
    values = log_power[inside > 0]
    if values.size < 256:
        return np.ones_like(mask)
    cut = threshold_otsu(values)
    faint, strong = values[values <= cut], values[values > cut]
    # Powers are squares: their logarithms differ by twice that of the ratio.
    if not faint.size or not strong.size or np.median(strong) - np.median(faint) < 2 * np.log(TEXTURE_RATIO):
        return np.ones_like(mask)
    tissue = ((log_power > cut) & (inside > 0)).astype(np.uint8)
    tissue = cv2.morphologyEx(tissue, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    tissue = cv2.morphologyEx(tissue, cv2.MORPH_CLOSE, np.ones((15, 15), np.uint8))
    if tissue.mean() < BLANK_FRACTION:
        return np.ones_like(mask)
    result: Mask = cv2.resize(tissue, (mask.shape[1], mask.shape[0]), interpolation=cv2.INTER_NEAREST)
    return result


def _bounding_box(mask: Mask) -> tuple[int, int, int, int]:
    """Top, left, bottom and right (past the last) of what is set; all zero when nothing is."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return (0, 0, 0, 0)
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _box_size(box: tuple[int, int, int, int]) -> tuple[int, int]:
    return box[2] - box[0], box[3] - box[1]


def _cut(image: npt.NDArray[Any], mask: Mask, box: tuple[int, int, int, int]) -> tuple[Image, Mask]:
    """Copies of image and mask in a box; pixels that are no number are masked."""
    inside = np.s_[box[0] : box[2], box[1] : box[3]]
    pixels = np.array(image[inside], np.float32)
    cut = mask[inside].copy()
    if np.issubdtype(image.dtype, np.inexact):
        cut[~np.isfinite(pixels)] = 0
        pixels[~np.isfinite(pixels)] = 0
    return pixels, cut


def halve(image: Image, mask: Mask) -> tuple[Image, Mask]:
    """Mean of 2x2 pixels; a pixel is tissue when all four are. An odd last row or column is dropped."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    small = cv2.resize(image[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    whole = cv2.resize(
        mask[: 2 * height, : 2 * width] * np.uint8(255), (width, height), interpolation=cv2.INTER_AREA
    )
    return small, (whole == 255).astype(np.uint8)
