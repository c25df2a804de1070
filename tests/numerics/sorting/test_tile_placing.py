"""Which source places the tiles: explicit before side files, those before metadata, that before names."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from kbrain_core.errors import InputError
from kbrain_core.formats.tile_layouts import Layout, LayoutEntry
from kbrain_core.geometry import VoxelSize
from kbrain_core.numerics.sorting.tile_layout_matching import files_with_pages
from kbrain_core.numerics.sorting.tile_measurement import MeasuredTile
from kbrain_core.numerics.sorting.tile_placing import PlacedSet, PlacingOptions, place_tiles

ROOT = Path("/scan")
UM = VoxelSize(2000.0, 500.0, 500.0)


def image(name: str, stage: tuple[float, float] | None = None, **facts: object) -> MeasuredTile:
    """A readable tile of 100 x 200 px; stage is (y, x) in um."""
    y, x = stage or (None, None)
    tile = MeasuredTile(
        path=str(ROOT / name), shape_zyx=(1, 100, 200), dtype="uint8", sha256=f"{name} {facts}", stage_um=(None, y, x),
        voxel_um=(None, 0.5, 0.5),
    )  # fmt: skip
    return replace(tile, **facts)  # type: ignore[arg-type]


def place(
    *tiles: MeasuredTile, layout: Layout | None = None, side: list[Layout] | None = None, **options: object
) -> PlacedSet:
    return place_tiles(tiles, ROOT, layout, side or [], PlacingOptions(**options))  # type: ignore[arg-type]


def table(*entries: LayoutEntry) -> Layout:
    return Layout(Path("layout.tsv"), "layout table", entries)


def stages(placed: PlacedSet) -> list[tuple[float | None, float | None]]:
    return [(row.tile.stage_x_um, row.tile.stage_y_um) for row in placed.rows]


def cells(placed: PlacedSet) -> list[tuple[int | None, int | None]]:
    return [(row.tile.row, row.tile.col) for row in placed.rows]


NAMED = [image(f"t_r{r}_c{c}.tif", stage=(r * 40.0, c * 80.0)) for r in range(2) for c in range(2)]
LAYOUT = table(
    *(LayoutEntry(file=f"t_r{r}_c{c}.tif", x_px=c * 150, y_px=r * 90) for r in range(2) for c in range(2))
)


def test_layout_before_metadata() -> None:
    placed = place(*NAMED, layout=LAYOUT)
    assert stages(placed) == [(0, 0), (75, 0), (0, 45), (75, 45)]
    assert any("layout.tsv" in line for line in placed.decisions)


def test_side_file_before_metadata_and_only_when_it_fits() -> None:
    assert stages(place(*NAMED, side=[LAYOUT]))[1] == (75, 0)
    other = table(LayoutEntry(file="t_r0_c0.tif", x_px=9, y_px=9))
    placed = place(*NAMED, side=[other])
    assert stages(placed)[1] == (80, 0)
    assert "lists 25% of them" in placed.warnings[0]


def test_metadata_before_names() -> None:
    placed = place(*NAMED)
    assert stages(placed) == [(0, 0), (80, 0), (0, 40), (80, 40)]
    assert "Positions from the metadata of the images" in placed.decisions


def test_metadata_that_never_changes_is_not_believed() -> None:
    stuck = [replace(tile, stage_um=(None, 7.0, 7.0)) for tile in NAMED]
    placed = place(*stuck, overlap=0.1)
    assert "do not tell the tiles apart" in placed.warnings[0]
    # 200 px and 100 px of 0.5 um, 10 % less for the overlap
    assert stages(placed) == [(0, 0), (90, 0), (0, 45), (90, 45)]


def test_metadata_of_some_is_not_used() -> None:
    placed = place(*NAMED[:3], replace(NAMED[3], stage_um=(None, None, None)))
    assert stages(placed) == [(None, None)] * 4
    assert "1 of 4 tiles have no stage position" in placed.warnings[0]


def test_rows_and_columns_from_positions_that_jitter() -> None:
    corners = [(0, 1), (1, 0), (1, 1), (0, 0)]
    tiles = [
        image(f"{n}.tif", (r * 45 + 3.0 * (n % 2), c * 90 - 4.0 * (n % 3)))
        for n, (r, c) in enumerate(corners)
    ]
    placed = place(*tiles)
    assert cells(placed) == corners
    assert {row.tile.z for row in placed.rows} == {0}  # the number in the name counts tiles, not sections


@pytest.mark.parametrize("stage", [(0.5, 0.2), (300.0, 900.0)])
def test_sections_that_drift_or_lie_on_a_wafer_are_no_mosaic(stage: tuple[float, float]) -> None:
    tiles = [image(f"{n}.tif", (stage[0] * n, stage[1] * n)) for n in range(5)]
    assert [row.tile.z for row in place(*tiles).rows] == [0, 1, 2, 3, 4]


def test_flips_turn_stage_axes() -> None:
    assert stages(place(*NAMED, flip_x=True, flip_y=True)) == [(0, 0), (-80, 0), (0, -40), (-80, -40)]
    assert stages(place(*NAMED, layout=LAYOUT, flip_x=True))[1] == (75, 0)  # px in the image need no turning


def test_px_need_a_voxel_size() -> None:
    unknown = [replace(tile, voxel_um=(None, None, None)) for tile in NAMED]
    with pytest.raises(
        InputError, match=r"voxel size of 't_r0_c0\.tif' is not in its metadata: pass --voxel-size"
    ):
        place(*unknown, layout=LAYOUT)
    assert stages(place(*unknown, layout=LAYOUT, voxel_size=UM))[3] == (75, 45)
    deep = table(*(replace(entry, z_px=3.0) for entry in LAYOUT.entries))
    with pytest.raises(InputError, match="z step"):
        place(*NAMED, layout=deep)
    with pytest.raises(InputError, match="--overlap places tiles in um"):
        place(*(replace(tile, stage_um=(None, None, None)) for tile in unknown), overlap=0.1)


def test_an_unreadable_tile_keeps_its_place() -> None:
    broken = MeasuredTile(path=str(ROOT / "t_r1_c1.tif"), reason="truncated")
    row = place(*NAMED[:3], broken, layout=LAYOUT).rows[3]
    assert (row.tile.status, row.reason, row.tile.stage_x_um, row.tile.row) == (
        "unreadable",
        "truncated",
        75,
        1,
    )


def test_an_unreadable_file_stands_for_all_channels() -> None:
    two = [
        image(f"r0_c{c}.tif", channel=ch, channel_count=2, channel_name="ab"[ch], page=ch)
        for c in range(2)
        for ch in range(2)
    ]
    broken = MeasuredTile(path=str(ROOT / "r0_c2.tif"), reason="truncated")
    rows = place(*two, broken).rows[4:]
    assert [(row.tile.channel, row.tile.page, row.tile.col) for row in rows] == [("a", 0, 2), ("b", 1, 2)]


def test_listed_without_file_and_file_without_line() -> None:
    placed = place(*NAMED[:3], image("extra.tif"), layout=LAYOUT)
    assert [(row.tile.name, row.tile.status) for row in placed.rows[3:]] == [
        ("extra.tif", "excluded"),
        ("t_r1_c1.tif", "missing"),
    ]
    assert stages(placed)[4] == (75, 45)


def test_layout_that_fits_nothing_or_too_much() -> None:
    with pytest.raises(InputError, match="lists none of the 4 files"):
        place(*NAMED, layout=table(LayoutEntry(file="x.tif", x_px=0, y_px=0)))
    with pytest.raises(InputError, match="twice"):
        place(*NAMED, layout=table(*LAYOUT.entries, LAYOUT.entries[0]))
    twins = [image("a/t.tif"), image("b/t.tif")]
    with pytest.raises(InputError, match="fits 2 files"):
        place(*twins, layout=table(LayoutEntry(file="t.tif", row=0, col=0)))
    found = place(
        *twins,
        layout=table(LayoutEntry(file="b/t.tif", row=0, col=1), LayoutEntry(file="a/t.tif", row=0, col=0)),
    )
    assert cells(found) == [(0, 0), (0, 1)]


def test_pages_of_a_montage() -> None:
    montage = table(*(LayoutEntry(file="m.mrc", page=p, x_px=p * 150, y_px=0, z=p // 2) for p in range(4)))
    tiles = [image("m.mrc", page=p, plane=p, plane_count=4) for p in range(4)]
    placed = place(*tiles, layout=montage)
    assert [(row.tile.page, row.tile.z, row.tile.stage_x_um) for row in placed.rows] == [
        (0, 0, 0),
        (1, 0, 75),
        (2, 1, 150),
        (3, 1, 225),
    ]
    assert files_with_pages([montage]) == {"m.mrc"}
    assert files_with_pages([LAYOUT]) == set()


def test_channel_from_the_file_unless_names_say_more() -> None:
    same = [image(f"r0_c0_ch{n}.tif", channel_name="Camera") for n in (1, 2)]
    assert [row.tile.channel for row in place(*same).rows] == ["1", "2"]
    told = [image(f"r0_c0_ch{n}.tif", channel_name=name) for n, name in ((1, "DAPI"), (2, "GFP"))]
    assert [row.tile.channel for row in place(*told).rows] == ["DAPI", "GFP"]


def test_sections_from_labels_and_planes() -> None:
    wafer = [image(f"{section}_{n}_2.tif") for section in ("A2", "A10", "B1") for n in (0, 1)]
    assert [row.tile.z for row in place(*wafer, grid=(1, 2)).rows] == [0, 0, 1, 1, 2, 2]
    planes = [image(f"sec{n}.tif", plane=p, plane_count=3) for n in (0, 1) for p in range(3)]
    assert [row.tile.z for row in place(*planes).rows] == [0, 1, 2, 3, 4, 5]


def test_sections_from_the_stage_height() -> None:
    tiles = [
        image(
            "m.tif", series=s, series_count=8, stage_um=(5.0 * (s // 4), 45.0 * (s % 4 // 2), 90.0 * (s % 2))
        )
        for s in range(8)
    ]
    assert [row.tile.z for row in place(*tiles).rows] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_numbers_on_a_grid() -> None:
    tiles = [image(f"img_{n:03d}.tif") for n in range(1, 7)]
    placed = place(*tiles, grid=(2, 3), grid_order="rows-snake")
    assert cells(placed) == [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (1, 0)]
    assert placed.numbered
    with pytest.raises(InputError, match="tile number 4, but --grid has 1 rows and 3 columns"):
        place(*tiles, grid=(1, 3))


def test_pattern() -> None:
    pattern = re.compile(r"(?P<col>\d+)-(?P<row>\d+)\.tif")
    placed = place(image("5-7.tif"), image("6-7.tif"), image("overview.tif"), pattern=pattern)
    assert cells(placed)[:2] == [(7, 5), (7, 6)]
    assert placed.rows[2].tile.status == "excluded"


def test_images_of_one_file_go_by_their_own_names() -> None:
    tiles = [image("scan.lif", series=n, series_count=2, series_name=f"Tile r1 c{n}") for n in (3, 4)]
    assert cells(place(*tiles)) == [(1, 3), (1, 4)]


def test_stage_positions_in_names() -> None:
    tiles = [image(f"{x:06d}/{x:06d}_000100/{x:06d}_000100_{z:06d}.tif") for x in (0, 900) for z in (0, 20)]
    rows = place(*tiles).rows
    assert [(r.tile.stage_x_um, r.tile.stage_y_um, r.tile.stage_z_um, r.tile.z) for r in rows] == [
        (0, 10, 0, 0), (0, 10, 2, 1), (90, 10, 0, 0), (90, 10, 2, 1),
    ]  # fmt: skip
