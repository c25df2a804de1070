"""Reading tile files once: what they say of themselves, how good their pixels are, a checksum and a thumbnail."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...formats.readers import ImageInfo, ImageReader, open_image
from .tile_quality import PlaneQuality, count_saturated, finite_float32, measure_plane, saturation_level

# Planes of a stack whose focus and noise are measured; all planes count for saturation and checksum.
MEASURED_PLANES = 9
# Rows of planes that are read together, as a bound on memory.
MAX_READ_BYTES = 256 * 1024 * 1024
# A mosaic: most tiles have a neighbour that is more than a drift (in tiles) and less than a whole tile away.
_DRIFT_SHARE = 0.25
_NEIGHBOUR_SHARE = 0.5


@dataclass(frozen=True)
class MeasureTask:
    """One file to measure.

    `split_planes` makes every plane of a stack a tile of its own; `thumbnail_px` is the longest side of a thumbnail.
    """

    index: int
    path: str
    split_planes: bool
    thumbnail_px: int

    @property
    def key(self) -> str:
        """Unique name of the task."""
        return f"file-{self.index}"


@dataclass(frozen=True, kw_only=True)
class MeasuredTile:
    """One tile of one file as its reader and its pixels tell it; `reason` says why it could not be read, or is empty."""

    path: str
    reason: str = ""
    series: int = 0
    series_name: str = ""
    series_count: int = 1
    page: int = 0
    plane: int | None = None
    plane_count: int = 1
    t: int = 0
    time_points: int = 1
    channel: int = 0
    channel_count: int = 1
    channel_name: str | None = None
    shape_zyx: tuple[int, int, int] | None = None
    dtype: str | None = None
    bits: int | None = None
    voxel_um: tuple[float | None, float | None, float | None] = (None, None, None)
    stage_um: tuple[float | None, float | None, float | None] = (None, None, None)
    acquired_at: str | None = None
    saturated_fraction: float | None = None
    focus_score: float | None = None
    signal_to_noise: float | None = None
    is_blank: bool = False
    sha256: str | None = None
    thumbnail: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)


def measure_file(task: MeasureTask) -> list[MeasuredTile]:
    """Measure every tile of a file, each read once; what cannot be read comes back with the reason.

    Parameters
    ----------
    task : MeasureTask

    Returns
    -------
    list of MeasuredTile
        A tile per series, time point and channel (and plane, when the planes are split); one in all when the file cannot
        be opened.
    """
    try:
        with open_image(task.path, whole_set=False) as reader:
            return [_measured(reader, tile, task.thumbnail_px) for tile in _tiles_of(reader, task)]
    except InputError as error:
        return [MeasuredTile(path=task.path, reason=_plain_reason(error, task.path))]
    except MemoryError:
        raise
    except Exception as error:  # files come from strangers, and the decoders from many projects
        return [MeasuredTile(path=task.path, reason=f"{type(error).__name__}: {error}"[:300])]


def _plain_reason(error: InputError, path: str) -> str:
    text = str(error).replace(path, "").replace("''", "").strip(" :.")
    return text[:300] or "cannot be read"


def _tiles_of(reader: ImageReader, task: MeasureTask) -> Iterator[MeasuredTile]:
    for series, info in enumerate(reader.images):
        times, channels, depth, height, width = info.shape
        planes = range(depth) if task.split_planes and depth > 1 else (None,)
        for t in range(times):
            for channel in range(channels):
                for plane in planes:
                    yield MeasuredTile(
                        path=task.path,
                        series=series,
                        series_name=info.name,
                        series_count=len(reader.images),
                        page=(t * channels + channel) * depth + (plane or 0),
                        plane=plane,
                        plane_count=len(planes),
                        t=t,
                        time_points=times,
                        channel=channel,
                        channel_count=channels,
                        channel_name=_told_channel(info, channel),
                        shape_zyx=(depth if plane is None else 1, height, width),
                        dtype=info.dtype.name,
                        bits=info.bits,
                        voxel_um=info.voxel_size_um,
                        stage_um=info.stage_um,
                        acquired_at=info.acquired_at,
                    )


def _told_channel(info: ImageInfo, channel: int) -> str | None:
    """The channel's name when the file tells one, None for a mere number."""
    name = info.channel_names[channel].strip()
    return None if not name or name == str(channel) else name


def _measured(reader: ImageReader, tile: MeasuredTile, thumbnail_px: int) -> MeasuredTile:
    try:
        return _with_pixels(reader, tile, thumbnail_px)
    except InputError as error:
        return replace(tile, reason=_plain_reason(error, tile.path))


