"""Which steps correct a tile, in which order, and the correction of one plane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .background import denoise, subtract_background
from .stripes import remove_stripes

Float = npt.NDArray[np.floating[Any]]
Denoising = Literal["none", "median", "gaussian", "nl-means"]
Preset = Literal["confocal", "light-sheet", "bright-field", "fluorescence", "em", "none"]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The steps of a correction.

    The dark level is subtracted `on`, or only where blank tiles tell it (`blank`): an EM detector's black is set by hand, so
    that not to know it is no fault.
    """

    dark: Literal["off", "blank", "on"] = "off"
    flat_field: bool = False
    depth_loss: bool = False
    stripes: bool = False
    curtains: bool = False
    background: bool = False
    denoise: Denoising = "none"
    section_contrast: bool = False
    invert: bool = False
    clahe: bool = False

    def names(self) -> tuple[str, ...]:
        """The steps that are on, in words."""
        words = {
            "dark": "dark level",
            "flat_field": "flat field",
            "depth_loss": "loss with depth",
            "stripes": "stripes",
            "curtains": "curtains",
            "background": "background",
            "section_contrast": "contrast of sections",
            "invert": "inversion",
            "clahe": "CLAHE",
        }
        return tuple(
            f"denoising ({self.denoise})" if name == "denoise" else words[name]
            for name in self.__dataclass_fields__
            if getattr(self, name) not in (False, "none", "off")
        )


# What is safe to do without being asked: it makes intensities comparable over the field and, where the modality always
# needs it, over depth or sections. What takes signal away (background, denoising) or turns it around must be asked for.
PRESETS: Mapping[str, Steps] = MappingProxyType(
    {
        "fluorescence": Steps(dark="on", flat_field=True),
        "confocal": Steps(dark="on", flat_field=True, depth_loss=True),
        "light-sheet": Steps(dark="on", flat_field=True, depth_loss=True, stripes=True),
        # Transmitted light: the empty field is bright, so a camera's offset hardly matters.
        "bright-field": Steps(flat_field=True),
        # An EM detector's brightness and contrast are set by hand, from section to section.
        "em": Steps(dark="blank", flat_field=True, section_contrast=True),
        "none": Steps(),
    }
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that is the same for all tiles.

    Attributes
    ----------
    steps : Steps
    stripe_direction : {"auto", "horizontal", "vertical"}
        auto: stripes horizontal, curtains vertical.
    stripe_level : int or None
    stripe_sigma : float
        See `stripes.remove_stripes`.
    background_radius_um : float
    clahe_limit : float
        Largest share of a window's pixels that one of 256 grey levels may count.
    """

    steps: Steps
    stripe_direction: Literal["auto", "horizontal", "vertical"]
    stripe_level: int | None
    stripe_sigma: float
    background_radius_um: float
    clahe_limit: float

    def directions(self) -> tuple[str, ...]:
        """Directions in which stripes are removed."""
        wanted = [(self.steps.stripes, "horizontal"), (self.steps.curtains, "vertical")]
        found = (
            own if self.stripe_direction == "auto" else self.stripe_direction for on, own in wanted if on
        )
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Fields:
    """Flat field and dark level of one channel and tile size.

    Attributes
    ----------
    flat : (Y, X) ndarray of float32
        Relative brightness, mean 1.
    dark : (Y, X) or () ndarray of float32
        Grey value without light.
    """

    flat: Float
    dark: Float

    def apply(self, plane: npt.NDArray[Any]) -> Float:
        """Return ``(plane - dark) / flat`` in float32."""
        return np.asarray((plane - self.dark) / self.flat, np.float32)


def correct_plane(
    plane: npt.NDArray[Any],
    recipe: Recipe,
    fields: Fields | None,
    line: tuple[float, float],
    radius_px: float,
    white: float,
) -> Float:
    """Correct one plane.

    Parameters
    ----------
    plane : (Y, X) ndarray
        As it was recorded.
    recipe : Recipe
    fields : Fields or None
        None when neither flat field nor dark level is corrected.
    line : (float, float)
        Factor and offset of this plane, from the loss with depth or the section's contrast.
    radius_px : float
        Radius of the background's disk.
    white : float
        Largest grey value of the detector.

    Returns
    -------
    (Y, X) ndarray of float32
    """
    steps = recipe.steps
    values = np.asarray(plane, np.float32) if fields is None else fields.apply(plane)
    for direction in recipe.directions():
        values = remove_stripes(
            values, direction=direction, level=recipe.stripe_level, sigma=recipe.stripe_sigma
        )
    if steps.background:
        values = subtract_background(values, radius_px)
    values = denoise(values, steps.denoise)
    if line != (1.0, 0.0):
        values = values * np.float32(line[0]) + np.float32(line[1])
    if steps.invert:
        values = np.float32(white) - values
    return _clahe(values, recipe.clahe_limit, white) if steps.clahe else values


def _clahe(values: Float, limit: float, white: float) -> Float:
    """Contrast-limited adaptive histogram equalisation over 8 x 8 windows, from the plane's own range to all of white."""
    from skimage.exposure import equalize_adapthist  # slow to import, and hardly ever asked for

    shares = np.clip(values / np.float32(white), 0.0, 1.0)
    return np.asarray(equalize_adapthist(shares, clip_limit=limit) * white, np.float32)


def to_dtype(values: Float, dtype: np.dtype[Any], white: float) -> tuple[npt.NDArray[Any], int, int]:
    """Round values half to even and clip them to what the type (and the detector's bits) can hold.

    Parameters
    ----------
    values : (Y, X) ndarray of float32
    dtype : numpy.dtype
        Integers are rounded and clipped; floating point is kept as it is.
    white : float
        Largest value to write.

    Returns
    -------
    converted : (Y, X) ndarray of `dtype`
    below, above : int
        How many pixels were clipped.
    """
    if dtype.kind == "f":
        return values.astype(dtype, copy=False), 0, 0
    rounded = np.rint(values, out=values)
    lowest = float(np.iinfo(dtype).min)
    below, above = int(np.count_nonzero(rounded < lowest)), int(np.count_nonzero(rounded > white))
    if below or above:
        np.clip(rounded, lowest, white, out=rounded)
    return rounded.astype(dtype), below, above


def white_of(dtype: np.dtype[Any], bits: int | None) -> float:
    """Return the largest grey value of a detector: of its significant bits, else of the type; 1 for floating point."""
    if dtype.kind == "f":
        return 1.0
    top = int(np.iinfo(dtype).max)
    return float(min(top, 2**bits - 1) if bits else top)
