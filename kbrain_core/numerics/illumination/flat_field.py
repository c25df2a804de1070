"""Flat field and dark level of a microscope, estimated from its own tiles, and their correction.

The model of a tile is ``image = brightness * flat * content + dark``: ``flat`` (mean 1) is the same in every tile of a
channel, ``brightness`` is one number per tile, and the content differs from tile to tile. That is the idea of BaSiC
[1]_ (a matrix of tiles is low rank plus sparse), solved here as a robust regression of a smooth surface instead of a
nuclear norm: it takes a second for hundreds of tiles, gives a standard error with each term, and works from about ten
tiles of crowded content. `fixed_pattern` adds what is not smooth and sits still in every tile (dust).

References
----------
.. [1] Peng et al., A BaSiC tool for background and shading correction of optical microscopy images, Nature
   Communications 8, 14836 (2017). doi:10.1038/ncomms14836
.. [2] Smith et al., CIDRE: an illumination-correction method for optical microscopy, Nature Methods 12, 404 (2015).
   doi:10.1038/nmeth.3323 (shading and offset are told apart by content of different brightness)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.floating[Any]]

MIN_SITES = 6
"""Fewest places of the sample, with light, in a channel: with fewer, content and shading cannot be told apart."""

GRID_PX = 64
"""Longer side of the grid on which shading is fitted: shading is smooth, and a small grid averages noise away."""

DEGREE = 6
"""Total degree of the surface, in Legendre polynomials: enough for the fourth power of the cosine, also off centre."""

MAX_RESIDUAL_PERCENT = 5.0
"""Residual shading that a correction may leave: the pass mark. Seams of a mosaic begin to show above it."""

_MAX_ROUNDS = 40
_CONVERGED = 2e-4  # change of the field per round, far below what content leaves
_CAUCHY = 1.5  # in units of the robust spread: objects and empty resin weigh little, texture weighs fully
# The surface is the exponential of a polynomial: the logarithm of a vignette, whether parabola, Gaussian or fourth power of
# the cosine, is nearly quadratic. How large the terms of each degree are in real optics (standard deviation): a centre off
# by a fifth of the field makes odd ones.
_PRIOR = np.array([np.inf, 0.1, 0.1, 0.005, 0.01, 0.001, 0.001], np.float32)
# Neighbouring tiles overlap and share content: errors are taken as 1.4 times what independence would give.
_VARIANCE_INFLATION = 2.0
# An estimated dark level is used when the light (background minus dark) is known to this share.
_MAX_DARK_ERROR = 0.15
_SPLITS = 3  # six planes, the fewest, can be halved by each of the three lowest bits of their number


@dataclass(frozen=True)
class Shading:
    """Smooth part of a flat field.

    Attributes
    ----------
    field : (h, w) ndarray of float32
        Relative brightness on the fitting grid, mean 1.
    shading_percent : float
        ``(max - min) / mean`` of `field`.
    residual_percent : float
        What the same measure is expected to be after correction: half of how far the fields of two halves of the
        sites differ (each half has 1.4 times the error of all planes, their ratio twice); root mean square over
        three ways to halve them, because one alone may agree by luck.
    content_percent : float
        The part of it that is the content's fault: all but the error of the dark level.
    planes, sites : int
        Planes the fit stands on, and places of the sample that they show.
    """

    field: Float
    shading_percent: float
    residual_percent: float
    content_percent: float
    planes: int
    sites: int


def span_percent(field: Float) -> float:
    """Return ``(max - min) / mean`` of a field in percent: the figure called shading everywhere in KBrain."""
    return float((field.max() - field.min()) / field.mean() * 100.0)


def grid_shape(height: int, width: int, longest_px: int = GRID_PX) -> tuple[int, int]:
    """Return the (h, w) of the grid for tiles of this size, aspect kept, longer side at most `longest_px`."""
    scale = min(1.0, longest_px / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def thumbnail(plane: npt.NDArray[Any], longest_px: int = GRID_PX) -> Float:
    """Average a (Y, X) plane down to the fitting grid, or to another longest side.

    Parameters
    ----------
    plane : (Y, X) ndarray of any real type
    longest_px : int

    Returns
    -------
    (h, w) ndarray of float32
        Area averages, so noise falls and the mean stays.
    """
    height, width = grid_shape(plane.shape[0], plane.shape[1], longest_px)
    shrunk = cv2.resize(plane.astype(np.float32, copy=False), (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk, np.float32)


def is_usable(plane: npt.NDArray[Any], saturation: float) -> bool:
    """Say whether a plane can teach shading: not blank, not largely saturated, no NaN.

    Parameters
    ----------
    plane : (Y, X) ndarray
    saturation : float
        Grey value at which the detector is full (the largest of the type when not known better).
    """
    sample = plane[::4, ::4]
    if sample.dtype.kind == "f" and not bool(np.isfinite(sample).all()):
        return False
    return bool(sample.max() > sample.min()) and float(np.mean(sample >= saturation)) < 0.2


@dataclass(frozen=True)
class DarkLevel:
    """Grey value of a camera without light.

    Attributes
    ----------
    level : float
        In grey values.
    error : float or None
        Standard error of an estimated level; None when it was given.
    source : str
        Where it comes from, for people.
    of_blanks : bool
        Whether blank planes told it.
    """

    level: float
    error: float | None
    source: str
    of_blanks: bool = False


def estimate_dark(stack: Float, blanks: Float | None = None) -> DarkLevel | None:
    """Estimate the grey value without light, one number per channel.

    A blank plane that shows no shading although the others do holds no light, so its median is the dark level. Else, the
    light of the content is shaded like that of the background, while the dark level is not shaded at all: the part of a
    plane that exceeds the common background ``l`` has, as a multiple of ``l``, the slope ``excess / (l - dark)``.

    Parameters
    ----------
    stack : (N, h, w) ndarray of float32
        Thumbnails of the planes of one channel.
    blanks : (M, h, w) ndarray of float32, optional
        Thumbnails of planes without sample.

    Returns
    -------
    DarkLevel or None
        None when the tiles cannot tell: an even field, an even sample, or too few planes.
    """
    field, brightness = _fit(stack)
    background = float(np.median(brightness)) * field
    if blanks is not None and len(blanks):
        of_blanks = _dark_of_blanks(blanks, background)
        if of_blanks is not None:
            return of_blanks
    shape = (background - background.mean()).ravel()
    power = float(shape @ shape)
    excess = (stack - background).reshape(len(stack), -1)
    mean = excess.mean(axis=1)
    total = float(mean.sum())
    if power == 0.0 or total == 0.0:
        return None
    slope = excess @ shape / power
    inverse = float(slope.sum()) / total  # 1 / light of the background
    left = slope - inverse * mean
    error = math.sqrt(float(left @ left)) / abs(total)
    if inverse <= 0 or error > _MAX_DARK_ERROR * inverse:
        return None
    level = float(background.mean()) - 1.0 / inverse
    return DarkLevel(max(0.0, level), error / inverse**2, "estimated from background and content")


def _dark_of_blanks(blanks: Float, background: Float) -> DarkLevel | None:
    """Median of the blank planes when they are evenly dark and the background of the others is not."""
    level = float(np.median(blanks))
    shading = background - background.mean()
    power = float((shading * shading).sum())
    slopes = ((blanks - blanks.mean(axis=(1, 2), keepdims=True)) * shading).sum(axis=(1, 2)) / max(
        power, 1e-12
    )
    if level >= float(background.min()) or power == 0.0 or float(np.median(slopes)) > 0.1:
        return None
    error = float(np.median(slopes)) * float(background.mean() - level)
    return DarkLevel(level, abs(error), "median of blank tiles", of_blanks=True)


def estimate_shading(
    stack: Float, dark: DarkLevel | None = None, sites: npt.NDArray[np.intp] | None = None
) -> Shading:
    """Estimate the smooth flat field of one channel from thumbnails of its planes.

    Parameters
    ----------
    stack : (N, h, w) ndarray of float32
        Thumbnails (see `thumbnail`) in random order.
    dark : DarkLevel, optional
        Grey value without light; 0 when None. Its error counts into the residual.
    sites : (N,) ndarray of int, optional
        Which planes show the same place of the sample (serial sections, planes of a stack): their content is alike, so
        they count as one for the errors. Default: each plane is a site of its own.

    Returns
    -------
    Shading

    Raises
    ------
    ValueError
        Fewer than `MIN_SITES` places with light in them.
    """
    lit = stack - np.float32(dark.level if dark else 0.0)
    bright = np.median(lit, axis=(1, 2)) > 0
    lit, sites = lit[bright], _numbered(np.arange(len(stack)) if sites is None else sites, bright)
    places = len(np.unique(sites))
    if places < MIN_SITES:
        raise ValueError(f"{places} usable places of the sample, at least {MIN_SITES} are needed")
    field = fit_surface(lit, sites)
    shading = span_percent(field)
    content = math.sqrt(sum(_disagreement(lit, sites, split) ** 2 for split in range(_SPLITS)) / _SPLITS)
    residual = content
    if dark and dark.error:
        residual = math.hypot(content, shading * dark.error / float(np.median(lit)))
    return Shading(field, shading, residual, content, len(lit), places)


def _disagreement(lit: Float, sites: npt.NDArray[np.intp], split: int) -> float:
    """Half of how far the fields of two halves of the sites differ, in percent; another split gives other halves."""
    half = (sites >> split) % 2 == 0
    one, other = (fit_surface(lit[part], _numbered(sites, part)) for part in (half, ~half))
    return span_percent(one / other) / 2.0


def _numbered(sites: npt.NDArray[np.intp], chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Number the sites of the chosen planes from 0."""
    return np.unique(sites[chosen], return_inverse=True)[1]


