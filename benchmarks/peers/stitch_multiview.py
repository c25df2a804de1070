"""multiview-stitcher on a phantom folder (2D or 3D tiles, one section, first channel): registered positions.

    .envs/multiview-stitcher/bin/python benchmarks/peers/stitch_multiview.py FOLDER [--fuse OUT.zarr] [--max-shift-px 30]

`--max-shift-px` is the overlap tolerance it may search beyond the nominal overlap.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path)
parser.add_argument("--fuse", type=Path)
parser.add_argument("--max-shift-px", type=float, default=0.0)
options = parser.parse_args()

warnings.simplefilter("ignore")
import dask  # noqa: E402
import numpy as np  # noqa: E402
import tifffile  # noqa: E402
from multiview_stitcher import fusion, msi_utils, registration  # noqa: E402
from multiview_stitcher import spatial_image_utils as si_utils  # noqa: E402

cpu_s = {"import": time.process_time()}
truth = json.loads((options.folder / "truth.json").read_text())
depth, height, width = truth["tile_shape_px"]
axes = "zyx" if depth > 1 else "yx"
tiles, views = [], []
start = time.process_time()
for tile in truth["tiles"]:
    found = list(options.folder.glob(f"{tile['name']}.*tif"))
    if not found:
        continue
    image = tifffile.imread(found[0]).reshape(-1, depth, height, width)[0]
    image = image if depth > 1 else image[0]
    place = dict(zip("zyx", tile["stage_px"], strict=True))
    sim = si_utils.get_sim_from_array(
        image,
        dims=list(axes),
        scale=dict.fromkeys(axes, 1.0),
        translation={axis: place[axis] for axis in axes},
        transform_key="stage",
    )
    tiles.append(tile)
    views.append(msi_utils.get_msim_from_sim(sim, scale_factors=[]))

with dask.config.set(scheduler="threads", num_workers=1):
    registration.register(
        views,
        reg_channel_index=0,
        transform_key="stage",
        new_transform_key="registered",
        overlap_tolerance=options.max_shift_px,
        pre_registration_pruning_method="keep_axis_aligned",
        n_parallel_pairwise_regs=1,
    )
    cpu_s["register"] = time.process_time() - start
    positions = []
    for tile, view in zip(tiles, views, strict=True):
        affine = np.asarray(msi_utils.get_transform_from_msim(view, transform_key="registered")).squeeze()
        origin = np.array([*tile["stage_px"][3 - len(axes) :], 1.0])
        place = (affine @ origin)[: len(axes)]
        key = [tile["z"], tile["row"], tile["col"]]
        positions.append({"key": key, "px": [0.0] * (3 - len(axes)) + place.tolist()})
    if options.fuse:
        start = time.process_time()
        sims = [msi_utils.get_sim_from_msim(view) for view in views]
        fused = fusion.fuse(sims, transform_key="registered", output_chunksize=256)
        fused.data.to_zarr(str(options.fuse), overwrite=True)
        cpu_s["fuse"] = time.process_time() - start

print("\n" + json.dumps({"positions": positions, "cpu_s": cpu_s}))
