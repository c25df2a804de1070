"""Unpacking archives that strangers packed: nothing may leave the folder, and nothing may fill the disk."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..errors import InputError, KBrainError, OutputExistsError, ResourceError
from ..store import atomic_path, free_bytes

ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
NOTE_NAME = ".kbrain-archive.json"
# Small archives may have any ratio: a few blank tiles compress a thousand times and hurt nobody.
RATIO_FREE_BYTES = 100 * 1000 * 1000
DISK_RESERVE_BYTES = 64 * 1000 * 1000
MAX_TAR_PADDING_BYTES = 4 << 20
_COPY_BYTES = 1 << 20
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    OSError,
    NotImplementedError,
)


@dataclass(frozen=True)
class ArchiveLimits:
    """Most that one archive may unpack to.

    `max_ratio` is unpacked bytes to packed bytes, looked at above 100 MB. A set of camera images seldom shrinks more than
    tenfold; deflate cannot pass 1032, and bombs sit near that.
    """

    max_files: int = 1_000_000
    max_bytes: int = 10**12
    max_ratio: float = 200.0


def is_archive(path: Path) -> bool:
    """Whether the name says that this is an archive (zip, tar, and tar with gzip, bzip2 or xz)."""
    return path.name.lower().endswith(ARCHIVE_ENDINGS)


def archive_stem(path: Path) -> str:
    """The archive's name without its ending: the folder it is unpacked to."""
    ending = max((e for e in ARCHIVE_ENDINGS if path.name.lower().endswith(e)), key=len, default="")
    stem = path.name[: len(path.name) - len(ending)] if ending else path.name
    return stem.strip(". ") or "archive"  # "...zip" must not become ".."


