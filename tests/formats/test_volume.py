"""Volumes written and read back, in every form, and what must be refused."""

from __future__ import annotations

import functools
import http.server
import json
import pickle
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_volumes import EVERYTHING, label_blobs, write_volume

from kbrain_core.errors import IncompleteError, InputError
from kbrain_core.formats.volume import Volume, create_volume
from kbrain_core.formats.volume_spec import VolumeSpec
from kbrain_core.numerics.volumes.pyramid import mode_levels
from kbrain_core.numerics.volumes.volume_writer import VolumeWriter

FORMS: list[dict[str, Any]] = [
    {"format": "ome_zarr"},
    {"format": "ome_zarr", "encoding": "raw"},
    {"format": "ome_zarr", "sharded": False},
    {"format": "ome_zarr", "ngff_version": "0.4"},
    {"format": "precomputed"},
    {"format": "precomputed", "sharded": False},
    {"format": "precomputed", "encoding": "png"},
]


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    dtype=st.sampled_from(["uint8", "uint16"]),
    shape=st.tuples(st.integers(1, 20), st.integers(1, 50), st.integers(1, 60)),
    chunk=st.sampled_from([None, (4, 8, 8), (8, 8, 8), (3, 7, 10), (1, 16, 16)]),
    factor=st.sampled_from([None, (2, 2, 2), (1, 2, 2), (3, 2, 1)]),
    channels=st.integers(1, 2),
    task_bytes=st.sampled_from([2**11, 2**14]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_level_of_every_form_comes_back(
    form: dict[str, Any],
    dtype: str,
    shape: tuple[int, int, int],
    chunk: tuple[int, int, int] | None,
    factor: tuple[int, int, int] | None,
    channels: int,
    task_bytes: int,
    seed: int,
) -> None:
    voxels = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (1, channels, *shape), dtype)
    with tempfile.TemporaryDirectory() as folder:
        volume = write_volume(
            Path(folder) / "v", voxels, chunk_zyx=chunk, factor=factor, mips=3, task_bytes=task_bytes, **form
        )
        assert (volume.shape, volume.dtype, volume.kind) == (voxels.shape, dtype, "image")
        assert volume.voxel_size_nm == (40.0, 10.0, 10.0)
        np.testing.assert_array_equal(volume.read(EVERYTHING), voxels)
        passes = 1
        spec_passes = VolumeSpec.plan(
            voxels.shape,  # type: ignore[arg-type]
            dtype,
            voxel_size_nm=(40.0, 10.0, 10.0),
            chunk_zyx=chunk,
            factor=factor,
            mips=3,
            task_bytes=task_bytes,
            **form,
        ).passes
        for index, level in enumerate(volume.levels):
            passes = next(n for n, sweep in enumerate(spec_passes) if index in sweep.write_levels)
            expected = voxels.astype(np.float64)
            counts = np.ones(shape)
            for axis, n in enumerate(level.factor):
                starts = np.arange(0, shape[axis], n)
                expected = np.add.reduceat(expected, starts, axis=axis + 2)
                counts = np.add.reduceat(counts, starts, axis=axis)
            # Levels of the first pass are exact; each further pass begins from rounded voxels, so it adds half a level.
            np.testing.assert_allclose(
                volume.read(EVERYTHING, index), expected / counts, rtol=0, atol=0.5 + 0.5 * passes + 1e-9
            )


