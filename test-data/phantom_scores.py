"""How far a result is from the planted truth: one definition for tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from phantom_sections import SectionStack
from phantom_tiles import TileGrid, TileKey


@dataclass(frozen=True)
class TileScore:
    """Errors of found tile positions, in pixels.

    Attributes
    ----------
    median_px, p95_px, max_px : float
        Distance of each tile from its true place, after the median offset of its section is removed. Blank tiles are
        left out: nothing but the stage says where they are.
    seams : int
        Neighbouring pairs (left-right, above-below) of tiles that are not blank or missing.
    seams_off : int
        Of these, pairs whose relative position is wrong by more than 2 px.
    blank_max_px : float
        Largest distance of a blank tile from where the stage model puts it (its ideal place, fitted on the rest).
    """

    median_px: float
    p95_px: float
    max_px: float
    seams: int
    seams_off: int
    blank_max_px: float


def score_tiles(grid: TileGrid, found_px: dict[TileKey, tuple[float, float, float]]) -> TileScore:
    """Compare found positions with the truth.

    Parameters
    ----------
    grid : TileGrid
    found_px : {(section, row, col): (z, y, x)}
        Positions in pixels, any common origin per section. Tiles that are not in it are ignored, unless none is left.
    """
    errors: dict[TileKey, np.ndarray] = {}
    blanks = [0.0]
    for section in range(grid.shape[0]):
        tiles = [tile for tile in grid.tiles if tile.key in found_px and tile.key[0] == section]
        seen = [tile for tile in tiles if tile.state not in ("blank", "missing")]
        if not seen:
            continue
        offsets = {tile.key: np.subtract(found_px[tile.key], tile.true_px) for tile in seen}
        middle = np.median(list(offsets.values()), axis=0)
        errors |= {key: value - middle for key, value in offsets.items()}
        blanks += _blank_distances(tiles, found_px)
    distance = np.array([np.linalg.norm(value) for value in errors.values()])
    seams = [
        float(np.linalg.norm(error - errors[other]))
        for (z, row, col), error in errors.items()
        for other in ((z, row + 1, col), (z, row, col + 1))
        if other in errors
    ]
    return TileScore(
        median_px=float(np.median(distance)),
        p95_px=float(np.percentile(distance, 95)),
        max_px=float(distance.max()),
        seams=len(seams),
        seams_off=int(np.sum(np.array(seams) > 2)),
        blank_max_px=max(blanks),
    )


def _blank_distances(tiles, found_px) -> list[float]:
    """Distance of each blank tile from an affine stage model fitted to the found places of the others."""
    good = [tile for tile in tiles if tile.state == "ok"]
    blank = [tile for tile in tiles if tile.state == "blank"]
    if not blank or len(good) < 4:
        return []
    design = np.array([[*tile.stage_px[1:], 1.0] for tile in good])
    model, *_ = np.linalg.lstsq(design, np.array([found_px[tile.key] for tile in good]), rcond=None)
    fitted = np.array([[*tile.stage_px[1:], 1.0] for tile in blank]) @ model
    return [float(np.linalg.norm(found_px[tile.key] - at)) for tile, at in zip(blank, fitted, strict=True)]


def section_errors(stack: SectionStack, found: np.ndarray) -> np.ndarray:
    """Error of each section's place relative to the section before it, in pixels.

    Chains have one free transform in common, so pairs are compared: a grid of points of section z - 1 goes through
    the found and the true pair transforms to section z, and the mean distance counts.

    Parameters
    ----------
    stack : SectionStack
    found : (Z, 2, 3) ndarray
        Transforms from the output's pixels to each section's pixels, in the order of `SectionStack.transforms`
        (canvas offsets cancel out).

    Returns
    -------
    (Z - 1,) ndarray of float64; NaN where either section is missing.
    """
    return np.array(
        [
            np.nan
            if {z - 1, z} & set(stack.missing)
            else pair_error(stack.tissue, stack.transforms[z - 1 : z + 1], found[z - 1 : z + 1])
            for z in range(1, len(stack.transforms))
        ]
    )


def pair_error(tissue: np.ndarray, true: np.ndarray, found: np.ndarray) -> float:
    """Mean distance in pixels of tissue points moved from one section to another by true and by found transforms."""
    yy, xx = np.nonzero(tissue)
    step = max(1, len(yy) // 400)
    aligned = np.stack([yy[::step], xx[::step]]).astype(float)
    first = true[0][:, :2] @ aligned + true[0][:, 2:]
    expected = true[1][:, :2] @ aligned + true[1][:, 2:]
    output = np.linalg.solve(found[0][:, :2], first - found[0][:, 2:])
    got = found[1][:, :2] @ output + found[1][:, 2:]
    return float(np.mean(np.linalg.norm(got - expected, axis=0)))


def global_section_errors(stack: SectionStack, found: np.ndarray) -> np.ndarray:
    """(Z,) mean error in pixels of every section after the best common rigid transform of the output is removed.

    Unlike `section_errors` this shows drift: small errors of pairs that add up.
    """
    yy, xx = np.nonzero(stack.tissue)
    step = max(1, len(yy) // 200)
    points = np.stack([yy[::step], xx[::step]]).astype(float)
    # Where each aligned point ends up in the output.
    landed = np.stack(
        [
            np.linalg.solve(there[:, :2], true[:, :2] @ points + true[:, 2:] - there[:, 2:])
            for true, there in zip(stack.transforms, found, strict=True)
        ]
    )
    whole = np.array([z not in stack.missing and z not in stack.torn for z in range(len(found))])
    target = np.median(landed[whole], axis=0)
    matrix, shift = _rigid_fit(points, target)
    moved = matrix @ points + shift
    errors = np.linalg.norm(landed - moved, axis=1).mean(axis=1)
    return np.where([z in stack.missing for z in range(len(found))], np.nan, errors)


def _rigid_fit(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (2, 2) and shift (2, 1) that move points (2, N) best onto others (Kabsch)."""
    a, b = source.mean(axis=1, keepdims=True), target.mean(axis=1, keepdims=True)
    u, _, vt = np.linalg.svd((target - b) @ (source - a).T)
    matrix = u @ np.diag([1, np.linalg.det(u @ vt)]) @ vt
    return matrix, b - matrix @ a
