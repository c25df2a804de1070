"""Phantoms as files: OME-TIFF, named TIFF, Fiji side files, tables and truth.json."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from phantom_labels import LabelVolume
from phantom_sections import SectionStack
from phantom_tiles import PlantedTile, TileGrid

# Columns of the tiles table that stages exchange.
TILE_COLUMNS = (
    "name", "series", "page", "channel", "t", "z", "row", "col", "view", "stage_x_um", "stage_y_um",
    "stage_z_um", "width_px", "height_px", "depth_px", "pixel_x_um", "pixel_y_um", "step_z_um", "dtype",
    "bits", "acquired_at", "saturated_fraction", "focus_score", "signal_to_noise", "sha256", "status",
)  # fmt: skip


def stage_um(grid: TileGrid, tile: PlantedTile) -> tuple[float, float, float]:
    """Where the stage says the tile is, (z, y, x) in um; sections lie one z step apart."""
    z, y, x = (value * pixel for value, pixel in zip(tile.stage_px, grid.pixel_um, strict=True))
    return z + tile.key[0] * grid.pixel_um[0], y, x


def write_ome_tiff(grid: TileGrid, folder: Path, *, compression: str | None = None) -> list[Path]:
    """One OME-TIFF per tile (all channels and planes in it) with pixel size and stage position; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for tile in grid.tiles:
        if tile.image is None:
            continue
        path = folder / f"{tile.name}.ome.tif"
        metadata = _ome_metadata(grid, tile)
        photometric = {
            "photometric": "minisblack",
            "compression": compression,
            "predictor": compression is not None,
        }
        tifffile.imwrite(path, tile.image, ome=True, metadata=metadata, **photometric)
        paths += _spoil(tile, path)
    return paths


def write_ome_tiff_mosaic(grid: TileGrid, path: Path) -> Path:
    """All tiles as series of one OME-TIFF: one file that holds many tiles."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path, ome=True) as writer:
        for tile in grid.tiles:
            if tile.image is not None:
                writer.write(tile.image, photometric="minisblack", metadata=_ome_metadata(grid, tile))
    return path


def _ome_metadata(grid: TileGrid, tile: PlantedTile) -> dict[str, Any]:
    channels, planes = tile.image.shape[:2]
    z_um, y_um, x_um = stage_um(grid, tile)
    count = channels * planes
    return {
        "axes": "CZYX",
        "Name": tile.name,
        # A name-based UUID: the same tile gives the same bytes in every run.
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, tile.name)),
        "Creator": "make_phantoms",
        **{f"PhysicalSize{axis}": size for axis, size in zip("ZYX", grid.pixel_um, strict=True)},
        **{f"PhysicalSize{axis}Unit": "µm" for axis in "ZYX"},
        "Channel": {"Name": list(grid.channels)},
        "Plane": {
            "PositionX": [x_um] * count,
            "PositionY": [y_um] * count,
            "PositionZ": [z_um + grid.pixel_um[0] * (index % planes) for index in range(count)],
            **{f"Position{axis}Unit": ["µm"] * count for axis in "XYZ"},
        },
    }


def write_named_tiff(grid: TileGrid, folder: Path, *, ending: str = ".tif") -> list[Path]:
    """One plain TIFF per tile and channel, without metadata: tile_z000_r00_c00_chDAPI.tif (no ch with one channel)."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for tile in grid.tiles:
        if tile.image is None:
            continue
        for channel, image in zip(grid.channels, tile.image, strict=True):
            suffix = f"_ch{channel}" if len(grid.channels) > 1 else ""
            path = folder / f"{tile.name}{suffix}{ending}"
            tifffile.imwrite(
                path, image if len(image) > 1 else image[0], photometric="minisblack", metadata=None
            )
            paths += _spoil(tile, path)
    return paths


def _spoil(tile: PlantedTile, path: Path) -> list[Path]:
    """Plant what is wrong with a tile's file; returns the files there are now."""
    if tile.state == "truncated":
        content = path.read_bytes()
        path.write_bytes(content[: int(0.6 * len(content))])
    if tile.state == "duplicate":
        stem, _, ending = path.name.partition(".")
        copy = path.with_name(f"{stem}_copy.{ending}")
        shutil.copyfile(path, copy)
        return [path, copy]
    return [path]


def write_fiji(grid: TileGrid, folder: Path, *, channel: int = 0, section: int = 0) -> Path:
    """Plain TIFFs of one section and channel with Fiji's TileConfiguration.txt (positions in px, x first)."""
    folder.mkdir(parents=True, exist_ok=True)
    dimensions = 3 if grid.tile_shape[0] > 1 else 2
    lines = [
        "# Define the number of dimensions we are working on",
        f"dim = {dimensions}",
        "",
        "# Define the image coordinates",
    ]
    for tile in grid.tiles:
        if tile.image is None or tile.key[0] != section:
            continue
        path = folder / f"{tile.name}.tif"
        image = tile.image[channel]
        tifffile.imwrite(
            path, image if dimensions == 3 else image[0], photometric="minisblack", metadata=None
        )
        _spoil(tile, path)
        place = ", ".join(f"{value:.1f}" for value in tile.stage_px[::-1][:dimensions])
        lines.append(f"{path.name}; ; ({place})")
    side_file = folder / "TileConfiguration.txt"
    side_file.write_text("\n".join(lines) + "\n")
    return side_file


