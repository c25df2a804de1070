"""The stage correct-illumination: planted shading goes, rows and files come out right, bad input is refused in one line."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from make_phantoms import Camera, Defects, make_tile_grid, write_ome_tiff, write_tiles_table
from phantom_tiles import TileGrid

from kbrain_core.engine import Job
from kbrain_core.errors import InputError, OutputExistsError
from kbrain_core.formats.readers import read_tile
from kbrain_core.formats.tables import Tile, read_tiles, write_tiles
from kbrain_core.formats.tile_files import tile_file_names
from kbrain_core.numerics.illumination.flat_field import span_percent, thumbnail
from kbrain_core.numerics.illumination.tile_correction import PRESETS
from kbrain_core.processing.correct_illumination import IlluminationResult, correct_illumination
from kbrain_core.stage import Part, RunOptions

ONE = RunOptions(workers=1)
DARK = Camera().dark * Camera().white


@pytest.fixture(scope="module")
def grid() -> TileGrid:
    """Nuclei through a vignette of 35 %, with a blank and a missing tile."""
    defects = Defects(blank=((0, 1, 1),), missing=((0, 0, 0),))
    return make_tile_grid(rows=4, cols=4, size=256, overlap=0.25, kind="nuclei", defects=defects)


@pytest.fixture(scope="module")
def tiles(grid: TileGrid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    write_ome_tiff(grid, folder)
    write_tiles_table(grid, folder / "tiles.tsv")
    *rows, last = read_tiles(folder / "tiles.tsv")
    write_tiles(folder / "tiles.tsv", [*rows, replace(last, status="excluded")])  # as people do it
    return folder / "tiles.tsv"


def run(tiles: Path, out: Path, **options: object) -> IlluminationResult:
    """Run the stage; the source folder is given because the table may lie elsewhere."""
    options = {"tiles_folder": tiles.parent, "run": ONE, **options}
    return correct_illumination(tiles, out / "corrected", out / "corrected.tsv", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def corrected(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, IlluminationResult]:
    out = tmp_path_factory.mktemp("out")
    fields = {"flat_field_output": out / "flat.ome.tif", "dark_output": out / "dark.ome.tif"}
    return out, run(tiles, out, **fields)


def test_planted_vignette_goes(grid: TileGrid, corrected: tuple[Path, IlluminationResult]) -> None:
    out, result = corrected
    flat = tifffile.imread(out / "flat.ome.tif")
    smooth = Camera(dust=0).flat_field((256, 256), 0)
    assert span_percent(thumbnail(flat) / thumbnail(smooth)) < 2.0  # the project's own limit
    assert flat.mean() == pytest.approx(1, abs=1e-4)
    assert result.passed
    assert result.shading_percent == pytest.approx(38.5, abs=2)
    assert result.residual_shading_percent is not None
    assert result.residual_shading_percent < 2.0
    assert result.dark_levels[0] == pytest.approx(DARK, abs=0.1)  # from the blank tile
    assert np.ptp(tifffile.imread(out / "dark.ome.tif")) == 0


def test_background_of_corrected_tiles_is_even(corrected: tuple[Path, IlluminationResult]) -> None:
    out, _ = corrected
    rows = [tile for tile in read_tiles(out / "corrected.tsv") if tile.status == "ok"]
    stack = np.stack([read_tile(tile, out)[0] for tile in rows])
    background = np.median(stack, axis=0).reshape(4, 64, 4, 64).mean(axis=(1, 3))
    # Whole grey values around a background of 12: their median over 13 tiles is good to a quarter of one, 2 %; before
    # correction the corners are 38 % darker than the middle.
    assert span_percent(background) < 6


def test_rows_keep_their_place_and_get_new_files(
    tiles: Path, corrected: tuple[Path, IlluminationResult]
) -> None:
    out, result = corrected
    before, after = read_tiles(tiles), read_tiles(out / "corrected.tsv")
    assert len(before) == len(after)
    for old, new in zip(before, after):
        if old.status in ("ok", "blank"):
            assert new.name == f"corrected/{old.name}"
            assert replace(new, name=old.name, sha256=old.sha256) == old
            pixels = read_tile(new, out)
            assert pixels.dtype == np.dtype(old.dtype)
            assert pixels.shape == (1, 256, 256)
        else:
            assert new == old
    assert (result.tiles_corrected, result.tiles_carried) == (14, 1)


def test_files_keep_pixel_size_position_and_channel(corrected: tuple[Path, IlluminationResult]) -> None:
    out, _ = corrected
    tile = next(tile for tile in read_tiles(out / "corrected.tsv") if tile.status == "ok")
    with tifffile.TiffFile(out / tile.name) as file:
        metadata = file.ome_metadata
    assert metadata is not None
    assert f'PhysicalSizeX="{tile.pixel_x_um}"' in metadata
    assert f'PositionX="{tile.stage_x_um}"' in metadata
    assert f'Name="{tile.channel}"' in metadata


def test_report_and_summary_tell_what_was_done(corrected: tuple[Path, IlluminationResult]) -> None:
    out, _ = corrected
    text = (out / "corrected-report.md").read_text(encoding="utf-8")
    for name in ("flat-field", "profiles", "mosaic-before", "mosaic-after"):
        assert f"corrected-report_files/{name}.png" in text
        assert (out / "corrected-report_files" / f"{name}.png").stat().st_size > 500
    assert "**PASS**" in text
    summary = json.loads((out / "corrected-summary.json").read_text(encoding="utf-8"))
    assert summary["figures"]["clipped_high_fraction"] < 0.001


def test_two_workers_and_three_parts_give_the_same_files(
    tiles: Path, tmp_path: Path, corrected: tuple[Path, IlluminationResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kbrain_core.errors import StageStopped
    from kbrain_core.processing import correct_illumination as module

    monkeypatch.setattr(
        module, "_TASK_PIXELS", 5 * 256 * 256
    )  # three tasks, so that there is something to share
    for name, runs in {
        "workers": [RunOptions(workers=2)],
        "parts": [RunOptions(workers=1, part=Part(i, 3)) for i in (2, 3, 1)],
    }.items():
        for index, options in enumerate(runs):
            try:
                run(tiles, tmp_path / name, run=options)
            except StageStopped:
                assert index < len(runs) - 1
        _same_files(tmp_path / name, corrected[0])


def _same_files(one: Path, other: Path) -> None:
    names = sorted(path.name for path in (other / "corrected").glob("*.tif"))
    assert sorted(path.name for path in (one / "corrected").glob("*.tif")) == names
    for name in names:
        assert (one / "corrected" / name).read_bytes() == (other / "corrected" / name).read_bytes(), name
    assert (one / "corrected.tsv").read_bytes() == (other / "corrected.tsv").read_bytes()


def test_interrupted_run_is_finished(
    tiles: Path, tmp_path: Path, corrected: tuple[Path, IlluminationResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Job, "complete", stop)  # the last thing a job does: table and files are there already
        with pytest.raises(KeyboardInterrupt):
            run(tiles, tmp_path)
    first = tmp_path / "corrected" / "tile_z000_r00_c01.ome.tif"
    written = first.stat().st_mtime_ns
    run(tiles, tmp_path)
    assert first.stat().st_mtime_ns == written  # not done twice
    _same_files(tmp_path, corrected[0])
    run(tiles, tmp_path)  # complete: says so and gives the same figures


def test_table_inside_the_folder_makes_it_one_thing(
    tiles: Path, tmp_path: Path, corrected: tuple[Path, IlluminationResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As workflow systems want it: one folder that holds the files and their table."""
    folder = tmp_path / "corrected"

    def correct(**options: object) -> IlluminationResult:
        options = {"tiles_folder": tiles.parent, "run": ONE, **options}
        return correct_illumination(tiles, folder, folder / "tiles.tsv", **options)  # type: ignore[arg-type]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    folder.mkdir()  # an empty folder is made beforehand
    with monkeypatch.context() as patched:
        patched.setattr(Job, "complete", stop)
        with pytest.raises(KeyboardInterrupt):
            correct()
    first = folder / "tile_z000_r00_c01.ome.tif"
    written = first.stat().st_mtime_ns
    result = correct()
    assert first.stat().st_mtime_ns == written  # resumed
    assert not [warning for warning in result.warnings if "--tiles-folder" in warning]
    outside = {tile.sha256 for tile in read_tiles(corrected[0] / "corrected.tsv")}
    rows = read_tiles(folder / "tiles.tsv")
    assert {tile.sha256 for tile in rows} == outside
    assert all((folder / tile.name).is_file() for tile in rows if tile.status == "ok")
    assert "/" not in rows[0].name

    table = (folder / "tiles.tsv").read_bytes()
    (folder / "tiles.tsv").unlink()  # without its table the job is not complete
    assert correct().tiles_corrected == result.tiles_corrected
    assert first.stat().st_mtime_ns == written
    assert (folder / "tiles.tsv").read_bytes() == table
    (folder / "tiles.tsv").write_text("edited by hand")
    assert correct().tiles_corrected == result.tiles_corrected  # complete: the edited table stays
    assert (folder / "tiles.tsv").read_text() == "edited by hand"
    with pytest.raises(OutputExistsError, match="other options"):
        correct(preset="em")
    correct(preset="em", run=replace(ONE, overwrite=True))
    assert read_tiles(folder / "tiles.tsv")[0].name == rows[0].name


