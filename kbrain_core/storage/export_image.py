"""Export a box of a volume as TIFF, for programs that read neither OME-Zarr nor precomputed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge

from ..geometry import NM_PER_UM, Box
from ..stage import FileOut, RunOptions, StageResult, VolumeIn, stage

if TYPE_CHECKING:
    from pathlib import Path

    from ..formats.volume import Volume
    from ..report import Report

# Offsets in a classic TIFF file have 32 bits; the rest is room for the directory of every page.
_CLASSIC_TIFF_BYTES = 2**32 - 2**26
_TILE_PX = 256
# Planes of one row of chunks are held at a time, so that no chunk is decoded twice; beyond this, fewer are held.
_MOST_SLAB_BYTES = 1 << 30
_IMAGEJ_DTYPES = ("uint8", "uint16", "float32")
_OME_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
_UM_PER_CM = 1e4
_THINNEST_PICTURE_PX = 8
_BYTES_PER_CPU_S = 40e6


@dataclass(frozen=True, kw_only=True)
class ExportResult(StageResult):
    """What `export_image` wrote."""

    files: int
    planes: int
    voxels: int
    file_bytes: int
    dtype: str


@dataclass(frozen=True)
class _Region:
    """What is exported: channels and a box of one level."""

    volume: Volume
    level: int
    channels: tuple[int, ...]
    box: tuple[slice, slice, slice]

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(t, c, z, y, x)."""
        z, y, x = (cut.stop - cut.start for cut in self.box)
        return self.volume.shape[0], len(self.channels), z, y, x

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels."""
        return int(math.prod(self.shape) * self.volume.dtype.itemsize)

    @property
    def voxel_size_um(self) -> tuple[float, float, float] | None:
        """Voxel size (z, y, x) of the level."""
        size, factor = self.volume.voxel_size_nm, self.volume.levels[self.level].factor
        if size is None:
            return None
        z, y, x = (nm * times / NM_PER_UM for nm, times in zip(size, factor, strict=True))
        return z, y, x

    @property
    def position_um(self) -> tuple[float, float, float] | None:
        """Where the centre of the box's first voxel is (z, y, x); a coarse voxel's centre is that of its block."""
        size, factor = self.volume.voxel_size_nm, self.volume.levels[self.level].factor
        if size is None:
            return None
        z, y, x = (
            (offset + nm * (cut.start * times + (times - 1) / 2)) / NM_PER_UM
            for offset, nm, cut, times in zip(self.volume.offset_nm, size, self.box, factor, strict=True)
        )
        return z, y, x

    def planes(self, t: int, c: int, most_bytes: int) -> Iterator[Any]:
        """Yield the (Y, X) planes of a channel, read a row of chunks at a time as far as the memory allows."""
        z, y, x = self.box
        chunk = self.volume.levels[self.level].chunk[0]
        plane_bytes = max(1, self.nbytes // (self.shape[0] * self.shape[1] * self.shape[2]))
        depth = max(1, min(chunk, most_bytes // plane_bytes))
        start = z.start
        while start < z.stop:
            stop = min(z.stop, start + depth, (start // chunk + 1) * chunk)  # never across a row of chunks
            region = (slice(t, t + 1), slice(c, c + 1), slice(start, stop), y, x)
            yield from self.volume.read(region, self.level)[0, 0]
            start = stop


@stage
def export_image(
    input: VolumeIn,
    output: FileOut,
    *,
    format: Literal["ome-tiff", "imagej", "series"] = "ome-tiff",
    level: Annotated[int, Ge(0)] = 0,
    bbox: Box = Box(),
    channel: list[str] | None = None,
    compression: Literal["zlib", "zstd", "none"] = "zlib",
    run: RunOptions = RunOptions(),
) -> ExportResult:
    """Export a volume, or a box of it, as TIFF.

    Reads and writes plane by plane, so that memory follows the size of a plane.

    Parameters
    ----------
    input : str
        The volume.
    output : Path
        The TIFF file; for `series` a folder, which must not exist or be empty.
    format : {"ome-tiff", "imagej", "series"}
        ome-tiff: one tiled file with voxel size, position and channel names, BigTIFF where it is needed.
        imagej: one hyperstack that ImageJ and Fiji open with its calibration, at most 4 GB, never compressed.
        series: one TIFF file for each plane.
    level : int
        Resolution level; 0 is the finest.
    bbox : Box
        The box to export, in voxels of the level.
    channel : list of str, optional
        Channels to export, by name or by number from 0. Default: all.
    compression : {"zlib", "zstd", "none"}
        zlib is read by all programs; zstd is faster and smaller, and read by few.
    run : RunOptions
        How the stage runs.

    Returns
    -------
    ExportResult
        How much was written.

    Raises
    ------
    InputError
        If the level, box or channel does not exist, or the format cannot hold the voxels.
    OutputExistsError
        If the output exists.

    References
    ----------
    OME-TIFF: https://docs.openmicroscopy.org/ome-model/latest/ome-tiff/
    """
    from ..engine import Plan, say
    from ..errors import InputError, StageStopped
    from ..formats.volume import Volume
    from ..store import atomic_path, prepare_file_output, require_disk

    region = _choose_region(Volume.open(input), level, bbox, channel)
    _check_format(region, format)
    if format == "series":
        _prepare_folder(output)
    elif output.suffix.lower() not in (".tif", ".tiff", ".dat", ""):
        raise InputError(f"'{output}' will be a TIFF file: give it a name that ends in .tif")
    else:
        prepare_file_output(output, run.overwrite)
    slab_bytes = min(_MOST_SLAB_BYTES, run.memory_bytes // 4)
    t, c, z, y, x = region.shape
    plane_bytes = y * x * region.volume.dtype.itemsize
    chunk_depth = region.volume.levels[level].chunk[0]
    memory = max(plane_bytes, min(slab_bytes, chunk_depth * plane_bytes))
    plan = Plan(1, region.nbytes, region.nbytes, 2 * memory, 1 + region.nbytes / _BYTES_PER_CPU_S)
    say(plan.text(1))
    require_disk(output, region.nbytes)
    if run.dry_run:
        raise StageStopped("Dry run: nothing was written")
    with atomic_path(output) as temporary:
        if format == "ome-tiff":
            _write_ome_tiff(temporary, region, compression, slab_bytes, run.worker_count)
        elif format == "imagej":
            _write_imagej(temporary, region, slab_bytes)
        else:
            _write_series(temporary, region, compression, slab_bytes)
        if output.is_dir():
            output.rmdir()  # empty, as checked before
    files = sorted(output.iterdir()) if output.is_dir() else [output]
    result_bytes = sum(file.stat().st_size for file in files)
    return ExportResult(
        files=len(files),
        planes=t * c * z,
        voxels=math.prod(region.shape),
        file_bytes=result_bytes,
        dtype=region.volume.dtype.name,
        warnings=("The volume was compressed with loss: intensities are not those of the microscope",)
        if region.volume.lossy
        else (),
        report=_report(region, format, result_bytes),
    )


def _choose_region(volume: Volume, level: int, bbox: Box, channel: list[str] | None) -> _Region:
    from ..errors import InputError
    from ..formats.channels import choose_channels

    if level >= len(volume.levels):
        raise InputError(f"--level {level}: {volume.uri} has the levels 0 to {len(volume.levels) - 1}.")
    channels = choose_channels(volume.channel_names, channel, volume.uri)
    return _Region(volume, level, channels, bbox.slices(volume.levels[level].shape))


def _check_format(region: _Region, format: str) -> None:
    """Refuse what the format cannot hold."""
    from ..errors import InputError

    dtype = region.volume.dtype.name
    if region.shape[4] == 1:  # tifffile takes one column for one row
        raise InputError(
            "The box is 1 voxel wide along x, which TIFF writers turn on its side: widen --bbox to 2."
        )
    if format == "imagej" and dtype not in _IMAGEJ_DTYPES:
        raise InputError(
            f"ImageJ has no {dtype} images (only {', '.join(_IMAGEJ_DTYPES)}): pass --format ome-tiff."
        )
    if format == "ome-tiff" and dtype not in _OME_DTYPES:
        raise InputError(f"OME-TIFF has no {dtype} voxels: pass --format series.")
    if format == "imagej" and region.nbytes > _CLASSIC_TIFF_BYTES:
        raise InputError(
            f"The box takes {region.nbytes / 1e9:.1f} GB and an ImageJ hyperstack holds at most "
            f"{_CLASSIC_TIFF_BYTES / 1e9:.1f} GB: choose a smaller --bbox or a coarser --level, or --format ome-tiff."
        )


def _prepare_folder(folder: Path) -> None:
    from ..errors import OutputExistsError

    if folder.is_file() and folder.stat().st_size == 0:
        folder.unlink()  # the placeholder of a workflow system
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise OutputExistsError(
            f"'{folder}' exists and is not empty: choose another name, or remove it yourself"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)


def _write_ome_tiff(path: Path, region: _Region, compression: str, slab_bytes: int, workers: int) -> None:
    import tifffile

    metadata: dict[str, Any] = {
        "axes": "TCZYX",
        "Name": region.volume.uri.rpartition("/")[2],
        "Channel": {"Name": [region.volume.channel_names[c] for c in region.channels]},
    }
    if region.voxel_size_um is not None and region.position_um is not None:
        metadata |= {f"PhysicalSize{axis}": um for axis, um in zip("ZYX", region.voxel_size_um, strict=True)}
        metadata |= {f"PhysicalSize{axis}Unit": "µm" for axis in "ZYX"}
        metadata["Plane"] = _plane_positions(region, region.position_um, region.voxel_size_um[0])
    big = region.nbytes > _CLASSIC_TIFF_BYTES
    with tifffile.TiffWriter(path, bigtiff=big, ome=True) as writer:
        writer.write(
            _tiles(region, slab_bytes),
            shape=region.shape,
            dtype=region.volume.dtype,
            tile=(_TILE_PX, _TILE_PX),
            photometric="minisblack",
            metadata=metadata,
            maxworkers=workers,
            **_compression(compression, region),
        )


def _plane_positions(
    region: _Region, position_um: tuple[float, float, float], step_um: float
) -> dict[str, Any]:
    """Where every plane lies, so that the box is found again in the volume."""
    t, c, depth = region.shape[:3]
    z, y, x = position_um
    planes = t * c * depth
    return {
        "PositionX": [x] * planes,
        "PositionY": [y] * planes,
        "PositionZ": [z + step_um * plane for plane in range(depth)] * (t * c),
        **{f"Position{axis}Unit": ["µm"] * planes for axis in "XYZ"},
    }


def _tiles(region: _Region, slab_bytes: int) -> Iterator[Any]:
    """All planes cut into tiles, in the order in which TIFF stores them."""
    height, width = region.shape[3:]
    for plane in _all_planes(region, slab_bytes):
        for y in range(0, height, _TILE_PX):
            for x in range(0, width, _TILE_PX):
                yield plane[y : y + _TILE_PX, x : x + _TILE_PX]


def _all_planes(region: _Region, slab_bytes: int) -> Iterator[Any]:
    for t in range(region.shape[0]):
        for c in region.channels:
            yield from region.planes(t, c, slab_bytes)


def _write_imagej(path: Path, region: _Region, slab_bytes: int) -> None:
    """ImageJ counts channels fastest, then z, then t."""
    import tifffile

    t, c, z, y, x = region.shape
    size = region.voxel_size_um
    metadata: dict[str, Any] = {"axes": "TZCYX", "Labels": _labels(region)}
    if size is not None:
        metadata |= {"spacing": size[0], "unit": "um"}

    def planes() -> Iterator[Any]:
        for time in range(t):
            channels = [region.planes(time, channel, slab_bytes // c) for channel in region.channels]
            for group in zip(*channels, strict=True):
                yield from group

    tifffile.imwrite(
        path,
        planes(),
        shape=(t, z, c, y, x),
        dtype=region.volume.dtype,
        imagej=True,
        photometric="minisblack",
        resolution=(1 / size[2], 1 / size[1]) if size else None,
        metadata=metadata,
    )


def _labels(region: _Region) -> list[str]:
    """The channel's name above every plane."""
    names = [region.volume.channel_names[c] for c in region.channels]
    return names * (region.shape[0] * region.shape[2])


