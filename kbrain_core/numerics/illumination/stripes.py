"""Stripes of light-sheet images and curtains of FIB milling, removed in the wavelet-Fourier domain.

References
----------
.. [1] Münch, Trtik, Marone, Stampanoni, Stripe and ring artifact removal with combined wavelet-Fourier filtering, Optics
   Express 17, 8567 (2009). doi:10.1364/OE.17.008567
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pywt

Float = npt.NDArray[np.floating[Any]]

WAVELET = "db5"
"""Ten taps: longer ones separate the scales little better and cost in proportion."""

_BRIGHT = 3.0  # robust spreads above the median: brighter things are cells, not stripes


def default_level(width: int) -> int:
    """Return how many wavelet levels reach stripes up to an eighth of the image wide.

    Parameters
    ----------
    width : int
        Pixels across the stripes.
    """
    return max(1, int(np.log2(max(2, width))) - 3)


def remove_stripes(
    image: Float,
    *,
    direction: str = "horizontal",
    level: int | None = None,
    sigma: float = 2.0,
    multiplicative: bool = True,
) -> Float:
    """Remove stripes that run along one axis.

    The image is split by wavelets into scales; at each, the band of details across the stripes is damped where its Fourier
    transform along the stripes is near zero frequency, which is where a stripe is and hardly anything else is [1]_.
    Objects much brighter than their surroundings are clipped while the stripes are measured, so that they throw no
    shadows of their own.

    Parameters
    ----------
    image : (Y, X) ndarray of float32
        Dark level subtracted when the stripes are multiplicative.
    direction : {"horizontal", "vertical"}
        The way the stripes run: horizontal = along x.
    level : int, optional
        Number of wavelet levels: stripes up to about 2**level pixels wide are removed. Default: see `default_level`.
    sigma : float
        Width of the damping along the stripes, in Fourier coefficients: 2 takes stripes that cross the image, larger values
        take shorter ones too, and more of the image with them.
    multiplicative : bool
        Stripes are shadows that take a share of the light (light sheets, curtains), or are added to it.

    Returns
    -------
    (Y, X) ndarray of float32
        Brightness on the coarsest scale is kept.
    """
    turned = np.ascontiguousarray(image.T) if direction == "horizontal" else image
    stripes = _measure(turned, level, sigma, multiplicative)
    clean = turned * np.exp(-stripes) if multiplicative else turned - stripes
    clean = np.asarray(clean, np.float32)
    return np.ascontiguousarray(clean.T) if direction == "horizontal" else clean


def _measure(image: Float, level: int | None, sigma: float, multiplicative: bool) -> Float:
    """Return the stripes (along y): the logarithm of a factor, or grey values to subtract."""
    height, width = image.shape
    sample = image[::4, ::4]
    median = float(np.median(sample))
    spread = 1.4826 * float(np.median(np.abs(sample - median)))
    # A sum of shadows below a tenth of the median is noise: its logarithm would be all there is to see.
    low = max(0.1 * median, 1e-3) if multiplicative else -np.inf
    clipped = np.clip(image, low, max(median + _BRIGHT * spread, low))
    values = np.log(clipped) if multiplicative else clipped
    # Mirrored along the stripes: without it the Fourier transform joins the two ends and leaves an edge there.
    margin = min(height - 1, max(16, height // 8))
    padded = np.pad(values, ((margin, margin), (0, 0)), mode="reflect").astype(np.float32)
    details = level or default_level(width)
    damped = _damp(padded, details, sigma * padded.shape[0] / height)
    return np.asarray(padded - damped, np.float32)[margin : margin + height]


def _damp(values: Float, level: int, sigma: float) -> Float:
    """Damp the stripes along y at each scale; shape kept."""
    # Scale by scale and not by wavedec2, which warns where wavelets are wider than the image: the margins are for that.
    rest, bands = values, []
    for _ in range(level):
        rest, (across, along, diagonal) = pywt.dwt2(rest, WAVELET, mode="symmetric")
        spectrum = np.fft.rfft(along, axis=0)
        frequency = np.arange(len(spectrum), dtype=np.float32)
        spectrum *= (1.0 - np.exp(-(frequency**2) / np.float32(2.0 * sigma**2)))[:, None]
        bands.append((across, np.fft.irfft(spectrum, len(along), axis=0), diagonal))
    for band in reversed(bands):
        rest = pywt.idwt2((rest[: len(band[0]), : band[0].shape[1]], band), WAVELET, mode="symmetric")
    return np.asarray(rest, np.float32)[: len(values), : values.shape[1]]


def stripe_energy(image: Float, direction: str = "horizontal") -> npt.NDArray[np.float64]:
    """Power spectrum of what all pixels along the stripes have in common, for reports.

    Parameters
    ----------
    image : (Y, X) ndarray
    direction : {"horizontal", "vertical"}

    Returns
    -------
    (n,) ndarray of float64
        Power over the frequency across the stripes (cycles per image), relative to the squared mean, slow shading
        (below 4 cycles) left out.
    """
    profile = np.median(image, axis=1 if direction == "horizontal" else 0).astype(np.float64)
    profile = profile / max(abs(float(profile.mean())), 1e-9)
    window = np.hanning(len(profile))
    power = np.abs(np.fft.rfft((profile - profile.mean()) * window)) ** 2
    return np.asarray(power[4:] / float((window**2).sum()) / len(profile))
