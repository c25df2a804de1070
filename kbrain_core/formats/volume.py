"""`Volume`: one way to read OME-Zarr and precomputed volumes, wherever they lie."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorstore
from numpy.typing import NDArray

from ..errors import IncompleteError, InputError
from ..store import is_remote, join, kvstore_spec, list_keys, local_path, read_bytes
from . import ome_zarr, precomputed
from .layout import ZYX, Level, Shape, VoxelSizeNm
from .volume_info import VolumeInfo
from .volume_spec import VolumeFormat, VolumeKind, VolumeSpec

# Shard indices and the chunks of the last reads: a neighbouring read does not fetch them twice.
CACHE_BYTES = 32 * 1024 * 1024
# Chunks of a read that are decoded at the same time.
SLAB_BYTES = 16 * 1024 * 1024
SCHEMES = ("precomputed://", "zarr://", "zarr2://", "zarr3://")

Region = tuple[slice, slice, slice, slice, slice]


class Volume:
    """A stored volume of any size, read box by box; picklable, and opened lazily.

    Use `Volume.open`.

    Attributes
    ----------
    uri : str
        Path or URL of the volume itself.
    info : VolumeInfo
        All metadata.
    """

    def __init__(self, uri: str, info: VolumeInfo) -> None:
        self.uri = uri
        self.info = info

    @classmethod
    def open(cls, uri: str, *, allow_incomplete: bool = False) -> Volume:
        """Open an OME-Zarr (0.4, 0.5) or Neuroglancer precomputed volume.

        Parameters
        ----------
        uri : str
            A folder, or a file://, http(s):// or s3:// URL; of a volume, or a folder that holds exactly one.
        allow_incomplete : bool
            Also open a volume that the job which writes it has not finished.

        Raises
        ------
        InputError
            When there is no volume, or its metadata are damaged.
        IncompleteError
            When its job has not finished.
        """
        text = str(uri)
        for scheme in SCHEMES:
            text = text.removeprefix(scheme)
        text = text.rstrip("/") or "/"
        try:
            info = _read_info(text)
            if info is None:
                text, info = _only_volume_inside(text)
            unfinished = read_bytes(join(text, ".kbrain", "job.json")) is not None
            if unfinished:
                unfinished = read_bytes(join(text, ".kbrain", "complete")) is None
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"'{uri}' cannot be reached: {reason}") from error
        if unfinished and not allow_incomplete:
            raise IncompleteError(
                f"The volume '{text}' is incomplete: its job did not finish. Run the same command again to finish it"
            )
        return cls(text, info)

    @property
    def format(self) -> VolumeFormat:
        """How it is stored: "ome_zarr" or "precomputed"."""
        return self.info.format

    @property
    def kind(self) -> VolumeKind:
        """What the voxels are: "image" or "labels"."""
        return self.info.kind

    @property
    def shape(self) -> Shape:
        """Voxels of level 0 (t, c, z, y, x)."""
        return self.info.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel."""
        return np.dtype(self.info.dtype)

    @property
    def voxel_size_nm(self) -> VoxelSizeNm | None:
        """Voxel size (z, y, x) of level 0; None when the volume does not say."""
        return self.info.voxel_size_nm

    @property
    def offset_nm(self) -> VoxelSizeNm:
        """Position (z, y, x) of the centre of the first voxel."""
        return self.info.offset_nm

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels."""
        return self.info.channel_names

    @property
    def levels(self) -> tuple[Level, ...]:
        """Resolution levels, finest first."""
        return self.info.levels

    @property
    def lossy(self) -> bool:
        """Whether the voxels were ever compressed with loss: measurements should warn."""
        return self.info.lossy

    def read(self, region: Region, level: int = 0) -> NDArray[Any]:
        """Read a box.

        Parameters
        ----------
        region : five slices (t, c, z, y, x)
            In voxels of the level, from 0; `slice(None)` is all of an axis.
        level : int
            Resolution level.

        Returns
        -------
        (T, C, Z, Y, X) ndarray
            The voxels, a new array. Chunks that were never written are 0.

        Raises
        ------
        InputError
            When a chunk is damaged or cannot be reached.
        """
        shape: Shape = (*self.shape[:2], *self.levels[level].shape)
        bounds = dict(zip("tczyx", (_bounds(cut, size) for cut, size in zip(region, shape, strict=True))))
        axes = self.info.axes
        stored = np.empty([bounds[axis][1] - bounds[axis][0] for axis in axes], self.dtype)
        try:
            for slab in self._slabs(level, bounds):
                selection = tuple(slice(*slab[axis]) for axis in axes)
                target = tuple(slice(slab[a][0] - bounds[a][0], slab[a][1] - bounds[a][0]) for a in axes)
                source = self._array(level)[selection][tensorstore.d[:].translate_to[0]]
                tensorstore.array(stored[target]).write(source).result()
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"Level {level} of '{self.uri}' cannot be read: {reason}") from error
        voxels = stored.transpose([axes.index(axis) for axis in "tczyx" if axis in axes])
        return voxels.reshape([high - low for low, high in bounds.values()])

    def _slabs(self, level: int, bounds: dict[str, tuple[int, int]]) -> Iterator[dict[str, tuple[int, int]]]:
        """Cut a box along z at chunks: what is decoded at a time is bounded, and goes straight to its place."""
        low, high = bounds["z"]
        plane_bytes = math.prod(b - a for axis, (a, b) in bounds.items() if axis != "z") * self.dtype.itemsize
        side = self.levels[level].chunk[0]
        side *= max(1, SLAB_BYTES // max(1, plane_bytes * side))
        while low < high:
            stop = min(high, (low // side + 1) * side)
            yield {**bounds, "z": (low, stop)}
            low = stop

    def level_at_most(self, voxels_per_axis: int) -> int:
        """The finest level whose z, y and x have at most so many voxels; the coarsest when none has."""
        for index, level in enumerate(self.levels):
            if max(level.shape) <= voxels_per_axis:
                return index
        return len(self.levels) - 1

    @functools.cached_property
    def _context(self) -> Any:
        return tensorstore.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})

    @functools.cached_property
    def _arrays(self) -> dict[int, Any]:
        return {}

    def _array(self, level: int) -> Any:
        """tensorstore's view of one level, axes as `info.axes`, from 0."""
        if level not in self._arrays:
            spec = {
                "driver": self.info.driver,
                "kvstore": kvstore_spec(self.info.paths[level]),
                "recheck_cached_data": False,
                "recheck_cached_metadata": False,
            }
            if self.format == "precomputed":
                spec["scale_index"] = level
            array = tensorstore.open(spec, context=self._context, open=True, read=True).result()
            if self.format == "precomputed":
                array = array.T
            self._arrays[level] = array[tensorstore.d[:].translate_to[0]]
        return self._arrays[level]

    def __getstate__(self) -> tuple[str, VolumeInfo]:
        return (self.uri, self.info)

    def __setstate__(self, state: tuple[str, VolumeInfo]) -> None:
        self.uri, self.info = state

    def __repr__(self) -> str:
        return f"Volume({self.uri!r}, {self.kind}, {self.shape}, {self.dtype})"


