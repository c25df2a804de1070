"""The fixed pattern of a camera (dust, scratches), measured on a bounded sample of a mosaic's tiles."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .tile_filter import Signal, fixed_pattern, reduce_plane
from .tile_images import TileFiles
from .tile_layout import Mosaic, Site
from .tile_pairs import Reduction, read_sum

# Tiles that the fixed pattern is the median of; fewer than the least would leave the sample in it.
PATTERN_TILES, PATTERN_LEAST = 25, 8


@dataclass(frozen=True)
class PatternTask:
    """Sites whose fixed pattern is wanted, all of one size."""

    key: str
    folder: Path
    sites: tuple[Site, ...] = field(repr=False)
    reduction: Reduction


def measure_pattern(task: PatternTask) -> Signal:
    """Fixed pattern of the camera from the middle planes of some sites."""
    with TileFiles(task.folder, 0) as files:
        planes = (_middle_plane(site, files, task.reduction.yx) for site in task.sites)
        return fixed_pattern(planes, len(task.sites), task.reduction.yx)


def _middle_plane(site: Site, files: TileFiles, factor: int) -> Signal:
    depth, height, width = site.shape
    middle = slice(depth // 2, depth // 2 + 1)
    return reduce_plane(read_sum(site, files, (middle, slice(0, height), slice(0, width)))[0], factor)


def pattern_tasks(mosaic: Mosaic, folder: Path, reduction: Reduction) -> list[PatternTask]:
    """One task per tile size that has enough tiles with something on them."""
    by_size: dict[tuple[int, int], list[Site]] = {}
    for site in mosaic.sites:
        if not site.blank:
            by_size.setdefault((site.shape[1], site.shape[2]), []).append(site)
    tasks = []
    for (height, width), sites in sorted(by_size.items()):
        if len(sites) >= PATTERN_LEAST:
            chosen = np.unique(np.linspace(0, len(sites) - 1, PATTERN_TILES).round().astype(int))
            tasks.append(
                PatternTask(f"pattern-{height}x{width}", folder, tuple(sites[i] for i in chosen), reduction)
            )
    return tasks
