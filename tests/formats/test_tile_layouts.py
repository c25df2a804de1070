"""Layout files: what each kind says, and one line for what none says."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kbrain_core.errors import InputError, KBrainError
from kbrain_core.formats.tile_layouts import LayoutEntry, find_side_files, read_layout

FIJI_2D = """# Define the number of dimensions we are working on
dim = 2

# Define the image coordinates
tile_01.tif; ; (0.0, 0.0)
sub\\tile_02.tif; ; (921.6, -3.25)
"""
FIJI_3D = "dim = 3\nmultiseries = true\nscan.czi; 0; (0.0, 0.0, 0.0)\nscan.czi; 1; (500.5, 0.0, 2.0)\n"
MONTAGE = """PixelSpacing = 656.139
ImageFile = LMM.mrc
Montage = 1

[T = SerialEM: Titan 25-Mar-21]

[ZValue = 0]
PieceCoordinates = 0 0 0
StagePosition = 919.141 849.945
DateTime = 25-Mar-21 17:00:46

[ZValue = 1]
PieceCoordinates = 0 3500 0

[MontSection = 0]
StagePosition = 1 2
"""
IMAGES = """PixelSpacing = 20
[Image = C:\\data\\a.tif]
PieceCoordinates = 0 3500 2
[Image = b.tif]
StagePosition = 10.5 -3.5
StageZ = 7
"""


def write(folder: Path, text: str, name: str = "layout.txt") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_fiji_2d(tmp_path: Path) -> None:
    layout = read_layout(write(tmp_path, FIJI_2D))
    assert layout.kind == "Fiji tile configuration (2D)"
    assert layout.entries == (
        LayoutEntry(file="tile_01.tif", x_px=0.0, y_px=0.0),
        LayoutEntry(file="sub/tile_02.tif", x_px=921.6, y_px=-3.25),
    )


def test_fiji_3d_with_series(tmp_path: Path) -> None:
    assert read_layout(write(tmp_path, FIJI_3D)).entries[1] == LayoutEntry(
        file="scan.czi", series=1, x_px=500.5, y_px=0.0, z_px=2.0
    )


def test_serialem_montage_keeps_y_because_mrc_rows_run_upwards(tmp_path: Path) -> None:
    first, second = read_layout(write(tmp_path, MONTAGE, "LMM.mrc.mdoc")).entries
    assert first == LayoutEntry(
        file="LMM.mrc", series=0, page=0, x_px=0, y_px=0, z=0, pixel_um=pytest.approx(0.0656139),
        acquired_at="25-Mar-21 17:00:46",
    )  # fmt: skip
    assert (second.page, second.x_px, second.y_px) == (1, 0, 3500)


def test_serialem_images_turn_y_round(tmp_path: Path) -> None:
    first, second = read_layout(write(tmp_path, IMAGES, "a.mdoc")).entries
    assert (first.file, first.x_px, first.y_px, first.z) == ("a.tif", 0, -3500, 2)
    assert (second.file, second.x_um, second.y_um, second.z_um) == ("b.tif", 10.5, -3.5, 7)


@pytest.mark.parametrize("delimiter", ["\t", ",", ";"])
def test_table(tmp_path: Path, delimiter: str) -> None:
    lines = [
        ["File", "x_px", "y_px", "z", "comment"],
        ["a.tif", "0", "5142", "2", "ok"],
        ["b.tif", "1.5", "-1e2", "", ""],
    ]
    path = write(tmp_path, "\ufeff" + "\r\n".join(delimiter.join(line) for line in lines), "l.csv")
    assert read_layout(path).entries == (
        LayoutEntry(file="a.tif", x_px=0.0, y_px=5142.0, z=2),
        LayoutEntry(file="b.tif", x_px=1.5, y_px=-100.0),
    )


def test_tiles_table_is_a_layout(tmp_path: Path) -> None:
    path = write(tmp_path, "name\tpage\tstage_x_um\tstage_y_um\trow\tcol\na.tif\t0\t1.5\t2.5\t3\t4\n")
    assert read_layout(path).entries == (LayoutEntry(file="a.tif", page=0, x_um=1.5, y_um=2.5, row=3, col=4),)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dim = 2\na.tif; ; (0.0, 0.0, 1.0)\n", "line 2: 3 coordinates, but dim = 2"),
        ("dim = 2\na.tif; ; (0.0, nan)\n", "line 2: 'nan' is not a finite number"),
        ("dim = 2\na.tif (0, 0)\n", "line 2: 'a.tif"),
        ("dim = 2\n", "lists no tiles"),
        ("file\tx_px\ty_px\na.tif\t1\tinf\n", "line 2, column y_px: 'inf'"),
        ("file\tz\na.tif\t1.5\n", "column z: '1.5' is not a whole number"),
        ("file\tz\n\t1\n", "the cell of the file is empty"),
        ("file\tz\n", "lists no tiles"),
        ("x_px\ty_px\n1\t2\n", "needs a column file"),
        ("", "needs a column file"),
        ("[ZValue = 0]\nPieceCoordinates = 1 2\n", "has 2 numbers, 3 are needed"),
        ("[ZValue = zero]\n", "'zero' is not a finite number"),
        ("a\0b", "is no text"),
    ],
)  # fmt: skip
def test_bad_layout_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says.replace("(", r"\(").replace(")", r"\)")) as caught:
        read_layout(write(tmp_path, text))
    assert "\n" not in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.binary(max_size=200) | st.sampled_from([FIJI_2D, FIJI_3D, MONTAGE, IMAGES]).map(str.encode),
    st.binary(max_size=8),
)
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes, more: bytes) -> None:
    path = tmp_path / "any.txt"
    path.write_bytes(data + more)
    with contextlib.suppress(KBrainError):
        assert read_layout(path).entries


def test_side_files(tmp_path: Path) -> None:
    for name in ("TileConfiguration.txt", "TileConfiguration.registered.txt"):
        write(tmp_path, FIJI_2D, name)
    # the nominal one: a registered one may hold tiles that went astray
    assert find_side_files([tmp_path]) == [tmp_path / "TileConfiguration.txt"]
    write(tmp_path, MONTAGE, "LMM.mrc.mdoc")
    assert find_side_files([tmp_path, tmp_path]) == [tmp_path / "LMM.mrc.mdoc"]
    write(tmp_path, "file\tz\na\t1\n", "layout.tsv")
    assert find_side_files([tmp_path]) == [tmp_path / "layout.tsv"]
