"""Tile grids with planted truth: what a stage and a camera make of a scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from phantom_scenes import SINC_RADIUS, SceneKind, scene_2d, scene_3d, scene_sections, subpixel_crop

# (z, row, col) of a tile: z is the section.
TileKey = tuple[int, int, int]


@dataclass(frozen=True)
class Camera:
    """What the microscope adds to the scene.

    Attributes
    ----------
    dtype : "uint8" or "uint16"
    vignetting : float
        Share of the light lost in the tile's corner (radial, quadratic).
    dust : int
        Number of dark spots that stay at one place of the camera.
    dust_depth : float
        Share of light the darkest spot takes.
    photons_at_white : float
        Photons a white pixel counts; the shot noise of a pixel is sqrt(photons). `inf` switches noise off.
    dark : float
        Offset of the camera as a share of white.
    """

    dtype: str = "uint8"
    vignetting: float = 0.35
    dust: int = 12
    dust_depth: float = 0.3
    photons_at_white: float = 900.0
    dark: float = 0.04

    @property
    def white(self) -> float:
        """Grey value of a scene value of 1.0 (some head room keeps noise from clipping)."""
        return {"uint8": 225.0, "uint16": 40_000.0}[self.dtype]

    def flat_field(self, shape: tuple[int, int], seed: int) -> np.ndarray:
        """(Y, X) float32 share of light that reaches each pixel: vignetting times dust."""
        yy, xx = (np.linspace(-1, 1, size, dtype=np.float32) for size in shape)
        flat = 1 - np.float32(self.vignetting) * (yy[:, None] ** 2 + xx[None, :] ** 2) / 2
        rng = np.random.default_rng((seed, 1))
        spots = np.zeros(shape, np.float32)
        for y, x, radius, depth in rng.uniform((0, 0, 1.5, 0.3), (*shape, 5, 1), (self.dust, 4)):
            cv2.circle(spots, (int(x), int(y)), int(radius) + 1, float(depth * self.dust_depth), -1)
        return flat * (1 - cv2.GaussianBlur(spots, (0, 0), 1.2))

    def expose(self, scene: np.ndarray, flat: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Image of a scene (..., Y, X) through a flat field, with shot noise, as grey values.

        The noise is the normal approximation of Poisson: above 10 photons nobody can tell, and the random stream
        does not depend on the pixels, so a rounding difference between machines stays in its pixel.
        """
        light = scene * flat
        if np.isfinite(self.photons_at_white):
            noise = rng.standard_normal(light.shape, dtype=np.float32)
            light = light + noise * np.sqrt(np.maximum(light, 0) / np.float32(self.photons_at_white))
        grey = (light + np.float32(self.dark)) * np.float32(self.white)
        return np.clip(np.rint(grey), 0, np.iinfo(self.dtype).max).astype(self.dtype)


@dataclass(frozen=True)
class Stage:
    """What the stage does to a grid: its errors, in pixels of the image.

    Attributes
    ----------
    jitter_px : float
        Each tile is off by a uniform random shift of at most this, per axis (y, x), with sub-pixel truth.
    jitter_z_px : float
        The same in z for stacks of planes.
    angle_deg : float
        Rotation of the stage's axes against the camera's.
    backlash_px : float
        Shift in x of every second row (rows are imaged back and forth).
    """

    jitter_px: float = 20.0
    jitter_z_px: float = 0.0
    angle_deg: float = 0.0
    backlash_px: float = 0.0


@dataclass(frozen=True)
class Defects:
    """Tiles to spoil, by (section, row, col).

    Attributes
    ----------
    blank : nothing but the camera's offset and noise
    missing : no file, no image
    duplicate : the same content in a second file
    truncated : the file ends after 60 % of its bytes
    swapped : pairs of tiles whose images were exchanged
    """

    blank: tuple[TileKey, ...] = ()
    missing: tuple[TileKey, ...] = ()
    duplicate: tuple[TileKey, ...] = ()
    truncated: tuple[TileKey, ...] = ()
    swapped: tuple[tuple[TileKey, TileKey], ...] = ()

    def of(self, key: TileKey) -> str:
        """Name of the defect of one tile, or "ok"."""
        for name in ("blank", "missing", "duplicate", "truncated"):
            if key in getattr(self, name):
                return name
        return "swapped" if any(key in pair for pair in self.swapped) else "ok"


@dataclass(frozen=True)
class PlantedTile:
    """One tile: its image and the truth about it.

    Attributes
    ----------
    key : (section, row, col)
    state : "ok", "blank", "missing", "duplicate", "truncated" or "swapped"
    stage_px : (z, y, x) float
        Where the stage says the tile's first pixel is, relative to tile (row 0, col 0) of its section.
    true_px : (z, y, x) float
        Where the image really was taken, in pixels of the section's scene. For swapped tiles the place of the image
        the tile now holds.
    image : (C, Z, Y, X) ndarray, or None for a missing tile
    """

    key: TileKey
    state: str
    stage_px: tuple[float, float, float]
    true_px: tuple[float, float, float]
    image: np.ndarray | None = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """Name of the tile without channel and ending: tile_z000_r00_c00."""
        return "tile_z{:03d}_r{:02d}_c{:02d}".format(*self.key)


