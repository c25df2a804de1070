"""Registration of two sections: the full circle and field first, then the sub-pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt
import scipy.fft

from ...errors import InputError
from .correlation_refinement import Refinement, correlate, refine
from .plane_transforms import (
    Floats,
    Model,
    box_points,
    compose,
    identity,
    mean_distance,
    rescale,
    rigid,
)
from .section_features import Features, Section, halve, local_contrast

Method = Literal["ecc", "fourier", "sift"]
METHODS: tuple[Method, ...] = get_args(Method)

ANGLE_STEP_DEG = 3.0
"""Of the first search: its rim moves by 2.5 px of an image of 96 px, about the width of the structure left in it."""
FINE_ANGLE_STEP_DEG = 2.0
CANDIDATES = 6
DISTINCT = 1 / 12
"""Of a section's longest side: placements closer than this are one."""
MINIMUM_OVERLAP = 0.08
"""Share of the smaller section; below it chance agreements of a few structures win."""
CONVINCING = 15.0
"""Correlation in standard deviations of chance (see `significance`): unrelated sections reach 6 to 12 after a search."""
CONVINCING_ALONE = 9.0
ALONE_FACTOR = 1.7
"""A weaker one convinces when it is so many times as significant as the next best elsewhere."""
CONFIRMED = 8.0
"""Convinces where nothing was searched: chance reaches 4 there."""
STRUCTURE_AREA_PX = 12.0
"""Pixels that vary together in the band-passed images: this many count as one observation."""


@dataclass(frozen=True)
class Link:
    """What registration says about two sections.

    Parameters
    ----------
    fixed_to_moving : (2, 3) ndarray
        Takes pixels of the fixed section to pixels of the moving one.
    correlation : float
        Mean-subtracted NCC of the two on their overlap, at half the resolution that was registered.
    overlap : float
        Shared tissue as a share of the smaller section.
    significance : float
        The correlation in standard deviations of what unrelated images of this overlap show.
    """

    fixed_to_moving: Floats
    correlation: float
    overlap: float
    significance: float


def significance(correlation: float, overlap_px: float) -> float:
    """A correlation in standard deviations of chance, for features of this package's band."""
    return correlation * float(np.sqrt(max(overlap_px, 1.0) / STRUCTURE_AREA_PX))


def register_sections(
    fixed: Section,
    moving: Section,
    *,
    method: Method = "ecc",
    model: Model = "rigid",
    start: Floats | None = None,
) -> Link | None:
    """Find how one section lies on another.

    Parameters
    ----------
    fixed, moving : Section
        Neighbours, from images of one pixel size.
    method : {"ecc", "fourier", "sift"}
        "ecc": search by correlation, refined by gradient ascent of the correlation coefficient
        (doi 10.1109/TPAMI.2008.113). "fourier": the same search, refined by correlation surfaces alone (translation and
        rigid only). "sift": matched key points and their consensus (doi 10.1023/B:VISI.0000029664.99615.94).
    model : {"translation", "rigid", "similarity", "affine"}
        What may differ between neighbours. "translation" searches the field, not the circle.
    start : (2, 3) ndarray, optional
        A guess; when it proves right the search is skipped.

    Returns
    -------
    link : Link or None
        None when one of the two is blank or no placement shares enough tissue.

    Raises
    ------
    InputError
        For a model the method cannot find.
    """
    check_method(method, model)
    if fixed.blank or moving.blank:
        return None
    if method == "sift":
        from .section_keypoints import register_by_keypoints

        found = register_by_keypoints(fixed, moving, model)
    else:
        turns: Model = "translation" if model == "translation" else "rigid"
        found = _confirm(fixed, moving, start, turns) if start is not None else None
        found = found if found is not None else search(fixed, moving, turns)
        if found is not None:
            found = _ascend(fixed, moving, found, model, method)
    return None if found is None else _judge(fixed, moving, found)


