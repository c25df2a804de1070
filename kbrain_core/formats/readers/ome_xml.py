"""OME-XML (https://docs.openmicroscopy.org/ome-model/): what it says about each Image and its planes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import defusedxml.ElementTree as ElementTree
from defusedxml.common import DefusedXmlException

from ...errors import InputError
from .base import ZYX, length_um, position_um

_MAX_PLANES = 50_000_000


@dataclass(frozen=True)
class OmeBlock:
    """One TiffData element: `count` planes from (c, z, t) = `first` on, stored from page `ifd` of `file`."""

    first: dict[str, int]
    ifd: int
    count: int | None
    file: str | None


@dataclass(frozen=True)
class OmeImage:
    """One Image element. `axes` is the plane order, fastest first ("CZT" for DimensionOrder XYCZT)."""

    name: str
    axes: str
    sizes: dict[str, int]
    samples: tuple[int, ...]
    channel_names: tuple[str, ...]
    voxel_size_um: ZYX
    positions_um: dict[tuple[int, int, int], ZYX]
    acquired_at: str | None
    bits: int | None
    blocks: tuple[OmeBlock, ...]

    def stage_um(self, t: int = 0, c: int = 0, z: int = 0) -> ZYX:
        """Stage position of a plane, or of the first plane that has one."""
        if not self.positions_um:
            return (None, None, None)
        return self.positions_um.get((t, c, z)) or self.positions_um[min(self.positions_um)]

    def planes(self, pages: int) -> Iterator[tuple[tuple[int, int, int], str | None, int]]:
        """Yield ((t, c, z), file, page) of every stored plane; c counts Channel elements.

        A block without a count is one plane when it names its page, else all pages of the file.
        """
        blocks = self.blocks or (OmeBlock({}, 0, pages, None),)
        counts = {axis: self.sizes[axis] for axis in self.axes}
        counts["C"] = max(1, len(self.samples))
        total = counts["C"] * counts["Z"] * counts["T"]
        for block in blocks:
            first, step = 0, 1
            for axis in self.axes:
                first += block.first.get(axis, 0) * step
                step *= counts[axis]
            count = block.count if block.count is not None else (pages if len(blocks) == 1 else 1)
            for offset in range(min(count, total - first)):
                index, rest = {}, first + offset
                for axis in self.axes:
                    rest, index[axis] = divmod(rest, counts[axis])
                yield (index["T"], index["C"], index["Z"]), block.file, block.ifd + offset


def parse_ome_xml(text: str, path: str) -> tuple[OmeImage, ...]:
    """Read OME-XML.

    Parameters
    ----------
    text : str
        The XML, of any schema version since 2008.
    path : str
        The file it came from, for messages.

    Raises
    ------
    InputError
        If it is no well-formed XML, declares entities (an attack, never an instrument), or its numbers
        are not possible.
    """
    try:
        root = ElementTree.fromstring(text)
    except DefusedXmlException as error:
        raise InputError(f"{path}: its OME-XML declares entities, which no instrument writes.") from error
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: its OME-XML is damaged ({error}).") from error
    try:
        return tuple(_image(element, number) for number, element in enumerate(_children(root, "Image")))
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: its OME-XML lacks or garbles {error}.") from error


def _children(element: Any, *path: str) -> list[Any]:
    """Descendants under the tag path, whatever the namespace (it changes with every schema version)."""
    found = [element]
    for name in path:
        found = [child for parent in found for child in parent if child.tag.rpartition("}")[2] == name]
    return found


def _image(element: Any, number: int) -> OmeImage:
    pixels = _children(element, "Pixels")[0]
    attributes = pixels.attrib
    sizes = {axis: int(attributes[f"Size{axis}"]) for axis in "XYZCT"}
    if min(sizes.values()) < 1 or sizes["Z"] * sizes["C"] * sizes["T"] > _MAX_PLANES:
        raise ValueError(f"Size (Z, C, T) = {sizes['Z']}, {sizes['C']}, {sizes['T']}")
    channels = _children(pixels, "Channel")
    samples = tuple(int(channel.get("SamplesPerPixel", 1)) for channel in channels)
    if sum(samples) != sizes["C"]:  # no Channel elements, or files that miscount the samples of RGB
        samples = (1,) * sizes["C"]
    names = [channel.get("Name") or channel.get("Fluor") or "" for channel in channels]
    date = element.get("AcquiredDate") or next(
        (node.text for tag in ("AcquisitionDate", "AcquiredDate") for node in _children(element, tag)), None
    )
    bits = attributes.get("SignificantBits")
    return OmeImage(
        name=element.get("Name") or f"image {number}",
        axes=attributes["DimensionOrder"].replace("X", "").replace("Y", ""),
        sizes=sizes,
        samples=samples,
        channel_names=_channel_names(names, samples),
        voxel_size_um=(
            length_um(attributes.get("PhysicalSizeZ"), attributes.get("PhysicalSizeZUnit", "um")),
            length_um(attributes.get("PhysicalSizeY"), attributes.get("PhysicalSizeYUnit", "um")),
            length_um(attributes.get("PhysicalSizeX"), attributes.get("PhysicalSizeXUnit", "um")),
        ),
        positions_um=_positions(element, pixels),
        acquired_at=date.strip() if date and date.strip() else None,
        bits=int(bits) if bits else None,
        blocks=tuple(_block(node) for node in _children(pixels, "TiffData")),
    )


def _channel_names(names: list[str], samples: tuple[int, ...]) -> tuple[str, ...]:
    """One name per sample: "RGB" with three samples becomes "RGB 0", "RGB 1", "RGB 2"."""
    result: list[str] = []
    for index, count in enumerate(samples):
        name = names[index] if index < len(names) else ""
        for sample in range(count):
            plain = name or str(len(result))
            result.append(f"{plain} {sample}" if count > 1 and name else plain)
    return tuple(result)


def _positions(image: Any, pixels: Any) -> dict[tuple[int, int, int], ZYX]:
    """Stage position of every Plane that gives one, else the image's StageLabel."""
    found: dict[tuple[int, int, int], ZYX] = {}
    for plane in _children(pixels, "Plane"):
        z, y, x = (
            # The schema's default is "reference frame"; instruments that leave the unit out write um.
            position_um(plane.get(f"Position{axis}"), _stage_unit(plane.get(f"Position{axis}Unit")))
            for axis in "ZYX"
        )
        if (z, y, x) != (None, None, None):
            key = (int(plane.get("TheT", 0)), int(plane.get("TheC", 0)), int(plane.get("TheZ", 0)))
            found[key] = (z, y, x)
    for label in [] if found else _children(image, "StageLabel"):
        z, y, x = (position_um(label.get(axis), _stage_unit(label.get(f"{axis}Unit"))) for axis in "ZYX")
        if (z, y, x) != (None, None, None):
            found[0, 0, 0] = (z, y, x)
    return found


def _stage_unit(unit: str | None) -> str:
    return "um" if unit in (None, "reference frame") else str(unit)


def _block(node: Any) -> OmeBlock:
    count = node.get("PlaneCount", node.get("NumPlanes", 1 if "IFD" in node.attrib else None))
    names = [child.get("FileName") for child in _children(node, "UUID")]
    return OmeBlock(
        first={axis: int(node.get(f"First{axis}", 0)) for axis in "ZCT"},
        ifd=int(node.get("IFD", 0)),
        count=None if count is None else int(count),
        file=names[0] if names else None,
    )