@pytest.mark.parametrize("dtype", ["int8", "int16", "float32"])
@pytest.mark.parametrize("format", ["ome_zarr", "precomputed"])
def test_other_types_come_back(tmp_path: Path, format: Any, dtype: str) -> None:
    voxels = (np.random.default_rng(0).normal(0, 30, (1, 1, 5, 30, 41))).astype(dtype)
    volume = write_volume(tmp_path / "v", voxels, format=format, mips=1)
    np.testing.assert_array_equal(volume.read(EVERYTHING), voxels)
    assert volume.dtype == dtype


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
@pytest.mark.parametrize(
    "form",
    [*FORMS[:5], {"format": "precomputed", "encoding": "raw"}, {"format": "precomputed", "sharded": False}],
)
def test_labels_survive_unchanged_at_every_level(tmp_path: Path, form: dict[str, Any], dtype: str) -> None:
    labels = label_blobs((21, 45, 50), dtype)
    volume = write_volume(
        tmp_path / "v", labels, kind="labels", mips=3, chunk_zyx=(8, 8, 8), task_bytes=2**16, **form
    )
    assert (volume.kind, volume.dtype, volume.lossy) == ("labels", dtype, False)
    steps = tuple(
        tuple(b // a for a, b in zip(before.factor, after.factor))
        for before, after in zip(volume.levels, volume.levels[1:])
    )
    expected = [labels[0, 0], *mode_levels(labels[0, 0], steps)]  # type: ignore[arg-type]
    for index, level in enumerate(expected):
        np.testing.assert_array_equal(volume.read(EVERYTHING, index)[0, 0], level)


@pytest.mark.parametrize("format", ["ome_zarr", "precomputed"])
def test_geometry_survives(tmp_path: Path, format: Any) -> None:
    voxels = np.ones((1, 2, 4, 20, 20), np.uint8)
    volume = write_volume(
        tmp_path / "v",
        voxels,
        format=format,
        voxel_size_nm=(40.5, 4.0, 4.0),
        offset_nm=(81.0, 400.0, -80.0),
        channel_names=("DAPI", "GFP"),
        mips=2,
    )
    assert volume.voxel_size_nm == (40.5, 4.0, 4.0)
    assert volume.offset_nm == (81.0, 400.0, -80.0)
    assert volume.channel_names == ("DAPI", "GFP")
    assert [level.factor for level in volume.levels] == [(1, 1, 1), (1, 2, 2), (1, 4, 4)]


def test_box_of_a_level_is_read(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 255, (2, 2, 9, 33, 31), np.uint8)
    volume = write_volume(tmp_path / "v", voxels, mips=0, chunk_zyx=(4, 8, 8))
    box = (slice(1, 2), slice(None), slice(2, 7), slice(5, None), slice(None, 17))
    np.testing.assert_array_equal(volume.read(box), voxels[box])
    again = pickle.loads(pickle.dumps(volume))
    np.testing.assert_array_equal(again.read(box), voxels[box])
    assert volume.read((*box[:4], slice(3, 3))).size == 0
    with pytest.raises(ValueError, match="not inside"):
        volume.read((*box[:4], slice(0, 32)))
    with pytest.raises(ValueError, match="without steps"):
        volume.read((*box[:4], slice(0, 8, 2)))


def test_empty_chunks_take_no_space_in_ome_zarr(tmp_path: Path) -> None:
    voxels = np.zeros((1, 1, 64, 64, 64), np.uint16)
    voxels[..., :8, :8, :8] = 7
    write_volume(tmp_path / "v", voxels, chunk_zyx=(8, 8, 8), encoding="raw", mips=0)
    size = sum(file.stat().st_size for file in (tmp_path / "v" / "0" / "c").rglob("*") if file.is_file())
    assert size == 8**3 * 2 + 8**3 * 16 + 4  # one chunk, the shard's index, its checksum


def test_folder_with_exactly_one_volume_opens(tmp_path: Path) -> None:
    voxels = np.ones((1, 1, 2, 8, 8), np.uint8)
    write_volume(tmp_path / "folder" / "inner.ome.zarr", voxels)
    for uri in (
        str(tmp_path / "folder"),
        f"file://{tmp_path}/folder/",
        f"zarr://{tmp_path}/folder/inner.ome.zarr",
    ):
        assert Volume.open(uri).uri.endswith("inner.ome.zarr")
    write_volume(tmp_path / "folder" / "second", voxels, format="precomputed")
    with pytest.raises(InputError, match="holds 2 volumes"):
        Volume.open(str(tmp_path / "folder"))
    with pytest.raises(InputError, match="There is no"):
        Volume.open(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is no volume"):
        Volume.open(str(tmp_path / "empty"))


def test_incomplete_volume_is_refused(tmp_path: Path) -> None:
    write_volume(tmp_path / "v", np.ones((1, 1, 2, 8, 8), np.uint8))
    (tmp_path / "v" / ".kbrain").mkdir()
    (tmp_path / "v" / ".kbrain" / "job.json").write_text("{}")
    with pytest.raises(IncompleteError, match="did not finish"):
        Volume.open(str(tmp_path / "v"))
    assert Volume.open(str(tmp_path / "v"), allow_incomplete=True).shape == (1, 1, 2, 8, 8)
    (tmp_path / "v" / ".kbrain" / "complete").write_text("{}")
    Volume.open(str(tmp_path / "v"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("zarr.json", b"{"),
        ("zarr.json", b'{"attributes": {"ome": {"multiscales": [{}]}}}'),
        ("zarr.json", b'{"attributes": {"ome": {"multiscales": 3}}}'),
        (".zattrs", b'{"multiscales": [{"axes": [{"name": "q"}], "datasets": []}]}'),
        ("info", b"[]"),
        ("info", b'{"scales": []}'),
        ("info", b'{"scales": [{"resolution": [0, 1, 1]}]}'),
        ("info", b"\xff\xfe"),
    ],
)
def test_damaged_metadata_are_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        Volume.open(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", ["ome_zarr", "precomputed"])
def test_damaged_chunk_is_one_line(tmp_path: Path, format: Any) -> None:
    voxels = np.random.default_rng(0).integers(0, 255, (1, 1, 8, 64, 64), np.uint8)
    write_volume(tmp_path / "v", voxels, format=format, mips=0)
    shard = max(
        (file for file in (tmp_path / "v").rglob("*") if file.is_file()), key=lambda file: file.stat().st_size
    )
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read") as caught:
        Volume.open(str(tmp_path / "v")).read(EVERYTHING)
    assert "\n" not in str(caught.value)


def test_jpeg_is_near_and_says_so(tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :80]
    smooth = (100 + 50 * np.sin(y / 9) * np.cos(x / 7)).astype(np.uint8)
    for channels in (1, 3):
        voxels = np.broadcast_to(smooth, (1, channels, 5, 64, 80))
        volume = write_volume(
            tmp_path / f"v{channels}", voxels, format="precomputed", encoding="jpeg", quality=90, mips=1
        )
        assert volume.lossy
        # A smooth picture at quality 90: the quantisation steps are at most 6 grey levels.
        assert np.abs(volume.read(EVERYTHING).astype(int) - voxels).max() <= 6
        copied = write_volume(
            tmp_path / f"copy{channels}", volume.read(EVERYTHING), lossy_source=volume.lossy
        )
        assert copied.lossy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kind": "labels", "format": "precomputed", "encoding": "jpeg", "dtype": "uint32"},
            "compressed with loss",
        ),
        ({"format": "precomputed", "encoding": "jpeg", "dtype": "uint16"}, "pass --window"),
        ({"format": "precomputed", "encoding": "jpeg", "channels": 2}, "1 or 3 channels"),
        ({"format": "precomputed", "encoding": "png", "dtype": "float32"}, "PNG holds"),
        (
            {"format": "precomputed", "encoding": "compressed_segmentation"},
            "compressed_segmentation holds labels",
        ),
        ({"format": "precomputed", "encoding": "zstd"}, "no zstd"),
        ({"format": "precomputed", "times": 2}, "one time point"),
        ({"format": "precomputed", "encoding": "jpeg", "chunk_zyx": (512, 512, 64)}, "too large for JPEG"),
        ({"encoding": "jpeg"}, "OME-Zarr is written with"),
        ({"dtype": "uint32"}, "cannot be averaged exactly"),
        ({"dtype": "float64"}, "float64 cannot be written"),
        ({"dtype": "int32", "kind": "labels"}, "int32 cannot be written"),
        ({"voxel_size_nm": (1.0, float("nan"), 1.0)}, "must be above zero"),
        ({"offset_nm": (1.0, float("inf"), 1.0)}, "must be finite"),
        ({"chunk_zyx": (0, 1, 1)}, "must be at least 1"),
        ({"factor": (2, 0, 2)}, "must be at least 1"),
        ({"quality": 101}, "from 1 to 100"),
        ({"channels": 0}, "has no voxels"),
    ],
)
def test_what_cannot_be_written_is_refused(options: dict[str, Any], message: str) -> None:
    options = {"voxel_size_nm": (1.0, 1.0, 1.0), **options}
    shape = (options.pop("times", 1), options.pop("channels", 1), 8, 8, 8)
    with pytest.raises(InputError, match=message):
        VolumeSpec.plan(shape, options.pop("dtype", "uint8"), **options)


