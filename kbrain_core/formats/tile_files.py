"""Write one tile as one OME-TIFF, plane by plane."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tifffile

from ..store import atomic_path
from .tables import Tile

_LONGEST_NAME = 120  # bytes; file systems stop at 255, and people read these names


def write_tile(
    path: Path,
    tile: Tile,
    planes: Iterable[npt.NDArray[Any]],
    dtype: np.dtype[Any],
    compression: Literal["none", "zlib"],
) -> str:
    """Write a tile whole or not at all; one plane is in memory at a time.

    The same pixels and table row give the same bytes.

    Parameters
    ----------
    path : Path
        Where the OME-TIFF goes.
    tile : Tile
        Its row: size, pixel size, stage position and channel go into the metadata.
    planes : iterable of (Y, X) ndarray
        As many as the tile is deep.
    dtype : numpy.dtype
        Of all planes.
    compression : {"none", "zlib"}

    Returns
    -------
    str
        Checksum of type, shape and pixels (SHA-256), as in the tiles table.
    """
    shape = (tile.depth_px or 1, tile.height_px or 0, tile.width_px or 0)
    digest = sha256(f"{dtype.str} {shape}".encode())

    def hashed() -> Iterator[npt.NDArray[Any]]:
        for plane in planes:
            digest.update(np.ascontiguousarray(plane).data)
            yield plane

    large = int(np.prod(shape)) * dtype.itemsize > 2**32 - 2**25
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, ome=True, bigtiff=large) as writer:
        writer.write(
            hashed(),
            shape=shape,
            dtype=dtype,
            photometric="minisblack",
            compression=None if compression == "none" else compression,
            metadata=_ome_metadata(path, tile, shape[0]),
        )
    return digest.hexdigest()


def _ome_metadata(path: Path, tile: Tile, depth: int) -> dict[str, Any]:
    values: dict[str, Any] = {
        "axes": "ZYX",
        "Name": path.name,
        "UUID": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, path.name)}",  # not random: a rerun gives the same file
        "Creator": "KBrain",
        "Channel": {"Name": [tile.channel]},
    }
    for axis, size in (("X", tile.pixel_x_um), ("Y", tile.pixel_y_um), ("Z", tile.step_z_um)):
        if size is not None:
            values |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    stage = {"X": tile.stage_x_um, "Y": tile.stage_y_um, "Z": tile.stage_z_um}
    known = {axis: position for axis, position in stage.items() if position is not None}
    if known:
        values["Plane"] = {f"Position{axis}": [position] * depth for axis, position in known.items()}
        values["Plane"] |= {f"Position{axis}Unit": ["µm"] * depth for axis in known}
    return values


def tile_file_names(tiles: Iterable[Tile]) -> list[str]:
    """Give every tile a file name of its own, made from its name in the table.

    Letters, digits, '.', '_' and '-' stay; folders become '__'; tiles that share a file get their series and page added.
    A name that another tile has already (or that is long) ends in a checksum of the full name.

    Parameters
    ----------
    tiles : iterable of Tile

    Returns
    -------
    list of str
        In the order of the tiles, all different, also where upper and lower case are the same.
    """
    rows = list(tiles)
    shared = {tile.name for tile in rows if tile.series or tile.page}
    taken: set[str] = set()
    names = []
    for tile in rows:
        stem = re.sub(r"(\.ome)?\.[A-Za-z0-9]{1,5}$", "", tile.name).replace("/", "__")
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).lstrip(".") or "tile"
        if tile.name in shared:
            stem += f"_s{tile.series}_p{tile.page}"
        if len(stem) > _LONGEST_NAME or stem.lower() in taken:
            full = f"{tile.name}\0{tile.series}\0{tile.page}"
            stem = f"{stem[:_LONGEST_NAME]}_{sha256(full.encode()).hexdigest()[:12]}"
        taken.add(stem.lower())
        names.append(f"{stem}.ome.tif")
    return names