def test_stacks_lose_their_loss_with_depth(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    planes, rows = 12, []
    fall = np.exp(-0.05 * np.arange(planes))[:, None, None]
    for index in range(8):
        texture = rng.normal(1, 0.1, (planes, 96, 128))
        stack = (2000 * texture * fall).astype(np.uint16)
        tifffile.imwrite(tmp_path / f"s{index}.tif", stack, metadata={"axes": "ZYX"}, imagej=True)
        rows.append(
            Tile(
                name=f"s{index}.tif",
                row=0,
                col=index,
                width_px=128,
                height_px=96,
                depth_px=planes,
                dtype="uint16",
            )
        )
    write_tiles(tmp_path / "tiles.tsv", rows)
    # With as many bits as there are, 0 is the dark level: without it nothing tells light from offset here.
    result = run(tmp_path / "tiles.tsv", tmp_path, preset="confocal", dark_level=0.0)
    assert "loss with depth" in result.steps
    out = read_tile(read_tiles(tmp_path / "corrected.tsv")[3], tmp_path)
    means = out.mean(axis=(1, 2))
    assert out.shape == (planes, 96, 128)
    assert np.ptp(means) / means.mean() < 0.01  # it was 55 %
    assert (tmp_path / "corrected-report_files" / "depth.png").exists()


def test_light_sheet_takes_stripes_and_shows_them(tmp_path: Path) -> None:
    grid = _striped(tmp_path)
    result = run(tmp_path / "tiles.tsv", tmp_path, preset="light-sheet", dark="off", flat_field="off")
    assert result.steps == ("loss with depth", "stripes")
    rows = read_tiles(tmp_path / "corrected.tsv")
    before = np.std([np.median(read_tile(tile, tmp_path)[0], axis=1) for tile in grid], axis=1).mean()
    after = np.std([np.median(read_tile(tile, tmp_path)[0], axis=1) for tile in rows], axis=1).mean()
    assert after < 0.3 * before
    assert (tmp_path / "corrected-report_files" / "stripes-spectrum.png").exists()


def _striped(folder: Path) -> list[Tile]:
    rng = np.random.default_rng(0)
    rows = []
    for index in range(2):
        stripes = np.exp(rng.normal(0, 0.1, (256, 1)))
        image = (1000 * stripes * rng.normal(1, 0.05, (256, 256))).astype(np.uint16)
        tifffile.imwrite(folder / f"t{index}.tif", image)
        rows.append(Tile(name=f"t{index}.tif", width_px=256, height_px=256, depth_px=1, dtype="uint16"))
    write_tiles(folder / "tiles.tsv", rows)
    return rows


def test_sections_get_one_contrast_and_em_is_inverted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for z, (level, spread) in enumerate([(90, 10), (120, 20), (150, 30)]):
        for col in range(3):
            image = rng.normal(level, spread, (128, 128)).clip(0, 255).astype(np.uint8)
            tifffile.imwrite(tmp_path / f"z{z}_{col}.tif", image)
            rows.append(
                Tile(name=f"z{z}_{col}.tif", z=z, col=col, row=0, width_px=128, height_px=128, dtype="uint8")
            )
    write_tiles(tmp_path / "tiles.tsv", rows)
    run(tmp_path / "tiles.tsv", tmp_path, preset="em", invert="on", flat_field="off")
    for z in range(3):
        tile = next(tile for tile in read_tiles(tmp_path / "corrected.tsv") if tile.z == z)
        pixels = read_tile(tile, tmp_path)
        assert np.median(pixels) == pytest.approx(
            255 - 120, abs=2
        )  # a grey value of the dullest section, stretched by 2
        assert pixels.std() == pytest.approx(20, abs=1.5)


def test_given_flat_field_and_dark(tiles: Path, grid: TileGrid, tmp_path: Path) -> None:
    flat = grid.flat_field.astype(np.float32)
    tifffile.imwrite(
        tmp_path / "flat.tif", np.rint(1000 * flat + DARK).astype(np.uint16)
    )  # a raw image: offset included
    tifffile.imwrite(
        tmp_path / "dark.tif", np.full((4, 256, 256), DARK, np.float32), photometric="minisblack"
    )
    options = {"flat_field_input": tmp_path / "flat.tif", "dark_input": tmp_path / "dark.tif"}
    fields = {"flat_field_output": tmp_path / "used.ome.tif"}
    result = run(tiles, tmp_path, preset="none", **options, **fields)
    assert result.steps == ("dark level", "flat field")
    used = tifffile.imread(tmp_path / "used.ome.tif")
    assert np.abs(used / (flat / flat.mean()) - 1).max() < 2e-3  # rounded to a thousandth
    again = run(tiles, tmp_path / "again", preset="none", flat_field_input=tmp_path / "used.ome.tif")
    assert again.shading_percent == pytest.approx(result.shading_percent, rel=1e-3)


def test_few_tiles_warn_and_are_passed_through(tmp_path: Path) -> None:
    _striped(tmp_path)
    result = run(tmp_path / "tiles.tsv", tmp_path)
    assert not result.passed
    assert any("at least 6 are needed" in warning for warning in result.warnings)
    tile = read_tiles(tmp_path / "corrected.tsv")[0]
    assert np.array_equal(read_tile(tile, tmp_path)[0], tifffile.imread(tmp_path / "t0.tif"))
    with pytest.raises(InputError, match=r"at least 6 are needed.*--flat-field-input"):
        run(tmp_path / "tiles.tsv", tmp_path / "b", flat_field="on")


def test_clahe_says_never_before_quantification(tmp_path: Path) -> None:
    _striped(tmp_path)
    result = run(tmp_path / "tiles.tsv", tmp_path, preset="none", clahe=True)
    assert any("never measure" in warning for warning in result.warnings)
    assert "never before quantification" in " ".join((correct_illumination.__doc__ or "").split())


def test_docstring_tells_the_presets_as_they_are() -> None:
    text = re.sub(r" \(only[^)]*\)", "", " ".join((correct_illumination.__doc__ or "").split()))
    for name, steps in PRESETS.items():
        assert f"{name}: {', '.join(steps.names()) or 'nothing'}." in text


def test_the_preset_none_hands_tiles_on_as_they_are(tmp_path: Path) -> None:
    _striped(tmp_path)
    result = run(tmp_path / "tiles.tsv", tmp_path, preset="none")
    assert result.passed and result.steps == () and "as they were" in result.verdict
    for name, tile in zip(("t0.tif", "t1.tif"), read_tiles(tmp_path / "corrected.tsv"), strict=False):
        assert np.array_equal(read_tile(tile, tmp_path)[0], tifffile.imread(tmp_path / name))


def test_outlying_table_is_told(tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    result = correct_illumination(
        tiles,
        tmp_path / "corrected",
        tmp_path / "tables" / "corrected.tsv",
        preset="none",
        invert="on",
        run=ONE,
    )
    assert any("--tiles-folder" in warning for warning in result.warnings)
    tile = next(t for t in read_tiles(tmp_path / "tables" / "corrected.tsv") if t.status == "ok")
    assert read_tile(tile, tmp_path / "corrected").shape == (1, 256, 256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flat_field": "off", "flat_field_output": Path("x.tif")}, "leave one of them out"),
        ({"dark": "off", "dark_level": 3.0}, "leave one of them out"),
        ({"depth_loss": "on", "section_contrast": "on"}, "switch one of them off"),
        ({"dark_level": float("nan")}, "--dark-level is nan"),
        ({"stripe_sigma": -1.0}, "must be above 0"),
        ({"preset": "x-ray"}, "choose one of"),
    ],
)
def test_wrong_options_are_refused(
    tiles: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(tiles, tmp_path, **options)
    assert not (tmp_path / "corrected.tsv").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "excluded"}, "No tile in the table has the status ok"),
        ({"name": "gone.tif"}, "'gone.tif', which is not in"),
        ({"width_px": None}, "no size or type"),
        ({"width_px": 200}, "256 x 256"),
    ],
)
def test_wrong_tables_are_refused(
    tiles: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    rows = [replace(tile, **change) for tile in read_tiles(tiles) if tile.status == "ok"]  # type: ignore[arg-type]
    write_tiles(tmp_path / "tiles.tsv", rows)
    with pytest.raises(InputError, match=message):
        run(tmp_path / "tiles.tsv", tmp_path, tiles_folder=tiles.parent)
    assert not (tmp_path / "corrected.tsv").exists()


def test_background_needs_the_pixel_size(tmp_path: Path) -> None:
    _striped(tmp_path)
    with pytest.raises(InputError, match="no pixel size"):
        run(tmp_path / "tiles.tsv", tmp_path, background="on")


def test_truncated_tile_stops_with_its_name(tiles: Path, tmp_path: Path) -> None:
    rows = [tile for tile in read_tiles(tiles) if tile.status == "ok"]
    for tile in rows:
        (tmp_path / tile.name).write_bytes((tiles.parent / tile.name).read_bytes())
    broken = tmp_path / rows[3].name
    broken.write_bytes(broken.read_bytes()[:30000])
    write_tiles(tmp_path / "tiles.tsv", rows)
    with pytest.raises(InputError, match=rows[3].name):
        run(tmp_path / "tiles.tsv", tmp_path)
    assert not (tmp_path / "corrected.tsv").exists()


def test_given_images_are_checked(tiles: Path, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "small.tif", np.ones((10, 10), np.float32))
    with pytest.raises(InputError, match=r"10 x 10 px and the tiles are 256 x 256"):
        run(tiles, tmp_path / "a", flat_field_input=tmp_path / "small.tif")
    tifffile.imwrite(tmp_path / "black.tif", np.zeros((256, 256), np.float32))
    with pytest.raises(InputError, match="not brighter than the dark level"):
        run(tiles, tmp_path / "b", flat_field_input=tmp_path / "black.tif")


def test_other_outputs_are_not_replaced(tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "corrected").mkdir()
    (tmp_path / "corrected" / "mine.txt").write_text("keep")
    with pytest.raises(OutputExistsError):
        run(tiles, tmp_path)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "corrected.tsv").write_text("mine")
    with pytest.raises(OutputExistsError):
        run(tiles, tmp_path / "t")


