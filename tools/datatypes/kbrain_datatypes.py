"""Data types that KBrain adds to Galaxy: volumes for Neuroglancer, what is measured in them, and saved views of them.

Galaxy imports this module when it starts (the folder must be on its PYTHONPATH) and again when a job's outputs are
described. Uploaded files come from anywhere: what is read here is bounded in size and may be of any shape.
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import struct
import zipfile
from pathlib import Path
from typing import Any

from galaxy.datatypes.binary import Binary, CompressedZipArchive, SQlite
from galaxy.datatypes.data import Directory, Text
from galaxy.datatypes.metadata import ListParameter, MetadataElement
from galaxy.datatypes.sniff import build_sniff_from_prefix
from galaxy.datatypes.text import Json
from galaxy.datatypes.xml import GenericXml

INFO_LIMIT_BYTES = 4_000_000  # an info file lists levels, not chunks: that of a whole brain has a few kB
VIEW_LIMIT_BYTES = 20_000_000  # a view may name many thousand selected neurons
SHOWN_CHARACTERS = 60  # of a name that somebody else chose
JUNK = ("__MACOSX",)  # a folder that macOS adds to zip files

# What precomputed folders say that are no volumes.
OTHER_KINDS = {
    "neuroglancer_legacy_mesh": "meshes",
    "neuroglancer_multilod_draco": "meshes",
    "neuroglancer_skeletons": "skeletons",
    "neuroglancer_annotations_v1": "annotations",
}
KIND_IN_WORDS = {"image": "Image volume", "segmentation": "Label volume", "meshes": "Meshes of objects"}
KIND_IN_WORDS |= {"skeletons": "Skeletons of objects", "annotations": "Annotations"}
LOSSY = ("jpeg", "jxl", "webp")


def parse_json(text: bytes) -> dict[str, Any]:
    """A JSON object; empty for everything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def describe_info(info: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a precomputed folder, from the content of its info file; empty when it is none."""
    kind = OTHER_KINDS.get(str(info.get("@type")))
    if kind is not None:
        return {"volume_type": kind}
    scales = info.get("scales")
    if info.get("type") not in ("image", "segmentation") or not isinstance(scales, list) or not scales:
        return {}
    first = scales[0] if isinstance(scales[0], dict) else {}
    size, voxel = _three_numbers(first.get("size")), _three_numbers(first.get("resolution"))
    if size is None or voxel is None or not isinstance(first.get("key"), str):
        return {}
    channels = info.get("num_channels")
    return {
        "volume_type": info["type"],
        "data_type": _plain(info.get("data_type")),
        "channels": channels if isinstance(channels, int) else 1,
        "volume_size": [int(length) for length in size],
        "voxel_size_nm": voxel,
        "mips": len(scales),
        "encoding": _plain(first.get("encoding")),
        "sharded": isinstance(first.get("sharding"), dict),
    }


def _three_numbers(value: Any) -> list[float] | None:
    """Three finite positive numbers x, y, z; else None."""
    if not isinstance(value, list) or len(value) != 3:
        return None
    fine = all(type(number) in (int, float) and 0 < number < 1e15 for number in value)
    return value if fine else None


def _plain(value: Any) -> str:
    """A short name without control characters."""
    return re.sub(r"[^\w.+ -]", "?", str(value))[:SHOWN_CHARACTERS]


def _times(numbers: list[Any]) -> str:
    return " x ".join(f"{number:,.4g}" if isinstance(number, float) else f"{number:,}" for number in numbers)


def _voxel_size_in_words(nanometres: list[float]) -> str:
    in_um = max(nanometres) >= 1000
    sides = " x ".join(f"{side / 1000 if in_um else side:.6g}" for side in nanometres)
    return f"{sides} {'µm' if in_um else 'nm'}"


def _depth(data_type: str) -> str:
    bits = re.search(r"\d+$", data_type)
    return f"{bits[0]}-bit ({data_type})" if bits else data_type


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


class NeuroglancerPrecomputed(Directory):
    """A folder in Neuroglancer's precomputed format: a volume, or meshes, skeletons or annotations.

    The folder is the dataset's extra files, or the only folder in them that has an info file (`store_root`), as in the
    zip files that people make of a folder.
    """

    file_ext = "neuroglancer_precomputed"

    MetadataElement(name="volume_type", default="", desc="Kind of the volume", readonly=True, optional=True)
    MetadataElement(name="data_type", default="", desc="Type of a voxel", readonly=True, optional=True)
    MetadataElement(name="channels", default=1, desc="Channels", readonly=True, optional=True)
    MetadataElement(
        name="volume_size",
        default=[],
        param=ListParameter,
        desc="Voxels x, y, z",
        readonly=True,
        optional=True,
    )
    MetadataElement(
        name="voxel_size_nm", default=[], param=ListParameter, desc="Voxel size x, y, z in nm", readonly=True,
        optional=True,
    )  # fmt: skip
    MetadataElement(name="mips", default=0, desc="Resolution levels", readonly=True, optional=True)
    MetadataElement(name="encoding", default="", desc="Encoding of the chunks", readonly=True, optional=True)
    MetadataElement(name="sharded", default=False, desc="Chunks are in shards", readonly=True, optional=True)
    MetadataElement(
        name="complete", default=True, desc="The job that wrote it ended", readonly=True, optional=True
    )
    MetadataElement(
        name="store_root", default="", desc="Folder of the volume in the dataset", readonly=True, optional=True,
        visible=False,
    )  # fmt: skip

    def set_meta(self, dataset: Any, overwrite: bool = True, **kwd: Any) -> None:
        """Read the info file."""
        folder, info = find_info(Path(dataset.extra_files_path))
        found = describe_info(info) or {"volume_type": ""}
        for name, value in found.items():
            setattr(dataset.metadata, name, value)
        if folder is not None:
            dataset.metadata.store_root = folder.name if folder != Path(dataset.extra_files_path) else ""
            unfinished = (folder / ".kbrain" / "job.json").exists()
            dataset.metadata.complete = not unfinished or (folder / ".kbrain" / "complete").exists()

    def set_peek(self, dataset: Any, **kwd: Any) -> None:
        """Say in words what the metadata say."""
        if dataset.dataset.purged:
            dataset.peek, dataset.blurb = "file does not exist", "file purged from disk"
            return
        lines = self.describe(dataset.metadata)
        dataset.peek = "\n".join(lines)
        dataset.blurb = lines[1] if len(lines) > 1 else lines[0]

    @staticmethod
    def describe(metadata: Any) -> list[str]:
        """What the dataset is, line by line, for somebody who never saw an info file."""
        kind = metadata.volume_type
        if kind not in KIND_IN_WORDS:
            return ["No Neuroglancer volume: the folder has no valid info file"]
        if not metadata.volume_size:
            return [f"{KIND_IN_WORDS[kind]} for Neuroglancer"]
        channels = f", {metadata.channels} channels" if metadata.channels != 1 else ""
        lossy = " (lossy)" if metadata.encoding in LOSSY else ""
        lines = [
            f"{KIND_IN_WORDS[kind]}, {_depth(metadata.data_type)}{channels}",
            f"{_times(metadata.volume_size)} voxels (x, y, z)",
            f"Voxel size {_voxel_size_in_words(metadata.voxel_size_nm)}",
            f"{_count(metadata.mips, 'resolution level')}, {metadata.encoding}{lossy}"
            f"{', sharded' if metadata.sharded else ''}",
        ]
        return lines if metadata.complete else ["UNFINISHED: the job that wrote it did not end", *lines]


def find_info(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """The folder with the info file, which is `folder` or the only one in it that has one, and what is in that file."""
    try:
        inside = [path for path in sorted(folder.iterdir()) if path.name not in JUNK]
    except OSError:
        return None, {}
    roots = [path for path in [folder, *inside] if _is_file(path / "info")]
    if not roots or (roots[0] != folder and len(roots) > 1):
        return None, {}
    with (roots[0] / "info").open("rb") as file:
        text = file.read(INFO_LIMIT_BYTES + 1)
    return roots[0], parse_json(text) if len(text) <= INFO_LIMIT_BYTES else {}


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


class NeuroglancerPrecomputedZip(CompressedZipArchive):
    """A zip file of a precomputed folder, the folder itself or what is in it."""

    file_ext = "neuroglancer_precomputed.zip"

    def sniff(self, filename: str) -> bool:
        """Whether the topmost info file is one of Neuroglancer's."""
        with zipfile.ZipFile(filename) as archive:
            return bool(describe_info(self._read_info(archive)))

    @staticmethod
    def _read_info(archive: zipfile.ZipFile) -> dict[str, Any]:
        members = [m for m in archive.infolist() if re.fullmatch(r"([^/]+/)?info", m.filename)]
        members = [m for m in members if not m.filename.startswith(JUNK)]
        if not members:
            return {}
        top = min(members, key=lambda member: member.filename.count("/"))
        with archive.open(top) as file:
            text = file.read(INFO_LIMIT_BYTES + 1)
        return parse_json(text) if len(text) <= INFO_LIMIT_BYTES else {}

    def set_peek(self, dataset: Any, **kwd: Any) -> None:
        """Say that it opens as it is."""
        super().set_peek(dataset, **kwd)
        if not dataset.dataset.purged:
            dataset.peek = "Zip file of a Neuroglancer volume"


@build_sniff_from_prefix
class Swc(Text):
    """The tree of a neuron: a line per node with id, type, x, y, z, radius and the id of its parent (-1 at the root)."""

    file_ext = "swc"
    MetadataElement(name="nodes", default=0, desc="Nodes", readonly=True, optional=True)
    MetadataElement(
        name="trees", default=0, desc="Trees (nodes without a parent)", readonly=True, optional=True
    )

    def sniff_prefix(self, file_prefix: Any) -> bool:
        """Whether every line is a node whose parent came before it."""
        seen: set[int] = set()
        for line in _whole_lines(file_prefix):
            fields = line.split()
            if not fields or fields[0].startswith("#"):
                continue
            node = self._node(fields)
            if node is None or node[0] in seen or (node[1] != -1 and node[1] not in seen):
                return False
            seen.add(node[0])
        return bool(seen)

    @staticmethod
    def _node(fields: list[str]) -> tuple[int, int] | None:
        """Id and parent of a node; None when the line is none."""
        if len(fields) != 7:
            return None
        try:
            [float(field) for field in fields[2:6]]
            return int(fields[0]), int(fields[6])
        except ValueError:
            return None

    def set_meta(self, dataset: Any, overwrite: bool = True, **kwd: Any) -> None:
        """Count nodes and roots."""
        super().set_meta(dataset, overwrite=overwrite, **kwd)
        nodes = roots = 0
        with Path(dataset.get_file_name()).open(encoding="utf-8", errors="replace") as file:
            for line in file:
                fields = line.split()
                if fields and not fields[0].startswith("#"):
                    nodes += 1
                    roots += fields[-1] == "-1"
        dataset.metadata.nodes, dataset.metadata.trees = nodes, roots

    def set_peek(self, dataset: Any, **kwd: Any) -> None:
        """Show the first lines, and say how many nodes there are."""
        super().set_peek(dataset, **kwd)
        if not dataset.dataset.purged:
            trees = _count(dataset.metadata.trees, "tree")
            dataset.blurb = f"{_count(dataset.metadata.nodes, 'node')} in {trees}"


def _whole_lines(file_prefix: Any) -> list[str]:
    """Lines of the beginning of a file, without one that is cut."""
    lines: list[str] = (file_prefix.contents_header or "").splitlines()
    return lines[:-1] if file_prefix.truncated else lines


OBJ_WORDS = {"v", "vn", "vt", "vp", "f", "l", "p", "o", "g", "s", "mtllib", "usemtl"}


@build_sniff_from_prefix
class Obj(Text):
    """A surface of triangles as Wavefront writes it."""

    file_ext = "obj"
    MetadataElement(name="vertices", default=0, desc="Vertices", readonly=True, optional=True)
    MetadataElement(name="faces", default=0, desc="Faces", readonly=True, optional=True)

    def sniff_prefix(self, file_prefix: Any) -> bool:
        """Whether there are vertices, and nothing else than what an OBJ file has."""
        vertices = 0
        for line in _whole_lines(file_prefix):
            fields = line.split()
            if not fields or fields[0].startswith("#"):
                continue
            if fields[0] not in OBJ_WORDS:
                return False
            if fields[0] == "v":
                try:
                    [float(field) for field in fields[1:]]
                except ValueError:
                    return False
                if len(fields) not in (4, 5, 7):  # x y z, perhaps a weight or a colour
                    return False
                vertices += 1
        return vertices >= 3

    def set_meta(self, dataset: Any, overwrite: bool = True, **kwd: Any) -> None:
        """Count vertices and faces."""
        super().set_meta(dataset, overwrite=overwrite, **kwd)
        with Path(dataset.get_file_name()).open("rb") as file:
            starts = [0, 0]
            for line in file:
                starts[0] += line.startswith((b"v ", b"v\t"))
                starts[1] += line.startswith((b"f ", b"f\t"))
        dataset.metadata.vertices, dataset.metadata.faces = starts

    def set_peek(self, dataset: Any, **kwd: Any) -> None:
        """Show the first lines, and say how large the surface is."""
        super().set_peek(dataset, **kwd)
        if not dataset.dataset.purged:
            dataset.blurb = (
                f"{dataset.metadata.vertices:,} vertices, {_count(dataset.metadata.faces, 'face')}"
            )


CTM_HEADER = struct.Struct("<4sI4sII")  # mark, version, compression, vertices, triangles
CTM_COMPRESSIONS = (b"RAW\0", b"MG1\0", b"MG2\0")


@build_sniff_from_prefix
class Ctm(Binary):
    """A compressed surface of triangles (OpenCTM)."""

    file_ext = "ctm"
    MetadataElement(name="vertices", default=0, desc="Vertices", readonly=True, optional=True)
    MetadataElement(name="faces", default=0, desc="Triangles", readonly=True, optional=True)

    @staticmethod
    def _header(content: bytes) -> tuple[int, int] | None:
        if len(content) < CTM_HEADER.size:
            return None
        mark, _version, compression, vertices, faces = CTM_HEADER.unpack_from(content)
        return (vertices, faces) if mark == b"OCTM" and compression in CTM_COMPRESSIONS else None

    def sniff_prefix(self, file_prefix: Any) -> bool:
        """Whether the header is OpenCTM's."""
        return self._header(file_prefix.contents_header_bytes) is not None

    def set_meta(self, dataset: Any, overwrite: bool = True, **kwd: Any) -> None:
        """Take the counts from the header."""
        with Path(dataset.get_file_name()).open("rb") as file:
            counts = self._header(file.read(CTM_HEADER.size))
        if counts is not None:
            dataset.metadata.vertices, dataset.metadata.faces = counts

    def set_peek(self, dataset: Any, **kwd: Any) -> None:
        """Say how large the surface is."""
        super().set_peek(dataset, **kwd)
        if not dataset.dataset.purged:
            dataset.peek = "Surface of triangles (OpenCTM)"
            dataset.blurb = (
                f"{dataset.metadata.vertices:,} vertices, {_count(dataset.metadata.faces, 'triangle')}"
            )


@build_sniff_from_prefix
class Graphml(GenericXml):
    """A graph, such as neurons and the synapses between them."""

    file_ext = "graphml"

    def sniff_prefix(self, file_prefix: Any) -> bool:
        """Whether the first element is `graphml`."""
        text = re.sub(r"<!--.*?-->|<\?.*?\?>", "", file_prefix.contents_header or "", flags=re.DOTALL)
        return re.match(r"\s*(<!DOCTYPE[^>[]*>\s*)?<(\w+:)?graphml[\s>]", text.lstrip("\ufeff")) is not None


class KBrainSqlite(SQlite):
    """Measured neurons, synapses and their connections as KBrain stores them: an SQLite database with its own mark.

    The mark is the database's `application_id`, 0x4B42524E ("KBRN"), set with `PRAGMA application_id = 1262637646`; it is
    stored at byte 68 of the file.
    """

    file_ext = "kbrain.sqlite"
    APPLICATION_ID = 0x4B42524E
    _HEADER_BYTES = 72

    def sniff(self, filename: str) -> bool:
        """Whether the file is an SQLite database with KBrain's mark."""
        with Path(filename).open("rb") as file:
            header = file.read(self._HEADER_BYTES)
        mark = self.APPLICATION_ID.to_bytes(4, "big")
        return header.startswith(b"SQLite format 3\0") and header[68:72] == mark

    def set_meta(self, dataset: Any, overwrite: bool = True, **kwd: Any) -> None:
        """List the tables; they are not counted, which would read the whole of a large database."""
        address = f"{Path(dataset.get_file_name()).absolute().as_uri()}?mode=ro"
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(address, uri=True)) as database,
        ):
            rows = database.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name LIMIT 1000"
            )
            dataset.metadata.tables = [_plain(name) for (name,) in rows]

    def set_peek(self, dataset: Any, **kwd: Any) -> None:
        """Name the tables."""
        if dataset.dataset.purged:
            dataset.peek, dataset.blurb = "file does not exist", "file purged from disk"
            return
        tables = [name for name in dataset.metadata.tables if not name.startswith("sqlite_")]
        dataset.peek = "\n".join(["KBrain database with the tables", *tables[:20]])
        dataset.blurb = _count(len(tables), "table")