def _bounds(cut: slice, size: int) -> tuple[int, int]:
    if cut.step not in (None, 1):
        raise ValueError(f"{cut}: volumes are read without steps")
    low = 0 if cut.start is None else cut.start
    high = size if cut.stop is None else cut.stop
    if not 0 <= low <= high <= size:
        raise ValueError(f"{low}:{high} is not inside 0:{size}")
    return low, high


def _read_info(uri: str) -> VolumeInfo | None:
    return ome_zarr.read_metadata(uri) or precomputed.read_metadata(uri)


def _only_volume_inside(uri: str) -> tuple[str, VolumeInfo]:
    """The one volume that a folder holds."""
    if not is_remote(uri) and not local_path(uri).exists():
        raise InputError(f"There is no '{uri}': check the path")
    names = [] if is_remote(uri) else [name for name in list_keys(uri) if not name.startswith(".")]
    inside = {
        join(uri, name): _read_info(join(uri, name)) for name in names if (local_path(uri) / name).is_dir()
    }
    found = {path: info for path, info in inside.items() if info is not None}
    if len(found) > 1:
        raise InputError(
            f"'{uri}' holds {len(found)} volumes ({', '.join(sorted(found)[:5])}): name one of them"
        )
    for path, info in found.items():
        return path, info
    raise InputError(
        f"'{uri}' is no volume: expected OME-Zarr or Neuroglancer precomputed. Images are converted by kbrain convert-image"
    )


def create_volume(uri: str, spec: VolumeSpec) -> None:
    """Write the metadata of a new volume; its voxels are written by `VolumeWriter`.

    Parameters
    ----------
    uri : str
        Path or URL.
    spec : VolumeSpec
        What it is.
    """
    if spec.format == "ome_zarr":
        ome_zarr.write_metadata(uri, spec)
    else:
        precomputed.write_metadata(uri, spec)


def write_region(
    uri: str, spec: VolumeSpec, level: int, t: int, c: int, start: ZYX, voxels: NDArray[Any]
) -> None:
    """Write whole shards of one level; stages use `VolumeWriter`, which makes the coarser levels too.

    Parameters
    ----------
    uri : str
        The volume.
    spec : VolumeSpec
        As it was created with.
    level : int
        Level to write.
    t, c : int
        Time point and first channel.
    start : (int, int, int)
        First voxel (z, y, x), at the beginning of a shard.
    voxels : (C, Z, Y, X) ndarray
        Voxels up to the end of a shard or of the volume.
    """
    if spec.format == "ome_zarr":
        ome_zarr.write_region(uri, spec, level, t, c, start, voxels)
    else:
        precomputed.write_region(uri, spec, level, start, voxels)
