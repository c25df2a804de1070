"""pystackreg (rigid) on a phantom folder of sections: each section onto the one before, chained.

.envs/pystackreg/bin/python benchmarks/peers/align_pystackreg.py FOLDER
"""

import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
import tifffile
from pystackreg import StackReg

folder = Path(sys.argv[1])
sections = [tifffile.imread(path) for path in sorted(folder.glob("section_*.tif"))]
start = time.process_time()
register = StackReg(StackReg.RIGID_BODY)
# Its matrix takes (x, y, 1) of the reference to the moving image, like a transforms table.
chain = [np.eye(3)]
for reference, moving in itertools.pairwise(sections):
    chain.append(register.register(reference, moving) @ chain[-1])
cpu_s = time.process_time() - start
swap = np.eye(3)[[1, 0, 2]]
transforms = [(swap @ matrix @ swap)[:2].tolist() for matrix in chain]
print("\n" + json.dumps({"transforms": transforms, "cpu_s": {"register": cpu_s}, "pairs": len(sections) - 1}))