def test_changed_source_is_told(tmp_path: Path) -> None:
    _striped(tmp_path)
    run(tmp_path / "tiles.tsv", tmp_path, preset="none", invert="on")
    tifffile.imwrite(tmp_path / "t0.tif", np.ones((256, 256), np.uint16))
    with pytest.raises(InputError, match="changed since"):
        run(tmp_path / "tiles.tsv", tmp_path, preset="none", invert="on")


def test_file_names_are_safe_and_different() -> None:
    tiles = [
        Tile(name="a/b c.ome.tif"),
        Tile(name="a/b_c.tif"),
        Tile(name="A__B_C.png"),
        Tile(name="many.czi", series=1),
        Tile(name="many.czi", series=1, page=3),
        Tile(name="x" * 300 + ".tif"),
        Tile(name="../../etc/passwd"),
        Tile(name="漢.tif"),
    ]
    names = tile_file_names(tiles)
    assert len({name.lower() for name in names}) == len(tiles)
    assert all("/" not in name and not name.startswith(".") and len(name) < 150 for name in names)
    assert names[0] == "a__b_c.ome.tif"
    assert names[3:5] == ["many_s1_p0.ome.tif", "many_s1_p3.ome.tif"]


def test_real_array_tomography(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "array-tomography" / "tiles"
    rows = []
    for z, section in enumerate("AB"):
        for index in range(8):
            name = f"{section}1_{index}_2.tif"
            rows.append(
                Tile(
                    name=name, z=z, row=0, col=index, width_px=1376, height_px=1040, depth_px=1, dtype="uint8"
                )
            )
    write_tiles(tmp_path / "tiles.tsv", rows)
    result = run(tmp_path / "tiles.tsv", tmp_path, tiles_folder=folder)
    assert result.tiles_corrected == 16
    # Sixteen tiles of eight places do not prove a correction of these faint, patchy fields, and the verdict says so.
    assert result.residual_shading_percent is None or result.residual_shading_percent > 2 or result.passed
    one = read_tile(read_tiles(tmp_path / "corrected.tsv")[0], tmp_path)[0]
    assert np.corrcoef(one.ravel(), tifffile.imread(folder / rows[0].name).ravel())[0, 1] > 0.9
