"""What a person waits for before any work: `kbrain --help`, a stage's own help, and the imports of a running stage.

python benchmarks/startup.py
"""

from __future__ import annotations

import sys

from measure import KBRAIN, Table, Usage, import_cost, measure_command

REPEATS = 5


def cheapest(command: list[str]) -> Usage:
    """The run of a few that took the least CPU: what else the machine does only adds to it."""
    return min((measure_command(command) for _ in range(REPEATS)), key=lambda usage: usage.cpu_s)


def main() -> None:
    table = Table("Starting the command", ["command", "CPU s", "wall s", "peak memory MB"])
    python = cheapest([sys.executable, "-c", ""])
    overview = cheapest([KBRAIN, "--help"])
    stage = cheapest([KBRAIN, "stitch-tiles", "--help"])
    libraries = import_cost("numpy", "scipy", "tifffile", "tensorstore", "numba", "cv2", "skimage")
    for name, usage in (
        ("python -c ''", python),
        ("kbrain --help", overview),
        ("kbrain stitch-tiles --help", stage),
        ("import of the libraries stages use", libraries),
    ):
        table.add(name, usage.cpu_s, usage.wall_s, usage.rss_mb)
    table.goal("CPU s of kbrain --help beyond Python's own", overview.beyond(python).cpu_s, 0.5)
    table.save()


if __name__ == "__main__":
    main()
