"""Renew the locks: every `NAME.in` becomes `NAME.txt`, with hashes and without addresses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# core first: the others are held to its versions by `-c core.txt` where they share its environment
NAMES = sorted((path.stem for path in HERE.glob("*.in")), key=lambda name: (name != "core", name))


def lock(name: str) -> None:
    """Resolve one list of requirements for Python 3.11 and newer."""
    command = [
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--universal",
        "--python-version",
        "3.11",
        "--generate-hashes",
    ]
    command += [
        "--no-header",
        "--no-annotate",
        "--no-strip-extras",
        "--no-emit-index-url",
        "--no-emit-find-links",
    ]
    command += ["--constraint", "limits.txt", f"{name}.in", "--output-file", f"{name}.txt"]
    subprocess.run([Path(sys.executable).parent / command[0], *command[1:]], cwd=HERE, check=True)
    text = (HERE / f"{name}.txt").read_text()
    if re.search(r"https?://|file:", text):
        sys.exit(f"requirements/{name}.txt holds an address: name packages, not places")
    print(f"requirements/{name}.txt: {len(re.findall(r'==', text))} packages")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or NAMES:
        lock(chosen)
