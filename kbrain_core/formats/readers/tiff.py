"""TIFF in all its dialects: OME-TIFF (also sets of files), ImageJ, LSM, SEM; decoded strip by strip."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from ...errors import InputError
from .base import ImageInfo, ImageReader, native, numbered, refuse
from .ome_xml import OmeImage, parse_ome_xml
from .tiff_metadata import tiff_facts

_OPEN_FILES = 16
_MISSING = -1


@dataclass(frozen=True)
class _Place:
    """Where a plane is stored: a page of a file (None: the opened one), or at a byte offset in it."""

    page: int | None
    file: str | None = None
    offset: int | None = None


@dataclass(frozen=True)
class _Series:
    """The planes of one image: `numbers[t, c, z]` index `places`; a page may hold samples and depth too."""

    numbers: np.ndarray
    places: list[_Place]
    keyframe: tifffile.TiffPage
    index: int | None


class TiffReader(ImageReader):
    """Reads TIFF files.

    Parameters
    ----------
    path : str
        The file.
    dataset : None
        TIFF files hold series, not data sets.
    whole_set : bool
        Whether planes that an OME-TIFF keeps in files beside it belong to the image. True for a volume;
        False where each file is a tile of its own.
    """

    def __init__(self, path: str, dataset: str | None = None, whole_set: bool = True) -> None:
        if dataset is not None:
            raise InputError(
                f"{path} is a TIFF file and has no data sets: drop the data set, or give a series."
            )
        self.path, self._whole_set = path, whole_set
        self._others: OrderedDict[str, tifffile.TiffFile] = OrderedDict()
        with _complaints() as complaints:
            try:
                self._tif = tifffile.TiffFile(path)
            except Exception as error:  # damaged tags raise anything
                refuse(path, error)
            try:
                self._series, self.images = self._describe()
            except InputError:
                self.close()
                raise
            except Exception as error:
                self.close()
                refuse(path, error)
        if complaints or not self.images:
            self.close()
            refuse(path, ValueError(complaints[0] if complaints else "no image in it"))

    def __reduce__(self) -> tuple[Any, ...]:
        return TiffReader, (self.path, None, self._whole_set)

    def close(self) -> None:
        """Close the file and those of its set."""
        self._tif.close()
        while self._others:
            self._others.popitem()[1].close()

    def _describe(self) -> tuple[list[_Series], tuple[ImageInfo, ...]]:
        found = self._describe_ome() if self._tif.is_ome else []
        if not found:
            found = [self._describe_plain(index) for index in range(len(self._tif.series))]
        names = {place.file for series, _ in found for place in series.places if place.file}
        self.files = tuple(Path(self.path).parent / _safe(name, self.path) for name in sorted(names))
        return [series for series, _ in found], tuple(info for _, info in found)

    def _describe_plain(self, index: int) -> tuple[_Series, ImageInfo]:
        """A series as tifffile groups the pages."""
        source = self._tif.series[index]
        key = source.keyframe
        if key.dtype is None:
            raise ValueError(f"samples of {key.bitspersample} bits are not supported")
        count = math.prod(source.shape) // key.size
        numbers = _plane_numbers(source.axes, source.shape, count)
        if source.dataoffset is not None:
            offset = source.dataoffset
            if offset + count * key.nbytes > self._tif.filehandle.size:
                raise ValueError("the file ends before its last plane")
            places = [_Place(None, offset=offset + plane * key.nbytes) for plane in range(count)]
        elif len(source.pages) < count:
            raise ValueError(f"{len(source.pages)} pages for {count} planes")
        else:
            places = [_Place(page) for page in range(count)]
        series = _Series(numbers, places, key, index)
        facts = tiff_facts(self._tif, key)
        shape = _shape(series)
        info = ImageInfo(
            name=source.name or Path(self.path).name,
            shape=shape,
            dtype=native(key.dtype),
            voxel_size_um=facts.voxel_size_um,
            channel_names=numbered(shape[1]),
            stage_um=facts.stage_um,
            acquired_at=facts.acquired_at,
            bits=_bits(key),
            voxel_size_from=facts.voxel_size_from,
            block_zyx=_block_zyx(key),
        )
        return series, info

    def _describe_ome(self) -> list[tuple[_Series, ImageInfo]]:
        """The images of the OME-XML, or nothing where the XML does not fit the pages (cropped by ImageJ)."""
        images = parse_ome_xml(_ome_text(self._tif, self.path), self.path)
        own_name = Path(self.path).name
        names = {block.file for image in images for block in image.blocks if block.file}
        if len(names) == 1 and not self._beside(*names):  # the only file of its set, renamed since
            own_name = names.pop()
        found = []
        for image in images:
            planes = {}
            for key, file, page in image.planes(len(self._tif.pages)):
                own = file in (None, own_name)
                if own or self._whole_set:
                    planes[key] = _Place(page, None if own else file)
            if planes:
                described = self._describe_ome_image(image, planes)
                if described is None:
                    return []
                found.append(described)
        return found

    def _describe_ome_image(
        self, image: OmeImage, planes: dict[tuple[int, int, int], _Place]
    ) -> tuple[_Series, ImageInfo] | None:
        first = planes[min(planes)]
        key = self._page(first)
        sizes = image.sizes
        if key.dtype is None or (key.imagelength, key.imagewidth) != (sizes["Y"], sizes["X"]):
            return None
        if self._whole_set:
            counts = (sizes["T"], max(1, len(image.samples)), sizes["Z"])
            axes = [list(range(count)) for count in counts]
        else:
            axes = [sorted({plane[axis] for plane in planes}) for axis in range(3)]
        numbers = np.full([len(values) for values in axes], _MISSING)
        for number, plane in enumerate(planes):
            numbers[tuple(values.index(at) for values, at in zip(axes, plane, strict=True))] = number
        series = _Series(numbers, list(planes.values()), key, None)
        shape, samples = _shape(series), _samples(key)
        names = image.channel_names
        if len(names) == max(1, len(image.samples)) * samples:
            names = tuple(names[c * samples + sample] for c in axes[1] for sample in range(samples))
        facts = tiff_facts(self._tif, key)
        calibrated = any(image.voxel_size_um)
        return series, ImageInfo(
            name=image.name,
            shape=shape,
            dtype=native(key.dtype),
            voxel_size_um=image.voxel_size_um if calibrated else facts.voxel_size_um,
            channel_names=names if len(names) == shape[1] else numbered(shape[1]),
            stage_um=image.stage_um(*min(planes)) if image.positions_um else facts.stage_um,
            acquired_at=image.acquired_at or facts.acquired_at,
            bits=image.bits or _bits(key),
            voxel_size_from="OME-XML" if calibrated else facts.voxel_size_from,
            block_zyx=_block_zyx(key),
        )

    def _beside(self, file: str) -> bool:
        return (Path(self.path).parent / _safe(file, self.path)).exists()

    def _page(self, place: _Place, series: int | None = None) -> Any:
        """The page of a place; OME pages are looked up in their own file."""
        if series is not None and place.page is not None:
            return self._tif.series[series].pages[place.page]
        tif = self._tif if place.file is None else self._other(place.file)
        if place.page is None or place.page >= len(tif.pages):
            raise InputError(
                f"{self.path}: page {place.page} of {place.file or 'the file'} is missing. {_MEND}"
            )
        return tif.pages[place.page]

    def _other(self, name: str) -> tifffile.TiffFile:
        """Another file of the set, opened; the least recently used is closed."""
        if name not in self._others:
            path = Path(self.path).parent / _safe(name, self.path)
            if not path.is_file():
                raise InputError(f"{self.path} is one file of a set and {name} is not beside it. {_MEND}")
            self._others[name] = tifffile.TiffFile(path)
        self._others.move_to_end(name)
        while len(self._others) > _OPEN_FILES:
            self._others.popitem(last=False)[1].close()
        return self._others[name]

    def _read(
        self, series: int, t: int, c: int, z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]
    ) -> np.ndarray:
        source, info = self._series[series], self.images[series]
        channel, sample = divmod(c, _samples(source.keyframe))
        depth = source.keyframe.shaped[1]
        out = np.empty((z[1] - z[0], y[1] - y[0], x[1] - x[0]), info.dtype)
        for plane in range(z[0] // depth, -(-z[1] // depth)):
            number = int(source.numbers[t, channel, plane])
            if number == _MISSING:
                raise InputError(
                    f"{self.path} lacks plane t={t}, c={channel}, z={plane} that its OME-XML names. {_MEND}"
                )
            start, stop = max(z[0], plane * depth), min(z[1], (plane + 1) * depth)
            inside = (start - plane * depth, stop - plane * depth)
            target = out[start - z[0] : stop - z[0]]
            place = source.places[number]
            if place.offset is not None:
                _read_rows(self._tif.filehandle, place.offset, source.keyframe, sample, inside, y, x, target)
            else:
                _read_page(self._page(place, source.index), sample, inside, y, x, target)
        return out


_MEND = "Copy the whole acquisition again from the instrument."


class _Complaints(logging.Handler):
    """Collects what tifffile logs as errors: it returns fewer pages of a truncated file without raising."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class _complaints:
    """Context manager: the list of tifffile's error messages, kept off stderr."""

    def __enter__(self) -> list[str]:
        self._logger, self._handler = logging.getLogger("tifffile"), _Complaints()
        self._before = self._logger.propagate, self._logger.handlers
        self._logger.propagate, self._logger.handlers = False, [self._handler]
        return self._handler.lines

    def __exit__(self, *_: object) -> None:
        self._logger.propagate, self._logger.handlers = self._before


