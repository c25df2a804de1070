"""Flat field and dark level of every channel of a set of tiles: given as images, or estimated from a bounded sample."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tifffile

from ...engine import Job, run_tasks
from ...errors import InputError
from ...formats.readers import open_image
from ...formats.tables import Tile
from ...stage import RunOptions
from ...store import MARKER_FOLDER, atomic_path
from . import fixed_pattern
from .fixed_pattern import PatternSum
from .flat_field import (
    MIN_SITES,
    DarkLevel,
    Shading,
    estimate_dark,
    estimate_shading,
    fit_surface,
    full_field,
    grid_shape,
    span_percent,
    thumbnail,
)
from .illumination_tasks import (
    Group,
    PlaneOfTile,
    PlanesTask,
    group_of,
    pattern_of_planes,
    sample_planes,
    save_fields,
    sites_of,
    thumbnails_of,
)
from .tile_correction import Fields

Float = npt.NDArray[np.floating[Any]]

PATTERN_PLANES = 64
"""Most planes of a channel that dust is looked for in: its noise is an eighth of a tile's then."""

_PLANES_A_TASK = 16
# A flat field that is uncertain by more than this share of its shading may do more harm than good: it must be asked for.
_MAX_DOUBT = 0.25


@dataclass(frozen=True, kw_only=True)
class FieldsRequest:
    """What the user wants to know of the illumination.

    Attributes
    ----------
    flat : bool
        Whether the flat field is corrected.
    dark : {"off", "blank", "on"}
        Whether the dark level is; `blank`: only if it is given or blank tiles tell it.
    flat_required : bool
        Refuse, rather than warn, when the flat field cannot be estimated.
    flat_input, dark_input : Path or None
        Measured images.
    dark_level : float or None
        Known grey value without light.
    planes : int
        Most planes per channel for the estimate.
    """

    flat: bool
    dark: Literal["off", "blank", "on"]
    flat_required: bool
    flat_input: Path | None
    dark_input: Path | None
    dark_level: float | None
    planes: int


