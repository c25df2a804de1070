"""precompute-volume beside the least that the work can cost, and beside cloud-volume with igneous.

    python benchmarks/precompute.py            # 512 x 1024 x 1024 voxels of EM, 4 coarser levels, one worker
    python benchmarks/precompute.py --no-peer --encodings jpeg

The floor is a plain loop: read a block, average it level by level, encode 64^3 chunks, one file each; no shards, no markers,
no report, no check. It reads the same OME-Zarr volume, through tensorstore too. CPU seconds are those of the process tree.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from measure import KBRAIN, PROJECT, Table, Usage, import_cost, measure_call, measure_command

SHAPE = (512, 1024, 1024)
CHUNK = 64
MIPS = 4
# What a task of ours reads, and so the block of the floor.
BLOCK = 512
FLOOR_MODULES = ("numpy", "tensorstore", "numba", "simplejpeg", "imagecodecs")
OUR_MODULES = (
    *FLOOR_MODULES,
    "cyclopts",
    "jinja2",
    "matplotlib.figure",
    "kbrain_core.storage.precompute_volume_report",
)


def make_source(folder: str, shape: list[int]) -> dict[str, Any]:
    """EM of the asked size as a raw OME-Zarr volume (for ours and the floor) and as .npy (for the peer)."""
    import numpy as np

    fib25 = PROJECT.parent / "shared" / "data" / "fib25" / "image.tif"
    if fib25.exists():
        import tifffile

        tile, what = tifffile.imread(fib25), "FIB-SEM (fib25), mirrored"
    else:
        from scipy.ndimage import gaussian_filter

        rng = np.random.default_rng(0)
        tile, what = gaussian_filter(rng.normal(0, 1, (250, 250, 250)), 3), "smoothed noise"
        tile = rng.poisson(np.clip(128 + tile * 40 / tile.std(), 1, None)).clip(0, 255).astype(np.uint8)
    padding = [(0, max(0, size - have)) for size, have in zip(shape, tile.shape)]
    image = np.pad(tile, padding, mode="symmetric")[tuple(slice(size) for size in shape)]
    np.save(Path(folder) / "image.npy", image)
    write_ome_zarr(None, str(Path(folder) / "source.ome.zarr"), mips=0, encoding="raw", image=image)
    return {"what": what, "mean": float(image.mean())}


def write_ome_zarr(source: str | None, output: str, mips: int, encoding: str, image: Any = None) -> None:
    """Our writer alone: OME-Zarr, shards, all levels."""
    import numpy as np

    from kbrain_core.formats.volume import Volume, create_volume
    from kbrain_core.formats.volume_spec import VolumeSpec
    from kbrain_core.numerics.volumes.volume_writer import VolumeWriter
    from kbrain_core.stage import RunOptions

    volume = Volume.open(source) if source else None
    shape = volume.shape if volume else (1, 1, *image.shape)
    spec = VolumeSpec.plan(shape, np.uint8, voxel_size_nm=(10, 10, 10), mips=mips, encoding=encoding)  # type: ignore[arg-type]
    create_volume(output, spec)
    writer = VolumeWriter(output, spec)
    for box in writer.task_boxes():
        cut = box.slices(shape[2:])
        block = volume.read((slice(0, 1), slice(0, 1), *cut))[0, 0] if volume else image[cut]
        writer.write_block(0, 0, box, block)
    writer.finish_levels(None, RunOptions(workers=1))


def floor(source: str, output: str, encoding: str, mips: int) -> None:
    """The plain loop."""
    import imagecodecs
    import numba
    import numpy as np
    import simplejpeg
    import tensorstore

    @numba.njit(cache=True)
    def halve(block, half):  # type: ignore[no-untyped-def]
        for z in range(half.shape[0]):
            for y in range(half.shape[1]):
                a, b = block[2 * z, 2 * y], block[2 * z, 2 * y + 1]
                c, d = block[2 * z + 1, 2 * y], block[2 * z + 1, 2 * y + 1]
                row = half[z, y]
                for x in range(half.shape[2]):
                    i, j = 2 * x, 2 * x + 1
                    total = (np.uint16(a[i]) + a[j] + b[i] + b[j]) + (np.uint16(c[i]) + c[j] + d[i] + d[j])
                    row[x] = np.uint8((total + np.uint16(4)) >> np.uint16(3))

    def encode(chunk: Any) -> Any:
        if encoding == "jpeg":
            return simplejpeg.encode_jpeg(
                chunk.reshape(-1, chunk.shape[-1], 1), 75, colorspace="GRAY", colorsubsampling="Gray"
            )
        return imagecodecs.zstd_encode(chunk, 3) if encoding == "zstd" else chunk

    store = {"driver": "file", "path": source + "/0/"}
    array = tensorstore.open({"driver": "zarr3", "kvstore": store}, open=True).result()[0, 0]
    Path(output).mkdir(parents=True)
    for start in itertools.product(*(range(0, size, BLOCK) for size in array.shape)):
        block = np.asarray(
            array[tuple(slice(i, min(i + BLOCK, size)) for i, size in zip(start, array.shape))]
            .read()
            .result()
        )
        for mip in range(mips + 1):
            if mip:
                half = np.empty([size // 2 for size in block.shape], np.uint8)
                halve(block, half)
                block = half
            for z, y, x in itertools.product(*(range(0, size, CHUNK) for size in block.shape)):
                chunk = np.ascontiguousarray(block[z : z + CHUNK, y : y + CHUNK, x : x + CHUNK])
                name = f"{mip}_{'_'.join(map(str, start))}_{x}_{y}_{z}"
                with (Path(output) / name).open("wb") as file:
                    file.write(encode(chunk))


def ours(source: Path, output: Path, encoding: str, workers: int) -> Usage:
    """The command, or for zstd (which precomputed has not) the writer that it stands on."""
    if encoding == "zstd":
        arguments = {"source": str(source), "output": str(output), "mips": MIPS, "encoding": "zstd"}
        return measure_call("precompute:write_ome_zarr", arguments)[0]
    command = [KBRAIN, "precompute-volume", "--input", source, "--output", output, "--encoding", encoding]
    return measure_command([*command, "--mips", MIPS, "--workers", workers])


def bytes_of(folder: Path) -> float:
    """MB of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def warm_up(folder: Path) -> None:
    """Compile and load everything once, so that nobody pays for a cold cache."""
    small = folder / "small"
    small.mkdir()
    measure_call("precompute:make_source", {"folder": str(small), "shape": [64, 64, 64]})
    for encoding in ("raw", "jpeg", "zstd"):
        ours(small / "source.ome.zarr", small / f"ours-{encoding}.precomputed", encoding, 1)
        arguments = {"source": str(small / "source.ome.zarr"), "output": str(small / f"floor-{encoding}")}
        measure_call("precompute:floor", {**arguments, "encoding": encoding, "mips": 1})


