"""Zeiss CZI (ZISRAW): subblocks read one by one; every tile of a mosaic is an image of its own.

Segments begin with 32 bytes (identifier, allocated size, used size). The file header points to the directory,
whose entries say which plane each subblock holds; the header also points to the XML metadata.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import defusedxml.ElementTree as ElementTree
import imagecodecs
import numpy as np

from ...errors import InputError
from .base import (
    ZYX,
    ImageInfo,
    ImageReader,
    length_um,
    numbered,
    position_um,
    refuse,
)

_SEGMENT_BYTES = 32
_ENTRY_BYTES, _DIMENSION_BYTES = 32, 20
_SUBBLOCK_HEADER_BYTES = 256
_MAX_XML_BYTES = 1 << 28

# Pixel type: dtype and samples per pixel (more than one is stored blue first).
_PIXEL_TYPES = {
    0: ("<u1", 1), 1: ("<u2", 1), 2: ("<f4", 1), 3: ("<u1", 3), 4: ("<u2", 3), 8: ("<f4", 3), 9: ("<u1", 4),
    12: ("<u4", 1), 13: ("<f8", 1),
}  # fmt: skip
_UNCOMPRESSED, _JPEG_XR, _ZSTD0, _ZSTD1 = 0, 4, 5, 6


@dataclass(frozen=True)
class _Subblock:
    """A directory entry: where the subblock is stored and what part of the experiment it holds."""

    position: int
    pixel_type: int
    compression: int
    dimensions: int
    start: dict[str, int]
    size: dict[str, int]

    @property
    def plane(self) -> tuple[int, int, int]:
        return self.start.get("T", 0), self.start.get("C", 0), self.start.get("Z", 0)

    @property
    def image(self) -> tuple[tuple[str, int], ...]:
        """What is one image: scene, view and mosaic tile, not time, channel, plane and place."""
        apart = sorted(set(self.start) - set("TCZXY"), key="SVHIRBM".find)
        return tuple((axis, self.start[axis]) for axis in apart)


class CziReader(ImageReader):
    """Reads CZI files: uncompressed, JPEG XR and Zstandard, grey and colour.

    Stored pyramids are left out. A mosaic tile's stage position is its place in the instrument's own mosaic
    (pixels from the directory times the pixel size), with the focus position as z.
    """

    def __init__(self, path: str, dataset: str | None = None) -> None:
        if dataset is not None:
            raise InputError(f"{path} is a CZI file and has no data sets: give a series.")
        self.path = path
        self._file: BinaryIO = Path(path).open("rb")  # noqa: SIM115 - closed by close()
        try:
            directory, metadata = _file_header(self._file)
            subblocks = _directory(self._file, directory)
            facts = _facts(self._file, metadata)
            groups: dict[Any, list[_Subblock]] = {}
            for subblock in subblocks:
                groups.setdefault(subblock.image, []).append(subblock)
            if not groups:
                raise ValueError("its directory lists no images")
            self._planes = [{subblock.plane: subblock for subblock in group} for group in groups.values()]
            self._axes = [
                [sorted({plane[axis] for plane in planes}) for axis in range(3)] for planes in self._planes
            ]
            self.images = tuple(
                self._describe(number, name, facts, len(groups)) for number, name in enumerate(groups)
            )
        except Exception as error:  # a damaged directory raises anything
            self.close()
            refuse(path, error)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _describe(
        self, number: int, name: tuple[tuple[str, int], ...], facts: _Facts, count: int
    ) -> ImageInfo:
        planes, axes = self._planes[number], self._axes[number]
        first = planes[min(planes)]
        for subblock in planes.values():
            if (subblock.size["Y"], subblock.size["X"], subblock.pixel_type) != (
                first.size["Y"], first.size["X"], first.pixel_type,
            ):  # fmt: skip
                raise ValueError("its planes differ in size or type")
        if first.pixel_type not in _PIXEL_TYPES:
            raise ValueError(f"pixel type {first.pixel_type} is not supported")
        dtype, samples = _PIXEL_TYPES[first.pixel_type]
        names = [facts.channel_names.get(c, str(c)) for c in axes[1]]
        if samples > 1:
            names = [f"{channel} {sample}" for channel in names for sample in "RGBA"[:samples]]
        z_um, y_um, x_um = facts.voxel_size_um
        stage: ZYX = (None, None, None)
        if y_um is not None and x_um is not None and count > 1:
            focus = _focus_um(self._file, first)
            stage = (focus, first.start["Y"] * y_um, first.start["X"] * x_um)
        return ImageInfo(
            name=" ".join(f"{axis}{value}" for axis, value in name) or Path(self.path).name,
            shape=(len(axes[0]), len(names), len(axes[2]), first.size["Y"], first.size["X"]),
            dtype=np.dtype(dtype).newbyteorder("="),
            voxel_size_um=(z_um, y_um, x_um),
            channel_names=tuple(names) if len(set(names)) == len(names) else numbered(len(names)),
            stage_um=stage,
            acquired_at=facts.acquired_at,
            bits=facts.bits or np.dtype(dtype).itemsize * 8,
            voxel_size_from="CZI metadata" if any(facts.voxel_size_um) else "not given",
            block_zyx=(1, first.size["Y"], first.size["X"]),
        )

    def _read(
        self, series: int, t: int, c: int, z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]
    ) -> np.ndarray:
        info, planes, axes = self.images[series], self._planes[series], self._axes[series]
        samples = _PIXEL_TYPES[planes[min(planes)].pixel_type][1]
        channel, sample = divmod(c, samples)
        out = np.empty((z[1] - z[0], y[1] - y[0], x[1] - x[0]), info.dtype)
        for plane in range(*z):
            key = (axes[0][t], axes[1][channel], axes[2][plane])
            if key not in planes:
                raise InputError(
                    f"{self.path} lacks the plane t={key[0]}, c={key[1]}, z={key[2]} of series {series}."
                )
            out[plane - z[0]] = _pixels(self._file, planes[key])[y[0] : y[1], x[0] : x[1], sample]
        return out


@dataclass(frozen=True)
class _Facts:
    """What the XML says of the whole file."""

    voxel_size_um: ZYX
    channel_names: dict[int, str]
    acquired_at: str | None
    bits: int | None


def _exactly(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    data = file.read(count)
    if len(data) < count:
        raise ValueError("the file ends too early")
    return data


def _segment(file: BinaryIO, position: int, identifier: bytes) -> int:
    """Check a segment's identifier; returns where its content begins."""
    found = _exactly(file, position, 16).rstrip(b"\0")
    if found != identifier:
        raise ValueError(f"{identifier.decode()} was expected at byte {position}")
    return position + _SEGMENT_BYTES