def fit_surface(stack: Float, sites: npt.NDArray[np.intp] | None = None) -> Float:
    """Fit the smooth surface that all planes share, by robust regression.

    Each round estimates the brightness of every plane and then the surface, both by least squares with Cauchy weights
    on the relative residuals, so bright cells, empty resin and dirt weigh little. Each term of the surface is weighed
    against its standard error over planes with the size that optics give it: content of few planes does not pass for
    shading.

    Parameters
    ----------
    stack : (N, h, w) ndarray of float32
        Dark level subtracted.
    sites : (N,) ndarray of int, optional
        Number of the site of each plane, from 0; default: each its own.

    Returns
    -------
    (h, w) ndarray of float32
        Relative brightness, mean 1.
    """
    return _fit(stack, sites)[0]


def _fit(stack: Float, sites: npt.NDArray[np.intp] | None = None) -> tuple[Float, Float]:
    """Return the surface (h, w) and the brightness (N,) of each plane."""
    planes, height, width = stack.shape
    sites = np.arange(planes) if sites is None else sites
    basis, prior = _legendre(height, width)
    pixels = stack.reshape(planes, -1)
    field = np.ones(height * width, np.float32)
    brightness = pixels.mean(axis=1)
    for _ in range(_MAX_ROUNDS):
        flat = pixels / field
        brightness, weights = _robust_means(flat, brightness)
        update = _shared_surface(flat / brightness[:, None] - 1.0, weights, sites, basis, prior, field)
        change = float(np.abs(update - field).max())
        field = update
        if change < _CONVERGED:
            break
    return field.reshape(height, width), brightness


