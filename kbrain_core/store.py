"""Bytes at a local path or a URL, written so that a reader never sees half a file."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from .errors import InputError, OutputExistsError, ResourceError

# A file up to this size is fingerprinted by its content, a larger one by size and time of change.
HASHED_BYTES = 64 * 1024 * 1024
# An address that does not answer is given up after seconds; by default it would take a quarter of an hour.
RETRIES = {"max_retries": 5, "initial_delay": "0.2s", "max_delay": "4s"}
ALLOWLIST_VARIABLE = "KBRAIN_URL_ALLOWLIST"


def is_remote(uri: str | Path) -> bool:
    """Whether this is a URL of another place than the local file system."""
    return "://" in str(uri) and not str(uri).startswith("file://")


def local_path(uri: str | Path) -> Path:
    """The path of a local file or folder, given as such or as a file:// URL."""
    text = str(uri)
    return Path(unquote(urlsplit(text).path)) if text.startswith("file://") else Path(text)


def join(uri: str | Path, *parts: str) -> str:
    """The path or URL of something inside `uri`."""
    return "/".join([str(uri).rstrip("/"), *parts])


def kvstore_spec(uri: str | Path) -> dict[str, Any]:
    """The tensorstore key-value store of a folder at a local path, file://, http(s):// or s3:// URL.

    Raises
    ------
    InputError
        When the scheme is unknown, or the administrator's allowlist (the variable KBRAIN_URL_ALLOWLIST: prefixes with
        spaces between) does not hold the URL.
    """
    if not is_remote(uri):
        return {"driver": "file", "path": str(local_path(uri).absolute()).rstrip("/") + "/"}
    text = str(uri).rstrip("/") + "/"
    allowed = os.environ.get(ALLOWLIST_VARIABLE)
    if allowed is not None and not any(text.startswith(prefix) for prefix in allowed.split()):
        raise InputError(
            f"'{uri}' is not on this server's list of allowed URLs: ask its administrator to add it"
        )
    url = urlsplit(text)
    if url.scheme in ("http", "https"):
        http = {"driver": "http", "base_url": f"{url.scheme}://{url.netloc}", "path": unquote(url.path)}
        return {**http, "http_request_retries": RETRIES}
    if url.scheme == "s3":
        bucket = {"driver": "s3", "bucket": url.netloc, "path": unquote(url.path.lstrip("/"))}
        return {**bucket, "s3_request_retries": RETRIES}
    raise InputError(
        f"'{uri}' has an unknown scheme: use a path, or a file://, http://, https:// or s3:// URL"
    )


def _open_kvstore(uri: str | Path) -> Any:
    import tensorstore

    return tensorstore.KvStore.open(kvstore_spec(uri)).result()


def read_bytes(uri: str | Path) -> bytes | None:
    """The content of a file, None when there is none."""
    if not is_remote(uri):
        try:
            return local_path(uri).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
    folder, _, name = str(uri).rpartition("/")
    result = _open_kvstore(folder).read(name).result()
    return bytes(result.value) if result.state == "value" else None


def write_bytes(uri: str | Path, data: bytes) -> None:
    """Write a file whole or not at all, its folder made where needed."""
    if is_remote(uri):
        folder, _, name = str(uri).rpartition("/")
        _open_kvstore(folder).write(name, data).result()
        return
    path = local_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def list_keys(uri: str | Path) -> list[str]:
    """Names of the files directly in a folder; none when it does not exist."""
    if is_remote(uri):
        keys = [key.decode() for key in _open_kvstore(uri).list().result()]
        return sorted(key for key in keys if "/" not in key)
    folder = local_path(uri)
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


MARKER_FOLDER = ".kbrain"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path; it takes `path`'s name when the block ends well, and is removed otherwise.

    Inside an output of KBrain it lies in `.kbrain/tmp`, so that what a killed job leaves is never among the data; elsewhere
    beside `path`.
    """
    home = next((parent for parent in path.parents if (parent / MARKER_FOLDER).is_dir()), None)
    if home is not None:
        folder = home / MARKER_FOLDER / "tmp"
        folder.mkdir(exist_ok=True)
    else:
        folder = path.parent
    temporary = folder / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed runs left beside `path`."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
        leftover.unlink(missing_ok=True)


def prepare_file_output(path: Path, overwrite: bool) -> None:
    """Check that a file can go to `path` and make its folder; an empty file (a workflow system's placeholder) may lie there.

    Raises
    ------
    OutputExistsError
        When a file with content lies there and `overwrite` is False.
    """
    if path.is_dir() or (path.exists() and path.stat().st_size > 0 and not overwrite):
        raise OutputExistsError(
            f"'{path}' exists: choose another name, or pass --overwrite to replace it and what you edited there"
        )
    path.parent.mkdir(parents=True, exist_ok=True)


def free_bytes(path: str | Path) -> int | None:
    """Free disk space where `path` is or will be; None for a URL."""
    if is_remote(path):
        return None
    folder = local_path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_disk(path: str | Path, needed_bytes: int) -> None:
    """Raise a ResourceError when less disk than `needed_bytes` is left where `path` is or will be."""
    free = free_bytes(path)
    if free is not None and needed_bytes > free:
        raise ResourceError(
            f"'{path}' needs about {needed_bytes / 1e9:.1f} GB of disk and {free / 1e9:.1f} GB are free: "
            "free some space, or write to another disk"
        )


def fingerprint(uri: str | Path) -> str:
    """A text that changes when the file, folder or volume changes.

    Files up to 64 MB: SHA-256 of the content. Larger ones: size and time of change. A volume that KBrain wrote: its job and
    its completion. Another folder: names, sizes and times of change of all files. A URL: the text itself.
    """
    if is_remote(uri):
        return f"url:{uri}"
    path = local_path(uri)
    digest = hashlib.sha256()
    if path.is_file():
        if path.stat().st_size <= HASHED_BYTES:
            return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
        return f"size:{path.stat().st_size} mtime_ns:{path.stat().st_mtime_ns}"
    if (path / ".kbrain" / "complete").is_file():
        for name in ("job.json", "complete"):
            digest.update((path / ".kbrain" / name).read_bytes())
        return "volume:" + digest.hexdigest()
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            status = (Path(folder) / name).stat()
            relative = (Path(folder) / name).relative_to(path)
            digest.update(f"{relative}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return "folder:" + digest.hexdigest()


def scratch_folder(prefix: str) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder that is removed when its block ends; its place follows TMPDIR."""
    return tempfile.TemporaryDirectory(prefix=f"kbrain-{prefix}-")
