"""What is no image is refused in one line that names the file."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from kbrain_core.errors import InputError
from kbrain_core.formats.readers import open_image


def test_unknown_format(tmp_path: Path) -> None:
    path = tmp_path / "notes.bin"
    path.write_bytes(b"not an image" * 100)
    with pytest.raises(InputError, match=r"notes\.bin is of no known image format\. Known are TIFF"):
        open_image(path)


def test_missing_empty_and_packed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        open_image(tmp_path / "nowhere.tif")
    (tmp_path / "empty.tif").touch()
    with pytest.raises(InputError, match="is empty"):
        open_image(tmp_path / "empty.tif")
    (tmp_path / "a.mrc.gz").write_bytes(gzip.compress(b"x" * 2000))
    with pytest.raises(InputError, match="gunzip"):
        open_image(tmp_path / "a.mrc.gz")


def test_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        open_image(tmp_path)
