"""A stack of sections, wherever each lies: the planes of one volume, or one volume or image a section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..geometry import VoxelSize
from ..store import is_remote
from .readers import ImageReader, open_image
from .tile_names import natural_key
from .volume import Volume

IMAGE_DTYPES = ("uint8", "int8", "uint16", "int16", "float32")
STRIP_BYTES = 64 * 2**20
"""Of full-resolution rows that are held while a large image is reduced."""


@dataclass(frozen=True)
class SectionInput:
    """One section and where it lies.

    Parameters
    ----------
    uri : str
        Volume or image file.
    kind : {"volume", "image"}
    z : int
        Its plane there.
    shape_yx : (2,) int
    halvings : tuple of int
        For each resolution level of a volume, how many times rows and columns were halved; an image has just (0,). Levels
        that put planes together are left out (-1).
    """

    uri: str
    kind: Literal["volume", "image"]
    z: int
    shape_yx: tuple[int, int]
    halvings: tuple[int, ...] = (0,)

    @property
    def label(self) -> str:
        """What a person calls it."""
        return Path(self.uri).name


@dataclass(frozen=True)
class SectionStack:
    """Sections in order, alike in everything but their size.

    Parameters
    ----------
    sections : tuple of SectionInput
    times : int
    channel_names : tuple of str
    dtype : str
    is_labels : bool
    voxel_size : VoxelSize
        As far as it is known.
    offset_nm : (3,) float
        (z, y, x) of the first voxel of the first section.
    lossy : bool
    """

    sections: tuple[SectionInput, ...]
    times: int
    channel_names: tuple[str, ...]
    dtype: str
    is_labels: bool
    voxel_size: VoxelSize
    offset_nm: tuple[float, float, float]
    lossy: bool

    @property
    def itemsize(self) -> int:
        """Bytes of a pixel."""
        return np.dtype(self.dtype).itemsize

    @property
    def pixels(self) -> int:
        """Of all sections, one channel and time point."""
        return sum(section.shape_yx[0] * section.shape_yx[1] for section in self.sections)

    def channel_index(self, channel: str | None) -> int:
        """A channel's number from its name or number; the first when not given."""
        if channel is None:
            return 0
        if channel in self.channel_names:
            return self.channel_names.index(channel)
        if channel.isdecimal() and int(channel) < len(self.channel_names):
            return int(channel)
        raise InputError(f"There is no channel '{channel}' (there are: {', '.join(self.channel_names)}).")


def open_sections(inputs: Sequence[str]) -> SectionStack:
    """Find the sections of one input (its planes) or of many (one each, in natural order of their names).

    Parameters
    ----------
    inputs : sequence of str
        Volumes (path or URL), images, or folders of them.

    Raises
    ------
    InputError
        When an input is unreadable, holds more than one section beside others, or differs from the first in type,
        channels, time points or pixel size.
    """
    paths = [path for item in inputs for path in _expand(item)]
    if not paths:
        raise InputError(
            f"'{inputs[0] if inputs else ''}' holds no sections: give a volume, images, or a folder of them"
        )
    paths.sort(key=natural_key)
    stacks = [_open_one(path) for path in paths]
    if len(stacks) == 1:
        return stacks[0]
    first = stacks[0]
    for path, stack in zip(paths, stacks, strict=True):
        if len(stack.sections) > 1:
            raise InputError(
                f"'{path}' holds {len(stack.sections)} planes beside other inputs: give one volume, or one section a file"
            )
        _check_alike(paths[0], first, path, stack)
    sections = tuple(stack.sections[0] for stack in stacks)
    return SectionStack(
        sections, first.times, first.channel_names, first.dtype, first.is_labels, first.voxel_size, first.offset_nm,
        any(stack.lossy for stack in stacks),
    )  # fmt: skip


def _check_alike(path: str, one: SectionStack, other_path: str, other: SectionStack) -> None:
    """Refuse sections that cannot lie in one volume."""
    facts = [
        ("type", one.dtype, other.dtype),
        ("number of channels", len(one.channel_names), len(other.channel_names)),
        ("number of time points", one.times, other.times),
        ("pixel size (y, x)", one.voxel_size.zyx_nm[1:], other.voxel_size.zyx_nm[1:]),
    ]
    for name, expected, seen in facts:
        if expected != seen:
            raise InputError(
                f"Sections differ in {name}: '{path}' has {expected} but '{other_path}' has {seen}: convert one of them, or "
                "leave it out"
            )


def _expand(item: str) -> list[str]:
    """The inputs a path stands for: itself, or for a folder that is no volume the files in it."""
    if is_remote(item) or not Path(item).is_dir() or _is_volume(item):
        return [item]
    return [
        str(path)
        for path in Path(item).iterdir()
        if not path.name.startswith(".") and (path.is_file() or _is_volume(str(path)))
    ]


def _is_volume(path: str) -> bool:
    names = ("zarr.json", ".zattrs", ".zgroup", "info")
    if any((Path(path) / name).is_file() for name in names):
        return True
    # A workflow system's folder that holds exactly one volume is one too.
    inside = [child for child in Path(path).iterdir() if not child.name.startswith(".")]
    return len(inside) == 1 and inside[0].is_dir() and any((inside[0] / name).is_file() for name in names)


def _open_one(path: str) -> SectionStack:
    if is_remote(path) or Path(path).is_dir():
        return _open_volume(path)
    return _open_image(path)


