"""Convert any microscope image or volume to OME-Zarr."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge

from ..geometry import Box, VoxelSize
from ..stage import ImageIn, RunOptions, StageResult, VolumeOut, stage

if TYPE_CHECKING:
    from ..engine import Plan
    from ..formats.layout import ZYX
    from ..formats.readers import ImageInfo, ImageReader
    from ..formats.volume_spec import VolumeSpec
    from ..numerics.volumes.volume_writer import VolumeWriter

# Decoding and recompressing 16-bit microscope images, measured by benchmarks/convert.py.
_BYTES_PER_CPU_S = 60e6
# Largest block made to hold whole planes of the source. It is a constant: the layout of the volume must not depend on
# the machine, or a job resumed elsewhere would write other shards.
_MOST_BLOCK_BYTES = 1 << 29
_THINNEST_CHUNK_PX = 8
# A block, its pyramid levels and the chunks being compressed, as a multiple of the block.
_TASK_MEMORY = 3


@dataclass(frozen=True, kw_only=True)
class ConvertResult(StageResult):
    """What `convert_image` wrote."""

    voxels: int
    time_points: int
    channels: int
    z_planes: int
    height_px: int
    width_px: int
    dtype: str
    kind: str
    voxel_size_z_um: float | None
    voxel_size_y_um: float | None
    voxel_size_x_um: float | None
    voxel_size_from: str
    verified_voxels: int


@dataclass(frozen=True)
class Source:
    """What is converted: small and picklable, opened once in each worker."""

    paths: tuple[str, ...]
    dataset: str | None
    series: int
    channels: tuple[int, ...]
    origin: tuple[int, int, int]

    def open(self) -> ImageReader:
        """Open the image, or the planes of a series."""
        from ..formats.readers import open_image, open_series

        return open_series(self.paths) if len(self.paths) > 1 else open_image(self.paths[0], self.dataset)


@dataclass(frozen=True)
class ConvertTask:
    """One block of one channel at one time point."""

    source: Source
    writer: VolumeWriter
    t: int
    c: int
    box: Box
    verify: bool = False

    @property
    def key(self) -> str:
        """Name of the task's marker."""
        from ..numerics.volumes.volume_writer import box_key

        return f"{'verify-' if self.verify else ''}t{self.t}-c{self.c}-{box_key(self.box)}"


