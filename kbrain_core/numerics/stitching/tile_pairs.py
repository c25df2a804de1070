"""Registering neighbouring tiles: coarse on reduced tiles, fine on the real overlap at full resolution.

A task holds the pairs of one patch of the mosaic, so that its tiles are read once and few are in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .phase_correlation import (
    Float3,
    Int3,
    correlation_peaks,
    ncc_neighbourhood,
    overlap_ncc,
    overlap_slices,
    quadratic_peak,
)
from .tile_filter import Signal, enlarge, reduce_plane, structure_share, texture
from .tile_images import WHOLE_TILE_BYTES, TileFiles
from .tile_layout import Site

# Reduced tiles have at most this many voxels: more brings no better candidates, only work.
COARSE_VOXELS = 1_500_000
# A reduced overlap narrower than this loses the structure that tells the right offset.
COARSE_OVERLAP_PX = 24
# The fine step uses at most this many voxels of an overlap, those with the most structure.
FINE_VOXELS = 2_000_000
# Side of the patch of one task, in tiles: its tiles are read once, only those of its rim again by the next patch.
PATCH_TILES = 8
# A patch visits its tiles in rows and lets go of each after its last pair: a row and the neighbours' neighbour are kept.
KEPT_TILES = PATCH_TILES + 4
# Bound of the kept decoded tiles.
DECODED_BYTES = 200_000_000


@dataclass(frozen=True)
class Pair:
    """Two sites to register.

    Attributes
    ----------
    first, second : int
        Numbers of the sites.
    offset : (3,) float
        Where the stage puts the second in the frame of the first, px.
    null : bool
        The two do not touch: how well they seem to agree tells what chance gives. A pair of a site with itself as
        `second` of a neighbour turned by 180 degrees serves when the mosaic has too few tiles.
    turned : bool
        Turn the second by 180 degrees first.
    """

    first: int
    second: int
    offset: Float3
    null: bool = False
    turned: bool = False


@dataclass(frozen=True)
class Structure:
    """What the two sides of an overlap hold that could match.

    Attributes
    ----------
    share : float
        NCC that they could reach: geometric mean of the shares of variance that are structure and not noise.
    contrast : float
        Smaller of their standard deviations after filtering, grey values.
    """

    share: float = 0.0
    contrast: float = 0.0

    @classmethod
    def between(cls, first: Signal, second: Signal) -> Structure:
        """Of two filtered images."""
        if not first.size or not second.size:
            return cls()
        share = np.sqrt(structure_share(first) * structure_share(second))
        return cls(float(share), float(min(first.std(), second.std())))


@dataclass(frozen=True)
class Measurement:
    """What was found for a pair.

    Attributes
    ----------
    first, second : int
    null : bool
    offset : (3,) float
        Measured offset, px.
    ncc : float
        NCC on the reduced overlap, what acceptance is decided by.
    second_ncc : float
        NCC of the next best offset.
    fine_ncc : float
        NCC on the overlap at full resolution.
    area : int
        Voxels of the overlap at full resolution.
    structure : Structure
        What both sides hold that could match, where the stage puts them.
    """

    first: int
    second: int
    null: bool
    offset: Float3
    ncc: float
    second_ncc: float
    fine_ncc: float
    area: int
    structure: Structure

    def row(self) -> list[float]:
        """As plain numbers, for a task's marker."""
        numbers = (
            self.ncc,
            self.second_ncc,
            self.fine_ncc,
            self.area,
            self.structure.share,
            self.structure.contrast,
        )
        return [self.first, self.second, int(self.null), *self.offset, *numbers]

    @classmethod
    def from_row(cls, row: Sequence[float]) -> Measurement:
        """From `row`."""
        offset = (float(row[3]), float(row[4]), float(row[5]))
        structure = Structure(row[10], row[11])
        return cls(
            int(row[0]), int(row[1]), bool(row[2]), offset, row[6], row[7], row[8], int(row[9]), structure
        )


@dataclass(frozen=True)
class Reduction:
    """How much tiles are reduced for the coarse step: planes by `z`, pixels by `yx`."""

    z: int
    yx: int