def _open_volume(uri: str) -> SectionStack:
    volume = Volume.open(uri)
    times, _, depth, height, width = volume.shape
    halvings = tuple(_halvings(level.factor) for level in volume.levels)
    size = VoxelSize() if volume.voxel_size_nm is None else VoxelSize(*volume.voxel_size_nm)
    sections = tuple(SectionInput(uri, "volume", z, (height, width), halvings) for z in range(depth))
    labels = volume.kind == "labels"
    _check_dtype(uri, volume.dtype, labels)
    return SectionStack(
        sections, times, volume.channel_names, volume.dtype.name, labels, size, volume.offset_nm, volume.lossy
    )


def _halvings(factor: tuple[int, int, int]) -> int:
    """How many times a level's planes were halved; -1 when that is not all it went through."""
    count = int(factor[1]).bit_length() - 1
    return count if tuple(factor) == (1, 2**count, 2**count) else -1


def _open_image(path: str) -> SectionStack:
    with open_image(path, whole_set=False) as reader:
        images = reader.images
        if len(images) != 1:
            raise InputError(
                f"'{path}' holds {len(images)} images: convert each with convert-image, or save them one a file"
            )
        info = images[0]
        times, _, depth, height, width = info.shape
        _check_dtype(path, info.dtype, labels=False)
        size = VoxelSize.from_um(*info.voxel_size_um)
        sections = tuple(SectionInput(path, "image", z, (height, width)) for z in range(depth))
        name = np.dtype(info.dtype).name
    return SectionStack(sections, times, tuple(info.channel_names), name, False, size, (0.0, 0.0, 0.0), False)


def _check_dtype(path: str, dtype: np.dtype[Any], labels: bool) -> None:
    if not labels and dtype.name not in IMAGE_DTYPES:
        raise InputError(
            f"'{path}' holds {dtype.name}: sections must be one of {', '.join(IMAGE_DTYPES)}; convert it first"
        )


class SectionReader:
    """Reads sections; keeps the volumes and the last image open until it is left (a context manager)."""

    def __init__(self) -> None:
        self._volumes: dict[str, Volume] = {}
        self._image: tuple[str, ImageReader] | None = None

    def __enter__(self) -> SectionReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_image()

    def planes(
        self, sections: Sequence[SectionInput], time: int, channel: int, rows: slice, columns: slice
    ) -> NDArray[Any]:
        """The same rows and columns of consecutive planes of one source, at full resolution: (Z, Y, X)."""
        first = sections[0]
        depth = slice(first.z, first.z + len(sections))
        if first.kind == "volume":
            return self._read_volume(first.uri, time, channel, (depth, rows, columns), 0)
        stack: NDArray[Any] = self._open_image(first.uri).read(0, time, channel, depth, rows, columns)
        return stack

    def reduced(self, section: SectionInput, time: int, channel: int, halvings: int) -> NDArray[Any]:
        """A whole section, its rows and columns halved so many times (means of blocks, rounded to its type).

        Volumes are read from the coarsest level that is fine enough; what is missing is done here, strip by strip.
        """
        usable = [(count, level) for level, count in enumerate(section.halvings) if 0 <= count <= halvings]
        done, level = max(usable)
        factor = 2 ** (halvings - done)
        height, width = section.shape_yx
        if section.kind == "volume":
            height, width = self._volume(section.uri).levels[level].shape[1:]
        size = height // factor, width // factor
        if min(size) < 1:
            raise InputError(
                f"'{section.uri}' has only {height} x {width} px (y, x): it cannot be halved {halvings} times"
            )
        strip = max(1, STRIP_BYTES // (width * 4 * factor)) * factor
        columns = slice(0, size[1] * factor)
        parts = []
        for top in range(0, size[0] * factor, strip):
            rows = slice(top, min(top + strip, size[0] * factor))
            if section.kind == "volume":
                plane = slice(section.z, section.z + 1)
                pixels = self._read_volume(section.uri, time, channel, (plane, rows, columns), level)
            else:
                pixels = self.planes([section], time, channel, rows, columns)
            parts.append(_block_mean(pixels[0], factor))
        return np.concatenate(parts)

    def _read_volume(
        self, uri: str, time: int, channel: int, box: tuple[slice, slice, slice], level: int
    ) -> NDArray[Any]:
        region = (slice(time, time + 1), slice(channel, channel + 1), *box)
        voxels: NDArray[Any] = self._volume(uri).read(region, level)[0, 0]
        return voxels

    def _volume(self, uri: str) -> Volume:
        if uri not in self._volumes:
            self._volumes[uri] = Volume.open(uri)
        return self._volumes[uri]

    def _open_image(self, path: str) -> ImageReader:
        if self._image is None or self._image[0] != path:
            self._close_image()
            self._image = (path, open_image(path, whole_set=False))
        return self._image[1]

    def _close_image(self) -> None:
        if self._image is not None:
            self._image[1].__exit__(None, None, None)
            self._image = None


def _block_mean(pixels: NDArray[Any], factor: int) -> NDArray[Any]:
    if factor == 1:
        return pixels
    blocks = pixels.reshape(pixels.shape[0] // factor, factor, pixels.shape[1] // factor, factor)
    mean = blocks.mean(axis=(1, 3), dtype=np.float32)
    rounded = np.rint(mean) if np.issubdtype(pixels.dtype, np.integer) else mean
    result: NDArray[Any] = rounded.astype(pixels.dtype)
    return result
