"""Scenes that tiles and sections are cut from: textures a microscope could have seen, from one seed.

Grey values are fractions of white (0..1), float32. Every scene is blurred to well below the Nyquist frequency, so that
`subpixel_crop` (an 8-tap windowed sinc) moves it by a fraction of a pixel with an error far below the camera's noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import cv2
import numpy as np
from scipy import ndimage

SceneKind = Literal["em", "nuclei", "flat"]

# Half the taps of the windowed sinc, and so the margin a crop needs around it in the scene.
SINC_RADIUS = 4


def subpixel_crop(scene: np.ndarray, start: tuple[float, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Cut a box that starts between the pixels of a scene.

    Parameters
    ----------
    scene : (Y, X) or (Z, Y, X) ndarray of float32
        Needs `SINC_RADIUS` pixels around the box in y and x; z is continued by its edge value.
    start : float per axis
        Position of the box's first pixel centre, in pixels of the scene.
    shape : int per axis
        Size of the box in pixels.

    Returns
    -------
    ndarray of float32 of `shape`
    """
    if scene.ndim == 3:
        planes = _planes_at(scene, start[0], shape[0])
        return np.stack([subpixel_crop(plane, start[1:], shape[1:]) for plane in planes])
    first = [int(np.floor(value)) for value in start]
    low = [value - SINC_RADIUS for value in first]
    high = [value + size + SINC_RADIUS for value, size in zip(first, shape, strict=True)]
    if min(low) < 0 or high[0] > scene.shape[0] or high[1] > scene.shape[1]:
        raise ValueError(
            f"crop {start} of {shape} needs {SINC_RADIUS} px more than the scene {scene.shape} has"
        )
    taps_y, taps_x = (_sinc_taps(value - np.floor(value)) for value in start)
    source = np.ascontiguousarray(scene[low[0] : high[0], low[1] : high[1]])
    moved = cv2.sepFilter2D(source, cv2.CV_32F, taps_x, taps_y, borderType=cv2.BORDER_REFLECT_101)
    return moved[SINC_RADIUS:-SINC_RADIUS, SINC_RADIUS:-SINC_RADIUS]


def _planes_at(scene: np.ndarray, start: float, count: int) -> np.ndarray:
    """(count, Y, X) planes of a volume from a fractional first plane on."""
    first = int(np.floor(start))
    taps = _sinc_taps(start - first)
    index = np.clip(np.arange(first - SINC_RADIUS, first + count + SINC_RADIUS), 0, len(scene) - 1)
    moved = ndimage.correlate1d(scene[index], taps.ravel(), axis=0, mode="nearest")
    return moved[SINC_RADIUS:-SINC_RADIUS]


def _sinc_taps(fraction: float) -> np.ndarray:
    """9 correlation taps (Lanczos 4) that read the signal `fraction` pixels further on; they add up to 1."""
    distance = np.arange(-SINC_RADIUS, SINC_RADIUS + 1) - fraction
    taps = np.sinc(distance) * np.sinc(distance / SINC_RADIUS) * (np.abs(distance) < SINC_RADIUS)
    return (taps / taps.sum()).astype(np.float32)


def scene_2d(kind: SceneKind, shape: tuple[int, int], seed: int, empty_fraction: float = 0.3) -> np.ndarray:
    """One (Y, X) scene of a kind.

    Parameters
    ----------
    kind : "em", "nuclei" or "flat"
        Membranes, vesicles and cytoplasm texture; bright nuclei with empty areas; nothing at all (mid grey).
    shape : (y, x) int, pixels
    seed : int
    empty_fraction : float
        Share of a nuclei scene's area that holds nothing but background.
    """
    return next(scene_sections(kind, shape, 1, seed, empty_fraction=empty_fraction))


def scene_sections(
    kind: SceneKind,
    shape: tuple[int, int],
    count: int,
    seed: int,
    *,
    change: float = 0.12,
    empty_fraction: float = 0.3,
) -> Iterator[np.ndarray]:
    """`count` (Y, X) scenes whose structure changes smoothly from one to the next, like serial sections.

    Parameters
    ----------
    change : float
        Phase in radians by which membranes and cell outlines move on per section: 0 repeats the section, 0.12 keeps
        neighbours alike (correlation about 0.8) and makes sections 10 apart different.
    """
    if kind == "em":
        yield from _em_sections(shape, count, seed, change)
    elif kind == "nuclei":
        yield from _nuclei_sections(shape, count, seed, change, empty_fraction)
    elif kind == "flat":
        for _ in range(count):
            yield np.full(shape, 0.5, np.float32)
    else:
        raise ValueError(f"scene kind is em, nuclei or flat, not {kind!r}")


