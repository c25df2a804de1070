"""NRRD (.nrrd, .nhdr), its header through pynrrd; raw data are memory mapped, packed data unpacked once."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nrrd
import numpy as np

from ...errors import InputError
from .base import UNKNOWN, ZYX, ImageInfo, ImageReader, length_um, native, numbered, refuse
from .unpacking import unpack

_SPATIAL = {"domain", "space", "none", "???"}
_PACKED = {"gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}


class NrrdReader(ImageReader):
    """Reads NRRD files of 2 or 3 spatial axes, with a colour, vector or time axis before or behind them.

    Spacings are in the header's `space units`; without units they are mm, as the format's other programs take
    them.
    """

    def __init__(self, path: str, dataset: str | None = None) -> None:
        if dataset is not None:
            raise InputError(f"{path} is an NRRD file and has no data sets.")
        self.path = path
        self._folder: TemporaryDirectory[str] | None = None
        try:
            header, begin = _header(path)
            self._sizes = tuple(int(size) for size in header["sizes"])
            self._dtype = _dtype(header)
            self._axes = _axes(header, len(self._sizes))
            self._data_path, self._begin = self._find_data(header, begin)
            self.images = (self._describe(header),)
        except Exception as error:  # pynrrd raises its own errors, ValueError and KeyError
            self.close()
            refuse(path, error)

    def close(self) -> None:
        """Remove what was unpacked."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _find_data(self, header: dict[str, Any], begin: int) -> tuple[Path, int]:
        """The file with the plain data, and where in it they begin."""
        data = Path(self.path)
        name = header.get("data file", header.get("datafile"))
        if name is not None:
            if name != Path(name).name or "\\" in name or "%" in name or name.startswith("LIST"):
                raise InputError(f"{self.path} keeps its data in {name}: only one file beside it is read.")
            data, begin = data.parent / name, 0
            if not data.is_file():
                raise InputError(
                    f"{self.path} keeps its data in {name}, which is not beside it: copy both files."
                )
            self.files = (data,)
        encoding = header["encoding"].lower()
        size = math.prod(self._sizes) * self._dtype.itemsize
        skip = int(header.get("byte skip", header.get("byteskip", 0)))
        if int(header.get("line skip", header.get("lineskip", 0))) or (encoding != "raw" and skip):
            raise ValueError("skipped lines, or skipped bytes in packed data, are not supported")
        if encoding in _PACKED:
            self._folder, unpacked = unpack(str(data), begin, _PACKED[encoding], size)
            return unpacked, 0
        if encoding != "raw":
            raise ValueError(f"encoding {encoding} is not supported")
        begin = data.stat().st_size - size if skip == -1 else begin + skip
        if begin < 0 or data.stat().st_size < begin + size:
            raise ValueError("the file ends before its last voxel")
        return data, begin

    def _describe(self, header: dict[str, Any]) -> ImageInfo:
        sizes = dict(zip(self._axes, self._sizes, strict=True))
        voxel = _voxel_size_um(header, self._axes)
        return ImageInfo(
            name=str(header.get("content") or Path(self.path).name),
            shape=(sizes.get("t", 1), sizes.get("c", 1), sizes.get("z", 1), sizes["y"], sizes["x"]),
            dtype=native(self._dtype),
            voxel_size_um=voxel,
            channel_names=numbered(sizes.get("c", 1)),
            stage_um=UNKNOWN,
            acquired_at=None,
            bits=self._dtype.itemsize * 8,
            voxel_size_from="NRRD header" if any(voxel) else "not given",
            block_zyx=(1, 1, sizes["x"]),
        )

    def _read(
        self, series: int, t: int, c: int, z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]
    ) -> np.ndarray:
        stored = np.memmap(self._data_path, self._dtype, "r", self._begin, self._sizes[::-1])
        chosen: dict[str, Any] = {"t": t, "c": c, "z": slice(*z), "y": slice(*y), "x": slice(*x)}
        found = stored[tuple(chosen[axis] for axis in reversed(self._axes))]
        shape = (z[1] - z[0], y[1] - y[0], x[1] - x[0])
        return np.array(found, self.images[0].dtype).reshape(shape)


def _header(path: str) -> tuple[dict[str, Any], int]:
    """The header, and where the data begin in the file."""
    with Path(path).open("rb") as file:
        header = dict(nrrd.read_header(file))
        return header, file.tell()


def _dtype(header: dict[str, Any]) -> np.dtype[Any]:
    stored: np.dtype[Any] = np.dtype(nrrd.reader._TYPEMAP_NRRD2NUMPY[header["type"]])
    dtype = stored.newbyteorder(">" if str(header.get("endian")).lower() == "big" else "<")
    if dtype.kind not in "uif":
        raise ValueError(f"voxels of type {header['type']} are not supported")
    return dtype


def _axes(header: dict[str, Any], dimensions: int) -> str:
    """One letter for each axis, in the file's order (fastest first)."""
    kinds = [str(kind).lower() for kind in header.get("kinds", ["domain"] * dimensions)]
    spatial = [number for number, kind in enumerate(kinds) if kind in _SPATIAL]
    if len(kinds) != dimensions or not 2 <= len(spatial) <= 3 or dimensions - len(spatial) > 2:
        raise ValueError(f"axes {kinds} of sizes {tuple(header['sizes'])} are no image")
    letters = dict(zip(spatial, "xyz", strict=False))
    for number, kind in enumerate(kinds):
        if number not in letters:
            letters[number] = "t" if kind == "time" else "c"
    axes = "".join(letters[number] for number in range(dimensions))
    if len(set(axes)) < dimensions:
        raise ValueError(f"axes {kinds} are no image")
    return axes


def _voxel_size_um(header: dict[str, Any], axes: str) -> ZYX:
    units = header.get("space units") or header.get("units") or []
    spacings: list[float | None] = [None] * len(axes)
    if "spacings" in header:
        spacings = [float(value) for value in header["spacings"]]
    elif "space directions" in header:
        spacings = [
            None if row is None else float(np.linalg.norm(np.asarray(row, float)))
            for row in header["space directions"]
        ]
    spatial = [number for number, axis in enumerate(axes) if axis in "xyz"]
    found: dict[str, float | None] = {}
    for place, number in enumerate(spatial):
        # `space units` has an entry for each spatial axis, `units` one for every axis
        entry = number if "space units" not in header else place
        unit = str(units[entry]).strip('" ') if entry < len(units) else "mm"
        found[axes[number]] = length_um(spacings[number], unit or "mm")
    return found.get("z"), found["y"], found["x"]
