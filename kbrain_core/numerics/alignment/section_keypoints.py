"""Registration of sections by matched SIFT key points (doi 10.1023/B:VISI.0000029664.99615.94) and their consensus."""

from __future__ import annotations

import cv2
import numpy as np

from .plane_transforms import Floats, Model, apply, compose, fit, rescale
from .section_features import CLIP, Image, Section

KEYPOINTS = 4000
LONGEST_SIDE_PX = 480
"""Neighbouring sections are alike in their larger structure; key points of the smallest would be noise."""
RATIO = 0.9
"""Of the distances to the best and the second match. Loose, since sections differ: the consensus sorts the rest out."""
TOLERANCE = 0.01
"""Share of the longest side within which a match agrees with a transform: sections differ by real tissue."""
TRIALS = 6000
BATCH = 500
SCALE_TOLERANCE = 0.1
"""Sections of one microscope: two matches whose distances differ by more are not of the same two structures."""
LEAST_MATCHES = 10
"""Agreeing matches below which a consensus is chance: unrelated sections reach 7 or 8."""


def register_by_keypoints(fixed: Section, moving: Section, model: Model) -> Floats | None:
    """Find how one section lies on another from key points; no start is needed.

    Parameters
    ----------
    fixed, moving : Section
    model : {"translation", "rigid", "similarity", "affine"}

    Returns
    -------
    fixed_to_moving : (2, 3) ndarray in pixels of the sections, or None when too few matches agree
    """
    level = 0
    while (
        level + 1 < min(len(fixed.levels), len(moving.levels))
        and max(fixed.levels[level].image.shape) > LONGEST_SIDE_PX
    ):
        level += 1
    points, descriptors = _keypoints(fixed, level)
    other_points, other_descriptors = _keypoints(moving, level)
    if min(len(points), len(other_points)) < LEAST_MATCHES:
        return None
    pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(descriptors, other_descriptors, k=2)
    good = [pair[0] for pair in pairs if len(pair) == 2 and pair[0].distance < RATIO * pair[1].distance]
    if len(good) < LEAST_MATCHES:
        return None
    source = points[[match.queryIdx for match in good]]
    target = other_points[[match.trainIdx for match in good]]
    found = consensus(source, target, model, tolerance_px=TOLERANCE * max(fixed.levels[level].image.shape))
    if found is None:
        return None
    factor = fixed.levels[level].factor
    to_whole = np.column_stack([np.eye(2), np.array(moving.offset_yx, float)])
    from_whole = np.column_stack([np.eye(2), -np.array(fixed.offset_yx, float)])
    return compose(to_whole, compose(rescale(found, factor, factor), from_whole))


def _keypoints(section: Section, level: int) -> tuple[Floats, Image]:
    features = section.levels[level]
    image = np.clip(features.image * (127 / CLIP) + 128, 0, 255).astype(np.uint8)
    found, descriptors = cv2.SIFT.create(KEYPOINTS).detectAndCompute(image, features.mask)
    if descriptors is None or len(found) == 0:
        return np.empty((0, 2)), np.empty((0, 128), np.float32)
    return np.array([key.pt for key in found])[:, ::-1].astype(np.float64), np.asarray(
        descriptors, np.float32
    )


def consensus(source: Floats, target: Floats, model: Model, *, tolerance_px: float) -> Floats | None:
    """The transform most matches agree on (RANSAC, doi 10.1145/358669.358692), fitted to all that do.

    Every trial turns, shifts and scales so that two matches fit; the model is fitted to those that agree with the best.

    Parameters
    ----------
    source, target : (N, 2) ndarray
        Matched points, most of which may be wrong.
    model : {"translation", "rigid", "similarity", "affine"}
    tolerance_px : float
        How far apart a match may lie that agrees.

    Returns
    -------
    transform : (2, 3) ndarray, or None when fewer than 10 matches agree
    """
    # The same points give the same answer: the draw is seeded.
    rng = np.random.default_rng(0)
    # A point as y + ix: a turn and a scaling are then one complex factor.
    start, end = source[:, 0] + 1j * source[:, 1], target[:, 0] + 1j * target[:, 1]
    best = np.zeros(len(source), bool)
    for _ in range(0, TRIALS, BATCH):
        one, other = rng.integers(len(source), size=(2, BATCH))
        span = start[other] - start[one]
        usable = np.abs(span) > 8 * tolerance_px
        one, other, span = one[usable], other[usable], span[usable]
        factor = (end[other] - end[one]) / span
        if model == "translation":
            factor = np.where(np.abs(factor - 1) < SCALE_TOLERANCE, 1.0, 0)
        likely = np.abs(np.abs(factor) - 1) < SCALE_TOLERANCE
        one, factor = one[likely], factor[likely] / np.abs(factor[likely])
        distance = np.abs(
            factor[:, None] * (start[None] - start[one][:, None]) + end[one][:, None] - end[None]
        )
        agree = distance < tolerance_px
        if len(agree) and agree.sum(axis=1).max() > best.sum():
            best = agree[agree.sum(axis=1).argmax()]
        if best.mean() > 0.5:
            break
    if best.sum() < LEAST_MATCHES:
        return None
    transform = fit(source[best], target[best], model)
    for _ in range(5):
        distance = np.linalg.norm(apply(transform, source) - target, axis=1)
        # Where sections agree better than the tolerance, only the better matches are kept.
        near = min(tolerance_px, max(3 * float(np.median(distance[best])), 1.0))
        now = distance < near
        if now.sum() < LEAST_MATCHES or (now == best).all():
            break
        best = now
        transform = fit(source[best], target[best], model)
    return transform
