"""Stacks of serial sections that were moved by known transforms, with contrast changes and a torn section."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from phantom_scenes import SceneKind, scene_sections
from phantom_tiles import Camera
from scipy import ndimage


@dataclass(frozen=True)
class SectionStack:
    """Sections as imaged, and how each was moved.

    Attributes
    ----------
    images : (Z, Y, X) ndarray of the camera's type
    transforms : (Z, 2, 3) float64
        Rows [m_yy m_yx t_y], [m_xy m_xx t_x]: the pixel centre (y, x) of the *aligned* frame goes to
        (m_yy y + m_yx x + t_y, m_xy y + m_xx x + t_x) of the section's image. The columns of a transforms table.
    angles_deg, shifts_px : (Z,) and (Z, 2) float64
        Rotation about the image centre, and shift (y, x), that made `transforms`.
    torn, missing : section numbers
        A torn section has a fold of `tear_px` across it and a lost corner; a missing one is empty.
    tissue : (Y, X) bool
        Where the aligned frame holds tissue; errors are measured there.
    aligned : (Z, Y, X) float32, or None
        The scenes before they were moved, in fractions of white.
    pixel_um : (z, y, x)
    """

    images: np.ndarray = field(repr=False)
    transforms: np.ndarray
    angles_deg: np.ndarray
    shifts_px: np.ndarray
    torn: tuple[int, ...]
    missing: tuple[int, ...]
    tissue: np.ndarray = field(repr=False)
    aligned: np.ndarray | None = field(repr=False)
    pixel_um: tuple[float, float, float]


def make_section_stack(
    *,
    count: int = 30,
    size: int = 768,
    field_size: int | None = None,
    max_angle_deg: float = 5.0,
    max_shift_px: float = 30.0,
    contrast_change: float = 0.2,
    torn: tuple[int, ...] = (),
    missing: tuple[int, ...] = (),
    kind: SceneKind = "em",
    change: float = 0.12,
    curvature_px: float = 0.0,
    camera: Camera | None = None,
    keep_aligned: bool = False,
    pixel_um: tuple[float, float, float] = (0.05, 0.005, 0.005),
    seed: int = 0,
) -> SectionStack:
    """Make sections moved by known rigid transforms.

    Parameters
    ----------
    count : int
    size : int
        Width and height of the tissue in pixels.
    field_size : int, optional
        Width and height of the images. By default `size`, the tissue fills the image and what moves out is lost.
        Larger: a round piece of tissue of diameter `size` on empty resin, as on a wafer, free to lie anywhere;
        `size + 2 * max_shift_px` keeps all of it inside.
    max_angle_deg, max_shift_px : float
        Uniform ranges of rotation and of the shift per axis; section 0 is moved too.
    contrast_change : float
        Gain and offset of each section vary by up to this share.
    torn, missing : section numbers to tear or to blank
    change : float
        How fast the structure changes per section (`phantom_scenes.scene_sections`).
    curvature_px : float
        The structure itself bends in x, by this much at mid-stack (a parabola): what chains straighten out.
    camera : Camera
        Vignetting and dust are off unless given: sections are mosaics.
    keep_aligned : bool
        Keep the unmoved sections in `SectionStack.aligned`.

    Returns
    -------
    SectionStack
    """
    camera = camera or Camera(vignetting=0.0, dust=0)
    extent = field_size or size
    # Rotated corners must find scene beyond the image; an island has its own edge.
    margin = (
        0
        if field_size
        else int(np.ceil(0.5 * size * (np.sqrt(2) - 1) + max_shift_px + abs(curvature_px))) + 8
    )
    rng = np.random.default_rng((seed, 3))
    angles = rng.uniform(-max_angle_deg, max_angle_deg, count)
    shifts = rng.uniform(-max_shift_px, max_shift_px, (count, 2))
    transforms = np.stack(
        [rigid_transform(a, s, (extent, extent)) for a, s in zip(angles, shifts, strict=True)]
    )
    flat = camera.flat_field((extent, extent), seed)
    island = _island(extent, size, rng) if field_size else np.ones((extent, extent), np.float32)
    bend = curvature_px * (1 - np.square(np.linspace(-1, 1, count)))
    images, aligned = [], []
    for z, scene in enumerate(scene_sections(kind, (extent + 2 * margin,) * 2, count, seed, change=change)):
        scene = _bent(scene, bend[z])
        if field_size:
            scene = scene * island + np.float32(0.8) * (1 - island)
        if keep_aligned:
            aligned.append(scene[margin : margin + extent, margin : margin + extent].copy())
        moved = np.zeros((extent, extent), np.float32)
        if z not in missing:
            moved = move_section(
                scene, transforms[z], (extent, extent), margin, fill=0.8 if field_size else 0.5
            )
            gain, offset = 1 + rng.uniform(-1, 1, 2) * contrast_change * (1, 0.5)
            moved = np.clip((moved - 0.5) * gain + 0.5 * offset, 0.01, 1)
        if z in torn:
            moved = _tear(moved, rng)
        images.append(camera.expose(moved, flat, rng))
    return SectionStack(
        images=np.stack(images),
        transforms=transforms,
        angles_deg=angles,
        shifts_px=shifts,
        torn=torn,
        missing=missing,
        tissue=island > 0.5,
        aligned=np.stack(aligned) if keep_aligned else None,
        pixel_um=pixel_um,
    )


def rigid_transform(angle_deg: float, shift_yx: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(2, 3) transform: rotate about the centre of an image of `shape`, then shift; pixel centres, (y, x) order."""
    cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    matrix = np.array([[cos, sin], [-sin, cos]])
    centre = (np.array(shape) - 1) / 2
    return np.column_stack([matrix, centre - matrix @ centre + shift_yx])


