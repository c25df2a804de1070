"""From what a person names (files, folders, archives, lists) to the image files that are meant."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, StageStopped
from ..store import is_remote, local_path
from .archives import archive_stem, extract_archive, is_archive
from .tile_names import name_stem, natural_key

# Endings of files that count as images when a folder is searched; a file that is named is opened whatever its ending.
IMAGE_ENDINGS = (
    ".tif", ".tiff", ".btf", ".tf2", ".tf8", ".lsm", ".stk", ".png", ".jpg", ".jpeg", ".czi", ".mrc", ".st", ".map",
    ".rec", ".h5", ".hdf5", ".ims", ".nii", ".nii.gz", ".nrrd", ".nhdr",
)  # fmt: skip
_LIST_ENDINGS = (".txt", ".lst", ".list")
_LAYOUT_ENDINGS = (".tsv", ".csv", ".mdoc")
_STORE_ENDINGS = (".zarr", ".n5", ".precomputed")
_THUMBNAIL = re.compile(r"[_-]thumb", re.IGNORECASE)
MAX_LIST_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class TileFiles:
    """The image files in natural order, their folders, the layouts that were named, and what was left aside.

    `folders` are those that hold files and those that were named: a layout may lie in either.
    """

    files: tuple[Path, ...]
    folders: tuple[Path, ...]
    layouts: tuple[Path, ...]
    ignored: tuple[str, ...]


def collect_tile_files(
    inputs: Sequence[str], *, extract_to: Path | None, overwrite: bool, dry_run: bool = False
) -> TileFiles:
    """Find the image files that the inputs mean; the order of the inputs does not matter.

    Parameters
    ----------
    inputs : sequence of str
        Files; folders, searched with all folders in them; zip or tar archives; lists (.txt) with one path a line, relative
        to the list's folder; layouts of tiles.
    extract_to : Path or None
        Where archives are unpacked.
    overwrite : bool
        Whether what an older archive of the same name left there is replaced.
    dry_run : bool
        Unpack nothing.

    Raises
    ------
    InputError
        When an input is not there, an archive comes without `extract_to`, or no image is found.
    StageStopped
        On a dry run, when an archive would have to be unpacked to go on.
    """
    files: set[Path] = set()
    folders: set[Path] = set()
    layouts: set[Path] = set()
    ignored: list[str] = []
    for path in _expanded(inputs):
        if path.is_dir():
            found = list(_search(path, ignored))
            folders.add(path.absolute())
        elif is_archive(path):
            if extract_to is None:
                raise InputError(
                    f"'{path}' is an archive: pass --extract-to FOLDER, where it is unpacked once"
                )
            if dry_run and not (extract_to / archive_stem(path)).exists():
                size = path.stat().st_size / 1e6
                raise StageStopped(
                    f"Dry run: '{path}' ({size:.1f} MB) would be unpacked to '{extract_to}' first"
                )
            folder = extract_archive(path, extract_to, overwrite=overwrite)
            found = list(_search(folder, ignored))
            folders.add(folder.absolute())
            if not found:
                raise InputError(f"'{archive_stem(path)}' from '{path}' holds no image")
        elif path.name.lower().endswith(_LAYOUT_ENDINGS) or _is_fiji(path):
            layouts.add(path)
            continue
        else:
            found = [path]
        files |= {
            image.absolute() for image in found
        }  # not resolve(): links carry the names that people know
    if not files:
        hint = f" (left aside: {'; '.join(ignored[:3])})" if ignored else ""
        raise InputError(
            f"No image is in {', '.join(map(repr, inputs))[:300]}{hint}: give files or folders of tiles"
        )
    return TileFiles(
        tuple(sort_tile_files(files)), tuple(sorted(folders)), tuple(sorted(layouts)), tuple(ignored)
    )


def sort_tile_files(paths: Iterable[Path]) -> list[Path]:
    """Files in natural order of their names without ending, so that `a.tif` comes before `a (1).tif`."""
    return sorted(paths, key=lambda path: (natural_key(name_stem(str(path))), str(path)))


def _expanded(inputs: Sequence[str]) -> Iterator[Path]:
    """The inputs with lists replaced by what they list."""
    for text in inputs:
        if is_remote(text):
            raise InputError(f"'{text}' is a URL: sort-tiles reads local files, so copy the tiles first")
        path = local_path(text)
        if not path.exists():
            raise InputError(f"There is no '{path}': check the path")
        if path.is_file() and path.name.lower().endswith(_LIST_ENDINGS) and not _is_fiji(path):
            yield from _listed(path)
        else:
            yield path


def _listed(path: Path) -> Iterator[Path]:
    if path.stat().st_size > MAX_LIST_BYTES:
        raise InputError(f"'{path}' has {path.stat().st_size / 1e6:.0f} MB: a list has one path a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"'{path}' is no text: a list has one path a line") from None
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        listed = path.parent / name
        if "\0" in name or not listed.exists():
            raise InputError(f"'{path}' line {number}: there is no '{name[:200]}': correct the list")
        if listed.is_file() and listed.name.lower().endswith(_LIST_ENDINGS):
            raise InputError(f"'{path}' line {number}: '{name[:200]}' is a list itself: list the images")
        yield listed


def _is_fiji(path: Path) -> bool:
    """Whether a text file is Fiji's tile configuration and not a list of files."""
    if not path.name.lower().endswith(".txt"):
        return False
    with path.open("rb") as file:
        return re.search(rb"^\s*dim\s*=\s*\d", file.read(4096), re.MULTILINE) is not None


def _search(folder: Path, ignored: list[str]) -> Iterator[Path]:
    """Images in a folder and the folders in it; hidden files, thumbnails, volumes and reports of KBrain are left aside."""
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        reports = {f"{Path(name).stem}_files" for name in names if name.endswith(".html")}
        stores = [name for name in folders if name.lower().endswith(_STORE_ENDINGS)]
        ignored += [f"{here / name} (a volume, not tiles)" for name in stores]
        folders[:] = sorted(
            n for n in folders if not n.startswith(".") and n not in reports and n not in stores
        )
        for name in sorted(names):
            if name.startswith(".") or _THUMBNAIL.search(name):
                continue
            if name.lower().endswith(IMAGE_ENDINGS):
                yield here / name
            elif is_archive(Path(name)):
                ignored.append(f"{here / name} (an archive inside a folder: name it to have it unpacked)")
