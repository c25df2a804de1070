"""kill -9 at any moment loses nothing: the rerun's result is identical to an undisturbed one.

Every stage that writes a volume or a folder of tiles is killed 20 times, at random points of its work, again and again on
the same output until that is finished. The seeds fix the points as shares of an undisturbed run's time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from kill_harness import Launcher, kill_and_compare
from make_phantoms import (
    Stage,
    make_section_stack,
    make_tile_grid,
    scene_3d,
    write_ome_tiff,
    write_sections,
    write_tiles_table,
)

KILLS = 20
Command = Callable[[Path], list[str]]


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with Launcher(tmp_path_factory.mktemp("launcher")) as warm:
        yield warm


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small inputs of all stages: stack.ome.tif, tiles/ with tiles.tsv, sections/."""
    folder = tmp_path_factory.mktemp("inputs")
    volume = np.stack([scene_3d("em", (16, 200, 200), seed) for seed in range(4)]).reshape(2, 2, 16, 200, 200)
    grey = (volume * 250).astype(np.uint8).transpose(0, 2, 1, 3, 4)
    sizes = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", (1.0, 0.5, 0.5), strict=True)}
    tifffile.imwrite(
        folder / "stack.ome.tif",
        grey,
        ome=True,
        photometric="minisblack",
        metadata={"axes": "TZCYX", **sizes},
    )
    stage = Stage(jitter_px=8)
    grid = make_tile_grid(
        rows=2, cols=2, size=160, overlap=0.25, sections=2, channels=("a", "b"), stage=stage
    )
    write_ome_tiff(grid, folder / "tiles")
    write_tiles_table(grid, folder / "tiles" / "tiles.tsv")
    write_sections(make_section_stack(count=4, size=144, max_shift_px=8), folder / "sections")
    return folder


@pytest.fixture(scope="module")
def volume(inputs: Path, launcher: Launcher) -> Path:
    """An OME-Zarr volume for the stages that read one."""
    tifffile.imwrite(
        inputs / "one.ome.tif",
        (scene_3d("em", (64, 256, 256), 5) * 250).astype(np.uint8),
        ome=True,
        photometric="minisblack",
        metadata={"axes": "ZYX", "PhysicalSizeZ": 0.04, "PhysicalSizeY": 0.008, "PhysicalSizeX": 0.008},
    )
    output = inputs / "volume.ome.zarr"
    code = launcher.run(["convert-image", "--input", str(inputs / "one.ome.tif"), "--output", str(output)])
    assert code == 0, launcher.log.read_text()
    return output


def convert_image(inputs: Path) -> Command:
    return lambda outputs: [
        "convert-image",
        *("--input", str(inputs / "stack.ome.tif"), "--output", str(outputs / "out"), "--verify"),
    ]


def correct_illumination(inputs: Path) -> Command:
    return lambda outputs: [
        "correct-illumination",
        *("--tiles", str(inputs / "tiles" / "tiles.tsv"), "--output", str(outputs / "out")),
        *("--tiles-output", str(outputs / "corrected.tsv")),
    ]


def stitch_tiles(inputs: Path) -> Command:
    return lambda outputs: [
        "stitch-tiles",
        *("--tiles", str(inputs / "tiles" / "tiles.tsv"), "--output", str(outputs / "out")),
        *("--positions-output", str(outputs / "positions.tsv")),
    ]


def align_sections(inputs: Path) -> Command:
    sections = [part for path in sorted((inputs / "sections").iterdir()) for part in ("--input", str(path))]
    return lambda outputs: [
        "align-sections",
        *(
            *sections,
            "--output",
            str(outputs / "out"),
            "--transforms-output",
            str(outputs / "transforms.tsv"),
        ),
        # A plane image says nothing of the distance of the sections; few pairs keep the test short.
        *("--voxel-size", "x=5nm,y=5nm,z=50nm", "--neighbours", "1"),
    ]


def precompute_volume(volume: Path) -> Command:
    return lambda outputs: [
        "precompute-volume",
        *("--input", str(volume), "--output", str(outputs / "out"), "--shard-mb", "0.5"),
    ]


def check(
    launcher: Launcher, command: Command, folder: Path, *, seed: int, workers: int = 1, kills: int = KILLS
) -> None:
    report = kill_and_compare(
        launcher,
        lambda outputs: [*command(outputs), "--workers", str(workers)],
        folder,
        kills=kills,
        seed=seed,
    )
    assert report.kills == kills
    assert report.tasks >= 3
    # The points spread over the work: most kills must have found a begun, unfinished output.
    assert report.mid_work >= 0.5 * kills


def test_convert_image_survives_kills(launcher: Launcher, inputs: Path, tmp_path: Path) -> None:
    check(launcher, convert_image(inputs), tmp_path, seed=1)


def test_correct_illumination_survives_kills(launcher: Launcher, inputs: Path, tmp_path: Path) -> None:
    check(launcher, correct_illumination(inputs), tmp_path, seed=2)


def test_stitch_tiles_survives_kills(launcher: Launcher, inputs: Path, tmp_path: Path) -> None:
    check(launcher, stitch_tiles(inputs), tmp_path, seed=3)


def test_align_sections_survives_kills(launcher: Launcher, inputs: Path, tmp_path: Path) -> None:
    check(launcher, align_sections(inputs), tmp_path, seed=4)


def test_precompute_volume_survives_kills(launcher: Launcher, volume: Path, tmp_path: Path) -> None:
    check(launcher, precompute_volume(volume), tmp_path, seed=5)


def test_workers_die_with_their_command_and_lose_nothing(
    launcher: Launcher, inputs: Path, tmp_path: Path
) -> None:
    check(launcher, convert_image(inputs), tmp_path, seed=6, workers=2, kills=4)
