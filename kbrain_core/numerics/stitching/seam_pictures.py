"""Pictures of overlaps: what a seam looks like before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .phase_correlation import Float3, overlap_slices
from .tile_filter import Signal
from .tile_images import WHOLE_TILE_BYTES, TileFiles
from .tile_layout import Site
from .tile_pairs import read_sum


def colour_seam(
    first: Site, second: Site, offsets: Sequence[Float3], folder: Path, *, longest_px: int = 600
) -> list[NDArray[np.uint8]]:
    """Overlap of two tiles at several offsets, the first magenta and the second green: grey where they agree.

    Parameters
    ----------
    first, second : Site
    offsets : sequence of (3,) float
        Origin of the second tile in the frame of the first, px.
    folder : Path
        The folder that tile names are relative to.
    longest_px : int
        Of a longer overlap the stretch with the most contrast is shown.

    Returns
    -------
    list of (Y, X, 3) ndarray of uint8
        The same part of the first tile at every offset.
    """
    places = [(round(z), round(y), round(x)) for z, y, x in offsets]
    shared = [overlap_slices(first.shape, second.shape, place, (0, 0, 0))[0] for place in places]
    common = tuple(
        slice(max(box[axis].start for box in shared), min(box[axis].stop for box in shared))
        for axis in range(3)
    )
    if min(part.stop - part.start for part in common) < 1:
        return []
    with TileFiles(folder, WHOLE_TILE_BYTES) as files:
        middle = (common[0].start + common[0].stop) // 2
        plane = (slice(middle, middle + 1), common[1], common[2])
        side = read_sum(first, files, plane)[0]
        part = _liveliest(side, longest_px)
        low, high = np.percentile(side[part], (1, 99.7))
        scale = 255 / max(float(high - low), 1e-6)
        magenta = np.clip((side[part] - low) * scale, 0, 255).astype(np.uint8)
        views = []
        for place in places:
            moved = tuple(slice(p.start - at, p.stop - at) for p, at in zip(plane, place, strict=True))
            side = read_sum(second, files, (moved[0], moved[1], moved[2]))[0][part]
            green = np.clip((side - low) * scale, 0, 255).astype(np.uint8)
            views.append(cv2.merge([magenta, green, magenta]))
    return views


def _liveliest(plane: Signal, longest: int) -> tuple[slice, slice]:
    """The part of a plane, at most so long, where grey values vary most."""
    parts = []
    for axis, size in enumerate(plane.shape):
        starts = sorted({*range(0, max(1, size - longest + 1), max(1, longest // 3)), max(0, size - longest)})
        spread = [float(np.std(np.take(plane, range(s, min(size, s + longest)), axis=axis))) for s in starts]
        start = starts[int(np.argmax(spread))]
        parts.append(slice(start, min(size, start + longest)))
    return parts[0], parts[1]