def _write_series(folder: Path, region: _Region, compression: str, slab_bytes: int) -> None:
    """A file for each plane, its name of equal length so that it sorts; axes of one step are left out."""
    import tifffile

    folder.mkdir()
    size = region.voxel_size_um
    resolution = None if size is None else (_UM_PER_CM / size[2], _UM_PER_CM / size[1])
    sizes = dict(zip("tcz", region.shape[:3], strict=True))
    counted = [axis for axis in "tcz" if sizes[axis] > 1 or axis == "z"]
    places = (
        {"t": t, "c": c, "z": z}
        for t in range(sizes["t"])
        for c in range(sizes["c"])
        for z in range(sizes["z"])
    )
    for place, plane in zip(places, _all_planes(region, slab_bytes), strict=True):
        name = "_".join(f"{axis}{place[axis]:0{len(str(sizes[axis] - 1))}d}" for axis in counted)
        tifffile.imwrite(
            folder / f"{name}.tif",
            plane,
            photometric="minisblack",
            resolution=resolution,
            resolutionunit=None if resolution is None else "CENTIMETER",
            metadata=None,
            **_compression(compression, region),
        )


def _compression(name: str, region: _Region) -> dict[str, Any]:
    """tifffile's options; differences of neighbours compress better, and exist for samples up to 32 bits."""
    if name == "none":
        return {}
    return {"compression": name, "predictor": region.volume.dtype.itemsize <= 4}


