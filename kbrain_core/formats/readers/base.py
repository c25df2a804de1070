"""What every reader gives: images as (t, c, z, y, x) that can be read box by box."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np

from ...errors import InputError

ZYX = tuple[float | None, float | None, float | None]
UNKNOWN: ZYX = (None, None, None)

# How many um one unit of length is, under the spellings that microscopes and viewers write.
_UM_PER_UNIT = {
    "m": 1e6, "meter": 1e6, "metre": 1e6,
    "cm": 1e4, "centimeter": 1e4, "centimetre": 1e4,
    "mm": 1e3, "millimeter": 1e3, "millimetre": 1e3,
    "um": 1.0, "µm": 1.0, "μm": 1.0, "\\u00b5m": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
    "micrometre": 1.0,
    "nm": 1e-3, "nanometer": 1e-3, "nanometre": 1e-3,
    "pm": 1e-6, "picometer": 1e-6, "å": 1e-4, "angstrom": 1e-4, "angstroms": 1e-4,
    "in": 25400.0, "inch": 25400.0,
}  # fmt: skip


@dataclass(frozen=True)
class ImageInfo:
    """What a file says about one of its images (a *series*).

    Attributes
    ----------
    name : str
        The image's name in the file, or the file's own name.
    shape : (5,) int, order t, c, z, y, x
    dtype : numpy.dtype, native byte order
    voxel_size_um : (3,) float or None, order z, y, x
        None where the file does not say.
    channel_names : (c,) str
        From the metadata, otherwise "0", "1", ...
    stage_um : (3,) float or None, order z, y, x
        Stage position of the image as the instrument wrote it.
    acquired_at : str or None
        ISO 8601.
    bits : int
        Significant bits of a sample (12 for a 12-bit camera in a 16-bit file).
    voxel_size_from : str
        Where the voxel size was found, for reports.
    block_zyx : (3,) int, order z, y, x
        What the source decodes at once (a plane, a strip, a tile, a chunk). Boxes that hold whole blocks
        are read without decoding anything twice.
    """

    name: str
    shape: tuple[int, int, int, int, int]
    dtype: np.dtype[Any]
    voxel_size_um: ZYX
    channel_names: tuple[str, ...]
    stage_um: ZYX
    acquired_at: str | None
    bits: int
    voxel_size_from: str
    block_zyx: tuple[int, int, int]


class ImageReader(ABC):
    """An open image file: a context manager, not thread safe; pickled by path and opened again.

    Attributes
    ----------
    path : str
        What was opened.
    dataset : str or None
        The data set chosen inside a container file.
    images : tuple of ImageInfo
        The images (series) of the file.
    files : tuple of Path
        Files beside `path` that the images are read from.
    """

    path: str
    dataset: str | None = None
    images: tuple[ImageInfo, ...]
    files: tuple[Path, ...] = ()

    def read(self, series: int, t: int, c: int, z: slice, y: slice, x: slice) -> np.ndarray:
        """Read a box of one channel at one time point; nothing outside the box's blocks is decoded.

        Parameters
        ----------
        series, t, c : int
            Which image, time point and channel, from 0.
        z, y, x : slice of step 1
            The box in pixels; open ends mean the image's own.

        Returns
        -------
        (Z, Y, X) ndarray of the image's dtype

        Raises
        ------
        InputError
            If the box is outside the image, or its data are damaged.
        """
        if not 0 <= series < len(self.images):
            raise InputError(f"{self.path} holds {len(self.images)} image(s); there is no series {series}.")
        shape = self.images[series].shape
        if not (0 <= t < shape[0] and 0 <= c < shape[1]):
            raise InputError(
                f"{self.path} holds {shape[0]} time point(s) and {shape[1]} channel(s) in series {series}; "
                f"time point {t}, channel {c} (from 0) is not among them."
            )
        box = []
        for axis, chosen, size in zip("zyx", (z, y, x), shape[2:], strict=True):
            start = 0 if chosen.start is None else chosen.start
            stop = size if chosen.stop is None else chosen.stop
            if chosen.step not in (None, 1) or not 0 <= start <= stop <= size:
                raise InputError(
                    f"{self.path} is {size} pixels along {axis}; {start}:{stop} is not inside it."
                )
            box.append((start, stop))
        try:
            return self._read(series, t, c, box[0], box[1], box[2])
        except InputError:
            raise
        except Exception as error:  # decoders of other projects raise anything on damaged data
            refuse(self.path, error)

    @abstractmethod
    def _read(
        self, series: int, t: int, c: int, z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]
    ) -> np.ndarray:
        """`read` with checked, closed (start, stop) ranges."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.dataset)


def refuse(path: str | Path, error: BaseException) -> NoReturn:
    """Turn a library's exception on reading `path` into one line that says how to mend it; our own pass as they are."""
    if isinstance(error, InputError):
        raise error
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
        raise InputError(f"{path}: {error.strerror}.") from error
    detail = " ".join(str(error).split())[:200] or type(error).__name__
    raise InputError(
        f"{path} cannot be read ({detail}). It is truncated or damaged: copy it again from the instrument."
    ) from error


def um_per_unit(unit: str | None) -> float | None:
    """How many um one `unit` is ("nm", "micron", ...); None when it is no unit of length."""
    return _UM_PER_UNIT.get((unit or "").strip().lower())


def length_um(value: object, unit: str | None) -> float | None:
    """A length in um; None when the value is no positive, finite number or the unit no length."""
    position = position_um(value, unit)
    return position if position is not None and position > 0 else None


def position_um(value: object, unit: str | None) -> float | None:
    """A stage coordinate in um; None when the value is no finite number or the unit no length."""
    scale = um_per_unit(unit)
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number * scale if scale is not None and math.isfinite(number) else None


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in this machine's byte order."""
    return dtype.newbyteorder("=")


def numbered(count: int) -> tuple[str, ...]:
    """Names for channels that have none: "0", "1", ..."""
    return tuple(str(index) for index in range(count))