@dataclass(frozen=True)
class TileGrid:
    """A grid of tiles with its truth.

    Attributes
    ----------
    tiles : PlantedTile per place of the grid, sections first, then rows, then columns
    shape : (sections, rows, cols)
    tile_shape : (z, y, x) pixels of a tile
    channels : channel names
    overlap : float
        The overlap the user is told (a fraction of the tile); `true_overlap` is what the stage did.
    pixel_um : (z, y, x) pixel size; z is the distance of planes in 3D tiles, else of sections
    flat_field : (Y, X) float32, share of light per pixel (vignetting and dust)
    camera : Camera
    scenes : (C, Z, Y, X) float32 ndarray per section, or empty
        What was imaged, in fractions of white; `true_px` counts in its pixels. Kept with `keep_scene=True`.
    """

    tiles: tuple[PlantedTile, ...]
    shape: tuple[int, int, int]
    tile_shape: tuple[int, int, int]
    channels: tuple[str, ...]
    overlap: float
    true_overlap: float
    pixel_um: tuple[float, float, float]
    flat_field: np.ndarray = field(repr=False)
    camera: Camera
    scenes: tuple[np.ndarray, ...] = field(repr=False, default=())

    def tile(self, z: int, row: int, col: int) -> PlantedTile:
        """The tile at a place of the grid."""
        _, rows, cols = self.shape
        return self.tiles[(z * rows + row) * cols + col]

    def grey(self, scene: np.ndarray) -> np.ndarray:
        """Grey values a perfect camera of this kind gives a scene."""
        return (scene + self.camera.dark) * self.camera.white


def make_tile_grid(
    *,
    rows: int = 6,
    cols: int = 6,
    size: int | tuple[int, int] = 1024,
    overlap: float = 0.12,
    reported_overlap: float | None = None,
    kind: SceneKind = "em",
    depth: int = 1,
    sections: int = 1,
    channels: Sequence[str] = ("0",),
    stage: Stage | None = None,
    camera: Camera | None = None,
    defects: Defects | None = None,
    pixel_um: tuple[float, float, float] = (0.05, 0.005, 0.005),
    empty_fraction: float = 0.3,
    keep_scene: bool = False,
    scenes: Sequence[np.ndarray] | None = None,
    seed: int = 0,
) -> TileGrid:
    """Make a grid of tiles with known positions.

    Parameters
    ----------
    rows, cols : int
    size : int or (y, x)
        Tile size in pixels.
    overlap : float
        Fraction of the tile that neighbours share, before jitter.
    reported_overlap : float, optional
        What the stage positions are computed from: another value than `overlap` plants a wrong overlap.
    kind : "em", "nuclei" or "flat"
        Scene of the first channel; further channels hold nuclei (after "em") or membranes at the same place.
        "flat" has no texture in any channel.
    depth : int
        Planes per tile; above 1 the scene is 3D and z jitter applies.
    sections : int
        Sections (2D tiles only); each has its own jitter, and neighbours look alike.
    channels : sequence of str
        Channel names; all channels of a tile share its position.
    stage, camera, defects : Stage, Camera, Defects
    pixel_um : (z, y, x) float
    empty_fraction : float
        Share of the area of a nuclei scene without nuclei.
    keep_scene : bool
        Keep what was imaged in `TileGrid.scenes`.
    scenes : sequence of (C, Z, Y, X) ndarray, one per section, optional
        Image these instead of made ones; they need `scene_shape(...)` pixels.
    seed : int

    Returns
    -------
    TileGrid
    """
    stage, camera, defects = stage or Stage(), camera or Camera(), defects or Defects()
    tile_yx = (size, size) if isinstance(size, int) else size
    if depth > 1 and sections > 1:
        raise ValueError("tiles are stacks of planes or there are many sections, not both")
    told = overlap if reported_overlap is None else reported_overlap
    margin = _margin(stage, tile_yx, overlap, rows, cols)
    extent = scene_shape(rows, cols, tile_yx, overlap, stage)
    rng = np.random.default_rng((seed, 2))
    flat = camera.flat_field(tile_yx, seed)
    tiles: list[PlantedTile] = []
    kept = []
    source = (
        scenes
        if scenes is not None
        else _scenes(kind, extent, depth, sections, len(channels), seed, empty_fraction, stage)
    )
    for z, scene in enumerate(source):
        kept += [scene] if keep_scene else []
        for row in range(rows):
            for col in range(cols):
                ideal = _place(row, col, tile_yx, overlap)
                told_px = (0.0, *_place(row, col, tile_yx, told))
                true = _true_place(ideal, row, margin, stage, depth, rng)
                image = _image(scene, true, (depth, *tile_yx), camera, flat, rng, defects.of((z, row, col)))
                tiles.append(PlantedTile((z, row, col), defects.of((z, row, col)), told_px, true, image))
    return TileGrid(
        tiles=tuple(_swap(tiles, defects)),
        shape=(sections, rows, cols),
        tile_shape=(depth, *tile_yx),
        channels=tuple(channels),
        overlap=told,
        true_overlap=overlap,
        pixel_um=pixel_um,
        flat_field=flat,
        camera=camera,
        scenes=tuple(kept),
    )