def _ome_text(tif: tifffile.TiffFile, path: str) -> str:
    """The OME-XML of the file, or of the companion file that it points to."""
    text = tif.ome_metadata or ""
    if "BinaryOnly" not in text:
        return text
    start = text.partition("MetadataFile=")[2]
    name = start[1:].partition(start[:1])[0] if start else ""
    companion = Path(path).parent / _safe(name, path)
    if not name or not companion.is_file():
        raise InputError(
            f"{path} keeps its metadata in {name or 'another file'}, which is not beside it. {_MEND}"
        )
    if companion.suffix.lower() in (".tif", ".tiff"):
        with tifffile.TiffFile(companion) as other:
            return other.ome_metadata or ""
    return companion.read_text(encoding="utf-8")


def _safe(name: str, path: str) -> str:
    """A file name that metadata give, which must stay in the folder of `path`."""
    if name != Path(name).name or "\\" in name:
        raise InputError(f"{path}: its metadata name a file outside its own folder ({name}).")
    return name


def _plane_numbers(axes: str, shape: tuple[int, ...], count: int) -> np.ndarray:
    """Number the planes stored in the order of the leading axes as a (t, c, z) array.

    Axes of no known meaning (sequence, other) are taken as z, or where there is a z as t.
    """
    leading, product = 0, 1
    while product < count:
        product *= shape[leading]
        leading += 1
    names, sizes = axes[:leading], shape[:leading]
    unknown = "T" if "Z" in names else "Z"
    roles = [axis if axis in "TCZ" else unknown for axis in names]
    order = [index for role in "TCZ" for index in range(leading) if roles[index] == role]
    merged = [
        math.prod(size for size, its in zip(sizes, roles, strict=True) if its == role) for role in "TCZ"
    ]
    return np.arange(count).reshape(sizes).transpose(order).reshape(merged)


