"""The tables that pass between stages."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbrain_core.errors import InputError
from kbrain_core.formats.tables import (
    Position,
    Tile,
    Transform,
    read_table,
    read_tiles,
    write_channel_tables,
    write_table,
    write_tiles,
)

names = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1).map(str.strip).filter(bool)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.builds(Position, name=names, x_px=numbers, y_px=numbers, row=st.none() | st.integers())))
def test_positions_survive_exactly(tmp_path_factory: pytest.TempPathFactory, rows: list[Position]) -> None:
    path = tmp_path_factory.mktemp("table") / "positions.tsv"
    write_table(path, rows, Position)
    assert read_table(path, Position) == rows


def test_channels_with_awkward_names_get_files_of_their_own(tmp_path: Path) -> None:
    channels = ["DAPI", "dapi", "a/b", "a:b", "..", "핵", "x" * 300]
    rows = [Tile(name=f"{i}.tif", channel=channel) for i, channel in enumerate(channels)]
    write_channel_tables(tmp_path, rows)
    found = {path.stem: read_tiles(path)[0].channel for path in tmp_path.iterdir()}
    assert found == {
        "DAPI": "DAPI", "dapi_2": "dapi", "a_b": "a/b", "a_b_2": "a:b", "channel": "..", "핵": "핵", "x" * 60: "x" * 300,
    }  # fmt: skip


def test_names_with_tabs_and_quotes_survive(tmp_path: Path) -> None:
    tiles = [
        Tile(name='a\t"b".tif', channel="DAPI, 405"),
        Tile(name="뇌.tif", status="blank", stage_x_um=-0.1),
    ]
    write_tiles(tmp_path / "tiles.tsv", tiles)
    assert read_tiles(tmp_path / "tiles.tsv") == tiles


def test_columns_in_any_order_with_further_ones(tmp_path: Path) -> None:
    path = tmp_path / "tiles.tsv"
    path.write_text("note\tz\tname\nmy favourite\t3\ta.tif\n", encoding="utf-8-sig")
    assert read_tiles(path) == [Tile(name="a.tif", z=3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x\n1\n", "column name is missing"),
        ("name\tz\na.tif\tthree\n", "line 2, column z: 'three' is not a number"),
        ("name\tstage_x_um\na.tif\tnan\n", "not a finite number"),
        ("name\tstatus\na.tif\tgood\n", "is not one of ok, missing"),
        ("name\tz\n\t1\n", "column name: the cell is empty"),
        ("name\n", "lists no tiles"),
    ],
)
def test_refuses_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "tiles.tsv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_tiles(path)
    assert "\n" not in str(caught.value)


def test_refuses_what_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "tiles.tsv"
    path.write_bytes(b"\xff\xfe\x00II*")
    with pytest.raises(InputError, match="cannot be read as a table"):
        read_tiles(path)
    with pytest.raises(InputError, match="cannot be read as a table"):
        read_table(tmp_path / "absent.tsv", Transform)
