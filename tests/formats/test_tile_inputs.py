"""Files, folders, archives and lists: which image files they mean."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from kbrain_core.errors import InputError, StageStopped
from kbrain_core.formats.tile_inputs import collect_tile_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "scan"
    for name in (
        "s2/t10.tif", "s2/t2.TIF", "s10/t1.ome.tif", "a.tif", "a (1).tif", "notes.docx", ".hidden.tif",
        "x_thumb_w1.tif", ".cache/b.tif", "vol.ome.zarr/0/c.png", "old-report.html", "old-report_files/map.png",
        "more.zip", "layout.tsv",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


WANTED = ["a.tif", "a (1).tif", "s2/t2.TIF", "s2/t10.tif", "s10/t1.ome.tif"]


def collect(*inputs: Path, extract_to: Path | None = None) -> tuple[list[Path], tuple[str, ...]]:
    found = collect_tile_files([str(p) for p in inputs], extract_to=extract_to, overwrite=False)
    return list(found.files), found.ignored


def test_folder_in_natural_order(folder: Path) -> None:
    files, ignored = collect(folder)
    assert files == [folder / name for name in WANTED]
    assert (
        len(ignored) == 2
        and "vol.ome.zarr" in ignored[0] + ignored[1]
        and "more.zip" in ignored[0] + ignored[1]
    )


def test_order_and_repetition_do_not_matter(folder: Path) -> None:
    whole = collect(folder)[0]
    assert collect(folder / "s10", folder / "a.tif", folder, folder / "s2", folder / "a.tif")[0] == whole


def test_list_file(folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "tiles.txt"
    listed.write_text(f"# tiles\n\nscan/s2\n{folder / 'a.tif'}\n", encoding="utf-8")
    assert collect(listed)[0] == [folder / "a.tif", folder / "s2/t2.TIF", folder / "s2/t10.tif"]
    listed.write_text("scan/none.tif\n")
    with pytest.raises(InputError, match=r"line 1: there is no 'scan/none\.tif'"):
        collect(listed)
    (tmp_path / "again.txt").write_text("tiles.txt\n")
    with pytest.raises(InputError, match="is a list itself"):
        collect(tmp_path / "again.txt")


def test_layouts_among_the_inputs(folder: Path, tmp_path: Path) -> None:
    fiji = tmp_path / "TileConfiguration.txt"
    fiji.write_text("dim = 2\na.tif; ; (0, 0)\n")
    found = collect_tile_files([str(folder), str(fiji)], extract_to=None, overwrite=False)
    assert found.layouts == (fiji,)


def test_named_file_may_have_any_ending(tmp_path: Path) -> None:
    (tmp_path / "dataset_1.dat").write_bytes(b"x")
    assert collect(tmp_path / "dataset_1.dat")[0] == [tmp_path / "dataset_1.dat"]


def test_links_keep_their_names(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links/r1_c1.tif").symlink_to(folder / "a.tif")
    assert collect(tmp_path / "links")[0] == [tmp_path / "links/r1_c1.tif"]


def test_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("tiles/t1.tif", b"1")
        archive.writestr("tiles/readme.md", b"2")
    with pytest.raises(InputError, match="is an archive: pass --extract-to"):
        collect(tmp_path / "s.zip")
    with pytest.raises(StageStopped, match=r"would be unpacked to '.*out' first"):
        collect_tile_files(
            [str(tmp_path / "s.zip")], extract_to=tmp_path / "out", overwrite=False, dry_run=True
        )
    assert not (tmp_path / "out").exists()
    assert collect(tmp_path / "s.zip", extract_to=tmp_path / "out")[0] == [tmp_path / "out/s/tiles/t1.tif"]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No image is in"):
        collect(tmp_path)
    with pytest.raises(InputError, match="There is no"):
        collect(tmp_path / "none")
    with pytest.raises(InputError, match="is a URL"):
        collect_tile_files(["https://example.org/a.tif"], extract_to=None, overwrite=False)
