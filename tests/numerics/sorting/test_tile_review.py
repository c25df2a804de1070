"""Copies, gaps, tiles at one place, and the tiles to image again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kbrain_core.errors import InputError
from kbrain_core.formats.tables import Tile
from kbrain_core.numerics.sorting.tile_measurement import MeasuredTile
from kbrain_core.numerics.sorting.tile_placing import PlacedTile
from kbrain_core.numerics.sorting.tile_review import (
    find_problems,
    mark_tiles,
    missing_rows,
    nominal_overlap,
    set_warnings,
    sorted_rows,
    with_neighbour_positions,
)


def row(r: int | None, c: int | None, *, blank: bool = False, **facts: object) -> PlacedTile:
    tile = Tile(
        name=f"t_z0_r{r}_c{c}.tif", row=r, col=c, width_px=10, height_px=10, depth_px=1, dtype="uint8", pixel_x_um=1.0,
        pixel_y_um=1.0, sha256=f"{r} {c} {sorted(facts.items(), key=str)}", focus_score=0.5, signal_to_noise=5.0,
        saturated_fraction=0.0,
    )  # fmt: skip
    tile = replace(tile, **facts)  # type: ignore[arg-type]
    return PlacedTile(tile, MeasuredTile(path=tile.name, is_blank=blank, sha256=tile.sha256))


GRID = [row(r, c) for r in range(3) for c in range(4)]


def kinds(rows: list[PlacedTile]) -> dict[str, tuple[str, bool]]:
    problems = find_problems(rows, max_saturated_fraction=0.01, focus_mads=3.5)
    return {p.row.tile.name: (p.kind, p.again) for p in problems}


def test_a_clean_scan_has_no_problem() -> None:
    rows = mark_tiles(GRID, [])
    assert {r.tile.status for r in rows} == {"ok"}
    assert missing_rows(rows, None) == []
    assert kinds(rows) == {}


def test_copies_keep_the_first_by_natural_name() -> None:
    copy = row(2, 4, name="t_z0_r0_c0 (1).tif", sha256=GRID[0].tile.sha256)
    rows = mark_tiles([copy, *GRID], [])
    assert (rows[0].tile.status, rows[1].tile.status) == ("duplicate", "ok")
    assert rows[0].reason == "same pixels as t_z0_r0_c0.tif"
    assert kinds(rows) == {"t_z0_r0_c0 (1).tif": ("duplicate", True)}  # its own place has no image
    spare = row(0, 0, name="t_z0_r0_c0_copy.tif", sha256=GRID[0].tile.sha256)
    assert kinds(mark_tiles([*GRID, spare], [])) == {"t_z0_r0_c0_copy.tif": ("duplicate", False)}


def test_blank_tiles_are_no_copies_and_no_reason_to_image_again() -> None:
    blanks = [row(3, c, blank=True, sha256="same") for c in range(2)]
    rows = mark_tiles([*GRID, *blanks], [])
    assert [r.tile.status for r in rows[-2:]] == ["blank", "blank"]
    assert set(kinds(rows).values()) == {("blank", False)}


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (row(0, 0, name="b.tif"), r"'t_z0_r0_c0\.tif' and 'b\.tif' are at one place \(row 0, column 0, section z 0, chan"),
        (row(5, 5, name="b.tif", stage_x_um=1.0, stage_y_um=2.0), r"at one place \(x 1 um, y 2 um"),
        (row(None, None, name="b.tif"), "nothing says where each lies: pass --layout"),
    ],
)  # fmt: skip
def test_two_tiles_at_one_place(second: PlacedTile, says: str) -> None:
    first = {0: GRID[0], 5: row(4, 4, stage_x_um=1.0, stage_y_um=2.0), None: row(None, None)}[second.tile.row]
    with pytest.raises(InputError, match=says) as caught:
        mark_tiles([first, second], [])
    assert "\n" not in str(caught.value)
    assert mark_tiles([first, second], ["b.tif"])[1].tile.status == "excluded"


def test_other_channels_sections_and_times_are_other_places() -> None:
    rows = [row(0, 0, channel=ch, z=z, t=t) for ch in "ab" for z in (0, 1) for t in (0, 1)]
    assert {r.tile.status for r in mark_tiles(rows, [])} == {"ok"}


def test_exclude() -> None:
    rows = mark_tiles(GRID, ["t_z0_r0_*", "t_z0_r2_c3"])
    assert sum(r.tile.status == "excluded" for r in rows) == 5
    with pytest.raises(InputError, match=r"--exclude 'x\.tif' is no tile's name"):
        mark_tiles(GRID, ["x.tif"])
    with pytest.raises(InputError, match="No tile is left"):
        mark_tiles(GRID, ["*"])


def test_gaps_get_rows_with_the_place_of_their_neighbours() -> None:
    placed = [
        row(r, c, stage_x_um=c * 9.0, stage_y_um=r * 9.0 + c)
        for r in range(3)
        for c in range(4)
        if (r, c) != (1, 2)
    ]
    rows = with_neighbour_positions([*placed, *missing_rows(placed, None)])
    gap = rows[-1].tile
    assert (gap.name, gap.status, gap.row, gap.col) == ("missing_t0_z0_r1_c2", "missing", 1, 2)
    assert (gap.stage_x_um, gap.stage_y_um) == (
        18.0,
        10.0,
    )  # the median of column 2 and of row 1 (9, 10 and 12)


def test_a_section_that_is_missing() -> None:
    rows = [row(r, c, z=z) for z in (0, 1, 3, 4) for r in range(2) for c in range(2)]
    gaps = missing_rows(rows, None)
    assert {(g.tile.z, g.reason) for g in gaps} == {(2, "its whole section is missing")}
    assert len(gaps) == 4


def test_a_cell_of_few_sections_is_no_gap_of_the_others() -> None:
    rows = [row(0, c, z=z) for z in range(4) for c in range(3)] + [row(5, 0, z=0)]
    assert missing_rows(rows, None) == []


def test_a_given_grid_is_to_be_filled() -> None:
    rows = [row(0, 0), row(0, 1)]
    assert missing_rows(rows, None) == []
    assert [(g.tile.row, g.tile.col) for g in missing_rows(rows, (2, 2))] == [(1, 0), (1, 1)]


def test_quality_is_judged_within_a_channel() -> None:
    rows = [*GRID, *(row(r, c, channel="dim", focus_score=0.1) for r in range(3) for c in range(4))]
    assert kinds(rows) == {}
    blurred, full, faint = (
        row(3, 0, focus_score=0.2),
        row(3, 1, saturated_fraction=0.02),
        row(3, 2, signal_to_noise=1.0),
    )
    assert kinds([*rows, blurred, full, faint]) == {
        "t_z0_r3_c0.tif": ("out of focus", True),
        "t_z0_r3_c1.tif": ("saturated", True),
        "t_z0_r3_c2.tif": ("low signal", False),
    }


def test_mixed_sets_are_warned_of() -> None:
    rows = [row(0, 0), row(0, 1, width_px=12), row(0, 2, dtype="uint16"), row(0, 3, pixel_x_um=None)]
    warnings = set_warnings(rows)
    assert [text.split(":")[0] for text in warnings] == [
        "The tiles have 2 sizes",
        "The tiles have 2 pixel types",
        "The tiles have 2 pixel sizes",
        "The voxel size is not in the metadata",
    ]
    assert set_warnings(GRID) == []


@pytest.mark.parametrize(
    ("step_x", "step_y", "says"),
    [
        (8.0, 9.0, []),
        (-8.0, 9.0, ["Stage x falls where columns grow"]),
        (8.0, 11.0, ["Neighbours in y do not overlap"]),
    ],
)
def test_overlap(step_x: float, step_y: float, says: list[str]) -> None:
    rows = [row(r, c, stage_x_um=c * step_x, stage_y_um=r * step_y) for r in range(3) for c in range(3)]
    assert nominal_overlap(rows) == (pytest.approx(1 - step_x / 10), pytest.approx(1 - step_y / 10))
    assert [text.split(" (")[0].split(":")[0] for text in set_warnings(rows)] == says


def test_rows_are_sorted_as_people_count() -> None:
    rows = [
        row(r, c, z=z, channel=ch) for ch in ("10", "2") for z in (10, 2) for r in (10, 2) for c in (1, 0)
    ]
    found = [(r.tile.channel, r.tile.z, r.tile.row, r.tile.col) for r in sorted_rows(rows)]
    assert found == [(ch, z, r, c) for ch in ("2", "10") for z in (2, 10) for r in (2, 10) for c in (0, 1)]