def extract_archive(
    path: Path, folder: Path, *, limits: ArchiveLimits = ArchiveLimits(), overwrite: bool = False
) -> Path:
    """Unpack an archive to a folder of its name inside `folder`; done before, it is only checked.

    Parameters
    ----------
    path : Path
        Zip or tar archive.
    folder : Path
        Where the new folder goes; made when it is not there.
    limits : ArchiveLimits
        Count, size and ratio at which it is refused. They hold for the bytes that come out, not for what a header says.
    overwrite : bool
        Replace what another archive of this name left there.

    Returns
    -------
    Path
        The folder with the files; it appears only when everything is unpacked.

    Raises
    ------
    InputError
        When a member has an absolute path or `..`, is a link or a device, is encrypted or damaged, two members have one
        name, or a limit is passed. Nothing is left behind.
    OutputExistsError
        When something else lies at the folder.
    ResourceError
        When the disk does not suffice.
    """
    target = folder / archive_stem(path)
    status = path.stat()
    note = {"archive": path.name, "bytes": status.st_size, "changed_ns": status.st_mtime_ns}
    if target.exists():
        if _read_note(target) == note:
            return target
        if not overwrite or _read_note(target) is None:
            raise OutputExistsError(
                f"'{target}' exists and is not what '{path.name}' unpacks to: remove it, or choose another --extract-to"
            )
    folder.mkdir(parents=True, exist_ok=True)
    meter = _Meter(path, limits)
    with atomic_path(target) as temporary:
        temporary.mkdir()
        with _members(path) as members:
            for member in members:
                _extract_member(member, temporary, meter)
        (temporary / NOTE_NAME).write_text(json.dumps(note), encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
    return target


def _read_note(target: Path) -> object:
    try:
        return json.loads((target / NOTE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class _Member:
    """One member: its name, what it is, and how its bytes are opened."""

    name: str
    kind: str
    open: Callable[[], IO[bytes]]


class _Meter:
    """Counts what came out of an archive and stops it at the limits."""

    def __init__(self, path: Path, limits: ArchiveLimits) -> None:
        self.path = path
        self.limits = limits
        self.packed_bytes = max(1, path.stat().st_size)
        self.files = 0
        self.bytes = 0
        self.names: set[str] = set()

    def add_member(self, name: str) -> None:
        self.files += 1
        if self.files > self.limits.max_files:
            raise InputError(
                f"'{self.path}' holds more than {self.limits.max_files} members: unpack it yourself if you trust it"
            )
        if name.casefold() in self.names:
            raise InputError(f"'{self.path}' holds '{name}' twice: pack it again without the second one")
        self.names.add(name.casefold())

    def add_bytes(self, count: int, folder: Path) -> None:
        before, self.bytes = self.bytes, self.bytes + count
        if self.bytes > self.limits.max_bytes:
            raise InputError(
                f"'{self.path}' unpacks to more than {self.limits.max_bytes / 1e9:g} GB: unpack it yourself if you trust it"
            )
        if self.bytes > max(RATIO_FREE_BYTES, self.limits.max_ratio * self.packed_bytes):
            raise InputError(
                f"'{self.path}' unpacks to more than {self.limits.max_ratio:g} times its size, as archive bombs do: "
                "unpack it yourself if you trust it"
            )
        if before // DISK_RESERVE_BYTES != self.bytes // DISK_RESERVE_BYTES or before == 0:
            free = free_bytes(folder)
            if free is not None and free < DISK_RESERVE_BYTES:
                raise ResourceError(
                    f"'{folder}' has {free / 1e6:.0f} MB left: unpack '{self.path.name}' to another disk"
                )


def _extract_member(member: _Member, folder: Path, meter: _Meter) -> None:
    parts = safe_parts(member.name, meter.path)
    if member.kind not in ("file", "folder"):
        raise InputError(
            f"'{meter.path}' holds a {member.kind}, '{member.name[:100]}': pack the files themselves"
        )
    if not parts or parts[0] == "__MACOSX" or parts[-1] == ".DS_Store" or parts[-1].startswith("._"):
        return
    target = folder.joinpath(*parts)
    try:
        if member.kind == "folder":
            target.mkdir(parents=True, exist_ok=True)
            return
        meter.add_member("/".join(parts))
        target.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, target.open("xb") as out:
            while block := source.read(_COPY_BYTES):
                meter.add_bytes(len(block), folder)
                out.write(block)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(
            f"'{meter.path}' holds '{member.name[:100]}' as a file and as a folder: pack it again"
        ) from error
    except OSError as error:
        if error.errno is None:
            raise
        raise ResourceError(
            f"'{member.name[:100]}' cannot be unpacked to '{folder.parent}': {error.strerror}"
        ) from error


def safe_parts(name: str, archive: Path) -> tuple[str, ...]:
    """The folders and the file of a member's name, every one inside the target.

    Raises
    ------
    InputError
        When the name is absolute, names a drive, climbs with `..`, or holds a character no file name has.
    """
    text = name.replace("\\", "/")
    parts = tuple(part for part in text.split("/") if part not in ("", "."))
    has_drive = bool(parts) and len(parts[0]) >= 2 and parts[0][1] == ":" and parts[0][0].isalpha()
    if text.startswith("/") or has_drive or ".." in parts:
        raise InputError(
            f"'{archive}' holds '{name[:100]}', which points outside of it: pack it with relative names"
        )
    bad = any(ord(character) < 32 or 0xD800 <= ord(character) <= 0xDFFF for character in text)
    if bad or any(len(part.encode(errors="replace")) > 255 for part in parts) or NOTE_NAME in parts:
        raise InputError(f"'{archive}' holds a name no file can have, {name[:60]!r}: pack it again")
    return parts


@contextlib.contextmanager
def _members(path: Path) -> Iterator[Iterator[_Member]]:
    """The members of an archive in their order; whatever goes wrong on reading becomes one line."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield _zip_members(archive, path)
        else:
            # "r|" streams: the archive is read once, and headers cannot send the reader back and forth. The
            # decompressors are opened here because tarfile's own do not check the sum at the end.
            with _decompressed(path) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                yield _tar_members(tar, stream)
    except KBrainError:
        raise
    except _DAMAGE as error:
        raise InputError(
            f"'{path}' cannot be unpacked ({error}): it is damaged or no zip or tar archive"
        ) from error


def _zip_members(archive: zipfile.ZipFile, path: Path) -> Iterator[_Member]:
    for info in archive.infolist():
        if info.flag_bits & 0x1:
            raise InputError(f"'{path}' is encrypted: unpack it yourself and give the folder")
        mode = info.external_attr >> 16
        kind = "folder" if info.is_dir() else _kind_of_mode(mode)
        yield _Member(info.filename, kind, lambda info=info: archive.open(info))  # type: ignore[misc]


def _kind_of_mode(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "link"
    special = stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR)
    return "device file" if special else "file"


def _decompressed(path: Path) -> io.BufferedIOBase:
    with path.open("rb") as file:
        head = file.read(6)
    if head.startswith(b"\x1f\x8b"):
        return gzip.open(path)
    if head.startswith(b"BZh"):
        return bz2.open(path)
    if head.startswith(b"\xfd7zXZ\0"):
        return lzma.open(path)
    return path.open("rb")


def _tar_members(tar: tarfile.TarFile, stream: io.BufferedIOBase) -> Iterator[_Member]:
    for info in tar:
        if info.isdir():
            kind = "folder"
        elif info.isreg() and not info.issparse():
            kind = "file"
        else:
            kind = (
                "link"
                if info.issym() or info.islnk()
                else "sparse file"
                if info.issparse()
                else "device file"
            )
        yield _Member(info.name, kind, lambda info=info: _tar_stream(tar, info))  # type: ignore[misc]
    _check_tar_end(tar, stream)


def _check_tar_end(tar: tarfile.TarFile, stream: io.BufferedIOBase) -> None:
    """Refuse a tar that stops at a member's header: tarfile takes that for the end. A whole one ends with zeros.

    The rest is read too, so that the decompressor compares its checksum; tar pads to 10 KB and hardly ever further.
    """
    if tar.fileobj is None:
        return
    header_bytes = tar.fileobj.tell() - tar.offset
    if header_bytes < tarfile.BLOCKSIZE or any(tar.fileobj.read(tarfile.BLOCKSIZE)):
        raise tarfile.ReadError("it ends in the middle")
    if len(stream.read(MAX_TAR_PADDING_BYTES)) == MAX_TAR_PADDING_BYTES:
        raise tarfile.ReadError("something follows its end")


def _tar_stream(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(info)
    if stream is None:
        raise tarfile.ReadError(f"{info.name} has no content")
    return stream
