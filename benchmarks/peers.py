"""Environments of the programs we measure ourselves beside: `.envs/<name>`, each from its hashed lock.

    python benchmarks/peers.py make ashlar          # or multiview-stitcher, pystackreg, igneous, all
    python benchmarks/peers.py path ashlar          # prints its python

`KBRAIN_HOME` moves `.envs`. An environment is made when first asked for and kept until its lock changes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from measure import PROJECT, Usage, measure_command

NAMES = ("ashlar", "multiview-stitcher", "pystackreg", "igneous")


def environment(name: str) -> Path:
    """Python of a peer's environment, made first if it is not there or its lock has changed.

    Raises
    ------
    SystemExit
        With one line, when pip could not install it.
    """
    lock = PROJECT / "requirements" / f"peers-{name}.txt"
    folder = Path(os.environ.get("KBRAIN_HOME", PROJECT)) / ".envs" / name
    python = folder / "bin" / "python"
    stamp = folder / "lock.sha256"
    checksum = hashlib.sha256(lock.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == checksum:
        return python
    print(f"Making {folder} from {lock.name} ...", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(lock)]
    if subprocess.run(install, check=False).returncode:
        raise SystemExit(
            f"peers: {name} could not be installed from {lock.name}; pip's own lines above say why."
        )
    stamp.write_text(checksum)
    return python


def run_peer(name: str, script: str, *arguments: str | Path) -> tuple[Usage, dict[str, Any]]:
    """Run `benchmarks/peers/<script>` with a peer's Python; returns what it took and the JSON of its last line."""
    command = [environment(name), PROJECT / "benchmarks" / "peers" / script, *arguments]
    # One thread per library, as our own workers have: CPU seconds then compare work, not spinning threads.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    usage = measure_command(command, env={**threads, "MPLBACKEND": "Agg"})
    return usage, json.loads(usage.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("make", "path"))
    parser.add_argument("name", choices=(*NAMES, "all"))
    options = parser.parse_args()
    for name in NAMES if options.name == "all" else (options.name,):
        print(environment(name))


if __name__ == "__main__":
    main()
