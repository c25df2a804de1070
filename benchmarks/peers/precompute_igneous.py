"""cloud-volume writes level 0 of a precomputed volume, the `igneous` program its other levels.

    .envs/igneous/bin/python benchmarks/peers/precompute_igneous.py IMAGE OUT [--encoding raw|jpeg] [--mips 4] [--parallel 1]

IMAGE is a (Z, Y, X) .npy file; it is read through a memory map.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from cloudvolume import CloudVolume

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("image", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--encoding", default="raw")
parser.add_argument("--layer", default="image", choices=("image", "segmentation"))
parser.add_argument("--mips", type=int, default=4)
parser.add_argument("--parallel", type=int, default=1)
parser.add_argument("--voxel-nm", type=float, nargs=3, default=(10.0, 10.0, 10.0), help="z y x")
parser.add_argument("--compress", default="", help="gzip, br or zstd; none by default")
options = parser.parse_args()

image = np.load(options.image, mmap_mode="r")
cloud_path = f"file://{options.out.resolve()}"
info = CloudVolume.create_new_info(
    num_channels=1,
    layer_type=options.layer,
    data_type=str(image.dtype),
    encoding=options.encoding,
    resolution=list(options.voxel_nm)[::-1],
    voxel_offset=[0, 0, 0],
    chunk_size=[64, 64, 64],
    volume_size=list(image.shape)[::-1],
)
volume = CloudVolume(cloud_path, info=info, compress=options.compress, progress=False)
volume.commit_info()
cpu_s = {"import": time.process_time()}
start = time.process_time()
for z in range(0, image.shape[0], 64):
    slab = np.ascontiguousarray(image[z : z + 64])
    volume[:, :, z : z + len(slab)] = slab.T[..., None]
cpu_s["mip0"] = time.process_time() - start

igneous = Path(sys.executable).with_name("igneous")
command = [
    igneous,
    "-p",
    str(options.parallel),
    "image",
    "downsample",
    cloud_path,
    "--num-mips",
    str(options.mips),
]
command += ["--compress", options.compress or "none"]
before = resource.getrusage(resource.RUSAGE_CHILDREN)
subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr, env=os.environ)
after = resource.getrusage(resource.RUSAGE_CHILDREN)
cpu_s["mips"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
scales = json.loads((options.out / "info").read_text())["scales"]
print("\n" + json.dumps({"cpu_s": cpu_s, "scales": [scale["size"] for scale in scales]}))