def _with_pixels(reader: ImageReader, tile: MeasuredTile, thumbnail_px: int) -> MeasuredTile:
    assert tile.shape_zyx is not None  # set by _tiles_of
    depth, height, width = tile.shape_zyx
    dtype = reader.images[tile.series].dtype
    digest = hashlib.sha256(f"{dtype.str} {tile.shape_zyx}".encode())
    chosen = set(np.linspace(0, depth - 1, min(depth, MEASURED_PLANES)).round().astype(int).tolist())
    qualities: list[PlaneQuality] = []
    histogram = _SaturationCounter(dtype, tile.bits)
    thumbnail: NDArray[np.float32] | None = None
    for index, plane in _planes(reader, tile, dtype):
        digest.update(np.ascontiguousarray(plane).data)
        histogram.add(plane)
        if index in chosen:
            qualities.append(measure_plane(plane))
        small = _thumbnail(plane, thumbnail_px)
        thumbnail = small if thumbnail is None else np.maximum(thumbnail, small)
    focus = [q.focus_score for q in qualities if q.focus_score is not None]
    return replace(
        tile,
        saturated_fraction=histogram.fraction(depth * height * width),
        # a stack is in focus where its best plane is: the specimen need not fill it
        focus_score=_rounded(max(focus)) if focus else None,
        signal_to_noise=_rounded(max(q.signal_to_noise for q in qualities)),
        is_blank=all(q.is_blank for q in qualities),
        sha256=digest.hexdigest(),
        thumbnail=thumbnail,
    )


def _rounded(value: float) -> float:
    """Four significant digits: more would only differ between processors."""
    return float(f"{value:.4g}")


class _SaturationCounter:
    """Counts saturated pixels plane by plane; the level is known only when the largest value is."""

    def __init__(self, dtype: np.dtype[Any], bits: int | None) -> None:
        self._dtype, self._bits = dtype, bits
        self._maximum = -math.inf
        self._at_maximum = 0
        self._level: float | None = None
        self._count = 0

    def add(self, plane: NDArray[Any]) -> None:
        if self._dtype.kind not in "ui":
            return
        maximum = float(plane.max())
        if maximum > self._maximum:
            level = saturation_level(self._dtype, self._bits, maximum)
            # pixels counted at a lower, guessed level were not saturated after all
            self._count, self._level = (self._count if level == self._level else 0), level
            self._maximum = maximum
        if self._level is not None and maximum >= self._level:
            self._count += count_saturated(plane, self._level)

    def fraction(self, pixels: int) -> float | None:
        return None if self._dtype.kind not in "ui" else float(f"{self._count / pixels:.4g}")


def _planes(
    reader: ImageReader, tile: MeasuredTile, dtype: np.dtype[Any]
) -> Iterator[tuple[int, NDArray[Any]]]:
    """The planes of a tile one by one, read as many at a time as the file decodes together and memory allows."""
    assert tile.shape_zyx is not None
    depth, height, width = tile.shape_zyx
    affordable = max(1, MAX_READ_BYTES // max(1, height * width * dtype.itemsize))
    step = min(reader.images[tile.series].block_zyx[0], affordable)
    first = tile.plane or 0
    whole = slice(None)
    for start in range(0, depth, step):
        stop = min(depth, start + step)
        block = reader.read(
            tile.series, tile.t, tile.channel, slice(first + start, first + stop), whole, whole
        )
        for offset, plane in enumerate(block):
            yield start + offset, plane


def _thumbnail(plane: NDArray[Any], longest_px: int) -> NDArray[np.float32]:
    height, width = plane.shape
    scale = min(1.0, longest_px / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = finite_float32(plane)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    return np.ascontiguousarray(small, np.float32)


def task_bytes(path: str) -> int:
    """Memory that measuring a file takes: the planes read together, and six float images of one plane's size."""
    try:
        with open_image(path, whole_set=False) as reader:
            needs = [
                info.shape[3] * info.shape[4] * (info.dtype.itemsize * max(1, info.block_zyx[0]) + 6 * 4)
                for info in reader.images
            ]
    except InputError:
        return 0
    return max(needs, default=0)


def with_all_channels(measured: Sequence[MeasuredTile]) -> list[MeasuredTile]:
    """A file that cannot be opened stands for as many channels as the first readable file of one series has."""
    readable = [m for m in measured if m.shape_zyx is not None]
    like = [m for m in readable if m.path == readable[0].path]
    if not like or like[0].series_count > 1 or like[0].channel_count == 1:
        return list(measured)
    expanded: list[MeasuredTile] = []
    for tile in measured:
        twins = [
            replace(tile, page=m.page, channel=m.channel, channel_count=m.channel_count, channel_name=m.channel_name,
                    t=m.t, time_points=m.time_points, plane=m.plane, plane_count=m.plane_count)
            for m in like
        ]  # fmt: skip
        expanded += [tile] if tile.shape_zyx is not None else twins
    return expanded


def stage_shows_mosaic(measured: Sequence[MeasuredTile]) -> bool:
    """Whether the stage positions in the metadata are those of neighbouring tiles: then plain numbers count tiles.

    Sections imaged one by one lie at one place (with a little drift) or far from each other on their wafer.
    """
    from scipy.spatial import cKDTree

    places = [
        (m.stage_um[1] / (m.shape_zyx[1] * m.voxel_um[1]), m.stage_um[2] / (m.shape_zyx[2] * m.voxel_um[2]))
        for m in measured
        if m.shape_zyx
        and m.stage_um[1] is not None
        and m.stage_um[2] is not None
        and m.voxel_um[1]
        and m.voxel_um[2]
    ]
    distinct = np.unique(np.round(np.array(places).reshape(-1, 2), 6), axis=0)
    if len(distinct) < 2 or len(places) < len(measured) / 2:
        return False
    distances, _ = cKDTree(distinct).query(distinct, k=2, p=np.inf)
    nearest = np.asarray(distances)[:, 1]
    return bool(np.mean((nearest > _DRIFT_SHARE) & (nearest < 1.0)) > _NEIGHBOUR_SHARE)