def test_ids_of_2_to_the_63_are_refused(tmp_path: Path) -> None:
    spec = VolumeSpec.plan((1, 1, 2, 2, 2), "uint64", voxel_size_nm=(1.0, 1.0, 1.0), kind="labels")
    create_volume(str(tmp_path / "v"), spec)
    writer = VolumeWriter(str(tmp_path / "v"), spec)
    labels = np.full((2, 2, 2), 2**63 - 1, np.uint64)
    writer.write_block(0, 0, writer.task_boxes()[0], labels)
    labels[1, 1, 1] += np.uint64(1)
    with pytest.raises(InputError, match="below 2\\^63"):
        writer.write_block(0, 0, writer.task_boxes()[0], labels)


def test_values_are_never_wrapped(tmp_path: Path) -> None:
    spec = VolumeSpec.plan((1, 1, 2, 2, 2), "uint8", voxel_size_nm=None)
    create_volume(str(tmp_path / "v"), spec)
    writer = VolumeWriter(str(tmp_path / "v"), spec)
    with pytest.raises(InputError, match="convert them first"):
        writer.write_block(0, 0, writer.task_boxes()[0], np.full((2, 2, 2), 300, np.uint16))


def test_precomputed_needs_a_voxel_size(tmp_path: Path) -> None:
    spec = VolumeSpec.plan((1, 1, 2, 2, 2), "uint8", voxel_size_nm=None, format="precomputed")
    with pytest.raises(InputError, match="needs its voxel size"):
        create_volume(str(tmp_path / "v"), spec)