def _robust_means(flat: Float, start: Float) -> tuple[Float, Float]:
    """Return the brightness of each plane and the weight of each of its pixels (Cauchy, spread by the median)."""
    brightness = start
    weights = np.ones_like(flat)
    for _ in range(3):
        size = np.abs(flat / brightness[:, None] - 1.0)
        spread = 1.4826 * np.median(size, axis=1) + 1e-3
        weights = 1.0 / (1.0 + (size / (_CAUCHY * spread[:, None])) ** 2)
        mean = (weights * flat).sum(axis=1) / weights.sum(axis=1)
        brightness = np.maximum(mean, 1e-3 * np.abs(start) + 1e-6).astype(np.float32)
    return brightness, weights


def _shared_surface(
    residual: Float, weights: Float, sites: npt.NDArray[np.intp], basis: Float, prior: Float, field: Float
) -> Float:
    """One round: the least-squares surface through all planes, each term weighed against its error (ridge)."""
    total = weights.sum(axis=0)
    normal = (basis.T * total) @ basis
    # The whole surface is refitted, not its change: the prior is about the size of its terms.
    start = np.log(field)
    terms = np.linalg.solve(normal, basis.T @ (total * start + (weights * residual).sum(axis=0)))
    pull = (weights * (start + residual - basis @ terms)) @ basis
    scores = np.zeros(
        (int(sites.max()) + 1, pull.shape[1]), pull.dtype
    )  # (sites, terms): each site's own pull
    np.add.at(scores, sites, pull)
    pulls = np.linalg.solve(normal, scores.T)
    variance = _VARIANCE_INFLATION * (pulls**2).sum(axis=1) * len(scores) / max(1, len(scores) - 1)
    keep = 1.0 / (1.0 + variance / prior**2)
    surface = np.exp(np.clip(basis @ (keep * terms), -3.0, 3.0))
    return np.asarray(surface / surface.mean(), np.float32)