@stage
def convert_image(
    input: list[ImageIn],
    output: VolumeOut,
    *,
    dataset: str | None = None,
    series: Annotated[int, Ge(0)] | None = None,
    channel: list[str] | None = None,
    bbox: Box = Box(),
    voxel_size: VoxelSize | None = None,
    kind: Literal["auto", "image", "labels"] = "auto",
    ngff_version: Literal["0.5", "0.4"] = "0.5",
    verify: bool = False,
    run: RunOptions = RunOptions(),
) -> ConvertResult:
    """Convert an image of any supported format to an OME-Zarr volume with its resolution pyramid.

    Reads TIFF (OME-TIFF, also in many files; ImageJ; LSM; SEM), PNG and JPEG series, CZI, MRC, HDF5 (also Imaris
    and BigDataViewer), NIfTI, NRRD, N5, Zarr, OME-Zarr and precomputed. The voxels are kept as they are; axes, voxel
    size and channel names are kept too. The source is streamed: memory follows the blocks and the workers, never
    its size.

    Parameters
    ----------
    input : list of str
        An image file, a chunked volume (folder or URL), or the planes of a z series: a folder, a text file with one
        name on each line, or the files themselves in the order of z. A folder is taken in natural order of the
        names (plane 2 before plane 10).
    output : str
        The OME-Zarr volume, a folder or URL.
    dataset : str, optional
        The data set inside an HDF5 file, N5 or Zarr group. Needed when there are several; the message lists them.
    series : int, optional
        Which image, from 0, of a file that holds several. Tiles of a mosaic are stitched by sort-tiles and
        stitch-tiles instead.
    channel : list of str, optional
        Channels to keep, by name or by number from 0. Default: all.
    bbox : Box
        Box to keep, in pixels of the source. The volume remembers where it was.
    voxel_size : VoxelSize, optional
        Size of a voxel; replaces what the file says on the axes given. Needed where the file knows only some axes.
    kind : {"auto", "image", "labels"}
        Whether voxels are intensities (averaged in the pyramid) or IDs of objects (the most frequent is kept).
        auto: labels where the source volume says so or the type is an integer of 32 or 64 bits, which no
        camera writes; otherwise image.
    ngff_version : {"0.5", "0.4"}
        Version of OME-Zarr. 0.5 packs chunks into few files (shards); 0.4 is for older programs.
    verify : bool
        Read all voxels back and compare them with the source; a difference is an error.
    run : RunOptions
        How the stage runs.

    Returns
    -------
    ConvertResult
        Size, type, voxel size and where it was found.

    Raises
    ------
    InputError
        If the source cannot be read, has several images or data sets and none is chosen, lacks a channel, or its
        voxel size is known along some axes only.
    CheckFailedError
        If `verify` finds voxels that differ.

    References
    ----------
    OME-Zarr: https://doi.org/10.1007/s00418-023-02209-1
    """
    from ..engine import Job, run_tasks
    from ..formats.volume import Volume, create_volume
    from ..numerics.volumes.volume_writer import VolumeWriter
    from .convert_image_report import make_report

    source, info, spec, reader_files = _plan_volume(
        input, dataset, series, channel, bbox, voxel_size, kind, ngff_version
    )
    writer = VolumeWriter(output, spec)
    tasks = _tasks(source, writer, verify=False)
    job = Job.open(output, run, sources=reader_files)
    job.start(_costs(spec, len(tasks), verify))
    create_volume(output, spec)
    task_bytes = _TASK_MEMORY * spec.task_bytes
    try:
        run_tasks(convert_block, tasks, job=job, run=run, label="Converting", task_bytes=task_bytes)
        writer.finish_levels(job, run)
        verified = 0
        if verify:
            checks = _tasks(source, writer, verify=True)
            # not shared: the other parts have ended when the last one comes here
            verified = sum(
                run_tasks(
                    verify_block,
                    checks,
                    job=job,
                    run=run,
                    label="Verifying",
                    task_bytes=task_bytes,
                    shared=False,
                )
            )
    finally:
        _close_reader()
    found_in = "given by the user" if voxel_size is not None else info.voxel_size_from
    volume = Volume.open(output, allow_incomplete=True)
    z_um, y_um, x_um = _um(spec)
    t, c, z, y, x = spec.shape
    return ConvertResult(
        voxels=math.prod(spec.shape),
        time_points=t,
        channels=c,
        z_planes=z,
        height_px=y,
        width_px=x,
        dtype=spec.dtype,
        kind=spec.kind,
        voxel_size_z_um=z_um,
        voxel_size_y_um=y_um,
        voxel_size_x_um=x_um,
        voxel_size_from=found_in,
        verified_voxels=verified,
        warnings=_warnings(info, spec),
        report=make_report(volume, info, found_in, verified),
        job=job,
    )


def convert_block(task: ConvertTask) -> None:
    """Read one block of the source and write it with its pyramid levels."""
    box = task.box.slices(task.writer.spec.levels[0].shape)
    task.writer.write_block(task.t, task.c, task.box, _read_block(task, box))


def verify_block(task: ConvertTask) -> int:
    """Compare one block of the volume with the source; returns how many voxels were compared.

    Raises
    ------
    CheckFailedError
        If any differs.
    """
    import numpy as np

    from ..errors import CheckFailedError
    from ..formats.volume import Volume

    z, y, x = task.box.slices(task.writer.spec.levels[0].shape)
    volume = Volume.open(task.writer.uri, allow_incomplete=True)
    written = volume.read((slice(task.t, task.t + 1), slice(task.c, task.c + 1), z, y, x))[0, 0]
    expected = _read_block(task, (z, y, x))
    equal_nan = written.dtype.kind == "f"
    if not np.array_equal(written, expected, equal_nan=equal_nan):
        differ = ~np.isclose(written, expected, 0, 0, equal_nan) if equal_nan else written != expected
        at = np.argwhere(differ)[0] + (z.start, y.start, x.start)
        raise CheckFailedError(
            f"{np.count_nonzero(differ)} voxels of {task.writer.uri} differ from the source, the first at (z, y, x) = "
            f"{tuple(map(int, at))}, time point {task.t}, channel {task.c}: check the disk and convert again with "
            "--overwrite"
        )
    return int(written.size)


_reader: tuple[Source, ImageReader] | None = None


def _open_reader(source: Source) -> ImageReader:
    """The source, kept open between the tasks of a process."""
    global _reader
    if _reader is None or _reader[0] != source:
        _close_reader()
        _reader = source, source.open()
    return _reader[1]


def _close_reader() -> None:
    global _reader
    if _reader is not None:
        _reader[1].close()
        _reader = None


