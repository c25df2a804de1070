"""The folder of a page: KNeuroViz itself, its state, and where the volumes lie."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from ..errors import InputError, ResourceError
from ..store import MARKER_FOLDER, atomic_path, is_remote, local_path
from .serve import write_mounts
from .view_layers import Source
from .viewer_state import Address, Scene, viewer_state

CLIENT = Path(__file__).parent / "kneuroviz"
STATE_FILE = "state.json"
PLAIN_TITLE = "<title>KNeuroViz</title>"

DataPlace = Literal["serve", "copy", "relative"]


def check_client() -> None:
    """Refuse to go on without the built client.

    Raises
    ------
    ResourceError
        When the package was installed from a checkout in which KNeuroViz was never built.
    """
    if not (CLIENT / "index.html").is_file():
        raise ResourceError(
            "KNeuroViz is not built: run `make viewer` in the checkout, or install the kbrain wheel"
        )


def client_bytes() -> int:
    """Size of the client's files."""
    return sum(path.stat().st_size for path in CLIENT.rglob("*") if path.is_file())


@dataclass(frozen=True)
class Addresses:
    """Where the page finds each source.

    Parameters
    ----------
    folders : dict
        Local folders by the name under which the page's `data/` shows them.
    urls : dict
        URL, relative to the page or absolute, by URI of the source.
    place : {"serve", "copy", "relative"}
        How local folders are reached.
    """

    folders: dict[str, Path]
    urls: dict[str, str]
    place: DataPlace

    @classmethod
    def plan(cls, sources: Sequence[Source], page: Path, place: DataPlace) -> Addresses:
        """Give every source a URL.

        Raises
        ------
        InputError
            When a volume lies inside the folder of the page, or the page inside a volume.
        """
        folders: dict[str, Path] = {}
        urls: dict[str, str] = {}
        for source in sources:
            if is_remote(source.uri):
                urls[source.uri] = quote(source.uri.rstrip("/"), safe=":/%?&=@+~,") + "/"
                continue
            folder = local_path(source.uri).resolve()
            if folder.is_relative_to(page.resolve()) or page.resolve().is_relative_to(folder):
                where = f"The page '{page}' and the volume '{source.uri}' lie in each other"
                raise InputError(f"{where}: choose another --output")
            if place == "relative":
                urls[source.uri] = quote(Path(os.path.relpath(folder, page.resolve())).as_posix()) + "/"
                continue
            if source.uri in urls:
                continue
            name = _mount_name(source.name, folders)
            folders[name] = folder
            urls[source.uri] = f"data/{name}/"
        return cls(folders, urls, place)

    def of(self, source: Source) -> Address:
        """Neuroglancer's address of a source."""
        return source.address(self.urls[source.uri])

    @property
    def copied_bytes(self) -> int:
        """How much is put into the page's folder."""
        if self.place != "copy":
            return 0
        return sum(file.stat().st_size for folder in self.folders.values() for file in _files(folder))


def _mount_name(name: str, taken: dict[str, Path]) -> str:
    """A name that needs no quoting in an address, unlike those of `taken`."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "volume"
    number, candidate = 2, plain
    while candidate in taken:
        number, candidate = number + 1, f"{plain}-{number}"
    return candidate


def _files(folder: Path) -> Iterator[Path]:
    """All files of a volume but KBrain's own notes.

    Raises
    ------
    InputError
        At a symbolic link that leads out of the volume: whoever publishes the page would publish what lies there.
    """
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != MARKER_FOLDER]
        for path in (Path(parent) / name for name in [*folders, *names]):
            if path.is_symlink() and not path.resolve().is_relative_to(folder):
                raise InputError(f"'{path}' is a link out of the volume: copy the volume without it first")
        yield from (Path(parent) / name for name in names)


def write_page(page: Path, scene: Scene, addresses: Addresses) -> None:
    """Write the page; index.html last, so that a page that opens is whole."""
    shutil.copytree(
        CLIENT, page, dirs_exist_ok=True, ignore=shutil.ignore_patterns("index.html", "build.json")
    )
    if addresses.place == "copy":
        for name, folder in addresses.folders.items():
            _copy_volume(folder, page / "data" / name)
    elif addresses.place == "serve":
        write_mounts(page, addresses.folders)
    _write(page / STATE_FILE, json.dumps(viewer_state(scene), indent=1, ensure_ascii=False) + "\n")
    _write(page / "index.html", page_html((CLIENT / "index.html").read_text(encoding="utf-8"), scene.title))


def page_html(client_html: str, title: str) -> str:
    """The client's page with its title and start state; the title comes from users and is shown, never run."""
    if client_html.count(PLAIN_TITLE) != 1:
        raise ResourceError("This build of KNeuroViz has no title to replace: run `make viewer` again")
    head = f'<title>{html.escape(title)} - KNeuroViz</title>\n    <meta name="kneuroviz-state" content="{STATE_FILE}">'
    return client_html.replace(PLAIN_TITLE, head)


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _copy_volume(source: Path, target: Path) -> None:
    """Put a volume's files under `target`, as hard links where the disk allows."""
    for file in _files(source):
        place = target / file.relative_to(source)
        if place.exists():
            continue  # a resumed job: files are put in place whole
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(place) as temporary:
            try:
                os.link(file.resolve(), temporary)
            except OSError:
                shutil.copyfile(file, temporary)