def _legendre(height: int, width: int) -> tuple[Float, Float]:
    """Return the (h * w, terms) products of Legendre polynomials, the constant first, and the prior of each term."""
    degree = min(DEGREE, height - 1, width - 1)
    along_y = np.polynomial.legendre.legvander(np.linspace(-1, 1, height), degree)
    along_x = np.polynomial.legendre.legvander(np.linspace(-1, 1, width), degree)
    powers = [(i, total - i) for total in range(degree + 1) for i in range(total + 1)]
    terms = [np.outer(along_y[:, i], along_x[:, j]).ravel() for i, j in powers]
    return np.stack(terms, axis=1).astype(np.float32), _PRIOR[[i + j for i, j in powers]]


def full_field(field: Float, shape: tuple[int, int]) -> Float:
    """Enlarge a fitted field to the size of a tile, mean 1.

    Parameters
    ----------
    field : (h, w) ndarray of float32
    shape : (int, int)
        (Y, X) of the tile.

    Returns
    -------
    (Y, X) ndarray of float32
    """
    height, width = shape
    basis, _ = _legendre(*field.shape)
    terms = np.linalg.lstsq(basis, np.log(field).ravel(), rcond=None)[0]
    # Centres of the tile's outermost pixels in the coordinates of the fitting grid, whose outermost centres are at -1, 1.
    edges = [1.0 + (small / size - 1.0) * -1.0 / max(1, small - 1) for small, size in zip(field.shape, shape)]
    degree = min(DEGREE, field.shape[0] - 1, field.shape[1] - 1)
    along_y = np.polynomial.legendre.legvander(np.linspace(-edges[0], edges[0], height), degree)
    along_x = np.polynomial.legendre.legvander(np.linspace(-edges[1], edges[1], width), degree)
    matrix = np.zeros((degree + 1, degree + 1))
    for (i, j), term in zip([(i, t - i) for t in range(degree + 1) for i in range(t + 1)], terms):
        matrix[i, j] = term
    full = np.exp(along_y @ matrix @ along_x.T)
    return np.asarray(full / full.mean(), np.float32)