def _read_block(task: ConvertTask, box: tuple[slice, slice, slice]) -> Any:
    """The voxels of a block as the volume stores them."""
    import numpy as np

    from ..errors import InputError

    source, dtype = task.source, np.dtype(task.writer.spec.dtype)
    z, y, x = (
        slice(cut.start + start, cut.stop + start) for cut, start in zip(box, source.origin, strict=True)
    )
    voxels = _open_reader(source).read(source.series, task.t, source.channels[task.c], z, y, x)
    if voxels.dtype == dtype:
        return voxels
    if dtype.kind == "u" and voxels.dtype.kind == "i" and voxels.min() < 0:
        raise InputError(
            f"{source.paths[0]} holds the label {voxels.min()}: labels must be 0 or above. Renumber them."
        )
    return voxels.astype(dtype)


def _plan_volume(
    paths: list[str],
    dataset: str | None,
    series: int | None,
    channel: list[str] | None,
    bbox: Box,
    voxel_size: VoxelSize | None,
    kind: Literal["auto", "image", "labels"],
    ngff_version: Literal["0.5", "0.4"],
) -> tuple[Source, ImageInfo, VolumeSpec, tuple[Any, ...]]:
    """Open the source and decide what the volume will be."""
    from ..errors import InputError
    from ..formats.channels import choose_channels
    from ..formats.readers.volumes import VolumeReader
    from ..formats.volume_spec import VolumeSpec

    if len(paths) > 1 and dataset is not None:
        raise InputError("--dataset chooses inside one container, but several inputs were given: give one.")
    with Source(tuple(paths), dataset, 0, (), (0, 0, 0)).open() as reader:
        number = _choose_series(reader, series)
        info = reader.images[number]
        volume = reader.volume if isinstance(reader, VolumeReader) else None
        files = reader.files
    channels = choose_channels(info.channel_names, channel, paths[0])
    z, y, x = bbox.slices(info.shape[2:])
    shape = (info.shape[0], len(channels), z.stop - z.start, y.stop - y.start, x.stop - x.start)
    voxel_nm = _voxel_size_nm(info, voxel_size, paths[0])
    labels = kind == "labels" or (
        kind == "auto"
        and (volume.kind == "labels" if volume else info.dtype.kind in "ui" and info.dtype.itemsize > 2)
    )
    offset = volume.offset_nm if volume else (0.0, 0.0, 0.0)
    if voxel_nm is not None:
        start = (z.start, y.start, x.start)
        moved = [place + first * size for place, first, size in zip(offset, start, voxel_nm, strict=True)]
        offset = (moved[0], moved[1], moved[2])

    def plan(chunk: ZYX | None = None, block: ZYX | None = None) -> VolumeSpec:
        return VolumeSpec.plan(
            shape,
            _stored_dtype(info.dtype.name, labels),
            voxel_size_nm=voxel_nm,
            kind="labels" if labels else "image",
            offset_nm=offset,
            channel_names=tuple(info.channel_names[c] for c in channels),
            chunk_zyx=chunk,
            block_zyx=block,
            ngff_version=ngff_version,
            lossy_source=volume.lossy if volume else False,
        )

    spec = plan()
    chosen = choose_block(info.block_zyx, spec)
    source = Source(tuple(paths), dataset, number, channels, (z.start, y.start, x.start))
    return source, info, plan(*chosen) if chosen else spec, files


def _choose_series(reader: ImageReader, series: int | None) -> int:
    from ..errors import InputError

    count = len(reader.images)
    if series is None and count > 1:
        names = ", ".join(f"{number} {info.name}" for number, info in enumerate(reader.images[:10]))
        raise InputError(
            f"{reader.path} holds {count} images: choose one with --series ({names}{' ...' if count > 10 else ''}), or "
            "put tiles together with sort-tiles and stitch-tiles"
        )
    if series is not None and series >= count:
        raise InputError(f"--series {series}: {reader.path} holds {count} image(s), counted from 0.")
    return series or 0


def _voxel_size_nm(info: ImageInfo, given: VoxelSize | None, path: str) -> tuple[float, float, float] | None:
    """The voxel size, the user's word first; None when nobody knows it on any axis."""
    size = (given or VoxelSize()).with_defaults(VoxelSize.from_um(*info.voxel_size_um))
    if size == VoxelSize():
        return None
    if info.shape[2] == 1 and size.z_nm is None:  # one plane has no distance to the next: as thick as wide
        size = size.with_defaults(VoxelSize(z_nm=size.y_nm))
    return size.required_nm(path)


