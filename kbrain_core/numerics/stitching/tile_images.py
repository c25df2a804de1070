"""Pixels of tiles: files that stay open for a while, and tiles that stay in memory as long as they fit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...formats.readers import ImageReader, open_image
from ...formats.tables import Tile

# A file that many tiles share is opened once; more than this many at a time gain nothing.
OPEN_FILES = 16
# A tile is decoded whole, once, when it is at most this large; of a larger one only boxes are read.
WHOLE_TILE_BYTES = 16_000_000


class Sized(Protocol):
    """Something that knows its size in memory."""

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""


V = TypeVar("V", bound=Sized)


class Recent(Generic[V]):
    """The values used last, as many as fit into a number of bytes."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._kept: OrderedDict[Hashable, V] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of `key`, made when it is not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        value = make()
        self._kept[key] = value
        self._bytes += value.nbytes
        while self._bytes > self._budget and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return value

    def drop(self, key: Hashable) -> None:
        """Let go of a value that is not needed again."""
        value = self._kept.pop(key, None)
        self._bytes -= value.nbytes if value is not None else 0


class TileFiles:
    """Reads boxes of tiles; keeps files open and small tiles decoded.

    Parameters
    ----------
    folder : Path
        The folder that tile names are relative to.
    budget_bytes : int
        Memory for decoded tiles.
    """

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self.folder = folder
        self._readers: OrderedDict[tuple[str, int], ImageReader] = OrderedDict()
        self._decoded: Recent[NDArray[np.generic]] = Recent(budget_bytes)

    def __enter__(self) -> TileFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        while self._readers:
            self._readers.popitem()[1].close()

    def read(self, tile: Tile, box: tuple[slice, slice, slice]) -> NDArray[Any]:
        """A box of a tile, (Z, Y, X); a view of a decoded tile where that is small enough to keep.

        Raises
        ------
        InputError
            When the file is not readable, or not of the size that the table says.
        """
        shape = (tile.depth_px or 1, tile.height_px or 0, tile.width_px or 0)
        size = int(np.prod(shape)) * np.dtype(tile.dtype).itemsize
        if size > WHOLE_TILE_BYTES:
            return self._read_box(tile, shape, box)
        key = self._key(tile)
        whole = tuple(slice(0, n) for n in shape)
        return self._decoded.get(key, lambda: self._read_box(tile, shape, whole))[box]

    def release(self, tile: Tile) -> None:
        """Let go of the pixels of a tile that is not read again soon."""
        self._decoded.drop(self._key(tile))

    def _key(self, tile: Tile) -> Hashable:
        return tile.name, tile.series, tile.page, self._changed_at(tile.name)

    def _changed_at(self, name: str) -> int:
        """Time of the file's last change: what was kept of an older one must not be used."""
        try:
            return (self.folder / name).stat().st_mtime_ns
        except OSError as error:
            raise InputError(f"'{name}' cannot be read from '{self.folder}' ({error.strerror})") from error

    def _read_box(self, tile: Tile, shape: tuple[int, ...], box: tuple[slice, ...]) -> NDArray[Any]:
        reader = self._open(tile.name)
        if tile.series >= len(reader.images):
            raise InputError(
                f"'{tile.name}' holds {len(reader.images)} images; the table asks for number {tile.series}"
            )
        info = reader.images[tile.series]
        if info.shape[3:] != shape[1:] or str(info.dtype) != tile.dtype:
            raise InputError(
                f"'{tile.name}' is {info.shape[3]} x {info.shape[4]} px of {info.dtype} and the table says {shape[1]} x "
                f"{shape[2]} px of {tile.dtype}: run sort-tiles again"
            )
        plane, first = divmod(tile.page, info.shape[2])
        t, c = divmod(plane, info.shape[1])
        z = slice(first + box[0].start, first + box[0].stop)
        return reader.read(tile.series, t, c, z, box[1], box[2])

    def _open(self, name: str) -> ImageReader:
        key = (name, self._changed_at(name))
        if key in self._readers:
            self._readers.move_to_end(key)
        else:
            self._readers[key] = open_image(self.folder / name, whole_set=False)
            if len(self._readers) > OPEN_FILES:
                self._readers.popitem(last=False)[1].close()
        return self._readers[key]