def scene_shape(
    rows: int, cols: int, tile_yx: tuple[int, int], overlap: float, stage: Stage
) -> tuple[int, int]:
    """(y, x) pixels a scene needs for a grid."""
    margin = _margin(stage, tile_yx, overlap, rows, cols)
    last = _place(rows - 1, cols - 1, tile_yx, overlap)
    return tuple(int(np.ceil(at + size + 2 * margin)) for at, size in zip(last, tile_yx, strict=True))  # type: ignore[return-value]


def _margin(stage: Stage, tile_yx: tuple[int, int], overlap: float, rows: int, cols: int) -> int:
    reach = np.hypot(*_place(rows, cols, tile_yx, overlap)) * abs(np.sin(np.radians(stage.angle_deg)))
    return int(np.ceil(stage.jitter_px + abs(stage.backlash_px) + reach)) + SINC_RADIUS + 2


def _place(row: int, col: int, tile_yx: tuple[int, int], overlap: float) -> tuple[float, float]:
    # Stages are driven in whole pixels: a round step keeps file names and side files readable.
    return float(round(row * tile_yx[0] * (1 - overlap))), float(round(col * tile_yx[1] * (1 - overlap)))


def _true_place(
    ideal: tuple[float, float], row: int, margin: int, stage: Stage, depth: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    """(z, y, x) in the scene where the stage really went."""
    jitter = rng.uniform(-1, 1, 3) * (stage.jitter_z_px, stage.jitter_px, stage.jitter_px)
    cos, sin = np.cos(np.radians(stage.angle_deg)), np.sin(np.radians(stage.angle_deg))
    y = cos * ideal[0] + sin * ideal[1] + jitter[1]
    x = cos * ideal[1] - sin * ideal[0] + jitter[2] + (stage.backlash_px if row % 2 else 0.0)
    z = jitter[0] + np.ceil(stage.jitter_z_px) if depth > 1 else 0.0
    return float(z), float(y + margin), float(x + margin)


def _scenes(
    kind: SceneKind,
    extent: tuple[int, int],
    depth: int,
    sections: int,
    channels: int,
    seed: int,
    empty_fraction: float,
    stage: Stage,
):
    """Yield one (C, Z, Y, X) scene per section."""
    kinds = [kind]
    while len(kinds) < channels:
        kinds.append(kind if kind == "flat" else "nuclei" if kinds[-1] == "em" else "em")
    if depth > 1:
        shape = (depth + 2 * int(np.ceil(stage.jitter_z_px)), *extent)
        yield np.stack(
            [scene_3d(each, shape, seed + 100 * c, empty_fraction) for c, each in enumerate(kinds)]
        )
    elif sections == 1:
        yield np.stack(
            [scene_2d(each, extent, seed + 100 * c, empty_fraction) for c, each in enumerate(kinds)]
        )[:, None]
    else:
        stacks = [
            scene_sections(each, extent, sections, seed + 100 * c, empty_fraction=empty_fraction)
            for c, each in enumerate(kinds)
        ]
        for planes in zip(*stacks, strict=True):
            yield np.stack(planes)[:, None]


def _image(
    scene: np.ndarray,
    true_px: tuple[float, float, float],
    shape: tuple[int, int, int],
    camera: Camera,
    flat: np.ndarray,
    rng: np.random.Generator,
    state: str,
) -> np.ndarray | None:
    """(C, Z, Y, X) grey values of one tile; None when it is missing."""
    light = np.zeros((len(scene), *shape), np.float32)
    for channel, volume in enumerate(scene):
        if state == "blank":
            continue
        if shape[0] > 1:
            light[channel] = subpixel_crop(volume, true_px, shape)
        else:
            light[channel, 0] = subpixel_crop(volume[0], true_px[1:], shape[1:])
    image = camera.expose(light, flat, rng)
    return None if state == "missing" else image


def _swap(tiles: list[PlantedTile], defects: Defects) -> list[PlantedTile]:
    """Exchange images and true places of the swapped pairs."""
    by_key = {tile.key: tile for tile in tiles}
    for one, other in defects.swapped:
        a, b = by_key[one], by_key[other]
        by_key[one] = PlantedTile(a.key, "swapped", a.stage_px, b.true_px, b.image)
        by_key[other] = PlantedTile(b.key, "swapped", b.stage_px, a.true_px, a.image)
    return [by_key[tile.key] for tile in tiles]
