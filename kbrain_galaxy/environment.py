"""Environments of their own for Galaxy and planemo, each made from its hashed lock when it is first needed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from kbrain_core.engine import say
from kbrain_core.errors import ResourceError

from .places import environments_folder, packaged

STAMP = "kbrain-lock.sha256"
NEEDED_BYTES = 3_000_000_000  # Galaxy takes 1.3 GB, and as much again while it is unpacked


def ensure_environment(name: str) -> Path:
    """Make the environment `name` from `requirements/<name>.txt` unless it is there already.

    Parameters
    ----------
    name : str
        galaxy or planemo.

    Returns
    -------
    Path
        Folder of the environment's programs.

    Raises
    ------
    ResourceError
        When the disk is too full, or pip cannot install what the lock lists.
    """
    lock = packaged("requirements") / f"{name}.txt"
    wanted = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
    folder = environments_folder() / name
    stamp = folder / STAMP
    if stamp.is_file() and stamp.read_text() == wanted:
        return folder / "bin"
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < NEEDED_BYTES:
        raise ResourceError(
            f"'{folder.parent}' has {free / 1e9:.1f} GB left and {name} needs "
            f"{NEEDED_BYTES / 1e9:.0f} GB: make room, or set KBRAIN_HOME to another disk"
        )
    say(f"Making an environment for {name} in '{folder}' (once; a few minutes)")
    shutil.rmtree(folder, ignore_errors=True)  # what a killed attempt left: it has no stamp
    _run([sys.executable, "-m", "venv", str(folder)], name)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "-qq"]
    _run([*pip, "--progress-bar", "on", "--require-hashes", "-r", str(lock)], name)
    stamp.write_text(wanted)
    return folder / "bin"


def _run(command: list[str], name: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        reason = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "no message")
        raise ResourceError(f"The environment for {name} could not be made: {reason.strip()}")


if __name__ == "__main__":
    for wanted_name in sys.argv[1:]:
        ensure_environment(wanted_name)
