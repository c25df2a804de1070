"""What sits still in every tile and is not smooth: dust and stains on lenses and camera windows.

Left alone, dust not only shows: it is the same in two neighbouring tiles, so registration finds a false match at shift zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.floating[Any]]

MIN_PLANES = 9
"""Fewest planes: with fewer, bright objects that happen to coincide look like dust."""

_CLIP = 3.0  # robust spreads: an object counts no more than strong texture does
_SEED, _GROW = 6.0, 2.5  # robust spreads of the averaged field: certain dust, and how far it reaches
_BLUR_PX = 1.5  # dust is out of focus, so single pixels are noise
_SMOOTH_PX = 32  # what varies over more than this is shading or content, not dust


@dataclass(frozen=True)
class PatternSum:
    """Sums over planes from which the fixed pattern is made; those of several groups of planes add up.

    Attributes
    ----------
    residual : (Y, X) ndarray of float32
        Sum of the planes' clipped relative residuals, each over the square of its spread.
    weight : float
        Sum of the weights.
    planes : int
        Planes summed.
    """

    residual: Float
    weight: float
    planes: int

    def __add__(self, other: PatternSum) -> PatternSum:
        """Join the sums of two groups of planes."""
        return PatternSum(
            self.residual + other.residual, self.weight + other.weight, self.planes + other.planes
        )


def pattern_of_plane(flat: Float) -> PatternSum | None:
    """Return the contribution of one plane whose dark level and smooth shading are corrected.

    Parameters
    ----------
    flat : (Y, X) ndarray of float32

    Returns
    -------
    PatternSum or None
        None for a plane without light or without any texture.
    """
    sample = flat[::8, ::8]
    level = float(np.median(sample))
    if level <= 0:
        return None
    spread = 1.4826 * float(np.median(np.abs(sample - level))) / level
    if spread < 1e-4:
        return None
    residual = flat * np.float32(1.0 / level)
    residual -= 1.0
    np.clip(residual, -_CLIP * spread, _CLIP * spread, out=residual)
    weight = 1.0 / spread**2
    residual *= np.float32(weight)
    return PatternSum(residual, weight, 1)


def fixed_pattern(total: PatternSum) -> Float:
    """Find dust in the average of the planes' residuals.

    Only what stands out from the average's own noise counts: spots above 6 robust spreads, followed outwards to 2.5. So
    content that happens to coincide in a few tiles is not taken for dust.

    Parameters
    ----------
    total : PatternSum
        Over at least `MIN_PLANES` planes.

    Returns
    -------
    (Y, X) ndarray of float32
        Relative brightness: 1 but at the spots.
    """
    height, width = total.residual.shape
    if total.planes < MIN_PLANES:
        return np.ones((height, width), np.float32)
    mean = total.residual / np.float32(total.weight)
    small = (max(1, width // _SMOOTH_PX), max(1, height // _SMOOTH_PX))
    coarse = cv2.resize(mean, small, interpolation=cv2.INTER_AREA)
    if min(small) >= 3:
        coarse = cv2.medianBlur(coarse, 3)  # so that a spot does not pull its surroundings along
    mean -= cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    blurred = cv2.GaussianBlur(mean, (0, 0), _BLUR_PX)
    noise = 1.4826 * float(np.median(np.abs(blurred[::2, ::2])))
    if noise == 0.0:
        return np.ones((height, width), np.float32)
    size = np.abs(blurred)
    _, places = cv2.connectedComponents((size > _GROW * noise).astype(np.uint8), connectivity=8)
    certain = np.zeros(int(places.max()) + 1, bool)
    certain[places[size > _SEED * noise]] = True
    certain[0] = False
    spots = certain[places]
    soft = cv2.GaussianBlur(cv2.dilate(spots.astype(np.float32), np.ones((5, 5))), (0, 0), _BLUR_PX)
    return np.asarray(np.maximum(1.0 + soft * cv2.GaussianBlur(mean, (0, 0), _BLUR_PX / 2), 0.05), np.float32)
