"""Compressed files that can only be read from the start: unpacked once beside the temporary files."""

from __future__ import annotations

import bz2
import gzip
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from ...store import require_disk, scratch_folder

_PIECE_BYTES = 1 << 22


def unpack(path: str, skip: int, kind: str, expected_bytes: int) -> tuple[TemporaryDirectory[str], Path]:
    """Unpack a gzip, zlib or bzip2 stream to a temporary file.

    Parameters
    ----------
    path : str
        The file that holds the stream.
    skip : int
        Where in the file the stream begins, in bytes.
    kind : {"gzip", "bzip2"}
        "gzip" also takes the bare zlib stream that some NRRD writers make.
    expected_bytes : int
        What should come out; a stream of more bytes is refused (it may be a bomb), of fewer is truncated.

    Returns
    -------
    TemporaryDirectory, Path
        The folder to clean up, and the unpacked file in it.

    Raises
    ------
    ValueError
        If the stream is shorter or longer than expected.
    """
    folder = scratch_folder("unpack")
    try:
        require_disk(folder.name, expected_bytes)
        target = Path(folder.name) / "data"
        with Path(path).open("rb") as file, target.open("wb") as out:
            file.seek(skip)
            left = expected_bytes
            with _stream(file, kind) as stream:
                while piece := stream.read(min(_PIECE_BYTES, left + 1)):
                    left -= len(piece)
                    if left < 0:
                        raise ValueError("its data are longer than its header says")
                    out.write(piece)
            if left:
                raise ValueError("its data are shorter than its header says")
    except BaseException:
        folder.cleanup()
        raise
    return folder, target


class _Zlib:
    """A bare zlib stream with the interface of a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._decoder = file, zlib.decompressobj()

    def read(self, size: int) -> bytes:
        while not self._decoder.eof:
            packed = self._decoder.unconsumed_tail or self._file.read(_PIECE_BYTES)
            piece = self._decoder.decompress(packed, size)
            if piece or not packed:
                return piece
        return b""

    def __enter__(self) -> _Zlib:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _stream(file: BinaryIO, kind: str) -> bz2.BZ2File | gzip.GzipFile | _Zlib:
    if kind == "bzip2":
        return bz2.BZ2File(file)
    at = file.tell()
    magic = file.read(2)
    file.seek(at)
    return gzip.GzipFile(fileobj=file) if magic == b"\x1f\x8b" else _Zlib(file)
