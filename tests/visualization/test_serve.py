"""`kbrain serve`: what a viewer asks of a server, and what nobody may ask of it."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kbrain_core.errors import InputError, ResourceError
from kbrain_core.visualization.serve import listen, make_app, read_mounts, serve, write_mounts

SHARD = bytes(range(256)) * 40  # every offset is recognisable
CHUNK = b"voxels " * 500


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, serving: Callable[[Path], Any]) -> Iterator[Any]:
    """A view with one volume beside it, and things outside that nobody may see."""
    root = tmp_path_factory.mktemp("served")
    view, volume = root / "view", root / "vol.precomputed"
    (view / "assets").mkdir(parents=True)
    (view / "index.html").write_text("<!doctype html><title>page</title>")
    (view / "assets" / "main.js").write_text("1")
    (view / ".kbrain").mkdir()
    (view / ".kbrain" / "job.json").write_text("private")
    (volume / "8_8_8").mkdir(parents=True)
    (volume / "info").write_text("{}")
    (volume / ".zattrs").write_text("{}")
    (volume / "page.html").write_text("<script>alert(1)</script>")
    (volume / "8_8_8" / "0.shard").write_bytes(SHARD)
    (volume / "8_8_8" / "1.shard.gz").write_bytes(gzip.compress(SHARD))
    (volume / "8_8_8" / "0-64_0-64_0-64.gz").write_bytes(gzip.compress(CHUNK))
    (volume / "mesh").mkdir()
    (volume / "mesh" / "17:0").write_bytes(b"manifest")
    (root / "secret").write_text("secret")
    (volume / "link").symlink_to(root / "secret")
    write_mounts(view, {"vol": volume})
    with serving(view) as running:
        yield running


def test_page_and_volume_are_served(server: Any) -> None:
    status, headers, body = server.ask("/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"page" in body
    assert server.ask("/assets/main.js")[1]["content-type"].startswith("text/javascript")
    assert server.ask("/data/vol/info")[2] == b"{}"
    assert server.ask("/data/vol/mesh/17:0")[2] == b"manifest"
    assert server.ask("/data/vol/.zattrs")[0] == 200  # Zarr 2 keeps its metadata in hidden files


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bytes=0-0", SHARD[:1]),
        ("bytes=256-1023", SHARD[256:1024]),
        ("bytes=10000-", SHARD[10000:]),
        ("bytes=-100", SHARD[-100:]),
        ("bytes=-999999", SHARD),
        ("bytes=10239-999999", SHARD[-1:]),
    ],
)
def test_ranges(server: Any, asked: str, expected: bytes) -> None:
    status, headers, body = server.ask("/data/vol/8_8_8/0.shard", Range=asked)
    start = len(SHARD) - len(expected) if asked.startswith("bytes=-") else int(asked[6:].split("-")[0])
    assert (status, body) == (206, expected)
    assert headers["content-range"] == f"bytes {start}-{start + len(expected) - 1}/{len(SHARD)}"
    assert headers["content-length"] == str(len(expected))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 2 * len(SHARD)), length=st.integers(1, 2 * len(SHARD)))
def test_any_range_is_the_slice_or_416(server: Any, start: int, length: int) -> None:
    status, headers, body = server.ask("/data/vol/8_8_8/0.shard", Range=f"bytes={start}-{start + length - 1}")
    if start >= len(SHARD):
        assert (status, headers["content-range"]) == (416, f"bytes */{len(SHARD)}")
    else:
        assert (status, body) == (206, SHARD[start : start + length])


header_text = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(header_text, header_text.map("bytes={}".format)))
def test_a_strange_range_never_breaks_the_server(server: Any, text: str) -> None:
    assert server.ask("/data/vol/8_8_8/0.shard", Range=text)[0] in (200, 206, 400, 416)


def test_head_and_options(server: Any) -> None:
    status, headers, body = server.ask("/data/vol/8_8_8/0.shard", "HEAD")
    assert (status, headers["content-length"], headers["accept-ranges"], body) == (
        200,
        str(len(SHARD)),
        "bytes",
        b"",
    )
    assert server.ask("/data/vol/info", "OPTIONS")[0] == 204
    assert server.ask("/data/vol/info", "POST")[0] == 405


def test_other_pages_may_read_the_data(server: Any) -> None:
    asking = {"Origin": "https://viewer.example"}
    preflight = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "range"}
    status, headers, _ = server.ask("/data/vol/8_8_8/0.shard", "OPTIONS", **asking, **preflight)
    assert status == 200
    assert headers["access-control-allow-origin"] == "*"
    assert "range" in headers["access-control-allow-headers"].lower()
    for path in ("/data/vol/8_8_8/0.shard", "/data/vol/8_8_8/missing"):  # a missing chunk must be told, too
        headers = server.ask(path, Range="bytes=0-9", **asking)[1]
        assert headers["access-control-allow-origin"] == "*"
    exposed = server.ask("/data/vol/info", **asking)[1]["access-control-expose-headers"]
    assert {"Content-Range", "Content-Length"} <= set(exposed.split(", "))


def test_one_allowed_origin(tmp_path: Path, serving: Callable[[Path], Any]) -> None:
    app = make_app(tmp_path, "https://lab.example")
    assert any("https://lab.example" in str(middleware.kwargs) for middleware in app.user_middleware)


def test_gzipped_chunks_are_sent_with_their_encoding(server: Any) -> None:
    status, headers, body = server.ask("/data/vol/8_8_8/0-64_0-64_0-64")
    assert (status, headers["content-encoding"]) == (200, "gzip")
    assert gzip.decompress(body) == CHUNK
    # A range of the compressed bytes would be garbage: the whole file is the right answer to a range.
    status, headers, body = server.ask("/data/vol/8_8_8/0-64_0-64_0-64", Range="bytes=0-9")
    assert (status, gzip.decompress(body)) == (200, CHUNK)
    assert server.ask("/data/vol/8_8_8/1.shard")[0] == 404
    assert "content-encoding" not in server.ask("/data/vol/8_8_8/0.shard")[1]


def test_browsers_keep_what_has_not_changed(server: Any) -> None:
    _, headers, _ = server.ask("/data/vol/8_8_8/0.shard")
    assert headers["cache-control"] == "no-cache"
    assert server.ask("/data/vol/8_8_8/0.shard", If_None_Match=headers["etag"])[0] == 304
    assert server.ask("/data/vol/8_8_8/0.shard", If_Modified_Since=headers["last-modified"])[0] == 304
    assert server.ask("/data/vol/8_8_8/0.shard", If_None_Match='"other"')[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../secret",
        "/data/vol/../../secret",
        "/data/vol/%2e%2e/%2e%2e/secret",
        "/data/vol/..%2f..%2fsecret",
        "/data/vol/link",
        "/data/vol//etc/passwd",
        "/%2fetc/passwd",
        "/data/vol/..%00/secret",
        "/data/other/info",
        "/data/vol/",
        "/kneuroviz.json",
        "/.kbrain/job.json",
        "/" + "a" * 5000,
    ],
)
def test_nothing_else_can_be_read(server: Any, path: str) -> None:
    status, _, body = server.ask(path)
    assert status == 404
    assert b"secret" not in body and b"root:" not in body


def test_data_is_never_run_as_a_page(server: Any) -> None:
    _, headers, _ = server.ask("/data/vol/page.html")
    assert headers["content-type"] == "application/octet-stream"
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[]",
        '{"version": 1, "volumes": ["a"]}',
        '{"version": 9, "volumes": {}}',
        '{"version": 1, "volumes": {"../x": "."}}',
        '{"version": 1, "volumes": {"keys": ".."}}',
    ],
)
def test_a_forged_view_opens_no_folder(tmp_path: Path, content: str) -> None:
    view = tmp_path / "view"
    view.mkdir()
    (view / "kneuroviz.json").write_text(content)
    with pytest.raises(InputError):
        make_app(view)


def test_mounts_move_with_the_view(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "view").mkdir(parents=True)
    (project / "vol").mkdir()
    (project / "vol" / "info").write_text("{}")
    write_mounts(project / "view", {"vol": project / "vol"})
    project.rename(tmp_path / "moved")
    assert read_mounts(tmp_path / "moved" / "view") == {"vol": tmp_path / "moved" / "vol"}
    assert not Path(
        json.loads((tmp_path / "moved/view/kneuroviz.json").read_text())["volumes"]["vol"]
    ).is_absolute()


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        serve(tmp_path / "missing")
    with pytest.raises(InputError, match="--port is 70000"):
        serve(tmp_path, port=70000)
    with listen("127.0.0.1", 0) as taken, pytest.raises(ResourceError, match="takes a free one"):
        serve(tmp_path, port=taken.getsockname()[1])
    with pytest.raises(ResourceError, match="choose another"):
        listen("host.invalid", 0)


def test_the_service_prints_its_address_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "info").write_text("{}")
    command = [sys.executable, "-m", "kbrain_core.cli", "serve", str(tmp_path), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    with process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("KNeuroViz: http://127.0.0.1:")
        port = int(line.rsplit(":", 1)[1].strip("/\n"))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        stack.callback(connection.close)
        connection.request("GET", "/info")
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
