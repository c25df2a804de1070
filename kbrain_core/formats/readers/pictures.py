"""Single pictures: PNG and JPEG. Their colour samples are channels; they carry no calibration."""

from __future__ import annotations

import struct
from pathlib import Path

import imagecodecs
import numpy as np
import simplejpeg

from ...errors import InputError
from .base import UNKNOWN, ImageInfo, ImageReader, numbered, refuse

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_SAMPLES = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_PNG_PALETTE = 3


class PictureReader(ImageReader):
    """Reads a PNG or JPEG picture; the pixels are decoded once, when first asked for."""

    def __init__(self, path: str, dataset: str | None = None) -> None:
        if dataset is not None:
            raise InputError(f"{path} is a picture and has no data sets.")
        self.path = path
        self._pixels: np.ndarray | None = None
        try:
            (height, width, samples), dtype, bits = _png_shape(path) if _is_png(path) else _jpeg_shape(path)
        except Exception as error:  # a damaged header raises anything
            refuse(path, error)
        self.images = (
            ImageInfo(
                name=Path(path).name,
                shape=(1, samples, 1, height, width),
                dtype=np.dtype(dtype),
                voxel_size_um=UNKNOWN,
                channel_names=numbered(samples),
                stage_um=UNKNOWN,
                acquired_at=None,
                bits=bits,
                voxel_size_from="not given",
                block_zyx=(1, height, width),
            ),
        )

    def close(self) -> None:
        """Drop the decoded pixels."""
        self._pixels = None

    def _read(
        self, series: int, t: int, c: int, z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]
    ) -> np.ndarray:
        if self._pixels is None:
            self._pixels = self._decode()
        return self._pixels[y[0] : y[1], x[0] : x[1], c][np.newaxis][: z[1] - z[0]].copy()

    def _decode(self) -> np.ndarray:
        _, samples, _, height, width = self.images[0].shape
        data = Path(self.path).read_bytes()
        if _is_png(self.path):
            pixels = imagecodecs.png_decode(data)
        else:
            # strict: libjpeg otherwise fills the rest of a truncated picture with grey
            pixels = simplejpeg.decode_jpeg(data, "GRAY" if samples == 1 else "RGB", strict=True)
        return pixels.reshape(height, width, -1)[:, :, :samples]


def _is_png(path: str) -> bool:
    with Path(path).open("rb") as file:
        return file.read(8) == _PNG_SIGNATURE


def _png_shape(path: str) -> tuple[tuple[int, int, int], str, int]:
    """(height, width, samples), dtype and bits from the IHDR chunk."""
    with Path(path).open("rb") as file:
        width, height, depth, colour = struct.unpack(">IIBB", file.read(26)[16:])
    return (height, width, _PNG_SAMPLES[colour]), "uint16" if depth == 16 else "uint8", max(depth, 8)


def _jpeg_shape(path: str) -> tuple[tuple[int, int, int], str, int]:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(Path(path).read_bytes(), strict=False)
    return (int(height), int(width), 1 if colours == "Gray" else 3), "uint8", 8