def main() -> None:
    """Measure and write the section of docs/benchmarks.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encodings", nargs="+", default=["raw", "jpeg", "zstd"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--no-peer", action="store_true", help="leave cloud-volume and igneous out")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder by default")
    parser.add_argument("--no-save", action="store_true", help="leave docs/benchmarks.md as it is")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # imports come from bytecode, as in any installation
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        table = measure_all(Path(name), options.encodings, options.workers, not options.no_peer)
    if not options.no_save:
        table.save()


def measure_all(folder: Path, encodings: list[str], workers: int, peer: bool) -> Table:
    """Run everything, one after the other, and collect the table."""
    warm_up(folder)
    _, made = measure_call("precompute:make_source", {"folder": str(folder), "shape": list(SHAPE)})
    source = folder / "source.ome.zarr"
    header = ("case", "CPU s", "beyond imports", "times the floor", "peak MB", "peak MB anonymous", "out MB")
    table = Table("Precomputed volumes", header)
    table.note(
        f"{SHAPE[0]} x {SHAPE[1]} x {SHAPE[2]} voxels, uint8, {made['what']}; {MIPS} coarser levels; {workers} worker(s)."
    )
    floor_imports, our_imports = import_cost(*FLOOR_MODULES), import_cost(*OUR_MODULES)
    table.note(f"Imports: {floor_imports.cpu_s:.2f} CPU s for the floor, {our_imports.cpu_s:.2f} for ours.")
    for encoding in encodings:
        arguments = {
            "source": str(source),
            "output": str(folder / "floor"),
            "encoding": encoding,
            "mips": MIPS,
        }
        low, _ = measure_call("precompute:floor", arguments)
        low_s = low.beyond(floor_imports).cpu_s
        table.add(f"floor, {encoding}", *_cells(low, low_s, low_s), bytes_of(folder / "floor"))
        output = folder / f"ours.{'ome.zarr' if encoding == 'zstd' else 'precomputed'}"
        used = ours(source, output, encoding, workers)
        used_s = used.beyond(our_imports).cpu_s
        table.add(f"kbrain, {encoding}, sharded", *_cells(used, used_s, low_s), bytes_of(output))
        table.goal(
            f"{encoding}: CPU beyond imports over the floor",
            used_s / low_s,
            2.0 if encoding == "raw" else 1.3,
        )
        if peer and encoding != "zstd":
            from peers import run_peer

            theirs, result = run_peer(
                "igneous",
                "precompute_igneous.py",
                folder / "image.npy",
                folder / "peer",
                "--encoding",
                encoding,
                "--mips",
                str(MIPS),
            )
            beyond_s = theirs.cpu_s - 2 * result["cpu_s"]["import"]  # two programs
            table.add(
                f"cloud-volume and igneous, {encoding}",
                *_cells(theirs, beyond_s, low_s),
                bytes_of(folder / "peer"),
            )
            table.goal(
                f"{encoding}: CPU beyond imports over cloud-volume and igneous", used_s / beyond_s, 1 / 3
            )
            table.note(
                f"{encoding}: the floor itself costs {low_s / beyond_s:.2f} of what they do (their levels are 2x2x1)."
            )
            shutil.rmtree(folder / "peer")
        if encoding == "raw":
            figures = json.loads((output.with_name(output.name + "-summary.json")).read_text())["figures"]
            table.goal(
                "largest shift of a level's mean, grey levels", figures["largest_mean_shift_grey"], 0.1
            )
        for path in (folder / "floor", output):
            shutil.rmtree(path)
    return table


def _cells(usage: Usage, beyond_s: float, floor_s: float) -> tuple[float, ...]:
    return usage.cpu_s, beyond_s, beyond_s / floor_s, usage.rss_mb, usage.anonymous_mb


if __name__ == "__main__":
    main()