def _stored_dtype(name: str, labels: bool) -> str:
    """The volume's type: labels are unsigned, and viewers read floats of 32 bits alone."""
    if labels:
        return {"int8": "uint8", "int16": "uint16", "int32": "uint32", "int64": "uint64"}.get(name, name)
    return {"float64": "float32", "float16": "float32"}.get(name, name)


def choose_block(
    source_block: ZYX, spec: VolumeSpec, most_bytes: int = _MOST_BLOCK_BYTES
) -> tuple[ZYX | None, ZYX] | None:
    """Chunk and box of a task, so that a box holds whole planes, strips or chunks of the source.

    Where whole planes of the source do not fit, chunks are made thinner along z and wider in the plane;
    where even that does not help, a box holds as many rows as fit, and planes are decoded more than once.

    Parameters
    ----------
    source_block : (3,) int, order z, y, x
        What the source decodes at once.
    spec : VolumeSpec
        The volume with the chunk and the block it would choose itself.
    most_bytes : int
        Most bytes of one block.

    Returns
    -------
    chunk, block : (3,) int, order z, y, x; or None
        None: the volume's own choice (of the chunk, or of both) serves as well, or there is no better one.
    """
    import numpy as np

    shape, own, chunk = spec.levels[0].shape, spec.passes[0].box, spec.levels[0].chunk
    itemsize = np.dtype(spec.dtype).itemsize
    whole = _whole_blocks(source_block, shape, chunk)
    if all(side <= mine or mine >= size for side, mine, size in zip(whole, own, shape, strict=True)):
        return None
    while math.prod(whole) * itemsize > most_bytes and chunk[0] > max(source_block[0], _THINNEST_CHUNK_PX):
        z, y, x = chunk
        chunk = (z // 2, 2 * y, x) if y <= x else (z // 2, y, 2 * x)
        whole = _whole_blocks(source_block, shape, chunk)
    row_bytes = whole[0] * whole[2] * itemsize
    rows = (
        max(whole[1], math.prod(own) * itemsize // row_bytes)
        if row_bytes * whole[1] <= most_bytes
        else most_bytes // row_bytes
    )
    height = min(rows, math.ceil(shape[1] / chunk[1]) * chunk[1]) // chunk[1] * chunk[1]
    block = (whole[0], height, whole[2])
    return (None if chunk == spec.levels[0].chunk else chunk, block) if height else None


def _whole_blocks(source_block: ZYX, shape: ZYX, chunk: ZYX) -> ZYX:
    """The smallest box of whole chunks that holds a whole block of the source."""
    z, y, x = (
        math.ceil(min(size, block) / side) * side
        for size, block, side in zip(shape, source_block, chunk, strict=True)
    )
    return z, y, x


def _tasks(source: Source, writer: VolumeWriter, verify: bool) -> list[ConvertTask]:
    """A task per block; neighbours in z follow each other, as files are stored."""
    times, channels = range(writer.spec.shape[0]), range(writer.spec.shape[1])
    boxes = writer.task_boxes()
    return [ConvertTask(source, writer, t, c, box, verify) for t in times for c in channels for box in boxes]


def _costs(spec: VolumeSpec, tasks: int, verify: bool) -> Plan:
    import numpy as np

    from ..engine import Plan

    size = math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
    sweeps = 2 if verify else 1
    return Plan(
        tasks=tasks * sweeps,
        read_bytes=size * sweeps,
        write_bytes=spec.voxel_bytes,
        memory_bytes=_TASK_MEMORY * spec.task_bytes,
        cpu_s=1 + sweeps * size / _BYTES_PER_CPU_S,
    )


def _um(spec: VolumeSpec) -> tuple[float | None, float | None, float | None]:
    return VoxelSize(*spec.voxel_size_nm).zyx_um if spec.voxel_size_nm else (None, None, None)


def _warnings(info: ImageInfo, spec: VolumeSpec) -> tuple[str, ...]:
    """What the user should know before the next stage."""
    found = []
    if spec.voxel_size_nm is None:
        found.append("The voxel size is unknown: pass --voxel-size here or to precompute-volume")
    if info.dtype.name == "float64":
        found.append("The source holds 64-bit floats, the volume 32-bit ones: values are rounded to 7 digits")
    if spec.lossy:
        found.append("The source was compressed with loss: intensities are not those of the microscope")
    return tuple(found)
