"""Background and noise of a plane."""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.floating[Any]]

_RADIUS_CELLS = 8  # radius on the shrunk plane: a rounder disk costs more and changes nothing visible


def subtract_background(plane: Float, radius_px: float) -> Float:
    """Subtract the smooth background, found by a grey-scale opening with a disk.

    Like a rolling ball it follows everything wider than the disk and keeps what is narrower. The plane is shrunk first
    (radius to 8 pixels), so any radius takes the same time.

    Parameters
    ----------
    plane : (Y, X) ndarray of float32
    radius_px : float
        Larger than the largest object to keep.

    Returns
    -------
    (Y, X) ndarray of float32
        Around 0 where nothing is.
    """
    height, width = plane.shape
    step = max(1.0, radius_px / _RADIUS_CELLS)
    small = (max(1, round(width / step)), max(1, round(height / step)))
    shrunk = cv2.resize(plane, small, interpolation=cv2.INTER_AREA)
    reach = max(1, round(radius_px / step))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    opened = cv2.morphologyEx(cv2.GaussianBlur(shrunk, (0, 0), 1.0), cv2.MORPH_OPEN, disk)
    smooth = cv2.GaussianBlur(opened, (0, 0), reach / 2, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(plane - cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR))


def denoise(plane: Float, method: Literal["none", "median", "gaussian", "nl-means"]) -> Float:
    """Take noise out of a plane.

    Parameters
    ----------
    plane : (Y, X) ndarray of float32
    method : {"none", "median", "gaussian", "nl-means"}
        Median over 3 x 3 pixels (hot pixels, shot noise), Gaussian of sigma 1 pixel, or non-local means with the noise
        estimated from the plane itself (keeps edges; about a hundred times slower).

    Returns
    -------
    (Y, X) ndarray of float32
    """
    if method == "median":
        return np.asarray(cv2.medianBlur(plane, 3), np.float32)
    if method == "gaussian":
        return np.asarray(cv2.GaussianBlur(plane, (0, 0), 1.0), np.float32)
    if method == "nl-means":
        from skimage.restoration import denoise_nl_means, estimate_sigma

        sigma = float(estimate_sigma(plane))
        cleaned = denoise_nl_means(plane, patch_size=5, patch_distance=6, h=0.8 * sigma, sigma=sigma)
        return np.asarray(cleaned, np.float32)
    return plane
