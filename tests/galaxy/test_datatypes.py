"""KBrain's data types in Galaxy's own registry: what is recognised, what is said of it, and what hostile files do."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kbrain_galaxy.places import environments_folder, packaged

INFO = {
    "@type": "neuroglancer_multiscale_volume",
    "type": "image",
    "data_type": "uint8",
    "num_channels": 1,
    "scales": [
        {
            "key": f"level{level}",
            "size": [2048 >> level, 1536 >> level, 120],
            "resolution": [4 << level, 4 << level, 40],
            "encoding": "jpeg",
            "chunk_sizes": [[64, 64, 64]],
            "sharding": {"@type": "neuroglancer_uint64_sharded_v1"},
        }
        for level in range(4)
    ],
}
VIEW = {
    "title": "A cell",
    "layout": "4panel",
    "position": [1, 2, 3],
    "layers": [
        {"type": "image", "name": "membranes", "source": {"url": "/api/datasets/1f/extra_files/raw|zarr3:"}},
        {"type": "segmentation", "name": "neurons", "source": ["/api/x|neuroglancer-precomputed:"]},
    ],
}
SWC = "# from a tracing\n1 1 0.5 1 2 1.5 -1\n2 3 1 1 2 1 1\n3 3 2 1 2 1 2\n"
OBJ = "# a surface\no cell\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvn 0 0 1\nf 1//1 2//1 3//1\n"
GRAPHML = '<?xml version="1.0"?>\n<!-- neurons -->\n<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph/></graphml>\n'


@pytest.fixture(scope="module")
def ask() -> Iterator[Callable[[str, Path], Any]]:
    """Ask Galaxy for the type of a file ("auto"), or for the description of a dataset of a given type."""
    python = environments_folder() / "galaxy" / "bin" / "python"
    if not python.exists():
        assert os.environ.get("CI") != "true", f"{python} is missing: make the environment of Galaxy first"
        pytest.skip("the environment of Galaxy is not made yet (`kbrain-galaxy start` makes it)")
    command = [str(python), str(Path(__file__).with_name("datatype_worker.py"))]
    with subprocess.Popen(
        [*command, str(packaged("tools") / "datatypes_conf.xml")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(packaged("tools") / "datatypes")},
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        sender, answers = worker.stdin, worker.stdout

        def send(extension: str, path: Path) -> Any:
            sender.write(json.dumps({"extension": extension, "path": str(path)}) + "\n")
            sender.flush()
            return json.loads(answers.readline())

        yield send
        sender.close()


def precomputed(folder: Path, info: Any = INFO) -> Path:
    folder.mkdir(parents=True)
    (folder / "info").write_text(info if isinstance(info, str) else json.dumps(info))
    (folder / "level0").mkdir()
    return folder


def zipped(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def test_a_volume_is_described_in_words(tmp_path: Path, ask: Any) -> None:
    found = ask("neuroglancer_precomputed", precomputed(tmp_path / "volume"))
    assert found["peek"].splitlines() == [
        "Image volume, 8-bit (uint8)",
        "2,048 x 1,536 x 120 voxels (x, y, z)",
        "Voxel size 4 x 4 x 40 nm",
        "4 resolution levels, jpeg (lossy), sharded",
    ]
    assert found["blurb"] == "2,048 x 1,536 x 120 voxels (x, y, z)"
    metadata = found["metadata"]
    assert metadata["volume_type"] == "image"
    assert metadata["volume_size"] == [2048, 1536, 120]
    assert metadata["voxel_size_nm"] == [4, 4, 40]
    assert (metadata["mips"], metadata["encoding"], metadata["store_root"]) == (4, "jpeg", "")


def test_the_folder_that_a_zip_kept_is_found(tmp_path: Path, ask: Any) -> None:
    labels = {**INFO, "type": "segmentation", "data_type": "uint64", "num_channels": 2}
    labels["scales"] = [
        {"key": "a", "size": [10, 10, 10], "resolution": [500.0, 500.0, 2000], "encoding": "raw"}
    ]
    precomputed(tmp_path / "upload" / "my labels", labels)
    precomputed(tmp_path / "upload" / "__MACOSX", labels)
    found = ask("neuroglancer_precomputed", tmp_path / "upload")
    assert found["metadata"]["store_root"] == "my labels"
    assert found["peek"].splitlines() == [
        "Label volume, 64-bit (uint64), 2 channels",
        "10 x 10 x 10 voxels (x, y, z)",
        "Voxel size 0.5 x 0.5 x 2 µm",
        "1 resolution level, raw",
    ]


def test_two_volumes_in_one_dataset_are_not_guessed_at(tmp_path: Path, ask: Any) -> None:
    precomputed(tmp_path / "upload" / "a")
    precomputed(tmp_path / "upload" / "b")
    assert "no valid info file" in ask("neuroglancer_precomputed", tmp_path / "upload")["peek"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("neuroglancer_multilod_draco", "Meshes of objects for Neuroglancer"),
        ("neuroglancer_skeletons", "Skeletons of objects for Neuroglancer"),
        ("neuroglancer_annotations_v1", "Annotations for Neuroglancer"),
    ],
)
def test_meshes_skeletons_and_annotations(tmp_path: Path, ask: Any, kind: str, words: str) -> None:
    assert ask("neuroglancer_precomputed", precomputed(tmp_path / "models", {"@type": kind}))["peek"] == words


def test_an_unfinished_volume_says_so(tmp_path: Path, ask: Any) -> None:
    marks = precomputed(tmp_path / "volume") / ".kbrain"
    marks.mkdir()
    (marks / "job.json").write_text("{}")
    found = ask("neuroglancer_precomputed", tmp_path / "volume")
    assert found["peek"].startswith("UNFINISHED")
    assert found["metadata"]["complete"] is False
    (marks / "complete").touch()
    assert ask("neuroglancer_precomputed", tmp_path / "volume")["metadata"]["complete"] is True


HOSTILE_INFO = {
    "empty": "",
    "no object": "[1, 2]",
    "cut": json.dumps(INFO)[:200],
    "deep": "[" * 100_000,
    "huge number": '{"type": "image", "scales": [{"key": "a", "size": ['
    + "9" * 5000
    + ', 1, 1], "resolution": [1, 1, 1]}]}',
    "infinite": '{"type": "image", "scales": [{"key": "a", "size": [1e999, 1, 1], "resolution": [1, 1, 1]}]}',
    "no numbers": '{"type": "image", "scales": [{"key": "a", "size": ["<b>", 1, 1], "resolution": [1, 1, 1]}]}',
    "no scales": '{"type": "image", "scales": {}}',
    "scales of text": '{"type": "image", "scales": ["x"]}',
    "zero voxels": '{"type": "image", "scales": [{"key": "a", "size": [0, 1, 1], "resolution": [1, 1, 1]}]}',
    "huge file": '{"type": "image", "junk": "' + "x" * 5_000_000 + '"}',
    "not text": "\x00\x01\x02",
}


@pytest.mark.parametrize("name", HOSTILE_INFO)
def test_a_damaged_info_file_is_no_volume(tmp_path: Path, ask: Any, name: str) -> None:
    found = ask("neuroglancer_precomputed", precomputed(tmp_path / "volume", HOSTILE_INFO[name]))
    assert found["peek"] == "No Neuroglancer volume: the folder has no valid info file"
    assert found["metadata"].get("volume_type", "") == ""


def test_no_folder_at_all(tmp_path: Path, ask: Any) -> None:
    (tmp_path / "empty").mkdir()
    assert "no valid info file" in ask("neuroglancer_precomputed", tmp_path / "empty")["peek"]


def test_names_in_an_info_file_cannot_run(tmp_path: Path, ask: Any) -> None:
    evil = json.loads(json.dumps(INFO))
    evil["data_type"] = "<script>alert(1)</script>"
    evil["scales"][0]["encoding"] = '"><img src=x onerror=alert(1)>' + "y" * 1000
    found = ask(
        "neuroglancer_precomputed", precomputed(tmp_path / "upload" / "<img src=x onerror=alert(2)>", evil)
    )
    for shown in (found["html"], found["blurb"], json.dumps(found["metadata"]["encoding"])):
        assert "<script" not in shown
        assert "<img" not in shown
    assert len(found["peek"]) < 400


def test_an_info_file_that_leads_elsewhere_is_not_read(tmp_path: Path, ask: Any) -> None:
    secret = precomputed(tmp_path / "secret")
    (tmp_path / "upload").mkdir()
    (tmp_path / "upload" / "info").symlink_to(secret / "info")
    assert "no valid info file" in ask("neuroglancer_precomputed", tmp_path / "upload")["peek"]


@pytest.mark.parametrize("top", ["", "volume/"])
def test_a_zipped_volume_is_recognised(tmp_path: Path, ask: Any, top: str) -> None:
    members = {"__MACOSX/info": "junk", f"{top}level0/0-64_0-64_0-64": "x", f"{top}info": json.dumps(INFO)}
    path = zipped(tmp_path / "upload.dat", members)
    assert ask("auto", path) == "neuroglancer_precomputed.zip"
    assert ask("neuroglancer_precomputed.zip", path)["peek"] == "Zip file of a Neuroglancer volume"


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"info": "{}", "b": "x"}, "zip"),
        ({"a/b/c/info": json.dumps(INFO), "b": "x"}, "zip"),
        (
            {"../info": json.dumps(INFO), "b": "x"},
            "neuroglancer_precomputed.zip",
        ),  # unpacking it is refused by Galaxy
        ({"info": "[" * 100_000, "b": "x"}, "zip"),
        ({"zarr.json": '{"zarr_format": 3}', "0/zarr.json": "{}"}, "zarr.zip"),
    ],
    ids=["empty-info", "too-deep", "traversal", "deep-json", "zarr"],
)
def test_other_zip_files_stay_what_they_are(
    tmp_path: Path, ask: Any, members: dict[str, str], expected: str
) -> None:
    assert ask("auto", zipped(tmp_path / "upload.dat", members)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SWC, "swc"),
        (OBJ, "obj"),
        (GRAPHML, "graphml"),
        (json.dumps(VIEW), "kneuroviz_view"),
        (json.dumps(VIEW, indent=1), "kneuroviz_view"),
        ("\n".join(f"{n} 3 {n} 0 0 1 {n - 1 or -1}" for n in range(1, 60_000)), "swc"),
        ("\n".join(["v 0 0 0"] * 200_000), "obj"),
    ],
    ids=["swc", "obj", "graphml", "view", "view-indented", "swc-long", "obj-long"],
)
def test_text_is_recognised(tmp_path: Path, ask: Any, text: str, expected: str) -> None:
    path = tmp_path / "upload.dat"
    path.write_text(text)
    assert ask("auto", path) == expected


@pytest.mark.parametrize(
    "text",
    [
        "1 1 0 0 0 1 -1\n1 3 0 0 0 1 1\n",  # an id twice
        "1 1 0 0 0 1 5\n",  # a parent that is not there
        "1 1 0 0 0 1\n",
        "1 1 a b c 1 -1\n",
        "v 0 0 0\nv 1 0 0\nhello world\nv 0 1 0\n",
        "v a b c\nv 1 0 0\nv 0 1 0\n",
        '<graphmlike xmlns="x"/>',
        "<svg><graphml/></svg>",
        json.dumps({"layers": []}),
        json.dumps({"layers": [{"name": "a"}]}),
        json.dumps({"layers": "image"}),
        json.dumps([VIEW]),
        '{"layers": ' + "[" * 100_000,
        "x\ty\tz\n1\t2\t3\n",
        "",
    ],
)
def test_text_that_is_none_of_ours(tmp_path: Path, ask: Any, text: str) -> None:
    path = tmp_path / "upload.dat"
    path.write_text(text)
    assert ask("auto", path) not in ("swc", "obj", "graphml", "kneuroviz_view", "ctm")


def test_a_neuron_is_counted(tmp_path: Path, ask: Any) -> None:
    path = tmp_path / "neuron.swc"
    path.write_text(SWC + "4 1 9 9 9 1 -1\n")
    found = ask("swc", path)
    assert found["blurb"] == "4 nodes in 2 trees"
    assert (found["metadata"]["nodes"], found["metadata"]["trees"]) == (4, 2)
    assert "from a tracing" in found["html"]


def test_surfaces_are_counted(tmp_path: Path, ask: Any) -> None:
    text, binary = tmp_path / "a.obj", tmp_path / "a.ctm"
    text.write_text(OBJ)
    assert ask("obj", text)["blurb"] == "3 vertices, 1 face"
    binary.write_bytes(struct.pack("<4sI4sIIIII", b"OCTM", 5, b"MG2\0", 1200, 2400, 0, 0, 0) + b"\0" * 64)
    assert ask("auto", binary) == "ctm"
    assert ask("ctm", binary)["blurb"] == "1,200 vertices, 2,400 triangles"
    binary.write_bytes(b"OCTM")
    assert ask("auto", binary) != "ctm"


def database(path: Path, application_id: int, tables: tuple[str, ...]) -> Path:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA application_id = {application_id}")
    for table in tables:
        connection.execute(f'CREATE TABLE "{table}" (id INTEGER)')
    connection.commit()
    connection.close()
    return path


def test_a_database_of_kbrain(tmp_path: Path, ask: Any) -> None:
    path = database(
        tmp_path / "a b?#.dat", 0x4B42524E, ("neurons", "synapses", "<img src=x onerror=alert(1)>")
    )
    assert ask("auto", path) == "kbrain.sqlite"
    found = ask("kbrain.sqlite", path)
    assert found["blurb"] == "3 tables"
    assert found["peek"].splitlines()[0] == "KBrain database with the tables"
    assert "neurons" in found["peek"]
    assert "<img" not in found["html"]


def test_other_databases_stay_what_they_are(tmp_path: Path, ask: Any) -> None:
    assert ask("auto", database(tmp_path / "other.dat", 1, ("neurons",))) == "sqlite"
    damaged = tmp_path / "damaged.dat"
    damaged.write_bytes(
        database(tmp_path / "ours.dat", 0x4B42524E, ("neurons",)).read_bytes()[:100] + b"\xff" * 9000
    )
    assert ask("auto", damaged) == "kbrain.sqlite"
    assert ask("kbrain.sqlite", damaged)["blurb"] == "0 tables"


def test_a_view_lists_its_layers(tmp_path: Path, ask: Any) -> None:
    path = tmp_path / "view.json"
    path.write_text(json.dumps(VIEW))
    found = ask("kneuroviz_view", path)
    assert found["peek"].splitlines() == [
        "Saved KNeuroViz view",
        "membranes (image)",
        "neurons (segmentation)",
    ]
    assert found["blurb"] == "2 layers"
    evil = {**VIEW, "layers": [{"type": "image", "source": "x", "name": "<script>alert(1)</script>"}] * 3000}
    path.write_text(json.dumps(evil))
    found = ask("kneuroviz_view", path)
    assert "<script" not in found["html"]
    assert len(found["peek"].splitlines()) == 21
    path.write_text("{}")
    assert ask("kneuroviz_view", path)["peek"] == "No KNeuroViz view: no layers"
