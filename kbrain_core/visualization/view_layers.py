"""From volumes, meshes and skeletons to the layers of a page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..formats.ome_zarr import COLORS
from ..formats.volume import Volume
from ..geometry import NM_PER_UM, Box
from ..report import Report
from ..store import is_remote, join, list_keys, read_bytes
from .contrast import channel_contrast, stretched
from .viewer_state import SHOWN_CHANNELS, Address, ImageLayer, LabelLayer, Scene

SourceKind = Literal["image", "labels", "meshes", "skeletons"]

KINDS_OF_INFO: dict[str, SourceKind] = {
    "neuroglancer_legacy_mesh": "meshes",
    "neuroglancer_multilod_draco": "meshes",
    "neuroglancer_skeletons": "skeletons",
}
# A mesh or skeleton of one object: `17:0` (manifest), `17` or `17.index`, perhaps compressed.
OBJECT_FILE = re.compile(r"(\d{1,19})(?::0)?(?:\.index)?(?:\.gz)?")
SHOWN_OBJECTS = 50  # enough to see that they are there, few enough to download at once
VOLUME_ENDINGS = re.compile(r"(\.ome\.zarr|\.zarr|\.precomputed|\.n5)$", re.IGNORECASE)
NAMED_COLORS = {
    "red": "#ff0000",
    "green": "#00ff00",
    "blue": "#0000ff",
    "cyan": "#00ffff",
    "magenta": "#ff00ff",
    "yellow": "#ffff00",
    "white": "#ffffff",
}
PICTURE_VOXELS = 1024


@dataclass(frozen=True)
class Source:
    """One input of the page.

    Parameters
    ----------
    name : str
        Name of its layer, unique among the sources.
    kind : {"image", "labels", "meshes", "skeletons"}
        What it is.
    uri : str
        Path or URL of it.
    volume : Volume or None
        The volume; None for meshes and skeletons.
    objects : tuple of int
        IDs of objects that have a mesh or a skeleton, as far as a listing tells.
    inside : str
        Name of the volume's folder in the folder that was given as input; empty when it is that folder.
    """

    name: str
    kind: SourceKind
    uri: str
    volume: Volume | None
    objects: tuple[int, ...]
    inside: str = ""

    @property
    def voxels(self) -> int:
        """Voxels of level 0; 0 for meshes and skeletons."""
        return int(np.prod(self.volume.shape)) if self.volume else 0

    def address(self, url: str) -> Address:
        """Neuroglancer's address of the source, when its folder is at `url`."""
        if self.volume is None or self.volume.format == "precomputed":
            return Address(f"{url}|neuroglancer-precomputed:")
        zarr = "zarr3" if self.volume.info.driver == "zarr3" else "zarr2"
        return Address(f"{url}|{zarr}:", self.volume.info.axes, self.volume.voxel_size_nm)


def open_sources(inputs: Sequence[str], labels: Sequence[str], names: Sequence[str]) -> tuple[Source, ...]:
    """Look at every input: what it is and what it is called.

    Raises
    ------
    InputError
        When an input is none of what a page shows, no volume is among them, or there are more names than inputs.
    """
    uris = [*inputs, *labels]
    if len(names) > len(uris):
        raise InputError(
            f"{len(names)} names were given for {len(uris)} inputs: give at most one --name per input"
        )
    own_names = list(names) + [_folder_name(uri) for uri in uris[len(names) :]]
    sources = [
        _open_source(uri, name, as_labels=index >= len(inputs))
        for index, (uri, name) in enumerate(zip(uris, _unique(own_names)))
    ]
    if not any(source.volume for source in sources):
        raise InputError("No image or label volume among the inputs: meshes and skeletons need one to lie in")
    return tuple(sources)


def _open_source(uri: str, name: str, as_labels: bool) -> Source:
    kind = _kind_of_info(uri)
    if kind is not None:
        return Source(name, kind, uri.rstrip("/"), None, _listed_objects(uri))
    volume = Volume.open(uri)
    if as_labels and volume.dtype.kind not in "ui":
        raise InputError(
            f"'{uri}' has voxels of type {volume.dtype}: labels are whole numbers, pass it as --input"
        )
    inside = "" if uri.rstrip("/").endswith(volume.uri) else volume.uri.rpartition("/")[2]
    if as_labels or volume.kind == "labels":
        return Source(name, "labels", volume.uri, volume, _objects_of_labels(volume), inside)
    return Source(name, "image", volume.uri, volume, (), inside)


def _read_info(uri: str) -> dict[str, Any]:
    """The `info` file of a precomputed folder; empty when there is none that can be read."""
    try:
        info = json.loads(read_bytes(join(uri, "info")) or b"{}")
    except ValueError:
        return {}
    return info if isinstance(info, dict) else {}


def _kind_of_info(uri: str) -> SourceKind | None:
    return KINDS_OF_INFO.get(str(_read_info(uri).get("@type")))


