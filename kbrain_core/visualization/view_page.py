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
from ..store import MARKER_FOLDER, atomic_path, is_remote, local_path, prepare_file_output
from .serve import write_mounts
from .view_layers import Source
from .viewer_state import Address, Scene, viewer_state

CLIENT = Path(__file__).parent / "kneuroviz"
STATE_FILE = "state.json"
# What the client can fetch from: another place, or this one counted from the server's root.
FOLDER_ADDRESS = re.compile(r"((https?|s3|gs)://[^/]|/(?!/))")
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
    def plan(
        cls, sources: Sequence[Source], page: Path, place: DataPlace, given: Sequence[str] = ()
    ) -> Addresses:
        """Give every source a URL: the one given for it, or one according to `place`.

        Raises
        ------
        InputError
            When a volume lies inside the folder of the page, or the page inside a volume; when the given addresses are
            not one for each source, or none the page can read from.
        """
        folders: dict[str, Path] = {}
        urls: dict[str, str] = {}
        if given and len(given) != len(sources):
            raise InputError(
                f"{len(given)} addresses were given for {len(sources)} inputs: give one --address per input, then one per "
                "label volume, in their order"
            )
        for number, source in enumerate(sources):
            folder = local_path(source.uri).resolve()
            remote = is_remote(source.uri)
            if not remote and (
                folder.is_relative_to(page.resolve()) or page.resolve().is_relative_to(folder)
            ):
                where = f"The page '{page}' and the volume '{source.uri}' lie in each other"
                raise InputError(f"{where}: choose another --output")
            if given:
                urls[source.uri] = _given_url(given[number], source.inside)
                continue
            if remote:
                urls[source.uri] = _quoted(source.uri)
                continue
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


def _quoted(url: str) -> str:
    return quote(url.rstrip("/"), safe=":/%?&=@+~,") + "/"


def _given_url(address: str, inside: str) -> str:
    """The folder of a volume that lies at, or as folder `inside` in, an address that a user gave."""
    if not FOLDER_ADDRESS.match(address):
        raise InputError(
            f"--address '{address}' is nothing a page can read: write an http://, https://, s3:// or gs:// URL, or a path "
            "from the server's root that begins with /"
        )
    return _quoted(address) + (f"{quote(inside)}/" if inside else "")


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


def prepare_state(path: Path, addresses: Addresses, overwrite: bool) -> None:
    """Check that the state alone can go to `path`, and that it is of use there.

    Raises
    ------
    InputError
        When it would name volumes by their place in the page.
    OutputExistsError
        When a file with content lies there and `overwrite` is False.
    """
    lost = next((url for url in addresses.urls.values() if not FOLDER_ADDRESS.match(url)), None)
    if lost is not None:
        raise InputError(
            f"--state-output: a viewer elsewhere does not find '{lost}': say with --address where each input is"
        )
    prepare_file_output(path, overwrite)


def write_page(page: Path, scene: Scene, addresses: Addresses, state_output: Path | None) -> None:
    """Write the page, and its state to `state_output` too; index.html last, so that a page that opens is whole."""
    shutil.copytree(
        CLIENT, page, dirs_exist_ok=True, ignore=shutil.ignore_patterns("index.html", "build.json")
    )
    if addresses.place == "copy":
        for name, folder in addresses.folders.items():
            _copy_volume(folder, page / "data" / name)
    elif addresses.place == "serve":
        write_mounts(page, addresses.folders)
    state = json.dumps(viewer_state(scene), indent=1, ensure_ascii=False) + "\n"
    for path in (page / STATE_FILE, *([state_output] if state_output else [])):
        _write(path, state)
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
