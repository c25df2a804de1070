"""The state of a KNeuroViz page: which layers it shows, how they look and where it begins, as Neuroglancer's JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..geometry import NM_PER_UM

Layout = Literal["4panel", "xy", "xz", "yz", "3d", "xy-3d", "xz-3d", "yz-3d"]

METRES_PER_NM = 1e-9
ZARR_CHANNEL = "c'"  # Neuroglancer's name for a channel axis of which a layer shows one position
ZOOMED_PANEL_PX = 600  # height of a typical 3D panel: Neuroglancer zooms it by what its height shows
SHOWN_CHANNELS = 4  # more at once are mud; the others wait, one click away, in the layer list
# As Neuroglancer itself sets up several channels, so that its own controls go on working.
CHANNEL_SHADER = """#uicontrol invlerp contrast
#uicontrol vec3 color color
void main() {
  float value = contrast();
  if (VOLUME_RENDERING) {
    emitRGBA(vec4(color * value, value));
  } else {
    emitRGB(color * value);
  }
}
"""
GREY_SHADER = """#uicontrol invlerp contrast
void main() {
  emitGrayscale(contrast());
}
"""
# Seen slightly from above and from the side, so that the three slices do not hide each other.
OBLIQUE = (-0.24, 0.36, 0.1, 0.896)


@dataclass(frozen=True)
class Contrast:
    """Grey values that become black and white, and the range that the histogram beside them shows."""

    black: float
    white: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Address:
    """Where the page finds a volume, meshes or skeletons.

    Parameters
    ----------
    url : str
        Neuroglancer's address of it, the format behind a bar; relative to the page or absolute.
    zarr_axes : str
        Stored axes of an OME-Zarr, slowest first; empty for precomputed. OME-Zarr puts position 0 in the middle of the first
        voxel, precomputed at its corner: the page counts as precomputed does, else the two would lie half a voxel apart.
    voxel_size_nm : (float, float, float), optional
        Voxel size (z, y, x) of the OME-Zarr; None when it does not say.
    """

    url: str
    zarr_axes: str = ""
    voxel_size_nm: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class ImageLayer:
    """One channel of an image.

    Parameters
    ----------
    name : str
        As the layer list shows it.
    source : Address
        Where the volume is.
    contrast : Contrast
        What is black and what is white.
    channel : int, optional
        Which channel of a volume that holds several.
    color : str, optional
        Colour as #rrggbb; grey when None.
    """

    name: str
    source: Address
    contrast: Contrast
    channel: int | None = None
    color: str | None = None


@dataclass(frozen=True)
class LabelLayer:
    """Objects, each with a colour of its own, their meshes and skeletons.

    Parameters
    ----------
    name : str
        As the layer list shows it.
    sources : tuple of Address
        Where the label volume, meshes and skeletons with the same IDs are.
    segments : tuple of int
        Objects selected from the start: only these appear in 3D.
    """

    name: str
    sources: tuple[Address, ...]
    segments: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A page to be: its layers, where it begins and how much of the machine it may take."""

    title: str
    layers: tuple[ImageLayer | LabelLayer, ...]
    voxel_size_nm: tuple[float, float, float] | None
    position_zyx: tuple[float, float, float]
    layout: Layout
    scale_bar: bool
    zoom_um_per_px: float | None
    gpu_memory_gb: float
    system_memory_gb: float
    concurrent_downloads: int


