"""Run every benchmark, one after the other, and renew docs/benchmarks.md; about an hour.

    python benchmarks/run_all.py                 # or some of them: run_all.py startup stitch

A benchmark that fails does not stop the others; the command fails in the end.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("startup", "sort", "convert", "illumination", "stitch", "align", "precompute", "view")


def main(chosen: list[str]) -> int:
    unknown = set(chosen) - set(NAMES)
    if unknown:
        sys.exit(f"Unknown benchmark {', '.join(sorted(unknown))}: choose from {', '.join(NAMES)}")
    failed = []
    for name in chosen or NAMES:
        print(f"[{name}]", flush=True)
        start = time.monotonic()
        if subprocess.run([sys.executable, HERE / f"{name}.py"], check=False).returncode:
            failed.append(name)
        print(f"[{name}] {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
