"""Make small data with planted truth, from a seed: the project's test data, demo sample and benchmark grids.

    python test-data/make_phantoms.py OUT --what sample
    python test-data/make_phantoms.py OUT --what tiles --kind nuclei --rows 10 --cols 10 --size 512 --overlap 0.15

Every folder gets a truth.json. As a module: `from make_phantoms import make_tile_grid, write_ome_tiff, score_tiles`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from phantom_files import (
    grid_truth,
    label_truth,
    stack_truth,
    stage_um,
    write_fiji,
    write_labels,
    write_named_tiff,
    write_ome_tiff,
    write_ome_tiff_mosaic,
    write_sections,
    write_tiles_table,
    write_truth,
    write_volume_tiff,
)
from phantom_labels import NOTABLE_IDS, LabelVolume, PlantedObject, make_label_volume
from phantom_scenes import scene_2d, scene_3d, scene_sections, subpixel_crop
from phantom_scores import (
    TileScore,
    global_section_errors,
    pair_error,
    score_tiles,
    section_errors,
)
from phantom_sections import SectionStack, make_section_stack, move_section, rigid_transform
from phantom_tiles import (
    Camera,
    Defects,
    PlantedTile,
    Stage,
    TileGrid,
    TileKey,
    make_tile_grid,
    scene_shape,
)

__all__ = [
    "NOTABLE_IDS", "Camera", "Defects", "LabelVolume", "PlantedObject", "PlantedTile", "SectionStack", "Stage",
    "TileGrid", "TileKey", "TileScore", "global_section_errors", "grid_truth", "label_truth", "make_label_volume",
    "make_sample", "make_section_stack", "make_tile_grid", "move_section", "pair_error", "rigid_transform", "scene_2d",
    "scene_3d", "scene_sections", "scene_shape", "score_tiles", "section_errors", "stack_truth", "stage_um",
    "subpixel_crop", "write_fiji", "write_labels", "write_named_tiff", "write_ome_tiff", "write_ome_tiff_mosaic",
    "write_sample", "write_sections", "write_tiles_table", "write_truth", "write_volume_tiff",
]  # fmt: skip

SAMPLE_SEED = 11
SAMPLE_SECTIONS, SAMPLE_ROWS, SAMPLE_COLS, SAMPLE_SIZE = 5, 3, 3, 256
SAMPLE_OVERLAP = 0.25
SAMPLE_STAGE = Stage(jitter_px=8.0, angle_deg=0.4)
SAMPLE_BLANK = ((2, 0, 2),)


def make_sample(seed: int = SAMPLE_SEED) -> tuple[TileGrid, np.ndarray]:
    """The demo: 5 serial sections of 3 x 3 tiles of 256^2 in two channels, each section turned and shifted.

    Returns
    -------
    grid : TileGrid
        `true_px` counts in the turned section.
    transforms : (5, 2, 3) ndarray
        From the aligned frame to the pixels of the turned section (`SectionStack.transforms`).
    """
    extent = scene_shape(SAMPLE_ROWS, SAMPLE_COLS, (SAMPLE_SIZE,) * 2, SAMPLE_OVERLAP, SAMPLE_STAGE)
    rng = np.random.default_rng((seed, 5))
    angles = rng.uniform(-5, 5, SAMPLE_SECTIONS)
    shifts = rng.uniform(-20, 20, (SAMPLE_SECTIONS, 2))
    transforms = np.stack([rigid_transform(a, s, extent) for a, s in zip(angles, shifts, strict=True)])
    # Rotated corners must find scene: 5 degrees of half the extent, and the shift.
    margin = int(0.5 * max(extent) * 0.1 + 20) + 8
    large = tuple(size + 2 * margin for size in extent)
    kinds = zip(
        scene_sections("em", large, SAMPLE_SECTIONS, seed, change=0.08),
        scene_sections("nuclei", large, SAMPLE_SECTIONS, seed + 100, change=0.08),
        strict=True,
    )
    scenes = [
        np.stack([move_section(scene, transform, extent, margin, fill=0.5) for scene in pair])[:, None]
        for pair, transform in zip(kinds, transforms, strict=True)
    ]
    grid = make_tile_grid(
        rows=SAMPLE_ROWS,
        cols=SAMPLE_COLS,
        size=SAMPLE_SIZE,
        overlap=SAMPLE_OVERLAP,
        sections=SAMPLE_SECTIONS,
        channels=("membranes", "nuclei"),
        stage=SAMPLE_STAGE,
        defects=Defects(blank=SAMPLE_BLANK),
        pixel_um=(0.1, 0.1, 0.1),
        scenes=scenes,
        seed=seed,
    )
    return grid, transforms


def write_sample(folder: Path) -> None:
    """The demo sample as OME-TIFF with stage positions, and its truth.json."""
    grid, transforms = make_sample()
    write_ome_tiff(grid, folder / "tiles", compression="zlib")
    write_truth(
        {**grid_truth(grid), "transforms": np.round(transforms, 7).tolist(), "seed": SAMPLE_SEED}, folder
    )


def main() -> None:
    """The command: see the module's first lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--what", choices=("sample", "tiles", "sections", "labels"), default="sample")
    parser.add_argument(
        "--layout", choices=("ome", "mosaic", "names", "fiji"), default="ome", help="files of tiles"
    )
    parser.add_argument("--kind", choices=("em", "nuclei", "flat"), default="em", help="scene")
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--cols", type=int, default=6)
    parser.add_argument("--size", type=int, default=1024, help="width and height of a tile or section in px")
    parser.add_argument("--depth", type=int, default=1, help="planes per tile")
    parser.add_argument("--overlap", type=float, default=0.12, help="fraction of a tile")
    parser.add_argument("--reported-overlap", type=float, help="what the stage positions say")
    parser.add_argument("--jitter-px", type=float, default=20.0, help="largest stage error")
    parser.add_argument("--channels", nargs="+", default=["0"])
    parser.add_argument("--sections", type=int, default=1, help="sections of tiles, or of a section stack")
    parser.add_argument("--blank", nargs="*", default=[], metavar="Z,ROW,COL", help="tiles without an image")
    parser.add_argument("--max-angle-deg", type=float, default=5.0, help="rotation of sections")
    parser.add_argument("--max-shift-px", type=float, default=30.0, help="shift of sections")
    parser.add_argument(
        "--field-size", type=int, help="image size of sections that are islands on a wafer, px"
    )
    parser.add_argument("--torn", nargs="*", type=int, default=[], help="section numbers")
    parser.add_argument("--objects", type=int, default=40, help="labelled objects")
    parser.add_argument("--dense", action="store_true", help="labels fill space")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    {"sample": _write_sample, "tiles": _write_tiles, "sections": _write_sections, "labels": _write_labels}[
        options.what
    ](options)


