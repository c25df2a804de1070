"""Brightness of planes along depth and from section to section: loss of light with depth, contrast of each section."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_DEPTH_GAIN = 20.0
"""Most that a deep plane is brightened: beyond it there is more noise than light."""


@dataclass(frozen=True)
class DepthLoss:
    """Exponential loss of light with depth.

    Attributes
    ----------
    per_plane : float
        Attenuation per plane; a plane k deep has ``exp(-per_plane * k)`` of the light of the first. Negative when planes
        get brighter (the light enters from the other side).
    low, high : float
        95 % confidence limits of `per_plane`.
    """

    per_plane: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the confidence limits leave no doubt that light is lost."""
        return self.low > 0 or self.high < 0

    def gain(self, depth: int, planes: int) -> float:
        """Return the factor that lifts a plane to the brightest end of the stack.

        Parameters
        ----------
        depth : int
            Index of the plane.
        planes : int
            Planes of the whole stack.
        """
        from_bright_end = depth if self.per_plane > 0 else depth - (planes - 1)
        return min(MAX_DEPTH_GAIN, math.exp(self.per_plane * from_bright_end))


def fit_depth_loss(depths: Sequence[int], light: Sequence[float]) -> DepthLoss | None:
    """Fit the loss of light with depth to the mean light of planes (Theil-Sen line through the logarithms).

    The median of all slopes between two planes is not moved by single bright or empty planes.

    Parameters
    ----------
    depths : sequence of int
        Index of each plane; a plane may be listed once per tile.
    light : sequence of float
        Mean of the plane above the dark level; planes without light are left out.

    Returns
    -------
    DepthLoss or None
        None with light in fewer than 5 depths.
    """
    import scipy.stats  # half a second, and only stacks need it

    by_depth: dict[int, list[float]] = {}
    for depth, value in zip(depths, light):
        if value > 0:
            by_depth.setdefault(depth, []).append(value)
    if len(by_depth) < 5:
        return None
    places = sorted(by_depth)
    logarithms = [math.log(float(np.median(by_depth[depth]))) for depth in places]
    slope, _, low, high = scipy.stats.theilslopes(logarithms, places)
    return DepthLoss(-float(slope), -float(high), -float(low))


@dataclass(frozen=True)
class Levels:
    """Grey levels of a section: median and spread (half the distance from the 16th to the 84th percentile)."""

    median: float
    spread: float


def levels_of(sample: npt.NDArray[Any]) -> Levels:
    """Return the grey levels of pixels of one section; those of whole numbers to a fraction, by a fixed dither."""
    if np.array_equal(sample, np.rint(sample)):
        sample = sample + np.random.default_rng(0).random(sample.shape, np.float32) - np.float32(0.5)
    low, median, high = (float(value) for value in np.percentile(sample, (15.87, 50.0, 84.13)))
    return Levels(median, (high - low) / 2)


def matching_line(section: Levels, wanted: Levels) -> tuple[float, float]:
    """Return factor and offset that bring a section's median and spread to the wanted ones.

    The factor stays within 1/4 .. 4: a section without structure must not become all noise.
    """
    factor = 1.0 if section.spread <= 0 else min(4.0, max(0.25, wanted.spread / section.spread))
    return factor, wanted.median - factor * section.median
