"""BigDataViewer: an XML file that describes views, and the HDF5 file beside it that holds them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import defusedxml.ElementTree as ElementTree
import h5py
import numpy as np
from defusedxml.common import DefusedXmlException

from ...errors import InputError
from .base import UNKNOWN, ZYX, ImageInfo, ImageReader, length_um, native, refuse
from .hdf5 import local_dataset, open_hdf5


@dataclass
class _Setup:
    """A view setup: one channel of one angle, tile and illumination."""

    number: int
    group: tuple[str, ...] = ()
    channel: str = "0"
    voxel_size_um: ZYX = UNKNOWN


@dataclass
class _View:
    """Setups that differ in channel alone: one image."""

    name: str
    setups: list[_Setup] = field(default_factory=list)


class BigDataViewerReader(ImageReader):
    """Reads the full resolution of a BigDataViewer data set, given as its XML or its HDF5 file.

    Angles, tiles and illuminations are images (series), channels are channels. Registrations are not applied.
    An HDF5 file without its XML has no voxel size, and every setup is an image.
    """

    def __init__(self, path: str, dataset: str | None = None) -> None:
        if dataset is not None:
            raise InputError(f"{path} is a BigDataViewer data set: choose a view with --series.")
        self.path = path
        given = Path(path)
        description = given if given.suffix.lower() == ".xml" else given.with_suffix(".xml")
        setups = None
        store = given
        if description.is_file():
            setups, store_name = _parse(description)
            store = description.parent / store_name
            if store != given and given != description:
                setups, store = None, given
        if not store.is_file():
            raise InputError(f"{path} describes {store.name}, which is not beside it: copy both files.")
        self.files = (description, store)
        self._file = open_hdf5(str(store))
        try:
            self._times = sorted(name for name in self._file if re.fullmatch(r"t\d{5}", name))
            self._views = _views(setups if setups is not None else _stored_setups(self._file))
            self.images = tuple(self._describe(view) for view in self._views)
            if not self.images or not self._times:
                raise ValueError("it holds no views")
        except Exception as error:  # h5py raises OSError, KeyError, RuntimeError on damaged files
            self.close()
            refuse(path, error)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _cells(self, time: str, setup: _Setup) -> h5py.Dataset:
        return local_dataset(self._file, self.path, f"{time}/s{setup.number:02d}/0/cells")

    def _describe(self, view: _View) -> ImageInfo:
        cells = [self._cells(self._times[0], setup) for setup in view.setups]
        if len({(data.shape, data.dtype) for data in cells}) > 1:
            raise InputError(f"{self.path}: the channels of {view.name} differ in size or type.")
        first = cells[0]
        chunk_z, chunk_y, chunk_x = first.chunks or first.shape
        voxel = view.setups[0].voxel_size_um
        dtype = _unsigned(first.dtype)
        return ImageInfo(
            name=view.name,
            shape=(len(self._times), len(cells), first.shape[0], first.shape[1], first.shape[2]),
            dtype=dtype,
            voxel_size_um=voxel,
            channel_names=tuple(setup.channel for setup in view.setups),
            stage_um=UNKNOWN,
            acquired_at=None,
            bits=dtype.itemsize * 8,
            voxel_size_from="BigDataViewer XML" if any(voxel) else "not given",
            block_zyx=(chunk_z, chunk_y, chunk_x),
        )

    def _read(
        self, series: int, t: int, c: int, z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]
    ) -> np.ndarray:
        found = self._cells(self._times[t], self._views[series].setups[c])[slice(*z), slice(*y), slice(*x)]
        return np.ascontiguousarray(found, native(found.dtype)).view(self.images[series].dtype)


def _unsigned(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """BigDataViewer keeps unsigned 16-bit samples in signed HDF5 types (Java has no unsigned ones)."""
    return np.dtype(np.uint16) if dtype.kind == "i" and dtype.itemsize == 2 else native(dtype)


def _views(setups: list[_Setup]) -> list[_View]:
    views: dict[tuple[str, ...], _View] = {}
    for setup in setups:
        view = views.setdefault(setup.group, _View(" ".join(setup.group) or f"view {len(views)}"))
        view.setups.append(setup)
    for view in views.values():
        if len({setup.channel for setup in view.setups}) < len(view.setups):
            for number, setup in enumerate(view.setups):
                setup.channel = str(number)
    return list(views.values())


def _stored_setups(file: h5py.File) -> list[_Setup]:
    """The setups of a file without XML, each an image."""
    numbers = sorted(int(name[1:]) for name in file if re.fullmatch(r"s\d{2,}", name))
    return [_Setup(number, (f"setup {number}",)) for number in numbers]


def _parse(path: Path) -> tuple[list[_Setup], str]:
    """View setups and the name of the HDF5 file from the XML."""
    try:
        root: Any = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, DefusedXmlException, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged, or no XML of an instrument ({error}).") from error
    loader = root.find("SequenceDescription/ImageLoader")
    if loader is None or loader.get("format") != "bdv.hdf5":
        kind = "no image loader" if loader is None else f"the image loader {loader.get('format')}"
        raise InputError(f"{path} has {kind}: only bdv.hdf5 is read. Resave it as HDF5 in BigStitcher.")
    name = (loader.findtext("hdf5") or "").strip()
    if not name or name != Path(name).name or "\\" in name:
        raise InputError(
            f"{path} names the HDF5 file '{name}', which is not beside it: give that file instead."
        )
    channels = {
        node.findtext("id"): node.findtext("name") or node.findtext("id") or "0"
        for attributes in root.iterfind("SequenceDescription/ViewSetups/Attributes[@name='channel']")
        for node in attributes.iterfind("Channel")
    }
    return [
        _setup(node, channels) for node in root.iterfind("SequenceDescription/ViewSetups/ViewSetup")
    ], name


def _setup(node: Any, channels: dict[str | None, str]) -> _Setup:
    found = {item.tag: (item.text or "").strip() for item in node.iterfind("attributes/*")}
    group = tuple(f"{name} {value}" for name, value in sorted(found.items()) if name != "channel")
    unit = node.findtext("voxelSize/unit")
    sizes = (node.findtext("voxelSize/size") or "").split()
    voxel: ZYX = UNKNOWN
    if len(sizes) == 3:
        x, y, z = (length_um(size, unit) for size in sizes)
        voxel = (z, y, x)
    channel = found.get("channel", "0")
    return _Setup(int(node.findtext("id")), group, channels.get(channel, channel), voxel)
