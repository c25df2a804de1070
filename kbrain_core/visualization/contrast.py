"""Which grey values of a volume should be black and white on a screen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..numerics.volumes.contrast import contrast_limits
from .viewer_state import Contrast

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..formats.volume import Volume


def channel_contrast(volume: Volume, channel: int, percentiles: tuple[float, float]) -> Contrast:
    """Contrast of one channel from the percentiles of its grey values, read from the coarsest level.

    Parameters
    ----------
    volume : Volume
        The image.
    channel : int
        Which channel.
    percentiles : (float, float)
        Percentiles, in percent, that become black and white.

    Returns
    -------
    Contrast
        Whole numbers for integer volumes; white is above black even where the image is flat.
    """
    black, white = contrast_limits(volume, channel, percentiles=percentiles)
    lowest, highest = contrast_limits(volume, channel, percentiles=(0, 100))
    if volume.dtype.kind in "ui":
        black, white = math.floor(black), math.ceil(white)
        lowest, highest = math.floor(lowest), math.ceil(highest)
    return Contrast(black, white, min(lowest, black), max(highest, white))


def stretched(plane: NDArray[Any], contrast: Contrast) -> NDArray[np.float32]:
    """Grey values as the page shows them: 0 is black, 1 is white."""
    span = contrast.white - contrast.black
    values = (np.nan_to_num(plane.astype(np.float32)) - np.float32(contrast.black)) / np.float32(span)
    clipped: NDArray[np.float32] = np.clip(values, 0, 1).astype(np.float32)
    return clipped
