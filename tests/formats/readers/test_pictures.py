"""PNG and JPEG, alone and as a z series."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image
import pytest
import tifffile

from kbrain_core.errors import InputError
from kbrain_core.formats.readers import open_image, open_series

Read = Callable[..., np.ndarray]


@pytest.fixture
def planes() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60000, (12, 21, 34), dtype=np.uint16)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("samples", [1, 3, 4])
def test_png(tmp_path: Path, read_all: Read, dtype: type, samples: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, (21, 34, samples), dtype=np.uint16).astype(dtype)
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(image if samples > 1 else image[..., 0]))
    with open_image(path) as reader:
        assert reader.images[0].dtype == dtype
        np.testing.assert_array_equal(read_all(reader)[0, :, 0], image.transpose(2, 0, 1))


def test_palette_and_bilevel_png(tmp_path: Path, read_all: Read) -> None:
    index = np.random.default_rng(0).integers(0, 2, (20, 30), dtype=np.uint8)
    palette = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
    indexed = PIL.Image.frombytes("P", (30, 20), index.tobytes())
    indexed.putpalette(palette.ravel().tolist())
    indexed.save(tmp_path / "palette.png")
    with open_image(tmp_path / "palette.png") as reader:
        np.testing.assert_array_equal(read_all(reader)[0, :, 0], palette[index].transpose(2, 0, 1))
    PIL.Image.fromarray(index * 255).convert("1").save(tmp_path / "bilevel.png")
    with open_image(tmp_path / "bilevel.png") as reader:
        assert reader.images[0].bits == 8  # black and white are 0 and 255
        np.testing.assert_array_equal(read_all(reader)[0, 0, 0], index * 255)


def test_jpeg(tmp_path: Path, read_all: Read) -> None:
    image = np.tile(np.arange(0, 240, 5, dtype=np.uint8), (32, 1))
    path = tmp_path / "a.jpg"
    path.write_bytes(imagecodecs.jpeg8_encode(image, level=100))
    with open_image(path) as reader:
        assert reader.images[0].shape == (1, 1, 1, 32, 48)
        # quality 100 still rounds the cosine coefficients: 2 grey levels
        assert np.abs(read_all(reader)[0, 0, 0].astype(int) - image).max() <= 2


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.95])
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_truncated(tmp_path: Path, planes: np.ndarray, read_all: Read, kind: str, kept: float) -> None:
    path = tmp_path / f"cut.{kind}"
    encoded = (
        imagecodecs.png_encode(planes[0])
        if kind == "png"
        else imagecodecs.jpeg8_encode((planes[0] >> 8).astype(np.uint8))
    )
    path.write_bytes(encoded[: int(len(encoded) * kept)])
    with pytest.raises(InputError, match="cut"), open_image(path) as reader:
        read_all(reader)


def _write_series(folder: Path, planes: np.ndarray) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"slice{number}.png" for number in range(len(planes))]  # not padded: 10 sorts before 2
    for path, plane in zip(paths, planes, strict=True):
        path.write_bytes(imagecodecs.png_encode(plane))
    return paths


def test_folder_is_a_series_in_natural_order(tmp_path: Path, planes: np.ndarray, read_all: Read) -> None:
    _write_series(tmp_path / "series", planes)
    with open_image(tmp_path / "series") as reader:
        assert reader.images[0].shape == (1, 1, 12, 21, 34)
        np.testing.assert_array_equal(read_all(reader)[0, 0], planes)
        np.testing.assert_array_equal(
            reader.read(0, 0, 0, slice(9, 11), slice(3, 5), slice(0, 7)), planes[9:11, 3:5, 0:7]
        )
        again = pickle.loads(pickle.dumps(reader))
    with again:
        np.testing.assert_array_equal(read_all(again)[0, 0], planes)


def test_list_file_keeps_its_order(tmp_path: Path, planes: np.ndarray, read_all: Read) -> None:
    paths = _write_series(tmp_path / "series", planes)
    order = [3, 0, 11]
    listed = tmp_path / "planes.txt"
    listed.write_text("\n".join(f"series/{paths[index].name}" for index in order) + "\n")
    with open_image(listed) as reader:
        np.testing.assert_array_equal(read_all(reader)[0, 0], planes[order])
    listed.write_text("series/nowhere.png\n")
    with pytest.raises(InputError, match=r"nowhere\.png"):
        open_image(listed)


def test_stacks_follow_each_other(tmp_path: Path, planes: np.ndarray, read_all: Read) -> None:
    for name, part in (("a1.tif", planes[:5]), ("a2.tif", planes[5:])):
        tifffile.imwrite(tmp_path / name, part, photometric="minisblack")
    with open_series([str(tmp_path / "a1.tif"), str(tmp_path / "a2.tif")]) as reader:
        np.testing.assert_array_equal(read_all(reader)[0, 0], planes)


def test_a_plane_of_another_size_is_named(tmp_path: Path, planes: np.ndarray, read_all: Read) -> None:
    paths = _write_series(tmp_path / "series", planes)
    paths[7].write_bytes(imagecodecs.png_encode(planes[7, :20]))
    with open_image(tmp_path / "series") as reader, pytest.raises(InputError, match=r"slice7\.png is uint16"):
        read_all(reader)
