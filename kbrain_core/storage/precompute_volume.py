"""Turn a volume into Neuroglancer's precomputed format, which KNeuroViz draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from ..errors import InputError
from ..geometry import AxisInts, Box, VoxelSize
from ..stage import RunOptions, StageResult, TilesIn, VolumeIn, VolumeOut, stage

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from ..formats.layout import ZYX, Encoding
    from ..formats.volume import Volume
    from ..formats.volume_spec import VolumeKind, VolumeSpec
    from ..numerics.volumes.volume_writer import VolumeWriter

# Voxels that one processor second turns into chunks, for the plan: measured on EM, reading and coarser levels included.
VOXELS_PER_CPU_S = {
    "raw": 120e6,
    "jpeg": 80e6,
    "png": 15e6,
    "compressed_segmentation": 40e6,
}


@dataclass(frozen=True, kw_only=True)
class PrecomputeResult(StageResult):
    """What `precompute_volume` made."""

    levels: int
    voxels: int
    written_bytes: int | None = None
    compression_ratio: float | None = None
    level_mean_grey: tuple[float, ...] = ()
    largest_mean_shift_grey: float | None = None
    lossy: bool
    lossy_mean_error_grey: float | None = None
    lossy_max_error_grey: float | None = None


@stage
def precompute_volume(
    input: VolumeIn,
    output: VolumeOut,
    *,
    bbox: Box | None = None,
    channel: list[str] | None = None,
    channel_table: TilesIn | None = None,
    time_point: Annotated[int, Ge(0)] = 0,
    kind: Literal["auto", "image", "labels"] = "auto",
    voxel_size: VoxelSize | None = None,
    encoding: Literal["auto", "raw", "jpeg", "png", "compressed_segmentation"] = "auto",
    quality: Annotated[int, Ge(1), Le(100)] = 75,
    window: str | None = None,
    mips: Annotated[int, Ge(0), Le(30)] | None = None,
    factor: AxisInts | None = None,
    chunk_size: AxisInts | None = None,
    shard_mb: Annotated[float, Gt(0)] = 128.0,
    unsharded: bool = False,
    run: RunOptions = RunOptions(),
) -> PrecomputeResult:
    """Make a volume browsable: all resolution levels in Neuroglancer's precomputed format, in one reading.

    Every voxel is read once. Images are averaged (exactly, rounded once), labels take the most frequent ID. The result opens
    in KNeuroViz (`kbrain view-volume`), Neuroglancer, cloud-volume and tensorstore.

    Parameters
    ----------
    input : str
        OME-Zarr or precomputed volume, a folder or URL.
    output : str
        Folder or URL of the precomputed volume.
    bbox : Box, optional
        Box of voxels to take, like x=0:512,y=0:512,z=0:64. It keeps its place in space. Default: everything.
    channel : list of str, optional
        Channels to take, by name or by number from 0. Default: all.
    channel_table : Path, optional
        Table of tiles of one channel, from sort-tiles: the channel that it names is taken. For workflows that make a
        volume for each channel. Not together with --channel.
    time_point : int
        Time point to take, counted from 0: the format holds one.
    kind : str
        image or labels; auto takes what the volume says of itself. Labels are never averaged and never lossy.
    voxel_size : VoxelSize, optional
        Size of a voxel, like x=4nm,y=4nm,z=40nm. Default: as the volume says.
    encoding : str
        How chunks are compressed. raw: not at all; jpeg: about a sixth of EM, with loss, for looking and not for measuring;
        png: without loss; compressed_segmentation: for labels. auto: raw for images, compressed_segmentation for labels.
    quality : int
        Quality of JPEG. 75 makes FIB-SEM six times smaller at a mean error of 3 grey levels; the report states yours.
    window : str, optional
        Intensities that become 0 and 255, like 200,4000, or percentile for the 0.35th and 99.65th percentile of each
        channel. Needed to make 8 bits (and JPEG) of 16; recorded in the volume's metadata. Default: intensities stay.
    mips : int, optional
        How many coarser levels to make. Default: until no axis has more than 256 voxels, which fits a screen.
    factor : AxisInts, optional
        Factor from each level to the next, like x=2,y=2,z=1. Default: halve the axes with the finest voxels, so that voxels
        become cubes.
    chunk_size : AxisInts, optional
        Voxels of a chunk, like x=64,y=64,z=64. Default: 262,144 voxels, near to a cube in nm at every level.
    shard_mb : float
        Most MB (2^20 bytes) of voxels in one shard file, and so in one task. 128 is 512^3 voxels of 8 bits: a terabyte
        becomes 9,000 files. Smaller takes less memory.
    unsharded : bool
        Write one file per chunk instead of shards of many chunks. For old readers only: terabytes become millions of files.
    run : RunOptions
        How the stage runs.

    Returns
    -------
    PrecomputeResult
        Levels, sizes, the mean grey value of every level and what was lost.

    Raises
    ------
    InputError
        When the box or a channel is outside, the table does not name one channel, the voxel size is unknown, the type does
        not fit the encoding (16 bits to JPEG without a window, labels with loss), or a label is 2^63 or above.
    IncompleteError
        When the input is unfinished.
    ResourceError
        When the disk that is left is smaller than the volume may become.

    References
    ----------
    Neuroglancer precomputed: https://github.com/google/neuroglancer/tree/master/src/datasource/precomputed
    """
    from ..engine import Job, Plan, run_tasks
    from ..formats.volume import Volume, create_volume
    from ..numerics.volumes.volume_writer import VolumeWriter
    from .precompute_volume_report import check_levels, lossy_error, make_report, stored_bytes

    source = Volume.open(input)
    channels = _choose_channels(source, channel, channel_table)
    voxels = Selection.choose(source, bbox, channels, time_point, kind, window)
    spec = _plan_output(
        voxels,
        voxel_size,
        encoding=None if encoding == "auto" else encoding,
        quality=quality,
        mips=mips,
        factor=factor,
        chunk_size=chunk_size,
        sharded=not unsharded,
        task_bytes=max(1, int(shard_mb * 2**20)),
    )
    job = Job.open(output, run)
    writer = VolumeWriter(output, spec)
    tasks = [PrecomputeTask(writer, voxels, box) for box in writer.task_boxes()]
    task_bytes = _task_memory_bytes(spec, source)
    voxel_count = voxels.count
    job.start(
        Plan(
            tasks=len(tasks),
            read_bytes=voxel_count * source.dtype.itemsize,
            write_bytes=spec.voxel_bytes,
            memory_bytes=task_bytes,
            cpu_s=voxel_count / VOXELS_PER_CPU_S[spec.encoding],
        )
    )
    create_volume(output, spec)
    sums = run_tasks(
        _precompute_block, tasks, job=job, run=run, label="Writing chunks", task_bytes=task_bytes
    )
    totals = [sum(column) for column in zip(*sums, strict=True)] + list(writer.finish_levels(job, run))
    means = tuple(total / voxel_count for total in totals)
    written = Volume.open(output, allow_incomplete=True)
    error = lossy_error(voxels, written) if spec.encoding == "jpeg" else None
    sizes = stored_bytes(output, spec)
    warnings = _warnings(spec, source)
    return PrecomputeResult(
        levels=len(spec.levels),
        voxels=voxel_count,
        written_bytes=sum(sizes) if sizes else None,
        compression_ratio=round(spec.voxel_bytes / max(1, sum(sizes)), 3) if sizes else None,
        level_mean_grey=tuple(round(mean, 4) for mean in means),
        largest_mean_shift_grey=check_levels(means),
        lossy=spec.lossy,
        lossy_mean_error_grey=error.mean if error else None,
        lossy_max_error_grey=error.largest if error else None,
        report=make_report(written, spec, sizes, means, error, warnings),
        job=job,
        warnings=warnings,
    )


@dataclass(frozen=True)
class Selection:
    """The voxels of the source that go into the output, and how their intensities change; picklable."""

    source: Volume
    box: Box
    start: ZYX
    shape: ZYX
    channels: tuple[int, ...]
    time_point: int
    kind: VolumeKind
    windows: tuple[tuple[float, float], ...]

    @classmethod
    def choose(
        cls,
        source: Volume,
        box: Box | None,
        channels: tuple[int, ...],
        time_point: int,
        kind: Literal["auto", "image", "labels"],
        window: str | None,
    ) -> Selection:
        """Check what was asked for against what there is."""
        slices = (box or Box()).slices(source.shape[2:])
        if time_point >= source.shape[0]:
            raise InputError(
                f"--time-point is {time_point} and the volume has {source.shape[0]} time points, counted from 0"
            )
        chosen: VolumeKind = source.kind if kind == "auto" else kind
        if window is not None and chosen == "labels":
            raise InputError("--window changes values, and labels must stay as they are: leave it out")
        windows = _windows(source, channels, time_point, window) if window is not None else ()
        start = (slices[0].start, slices[1].start, slices[2].start)
        z, y, x = (cut.stop - cut.start for cut in slices)
        return cls(source, box or Box(), start, (z, y, x), channels, time_point, chosen, windows)

    @property
    def count(self) -> int:
        """Voxels of all channels."""
        return self.shape[0] * self.shape[1] * self.shape[2] * len(self.channels)


def _choose_channels(
    source: Volume, channel: list[str] | None, channel_table: Path | None
) -> tuple[int, ...]:
    """Numbers of the channels that are named, or of the one whose tiles the table lists."""
    from ..formats.channels import choose_channels
    from ..formats.tables import read_tiles

    if channel_table is None:
        return choose_channels(source.channel_names, channel, source.uri)
    if channel:
        raise InputError("--channel and --channel-table both say which channel to take: give one of them")
    names = sorted({tile.channel for tile in read_tiles(channel_table)})
    if len(names) > 1:
        raise InputError(
            f"--channel-table: '{channel_table}' lists tiles of the channels {', '.join(names)}: give the table of one, "
            "or name it with --channel"
        )
    if source.channel_names.count(names[0]) != 1:
        raise InputError(
            f"--channel-table: '{channel_table}' lists tiles of channel {names[0]} and {source.uri} has the channels "
            f"{', '.join(source.channel_names)}: name the one to take with --channel"
        )
    return (source.channel_names.index(names[0]),)


def _windows(
    source: Volume, channels: tuple[int, ...], time_point: int, window: str
) -> tuple[tuple[float, float], ...]:
    """Intensity window of every channel."""
    import math

    from ..numerics.volumes.contrast import contrast_limits

    if window == "percentile":
        return tuple(contrast_limits(source, channel, time_point) for channel in channels)
    try:
        low, high = (float(part) for part in window.split(","))
    except ValueError:
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(
            f"--window is '{window}': give two intensities, low,high with low below high, or percentile"
        )
    return ((low, high),) * len(channels)


def _plan_output(
    voxels: Selection,
    voxel_size: VoxelSize | None,
    *,
    encoding: Encoding | None,
    quality: int,
    mips: int | None,
    factor: AxisInts | None,
    chunk_size: AxisInts | None,
    sharded: bool,
    task_bytes: int,
) -> VolumeSpec:
    from ..formats.layout import choose_chunk
    from ..formats.volume_spec import VolumeSpec

    source = voxels.source
    stored_nm = source.voxel_size_nm or (None, None, None)
    size_nm = (voxel_size or VoxelSize()).with_defaults(VoxelSize(*stored_nm)).required_nm(f"'{source.uri}'")
    first = [
        offset / stored if stored else 0.0 for offset, stored in zip(source.offset_nm, stored_nm)
    ]  # in voxels: a corrected voxel size moves nothing within the volume
    z, y, x = ((a + b) * size for a, b, size in zip(first, voxels.start, size_nm))
    chunk = _filled(chunk_size, choose_chunk(voxels.shape, size_nm)) if chunk_size else None
    return VolumeSpec.plan(
        (1, len(voxels.channels), *voxels.shape),
        "uint8" if voxels.windows else source.dtype,
        voxel_size_nm=size_nm,
        format="precomputed",
        kind=voxels.kind,
        offset_nm=(z, y, x),
        channel_names=tuple(source.channel_names[channel] for channel in voxels.channels),
        mips=mips,
        factor=_filled(factor, (1, 1, 1)) if factor else None,
        chunk_zyx=chunk,
        encoding=encoding,
        quality=quality,
        sharded=sharded,
        task_bytes=task_bytes,
        lossy_source=source.lossy,
        intensity_windows=voxels.windows or source.info.intensity_windows,
    )


def _filled(given: AxisInts, defaults: ZYX) -> ZYX:
    z, y, x = (default if value is None else value for value, default in zip(given.zyx, defaults))
    return (z, y, x)


def _task_memory_bytes(spec: VolumeSpec, source: Volume) -> int:
    """Memory of a task: the block as read, as written, its sums (a quarter) and what is being encoded."""
    read = spec.task_bytes // _itemsize(spec) * source.dtype.itemsize
    return (
        int(read + 0.75 * spec.task_bytes + (spec.task_bytes if read != spec.task_bytes else 0)) + 64_000_000
    )


def _itemsize(spec: VolumeSpec) -> int:
    import numpy as np

    return np.dtype(spec.dtype).itemsize


def _warnings(spec: VolumeSpec, source: Volume) -> tuple[str, ...]:
    """What a person should know before measuring in the result."""
    from ..formats.precomputed import voxel_offset

    found = []
    if source.lossy:
        found.append("The input was compressed with loss before: do not measure intensities in it")
    offset = voxel_offset(spec, spec.levels[0])
    coarsest = spec.levels[-1].factor
    uneven = [axis for axis, at, n in zip("zyx", offset, coarsest) if at % n]
    if uneven:
        found.append(
            f"The volume begins at voxel {offset} (z, y, x), no multiple of the coarsest level's factor {coarsest}: "
            f"coarse levels are drawn up to half of their voxel off along {', '.join(uneven)}; a box that begins at a "
            "multiple avoids it"
        )
    return tuple(found)


@dataclass(frozen=True)
class PrecomputeTask:
    """One box of the output."""

    writer: VolumeWriter
    voxels: Selection
    box: Box

    @property
    def key(self) -> str:
        """Name of the task's marker."""
        from ..numerics.volumes.volume_writer import box_key

        return box_key(self.box)


def _precompute_block(task: PrecomputeTask) -> tuple[float, ...]:
    """Write one box and its coarser levels."""
    block = read_selection(task.voxels, task.box)
    return task.writer.write_block(0, 0, task.box, block)


def read_selection(voxels: Selection, box: Box) -> NDArray[Any]:
    """Voxels (c, z, y, x) of a box of the selection, with its intensity window applied."""
    import numpy as np

    from ..numerics.volumes.contrast import apply_window

    cuts = box.slices(voxels.shape)
    z, y, x = (slice(cut.start + first, cut.stop + first) for cut, first in zip(cuts, voxels.start))
    time = slice(voxels.time_point, voxels.time_point + 1)
    parts = [
        voxels.source.read((time, slice(channel, channel + 1), z, y, x))[0, 0] for channel in voxels.channels
    ]
    if voxels.windows:
        parts = [apply_window(part, window) for part, window in zip(parts, voxels.windows, strict=True)]
    return parts[0][None] if len(parts) == 1 else np.stack(parts)