class KNeuroVizView(Json):
    """A saved view: which volumes KNeuroViz shows, how they look and from where, as Neuroglancer's JSON."""

    file_ext = "kneuroviz_view"
    MetadataElement(
        name="layers", default=[], param=ListParameter, desc="Layers", readonly=True, optional=True
    )

    @staticmethod
    def _layers(filename: str) -> list[str] | None:
        """What the view shows, a line per layer; None when it is no view."""
        with Path(filename).open("rb") as file:
            text = file.read(VIEW_LIMIT_BYTES + 1)
        state = parse_json(text) if len(text) <= VIEW_LIMIT_BYTES and text.lstrip().startswith(b"{") else {}
        layers = state.get("layers")
        if not isinstance(layers, list) or not layers or not all(isinstance(layer, dict) for layer in layers):
            return None
        if not all({"type", "source"} <= layer.keys() for layer in layers):
            return None
        names = ((_plain(layer.get("name", "unnamed")), _plain(layer["type"])) for layer in layers)
        return [f"{name} ({kind})" for name, kind in names]

    def sniff_prefix(self, file_prefix: Any) -> bool:
        """Whether it has what a view of Neuroglancer has: layers with a type and a source."""
        return self._layers(file_prefix.filename) is not None

    def set_meta(self, dataset: Any, overwrite: bool = True, **kwd: Any) -> None:
        """List the layers."""
        dataset.metadata.layers = (self._layers(dataset.get_file_name()) or [])[:1000]

    def set_peek(self, dataset: Any, **kwd: Any) -> None:
        """Name the layers."""
        if dataset.dataset.purged:
            dataset.peek, dataset.blurb = "file does not exist", "file purged from disk"
            return
        layers = dataset.metadata.layers
        dataset.peek = (
            "\n".join(["Saved KNeuroViz view", *layers[:20]]) if layers else "No KNeuroViz view: no layers"
        )
        dataset.blurb = _count(len(layers), "layer")

    def display_peek(self, dataset: Any) -> str:
        """The peek with its names escaped (Galaxy's JSON type trusts them)."""
        return Text.display_peek(self, dataset)