@dataclass(frozen=True)
class GroupFields:
    """Flat field and dark level of one channel and tile size, and how good they are.

    Attributes
    ----------
    group : Group
    fields : Fields
    path : str
        File that workers load the fields from.
    typical : (h, w) ndarray of float32
        Median of the sampled planes, each over its brightness, dark level subtracted, before correction.
    flat_source, dark_source : str
        In words.
    shading_percent, residual_percent : float or None
        Before and expected after correction; None when not known.
    planes : int
        Planes sampled that could be used.
    dust_percent : float
        Share of the field under dust.
    warnings : tuple of str
    """

    group: Group
    fields: Fields
    path: str
    typical: Float
    flat_source: str
    dark_source: str
    shading_percent: float | None
    residual_percent: float | None
    planes: int
    dust_percent: float
    warnings: tuple[str, ...]

    @property
    def dark_level(self) -> float:
        """Mean grey value without light."""
        return float(self.fields.dark.mean())

    def to_bytes(self) -> bytes:
        """The estimate as a file, for a resumed job and for the workers."""
        facts = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in ("group", "fields", "path", "typical")
        }
        buffer = io.BytesIO()
        np.savez(
            buffer,
            flat=self.fields.flat,
            dark=self.fields.dark,
            typical=self.typical,
            facts=json.dumps(facts),
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, group: Group, path: str, data: bytes) -> GroupFields:
        """Read what `to_bytes` wrote."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            facts = json.loads(str(arrays["facts"]))
            facts["warnings"] = tuple(facts["warnings"])
            return cls(group, Fields(arrays["flat"], arrays["dark"]), path, arrays["typical"], **facts)


def estimate_fields(
    tiles: Sequence[Tile], folder: Path, request: FieldsRequest, job: Job, run: RunOptions
) -> dict[Group, GroupFields]:
    """Get flat field and dark level of every group of tiles; what is estimated once is kept with the job.

    Parameters
    ----------
    tiles : sequence of Tile
        Tiles with the status ok or blank.
    folder : Path
        Folder that their names are relative to.
    request : FieldsRequest
    job, run
        As in the stage.

    Returns
    -------
    dict
        In the order in which the groups appear in the table.
    """
    members: dict[Group, list[Tile]] = {}
    for tile in tiles:
        members.setdefault(group_of(tile), []).append(tile)
    channels = list(dict.fromkeys(group.channel for group in members))
    found = {}
    for index, (group, rows) in enumerate(members.items()):
        name = f"fields-{index}.npz"
        path = str(Path(job.output) / MARKER_FOLDER / "state" / name)
        stored = job.load(name)
        if stored is None:
            stored = _estimate_group(
                _sample_group(group, index, rows, channels, folder, request.planes, run), request, job, run
            ).to_bytes()
            job.save(name, stored)
        found[group] = GroupFields.from_bytes(group, path, stored)
    return found


@dataclass(frozen=True)
class _Sample:
    """What all estimates of one group start from."""

    group: Group
    index: int
    channels: tuple[str, ...]
    folder: Path
    planes: tuple[PlaneOfTile, ...]
    blank: tuple[PlaneOfTile, ...]
    thumbs: Float
    sites: npt.NDArray[np.intp]


def _sample_group(
    group: Group,
    index: int,
    rows: Sequence[Tile],
    channels: Sequence[str],
    folder: Path,
    count: int,
    run: RunOptions,
) -> _Sample:
    ok, blank = ([tile for tile in rows if tile.status == status] for status in ("ok", "blank"))
    planes = sample_planes(ok, count)
    thumbs, sites = _thumbnails(planes, folder, run, f"Looking at channel {group.channel}", group)
    return _Sample(
        group,
        index,
        tuple(channels),
        folder,
        tuple(planes),
        tuple(sample_planes(blank, _PLANES_A_TASK)),
        thumbs,
        sites,
    )


def _estimate_group(sample: _Sample, request: FieldsRequest, job: Job, run: RunOptions) -> GroupFields:
    shape = (sample.group.height, sample.group.width)
    dark, dark_field, dark_source, warnings = _dark(sample, request, run)
    lit = sample.thumbs - np.float32(dark.level if dark else 0.0)
    plain = GroupFields(
        group=sample.group,
        fields=Fields(np.ones(shape, np.float32), dark_field),
        path="",
        typical=_typical(lit, shape),
        flat_source="not corrected",
        dark_source=dark_source,
        shading_percent=None,
        residual_percent=None,
        planes=len(lit),
        dust_percent=0.0,
        warnings=warnings,
    )
    if request.flat_input is not None:
        flat = _given_field(
            request.flat_input, sample.group, sample.channels, "--flat-field-input", dark_field
        )
        small = thumbnail(flat)
        return replace(
            plain,
            fields=Fields(flat, dark_field),
            flat_source=f"given ({request.flat_input.name})",
            shading_percent=span_percent(small),
            residual_percent=span_percent(fit_surface(lit / small)) if len(lit) >= MIN_SITES else None,
        )
    if not request.flat:
        return plain
    shading, why = _shading(sample, dark, request)
    if shading is None:
        return replace(plain, warnings=(*warnings, why))
    smooth = Fields(full_field(shading.field, shape), dark_field)
    # Few places repeat their own content, section by section, and that would be taken for dust.
    enough = shading.sites >= fixed_pattern.MIN_PLANES
    pattern = _pattern(sample, smooth, job, run) if enough else np.ones(shape, np.float32)
    flat = np.asarray(smooth.flat * pattern, np.float32)
    return replace(
        plain,
        fields=Fields(np.asarray(flat / flat.mean(), np.float32), dark_field),
        flat_source=f"estimated from {shading.planes} planes of {shading.sites} places",
        shading_percent=shading.shading_percent,
        residual_percent=shading.residual_percent,
        planes=shading.planes,
        dust_percent=float(np.mean(np.abs(pattern - 1.0) > 0.01) * 100),
    )


def _thumbnails(
    planes: Sequence[PlaneOfTile], folder: Path, run: RunOptions, label: str, group: Group
) -> tuple[Float, npt.NDArray[np.intp]]:
    """Read planes and shrink them, (N, h, w), with their sites; planes that cannot teach shading are left out."""
    tasks = [
        PlanesTask(f"sample-{start}", str(folder), tuple(planes[start : start + _PLANES_A_TASK]))
        for start in range(0, len(planes), _PLANES_A_TASK)
    ]
    memory = 12 * group.height * group.width + 64_000_000
    results = run_tasks(thumbnails_of, tasks, job=None, run=run, label=label, task_bytes=memory)
    found = [thumb for result in results for thumb in result]
    kept = [thumb for thumb in found if thumb is not None]
    sites = sites_of([place for place, thumb in zip(planes, found) if thumb is not None])
    empty = np.zeros((0, *grid_shape(group.height, group.width)), np.float32)
    return (np.stack(kept) if kept else empty), sites


def _typical(lit: Float, shape: tuple[int, int]) -> Float:
    """Median of planes over their own brightness; ones when there is no plane with light."""
    levels = np.median(lit, axis=(1, 2)) if len(lit) else np.zeros(0)
    bright = lit[levels > 0] / levels[levels > 0][:, None, None]
    return np.median(bright, axis=0) if len(bright) else np.ones(grid_shape(*shape), np.float32)


def _dark(
    sample: _Sample, request: FieldsRequest, run: RunOptions
) -> tuple[DarkLevel | None, Float, str, tuple[str, ...]]:
    """Return the dark level, the field to subtract, its source and warnings."""
    none = np.zeros((), np.float32)
    group, thumbs = sample.group, sample.thumbs
    if request.dark == "off":
        return None, none, "not corrected", ()
    if request.dark_input is not None:
        field = _given_field(request.dark_input, group, sample.channels, "--dark-input", None)
        level = DarkLevel(float(field.mean()), None, f"given ({request.dark_input.name})")
        return level, field, level.source, ()
    if request.dark_level is not None:
        return (
            DarkLevel(request.dark_level, None, "given"),
            np.asarray(request.dark_level, np.float32),
            "given",
            (),
        )
    found = None
    if len(thumbs) >= MIN_SITES:
        blanks, _ = _thumbnails(sample.blank, sample.folder, run, "Looking at blank tiles", group)
        found = estimate_dark(thumbs, blanks)
    if request.dark == "blank" and (found is None or not found.of_blanks):
        return None, none, "no blank tiles tell it, 0 taken", ()
    if found is None:
        return _unknown_dark(group, thumbs)
    error = f" +- {found.error:.2g}" if found.error is not None else ""
    return found, np.asarray(found.level, np.float32), f"{found.source}{error}", ()


def _unknown_dark(group: Group, thumbs: Float) -> tuple[DarkLevel, Float, str, tuple[str, ...]]:
    """Take 0 and count into the error how far off that can be: the dark level is below the darkest grey value."""
    lowest = max(0.0, float(thumbs.min())) if len(thumbs) else 0.0
    source = f"not known, 0 taken (it can be up to {lowest:.4g})"
    warnings: tuple[str, ...] = ()
    if len(thumbs) and lowest > 0.02 * float(np.median(thumbs)):
        warnings = (
            f"Channel {group.channel}: the tiles cannot tell the detector's dark level, which may be up to {lowest:.4g}; "
            "0 is taken, and bright content may keep shading: pass --dark-level, or --dark-input with images without light",
        )
    return DarkLevel(0.0, lowest, source), np.zeros((), np.float32), source, warnings


def _shading(sample: _Sample, dark: DarkLevel | None, request: FieldsRequest) -> tuple[Shading | None, str]:
    """Return the smooth flat field, or None and why there is none."""
    group = sample.group
    try:
        shading = estimate_shading(sample.thumbs, dark, sample.sites)
    except ValueError as error:
        why = (
            f"Channel {group.channel}: the flat field was not estimated from {group.width} x {group.height} px tiles "
            f"({error}): pass --flat-field-input with a measured one, or --flat-field off"
        )
        if request.flat_required:
            raise InputError(why) from error
        return None, why
    if not request.flat_required and shading.content_percent > _MAX_DOUBT * shading.shading_percent:
        return None, (
            f"Channel {group.channel}: the flat field was not corrected: its shading of {shading.shading_percent:.1f} % "
            f"(uncertain by {shading.content_percent:.1f} %) may be the sample's own, seen at {shading.sites} places only: "
            "give more tiles, --flat-field-input, or --flat-field on"
        )
    return shading, ""


def _pattern(sample: _Sample, fields: Fields, job: Job, run: RunOptions) -> Float:
    """Find dust: a second pass over part of the sample, at full resolution."""
    group, planes = sample.group, sample.planes[:PATTERN_PLANES]
    name = f"smooth-{sample.index}.npz"
    job.save(name, save_fields(fields))
    path = str(Path(job.output) / MARKER_FOLDER / "state" / name)
    tasks = [
        PlanesTask(f"dust-{start}", str(sample.folder), planes[start : start + _PLANES_A_TASK], path)
        for start in range(0, len(planes), _PLANES_A_TASK)
    ]
    memory = 24 * group.height * group.width + 64_000_000
    label = f"Looking for dust in channel {group.channel}"
    total: PatternSum | None = None
    for part in run_tasks(pattern_of_planes, tasks, job=None, run=run, label=label, task_bytes=memory):
        if part is not None:
            total = part if total is None else total + part
    return (
        np.ones((group.height, group.width), np.float32)
        if total is None
        else fixed_pattern.fixed_pattern(total)
    )


def _given_field(path: Path, group: Group, channels: Sequence[str], option: str, dark: Float | None) -> Float:
    """Read a measured flat field or dark image of one group.

    Planes are averaged. A flat field of an integer type is a raw image: its dark level is subtracted; one of floating point
    is taken as it is. A flat field comes back with mean 1.
    """
    with open_image(path, whole_set=False) as reader:
        places = [
            (series, channel, name)
            for series, info in enumerate(reader.images)
            if info.shape[3:] == (group.height, group.width)
            for channel, name in enumerate(info.channel_names)
        ]
        if not places:
            seen = ", ".join(f"{info.shape[4]} x {info.shape[3]}" for info in reader.images)
            raise InputError(
                f"{option}: '{path}' is {seen} px and the tiles are {group.width} x {group.height}: "
                "give an image of the same size"
            )
        series, channel = _place_of(places, group.channel, channels, option, path)
        planes = reader.read(series, 0, channel, slice(None), slice(None), slice(None))
    field: Float = planes.mean(axis=0, dtype=np.float64).astype(np.float32)
    if dark is None:
        if not np.isfinite(field).all():
            raise InputError(f"{option}: '{path}' has pixels that are not numbers: record it again")
        return field
    if planes.dtype.kind != "f":
        field = field - dark
    if not np.isfinite(field).all() or float(field.min()) <= 0:
        raise InputError(
            f"{option}: '{path}' is not brighter than the dark level everywhere (lowest {field.min():.3g} above it): "
            "record it again with more light, without a sample"
        )
    return np.asarray(field / field.mean(), np.float32)


def _place_of(
    places: list[tuple[int, int, str]], channel: str, channels: Sequence[str], option: str, path: Path
) -> tuple[int, int]:
    """Find a channel's image: the only one, the one of its name, or the one at its place."""
    if len(places) == 1:
        return places[0][:2]
    named = [place for place in places if place[2] == channel]
    if len(named) == 1:
        return named[0][:2]
    if len(places) == len(channels):
        return places[list(channels).index(channel)][:2]
    raise InputError(
        f"{option}: '{path}' holds {len(places)} images and the tiles have {len(channels)} channels "
        f"({', '.join(channels)}): give one image for all, or one for each in this order"
    )


def write_fields(path: Path, found: Mapping[Group, GroupFields], kind: Literal["flat", "dark"]) -> None:
    """Write the fields of all groups as OME-TIFF, 32-bit floating point: an image per tile size, a channel per channel.

    Parameters
    ----------
    path : Path
    found : dict
        As `estimate_fields` gives it.
    kind : {"flat", "dark"}
    """
    sizes: dict[tuple[int, int], list[GroupFields]] = {}
    for group, estimate in found.items():
        sizes.setdefault((group.height, group.width), []).append(estimate)
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, ome=True) as writer:
        for shape, estimates in sizes.items():
            fields = [np.broadcast_to(getattr(one.fields, kind), shape) for one in estimates]
            names = [one.group.channel for one in estimates]
            writer.write(
                np.stack(fields).astype(np.float32),
                photometric="minisblack",
                metadata={"axes": "CYX", "Channel": {"Name": names}, "Creator": "KBrain"},
            )
