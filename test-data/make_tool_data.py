"""Make the small tiles and sections that the tests of the Galaxy tools read, with planted truth.

    python test-data/make_tool_data.py        writes tools/<tool>/test-data/, the same bytes every time

The truth, which the tests of the tools assert:

- scan: 2 sections of 2 x 3 tiles of 128 px in two channels (membranes, nuclei), overlap 0.25, 0.01 um a pixel; the tile at
  section 1, row 0, column 2 is blank. Tiles lie up to 4 px off their stage positions; `truth.json` beside the tiles of
  stitch_tiles says where.
- grid: 4 x 4 tiles of 128 px of nuclei, the one at row 1, column 1 blank. The camera's field falls by 39 percent of its
  mean from the middle to the corners, and its dark level is 0.04 x 255 = 10.2 grey values.
- sections: 6 sections of 192 px, turned by up to 5 degrees and shifted by up to 12 px: `truth.json` of align_sections.
- labels: two planes of integers of 64 bits, which no alignment may blend.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
import tifffile
from make_phantoms import (
    Defects,
    SectionStack,
    Stage,
    TileGrid,
    make_section_stack,
    make_tile_grid,
    write_ome_tiff,
)
from phantom_files import write_ome_tiff_mosaic, write_tiles_table
from small_volumes import write_volume

from kbrain_core.formats.readers import read_tile
from kbrain_core.formats.tables import Position, Tile, Transform, read_tiles, write_table, write_tiles
from kbrain_core.formats.tile_files import write_tile
from kbrain_core.ingest.sort_tiles import sort_tiles
from kbrain_core.stage import RunOptions

TOOLS = Path(__file__).parents[1] / "tools"
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # else every run writes other bytes
BLANK = (1, 0, 2)


def make_scan() -> TileGrid:
    """The scan that is sorted, corrected and stitched."""
    return make_tile_grid(
        rows=2, cols=3, size=128, overlap=0.25, sections=2, channels=("membranes", "nuclei"), stage=Stage(jitter_px=4),
        defects=Defects(blank=(BLANK,)), pixel_um=(0.05, 0.01, 0.01), empty_fraction=0.0, seed=4,
    )  # fmt: skip


def make_grid() -> TileGrid:
    """Tiles that tell their shading."""
    return make_tile_grid(
        rows=4, cols=4, size=128, overlap=0.25, kind="nuclei", defects=Defects(blank=((0, 1, 1),)),
        pixel_um=(0.05, 0.01, 0.01),
    )  # fmt: skip


def make_sections() -> SectionStack:
    """Serial sections to align."""
    return make_section_stack(
        count=6, size=192, change=0.05, max_angle_deg=5, max_shift_px=12, pixel_um=(0.05, 0.01, 0.01), seed=7
    )


def sorted_tiles(folder: Path) -> list[Tile]:
    """The table of a folder's tiles, as sort-tiles makes it; names relative to the folder."""
    with tempfile.TemporaryDirectory() as scratch:
        table = Path(scratch) / "tiles.tsv"
        sort_tiles([str(folder)], table, tiles_folder=folder, run=RunOptions(workers=1))
        return read_tiles(table)


def zip_files(path: Path, files: Iterable[Path], root: Path) -> None:
    """Pack files under their paths from a folder."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(files):
            entry = zipfile.ZipInfo(file.relative_to(root).as_posix(), ZIP_DATE)
            archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)


def room(tool: str) -> Path:
    """The empty folder of a tool's test data."""
    folder = TOOLS / tool / "test-data"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    return folder


def write_sort_data(scan: TileGrid) -> None:
    """The scan's second section as an archive, one tile withheld; single tiles; files that name no place; no image."""
    folder = room("sort_tiles")
    with tempfile.TemporaryDirectory() as scratch:
        some = tuple(tile for tile in scan.tiles[6:] if tile is not scan.tile(1, 1, 1))
        files = write_ome_tiff(replace(scan, tiles=some), Path(scratch), compression="zlib")
        zip_files(folder / "scan.zip", files, Path(scratch))
    write_ome_tiff(replace(scan, tiles=(scan.tile(0, 0, 0), scan.tile(1, 0, 0))), folder, compression="zlib")
    lines = ["dim = 2"]
    for name, (row, col) in {"left": (0, 0), "right": (0, 1), "scan_1": (0, 0), "scan_2": (1, 0)}.items():
        tile = scan.tile(0, row, col)
        tifffile.imwrite(folder / f"{name}.tif", tile.image[0, 0], photometric="minisblack", metadata=None)
        if name in ("left", "right"):
            lines.append(f"{name}.tif; ; ({tile.stage_px[2]:.1f}, {tile.stage_px[1]:.1f})")
    (folder / "TileConfiguration.txt").write_text("\n".join(lines) + "\n")
    (folder / "note.txt").write_text("No image is here.\n")


def write_correction_data(scan: TileGrid, grid: TileGrid) -> None:
    """The grid and the scan's first section as folders with their tables; a measured flat field; two single tiles."""
    folder = room("correct_illumination")
    with tempfile.TemporaryDirectory() as scratch:
        files = write_ome_tiff(grid, Path(scratch), compression="zlib")
        table = write_tiles_table(grid, Path(scratch) / "tiles.tsv")
        zip_files(folder / "grid.zip", [*files, table], Path(scratch))
    with tempfile.TemporaryDirectory() as scratch:
        files = write_ome_tiff(replace(scan, tiles=scan.tiles[:6]), Path(scratch), compression="zlib")
        rows = sorted_tiles(Path(scratch))
        write_tiles(Path(scratch) / "tiles.tsv", rows)
        zip_files(folder / "section.zip", [*files, Path(scratch) / "tiles.tsv"], Path(scratch))
    nuclei = [row for row in rows if row.channel == "nuclei"]
    write_tiles(folder / "nuclei.tsv", nuclei)
    write_tiles(folder / "five.tsv", [*nuclei[:5], replace(nuclei[5], status="excluded")])
    pair = replace(grid, tiles=(grid.tile(0, 1, 1), grid.tile(0, 1, 2)))  # the first is blank
    write_ome_tiff(pair, folder, compression="zlib")
    write_tiles_table(pair, folder / "pair.tsv")
    tifffile.imwrite(
        folder / "flat.tif", grid.flat_field.astype(np.float32), compression="zlib", predictor=True
    )