def move_section(
    scene: np.ndarray, transform: np.ndarray, shape: tuple[int, int], margin: int, fill: float
) -> np.ndarray:
    """Image of `shape` whose content sits where `transform` (aligned -> image) puts it.

    The scene (Y, X) has `margin` pixels more than the aligned frame on each side. Cubic splines, exact coordinates
    (cv2 rounds them to 1/32 px).
    """
    inverse = np.linalg.inv(transform[:, :2])
    offset = margin - inverse @ transform[:, 2]
    moved = ndimage.affine_transform(
        scene, inverse, offset, output_shape=shape, order=3, mode="constant", cval=fill, output=np.float32
    )
    return np.clip(moved, 0, 1)


def _bent(scene: np.ndarray, shift_x: float) -> np.ndarray:
    if shift_x == 0:
        return scene
    return ndimage.shift(scene, (0, shift_x), order=3, mode="nearest", output=np.float32)


def _island(extent: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """(Y, X) float32, 1 inside a roundish but lopsided piece of tissue of diameter `size`."""
    yy, xx = np.mgrid[:extent, :extent].astype(np.float32) - (extent - 1) / 2
    angle = np.arctan2(yy, xx)
    radius = np.full_like(angle, 0.43 * size)
    for order in (1, 2, 3, 5):
        radius += np.float32(rng.uniform(0.01, 0.03) * size) * np.cos(
            order * angle + np.float32(rng.uniform(0, 6.3))
        )
    return np.clip((np.minimum(radius, size / 2 - 2) - np.hypot(yy, xx)) / 3, 0, 1).astype(np.float32)


def _tear(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pull an image (Y, X) apart along a line by 24 px, and lose a corner."""
    height, width = image.shape
    at = int(width * rng.uniform(0.35, 0.65))
    slope = rng.uniform(-0.2, 0.2)
    columns = np.arange(width)[None, :] - (at + slope * np.arange(height)[:, None])
    shifted = ndimage.shift(image, (9.0, 24.0), order=1, mode="constant", cval=0.02)
    torn = np.where(columns < 0, image, np.where(columns < 24, 0.02, shifted))
    corner = np.array([[0, 0], [width // 3, 0], [0, height // 3]], np.int32)
    return cv2.fillPoly(np.ascontiguousarray(torn, np.float32), [corner], 0.02)
