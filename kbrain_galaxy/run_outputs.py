"""Fetch what a run made: each output under its label, whole or not at all, and only what is not there yet."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from bioblend import ConnectionError as GalaxyAnswerError

from kbrain_core.engine import say
from kbrain_core.errors import KBrainError
from kbrain_core.store import require_disk

from .connection import Server, answer_text
from .progress_display import bytes_progress
from .run_state import StateFile
from .transfers import Transfers
from .workflow_runs import leaves

CRATE_NAME = "run.rocrate.zip"
REPORT_NAME = "run_report.md"
CRATE_WAIT_S = 600.0
_PIECE_BYTES = 1 << 20
_FOLDER_CLASS = "galaxy.datatypes.data.Directory"
_ENDINGS = {
    "tabular": "tsv",
    "markdown": "md",
    "tiff": "tif",
    "ome.tiff": "ome.tif",
    "kneuroviz_view": "json",
    "ome_zarr": "zarr",
    "neuroglancer_precomputed": "precomputed",
    "directory": "",
}
_DIRECTIVE = re.compile(r"```galaxy\s*\n(?P<call>.*?)\n```|\$\{galaxy (?P<inline>.*?)\}", re.DOTALL)
_PICTURE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")


@dataclass(frozen=True)
class RunOutput:
    """An output of a workflow: its label, and the dataset or collection (`hda` or `hdca`) it is."""

    label: str
    kind: str
    id: str


@dataclass(frozen=True)
class _Download:
    place: str
    dataset: str
    address: str
    size: int | None


class OutputFetcher:
    """The outputs of one run on their way to its folder.

    Parameters
    ----------
    server : Server
        The Galaxy.
    state : StateFile
        Of the run; says which files are complete.
    volumes : bool
        Whether volumes and other folders are fetched too; they may have terabytes.
    """

    def __init__(self, server: Server, state: StateFile, *, volumes: bool) -> None:
        self._server = server
        self._state = state
        self._volumes = volumes
        self._history = state.run.history or ""
        self._folder_types = _folder_types(server)

    def fetch(self, outputs: list[RunOutput]) -> dict[str, Path]:
        """Fetch outputs by label.

        Returns
        -------
        dict of str to Path
            Where each output that was fetched is: a file, or a folder for a collection or a volume.

        Raises
        ------
        ResourceError
            When the disk is too small.
        KBrainError
            When what arrives is not as long as Galaxy says.
        """
        places: dict[str, Path] = {}
        downloads: list[_Download] = []
        current: set[str] = set()
        for output in outputs:
            found = self._datasets(output)
            current |= {str(dataset["id"]) for _, dataset in found}
            taken = [entry for path, dataset in found for entry in self._downloads(path, dataset)]
            if taken:
                places[output.label] = self._state.folder / Path(taken[0].place).parts[0]
            elif any(self._type(dataset) in self._folder_types for _, dataset in found):
                say(f"'{output.label}' stays in Galaxy: a volume or folder (--fetch-volumes fetches it)")
            downloads += taken
        self._remove_others(current)
        self._run([entry for entry in downloads if not self._is_there(entry)])
        return places

    def _datasets(self, output: RunOutput) -> list[tuple[Path, Mapping[str, Any]]]:
        """The datasets of an output and where they go; those that a switched-off step left empty are none."""
        name = file_name(output.label)
        if output.kind == "hda":
            found = [(Path(name), self._server.datasets.show_dataset(output.id))]
        else:
            shown = self._server.histories.show_dataset_collection(self._history, output.id)
            inner = list(leaves(shown["elements"]))
            paths = unique_paths([Path(name, *map(file_name, path)) for path, _ in inner])
            found = [(path, dataset) for path, (_, dataset) in zip(paths, inner, strict=True)]
        return [(path, dataset) for path, dataset in found if not _is_nothing(dataset)]

    def _remove_others(self, current: set[str]) -> None:
        """Remove what an earlier run here made and this one does not."""
        for place, known in list(self._state.run.fetched.items()):
            if known["dataset"] not in current and place not in (CRATE_NAME, REPORT_NAME):
                (self._state.folder / place).unlink(missing_ok=True)
                del self._state.run.fetched[place]

    @staticmethod
    def _type(dataset: Mapping[str, Any]) -> str:
        return str(dataset.get("file_ext") or dataset.get("extension"))

    def _downloads(self, path: Path, dataset: Mapping[str, Any]) -> Iterator[_Download]:
        """The files of a dataset: one, or those in its folder."""
        identity, kind = str(dataset["id"]), self._type(dataset)
        if kind not in self._folder_types:
            name = with_ending(path.name, kind)
            # raw: else a page comes changed, or as a zip
            address = f"histories/{self._history}/contents/{identity}/display?raw=true"
            yield _Download(str(path.with_name(name)), identity, address, int(dataset.get("file_size") or 0))
        elif self._volumes:
            folder = path.with_name(with_ending(path.name, kind))
            for entry in self._server.histories.get_extra_files(self._history, identity):
                if entry["class"] == "File":  # type: ignore[index]
                    inner = str(entry["path"])  # type: ignore[index]
                    address = f"datasets/{identity}/extra_files/raw/{quote(inner)}"
                    yield _Download(str(safe_join(folder, inner)), identity, address, None)

    def _is_there(self, entry: _Download) -> bool:
        known = self._state.run.fetched.get(entry.place)
        target = self._state.folder / entry.place
        return (
            known is not None
            and known["dataset"] == entry.dataset
            and target.is_file()
            and target.stat().st_size == known["size"]
        )

    def _run(self, downloads: list[_Download]) -> None:
        if not downloads:
            return
        total = sum(entry.size or 0 for entry in downloads)
        require_disk(self._state.folder, total)
        say(f"Fetching {len(downloads)} {'file' if len(downloads) == 1 else 'files'} ({total / 1e6:.1f} MB)")
        try:
            with bytes_progress("Fetching", total) as advance, Transfers(advance) as transfers:
                for started in [transfers.start(self._fetcher(entry, transfers)) for entry in downloads]:
                    transfers.wait(started)
        finally:
            self._state.save()

    def _fetcher(self, entry: _Download, transfers: Transfers) -> Callable[[], None]:
        return lambda: self._fetch_one(entry, transfers.advance)

    def _fetch_one(self, entry: _Download, advance: Callable[[int], None]) -> None:
        """Fetch a file into a part that grows over several attempts, and give it its name when it is whole."""
        target = self._state.folder / entry.place
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{entry.dataset}.part")
        size = self._server.repeat(lambda: self._continue(entry, part, advance), changes=False)
        if part.stat().st_size != size:
            got = part.stat().st_size
            part.unlink()
            raise KBrainError(
                f"'{entry.place}' arrived with {got} bytes and has {size} in Galaxy: run the command again"
            )
        part.replace(target)
        with self._state.lock:
            self._state.run.fetched[entry.place] = {"dataset": entry.dataset, "size": size}
        self._state.save_soon()

    def _continue(self, entry: _Download, part: Path, advance: Callable[[int], None]) -> int:
        """Fetch what is missing of a file; its full size."""
        have = part.stat().st_size if part.is_file() else 0
        if entry.size is not None and have == entry.size:
            part.touch()
            return entry.size
        headers = {"x-api-key": self._server.key or "", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        url = f"{self._server.url}/{entry.address}"
        with requests.get(url, headers=headers, stream=True, timeout=(20.0, 120.0)) as answer:
            if answer.status_code == 416:  # the part is as long as the file, or longer
                part.unlink(missing_ok=True)
                return self._continue(entry, part, advance)
            if answer.status_code not in (200, 206):
                raise GalaxyAnswerError("download refused", answer.text, answer.status_code)
            resumed = answer.status_code == 206
            with part.open("ab" if resumed else "wb") as file:
                for piece in answer.iter_content(_PIECE_BYTES):
                    file.write(piece)
                    advance(len(piece))
            length = int(answer.headers.get("Content-Length", part.stat().st_size - (have if resumed else 0)))
        return entry.size if entry.size is not None else length + (have if resumed else 0)


def _is_nothing(dataset: Mapping[str, Any]) -> bool:
    """Whether a dataset stands for an output of a step that was switched off: Galaxy writes `null` there."""
    kind, size = str(dataset.get("file_ext") or dataset.get("extension")), int(dataset.get("file_size") or 0)
    return dataset.get("state") not in ("ok", "failed_metadata") or (
        kind == "expression.json" and size <= len("null\n")
    )


def _folder_types(server: Server) -> frozenset[str]:
    """The datatypes whose datasets are folders."""
    mapping = server.read("datatypes/mapping")
    parents = mapping["class_to_classes"]
    classes = mapping["ext_to_class_name"]
    return frozenset(kind for kind, name in classes.items() if _FOLDER_CLASS in parents.get(name, {}))


def file_name(label: str) -> str:
    """A label as a file name: no separators, no spaces, nothing hidden."""
    return re.sub(r"[^\w.+=,@()-]+", "_", label).lstrip("._-").rstrip("_") or "output"


def unique_paths(paths: list[Path]) -> list[Path]:
    """The paths with a number where two are the same: names in Galaxy may differ by signs that file names have not."""
    taken: set[Path] = set()
    unique: list[Path] = []
    for path in paths:
        free = path
        number = 2
        while free in taken:
            free = path.with_name(f"{path.name}_{number}")
            number += 1
        taken.add(free)
        unique.append(free)
    return unique


def with_ending(name: str, kind: str) -> str:
    """A name with the ending of its datatype, unless it has one that says the same."""
    ending = ("." + _ENDINGS.get(kind, kind)).rstrip(".")
    same = {
        ".tif": (".tif", ".tiff"),
        ".ome.tif": (".tif", ".tiff"),
        ".jpg": (".jpg", ".jpeg"),
        ".tsv": (".tsv", ".txt"),
    }
    return name if name.lower().endswith(same.get(ending, (ending,))) else name + ending


def safe_join(folder: Path, inner: str) -> Path:
    """A path inside a folder.

    Raises
    ------
    KBrainError
        When it would lead out: a server must not write elsewhere on this disk.
    """
    parts = Path(inner).parts
    if Path(inner).is_absolute() or ".." in parts or not parts:
        raise KBrainError(
            f"Galaxy names a file '{inner}' that would lie outside of the output folder: it is not fetched"
        )
    return folder.joinpath(*parts)


def fetch_crate(server: Server, state: StateFile) -> Path | None:
    """Export the run as an RO-Crate (what ran, with which inputs, settings and versions), without the data.

    Returns
    -------
    Path or None
        The file; None when the server makes none, which is told.
    """
    from bioblend import TimeoutException

    target = state.folder / CRATE_NAME
    invocation = state.run.invocation or ""
    if state.run.fetched.get(CRATE_NAME, {}).get("dataset") == invocation and target.is_file():
        return target
    try:
        answer = server.invocations.get_invocation_archive(
            invocation, model_store_format="rocrate.zip", include_files=False, maxwait=CRATE_WAIT_S
        )
    except (GalaxyAnswerError, TimeoutException) as error:
        said = answer_text(error.body) if isinstance(error, GalaxyAnswerError) else str(error)
        say(f"The server made no RO-Crate of the run: {said}")
        return None
    return _write(state, CRATE_NAME, answer.content)


def fetch_report(server: Server, state: StateFile, places: Mapping[str, Path]) -> Path:
    """Write the workflow's report, with the pictures and files that were fetched instead of Galaxy's own commands."""
    text = str(server.invocations.get_invocation_report(state.run.invocation or "")["markdown"])
    return _write(state, REPORT_NAME, plain_report(text, state.folder, places).encode("utf-8"))


def plain_report(text: str, folder: Path, places: Mapping[str, Path]) -> str:
    """Galaxy's report as Markdown that any reader shows.

    Parameters
    ----------
    text : str
        As Galaxy gives it, with its commands.
    folder : Path
        Where the report goes; links are relative to it.
    places : mapping of str to Path
        Where the outputs are, by label.
    """

    def link(label: str, place: Path) -> str:
        return f"[{label}]({quote(str(place.relative_to(folder)))})"

    def shown(match: re.Match[str]) -> str:
        call = match["call"] or match["inline"]
        if call.startswith("invocation_outputs"):
            return "\n".join(f"- {link(label, place)}" for label, place in places.items())
        found = re.search(r"output=\"?([^\",)]+)", call)
        if found is None:
            return ""
        label = found[1].strip()
        place = places.get(label)
        if place is None:
            return f"*{label}: in Galaxy*"
        pictures = (
            sorted(place.rglob("*.png")) if place.is_dir() else [place] if place.suffix == ".png" else []
        )
        if pictures:
            return "\n\n".join(f"!{link(picture.stem, picture)}" for picture in pictures)
        if place.suffix == ".md":
            text = place.read_text(encoding="utf-8", errors="replace")
            return _PICTURE.sub(lambda found: found[0] if (folder / found[1]).is_file() else "", text)
        return link(label, place)

    return _DIRECTIVE.sub(shown, text)


def _write(state: StateFile, name: str, content: bytes) -> Path:
    from kbrain_core.store import write_bytes

    write_bytes(state.folder / name, content)
    state.run.fetched[name] = {"dataset": state.run.invocation, "size": len(content)}
    state.save()
    return state.folder / name
