"""What a stored volume says of itself, in either format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .layout import Level, Shape, VoxelSizeNm
from .volume_spec import VolumeFormat, VolumeKind, VolumeSpec

# The key under which KBrain keeps what the formats have no word for.
KBRAIN_KEY = "kbrain"


@dataclass(frozen=True)
class VolumeInfo:
    """Metadata of a stored volume.

    Parameters
    ----------
    format, kind, shape, dtype, voxel_size_nm, offset_nm, channel_names, lossy, intensity_windows
        As in `VolumeSpec`.
    levels : tuple of Level
        Resolution levels, finest first.
    encoding : str or None
        How chunks are compressed, where it is known.
    paths : tuple of str
        Path or URL of each level (OME-Zarr), or of the volume (precomputed).
    driver : str
        tensorstore's driver.
    axes : str
        Names of the stored axes, slowest first.
    """

    format: VolumeFormat
    kind: VolumeKind
    shape: Shape
    dtype: str
    voxel_size_nm: VoxelSizeNm | None
    offset_nm: VoxelSizeNm
    channel_names: tuple[str, ...]
    levels: tuple[Level, ...]
    lossy: bool
    encoding: str | None
    intensity_windows: tuple[tuple[float, float], ...]
    paths: tuple[str, ...]
    driver: str
    axes: str


@dataclass(frozen=True)
class KBrainMetadata:
    """The part of a volume's metadata that only KBrain writes."""

    lossy: bool
    encoding: str | None
    intensity_windows: tuple[tuple[float, float], ...]
    channel_names: tuple[str, ...]


def kbrain_metadata(spec: VolumeSpec) -> dict[str, Any]:
    """What goes under the key "kbrain"."""
    return {
        "lossy": spec.lossy,
        "encoding": spec.encoding,
        "quality": spec.quality if spec.encoding == "jpeg" else None,
        "intensity_windows": [list(window) for window in spec.intensity_windows],
        "channel_names": list(spec.channel_names),
    }


def read_kbrain_metadata(content: Any) -> KBrainMetadata:
    """Read what `kbrain_metadata` wrote; a volume of another program has none of it."""
    own = content if isinstance(content, dict) else {}
    windows = own.get("intensity_windows")
    windows = windows if isinstance(windows, list) else []
    names = own.get("channel_names")
    encoding = own.get("encoding")
    return KBrainMetadata(
        lossy=own.get("lossy") is True,
        encoding=encoding if isinstance(encoding, str) else None,
        intensity_windows=tuple(map(_window, windows)),
        channel_names=tuple(map(str, names)) if isinstance(names, list) else (),
    )


def _window(content: Any) -> tuple[float, float]:
    low, high = content
    return (float(low), float(high))