def _objects_of_labels(volume: Volume) -> tuple[int, ...]:
    """Objects with a mesh or skeleton in the label volume's own folders."""
    if volume.format != "precomputed":
        return ()
    info = _read_info(volume.uri)
    folders = [info[key] for key in ("mesh", "skeletons") if isinstance(info.get(key), str)]
    inside = [
        folder for folder in folders if ".." not in PurePosixPath(folder).parts and not folder.startswith("/")
    ]
    return tuple(sorted({found for folder in inside for found in _listed_objects(join(volume.uri, folder))}))


def _listed_objects(uri: str) -> tuple[int, ...]:
    """IDs that the file names of a local folder tell; a sharded or remote folder does not list its objects."""
    if is_remote(uri):
        return ()
    matches = (OBJECT_FILE.fullmatch(name) for name in list_keys(uri))
    return tuple(sorted({int(match.group(1)) for match in matches if match}))


def _folder_name(uri: str) -> str:
    name = uri.rstrip("/").rsplit("/", 1)[-1]
    return VOLUME_ENDINGS.sub("", name) or "volume"


def _unique(names: Sequence[str]) -> list[str]:
    """The names, those that came before with a number behind."""
    unique: list[str] = []
    for name in names:
        candidate, number = name, 2
        while candidate in unique:
            candidate, number = f"{name} {number}", number + 1
        unique.append(candidate)
    return unique


def parse_color(text: str) -> str:
    """`#rrggbb` of a colour as people write it."""
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        return text.lower()
    if text.lower() in NAMED_COLORS:
        return NAMED_COLORS[text.lower()]
    raise InputError(f"--color '{text}' is no colour: write #rrggbb or one of {', '.join(NAMED_COLORS)}")


def make_layers(
    sources: Sequence[Source],
    address_of: Callable[[Source], Address],
    *,
    colors: Sequence[str],
    segments: tuple[int, ...],
    percentiles: tuple[float, float],
) -> tuple[ImageLayer | LabelLayer, ...]:
    """The layers of a page: a layer per channel of every image, then one per label volume.

    Parameters
    ----------
    sources : sequence of Source
        What is shown.
    address_of : callable
        Gives the address under which the page finds a source.
    colors : sequence of str
        Colours of the channels, as people write them; default colours for the rest.
    segments : tuple of int
        Objects selected from the start; empty for the first ones that have a mesh or a skeleton.
    percentiles : (float, float)
        Percentiles of the grey values, in percent, that become black and white.
    """
    if percentiles[0] >= percentiles[1]:
        raise InputError(
            f"--black-percentile is {percentiles[0]:g} and --white-percentile {percentiles[1]:g}: black must be below white"
        )
    channels = [(source, c) for source in sources if source.kind == "image" for c in range(_channels(source))]
    if len(colors) > len(channels):
        raise InputError(
            f"{len(colors)} colours were given for {len(channels)} channels: give at most one per channel"
        )
    defaults = [f"#{color.lower()}" for color in COLORS] if len(channels) > 1 else [None]
    chosen: list[str | None] = [parse_color(color) for color in colors]
    chosen += [defaults[index % len(defaults)] for index in range(len(chosen), len(channels))]
    images = [
        _image_layer(source, channel, address_of(source), color, percentiles)
        for (source, channel), color in zip(channels, chosen)
    ]
    return (*images, *_label_layers(sources, address_of, segments))


def _channels(source: Source) -> int:
    return source.volume.shape[1] if source.volume else 0


def _image_layer(
    source: Source, channel: int, address: Address, color: str | None, percentiles: tuple[float, float]
) -> ImageLayer:
    assert source.volume is not None  # an image is a volume
    several = source.volume.shape[1] > 1
    label = source.volume.channel_names[channel]
    label = f"channel {label}" if label.isdigit() else label
    return ImageLayer(
        name=f"{source.name} {label}" if several else source.name,
        source=address,
        contrast=channel_contrast(source.volume, channel, percentiles),
        channel=channel if several else None,
        color=color,
    )


def _label_layers(
    sources: Sequence[Source], address_of: Callable[[Source], Address], segments: tuple[int, ...]
) -> Iterator[LabelLayer]:
    """Label volumes; meshes and skeletons join the only one, or are layers of their own."""
    volumes = [source for source in sources if source.kind == "labels"]
    models = [source for source in sources if source.kind in ("meshes", "skeletons")]
    apart = [[source] for source in [*volumes, *models]]
    for group in [[*volumes, *models]] if len(volumes) == 1 else apart:
        listed = sorted({found for source in group for found in source.objects})
        selected = segments or tuple(listed[:SHOWN_OBJECTS])
        yield LabelLayer(group[0].name, tuple(address_of(source) for source in group), selected)


def common_voxel_size(
    sources: Sequence[Source], zoom_um_per_px: float | None
) -> tuple[float, float, float] | None:
    """Voxel size (z, y, x) in nm of the first volume; None when no volume says its own.

    Raises
    ------
    InputError
        When some volumes say it and others do not (they cannot be laid over each other), or a zoom needs it.
    """
    volumes = [source for source in sources if source.volume]
    unknown = [source.name for source in volumes if source.volume and source.volume.voxel_size_nm is None]
    if not unknown:
        return volumes[0].volume.voxel_size_nm if volumes[0].volume else None
    mend = "convert it again with --voxel-size"
    if len(unknown) < len(volumes):
        raise InputError(
            f"The voxel size of '{unknown[0]}' is unknown, that of other volumes is known: {mend}"
        )
    if zoom_um_per_px is not None:
        raise InputError(
            f"--zoom-um-per-px needs a voxel size, and that of '{unknown[0]}' is unknown: {mend}"
        )
    return None