def check_method(method: Method, model: Model) -> None:
    """Refuse a model that a method cannot find."""
    if method == "fourier" and model not in ("translation", "rigid"):
        raise InputError(f"Method fourier finds translation or rigid, not {model}. Use --method ecc or sift.")


def search(fixed: Section, moving: Section, model: Model) -> Floats | None:
    """The best placement over the full circle (unless the model only shifts) and the whole field.

    Correlation on an image of about 96 px; where that does not convince, again with four times the pixels. The best
    candidates of each are refined and compared on the tissue they share.

    Returns
    -------
    fixed_to_moving : (2, 3) ndarray in pixels of the sections, or None when nothing shares enough tissue
    """
    coarse = _coarsest(fixed, moving)
    found: list[tuple[float, Floats]] = []
    points = box_points((coarse[0].image.shape[0], coarse[0].image.shape[1]), 3)
    near = max(coarse[0].image.shape) * DISTINCT
    for step in (ANGLE_STEP_DEG, FINE_ANGLE_STEP_DEG):
        one, other = (_half(coarse[0]), _half(coarse[1])) if step == ANGLE_STEP_DEG else coarse
        angles = np.array([0.0]) if model == "translation" else np.deg2rad(np.arange(0, 360, step))
        ratio = one.factor / coarse[0].factor
        for candidate in candidates(one, other, angles):
            tried = refine(*coarse, rescale(candidate, ratio, ratio), model, iterations=12, tolerance_px=0.1)
            if tried.overlap_px >= MINIMUM_OVERLAP * min(coarse[0].area_px, coarse[1].area_px):
                found.append((significance(tried.correlation, tried.overlap_px), tried.transform))
        found.sort(key=lambda scored: -scored[0])
        if found:
            best = found[0]
            elsewhere = [score for score, at in found if mean_distance(at, best[1], points) > near]
            alone = best[0] >= ALONE_FACTOR * max(elsewhere, default=0.0)
            if best[0] >= CONVINCING or (alone and best[0] >= CONVINCING_ALONE):
                break
    if not found:
        return None
    return _uncropped(fixed, moving, rescale(found[0][1], coarse[0].factor, coarse[0].factor))


def candidates(fixed: Features, moving: Features, angles_rad: Floats) -> list[Floats]:
    """The likeliest placements among turns of the moving section and all shifts, best first.

    The score of a shift is the correlation over the square root of the shared pixels, which is fair to small overlaps.
    Overlaps change slowly with the angle and are computed for every fifth.
    """
    size = int(np.ceil(np.hypot(*moving.image.shape))) + 2
    shape = tuple(scipy.fft.next_fast_len(extent + size, real=True) for extent in fixed.image.shape)
    fixed_image = scipy.fft.rfft2(fixed.image, shape)
    fixed_mask = scipy.fft.rfft2(fixed.mask.astype(np.float32), shape)
    least = MINIMUM_OVERLAP * min(fixed.area_px, moving.area_px)
    weight = np.empty(0, np.float32)
    peaks: list[tuple[float, Floats]] = []
    for index, angle in enumerate(angles_rad):
        turn = _turn_onto_square(moving, float(angle), size)
        if index % 5 == 0:
            mask = _warp(moving.mask.astype(np.float32), turn, size)
            overlap = scipy.fft.irfft2(fixed_mask * np.conj(scipy.fft.rfft2(mask, shape)), shape)
            weight = np.where(overlap > least, 1 / np.sqrt(np.maximum(overlap, 1)), 0).astype(np.float32)
        image = _warp(moving.image, turn, size)
        score = scipy.fft.irfft2(fixed_image * np.conj(scipy.fft.rfft2(image, shape)), shape) * weight
        for _ in range(2):
            at = np.unravel_index(int(score.argmax()), score.shape)
            value = float(score[at])
            # A point p of the fixed section is point p - shift of the turned square.
            shift = [
                int(i) - n if i >= extent else int(i)
                for i, n, extent in zip(at, shape, fixed.image.shape, strict=True)
            ]
            peaks.append((value, compose(turn, np.column_stack([np.eye(2), -np.array(shift, float)]))))
            _blot(score, at, 6)
    peaks.sort(key=lambda peak: -peak[0])
    return _distinct(peaks, fixed, CANDIDATES)


