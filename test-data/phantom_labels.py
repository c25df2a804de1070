"""Label volumes with known objects, and an image that goes with them."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from phantom_scenes import band_noise
from scipy import ndimage

# IDs people really have: above what float64 (2^53) and int32 hold, up to the largest allowed one.
NOTABLE_IDS = (2**63 - 1, 2**53 + 1, 2**32 + 5, 2**31, 720_575_940_600_000_001)


@dataclass(frozen=True)
class PlantedObject:
    """One object of a label volume, measured on the voxels.

    Attributes
    ----------
    id : int
    voxels : int
    centroid : (z, y, x) float, voxels
    box : ((z0, z1), (y0, y1), (x0, x1)) int, half open
    touches_border : bool
    """

    id: int
    voxels: int
    centroid: tuple[float, float, float]
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    touches_border: bool


@dataclass(frozen=True)
class LabelVolume:
    """Labels (Z, Y, X) uint64 (0 is background), the image (Z, Y, X) uint8 that goes with them, and the objects."""

    labels: np.ndarray = field(repr=False)
    image: np.ndarray = field(repr=False)
    objects: tuple[PlantedObject, ...]
    voxel_nm: tuple[float, float, float]


def make_label_volume(
    *,
    shape: tuple[int, int, int] = (64, 192, 256),
    objects: int = 40,
    dense: bool = False,
    dtype: str = "uint64",
    voxel_nm: tuple[float, float, float] = (40.0, 8.0, 8.0),
    seed: int = 0,
) -> LabelVolume:
    """Make labelled objects with known count, volume and place.

    Parameters
    ----------
    shape : (z, y, x) voxels
    objects : int
        Number of objects; the first IDs are `NOTABLE_IDS` when the type holds them, the rest are random.
    dense : bool
        Fill space with touching cells (as in a segmentation of neuropil) instead of separate ellipsoids.
    dtype : "uint64" or "uint32"
    voxel_nm : (z, y, x) float

    Returns
    -------
    LabelVolume
    """
    rng = np.random.default_rng((seed, 4))
    index = _cells(shape, objects, rng) if dense else _ellipsoids(shape, objects, rng)
    present = np.unique(index[index > 0])
    ids = _ids(len(present), np.dtype(dtype), rng)
    table = np.zeros(int(index.max()) + 1, dtype)
    table[present] = ids
    labels = table[index]
    return LabelVolume(labels, _image(index, rng), _measure(index, present, ids), voxel_nm)


def _ids(count: int, dtype: np.dtype, rng: np.random.Generator) -> np.ndarray:
    limit = min(int(np.iinfo(dtype).max), 2**63 - 1)
    ids = [each for each in NOTABLE_IDS if each <= limit][:count]
    while len(ids) < count:
        candidate = int(rng.integers(1, limit, endpoint=True))
        ids += [candidate] if candidate not in ids else []
    return np.array(ids, dtype)


def _ellipsoids(shape: tuple[int, int, int], count: int, rng: np.random.Generator) -> np.ndarray:
    """Separate ellipsoids on a jittered grid: no two touch. (Z, Y, X) int32, 1 .. count."""
    per_axis = int(np.ceil(count ** (1 / 3)))
    cell = np.array(shape) / per_axis
    places = np.stack(np.meshgrid(*[np.arange(per_axis)] * 3, indexing="ij"), -1).reshape(-1, 3)
    chosen = rng.permutation(places)[:count]
    labels = np.zeros(shape, np.int32)
    grid = np.indices(shape, np.float32)
    for number, place in enumerate(chosen, start=1):
        radii = np.maximum(cell * rng.uniform(0.2, 0.38, 3), 1.5)
        centre = (place + 0.5) * cell + rng.uniform(-0.08, 0.08, 3) * cell
        low = np.maximum(np.floor(centre - radii - 1), 0).astype(int)
        high = np.minimum(np.ceil(centre + radii + 2), shape).astype(int)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        distance = sum(((grid[axis][box] - centre[axis]) / radii[axis]) ** 2 for axis in range(3))
        labels[box][distance <= 1] = number
    return labels


def _cells(shape: tuple[int, int, int], count: int, rng: np.random.Generator) -> np.ndarray:
    """Space filled with touching cells (nearest of `count` seeds in a bent space). (Z, Y, X) int32, 1 .. count."""
    seeds = rng.uniform(0, 1, (count, 3)) * shape
    bend = [ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 8) * 160 for _ in range(3)]
    points = np.stack(
        [axis + warp for axis, warp in zip(np.indices(shape, np.float32), bend, strict=True)], -1
    )
    from scipy.spatial import cKDTree

    return (cKDTree(seeds).query(points.reshape(-1, 3))[1].reshape(shape) + 1).astype(np.int32)


def _image(index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Membranes where labels change, texture elsewhere; (Z, Y, X) uint8."""
    planes = []
    for plane in index:
        edge = np.zeros(plane.shape, np.float32)
        edge[:-1] += plane[:-1] != plane[1:]
        edge[:, :-1] += plane[:, :-1] != plane[:, 1:]
        membrane = np.clip(cv2.GaussianBlur(edge, (0, 0), 1.2) * 2.2, 0, 1)
        planes.append(165 - 95 * membrane + 9 * band_noise(plane.shape, 1.5, rng))
    noise = rng.standard_normal(index.shape, dtype=np.float32) * 5
    return np.clip(np.rint(np.stack(planes) + noise), 0, 255).astype(np.uint8)


def _measure(index: np.ndarray, present: np.ndarray, ids: np.ndarray) -> tuple[PlantedObject, ...]:
    boxes = ndimage.find_objects(index)
    counts = np.bincount(index.ravel())
    centres = ndimage.center_of_mass(np.ones(index.shape, np.uint8), index, present)
    objects = []
    for number, planted_id, centre in zip(present, ids, centres, strict=True):
        box = tuple((axis.start, axis.stop) for axis in boxes[number - 1])
        border = any(a == 0 or b == size for (a, b), size in zip(box, index.shape, strict=True))
        objects.append(
            PlantedObject(int(planted_id), int(counts[number]), tuple(map(float, centre)), box, border)  # type: ignore[arg-type]
        )
    return tuple(objects)