def _samples(page: tifffile.TiffPage) -> int:
    return int(page.shaped[0] * page.shaped[4])


def _shape(series: _Series) -> tuple[int, int, int, int, int]:
    t, c, z = series.numbers.shape
    key = series.keyframe
    return t, c * _samples(key), z * key.shaped[1], key.imagelength, key.imagewidth


def _bits(page: tifffile.TiffPage) -> int:
    bits = page.bitspersample
    return int(max(bits) if isinstance(bits, tuple) else bits)


def _block_zyx(page: tifffile.TiffPage) -> tuple[int, int, int]:
    """What is decoded at once: a tile or a strip; of plain data any row can be read by itself."""
    if page.is_tiled:
        return page.tiledepth, page.tilelength, page.tilewidth
    return 1, 1 if _has_plain_rows(page) else min(page.rowsperstrip, page.imagelength), page.imagewidth


def _has_plain_rows(key: tifffile.TiffPage) -> bool:
    """Whether pages like this one are rows of plain samples."""
    whole_bytes = key.bitspersample == np.dtype(key.dtype).itemsize * 8
    plain = key.compression == 1 and key.fillorder == 1 and not key.is_tiled
    return bool(plain and whole_bytes and not key.is_subsampled)


def _read_rows(
    file: tifffile.FileHandle,
    offset: int,
    key: tifffile.TiffPage,
    sample: int,
    z: tuple[int, int],
    y: tuple[int, int],
    x: tuple[int, int],
    target: np.ndarray,
) -> None:
    """Read the wanted rows of an uncompressed page whose samples start at `offset`."""
    _, depth, length, width, contig = key.shaped
    stored = np.dtype(key.dtype).newbyteorder(key.parent.byteorder)
    row_bytes = width * contig * stored.itemsize
    start = offset + (sample // contig) * depth * length * row_bytes
    for index in range(*z):
        file.seek(start + (index * length + y[0]) * row_bytes)
        wanted = (y[1] - y[0]) * row_bytes
        data = file.read(wanted)
        if len(data) < wanted:
            raise ValueError("the file ends inside a plane")
        rows = np.frombuffer(data, stored).reshape(y[1] - y[0], width, contig)
        target[index - z[0]] = rows[:, x[0] : x[1], sample % contig]


def _read_page(
    page: Any, sample: int, z: tuple[int, int], y: tuple[int, int], x: tuple[int, int], target: np.ndarray
) -> None:
    """Decode the strips or tiles of a page that meet the box, and no others."""
    key = page.keyframe
    separate, contig = divmod(sample, key.shaped[4])
    file = page.parent.filehandle
    if page.is_contiguous and _has_plain_rows(key):
        _read_rows(file, page.dataoffsets[0], key, sample, z, y, x, target)
        return
    indices = list(_segments(key, separate, z, y, x))
    offsets = [page.dataoffsets[index] for index in indices]
    counts = [page.databytecounts[index] for index in indices]
    last = max((offset + count for offset, count in zip(offsets, counts, strict=True)), default=0)
    if last > file.size:
        raise ValueError("the file ends inside a plane")
    for data, index in file.read_segments(offsets, counts, indices=indices):
        block, at, shape = key.decode(data, index, jpegtables=page.jpegtables, jpegheader=key.jpegheader)
        _, z0, y0, x0, _ = at
        meet = [
            (max(low, start), min(high, start + size))
            for (low, high), start, size in zip((z, y, x), (z0, y0, x0), shape[:3], strict=True)
        ]
        into = tuple(slice(a - low, b - low) for (a, b), (low, _) in zip(meet, (z, y, x), strict=True))
        if block is None:  # a sparse file leaves blocks of zeros out
            target[into] = 0
            continue
        inside = tuple(slice(a - start, b - start) for (a, b), start in zip(meet, (z0, y0, x0), strict=True))
        target[into] = block[inside][..., contig]


def _segments(
    key: tifffile.TiffPage, separate: int, z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]
) -> Iterator[int]:
    """Indices of the strips or tiles that meet the box."""
    _, depth, length, width, _ = key.shaped
    tiled = (key.tiledepth, key.tilelength, key.tilewidth)
    block_z, block_y, block_x = tiled if key.is_tiled else (1, key.rowsperstrip, width)
    grid = [
        math.ceil(size / block)
        for size, block in zip((depth, length, width), (block_z, block_y, block_x), strict=True)
    ]
    for k in range(z[0] // block_z, -(-z[1] // block_z)):
        for j in range(y[0] // block_y, -(-y[1] // block_y)):
            for i in range(x[0] // block_x, -(-x[1] // block_x)):
                yield ((separate * grid[0] + k) * grid[1] + j) * grid[2] + i