def write_tiles_table(grid: TileGrid, path: Path) -> Path:
    """The tiles table that sort-tiles makes of `write_ome_tiff` in the table's folder: one row per tile and channel."""
    rows = []
    planes, height, width = grid.tile_shape
    for tile in grid.tiles:
        if tile.image is None:
            continue
        file = path.parent / f"{tile.name}.ome.tif"
        checksum = hashlib.sha256(file.read_bytes()).hexdigest()
        z_um, y_um, x_um = stage_um(grid, tile)
        status = {"blank": "blank", "truncated": "unreadable"}.get(tile.state, "ok")
        for number, channel in enumerate(grid.channels):
            known = {
                "name": file.name, "series": 0, "page": number * planes, "channel": channel, "t": 0,
                "z": tile.key[0], "row": tile.key[1], "col": tile.key[2],
                "stage_x_um": x_um, "stage_y_um": y_um, "stage_z_um": z_um,
                "width_px": width, "height_px": height, "depth_px": planes,
                "pixel_x_um": grid.pixel_um[2], "pixel_y_um": grid.pixel_um[1], "step_z_um": grid.pixel_um[0],
                "dtype": grid.camera.dtype, "bits": 8 * np.dtype(grid.camera.dtype).itemsize,
                "sha256": checksum, "status": status,
            }  # fmt: skip
            rows.append(known)
    with path.open("w", newline="", encoding="utf-8") as file_out:
        writer = csv.DictWriter(file_out, TILE_COLUMNS, restval="", delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_sections(stack: SectionStack, folder: Path) -> list[Path]:
    """One OME-TIFF per section: section_000.ome.tif ..."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for z, image in enumerate(stack.images):
        path = folder / f"section_{z:03d}.ome.tif"
        metadata = {
            "axes": "YX",
            "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, path.name)),
            "Creator": "make_phantoms",
            **{f"PhysicalSize{axis}": size for axis, size in zip("YX", stack.pixel_um[1:], strict=True)},
            **{f"PhysicalSize{axis}Unit": "µm" for axis in "YX"},
        }
        tifffile.imwrite(path, image, ome=True, photometric="minisblack", metadata=metadata)
        paths.append(path)
    return paths


def write_volume_tiff(
    volume: np.ndarray, path: Path, voxel_um: tuple[float, float, float] | None = None
) -> Path:
    """A (Z, Y, X) volume as one TIFF stack; with `voxel_um` (z, y, x) as OME-TIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if voxel_um is None:
        tifffile.imwrite(path, volume, photometric="minisblack", metadata=None)
        return path
    metadata = {
        "axes": "ZYX",
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, path.name)),
        "Creator": "make_phantoms",
        **{f"PhysicalSize{axis}": size for axis, size in zip("ZYX", voxel_um, strict=True)},
        **{f"PhysicalSize{axis}Unit": "µm" for axis in "ZYX"},
    }
    tifffile.imwrite(path, volume, ome=True, photometric="minisblack", metadata=metadata)
    return path


def write_labels(volume: LabelVolume, folder: Path) -> tuple[Path, Path]:
    """labels.tif (plain TIFF, exact IDs) and image.ome.tif; returns both."""
    voxel_um = tuple(size / 1000 for size in volume.voxel_nm)
    labels = write_volume_tiff(volume.labels, folder / "labels.tif")
    return labels, write_volume_tiff(volume.image, folder / "image.ome.tif", voxel_um)  # type: ignore[arg-type]


def grid_truth(grid: TileGrid) -> dict[str, Any]:
    """The truth about a grid as JSON: one entry per tile, positions in px (z, y, x)."""
    return {
        "tiles": [
            {
                "name": tile.name,
                "z": tile.key[0],
                "row": tile.key[1],
                "col": tile.key[2],
                "state": tile.state,
                "stage_px": [round(value, 4) for value in tile.stage_px],
                "true_px": [round(value, 4) for value in tile.true_px],
            }
            for tile in grid.tiles
        ],
        "grid": dict(zip(("sections", "rows", "cols"), grid.shape, strict=True)),
        "tile_shape_px": list(grid.tile_shape),
        "channels": list(grid.channels),
        "overlap": grid.overlap,
        "true_overlap": grid.true_overlap,
        "pixel_um": list(grid.pixel_um),
        "camera": dataclasses.asdict(grid.camera),
    }


def stack_truth(stack: SectionStack) -> dict[str, Any]:
    """The truth about a section stack as JSON; transforms are rows [m_yy m_yx t_y] and [m_xy m_xx t_x]."""
    return {
        "transforms": np.round(stack.transforms, 7).tolist(),
        "angles_deg": np.round(stack.angles_deg, 5).tolist(),
        "shifts_px": np.round(stack.shifts_px, 4).tolist(),
        "torn": list(stack.torn),
        "missing": list(stack.missing),
        "pixel_um": list(stack.pixel_um),
    }


def label_truth(volume: LabelVolume) -> dict[str, Any]:
    """The truth about a label volume as JSON; IDs are strings (JSON readers lose digits above 2^53)."""
    objects = [{**dataclasses.asdict(each), "id": str(each.id)} for each in volume.objects]
    return {"objects": objects, "shape": list(volume.labels.shape), "voxel_nm": list(volume.voxel_nm)}


def write_truth(truth: dict[str, Any], folder: Path) -> Path:
    """truth.json in a folder."""
    path = folder / "truth.json"
    path.write_text(json.dumps(truth, indent=1) + "\n")
    return path