class _TurningField:
    """A smooth random field that turns into another and on: cos(phase) A + sin(phase) B, unit variance."""

    def __init__(self, shape: tuple[int, int], sigma_px: float, rng: np.random.Generator) -> None:
        # Drawn at a quarter of its correlation length: the same field for a fraction of the time.
        self.shape = shape
        step = max(1, int(sigma_px / 3))
        coarse = tuple(-(-size // step) + 8 for size in shape)
        self.pair = [band_noise(coarse, sigma_px / step, rng) for _ in range(2)]
        self.step = step

    def at(self, phase: float) -> np.ndarray:
        """(Y, X) float32 field at a phase in radians."""
        coarse = np.float32(np.cos(phase)) * self.pair[0] + np.float32(np.sin(phase)) * self.pair[1]
        if self.step == 1:
            return coarse[: self.shape[0], : self.shape[1]].copy()
        size = (coarse.shape[1] * self.step, coarse.shape[0] * self.step)
        full = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
        return full[: self.shape[0], : self.shape[1]]


def band_noise(shape: tuple[int, ...], sigma_px: float, rng: np.random.Generator) -> np.ndarray:
    """White noise blurred by a Gaussian of `sigma_px`, scaled back to unit variance; (Y, X) float32."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT)
    # The variance left after a Gaussian blur of white noise is 1 / (4 pi sigma^2).
    return blurred * np.float32(2.0 * np.sqrt(np.pi) * sigma_px)


def _em_sections(shape: tuple[int, int], count: int, seed: int, change: float) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    outlines = [_TurningField(shape, sigma, rng) for sigma in (34.0, 15.0)]
    shading = _TurningField(shape, 26.0, rng)
    vesicles = _Vesicles(shape, count, rng)
    texture = band_noise(shape, 1.6, rng)
    # Fine texture (ribosomes, cut filaments) is mostly new in each section; outlines go on.
    keep = np.float32(np.exp(-4.0 * change))
    for section in range(count):
        phase = change * section
        scene = 0.66 + 0.05 * shading.at(phase) + 0.05 * texture
        for field, width in zip(outlines, (0.055, 0.09), strict=True):
            # The zero line of a smooth field is a closed curve: a membrane some 4 px wide.
            scene -= 0.34 * np.exp(-np.square(field.at(phase) / np.float32(width)))
        vesicles.paint(scene, section)
        yield np.clip(cv2.GaussianBlur(scene, (0, 0), 1.0), 0.02, 0.98)
        if section + 1 < count:
            texture = keep * texture + np.sqrt(1 - keep * keep) * band_noise(shape, 1.6, rng)


class _Vesicles:
    """Clusters of small dark discs with a bright core, each there for a few sections."""

    def __init__(self, shape: tuple[int, int], sections: int, rng: np.random.Generator) -> None:
        clusters = max(1, int(shape[0] * shape[1] * (sections + 4) / 5 / 60_000))
        centre = rng.uniform((0, 0, -2), (*shape, sections + 2), (clusters, 3)).repeat(24, axis=0)
        self.centres = centre + rng.normal(0, 1, centre.shape) * (22, 22, 1.0)
        yy, xx = np.mgrid[-8:9, -8:9].astype(np.float32)
        radius = np.hypot(yy, xx)
        self.stamp = (0.28 * np.exp(-np.square((radius - 4.0) / 1.6))).astype(np.float32)

    def paint(self, scene: np.ndarray, section: int) -> None:
        """Darken the scene (Y, X) in place where this section cuts a vesicle."""
        here = self.centres[np.abs(self.centres[:, 2] - section) < 1.5]
        inside = np.all((here[:, :2] >= 9) & (here[:, :2] < np.array(scene.shape) - 9), axis=1)
        for y, x in here[inside, :2].astype(int):
            scene[y - 8 : y + 9, x - 8 : x + 9] -= self.stamp


def _nuclei_sections(
    shape: tuple[int, int], count: int, seed: int, change: float, empty_fraction: float
) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    patches = _TurningField(shape, 180.0, rng).at(0.0)
    limit = np.quantile(patches[::16, ::16], empty_fraction)
    spacing = 46.0
    number = int(shape[0] * shape[1] * (1 + 0.2 * (count - 1)) / spacing**2)
    y, x = rng.uniform(0, shape[0] - 1, number), rng.uniform(0, shape[1] - 1, number)
    z = rng.uniform(-2, count + 2, number) if count > 1 else np.zeros(number)
    radii = rng.uniform(7, 13, (number, 2))
    angle, level = rng.uniform(0, np.pi, number), rng.uniform(0.25, 0.75, number)
    occupied = patches[y.astype(int), x.astype(int)] > limit
    # Chromatin: what registration finds inside a nucleus.
    texture = _TurningField(shape, 2.2, rng)
    for section in range(count):
        scene = np.zeros(shape, np.float32)
        # A nucleus is cut through its height of some 8 sections: it grows, shrinks and goes.
        share = np.sqrt(np.clip(1 - np.square((z - section) * change / 0.5), 0, 1))
        for index in np.flatnonzero(occupied & (share > 0.3)):
            _add_nucleus(scene, (y[index], x[index]), radii[index] * share[index], angle[index], level[index])
        scene *= 1 + 0.35 * texture.at(change * section)
        yield np.clip(cv2.GaussianBlur(scene, (0, 0), 1.0) + np.float32(0.06), 0.02, 0.98)


def _add_nucleus(
    scene: np.ndarray, centre: tuple[float, float], radii: np.ndarray, angle: float, level: float
) -> None:
    """Add one soft-edged ellipse to the scene (Y, X) in place."""
    reach = int(radii.max() * 1.4) + 2
    y0, x0 = int(centre[0]), int(centre[1])
    rows = slice(max(0, y0 - reach), min(scene.shape[0], y0 + reach + 1))
    cols = slice(max(0, x0 - reach), min(scene.shape[1], x0 + reach + 1))
    yy = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - np.float32(centre[0])
    xx = np.arange(cols.start, cols.stop, dtype=np.float32)[None, :] - np.float32(centre[1])
    along = (yy * np.cos(angle) + xx * np.sin(angle)) / radii[0]
    across = (xx * np.cos(angle) - yy * np.sin(angle)) / radii[1]
    distance = np.sqrt(along**2 + across**2)
    scene[rows, cols] = np.maximum(scene[rows, cols], level * np.clip((1.15 - distance) / 0.3, 0, 1))


def scene_3d(
    kind: SceneKind, shape: tuple[int, int, int], seed: int, empty_fraction: float = 0.3
) -> np.ndarray:
    """One (Z, Y, X) scene: band-limited texture with blobs ("em": dense; "nuclei": sparse), or flat.

    Planes are independent enough (blur of 1.2 planes in z) that a shift in z can be found.
    """
    if kind == "flat":
        return np.full(shape, 0.5, np.float32)
    rng = np.random.default_rng(seed)
    sigma_z = 1.2
    fine = np.stack([band_noise(shape[1:], 1.8, rng) for _ in range(shape[0])])
    fine = ndimage.gaussian_filter1d(fine, sigma_z, axis=0, mode="nearest") * np.sqrt(
        2 * np.sqrt(np.pi) * sigma_z
    )
    blobs = _blobs_3d(shape, 10.0 if kind == "em" else 26.0, rng)
    if kind == "em":
        return np.clip(0.6 + 0.07 * fine - 0.3 * blobs, 0.02, 0.98).astype(np.float32)
    patches = _TurningField(shape[1:], 90.0, rng).at(0.0)
    limit = np.quantile(patches[::8, ::8], empty_fraction)
    edge = 1 / (1 + np.exp(-(patches - limit) * 12))
    return np.clip(0.06 + 0.7 * blobs * edge * (1 + 0.35 * fine), 0.02, 0.98).astype(np.float32)


def _blobs_3d(shape: tuple[int, int, int], spacing_px: float, rng: np.random.Generator) -> np.ndarray:
    """(Z, Y, X) field of soft blobs, about one per cube of `spacing_px`, values 0..1."""
    field = np.zeros(shape, np.float32)
    number = int(np.prod(shape) / (spacing_px**3 * 0.5))
    centres = rng.uniform(0, 1, (number, 3)) * (np.array(shape) - 1)
    np.add.at(field, tuple(centres.round().astype(int).T), 1.0)
    sigma = (1.6, spacing_px / 6, spacing_px / 6)
    field = ndimage.gaussian_filter(field, sigma, mode="constant")
    return np.clip(field / np.float32(0.6 / ((2 * np.pi) ** 1.5 * np.prod(sigma))), 0, 1)