def viewer_state(scene: Scene) -> dict[str, Any]:
    """Neuroglancer's state of a scene.

    Parameters
    ----------
    scene : Scene
        What the page shows. Without a zoom the page fits the volume into its window when it opens.

    Returns
    -------
    dict
        JSON types only; IDs are strings, as JSON numbers lose digits above 2^53.
    """
    state: dict[str, Any] = {
        "title": scene.title,
        "dimensions": _dimensions(scene.voxel_size_nm),
        "position": list(reversed(scene.position_zyx)),
        "projectionOrientation": list(OBLIQUE),
        "layers": _layers(scene.layers),
        "showScaleBar": scene.scale_bar,
        "crossSectionBackgroundColor": "#000000",
        "hideCrossSectionBackground3D": True,
        "layout": scene.layout,
        "gpuMemoryLimit": round(scene.gpu_memory_gb * 1e9),
        "systemMemoryLimit": round(scene.system_memory_gb * 1e9),
        "concurrentDownloads": scene.concurrent_downloads,
        # Neuroglancer opens this wide panel for every new image layer.
        "toolPalettes": {"Shader controls": {"query": "type:shaderControl", "visible": False}},
    }
    if scene.zoom_um_per_px is not None:
        # Neuroglancer counts in its canonical voxel, a cube of the smallest side.
        scale = scene.zoom_um_per_px * NM_PER_UM / min(scene.voxel_size_nm or (NM_PER_UM,))
        state["crossSectionScale"] = scale
        state["projectionScale"] = scale * ZOOMED_PANEL_PX
    return state


def _dimensions(voxel_size_nm: tuple[float, float, float] | None) -> dict[str, list[Any]]:
    """Without them Neuroglancer guesses the scale of the 3D view; a volume of unknown voxel size is counted in voxels."""
    if voxel_size_nm is None:
        return {axis: [1, ""] for axis in "xyz"}
    return {axis: [size * METRES_PER_NM, "m"] for axis, size in zip("xyz", reversed(voxel_size_nm))}


def _layers(layers: Sequence[ImageLayer | LabelLayer]) -> list[dict[str, Any]]:
    images = [layer for layer in layers if isinstance(layer, ImageLayer)]
    labels = [layer for layer in layers if isinstance(layer, LabelLayer)]
    return [
        *(_image(layer, hidden=index >= SHOWN_CHANNELS) for index, layer in enumerate(images)),
        *(_labels(layer, over_image=bool(images)) for layer in labels),
    ]


def _source(address: Address) -> dict[str, Any]:
    if not address.zarr_axes:
        return {"url": address.url}
    names = [ZARR_CHANNEL if axis == "c" else axis for axis in address.zarr_axes]
    space = _dimensions(address.voxel_size_nm)
    matrix = [
        [float(row == column) for column in range(len(names))] + [0.5 if name in "zyx" else 0.0]
        for row, name in enumerate(names)
    ]
    dimensions = {name: space.get(name, [1, ""]) for name in names}
    return {"url": address.url, "transform": {"matrix": matrix, "outputDimensions": dimensions}}


def _image(layer: ImageLayer, hidden: bool) -> dict[str, Any]:
    range_control: dict[str, Any] = {
        "range": [layer.contrast.black, layer.contrast.white],
        "window": [layer.contrast.lowest, layer.contrast.highest],
    }
    controls: dict[str, Any] = {"contrast": range_control}
    state: dict[str, Any] = {
        "type": "image",
        "name": layer.name,
        "source": _source(layer.source),
        "opacity": 1,
    }
    if layer.channel is not None and layer.source.zarr_axes:
        state["localDimensions"] = {ZARR_CHANNEL: [1, ""]}
        state["localPosition"] = [layer.channel]
    elif layer.channel is not None:
        range_control["channel"] = [layer.channel]
    if layer.color is not None:
        controls["color"] = layer.color
        state["blend"] = "additive"
    state["shader"] = GREY_SHADER if layer.color is None else CHANNEL_SHADER
    state["shaderControls"] = controls
    if hidden:
        state["visible"] = False
    return state


def _labels(layer: LabelLayer, over_image: bool) -> dict[str, Any]:
    state: dict[str, Any] = {
        "type": "segmentation",
        "name": layer.name,
        "source": [_source(source) for source in layer.sources],
        "selectedAlpha": 0.4 if over_image else 1,
    }
    if layer.segments:
        state["segments"] = [str(segment) for segment in layer.segments]
        state["notSelectedAlpha"] = 0.1 if over_image else 0.3
    return state