def choose_reduction(shape: Int3, overlap_px: float, step_ratio: float | None) -> Reduction:
    """Reduction of the coarse step.

    Parameters
    ----------
    shape : (3,) int
        Shape of a tile, px.
    overlap_px : float
        Width of the nominal overlap.
    step_ratio : float or None
        Distance of planes in pixel sizes, when known: planes are joined only once pixels are as coarse.
    """
    limit = max(1, int(overlap_px / COARSE_OVERLAP_PX))
    yx, z = min(2, limit), 1

    def voxels() -> float:
        return float(np.prod(shape)) / (z * yx * yx)

    while voxels() > COARSE_VOXELS and 2 * yx <= limit:
        if shape[0] // (2 * z) >= 16 and z * (step_ratio or 1) < yx:
            z *= 2
        else:
            yx *= 2
    while voxels() > COARSE_VOXELS and shape[0] // (2 * z) >= 16:
        z *= 2
    return Reduction(z, yx)


@dataclass(frozen=True)
class PairTask:
    """Pairs of one patch of the mosaic.

    Attributes
    ----------
    key : str
    folder : Path
    sites : dict of int to Site
        The sites that the pairs name.
    pairs : tuple of Pair
    margin : (3,) int
        Largest shift from the stage, px.
    reduction : Reduction
    patterns : dict of (int, int) to (Y, X) ndarray
        Fixed pattern by tile height and width, reduced; a size without one has too few tiles.
    """

    key: str
    folder: Path
    sites: dict[int, Site] = field(repr=False)
    pairs: tuple[Pair, ...] = field(repr=False)
    margin: Int3
    reduction: Reduction
    patterns: dict[tuple[int, int], Signal] = field(repr=False)


class SiteImages:
    """What registration sees of sites: reduced and filtered, or boxes at full resolution."""

    def __init__(self, task: PairTask, files: TileFiles) -> None:
        self._task = task
        self._files = files
        self._coarse: dict[int, Signal] = {}
        self._patterns: dict[tuple[int, int], Signal] = {}

    def coarse(self, number: int) -> Signal:
        """Filtered reduced tile, (Z, Y, X)."""
        if number not in self._coarse:
            self._coarse[number] = self._make_coarse(self._task.sites[number])
        return self._coarse[number]

    def release(self, number: int) -> None:
        """Let go of a site that no further pair needs."""
        self._coarse.pop(number, None)
        for tile in self._task.sites[number].registration:
            self._files.release(tile)

    def _make_coarse(self, site: Site) -> Signal:
        step = self._task.reduction
        signal = texture(read_reduced(site, self._files, step), step.yx)
        pattern = self._task.patterns.get(site.shape[1:])
        if pattern is not None:
            signal -= pattern
        return signal

    def fine(self, number: int, box: tuple[slice, ...]) -> Signal:
        """A box at full resolution less the fixed pattern, background and pixel noise, (Z, Y, X)."""
        site = self._task.sites[number]
        volume = read_sum(site, self._files, (box[0], box[1], box[2]))
        if site.shape[1:] in self._task.patterns:
            volume -= self._pattern(site.shape[1:], (box[1], box[2]))
        return texture(volume, denoise=True)

    def _pattern(self, size: tuple[int, int], region: tuple[slice, slice]) -> Signal:
        """Part of the fixed pattern at full resolution; the whole is kept where it is small."""
        reduced, factor = self._task.patterns[size], self._task.reduction.yx
        if size[0] * size[1] > FINE_VOXELS:
            return enlarge(reduced, factor, region)
        if size not in self._patterns:
            self._patterns[size] = enlarge(reduced, factor, (slice(0, size[0]), slice(0, size[1])))
        return self._patterns[size][region]


def task_bytes(sites: Iterable[Site], reduction: Reduction) -> int:
    """Most memory that registering takes in one task: kept tiles, and the transforms and fine parts of one pair."""
    kept = 0
    for site in sites:
        voxels = int(np.prod(site.shape))
        raw = voxels * np.dtype(site.registration[0].dtype).itemsize
        decoded = raw * len(site.registration) if raw <= WHOLE_TILE_BYTES else 0
        coarse = 4 * voxels // (reduction.z * reduction.yx**2)
        kept = max(kept, min(KEPT_TILES * decoded, DECODED_BYTES) + (KEPT_TILES + 8) * coarse)
    return kept + 12 * FINE_VOXELS


