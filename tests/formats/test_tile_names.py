"""File names: every instrument's scheme, natural order, and patterns that people write."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbrain_core.errors import InputError
from kbrain_core.formats.tile_names import (
    NameFields,
    compile_pattern,
    match_pattern,
    name_stem,
    natural_key,
    parse_names,
    section_numbers,
)

F = NameFields
# Two names of a set each, and the fields they must give.
SCHEMES = {
    "labelled": (
        ["tile_r01_c02_z003_ch1.tif", "tile_r02_c02_z003_ch2.tif"],
        [F(row=1, col=2, z=3, channel="1"), F(row=2, col=2, z=3, channel="2")],
    ),
    "maps": (
        ["Tile_001-002-000000_0-000.tif", "Tile_001-003-000000_0-000.tif"],
        [F(row=1, col=2, z=0, channel="0"), F(row=1, col=3, z=0, channel="0")],
    ),
    "atlas": (
        ["Tile_r1-c1_S_017_1234.tif", "Tile_r1-c2_S_018_1250.tif"],
        [F(row=1, col=1, z=17), F(row=1, col=2, z=18)],
    ),
    "two numbers": (["img_000_001.tif", "img_001_001.tif", "img_000_000.tif", "img_001_000.tif"],
                    [F(row=0, col=1), F(row=1, col=1), F(row=0, col=0), F(row=1, col=0)]),
    "one number": (["slab0009.png", "slab0010.png"], [F(z=9), F(z=10)]),
    "micromanager 2": (
        ["img_channel000_position002_time000000000_z001.tif", "img_channel001_position002_time000000000_z001.tif"],
        [F(channel="0", tile=2, z=1), F(channel="1", tile=2, z=1)],
    ),
    "micromanager grid": (
        ["Pos0_1_img_channel000_position001_time000_z000.tif", "Pos0_2_img_channel000_position002_time000_z000.tif"],
        [F(channel="0", col=0, row=1, z=0), F(channel="0", col=0, row=2, z=0)],
    ),
    "micromanager folders": (
        ["1-Pos_003_001/img_000000000_DAPI_000.tif", "1-Pos_003_002/img_000000000_Cy5_000.tif"],
        [F(col=3, row=1, channel="DAPI", z=0), F(col=3, row=2, channel="Cy5", z=0)],
    ),
    "mm stack": (["x_MMStack_1-Pos_000_001.ome.tif", "x_MMStack_1-Pos_002_001.ome.tif"],
                 [F(col=0, row=1), F(col=2, row=1)]),
    "cellvoyager": (
        ["AP_B02_T0001F005L01A01Z03C01.png", "AP_B03_T0002F005L01A01Z03C02.png"],
        [F(section="B02", t=1, tile=5, z=3, channel="1"), F(section="B03", t=2, tile=5, z=3, channel="2")],
    ),
    "phenix": (
        ["Images/r01c02f03p04-ch1sk1fk1fl1.tiff", "Images/r01c02f04p04-ch1sk1fk1fl1.tiff"],
        [F(section="r01c02", tile=3, z=4, channel="1"), F(section="r01c02", tile=4, z=4, channel="1")],
    ),
    "zen": (["brain_m01_ORG.tif", "brain_m12_ORG.tif"], [F(tile=1), F(tile=12)]),
    "zen long": (
        ["b_b0t0z3c1x0-1024y0-1024m4_ORG.tif", "b_b0t0z3c1x0-1024y0-1024m5_ORG.tif"],
        [F(z=3, channel="1", tile=4), F(z=3, channel="1", tile=5)],
    ),
    "imagexpress": (
        ["Plate_A01_s1_w1.TIF", "Plate_A01_s2_w10E9B5B2C-0000-1111-2222-333344445555.TIF"],
        [F(section="A01", tile=1, channel="1"), F(section="A01", tile=2, channel="1")],
    ),
    "lavision": (
        ["12-00-00_UltraII[00 x 01]_C00_xyz-Table Z0007.ome.tif", "12-00-00_UltraII[01 x 01]_C01_xyz-Table Z0007.ome.tif"],
        [F(row=0, col=1, channel="0", z=7), F(row=1, col=1, channel="1", z=7)],
    ),
    "leica": (
        ["image--X00--Y01--C00--Z02.tif", "image--X01--Y01--C01--Z02.tif"],
        [F(col=0, row=1, channel="0", z=2), F(col=1, row=1, channel="1", z=2)],
    ),
    "nikon": (["brainxy01z05c1.tif", "brainxy02z05c2.tif"], [F(tile=1, z=5, channel="1"), F(tile=2, z=5, channel="2")]),
    "sbemimage": (
        ["stack_g0000_t0012_s00345.tif", "stack_g0001_t0012_s00345.tif"],
        [F(view="0", tile=12, z=345), F(view="1", tile=12, z=345)],
    ),
    "terastitcher": (
        ["003340/003340_002500/003340_002500_000020.tif", "003340/003340_005000/003340_005000_000020.tif"],
        [F(x_um=334.0, y_um=250.0, z_um=2.0), F(x_um=334.0, y_um=500.0, z_um=2.0)],
    ),
    "section and number": (["A1_7_2.tif", "B1_10_2.tif"], [F(section="A1", tile=7), F(section="B1", tile=10)]),
    "folders": (
        ["section_002/tile_r0_c1.tif", "section_010/tile_r0_c1.tif"],
        [F(z=2, row=0, col=1), F(z=10, row=0, col=1)],
    ),
    "channel by name": (
        ["t_r0_c1_chmembranes.tif", "t_r0_c1_chnuclei.tif"],
        [F(row=0, col=1, channel="membranes"), F(row=0, col=1, channel="nuclei")],
    ),
    "dyes": (["r0_c1_DAPI.tif", "r0_c1_GFP.tif"], [F(row=0, col=1, channel="DAPI"), F(row=0, col=1, channel="GFP")]),
    "magnification is no column": (["20x_1.tif", "20x_2.tif"], [F(z=1), F(z=2)]),
    "clock is no section": (
        ["r01_c01_20240101120000.tif", "r01_c02_20240101120010.tif"],
        [F(row=1, col=1), F(row=1, col=2)],
    ),
    "no numbers": (["left.tif", "right.tif"], [F(), F()]),
}  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scheme(scheme: str) -> None:
    names, expected = SCHEMES[scheme]
    assert list(parse_names(names).fields) == expected


def test_single_number_counts_tiles_when_there_is_a_grid() -> None:
    assert parse_names(["img1.tif", "img2.tif"], number_is="tile").fields == (
        NameFields(tile=1),
        NameFields(tile=2),
    )


def test_hostile_names_are_read_in_no_time() -> None:
    names = [
        "_" * 5000,
        "a" * 4000 + "1.tif",
        "9" * 4000 + ".tif",
        "r" + "1" * 3000 + "_c2.tif",
        "",
        "\u0663.tif",
    ]
    started = time.perf_counter()
    assert len(parse_names(names).fields) == len(names)
    # quadratic matching of 1,000 characters takes about 0.02 s a name; 3 s only on a stalled machine
    assert time.perf_counter() - started < 3


@given(st.lists(st.text(max_size=30), max_size=30))
def test_any_names_are_read(names: list[str]) -> None:
    assert len(parse_names(names).fields) == len(names)


@given(st.lists(st.text(alphabet="ab01_9", max_size=8), max_size=12), st.randoms(use_true_random=False))
def test_natural_order_does_not_depend_on_the_input_order(names: list[str], rng: random.Random) -> None:
    shuffled = rng.sample(names, len(names))
    assert sorted(shuffled, key=natural_key) == sorted(names, key=natural_key)


@given(st.integers(0, 10**30), st.integers(0, 10**30), st.integers(0, 3))
def test_natural_order_counts(one: int, other: int, zeros: int) -> None:
    first, second = natural_key(f"tile{'0' * zeros}{one}.tif"), natural_key(f"tile{other}.tif")
    if one != other:
        assert (first < second) == (one < other)


def test_natural_order_puts_words_before_longer_words() -> None:
    assert sorted(["t10", "t2", "T1", "t1b", "t1", "t"], key=natural_key) == [
        "t",
        "T1",
        "t1",
        "t1b",
        "t2",
        "t10",
    ]


def test_section_numbers() -> None:
    assert section_numbers(["B1", "A10", "A2", "A10"]) == {"A2": 0, "A10": 1, "B1": 2}


def test_name_stem() -> None:
    assert [name_stem(n) for n in ("a/b.ome.tif", "a.b/c.TIFF", "r1.5", "x")] == ["a/b", "a.b/c", "r1.5", "x"]


@given(
    st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 999), st.sampled_from(["DAPI", "Cy5", "x y"])
)
def test_pattern_round_trip(row: int, col: int, z: int, channel: str) -> None:
    text = r"s(?P<z>\d+)/(?P<row>\d+)-(?P<col>\d+)_(?P<channel>[^.]+)\.tif$"
    name = f"s{z:03d}/{row}-{col}_{channel}.tif"
    pattern = compile_pattern(text)
    match = pattern.search(name)
    assert match is not None
    assert (int(match["z"]), int(match["row"]), int(match["col"]), match["channel"]) == (z, row, col, channel)


def test_pattern_fields() -> None:
    pattern = compile_pattern(r"(?P<section>[A-Z]\d)_x(?P<x_um>[\d.]+)y(?P<y_um>[\d.]+)")
    found = match_pattern(pattern, ["A1_x1.5y20.tif", "readme.tif"])
    assert found == (NameFields(section="A1", x_um=1.5, y_um=20.0), None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("(", "no regular expression"),
        (r"\d+", "no named group"),
        (r"(?P<rwo>\d+)", "group rwo"),
        (r"(?P<row>\d+)", "needs col too"),
        (r"(?P<col>\d+)", "needs row too"),
        (r"(?P<x_um>\d+)", "needs y_um too"),
        ("(?P<z>a)" + "b" * 600, "at most 500"),
    ],
)
def test_bad_pattern(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        compile_pattern(text)


def test_pattern_that_fits_nothing_or_no_number() -> None:
    with pytest.raises(InputError, match=r"matches no tile: the first name is 'a\.tif'"):
        match_pattern(compile_pattern(r"(?P<z>\d+)"), ["a.tif"])
    with pytest.raises(InputError, match="z must be a number"):
        match_pattern(compile_pattern(r"(?P<z>[a-z])"), ["a.tif"])


def test_runaway_pattern_is_stopped() -> None:
    pattern = compile_pattern(r"(?P<z>(a+)+)$")
    with pytest.raises(InputError, match=r"takes more than 0.5 s"):
        match_pattern(pattern, ["a" * 60 + "!"], seconds=0.5)