def _file_header(file: BinaryIO) -> tuple[int, int]:
    """Positions of the directory and of the metadata."""
    content = _exactly(file, _segment(file, 0, b"ZISRAWFILE"), 80)
    part, directory, metadata = struct.unpack_from("<iqq", content, 48)
    if part != 0:
        raise InputError("This CZI file is a later part of a file in several parts: open the first part.")
    if directory == 0:
        raise ValueError("the acquisition was interrupted: it has no directory")
    return directory, metadata


def _directory(file: BinaryIO, position: int) -> list[_Subblock]:
    """The subblocks at full resolution."""
    content = _segment(file, position, b"ZISRAWDIRECTORY")
    (count,) = struct.unpack("<i", _exactly(file, content, 4))
    used = struct.unpack("<q", _exactly(file, position + 24, 8))[0]
    data = _exactly(file, content + 128, max(0, used - 128))
    found, at = [], 0
    for _ in range(count):
        subblock, at = _entry(data, at)
        if subblock is not None:
            found.append(subblock)
    return found


def _entry(data: bytes, at: int) -> tuple[_Subblock | None, int]:
    """One directory entry (schema DV) and where the next begins; None for a level of a stored pyramid."""
    schema, pixel_type, position, part, compression, _, dimensions = struct.unpack_from(
        "<2siqii6si", data, at
    )
    if schema != b"DV" or part != 0:
        raise ValueError("its directory refers to other files or to a schema that is not known")
    start, size, pyramid = {}, {}, False
    for number in range(dimensions):
        name, first, length, _, stored = struct.unpack_from(
            "<4siifi", data, at + _ENTRY_BYTES + number * _DIMENSION_BYTES
        )
        axis = name.rstrip(b"\0").decode("ascii")
        start[axis], size[axis] = first, length
        pyramid |= stored not in (0, length)
    if (
        not {"X", "Y"} <= set(size)
        or min(size.values()) < 1
        or math.prod(size.values()) != size["X"] * size["Y"]
    ):
        raise ValueError("a subblock that is no single plane")
    subblock = _Subblock(position, pixel_type, compression, dimensions, start, size)
    return None if pyramid else subblock, at + _ENTRY_BYTES + dimensions * _DIMENSION_BYTES