def _report(region: _Region, format: str, file_bytes: int) -> Report:
    """What was exported, and its middle plane."""
    from ..report import Report, overview_picture

    t, c, z, y, x = region.shape
    size = region.voxel_size_um
    report = Report(f"Export of {region.volume.uri.rpartition('/')[2]}", "A box of the volume as TIFF.")
    report.figures(
        {
            "format": format,
            "level": str(region.level),
            "size (t, c, z, y, x)": f"{t}, {c}, {z}, {y}, {x}",
            "voxel size (z, y, x)": "not known" if size is None else ", ".join(f"{um:g} um" for um in size),
            "written": f"{file_bytes / 1e6:.1f} MB",
        }
    )
    report.table(
        "Channels",
        ("number", "name"),
        [(number, region.volume.channel_names[channel]) for number, channel in enumerate(region.channels)],
    )
    cut_z, cut_y, cut_x = region.box
    middle = (cut_z.start + cut_z.stop) // 2
    first = region.channels[0]
    where = (slice(0, 1), slice(first, first + 1), slice(middle, middle + 1), cut_y, cut_x)
    plane = region.volume.read(where, region.level)[0, 0, 0]
    if min(plane.shape) >= _THINNEST_PICTURE_PX:
        report.picture(
            "middle-plane", f"Plane {middle} of the level, first channel.", overview_picture(plane)
        )
    return report
