"""What goes wrong at the microscope and on servers, told by the whole command: one clear line, and nothing half done.

Each stage's own tests look closer at its inputs; here every kind of trouble goes through `kbrain` as a person runs it.
"""

from __future__ import annotations

import dataclasses
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from make_phantoms import (
    Camera,
    Defects,
    Stage,
    make_tile_grid,
    write_named_tiff,
    write_ome_tiff,
    write_tiles_table,
)
from small_volumes import write_volume

from kbrain_core import cli, store
from kbrain_core.errors import EXIT_BAD_INPUT, EXIT_INCOMPLETE, EXIT_OUTPUT_EXISTS, EXIT_RESOURCES
from kbrain_core.formats.tables import read_tiles, write_table

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must fail, with one line on stderr, and leave nothing finished; returns the line."""

    def run(stage: str, *arguments: object, code: int = EXIT_BAD_INPUT, workers: int = 1) -> str:
        before = finished(tmp_path)
        capsys.readouterr()
        exit_code = cli.main([stage, *map(str, arguments), "--workers", str(workers)])
        lines = capsys.readouterr().err.strip().splitlines()
        assert exit_code == code, lines
        own = [line for line in lines if line.startswith(f"kbrain {stage}: ")]
        assert len(own) == 1 and lines[-1] == own[0], lines
        assert "unexpected" not in own[0] and "Traceback" not in "".join(lines)
        assert finished(tmp_path) == before
        return own[0]

    return run


def finished(folder: Path) -> set[str]:
    """Everything that looks like a finished result: complete volumes and folders, tables, pictures, reports."""
    ends = (".tsv", ".tif", ".tiff", ".html", "complete")
    return {str(path) for path in folder.rglob("*") if path.is_file() and path.name.endswith(ends)}


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """A table of 2 x 2 good tiles."""
    grid = make_tile_grid(rows=2, cols=2, size=128, overlap=0.25, stage=Stage(jitter_px=4))
    write_ome_tiff(grid, tmp_path / "scan")
    return write_tiles_table(grid, tmp_path / "scan" / "tiles.tsv")


def edit(table: Path, change: Callable[[int], dict[str, Any]]) -> None:
    """Change rows of a tiles table: `change(row number)` gives new values."""
    rows = read_tiles(table)
    new = [dataclasses.replace(row, **change(number)) for number, row in enumerate(rows)]
    write_table(table, new, type(rows[0]))


def stitch(table: Path, output: Path) -> tuple[object, ...]:
    return ("stitch-tiles", "--tiles", table, "--output", output)


# Tiles


def test_no_tiles(refused: Refused, tmp_path: Path, tiles: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in refused("sort-tiles", "--input", tmp_path / "empty", "--output", tmp_path / "t.tsv")
    edit(tiles, lambda _: {"status": "excluded"})
    assert "ok" in refused(*stitch(tiles, tmp_path / "out"))
    refused(
        *(
            "correct-illumination",
            "--tiles",
            tiles,
            "--output",
            tmp_path / "c",
            "--tiles-output",
            tmp_path / "c.tsv",
        )
    )


def test_no_tile_can_be_read(refused: Refused, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"r0_c{number}.tif").write_bytes(b"II*\0" + os.urandom(200))
    line = refused("sort-tiles", "--input", tmp_path, "--output", tmp_path / "out" / "t.tsv")
    assert "read" in line


def test_pattern_without_a_needed_group(refused: Refused, tmp_path: Path) -> None:
    write_named_tiff(
        make_tile_grid(rows=1, cols=2, size=64, overlap=0.3, stage=Stage(jitter_px=1)), tmp_path / "scan"
    )
    line = refused(
        *("sort-tiles", "--input", tmp_path / "scan", "--output", tmp_path / "t.tsv"),
        *("--pattern", r"tile_z(?P<z>\d+)_r(?P<row>\d+)_c\d+\.tif"),
    )
    assert "col" in line


def test_two_tiles_at_one_place(refused: Refused, tmp_path: Path, tiles: Path) -> None:
    edit(
        tiles, lambda number: {"stage_x_um": 0.0, "stage_y_um": 0.0, "row": 0, "col": 0} if number < 2 else {}
    )
    line = refused(*stitch(tiles, tmp_path / "out"))
    assert "tile_z000_r00_c00" in line and "tile_z000_r00_c01" in line


def test_overlap_too_small_to_register(refused: Refused, tmp_path: Path) -> None:
    grid = make_tile_grid(rows=2, cols=2, size=128, overlap=0.01, stage=Stage(jitter_px=0))
    write_ome_tiff(grid, tmp_path / "scan")
    table = write_tiles_table(grid, tmp_path / "scan" / "tiles.tsv")
    assert "overlap" in refused(*stitch(table, tmp_path / "out"))


def test_tiles_of_other_types(refused: Refused, tmp_path: Path, tiles: Path) -> None:
    odd = tiles.with_name("tile_z000_r01_c01.ome.tif")
    tifffile.imwrite(odd, tifffile.imread(odd).astype(np.uint16) * 200)
    edit(tiles, lambda number: {"dtype": "uint16"} if number == 3 else {})
    line = refused(*stitch(tiles, tmp_path / "out"))
    assert "uint8" in line and "uint16" in line


def test_a_tile_that_is_gone_or_damaged_since_it_was_sorted(
    refused: Refused, tmp_path: Path, tiles: Path
) -> None:
    damaged = tiles.with_name("tile_z000_r01_c01.ome.tif")
    damaged.write_bytes(damaged.read_bytes()[:4000])
    assert damaged.name in refused(*stitch(tiles, tmp_path / "out"))
    damaged.unlink()
    assert damaged.name in refused(*stitch(tiles, tmp_path / "other"))
    line = refused(
        *(
            "correct-illumination",
            "--tiles",
            tiles,
            "--output",
            tmp_path / "c",
            "--tiles-output",
            tmp_path / "c.tsv",
        )
    )
    assert damaged.name in line


def test_voxel_size_unknown_where_it_is_needed(refused: Refused, tmp_path: Path, tiles: Path) -> None:
    edit(tiles, lambda _: {"pixel_x_um": None, "pixel_y_um": None})
    assert "--voxel-size" in refused(*stitch(tiles, tmp_path / "out"))
    sizeless = write_volume(
        tmp_path / "v.ome.zarr", np.zeros((1, 1, 4, 8, 8), np.uint8), format="ome_zarr", voxel_size_nm=None
    )
    line = refused("precompute-volume", "--input", sizeless.uri, "--output", tmp_path / "p")
    assert "--voxel-size" in line


# Sections and volumes


def test_sections_of_other_types(refused: Refused, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"section_{number}.tif" for number in range(3)]
    for number, path in enumerate(paths):
        image = rng.integers(0, 255, (64, 64)).astype(np.uint16 if number == 2 else np.uint8)
        tifffile.imwrite(path, image, photometric="minisblack")
    inputs = [part for path in paths for part in ("--input", path)]
    line = refused("align-sections", *inputs, "--output", tmp_path / "out", "--voxel-size", "4nm")
    assert "uint8" in line and "uint16" in line


@pytest.mark.parametrize("dtype", ["uint8", "uint64"])
def test_labels_with_a_lossy_encoding(refused: Refused, tmp_path: Path, dtype: str) -> None:
    # Labels of 8 bits would fit a JPEG: nothing but the check stands between them and wrong IDs.
    labels = write_volume(
        tmp_path / "l.ome.zarr", np.ones((1, 1, 8, 8, 8), dtype), format="ome_zarr", kind="labels"
    )
    line = refused(
        "precompute-volume", "--input", labels.uri, "--output", tmp_path / "p", "--encoding", "jpeg"
    )
    assert "labels" in line.lower()


def test_16_bit_to_jpeg_without_a_window(refused: Refused, tmp_path: Path) -> None:
    volume = write_volume(
        tmp_path / "v.ome.zarr", np.full((1, 1, 8, 8, 8), 900, np.uint16), format="ome_zarr"
    )
    line = refused(
        "precompute-volume", "--input", volume.uri, "--output", tmp_path / "p", "--encoding", "jpeg"
    )
    assert "--window" in line


def test_ids_of_2_to_the_63_and_above(refused: Refused, tmp_path: Path) -> None:
    labels = np.ones((8, 16, 16), np.uint64)
    labels[3, 4, 5] = 2**63
    tifffile.imwrite(tmp_path / "labels.tif", labels, photometric="minisblack")
    line = refused(
        *(
            "convert-image",
            "--input",
            tmp_path / "labels.tif",
            "--output",
            tmp_path / "out",
            "--voxel-size",
            "8nm",
        ),
        *("--kind", "labels"),
    )
    assert str(2**63) in line


def test_an_unfinished_volume(refused: Refused, tmp_path: Path) -> None:
    volume = write_volume(tmp_path / "v.ome.zarr", np.ones((1, 1, 8, 8, 8), np.uint8), format="ome_zarr")
    (tmp_path / "v.ome.zarr" / ".kbrain").mkdir(exist_ok=True)
    (tmp_path / "v.ome.zarr" / ".kbrain" / "job.json").write_text("{}")
    for stage in ("precompute-volume", "align-sections", "view-volume"):
        refused(stage, "--input", volume.uri, "--output", tmp_path / stage, code=EXIT_INCOMPLETE)
    refused("export-image", "--input", volume.uri, "--output", tmp_path / "e.tif", code=EXIT_INCOMPLETE)


def test_parameters_that_are_no_numbers_or_out_of_bounds(
    refused: Refused, tmp_path: Path, tiles: Path
) -> None:
    out = ("--output", tmp_path / "out")
    assert "nan" in refused(*stitch(tiles, tmp_path / "out"), "--max-shift-um", "nan")
    assert "-3" in refused(*stitch(tiles, tmp_path / "out"), "--max-shift-um", "-3")
    assert "inf" in refused(*stitch(tiles, tmp_path / "out"), "--memory-gb", "inf")
    image = tiles.with_name("tile_z000_r00_c00.ome.tif")
    assert "-4nm" in refused("convert-image", "--input", image, *out, "--voxel-size", "x=-4nm")
    assert "z=5:2" in refused("convert-image", "--input", image, *out, "--bbox", "z=5:2")
    assert "101" in refused("precompute-volume", "--input", tmp_path, *out, "--quality", "101")
    assert "neighbours" in refused("align-sections", "--input", image, *out, "--neighbours", "0")
    refused(*stitch(tiles, tmp_path / "out"), workers=0)


# Outputs


def outputs_of_every_stage(tiles: Path, volume: str, output: Path) -> dict[str, tuple[object, ...]]:
    image = tiles.with_name("tile_z000_r00_c00.ome.tif")
    corrected = ("--tiles-output", output.with_name("corrected.tsv"))
    return {
        "sort-tiles": ("--input", tiles.parent, "--output", output),
        "convert-image": ("--input", image, "--output", output),
        "correct-illumination": ("--tiles", tiles, "--output", output, *corrected),
        "stitch-tiles": ("--tiles", tiles, "--output", output),
        "align-sections": ("--input", volume, "--output", output),
        "precompute-volume": ("--input", volume, "--output", output),
        "export-image": ("--input", volume, "--output", output),
        "view-volume": ("--input", volume, "--output", output),
    }


@pytest.fixture
def volume(tmp_path: Path) -> str:
    voxels = np.random.default_rng(0).integers(0, 255, (1, 1, 3, 64, 64)).astype(np.uint8)
    return write_volume(tmp_path / "v.ome.zarr", voxels, format="ome_zarr").uri


def test_an_output_that_exists(refused: Refused, tmp_path: Path, tiles: Path, volume: str) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    for stage, arguments in outputs_of_every_stage(tiles, volume, taken).items():
        assert "taken" in refused(stage, *arguments, code=EXIT_OUTPUT_EXISTS)
        # What somebody else wrote is not removed even when asked to overwrite.
        assert "taken" in refused(stage, *arguments, "--overwrite", code=EXIT_OUTPUT_EXISTS)
        assert (taken / "thesis.txt").read_text() == "mine"


def test_a_volume_larger_than_the_disk(
    refused: Refused, tmp_path: Path, tiles: Path, volume: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "free_bytes", lambda path: 100)
    for stage in (
        "convert-image",
        "correct-illumination",
        "stitch-tiles",
        "align-sections",
        "precompute-volume",
    ):
        output = tmp_path / f"out-{stage}"
        arguments = outputs_of_every_stage(tiles, volume, output)[stage]
        assert "disk" in refused(stage, *arguments, code=EXIT_RESOURCES)
        assert not output.exists()


def test_a_source_that_changed_since_the_job_was_begun(refused: Refused, tmp_path: Path, tiles: Path) -> None:
    out = tmp_path / "out"
    arguments = stitch(tiles, out)
    assert cli.main([*map(str, arguments), "--workers", "1"]) == 0
    (out / ".kbrain" / "complete").unlink()  # as if it had been killed just before
    image = tiles.with_name("tile_z000_r00_c00.ome.tif")
    pixels = tifffile.imread(image)
    tifffile.imwrite(image, pixels[::-1].copy(), photometric="minisblack")
    assert "changed" in refused(*arguments)
    assert "max_shift_um" in refused(*arguments, "--max-shift-um", "0.1", code=EXIT_OUTPUT_EXISTS)


# Archives


def tar_with(path: Path, name: str, **header: Any) -> Path:
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(name)
        for key, value in header.items():
            setattr(info, key, value)
        tar.addfile(info, io.BytesIO(b"x" * info.size))
    return path


def zip_with(path: Path, name: str, content: bytes, mode: int = 0o644) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo(name)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = mode << 16
        archive.writestr(info, content)
    return path


@pytest.mark.parametrize("kind", ["tar-outside", "zip-outside", "tar-link", "zip-link", "bomb"])
def test_hostile_archives(refused: Refused, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    made = {
        "tar-outside": lambda: tar_with(tmp_path / "a.tar", "../evil.tif", size=5),
        "zip-outside": lambda: zip_with(tmp_path / "a.zip", "../evil.tif", b"evil"),
        "tar-link": lambda: tar_with(
            tmp_path / "a.tar", "r0_c0.tif", type=tarfile.SYMTYPE, linkname=str(secret)
        ),
        "zip-link": lambda: zip_with(
            tmp_path / "a.zip", "r0_c0.tif", str(secret).encode(), stat.S_IFLNK | 0o777
        ),
        "bomb": lambda: zip_with(tmp_path / "a.zip", "r0_c0.tif", bytes(200_000_000)),
    }
    archive = made[kind]()
    unpacked = tmp_path / "unpacked"
    line = refused(
        *("sort-tiles", "--input", archive, "--output", tmp_path / "out" / "t.tsv", "--extract-to", unpacked)
    )
    assert archive.name in line
    assert not (tmp_path / "evil.tif").exists()
    assert not [path for path in unpacked.rglob("*") if path.is_symlink() or path.stat().st_size > 1_000_000]


# What looks wrong but is no error


def test_tiles_that_cannot_be_trusted_fail_the_verdict_not_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = make_tile_grid(
        rows=2, cols=2, size=128, overlap=0.25, kind="flat", stage=Stage(jitter_px=4), camera=Camera(dust=0),
        defects=Defects(),
    )  # fmt: skip
    write_ome_tiff(grid, tmp_path / "scan")
    table = write_tiles_table(grid, tmp_path / "scan" / "tiles.tsv")
    assert cli.main([*map(str, stitch(table, tmp_path / "out")), "--workers", "1"]) == 0
    assert "FAIL" in capsys.readouterr().err
