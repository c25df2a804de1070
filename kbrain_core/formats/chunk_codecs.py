"""Chunks of voxels to bytes, and the files they are put in."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
from collections.abc import Iterator
from typing import IO, Any

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from ..store import atomic_path, is_remote, local_path, write_bytes
from .layout import ZYX, ceil_div

# Its stubs know bytes only, while its functions take any buffer.
CODECS: Any = imagecodecs
# zstd 3 is where more time stops making EM much smaller (1 % from 3 to 9).
ZSTD_LEVEL = 3
GZIP_LEVEL = 6


def chunk_positions(start: ZYX, shape: ZYX, chunk: ZYX) -> Iterator[tuple[ZYX, tuple[slice, slice, slice]]]:
    """Grid position of every chunk of a region that starts on a chunk, and its slices inside the region (z slowest)."""
    counts = [range(ceil_div(size, side)) for size, side in zip(shape, chunk)]
    for index in itertools.product(*counts):
        z, y, x = (first // side + i for first, side, i in zip(start, chunk, index))
        cut_z, cut_y, cut_x = (
            slice(i * side, min((i + 1) * side, size)) for i, side, size in zip(index, chunk, shape)
        )
        yield (z, y, x), (cut_z, cut_y, cut_x)


@contextlib.contextmanager
def atomic_file(uri: str) -> Iterator[IO[bytes]]:
    """A new file at a path or URL, to write and seek in; a reader sees all of it or none."""
    if is_remote(uri):
        buffer = io.BytesIO()
        yield buffer
        write_bytes(uri, buffer.getvalue())
        return
    path = local_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


def little_endian(chunk: NDArray[Any]) -> NDArray[Any]:
    """The chunk with its bytes in little-endian C order; a copy only where it is not."""
    return np.ascontiguousarray(chunk, dtype=chunk.dtype.newbyteorder("<"))


def raw_bytes(chunk: NDArray[Any]) -> memoryview:
    """The chunk's little-endian bytes in C order, not copied again where they lie so already."""
    return little_endian(chunk).data.cast("B")


def encode_zstd(chunk: NDArray[Any]) -> bytes:
    """Compress with zstd."""
    data: bytes = CODECS.zstd_encode(little_endian(chunk), ZSTD_LEVEL)
    return data


def encode_blosc(chunk: NDArray[Any]) -> bytes:
    """Compress with zstd after shuffling the bytes of a voxel apart: wider types get smaller and faster."""
    data: bytes = CODECS.blosc_encode(
        little_endian(chunk),
        level=ZSTD_LEVEL,
        compressor="zstd",
        shuffle=1,
        typesize=chunk.itemsize,
        numthreads=1,
    )
    return data


def encode_gzip(data: bytes | memoryview) -> bytes:
    """Compress with gzip, the same bytes at any time of day."""
    return gzip.compress(data, GZIP_LEVEL, mtime=0)


def encode_jpeg(chunk: NDArray[np.uint8], quality: int) -> bytes:
    """A (c, z, y, x) chunk of 1 or 3 channels as a JPEG picture x wide and z * y high.

    Colours are not subsampled: channels of a microscope are no colours of one scene.
    """
    picture = _picture(chunk)
    grey = picture.shape[2] == 1
    data: bytes = simplejpeg.encode_jpeg(
        picture,
        quality=quality,
        colorspace="GRAY" if grey else "RGB",
        colorsubsampling="Gray" if grey else "444",
    )
    return data


def encode_png(chunk: NDArray[Any]) -> bytes:
    """A (c, z, y, x) chunk of 8 or 16 bits and 1 to 4 channels as a PNG picture x wide and z * y high."""
    picture = _picture(chunk)
    # Noise does not shrink; it grows by a filter byte a row and the headers of deflate.
    room = picture.nbytes + picture.nbytes // 8 + 4096
    data: bytes = CODECS.png_encode(picture[..., 0] if len(chunk) == 1 else picture, out=room)
    return data


def _picture(chunk: NDArray[Any]) -> NDArray[Any]:
    """A (c, z, y, x) chunk as a picture (z * y, x, c)."""
    channels, z, y, x = chunk.shape
    return np.ascontiguousarray(np.moveaxis(chunk, 0, -1)).reshape(z * y, x, channels)
