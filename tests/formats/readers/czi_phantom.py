"""Writes small CZI files (ZISRAW 1.0) of grey or colour planes; as independent of the reader as the format allows."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np

PIXEL_TYPES = {("uint8", 1): 0, ("uint16", 1): 1, ("float32", 1): 2, ("uint8", 3): 3, ("uint16", 3): 4}


@dataclass(frozen=True)
class Plane:
    """One subblock: its pixels (Y, X) or (Y, X, 3) as stored, and the start of every dimension."""

    pixels: np.ndarray
    start: dict[str, int]
    pyramid_factor: int = 1


def _low_bytes_first(data: bytes) -> bytes:
    """All low bytes of 16-bit samples, then all high bytes."""
    return np.frombuffer(data, np.uint8).reshape(-1, 2).T.tobytes()


COMPRESSIONS: dict[str, tuple[int, Callable[[np.ndarray], bytes]]] = {
    "none": (0, lambda pixels: pixels.tobytes()),
    "jpegxr": (4, lambda pixels: bytes(imagecodecs.jpegxr_encode(pixels, level=1.0))),
    "zstd0": (5, lambda pixels: bytes(imagecodecs.zstd_encode(pixels.tobytes()))),
    "zstd1": (6, lambda pixels: b"\x01" + bytes(imagecodecs.zstd_encode(pixels.tobytes()))),
    "zstd1_hilo": (
        6,
        lambda pixels: b"\x03\x01\x01" + bytes(imagecodecs.zstd_encode(_low_bytes_first(pixels.tobytes()))),
    ),
}


def _segment(identifier: str, content: bytes) -> bytes:
    size = -(-len(content) // 32) * 32
    return struct.pack("<16sqq", identifier.encode(), size, len(content)) + content.ljust(size, b"\0")


def _entry(plane: Plane, position: int, compression: int) -> bytes:
    height, width = plane.pixels.shape[:2]
    samples = plane.pixels.shape[2] if plane.pixels.ndim == 3 else 1
    pixel_type = PIXEL_TYPES[plane.pixels.dtype.name, samples]
    factor = plane.pyramid_factor
    data = struct.pack(
        "<2siqii6si", b"DV", pixel_type, position, 0, compression, b"", len(plane.start)
    )  # a pyramid level covers `factor` times the pixels it stores
    for axis, start in plane.start.items():
        stored = {"X": width, "Y": height}.get(axis, 1)
        size = stored * factor if axis in "XY" else 1
        data += struct.pack("<4siifi", axis.encode(), start, size, 0.0, stored)
    return data


def write_czi(
    path: Path,
    planes: list[Plane],
    compression: str = "none",
    metadata: str = "<ImageDocument/>",
    plane_metadata: str = "",
) -> None:
    """Write a CZI file."""
    code, encode = COMPRESSIONS[compression]
    body, entries = bytearray(_segment("ZISRAWFILE", bytes(512))), []
    for plane in planes:
        entry = _entry(plane, len(body), code)
        entries.append(entry)
        pixels, xml = encode(np.ascontiguousarray(plane.pixels)), plane_metadata.encode()
        header = struct.pack("<iiq", len(xml), 0, len(pixels)) + entry
        body += _segment("ZISRAWSUBBLOCK", header.ljust(256, b"\0") + xml + pixels)
    directory = len(body)
    body += _segment("ZISRAWDIRECTORY", struct.pack("<i", len(entries)).ljust(128, b"\0") + b"".join(entries))
    metadata_position = len(body)
    text = metadata.encode()
    body += _segment("ZISRAWMETADATA", struct.pack("<ii", len(text), 0).ljust(256, b"\0") + text)
    header = struct.pack("<ii8x16x16xiqqiq", 1, 0, 0, directory, metadata_position, 0, 0)
    body[32 : 32 + len(header)] = header
    path.write_bytes(body)