def _blot(score: npt.NDArray[np.float32], at: tuple[np.intp, ...], radius: int) -> None:
    """Take a peak out of a (cyclic) correlation surface."""
    rows = np.arange(int(at[0]) - radius, int(at[0]) + radius + 1) % score.shape[0]
    columns = np.arange(int(at[1]) - radius, int(at[1]) + radius + 1) % score.shape[1]
    score[np.ix_(rows, columns)] = 0


def _distinct(peaks: list[tuple[float, Floats]], fixed: Features, count: int) -> list[Floats]:
    """The best peaks that are not near a better one."""
    points = box_points((fixed.image.shape[0], fixed.image.shape[1]), 3)
    near = max(fixed.image.shape) * DISTINCT
    kept: list[Floats] = []
    for value, transform in peaks:
        if value <= 0 or len(kept) == count:
            break
        if all(mean_distance(transform, other, points) > near for other in kept):
            kept.append(transform)
    return kept


def _turn_onto_square(moving: Features, angle_rad: float, size: int) -> Floats:
    """Takes pixels of a square of ``size`` to pixels of the moving image, turned about both centres."""
    middle = (size - 1) / 2
    height, width = moving.image.shape
    shift = ((height - 1) / 2 - middle, (width - 1) / 2 - middle)
    return rigid(angle_rad, shift, (middle, middle))