def start_position(sources: Sequence[Source], position: Box | None) -> tuple[float, float, float]:
    """Where the view begins (z, y, x), in voxels of the first volume as the page counts them; in the middle of a voxel.

    Raises
    ------
    InputError
        When the position is outside the volume.
    """
    volume = next(source.volume for source in sources if source.volume)
    size = volume.voxel_size_nm or (1.0, 1.0, 1.0)
    wanted = position or Box()
    start = []
    for axis, length, offset_nm, side, bounds in zip(
        "zyx", volume.shape[2:], volume.offset_nm, size, (wanted.z, wanted.y, wanted.x)
    ):
        first = offset_nm / side
        low = first if bounds[0] is None else bounds[0]
        high = first + length if bounds[1] is None else bounds[1]
        if not math.floor(first) <= low < high <= math.ceil(first + length):
            raise InputError(
                f"--position asks for {axis}={low:g} but the volume has {axis}={first:g}:{first + length:g}: "
                "choose a place inside"
            )
        start.append(math.floor((low + high) / 2) + 0.5)
    return (start[0], start[1], start[2])


def warnings(sources: Sequence[Source]) -> tuple[str, ...]:
    """What a user should know before measuring on the page."""
    unknown = [s.name for s in sources if s.volume and s.volume.voxel_size_nm is None]
    return tuple(
        f"The voxel size of '{name}' is unknown: distances on the page are in voxels" for name in unknown
    )


def make_report(scene: Scene, sources: Sequence[Source]) -> Report:
    """The page in words and one picture: its layers, their contrast and the middle plane as the page shows it."""
    report = Report(
        f"View: {scene.title}", "What the KNeuroViz page shows, and with which contrast it opens."
    )
    size = scene.voxel_size_nm
    report.figures(
        {
            "layers": str(len(scene.layers)),
            "voxel size (x, y, z)": " x ".join(f"{s / NM_PER_UM:g}" for s in reversed(size)) + " um"
            if size
            else "unknown",
        }
    )
    rows = [_row(layer) for layer in scene.layers]
    report.table("Layers", ("layer", "kind", "colour", "black to white, or selection"), rows)
    images = [source for source in sources if source.kind == "image"]
    if images:
        same = [image for image in images if _grid(image) == _grid(images[0])]
        caption = (
            f"Middle plane of {', '.join(image.name for image in same)}, black and white as on the page."
        )
        report.picture("middle-plane", caption, _middle_plane(images, same, scene))
    return report


def _row(layer: ImageLayer | LabelLayer) -> tuple[str, str, str, str]:
    if isinstance(layer, ImageLayer):
        shown = f"{layer.contrast.black:g} to {layer.contrast.white:g}"
        return (layer.name, "image", layer.color or "grey", shown)
    selected = f"{len(layer.segments)} objects selected" if layer.segments else "all objects shown"
    return (layer.name, "labels", "one colour per object", selected)


def _grid(source: Source) -> tuple[Any, ...]:
    """Where the voxels of a volume lie: images on one grid can be added pixel by pixel."""
    volume = source.volume
    assert volume is not None  # an image is a volume
    return (volume.shape[2:], volume.voxel_size_nm, volume.offset_nm)


def _middle_plane(images: Sequence[Source], shown: Sequence[Source], scene: Scene) -> NDArray[np.uint8]:
    """Middle plane of the shown images as the page shows it, their channels added in their colours: (Y, X, 3)."""
    layers = iter([layer for layer in scene.layers if isinstance(layer, ImageLayer)])
    picture: NDArray[np.float32] | None = None
    for source in images:
        volume = source.volume
        assert volume is not None  # an image is a volume
        level = volume.level_at_most(PICTURE_VOXELS)
        depth = volume.levels[level].shape[0]
        plane = slice(depth // 2, depth // 2 + 1)
        for channel, layer in zip(range(min(volume.shape[1], SHOWN_CHANNELS)), layers, strict=False):
            if source not in shown:
                continue
            region = (slice(0, 1), slice(channel, channel + 1), plane, slice(None), slice(None))
            grey = stretched(volume.read(region, level=level)[0, 0, 0], layer.contrast)
            colored = grey[..., None] * _rgb(layer.color)
            if picture is None:
                picture = colored
            elif picture.shape == colored.shape:  # volumes of one grid may have other levels
                picture = picture + colored
    assert picture is not None
    return np.asarray(np.rint(np.clip(picture, 0, 1) * 255), dtype=np.uint8)


def _rgb(color: str | None) -> NDArray[np.float32]:
    text = (color or "#ffffff")[1:]
    return np.array([int(text[i : i + 2], 16) / 255 for i in (0, 2, 4)], dtype=np.float32)
