"""Archives from strangers: what is unpacked, what is refused, and that a refusal leaves nothing behind."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kbrain_core.errors import InputError, KBrainError, OutputExistsError
from kbrain_core.formats import archives
from kbrain_core.formats.archives import ArchiveLimits, archive_stem, extract_archive, is_archive, safe_parts

FILES = {"tiles/a.tif": b"aaa", "tiles/deep/b.tif": b"bb" * 1000}
HOSTILE_NAMES = [
    "../evil.tif",
    "/etc/evil",
    "a/../../evil",
    "C:\\evil",
    "..\\evil",
    "\\\\host\\share",
    "a/..",
    "c:evil",
]


def make_zip(path: Path, files: dict[str, bytes], mode: int = 0o100644) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return path


def make_tar(path: Path, files: dict[str, bytes], kind: bytes = tarfile.REGTYPE, link: str = "") -> Path:
    mode = {".gz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(data))
    return path


def everything(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*")} if folder.exists() else set()


@pytest.mark.parametrize("name", ["s.zip", "s.tar", "s.tar.gz", "s.tar.xz", "s.tar.bz2"])
def test_unpacked_once(tmp_path: Path, name: str) -> None:
    make = make_zip if name.endswith(".zip") else make_tar
    path = make(tmp_path / name, {**FILES, "__MACOSX/._a.tif": b"x", "tiles/.DS_Store": b"y"})
    folder = extract_archive(path, tmp_path / "out")
    assert folder == tmp_path / "out" / "s"
    assert {n: (folder / n).read_bytes() for n in FILES} == FILES
    assert not (folder / "__MACOSX").exists() and not (folder / "tiles/.DS_Store").exists()
    (folder / "tiles/a.tif").write_bytes(b"kept")
    assert extract_archive(path, tmp_path / "out") == folder
    assert (folder / "tiles/a.tif").read_bytes() == b"kept"  # not unpacked a second time


def test_another_archive_of_that_name(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "s.zip", FILES)
    folder = extract_archive(path, tmp_path / "out")
    make_zip(path, {"new.tif": b"n"})
    os.utime(path, ns=(1, 1))
    with pytest.raises(OutputExistsError, match=r"is not what 's\.zip' unpacks to"):
        extract_archive(path, tmp_path / "out")
    extract_archive(path, tmp_path / "out", overwrite=True)
    assert everything(folder) == {"new.tif", archives.NOTE_NAME}


def test_a_folder_of_a_person_is_never_replaced(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "s.zip", FILES)
    (tmp_path / "out/s").mkdir(parents=True)
    (tmp_path / "out/s/mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError):
        extract_archive(path, tmp_path / "out", overwrite=True)
    assert everything(tmp_path / "out/s") == {"mine.txt"}


@pytest.mark.parametrize("hostile", HOSTILE_NAMES)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_names_that_point_outside(tmp_path: Path, make: object, hostile: str) -> None:
    path = make(tmp_path / ("s.zip" if make is make_zip else "s.tar"), {"good.tif": b"g", hostile: b"evil"})  # type: ignore[operator]
    with pytest.raises(InputError, match="points outside of it"):
        extract_archive(path, tmp_path / "out")
    assert everything(tmp_path / "out") == set()
    assert not any("evil" in name for name in everything(tmp_path))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (tarfile.SYMTYPE, "link"),
        (tarfile.LNKTYPE, "link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.FIFOTYPE, "device"),
    ],
)
def test_tar_links_and_devices(tmp_path: Path, kind: bytes, says: str) -> None:
    path = make_tar(tmp_path / "s.tar", {"a": b""}, kind, link="/etc/passwd")
    with pytest.raises(InputError, match=f"holds a {says}"):
        extract_archive(path, tmp_path / "out")
    assert everything(tmp_path / "out") == set()


@pytest.mark.parametrize(("mode", "says"), [(stat.S_IFLNK | 0o777, "link"), (stat.S_IFIFO | 0o644, "device")])
def test_zip_links_and_devices(tmp_path: Path, mode: int, says: str) -> None:
    with pytest.raises(InputError, match=f"holds a {says}"):
        extract_archive(make_zip(tmp_path / "s.zip", {"a": b"/etc/passwd"}, mode), tmp_path / "out")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_bomb(tmp_path: Path, make: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "RATIO_FREE_BYTES", 100_000)
    name = "s.zip" if make is make_zip else "s.tar.gz"
    path = make(tmp_path / name, {"zeros": bytes(5_000_000)})  # type: ignore[operator]
    with pytest.raises(InputError, match="200 times its size"):
        extract_archive(path, tmp_path / "out")
    assert everything(tmp_path / "out") == set()


def test_limits_of_count_and_size(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "s.zip", FILES)
    with pytest.raises(InputError, match="more than 1 members"):
        extract_archive(path, tmp_path / "out", limits=ArchiveLimits(max_files=1))
    with pytest.raises(InputError, match="unpacks to more than 1e-06 GB"):
        extract_archive(path, tmp_path / "out", limits=ArchiveLimits(max_bytes=1000))
    assert everything(tmp_path / "out") == set()


def test_a_header_that_lies_about_the_size(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "s.zip", {"a": bytes(100_000)})
    data = path.read_bytes().replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be unpacked"):
        extract_archive(path, tmp_path / "out")
    assert everything(tmp_path / "out") == set()


@pytest.mark.parametrize(
    "files", [{"a": b"1", "A": b"2"}, {"a": b"1", "a/b": b"2"}, {"a/b": b"2", "a": b"1"}]
)
def test_names_that_collide(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(InputError, match=r"twice|as a file and as a folder"):
        extract_archive(make_zip(tmp_path / "s.zip", files), tmp_path / "out")


def test_encrypted(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "s.zip", {"a": b"1"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    path.write_bytes(data)
    with pytest.raises(InputError, match="is encrypted"):
        extract_archive(path, tmp_path / "out")


@pytest.mark.parametrize("name", ["s.zip", "s.tar", "s.tar.gz"])
def test_truncated_at_any_point(tmp_path: Path, name: str) -> None:
    make = make_zip if name == "s.zip" else make_tar
    whole = make(tmp_path / name, {"a.tif": os.urandom(3000), "b.tif": os.urandom(3000)}).read_bytes()
    # a tar ends with zeros up to 10240 bytes: cut within what matters, at and between the 512-byte blocks
    used = len(whole.rstrip(b"\0")) if name == "s.tar" else len(whole)
    for cut in [0, 10, 511, 512, 3584, 4096, 4097, 7680, used - 1]:
        (tmp_path / name).write_bytes(whole[: min(cut, used - 1)])
        with pytest.raises(InputError, match=r"damaged|empty"):
            extract_archive(tmp_path / name, tmp_path / "out")
        assert everything(tmp_path / "out") == set()


@given(st.text(max_size=60))
def test_safe_parts_stay_inside(name: str) -> None:
    try:
        parts = safe_parts(name, Path("a.zip"))
    except KBrainError:
        return
    target = os.path.normpath(Path("/base").joinpath(*parts))
    assert target == "/base" or target.startswith("/base/")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    st.dictionaries(
        st.text(st.sampled_from("ab./\\:~ "), min_size=1, max_size=10), st.binary(max_size=20), max_size=4
    )
)
def test_nothing_is_written_outside(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = make_tar(tmp_path / "h.tar", files)
    before = everything(tmp_path)
    with contextlib.suppress(KBrainError):
        extract_archive(path, tmp_path / "out", overwrite=True)
    assert {n for n in everything(tmp_path) - before if not n.startswith("out")} == set()


def test_flipped_bits_are_seen(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "s.tar.gz", {"a.tif": os.urandom(3000)})
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # in the checksum at the end
    path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be unpacked"):
        extract_archive(path, tmp_path / "out")


def test_names() -> None:
    assert is_archive(Path("a.TAR.GZ")) and is_archive(Path("a.zip")) and not is_archive(Path("a.tif"))
    assert [archive_stem(Path(n)) for n in ("a.tar.gz", "b.c.zip", "...zip")] == ["a", "b.c", "archive"]
