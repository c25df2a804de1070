"""Make the small volumes that the tests of the Galaxy tools read, with planted truth.

    python test-data/make_tool_volumes.py        writes tools/<tool>/test-data/, the same bytes every time

The truth, which the tests of the tools assert:

- cells: 2 channels of 16 bits, 8 x 40 x 56 voxels (z, y, x) of 2 x 0.5 x 0.5 um. Background 100; in DAPI a box of 1000 at
  z 1:4, y 4:16, x 8:24; in GFP a box of 3000 at z 4:7, y 20:36, x 32:48.
- objects: labels of the same extent: object 7 is the box of DAPI, object 9007199254740993 (2^53 + 1) that of GFP.
- planes: plane1, plane2 and plane10, 24 x 40 pixels of 8 bits; a square of 200 around x = 6, 20, 34 on black.
"""

from __future__ import annotations

import io
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
import tifffile
from numpy.typing import NDArray
from small_volumes import write_volume

from kbrain_core.formats.tables import Tile, write_tiles

TOOLS = Path(__file__).parents[1] / "tools"
SHAPE = (8, 40, 56)
VOXEL_NM = (2000.0, 500.0, 500.0)
CHANNELS = ("DAPI", "GFP")
BOXES = (np.s_[1:4, 4:16, 8:24], np.s_[4:7, 20:36, 32:48])
GREY = (1000, 3000)
BACKGROUND = 100
IDS = (7, 2**53 + 1)
PLANES = {"plane1": 6, "plane2": 20, "plane10": 34}
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # else every run writes other bytes


def cells() -> NDArray[np.uint16]:
    """The image (c, z, y, x)."""
    voxels = np.full((len(CHANNELS), *SHAPE), BACKGROUND, dtype=np.uint16)
    for channel, (box, grey) in enumerate(zip(BOXES, GREY, strict=True)):
        voxels[channel][box] = grey
    return voxels


def objects() -> NDArray[np.uint64]:
    """The labels (1, z, y, x)."""
    labels = np.zeros((1, *SHAPE), dtype=np.uint64)
    for box, number in zip(BOXES, IDS, strict=True):
        labels[0][box] = number
    return labels


def plane(x: int) -> NDArray[np.uint8]:
    """A plane with its square around x."""
    pixels = np.zeros((24, 40), dtype=np.uint8)
    pixels[8:16, x - 4 : x + 4] = 200
    return pixels


def zipped(name: str, voxels: NDArray[np.uint16] | NDArray[np.uint64], kind: str, top_folder: str) -> bytes:
    """An OME-Zarr volume as a zip archive; the folder it was packed from is kept, as most people pack."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name
        channels = CHANNELS if kind == "image" else ()
        write_volume(
            folder,
            voxels[None],
            kind=kind,
            voxel_size_nm=VOXEL_NM,
            channel_names=channels,
            mips=1,
            sharded=False,
        )
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                entry = zipfile.ZipInfo(f"{top_folder}{file.relative_to(folder).as_posix()}", ZIP_DATE)
                archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
    return content.getvalue()


def put(tool: str, name: str, content: bytes) -> None:
    """Write a file of a tool's test data."""
    path = TOOLS / tool / "test-data" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def ome_tiff() -> bytes:
    """The image as OME-TIFF with all its metadata."""
    content = io.BytesIO()
    metadata = {
        "axes": "CZYX",
        "Channel": {"Name": list(CHANNELS)},
        **{f"PhysicalSize{axis}": nm / 1000 for axis, nm in zip("ZYX", VOXEL_NM, strict=True)},
        "UUID": "urn:uuid:00000000-0000-0000-0000-000000000001",  # else every run writes other bytes
    }
    tifffile.imwrite(
        content, cells(), ome=True, photometric="minisblack", compression="zlib", metadata=metadata
    )
    return content.getvalue()


def main() -> None:
    """Write all test data."""
    image = zipped("cells.ome.zarr", cells(), "image", "cells.ome.zarr/")
    labels = zipped("objects.ome.zarr", objects(), "labels", "")
    put("convert_image", "cells.ome.tif", ome_tiff())
    for name, x in PLANES.items():
        content = io.BytesIO()
        tifffile.imwrite(content, plane(x), photometric="minisblack", metadata=None)
        put("convert_image", f"{name}.tif", content.getvalue())
    for tool in ("convert_image", "precompute_volume", "export_image", "view_volume"):
        put(tool, "cells.ome_zarr.zip", image)
    for tool in ("precompute_volume", "view_volume"):
        put(tool, "objects.ome_zarr.zip", labels)
    tiles = [Tile(name=f"gfp_{z}.tif", channel="GFP", z=z) for z in range(2)]
    write_tiles(TOOLS / "precompute_volume" / "test-data" / "tiles_gfp.tsv", tiles)
    others = [Tile(name=f"{channel}_0.tif", channel=channel) for channel in CHANNELS]
    write_tiles(TOOLS / "precompute_volume" / "test-data" / "tiles_both.tsv", others)
    # A precomputed chunk that is not compressed holds its voxels, x fastest.
    put("precompute_volume", "gfp_box.raw", cells()[1, 4:8, 16:40, 28:56].astype("<u2").tobytes())


if __name__ == "__main__":
    main()