def read_sum(site: Site, files: TileFiles, box: tuple[slice, slice, slice]) -> Signal:
    """Mean of the registered tiles of a site in a box, float32; holes (NaN) take the mean of the rest."""
    planes = [files.read(tile, box).astype(np.float32) for tile in site.registration]
    volume: Signal = planes[0] if len(planes) == 1 else np.mean(planes, axis=0, dtype=np.float32)
    if np.dtype(site.registration[0].dtype).kind == "f" and not np.isfinite(volume).all():
        good = np.isfinite(volume)
        volume[~good] = volume[good].mean() if good.any() else 0
    return volume


def read_reduced(site: Site, files: TileFiles, step: Reduction) -> Signal:
    """A reduced site, read plane by plane."""
    depth, height, width = site.shape
    out = np.zeros((depth // step.z, height // step.yx, width // step.yx), np.float32)
    rows, columns = slice(0, height), slice(0, width)
    share = np.float32(1 / (step.z * len(site.registration)))
    for z in range(len(out) * step.z):
        for tile in site.registration:
            plane = files.read(tile, (slice(z, z + 1), rows, columns))[0]
            out[z // step.z] += reduce_plane(plane, step.yx) * share
    return out


def register_pairs(task: PairTask) -> list[list[float]]:
    """Register all pairs of a task; the rows are those of `Measurement`."""
    with TileFiles(task.folder, DECODED_BYTES) as files:
        images = SiteImages(task, files)
        found = [_register(pair, task, images) for pair in _releasing(task.pairs, images)]
        return [item.row() for item in found if item is not None]


def _releasing(pairs: Sequence[Pair], images: SiteImages) -> Iterator[Pair]:
    """Pairs one by one; after the last pair of a site its images are let go."""
    last = {site: number for number, pair in enumerate(pairs) for site in (pair.first, pair.second)}
    for number, pair in enumerate(pairs):
        yield pair
        for site in (pair.first, pair.second):
            if last[site] == number:
                images.release(site)


def _register(pair: Pair, task: PairTask, images: SiteImages) -> Measurement | None:
    step = (task.reduction.z, task.reduction.yx, task.reduction.yx)
    first, second = images.coarse(pair.first), images.coarse(pair.second)
    if pair.turned:
        second = np.ascontiguousarray(second[:, ::-1, ::-1])
    expected = _int3(round(value / n) for value, n in zip(pair.offset, step, strict=True))
    margin = _int3(-(-value // n) for value, n in zip(task.margin, step, strict=True))
    nominal = overlap_slices(_int3(first.shape), _int3(second.shape), expected, (0, 0, 0))
    area = int(np.prod([part.stop - part.start for part in nominal[0]]))
    peaks = correlation_peaks(first, second, expected, margin, min_area=max(1, area // 4))
    if not peaks:
        return None
    best, runner_up = peaks[0], peaks[1].ncc if len(peaks) > 1 else 0.0
    coarse_offset = _float3(value * n for value, n in zip(best.offset, step, strict=True))
    if pair.null:
        return Measurement(
            pair.first,
            pair.second,
            True,
            coarse_offset,
            best.ncc,
            runner_up,
            best.ncc,
            best.area,
            Structure(),
        )
    structure = Structure.between(first[nominal[0]], second[nominal[1]])
    offset, fine_ncc, fine_area = _refine(pair, coarse_offset, task, images)
    return Measurement(
        pair.first, pair.second, False, offset, best.ncc, runner_up, fine_ncc, fine_area, structure
    )


def _refine(pair: Pair, offset: Float3, task: PairTask, images: SiteImages) -> tuple[Float3, float, int]:
    """Sub-pixel offset at full resolution, its NCC and the voxels it rests on."""
    one, other = task.sites[pair.first].shape, task.sites[pair.second].shape
    place = _int3(round(value) for value in offset)
    step = task.reduction
    scales = [
        Reduction(max(1, step.z >> n), max(1, step.yx >> n))
        for n in range(1, max(step.z, step.yx).bit_length())
    ]
    shift, ncc, area = (0.0, 0.0, 0.0), 0.0, 0
    for scale in scales or [Reduction(1, 1)]:
        seen: set[Int3] = set()
        for _ in range(6):  # a coarse place is a pixel or two off; more turns mean a plateau
            seen.add(place)
            in_first, in_second = overlap_slices(one, other, place, (0, 0, 0))
            if min(part.stop - part.start for part in in_first[1:]) < 8 * scale.yx:
                return _float3(place), 0.0, 0
            in_first, in_second = _richest_part(in_first, in_second, pair.first, task, images)
            a, b = images.fine(pair.first, in_first), images.fine(pair.second, in_second)
            a, b = _reduce_volume(a, scale), _reduce_volume(b, scale)
            reach = _int3(1 if size >= 8 else 0 for size in a.shape)
            values = ncc_neighbourhood(a, b, reach)
            shift, ncc = quadratic_peak(values)
            area = a.size
            top = np.unravel_index(int(values.argmax()), values.shape)
            move = tuple(int(t) - r for t, r in zip(top, reach, strict=True))
            moved = _int3(
                p + m * n for p, m, n in zip(place, move, (scale.z, scale.yx, scale.yx), strict=True)
            )
            if moved in seen:
                break
            place = moved
    return _float3(p + s for p, s in zip(place, shift, strict=True)), ncc, area


def _richest_part(
    in_first: tuple[slice, ...], in_second: tuple[slice, ...], number: int, task: PairTask, images: SiteImages
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The overlap itself, or the part of it with the most structure when it is larger than the fine step needs."""
    sizes = [part.stop - part.start for part in in_first]
    if np.prod(sizes) <= FINE_VOXELS:
        return in_first, in_second
    window = list(sizes)
    while np.prod(window) > FINE_VOXELS:
        window[int(np.argmax(window))] = -(-max(window) // 2)
    step = (task.reduction.z, task.reduction.yx, task.reduction.yx)
    coarse = images.coarse(number)[
        tuple(slice(p.start // n, -(-p.stop // n)) for p, n in zip(in_first, step, strict=True))
    ]
    starts = [
        sorted({*range(0, size - part + 1, max(1, part // 2)), size - part})
        for size, part in zip(sizes, window, strict=True)
    ]
    energy = {
        (z, y, x): float(
            np.square(
                coarse[
                    tuple(
                        slice(at // n, (at + part) // n + 1)
                        for at, part, n in zip((z, y, x), window, step, strict=True)
                    )
                ]
            ).sum()
        )
        for z in starts[0]
        for y in starts[1]
        for x in starts[2]
    }
    at = max(energy, key=lambda start: energy[start])
    cut_a = tuple(slice(p.start + a, p.start + a + w) for p, a, w in zip(in_first, at, window, strict=True))
    cut_b = tuple(slice(p.start + a, p.start + a + w) for p, a, w in zip(in_second, at, window, strict=True))
    return cut_a, cut_b


def _reduce_volume(volume: Signal, scale: Reduction) -> Signal:
    if scale.z > 1:
        kept = volume[: len(volume) // scale.z * scale.z]
        volume = kept.reshape(-1, scale.z, *kept.shape[1:]).mean(axis=1, dtype=np.float32)
    if scale.yx == 1:
        return volume
    return np.stack([reduce_plane(plane, scale.yx) for plane in volume])


@dataclass(frozen=True)
class SeamTask:
    """Pairs whose agreement is measured where a solution puts them."""

    key: str
    pairs: PairTask
    placed: tuple[Float3, ...] = field(repr=False)


def check_seams(task: SeamTask) -> list[list[float]]:
    """NCC and structure on the overlap of every pair at its given offset.

    Returns
    -------
    list of [ncc, share, contrast]
        In the order of the pairs; zeros where the two do not meet.
    """
    with TileFiles(task.pairs.folder, DECODED_BYTES) as files:
        images = SiteImages(task.pairs, files)
        pairs = zip(_releasing(task.pairs.pairs, images), task.placed, strict=True)
        return [_seam(pair, offset, task.pairs, images) for pair, offset in pairs]


def _seam(pair: Pair, offset: Float3, task: PairTask, images: SiteImages) -> list[float]:
    step = (task.reduction.z, task.reduction.yx, task.reduction.yx)
    first, second = images.coarse(pair.first), images.coarse(pair.second)
    place = _int3(round(value / n) for value, n in zip(offset, step, strict=True))
    in_first, in_second = overlap_slices(_int3(first.shape), _int3(second.shape), place, (0, 0, 0))
    structure = Structure.between(first[in_first], second[in_second])
    ncc = overlap_ncc(first, second, place)[0]
    return [ncc, structure.share, structure.contrast]


def _int3(values: Iterator[int] | Sequence[int]) -> Int3:
    z, y, x = values
    return int(z), int(y), int(x)


def _float3(values: Iterator[float] | Sequence[float]) -> Float3:
    z, y, x = values
    return float(z), float(y), float(x)
