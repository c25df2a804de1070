"""Make a KNeuroViz page that shows volumes, labels, meshes and skeletons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from ..geometry import Box
from ..stage import FileOut, FolderOut, RunOptions, StageResult, VolumeIn, stage
from .viewer_state import Layout


@dataclass(frozen=True, kw_only=True)
class ViewResult(StageResult):
    """What `view_volume` made."""

    image_layers: int
    label_layers: int
    volume_voxels: int
    copied_bytes: int


@stage
def view_volume(
    input: list[VolumeIn],
    output: FolderOut,
    *,
    labels: list[VolumeIn] | None = None,
    title: str | None = None,
    name: list[str] | None = None,
    color: list[str] | None = None,
    segment: list[Annotated[int, Ge(1), Le(2**63 - 1)]] | None = None,
    layout: Layout = "4panel",
    position: Box | None = None,
    zoom_um_per_px: Annotated[float, Gt(0)] | None = None,
    black_percentile: Annotated[float, Ge(0), Lt(100)] = 0.35,
    white_percentile: Annotated[float, Gt(0), Le(100)] = 99.65,
    scale_bar: bool = True,
    gpu_memory_gb: Annotated[float, Gt(0)] = 1.0,
    system_memory_gb: Annotated[float, Gt(0)] = 2.0,
    concurrent_downloads: Annotated[int, Ge(1), Le(1000)] = 64,
    data: Literal["serve", "copy", "relative"] = "serve",
    address: list[str] | None = None,
    state_output: FileOut | None = None,
    run: RunOptions = RunOptions(),
) -> ViewResult:
    """Make a page on which volumes can be browsed in 3D.

    The page is a folder: KNeuroViz (a Neuroglancer of our own) and `state.json`, which says what it shows and may be edited.
    Open it with `kbrain serve <output>`; a file manager cannot open it, as browsers read volumes only from a server.
    Only what is on the screen is ever read, so volumes of any size open at once. The state as it is on the screen is in the
    address: copy that to share a view with somebody who reaches the same server.

    Several images, or several channels of one, become layers that add up, each in its colour; a click on a layer's name
    hides it, a right click opens its contrast. Labels lie over the images.

    Parameters
    ----------
    input : list of str
        Folders or URLs of what to show, in the order of the layers: image and label volumes (precomputed or OME-Zarr), and
        precomputed meshes and skeletons, which join the label volume when there is exactly one.
    output : Path
        Folder of the page.
    labels : list of str, optional
        Label volumes whose own metadata do not say that they are labels: one colour per object.
    title : str, optional
        Title of the page. Default: the name of the first input.
    name : list of str, optional
        Names of the layers, in the order of the inputs and then of the labels. Default: the names of the folders.
    color : list of str, optional
        Colours of the images' channels in their order: #rrggbb, or red, green, blue, cyan, magenta, yellow, white. Default:
        grey for one channel; green, magenta, cyan ... for several.
    segment : list of int, optional
        IDs of objects that are selected from the start; only selected objects appear in 3D. Default: where there are
        meshes or skeletons, the first 50 of them.
    layout : str
        Which panels: 4panel (three planes and 3D), one plane, 3d, or a plane beside 3D.
    position : Box, optional
        Where the view begins, like x=100,y=200,z=30, in voxels as the page shows them; the middle of a box, if it is one.
        Default: the middle of the first volume.
    zoom_um_per_px : float, optional
        Size of a screen pixel in um. Default: the volume just fits the window, whatever its size.
    black_percentile : float
        Percentile of an image's grey values that becomes black. Voxels that are exactly 0 do not count: empty margins are 0.
        0.35 and 99.65, as Fiji's automatic contrast, so that single hot pixels do not make the rest dark.
    white_percentile : float
        Percentile that becomes white.
    scale_bar : bool
        Show a scale bar.
    gpu_memory_gb : float
        Most graphics memory, in GB, that the page fills with chunks.
    system_memory_gb : float
        Most memory, in GB, that the page keeps chunks in.
    concurrent_downloads : int
        Most chunks that are read at the same time.
    data : str
        How the page reaches local volumes. serve: where they are, through `kbrain serve`, which reads their place from
        kneuroviz.json. copy: they are put into the page's folder (as hard links where the disk allows), which any web
        server can then serve whole. relative: by their path relative to the page, for a web server whose root holds both.
        URLs stay URLs; their server must allow other sites to read (CORS).
    address : list of str, optional
        Where the page finds the folder of each input, in the order of the inputs and then of the labels: a URL, or a path
        from the root of the page's own server, like /api/datasets/1f/extra_files/raw. Replaces what --data says.
    state_output : Path, optional
        File for the state alone (JSON), for portals that bring their own viewer. Local volumes need --address then.
    run : RunOptions
        How the stage runs.

    Returns
    -------
    ViewResult
        How many layers the page has and how much was copied.

    Raises
    ------
    InputError
        When no volume is given, voxel sizes are known for some volumes only, the position is outside, a colour, address
        or percentile makes no sense, or KNeuroViz was not built.
    OutputExistsError
        When something else lies where the page or its state should go.
    IncompleteError
        When a volume is unfinished.

    References
    ----------
    Neuroglancer: https://github.com/google/neuroglancer
    """
    from ..engine import Job, Plan, say
    from . import view_layers, view_page
    from .viewer_state import ImageLayer, Scene

    view_page.check_client()
    sources = view_layers.open_sources(input, labels or [], name or [])
    addresses = view_page.Addresses.plan(sources, output, data, address or [])
    job = Job.open(output, run, side_outputs=[state_output] if state_output else [])
    if state_output is not None:
        view_page.prepare_state(state_output, addresses, run.overwrite or job.resumed)
    layers = view_layers.make_layers(
        sources,
        addresses.of,
        colors=color or [],
        segments=tuple(segment or ()),
        percentiles=(black_percentile, white_percentile),
    )
    scene = Scene(
        title=title or sources[0].name,
        layers=layers,
        voxel_size_nm=view_layers.common_voxel_size(sources, zoom_um_per_px),
        position_zyx=view_layers.start_position(sources, position),
        layout=layout,
        scale_bar=scale_bar,
        zoom_um_per_px=zoom_um_per_px,
        gpu_memory_gb=gpu_memory_gb,
        system_memory_gb=system_memory_gb,
        concurrent_downloads=concurrent_downloads,
    )
    page_bytes = view_page.client_bytes()
    job.start(Plan(1, page_bytes, page_bytes + addresses.copied_bytes, 100_000_000, 1 + page_bytes / 1e8))
    view_page.write_page(output, scene, addresses, state_output)
    if not address:
        say(f"Open it: kbrain serve {output}")
    images = [layer for layer in layers if isinstance(layer, ImageLayer)]
    return ViewResult(
        image_layers=len(images),
        label_layers=len(layers) - len(images),
        volume_voxels=sum(source.voxels for source in sources),
        copied_bytes=addresses.copied_bytes,
        warnings=view_layers.warnings(sources),
        report=view_layers.make_report(scene, sources),
        job=job,
    )
