"""The stage sort-tiles on scans with planted defects, as every kind of input, and on real tiles."""

from __future__ import annotations

import itertools
import json
import shutil
import zipfile
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile
from make_phantoms import (
    Defects,
    Stage,
    TileGrid,
    make_tile_grid,
    write_fiji,
    write_named_tiff,
    write_ome_tiff,
    write_ome_tiff_mosaic,
)
from scipy.ndimage import gaussian_filter

from kbrain_core.errors import InputError, OutputExistsError, StageStopped
from kbrain_core.formats.readers import read_tile
from kbrain_core.formats.tables import Tile, read_tiles, write_tiles
from kbrain_core.geometry import AxisInts, VoxelSize
from kbrain_core.ingest.sort_tiles import SortResult, sort_tiles
from kbrain_core.stage import RunOptions

DEFECTS = Defects(blank=((0, 0, 1),), missing=((1, 1, 2),), duplicate=((0, 2, 0),), truncated=((1, 2, 2),))
ONE = RunOptions(workers=1)


@pytest.fixture(scope="module")
def grid() -> TileGrid:
    """Two sections of 3 x 4 tiles in two channels, with one tile of each defect."""
    return make_tile_grid(
        rows=3, cols=4, size=160, overlap=0.2, sections=2, channels=("membranes", "nuclei"), defects=DEFECTS,
        stage=Stage(jitter_px=4), seed=3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def ome(grid: TileGrid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scan") / "ome"
    write_ome_tiff(grid, folder)
    return folder


@pytest.fixture(scope="module")
def sorted_ome(ome: Path) -> tuple[SortResult, list[Tile], Path]:
    """The scan's folder sorted once; the table lies beside the folder."""
    return *sort(ome.parent, ome), ome.parent


def sort(folder: Path, *inputs: Path, **options: object) -> tuple[SortResult, list[Tile]]:
    output = folder / "tiles.tsv"
    result = sort_tiles([str(path) for path in inputs], output, run=ONE, **options)  # type: ignore[arg-type]
    return result, read_tiles(output)


def by_place(tiles: list[Tile], status: str) -> set[tuple[str, int, int | None, int | None]]:
    return {(t.channel, t.z, t.row, t.col) for t in tiles if t.status == status}


def test_every_planted_defect_is_found(sorted_ome: tuple[SortResult, list[Tile], Path]) -> None:
    result, tiles, folder = sorted_ome
    both = ("membranes", "nuclei")
    blank = by_place(tiles, "blank")
    assert {place for place in blank if place[0] == "membranes"} == {("membranes", 0, 0, 1)}
    assert ("nuclei", 0, 0, 1) in blank  # and perhaps tiles of the third of the area that has no nuclei
    assert by_place(tiles, "missing") == {(c, 1, 1, 2) for c in both}
    assert by_place(tiles, "duplicate") == {(c, 0, 2, 0) for c in both}
    assert by_place(tiles, "unreadable") == {(c, 1, 2, 2) for c in both}
    assert len(by_place(tiles, "ok") | blank) == 2 * (24 - 2)
    assert not result.passed
    assert set(result.image_again) == {
        "missing_t0_z1_r1_c2_chmembranes", "missing_t0_z1_r1_c2_chnuclei", "tile_z001_r02_c02.ome.tif",
    }  # fmt: skip
    assert (result.grid_rows, result.grid_columns, result.sections) == (3, 4, 2)
    assert (result.overlap_x_share, result.overlap_y_share) == (pytest.approx(0.2), pytest.approx(0.2))
    assert (folder / "tiles.tsv-report.html").is_file()


def test_facts_are_those_of_the_microscope(
    grid: TileGrid, sorted_ome: tuple[SortResult, list[Tile], Path]
) -> None:
    _, tiles, folder = sorted_ome
    for tile in tiles:
        if tile.status != "ok":
            continue
        planted = grid.tile(tile.z, tile.row or 0, tile.col or 0)
        assert planted.image is not None
        # um of OME-XML are written with all their digits
        assert tile.stage_x_um == pytest.approx(planted.stage_px[2] * 0.005, abs=1e-9)
        assert tile.stage_y_um == pytest.approx(planted.stage_px[1] * 0.005, abs=1e-9)
        assert (tile.pixel_x_um, tile.pixel_y_um, tile.dtype) == (0.005, 0.005, planted.image.dtype.name)
        pixels = read_tile(tile, folder)
        np.testing.assert_array_equal(pixels, planted.image[grid.channels.index(tile.channel)])


def test_names_and_mosaic_give_the_same_grid(
    grid: TileGrid, sorted_ome: tuple[SortResult, list[Tile], Path], tmp_path: Path
) -> None:
    write_named_tiff(grid, tmp_path / "names")
    write_ome_tiff_mosaic(grid, tmp_path / "mosaic/all.ome.tif")
    reference = by_place(sorted_ome[1], "ok")
    for name in ("names", "mosaic"):
        _, tiles = sort(tmp_path / name, tmp_path / name)
        # the mosaic is one file: nothing in it is truncated
        assert by_place(tiles, "ok") - {(c, 1, 2, 2) for c in grid.channels} == reference
        assert by_place(tiles, "missing") == {(c, 1, 1, 2) for c in grid.channels}


@pytest.mark.parametrize("depth", [1, 6])
def test_fiji_configuration(tmp_path: Path, depth: int) -> None:
    grid = make_tile_grid(rows=2, cols=3, size=96, depth=depth, overlap=0.2, kind="nuclei", seed=1)
    write_fiji(grid, tmp_path)
    with pytest.raises(InputError, match="pass --voxel-size"):
        sort(tmp_path, tmp_path)
    result, tiles = sort(tmp_path, tmp_path, voxel_size=VoxelSize.from_text("x=0.5um,y=0.25um,z=2um"))
    assert by_place(tiles, "ok") == {("0", 0, r, c) for r in range(2) for c in range(3)}
    for tile in tiles:
        planted = grid.tile(0, tile.row or 0, tile.col or 0).stage_px
        # the side file has one decimal
        assert tile.stage_x_um == pytest.approx(planted[2] * 0.5, abs=0.026)
        assert tile.stage_y_um == pytest.approx(planted[1] * 0.25, abs=0.013)
        assert tile.depth_px == depth
    assert "TileConfiguration.txt beside the tiles" in " ".join(result.decisions)


def test_the_order_of_inputs_does_not_matter(ome: Path, tmp_path: Path) -> None:
    files = sorted(ome.iterdir())[:7]
    written = set()
    for order in itertools.islice(itertools.permutations(files), 0, 5040, 2500):
        _, _ = sort(tmp_path, *order)
        written.add((tmp_path / "tiles.tsv").read_bytes())
        (tmp_path / "tiles.tsv").unlink()
    assert len(written) == 1


def test_workers_do_not_change_the_table(ome: Path, sorted_ome: tuple[SortResult, list[Tile], Path]) -> None:
    _, _, folder = sorted_ome
    sort_tiles([str(ome)], folder / "two.tsv", run=RunOptions(workers=2))
    assert (folder / "two.tsv").read_bytes() == (folder / "tiles.tsv").read_bytes()


def test_archive_list_and_folder_are_one(ome: Path, tmp_path: Path) -> None:
    files = sorted(ome.iterdir())[:4]
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for path in files:
            archive.write(path, path.name)
    (tmp_path / "list.txt").write_text("\n".join(str(path) for path in files))
    _, listed = sort(tmp_path, tmp_path / "list.txt")
    (tmp_path / "tiles.tsv").unlink()
    _, unpacked = sort(tmp_path, tmp_path / "scan.zip", extract_to=tmp_path / "unpacked")
    assert [(t.sha256, t.row, t.col) for t in listed] == [(t.sha256, t.row, t.col) for t in unpacked]
    assert unpacked[0].name.startswith("unpacked/scan/tile_")


def test_names_are_relative_to_the_tiles_folder(ome: Path, tmp_path: Path) -> None:
    _, tiles = sort(tmp_path, ome, tiles_folder=ome.parent)
    assert {t.name.rsplit("/", 1)[0] for t in tiles if t.status == "ok"} == {"ome"}
    # collections of a workflow system are links under the names that people know
    links = tmp_path / "links"
    links.mkdir()
    for number, path in enumerate(sorted(ome.iterdir())[:2]):
        (links / f"r0_c{number}.tif").symlink_to(path)
    (tmp_path / "tiles.tsv").unlink()
    _, tiles = sort(tmp_path, links, tiles_folder=links)
    assert {t.name for t in tiles} == {"r0_c0.tif", "r0_c1.tif"}


def test_a_table_for_each_channel(
    ome: Path, sorted_ome: tuple[SortResult, list[Tile], Path], tmp_path: Path
) -> None:
    _, tiles = sort(tmp_path, ome, channel_tables_output=tmp_path / "channels")
    assert {path.name for path in (tmp_path / "channels").iterdir()} == {"membranes.tsv", "nuclei.tsv"}
    for channel in ("membranes", "nuclei"):
        own = read_tiles(tmp_path / "channels" / f"{channel}.tsv")
        assert [t.sha256 for t in own] == [t.sha256 for t in tiles if t.channel == channel]
        assert {t.status for t in own} == {t.status for t in tiles if t.channel == channel}
        ok = next(t for t in own if t.status == "ok")
        assert read_tile(ok, tmp_path / "channels").shape == (
            1,
            160,
            160,
        )  # relative to the tables' own folder

    with pytest.raises(OutputExistsError, match="--overwrite"):
        sort(tmp_path / "again", ome, channel_tables_output=tmp_path / "channels")
    again = RunOptions(workers=1, overwrite=True)
    (tmp_path / "channels" / "mine.tsv").write_text("a table of mine")
    write_tiles(tmp_path / "channels" / "old.tsv", tiles)
    sort_tiles(
        [str(ome)],
        tmp_path / "tiles.tsv",
        channel_tables_output=tmp_path / "channels",
        tiles_folder=ome,
        run=again,
    )
    assert {path.name for path in (tmp_path / "channels").iterdir()} == {
        "membranes.tsv",
        "nuclei.tsv",
        "mine.tsv",
    }
    own = read_tiles(tmp_path / "channels" / "nuclei.tsv")
    assert {t.name for t in own} <= {t.name for t in read_tiles(tmp_path / "tiles.tsv")}
    assert "/" not in own[0].name  # relative to the tiles' folder, as in the main table


def test_blurred_and_saturated_tiles_are_to_be_imaged_again(tmp_path: Path) -> None:
    grid = make_tile_grid(rows=3, cols=3, size=192, overlap=0.2, stage=Stage(jitter_px=3), seed=5)
    write_named_tiff(grid, tmp_path)
    assert sort(tmp_path, tmp_path)[0].passed
    for (row, col), spoil in {
        (1, 1): lambda image: gaussian_filter(image, 2.5),  # out of focus
        (2, 0): lambda image: np.minimum(image * 2.2, 255),  # too bright
    }.items():
        planted = grid.tile(0, row, col)
        assert planted.image is not None
        spoiled = spoil(planted.image[0, 0].astype(np.float32)).astype(planted.image.dtype)
        tifffile.imwrite(tmp_path / f"{planted.name}.tif", spoiled)
    result = sort_tiles([str(tmp_path)], tmp_path / "again.tsv", run=ONE)
    assert set(result.image_again) == {"tile_z000_r01_c01.tif", "tile_z000_r02_c00.tif"}
    assert (
        "out of focus: tile_z000_r01_c01" in result.verdict
        and "saturated: tile_z000_r02_c00" in result.verdict
    )


def test_numbered_files_on_a_grid_with_an_overlap(tmp_path: Path) -> None:
    grid = make_tile_grid(rows=2, cols=3, size=96, overlap=0.25, stage=Stage(jitter_px=0), seed=2)
    (tmp_path / "scan").mkdir()
    snake = [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (1, 0)]
    for number, cell in enumerate(snake):
        image = grid.tile(0, *cell).image
        assert image is not None
        tifffile.imwrite(tmp_path / f"scan/img_{number:03d}.tif", image[0, 0])
    (tmp_path / "scan/img_004.tif").unlink()
    options = {"grid": AxisInts(x=3, y=2), "grid_order": "rows-snake", "overlap": 0.25}
    _, tiles = sort(tmp_path, tmp_path / "scan", voxel_size=VoxelSize.from_text("2um"), **options)
    assert by_place(tiles, "missing") == {("0", 0, 1, 1)}
    # 96 px of 2 um, a quarter shared: 144 um from tile to tile
    assert {(t.row, t.col): (t.stage_x_um, t.stage_y_um) for t in tiles} == {
        (r, c): (144.0 * c, 144.0 * r) for r, c in snake
    }


def test_pages_as_sections(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for col in range(2):
        stack = rng.integers(0, 255, (3, 64, 64)).astype(np.uint8)
        tifffile.imwrite(tmp_path / f"r0_c{col}.tif", stack, photometric="minisblack")
    _, tiles = sort(tmp_path, tmp_path)
    assert [(t.col, t.depth_px) for t in tiles] == [(0, 3), (1, 3)]
    (tmp_path / "tiles.tsv").unlink()
    _, tiles = sort(tmp_path, tmp_path, stack_as="sections")
    assert [(t.z, t.col, t.page, t.depth_px) for t in tiles] == [
        (z, c, z, 1) for z in range(3) for c in range(2)
    ]


def test_serialem_montage_in_one_file(tmp_path: Path) -> None:
    grid = make_tile_grid(rows=2, cols=2, size=96, overlap=0.25, sections=2, stage=Stage(jitter_px=0), seed=6)
    stack = np.stack([tile.image[0, 0] for tile in grid.tiles if tile.image is not None])
    with mrcfile.new(tmp_path / "map.mrc", data=stack.astype(np.int16)) as file:
        file.voxel_size = 20.0
    lines = ["PixelSpacing = 20", "ImageFile = map.mrc", "Montage = 1", ""]
    for page, tile in enumerate(grid.tiles):
        z, row, col = tile.key
        lines += [f"[ZValue = {page}]", f"PieceCoordinates = {col * 72} {row * 72} {z}", ""]
    (tmp_path / "map.mrc.mdoc").write_text("\n".join(lines))
    result, tiles = sort(tmp_path, tmp_path)
    assert [(t.z, t.row, t.col, t.page) for t in tiles] == [
        (*t.key, page) for page, t in enumerate(grid.tiles)
    ]
    # 72 px of 20 Angstrom
    assert {(t.stage_x_um, t.stage_y_um) for t in tiles} == {
        (0.144 * c, 0.144 * r) for r in range(2) for c in range(2)
    }
    np.testing.assert_array_equal(read_tile(tiles[5], tmp_path)[0], stack[5])
    assert "map.mrc.mdoc beside the tiles (SerialEM metadata)" in " ".join(result.decisions)


def test_names_of_any_language_and_a_scan_without_specimen(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ["뇌 $x_1$ <b>_r0_c0_ch한글.tif", "뇌 $x_1$ <b>_r0_c1_ch한글.tif"]
    for name in names:
        tifffile.imwrite(tmp_path / name, rng.normal(100, 3, (64, 64)).astype(np.uint8))
    result, tiles = sort(tmp_path, tmp_path)
    assert [t.name for t in tiles] == names
    assert [t.status for t in tiles] == ["blank", "blank"]
    assert (result.passed, result.verdict) == (False, "image again: all 2 tiles are blank")
    page = (tmp_path / "tiles.tsv-report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;_r0_c0" in page and "<b>_r0_c0" not in page


def test_summary_and_report_say_the_verdict(
    sorted_ome: tuple[SortResult, list[Tile], Path], tmp_path: Path
) -> None:
    result, _, folder = sorted_ome
    summary = json.loads((folder / "tiles.tsv-summary.json").read_text())
    assert summary["figures"]["verdict"] == result.verdict
    page = (folder / "tiles.tsv-report.html").read_text()
    assert "image again 3 of" in page and "tile_z001_r02_c02.ome.tif" in page
    pictures = {path.stem for path in (folder / "tiles.tsv-report_files").iterdir()}
    assert {"tile-map", "quality", "worst-tiles"} <= pictures
    # the report lies beside the tiles when the table does: it is no input of a second run
    shutil.copytree(folder / "tiles.tsv-report_files", tmp_path / "tiles.tsv-report_files")
    shutil.copy(folder / "tiles.tsv-report.html", tmp_path / "tiles.tsv-report.html")
    with pytest.raises(InputError, match="No image is in"):
        sort_tiles([str(tmp_path)], tmp_path / "no.tsv", run=ONE)


@pytest.mark.parametrize(
    ("files", "options", "says"),
    [
        ({}, {}, "No image is in"),
        ({"a.tif": b"", "b.tif": b"junk"}, {}, "None of the 2 files can be read"),
        ({"r0_c0.tif": 1, "r0_c1.tif": 2}, {"pattern": r"r(?P<row>\d+)"}, "has a group row but needs col too"),
        ({"r0_c0.tif": 1, "r0_c1.tif": 2}, {"pattern": r"(?P<z>0)"}, "pass --layout, or --pattern with groups row and col"),
        ({"r0_c0.tif": 1, "r00_c00.tif": 2}, {}, "are at one place"),
        ({"left.tif": 1, "right.tif": 2}, {}, "nothing says where each lies"),
        ({"r0_c0.tif": 1, "r0_c1.tif": 2}, {"overlap": 0.1}, "pass --voxel-size"),
        ({"r0_c0.tif": 1}, {"overlap": float("nan")}, "finite number"),
        ({"r0_c0.tif": 1}, {"overlap": 1.0}, "must be below 1"),
        ({"r0_c0.tif": 1}, {"max_saturated_fraction": -0.1}, "must be at least 0"),
        ({"r0_c0.tif": 1}, {"focus_mads": 0.0}, "must be above 0"),
        ({"r0_c0.tif": 1}, {"grid": AxisInts(x=2)}, "lacks an axis"),
        ({"r0_c0.tif": 1}, {"stack_as": "pages"}, "choose one of depth, sections"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_no_table(
    tmp_path: Path, files: dict[str, bytes | int], options: dict[str, object], says: str
) -> None:
    scan = tmp_path / "scan"
    scan.mkdir()
    for name, content in files.items():
        if isinstance(content, bytes):
            (scan / name).write_bytes(content)
        else:
            tifffile.imwrite(
                scan / name, np.random.default_rng(content).integers(0, 255, (64, 64)).astype(np.uint8)
            )
    with pytest.raises(InputError, match=says) as caught:
        sort(tmp_path, scan, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tiles.tsv").exists()


def test_output_that_exists_and_dry_run(ome: Path, tmp_path: Path) -> None:
    with pytest.raises(StageStopped):
        sort_tiles([str(ome)], tmp_path / "dry.tsv", run=RunOptions(dry_run=True))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "tiles.tsv").write_text("mine")
    with pytest.raises(OutputExistsError):
        sort(tmp_path, ome)
    assert (tmp_path / "tiles.tsv").read_text() == "mine"
    sort_tiles([str(ome)], tmp_path / "tiles.tsv", run=RunOptions(workers=1, overwrite=True))
    assert len(read_tiles(tmp_path / "tiles.tsv")) > 40


def test_real_array_tomography(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "array-tomography"
    result, tiles = sort(
        tmp_path,
        folder / "tiles",
        layout=folder / "layout.tsv",
        voxel_size=VoxelSize.from_text("x=0.1um,y=0.1um,z=0.2um"),
    )
    assert len(tiles) == result.tiles_ok == 42
    assert (result.sections, result.grid_columns, result.grid_rows) == (3, 2, 7)
    assert by_place(tiles, "ok") == {("0", z, r, c) for z in range(3) for r in range(7) for c in range(2)}
    first = next(t for t in tiles if t.name.endswith("/A1_7_2.tif"))
    assert (first.z, first.row, first.col, first.stage_x_um, first.stage_y_um) == (0, 6, 0, 0.0, 514.2)
    assert result.passed