def write_stitch_data(scan: TileGrid) -> None:
    """A folder with a table for each channel of the scan; four tiles in one file with their tables; the truth."""
    folder = room("stitch_tiles")
    with tempfile.TemporaryDirectory() as scratch:
        write_ome_tiff(scan, Path(scratch), compression="zlib")
        rows = sorted_tiles(Path(scratch))
        for channel in scan.channels:
            own = [row for row in rows if row.channel == channel]
            write_channel_folder(folder / f"{channel}.zip", own, Path(scratch))
            edited = [replace(row, page=0) for row in own]
            edited[5] = replace(edited[5], status="excluded")
            write_tiles(folder / f"{channel}_edited.tsv", edited)
    corner = replace(scan, tiles=tuple(tile for tile in scan.tiles[:6] if tile.key[2] < 2))
    with tempfile.TemporaryDirectory() as scratch:
        mosaic = write_ome_tiff_mosaic(corner, Path(scratch) / "corner.ome.tif")
        rows = sorted_tiles(Path(scratch))
        (folder / mosaic.name).write_bytes(mosaic.read_bytes())
    for channel in scan.channels:
        write_tiles(folder / f"{channel}.tsv", [row for row in rows if row.channel == channel])
    nowhere = [replace(row, stage_x_um=None, stage_y_um=None, stage_z_um=None) for row in rows]
    write_tiles(folder / "no_stage.tsv", [row for row in nowhere if row.channel == "membranes"])
    positions = [
        Position(
            name=mosaic.name, series=series, channel="membranes", x_px=tile.true_px[2], y_px=tile.true_px[1]
        )
        for series, tile in enumerate(corner.tiles)
    ]
    write_table(folder / "true_positions.tsv", positions, Position)
    first = scan.tile(0, 0, 0).true_px
    truth = {
        tile.name: [round(a - b, 2) for a, b in zip(tile.true_px[1:], first[1:], strict=True)]
        for tile in scan.tiles[:6]
    }
    (folder / "truth.json").write_text(json.dumps({"yx_px_from_first_tile": truth}, indent=1) + "\n")


def write_channel_folder(path: Path, rows: list[Tile], source: Path) -> None:
    """One channel's tiles, a file each, and their table, as correct-illumination leaves them, packed."""
    with tempfile.TemporaryDirectory() as scratch:
        for row in rows:
            pixels = read_tile(row, source)
            write_tile(Path(scratch) / row.name, row, pixels, pixels.dtype, "zlib")
        write_tiles(Path(scratch) / "tiles.tsv", [replace(row, page=0) for row in rows])
        zip_files(path, Path(scratch).iterdir(), Path(scratch))


def write_section_data(stack: SectionStack) -> None:
    """The sections as one volume (which keeps its folder in the archive) and as single images; labels; the truth."""
    folder = room("align_sections")
    with tempfile.TemporaryDirectory() as scratch:
        volume = Path(scratch) / "sections.ome.zarr"
        size = tuple(1000 * um for um in stack.pixel_um)
        write_volume(
            volume, stack.images[None, None], voxel_size_nm=size, channel_names=("EM",), mips=1, sharded=False
        )
        zip_files(
            folder / "sections.ome_zarr.zip", [p for p in volume.rglob("*") if p.is_file()], Path(scratch)
        )
        for z in range(2):
            section = Path(scratch) / f"section_{z}.ome.zarr"
            write_volume(
                section, stack.images[None, None, z : z + 1], voxel_size_nm=size, mips=1, sharded=False
            )
            files = [path for path in section.rglob("*") if path.is_file()]
            zip_files(folder / f"section_{z}.ome_zarr.zip", files, section)
        labels = Path(scratch) / "labels.ome.zarr"
        ids = np.arange(2 * 16 * 16, dtype=np.uint64).reshape(1, 1, 2, 16, 16)
        write_volume(labels, ids, kind="labels", mips=1, sharded=False)
        zip_files(folder / "labels.ome_zarr.zip", [p for p in labels.rglob("*") if p.is_file()], labels)
    # as align-sections gives them, from output to input pixels: the second section moved by 10 px along x
    rows = [Transform(z=z, m_yy=1, m_yx=0, m_xy=0, m_xx=1, t_y_px=0, t_x_px=-10.0 * z) for z in range(2)]
    write_table(folder / "transforms.tsv", rows, Transform)
    for z, image in enumerate(stack.images[:3]):
        content = io.BytesIO()
        tifffile.imwrite(
            content, image, photometric="minisblack", metadata=None, compression="zlib", predictor=True
        )
        # section 10 comes after section 9: the natural order of names, which is not that of text
        (folder / f"section_{8 + z}.tif").write_bytes(content.getvalue())
    truth = {
        "angle_deg": [round(float(angle), 3) for angle in stack.angles_deg],
        "shift_yx_px": np.round(stack.shifts_px, 2).tolist(),
    }
    (folder / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")


def main() -> None:
    """Write all test data."""
    scan = make_scan()
    write_sort_data(scan)
    write_correction_data(scan, make_grid())
    write_stitch_data(scan)
    write_section_data(make_sections())


if __name__ == "__main__":
    main()
