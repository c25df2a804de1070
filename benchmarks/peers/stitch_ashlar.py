"""ASHLAR on a phantom folder of one section and one channel: positions, and its pyramidal mosaic when asked for.

    .envs/ashlar/bin/python benchmarks/peers/stitch_ashlar.py FOLDER [--mosaic OUT.ome.tif] [--max-shift-px 30]

Needs a Java runtime: its module starts Bio-Formats when it is imported, although its file series reader reads with tifffile.
"""

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path)
parser.add_argument("--mosaic", type=Path)
parser.add_argument("--max-shift-px", type=float, default=30.0)
options = parser.parse_args()

warnings.simplefilter("ignore")
begun = time.process_time()
from ashlar import fileseries, reg  # noqa: E402

cpu_s = {"import": time.process_time()}
truth = json.loads((options.folder / "truth.json").read_text())
rows, cols = truth["grid"]["rows"], truth["grid"]["cols"]

with tempfile.TemporaryDirectory() as links:
    # Its reader wants one running number in the names.
    for tile in truth["tiles"]:
        source = next(options.folder.glob(f"{tile['name']}.*tif")).resolve()
        (Path(links) / f"series_{tile['row'] * cols + tile['col']:05d}.tif").symlink_to(source)
    reader = fileseries.FileSeriesReader(
        links, "series_{series:05}.tif", overlap=truth["overlap"], width=cols, height=rows, pixel_size=1.0
    )
    start = time.process_time()
    aligner = reg.EdgeAligner(reader, max_shift=options.max_shift_px, do_make_thumbnail=False)
    aligner.run()
    cpu_s["register"] = time.process_time() - start
    if options.mosaic:
        start = time.process_time()
        mosaic = reg.Mosaic(aligner, aligner.mosaic_shape)
        aligner.reader = aligner.reader.reader  # as its command does: no cache while it writes
        reg.PyramidWriter([mosaic], str(options.mosaic)).run()
        cpu_s["fuse"] = time.process_time() - start

positions = [
    {"key": [0, index // cols, index % cols], "px": [0.0, float(y), float(x)]}
    for index, (y, x) in enumerate(aligner.positions)
]
print("\n" + json.dumps({"positions": positions, "cpu_s": cpu_s}))