def _warp(image: npt.NDArray[np.float32], to_image: Floats, size: int) -> npt.NDArray[np.float32]:
    """Resample onto a square whose pixels ``to_image`` takes to those of the image; zero outside."""
    # OpenCV counts (x, y).
    swapped = np.ascontiguousarray(to_image[::-1][:, [1, 0, 2]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    result: npt.NDArray[np.float32] = cv2.warpAffine(image, swapped, (size, size), flags=flags)
    return result


def _coarsest(fixed: Section, moving: Section) -> tuple[Features, Features]:
    """The coarsest scale that both sections have."""
    level = min(len(fixed.levels), len(moving.levels)) - 1
    return fixed.levels[level], moving.levels[level]


def _half(features: Features) -> Features:
    """Features at half the scale, for the first search."""
    image, mask = halve(features.image, features.mask)
    contrast, kept = local_contrast(image, mask, smooth_sigma_px=0.7)
    return Features(contrast, kept, features.factor * 2)


def _cropped(fixed: Section, moving: Section, transform: Floats) -> Floats:
    """From pixels of the whole images to pixels of the boxes around the tissue."""
    to_box = np.column_stack([np.eye(2), -np.array(moving.offset_yx, float)])
    from_box = np.column_stack([np.eye(2), np.array(fixed.offset_yx, float)])
    return compose(to_box, compose(transform, from_box))


def _uncropped(fixed: Section, moving: Section, transform: Floats) -> Floats:
    """The way back of `_cropped`."""
    from_box = np.column_stack([np.eye(2), np.array(moving.offset_yx, float)])
    to_box = np.column_stack([np.eye(2), -np.array(fixed.offset_yx, float)])
    return compose(from_box, compose(transform, to_box))


def _confirm(fixed: Section, moving: Section, start: Floats, model: Model) -> Floats | None:
    """A guess, refined at the coarsest scale, when it convinces there."""
    coarse = _coarsest(fixed, moving)
    factor = coarse[0].factor
    tried = refine(
        *coarse,
        rescale(_cropped(fixed, moving, start), 1 / factor, 1 / factor),
        model,
        iterations=12,
        tolerance_px=0.1,
    )
    if significance(tried.correlation, tried.overlap_px) < CONFIRMED:
        return None
    return _uncropped(fixed, moving, rescale(tried.transform, factor, factor))


def _ascend(fixed: Section, moving: Section, start: Floats, model: Model, method: Method) -> Floats:
    """From the coarsest scale to the finest, refining at each."""
    improve: Callable[[Features, Features, Floats, Model], Refinement] = (
        _by_ecc if method == "ecc" else _by_surface
    )
    transform = _cropped(fixed, moving, start)
    for level in range(min(len(fixed.levels), len(moving.levels)) - 1, -1, -1):
        one, other = fixed.levels[level], moving.levels[level]
        if one.area_px == 0 or other.area_px == 0:
            continue
        found = improve(one, other, rescale(transform, 1 / one.factor, 1 / one.factor), model)
        transform = rescale(found.transform, one.factor, one.factor)
    return _uncropped(fixed, moving, transform)


def _by_ecc(fixed: Features, moving: Features, start: Floats, model: Model) -> Refinement:
    return refine(fixed, moving, start, model, iterations=15)


def _by_surface(fixed: Features, moving: Features, start: Floats, model: Model) -> Refinement:
    """Shift and turn from parabolas through correlations beside the start, in turn, until both rest."""
    best = correlate(fixed, moving, start)
    reach_px = 1.0
    half = max(fixed.image.shape) / 2
    centre = (np.array(fixed.image.shape, float) - 1) / 2
    directions = [rigid(0, (1.0, 0.0)), rigid(0, (0.0, 1.0))]
    for _ in range(6):
        before = best.transform
        for axis in range(3 if model == "rigid" else 2):

            def moved(amount: float, axis: int = axis, base: Floats = best.transform) -> Refinement:
                if axis == 2:
                    change = rigid(amount / half, (0.0, 0.0), (centre[0], centre[1]))
                else:
                    change = identity() + amount * (directions[axis] - identity())
                return correlate(fixed, moving, compose(base, change))

            low, high = moved(-reach_px), moved(reach_px)
            bend = low.correlation - 2 * best.correlation + high.correlation
            if bend >= 0:
                peak = reach_px if high.correlation > low.correlation else -reach_px
            else:
                peak = float(np.clip(reach_px * (low.correlation - high.correlation) / (2 * bend), -2, 2))
            best = max(best, moved(peak), low, high, key=lambda tried: tried.correlation)
        moved_px = mean_distance(
            before, best.transform, box_points((fixed.image.shape[0], fixed.image.shape[1]), 3)
        )
        if moved_px < 0.02:
            if reach_px <= 0.3:
                break
            reach_px = 0.3
        elif moved_px < 0.5:
            reach_px = max(0.3, reach_px / 2)
    return best


def _judge(fixed: Section, moving: Section, transform: Floats) -> Link | None:
    """Correlation on the overlap at half the finest scale, where noise does not drown structure."""
    level = min(1, len(fixed.levels) - 1, len(moving.levels) - 1)
    one, other = fixed.levels[level], moving.levels[level]
    at_level = rescale(_cropped(fixed, moving, transform), 1 / one.factor, 1 / one.factor)
    found = correlate(one, other, at_level)
    overlap = found.overlap_px / max(min(one.area_px, other.area_px), 1)
    if overlap < MINIMUM_OVERLAP:
        return None
    return Link(transform, found.correlation, overlap, significance(found.correlation, found.overlap_px))


def mirrored(section: Section) -> Section:
    """A section as seen from behind: registered with its neighbour it shows what chance agreement looks like."""
    levels = tuple(
        replace(
            level,
            image=np.ascontiguousarray(level.image[:, ::-1]),
            mask=np.ascontiguousarray(level.mask[:, ::-1]),
        )
        for level in section.levels
    )
    top, left, bottom, right = section.tissue_box
    width = section.shape_yx[1]
    return replace(section, levels=levels, tissue_box=(top, width - right, bottom, width - left))