def _parts(file: BinaryIO, subblock: _Subblock) -> tuple[int, int, int]:
    """Where a subblock's own metadata begin, their size, and the size of the pixels behind them."""
    content = _segment(file, subblock.position, b"ZISRAWSUBBLOCK")
    metadata, _, pixels = struct.unpack("<iiq", _exactly(file, content, 16))
    header = max(_SUBBLOCK_HEADER_BYTES, 16 + _ENTRY_BYTES + subblock.dimensions * _DIMENSION_BYTES)
    return content + header, metadata, pixels


def _pixels(file: BinaryIO, subblock: _Subblock) -> np.ndarray:
    """The (Y, X, samples) pixels of a subblock, red first."""
    dtype, samples = _PIXEL_TYPES[subblock.pixel_type]
    shape = (subblock.size["Y"], subblock.size["X"], samples)
    begin, metadata, size = _parts(file, subblock)
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    if subblock.compression == _UNCOMPRESSED and size < expected:
        raise ValueError("a subblock is too small")
    decode = _DECODERS.get(subblock.compression)
    if decode is None:
        raise InputError(
            f"CZI compression {subblock.compression} is not supported: save it as Zstandard in ZEN."
        )
    pixels = decode(_exactly(file, begin + metadata, size), dtype, expected).reshape(shape)
    # The JPEG XR codec hands back red first; the others keep the stored order, blue first.
    if samples == 1 or subblock.compression == _JPEG_XR:
        return pixels
    return pixels[:, :, [2, 1, 0, 3][:samples]]


def _plain(data: bytes | bytearray, dtype: str, expected: int) -> np.ndarray:
    return np.frombuffer(data, dtype, expected // np.dtype(dtype).itemsize)


def _zstd0(data: bytes, dtype: str, expected: int) -> np.ndarray:
    return _plain(imagecodecs.zstd_decode(data, out=expected), dtype, expected)


def _zstd1(data: bytes, dtype: str, expected: int) -> np.ndarray:
    """Zstandard behind a small header, which may say that low and high bytes are stored apart."""
    header = data[0]
    apart = header >= 3 and data[1] == 1 and bool(data[2] & 1)
    plain = imagecodecs.zstd_decode(data[header:], out=expected)
    if apart:
        plain = np.frombuffer(plain, np.uint8).reshape(2, -1).T.tobytes()
    return _plain(plain, dtype, expected)


def _jpeg_xr(data: bytes, dtype: str, expected: int) -> np.ndarray:
    pixels: np.ndarray = imagecodecs.jpegxr_decode(data)
    return pixels


_DECODERS: dict[int, Callable[[bytes, str, int], np.ndarray]] = {
    _UNCOMPRESSED: _plain,
    _JPEG_XR: _jpeg_xr,
    _ZSTD0: _zstd0,
    _ZSTD1: _zstd1,
}


def _xml(file: BinaryIO, position: int, size: int) -> Any:
    if not 0 <= size <= _MAX_XML_BYTES:
        raise ValueError(f"metadata of {size} bytes")
    return ElementTree.fromstring(_exactly(file, position, size).rstrip(b"\0"))


def _facts(file: BinaryIO, position: int) -> _Facts:
    """Voxel size (stored in m), channel names, date and bits from the file's XML."""
    if position == 0:
        return _Facts((None, None, None), {}, None, None)
    content = _segment(file, position, b"ZISRAWMETADATA")
    (size,) = struct.unpack("<i", _exactly(file, content, 4))
    root = _xml(file, content + _SUBBLOCK_HEADER_BYTES, size)
    z, y, x = (
        length_um(root.findtext(f".//Scaling/Items/Distance[@Id='{axis}']/Value"), "m") for axis in "ZYX"
    )
    image = root.find(".//Information/Image")
    channels = [] if image is None else image.findall("Dimensions/Channels/Channel")
    names = {number: name for number, channel in enumerate(channels) if (name := channel.get("Name"))}
    bits = None if image is None else image.findtext("ComponentBitCount")
    date = None if image is None else image.findtext("AcquisitionDateAndTime")
    return _Facts((z, y, x), names, date, int(bits) if bits else None)


def _focus_um(file: BinaryIO, subblock: _Subblock) -> float | None:
    """Focus position from a subblock's own metadata, in um."""
    begin, size, _ = _parts(file, subblock)
    if size == 0:
        return None
    try:
        return position_um(_xml(file, begin, size).findtext(".//Tags/FocusPosition"), "um")
    except ElementTree.ParseError:  # older instruments leave fragments here, which hold nothing needed
        return None
