"""A z series kept as one file per plane (or per few planes): PNG, JPEG, TIFF, in natural order of their names."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ..tile_names import natural_key
from .base import ImageInfo, ImageReader

_ENDINGS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".mrc", ".nrrd", ".nii")


class FileSeriesReader(ImageReader):
    """Reads many files as one stack along z.

    Parameters
    ----------
    path : str
        What the series is called in messages: the folder, the list file, or the first file.
    files : sequence of str
        The files in the order of z.
    open_file : callable
        Opens one of them; passed in so that this module does not know the other readers.
    """

    def __init__(self, path: str, files: Sequence[str], open_file: Callable[[str], ImageReader]) -> None:
        if not files:
            raise InputError(f"{path} holds no images ({', '.join(_ENDINGS)}).")
        self.path, self._files, self._open_file = path, tuple(files), open_file
        self._current: tuple[int, ImageReader] | None = None
        first = self._image(0)
        depth = first.shape[2]
        # Single planes are the rule: their files are checked when read. Stacks are all opened to count planes.
        depths = [depth] * len(files) if depth == 1 else [self._image(n).shape[2] for n in range(len(files))]
        self._starts = np.concatenate([[0], np.cumsum(depths)]).tolist()
        t, c, _, y, x = first.shape
        self._first = first
        self.files = tuple(Path(file) for file in files)
        self.images = (
            replace(
                first, name=Path(path).name, shape=(t, c, self._starts[-1], y, x), stage_um=first.stage_um
            ),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return FileSeriesReader, (self.path, self._files, self._open_file)

    def close(self) -> None:
        """Close the file that is open."""
        if self._current is not None:
            self._current[1].close()
            self._current = None

    def _reader(self, number: int) -> ImageReader:
        if self._current is None or self._current[0] != number:
            self.close()
            self._current = number, self._open_file(self._files[number])
        return self._current[1]

    def _image(self, number: int) -> ImageInfo:
        images = self._reader(number).images
        if len(images) != 1:
            raise InputError(
                f"{self._files[number]} holds {len(images)} images: a z series needs one in each file."
            )
        return images[0]

    def _read(
        self, series: int, t: int, c: int, z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]
    ) -> np.ndarray:
        out = np.empty((z[1] - z[0], y[1] - y[0], x[1] - x[0]), self.images[0].dtype)
        number = bisect.bisect_right(self._starts, z[0]) - 1
        while number < len(self._files) and self._starts[number] < z[1]:
            begin, end = self._starts[number], self._starts[number + 1]
            self._check(number, end - begin)
            start, stop = max(z[0], begin), min(z[1], end)
            out[start - z[0] : stop - z[0]] = self._reader(number).read(
                0, t, c, slice(start - begin, stop - begin), slice(*y), slice(*x)
            )
            number += 1
        return out

    def _check(self, number: int, depth: int) -> None:
        """Refuse a file that does not fit the first."""
        image, first = self._image(number), self._first
        expected = (*first.shape[:2], depth, *first.shape[3:])
        if image.shape != expected or image.dtype != first.dtype:
            raise InputError(
                f"{self._files[number]} is {image.dtype} {image.shape} but {self._files[0]} is {first.dtype} "
                f"{expected} (t, c, z, y, x): take it out of the series, or crop it."
            )


def series_files(folder: Path) -> list[str]:
    """The image files directly in a folder, in natural order (plane 2 before plane 10)."""
    names = [entry.name for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    images = [name for name in names if name.lower().endswith(_ENDINGS)]
    return [str(folder / name) for name in sorted(images, key=natural_key)]