def test_metadata_say_what_kbrain_did(tmp_path: Path) -> None:
    voxels = np.ones((1, 1, 2, 8, 8), np.uint8)
    window = ((200.0, 4000.0),)
    for format, name in (("ome_zarr", "zarr.json"), ("precomputed", "info")):
        volume = write_volume(tmp_path / format, voxels, format=format, intensity_windows=window)
        assert volume.info.intensity_windows == window
        content = json.loads((tmp_path / format / name).read_text())
        own = content["attributes"]["kbrain"] if format == "ome_zarr" else content["kbrain"]
        assert (own["lossy"], own["intensity_windows"]) == (False, [[200.0, 4000.0]])


class _RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Files with byte ranges, as object stores and `kbrain serve` give them."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self.send_response(200)
        else:
            first, last = asked.groups()
            start = int(first) if first else len(data) - int(last)
            stop = int(last) + 1 if first and last else len(data)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            data = data[start:stop]
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Address of a web server on this machine whose root is `tmp_path`."""
    handler = functools.partial(_RangeHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("format", ["ome_zarr", "precomputed"])
def test_volume_is_read_from_a_web_server(tmp_path: Path, web: str, format: Any) -> None:
    voxels = np.random.default_rng(0).integers(0, 255, (1, 1, 9, 70, 70), np.uint8)
    write_volume(tmp_path / "v", voxels, format=format, mips=1, chunk_zyx=(8, 32, 32))
    volume = Volume.open(f"{web}/v")
    np.testing.assert_array_equal(volume.read(EVERYTHING), voxels)
    with pytest.raises(InputError, match="is no volume"):
        Volume.open(f"{web}/nothing")