def _write_sample(options: argparse.Namespace) -> None:
    write_sample(options.out)


def _write_tiles(options: argparse.Namespace) -> None:
    grid = make_tile_grid(
        rows=options.rows,
        cols=options.cols,
        size=options.size,
        overlap=options.overlap,
        reported_overlap=options.reported_overlap,
        kind=options.kind,
        depth=options.depth,
        sections=options.sections,
        channels=options.channels,
        stage=Stage(jitter_px=options.jitter_px, jitter_z_px=3.0 if options.depth > 1 else 0.0),
        defects=Defects(blank=tuple(tuple(int(part) for part in tile.split(",")) for tile in options.blank)),
        seed=options.seed,
    )
    if options.layout == "ome":
        write_ome_tiff(grid, options.out)
        write_tiles_table(grid, options.out / "tiles.tsv")
    elif options.layout == "mosaic":
        write_ome_tiff_mosaic(grid, options.out / "mosaic.ome.tif")
    elif options.layout == "names":
        write_named_tiff(grid, options.out)
    else:
        write_fiji(grid, options.out)
    write_truth(grid_truth(grid), options.out)


def _write_sections(options: argparse.Namespace) -> None:
    stack = make_section_stack(
        count=max(2, options.sections),
        size=options.size,
        field_size=options.field_size,
        max_angle_deg=options.max_angle_deg,
        max_shift_px=options.max_shift_px,
        torn=tuple(options.torn),
        kind=options.kind,
        seed=options.seed,
    )
    write_sections(stack, options.out)
    write_truth(stack_truth(stack), options.out)


def _write_labels(options: argparse.Namespace) -> None:
    volume = make_label_volume(objects=options.objects, dense=options.dense, seed=options.seed)
    write_labels(volume, options.out)
    write_truth(label_truth(volume), options.out)


if __name__ == "__main__":
    main()
