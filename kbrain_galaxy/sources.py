"""From what a person names (files, folders, archives, URLs) to the elements of a Galaxy collection."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kbrain_core.errors import InputError
from kbrain_core.formats.archives import archive_stem, extract_archive, is_archive
from kbrain_core.formats.tile_names import natural_key

_URL = re.compile(r"(https?|ftp|s3|gs|drs|gxfiles)://.+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
_VOLUME_MARKS = ("zarr.json", ".zattrs", ".zgroup", ".zarray", "info")


@dataclass(frozen=True)
class SourceFile:
    """A file to be given to Galaxy: the folders it lies in below what was named, its name, and where it is."""

    parts: tuple[str, ...]
    place: Path | str

    @property
    def name(self) -> str:
        """Path below what was named."""
        return "/".join(self.parts)

    @property
    def path(self) -> Path | None:
        """The file on this machine; None for a URL, which Galaxy fetches itself."""
        return self.place if isinstance(self.place, Path) else None


@dataclass(frozen=True)
class Selection:
    """The files that are meant, in natural order, and what was left out and why."""

    files: tuple[SourceFile, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Element:
    """A file under its name in a collection; with two identifiers the first is the section."""

    identifiers: tuple[str, ...]
    file: SourceFile


def is_url(text: str) -> bool:
    """Whether a text is an address that Galaxy fetches by itself."""
    return _URL.match(text) is not None


def is_volume_folder(path: Path) -> bool:
    """Whether a folder is one volume (OME-Zarr or precomputed) and so one dataset."""
    return path.is_dir() and any((path / mark).is_file() for mark in _VOLUME_MARKS)


def single_file(text: str) -> SourceFile:
    """What was named as one dataset: a file or a URL.

    Raises
    ------
    InputError
        When there is no such file, or it is a folder.
    """
    if is_url(text):
        return SourceFile((_clean(_url_name(text)),), text)
    path = Path(text)
    if path.is_dir():
        raise InputError(
            f"'{text}' is a folder and one file is needed: name the file, or pack the folder as a zip file"
        )
    if not path.is_file():
        raise InputError(f"There is no '{text}': check the path")
    return SourceFile((_clean(path.name),), path.absolute())


def find_files(inputs: Sequence[str], unpack_to: Path) -> Selection:
    """Find the files that the inputs mean.

    Parameters
    ----------
    inputs : sequence of str
        Files, URLs, folders (searched with the folders in them) and zip or tar archives.
    unpack_to : Path
        Where archives are unpacked, once.

    Raises
    ------
    InputError
        When an input is not there or nothing is found.
    """
    left_out: list[str] = []
    groups: list[tuple[str, list[SourceFile]]] = []
    singles: list[SourceFile] = []
    for text in inputs:
        path = Path(text)
        if is_url(text):
            singles.append(single_file(text))
        elif path.is_dir():
            groups.append((path.resolve().name, list(_search(path, left_out))))
        elif path.is_file() and is_archive(path):
            folder = extract_archive(path, unpack_to)
            groups.append((archive_stem(path), list(_search(folder, left_out))))
        else:
            singles.append(single_file(text))
    if len(groups) + bool(singles) > 1:  # of several folders each is a section of its own
        groups = [
            (name, [SourceFile((_clean(name), *f.parts), f.place) for f in found]) for name, found in groups
        ]
    files = [file for _, found in groups for file in found] + singles
    if not files:
        hint = f" (left out: {'; '.join(left_out[:3])})" if left_out else ""
        raise InputError(f"No file is in {', '.join(inputs)[:300]}{hint}")
    return Selection(tuple(sorted(files, key=_order)), tuple(left_out))


def keep(selection: Selection, fits: Callable[[str], bool], reason: str) -> Selection:
    """The files whose names fit; the others are left out for a reason."""
    kept = tuple(file for file in selection.files if fits(file.parts[-1]))
    dropped = tuple(f"{file.name} ({reason})" for file in selection.files if not fits(file.parts[-1]))
    return Selection(kept, (*selection.left_out, *dropped))


def choose_collection_type(taken: Sequence[str], files: Sequence[SourceFile], sectioned: bool) -> str:
    """The kind of collection that suits the files among those that an input takes.

    Parameters
    ----------
    taken : sequence of str
        Kinds that the input takes, like `list`; empty when it takes all.
    files : sequence of SourceFile
        The files.
    sectioned : bool
        Whether a pattern tells the sections.

    Raises
    ------
    InputError
        When the input takes neither a list nor a list of lists.
    """
    possible = [kind for kind in ("list", "list:list") if not taken or kind in taken]
    if not possible:
        raise InputError(
            f"The input takes a collection of the kind {' or '.join(taken)}, which cannot be made from files: "
            "make it in Galaxy and run the workflow there"
        )
    nested = sectioned or any(len(file.parts) > 1 for file in files)
    return possible[-1] if nested else possible[0]


def arrange(
    files: Sequence[SourceFile], collection_type: str, section_pattern: str | None, home: str
) -> list[Element]:
    """Give each file its name in the collection: unique, with its ending, sections as folders.

    Parameters
    ----------
    files : sequence of SourceFile
        The files.
    collection_type : str
        `list` or `list:list`.
    section_pattern : str, optional
        Regular expression for the path below what was named; its first group, or the one named `section`, is the section.
        Default: the folder is the section.
    home : str
        Name of the only section, when files lie in no folder.

    Raises
    ------
    InputError
        When the pattern is none or fits a file not, or two files have the same name.
    """
    if collection_type == "list":
        names = [file.parts[-1] for file in files]
        plain = len(set(names)) == len(names)
        elements = [Element((file.parts[-1] if plain else "_".join(file.parts),), file) for file in files]
    else:
        section_of = _section_reader(section_pattern, home)
        elements = [Element((section_of(file), file.parts[-1]), file) for file in files]
        if section_pattern is not None and len({e.identifiers for e in elements}) < len(elements):
            elements = [Element((e.identifiers[0], "_".join(e.file.parts)), e.file) for e in elements]
    taken: dict[tuple[str, ...], SourceFile] = {}
    for element in elements:
        other = taken.setdefault(element.identifiers, element.file)
        if other is not element.file:
            raise InputError(
                f"'{other.place}' and '{element.file.place}' would both be called '{'/'.join(element.identifiers)}' in "
                "Galaxy: rename one of them"
            )
    return elements


def _section_reader(pattern: str | None, home: str) -> Callable[[SourceFile], str]:
    if pattern is None:
        return lambda file: "_".join(file.parts[:-1]) or home
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"The section pattern '{pattern}' is no regular expression: {error}") from None
    if not compiled.groups:
        raise InputError(f"The section pattern '{pattern}' has no group: put what names the section in ( )")

    def read(file: SourceFile) -> str:
        found = compiled.search(file.name)
        if found is None:
            raise InputError(f"The section pattern '{pattern}' does not fit '{file.name}': correct it")
        section = found["section"] if "section" in compiled.groupindex else found[1]
        return section or home

    return read


def _search(folder: Path, left_out: list[str]) -> Iterator[SourceFile]:
    """Files in a folder and the folders in it; hidden ones, links that lead out and volumes are left out."""
    root = folder.resolve()
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        for name in sorted(folders):
            why = _why_not(here / name, root)
            if why is None and is_volume_folder(here / name):
                why = "a volume, not tiles"
            if why is None and (here / name).is_symlink():
                why = "a link to a folder"  # os.walk does not follow it
            if why is not None:
                left_out.append(f"{(here / name).relative_to(folder)} ({why})")
                folders.remove(name)
        for name in sorted(names):
            why = _why_not(here / name, root)
            relative = (here / name).relative_to(folder)
            if why is not None:
                left_out.append(f"{relative} ({why})")
            else:
                yield SourceFile(tuple(map(_clean, relative.parts)), (here / name).absolute())


def _why_not(path: Path, root: Path) -> str | None:
    if path.name.startswith("."):
        return "hidden"
    if path.is_symlink():
        if not path.exists():
            return "a link to nothing"
        if not path.resolve().is_relative_to(root):
            return "a link that leads out of the folder"
    if not path.is_dir() and not path.is_file():
        return "no regular file"
    return None


def _clean(name: str) -> str:
    """A name as Galaxy can keep it: no control characters, and bytes that are no text replaced."""
    return _CONTROL.sub("_", name.encode("utf-8", "replace").decode("utf-8")) or "_"


def _url_name(url: str) -> str:
    return unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2]).replace("/", "_") or "data"


def _order(file: SourceFile) -> tuple[object, ...]:
    return tuple(natural_key(part) for part in file.parts)
