"""The whole pipeline on the sample, as a person would type it, then the address of the viewer.

python demo/cli_demo.py          run what is not done yet, leave the viewer running
python demo/cli_demo.py --stop   end the viewer
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).parent.parent
KBRAIN = Path(sys.executable).parent / "kbrain"
RESULTS = PROJECT / "build" / "demo"
PID_FILE = RESULTS / "viewer.pid"

STEPS = (
    ("Sort the raw tiles", "sort-tiles test-data/sample/tiles --output {r}/tiles.tsv --overwrite"),
    (
        "Correct the illumination",
        "correct-illumination --tiles {r}/tiles.tsv --output {r}/corrected --tiles-output {r}/corrected.tsv",
    ),
    (
        "Stitch the tiles of every section",
        "stitch-tiles --tiles {r}/corrected.tsv --output {r}/stitched.ome.zarr --positions-output {r}/positions.tsv",
    ),
    (
        "Align the sections",
        "align-sections --input {r}/stitched.ome.zarr --output {r}/aligned.ome.zarr --transforms-output {r}/transforms.tsv",
    ),
    (
        "Make it ready for the viewer",
        "precompute-volume --input {r}/aligned.ome.zarr --output {r}/aligned.precomputed --factor x=2,y=2,z=1",
    ),
    (
        "Make the view",
        "view-volume --input {r}/aligned.precomputed --output {r}/view --layout xy --position x=350,y=350,z=3",
    ),
)


def run_steps() -> None:
    """Run the stages one after the other; a stage that is complete says so and costs a second."""
    for number, (title, command) in enumerate(STEPS, start=1):
        arguments = shlex.split(command.format(r=RESULTS.relative_to(PROJECT)))
        print(f"\n[{number}/{len(STEPS)}] {title}\n    kbrain {' '.join(arguments)}", flush=True)
        started = time.monotonic()
        if subprocess.run([KBRAIN, *arguments], cwd=PROJECT, check=False).returncode:
            sys.exit(f"The demo stopped: 'kbrain {arguments[0]}' failed, see the line above")
        print(f"    {time.monotonic() - started:.1f} s", flush=True)


def stop_viewer() -> None:
    """End the viewer that an earlier demo left running; only a process that is still that viewer."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(PID_FILE.read_text())
        if "serve" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGTERM)
    PID_FILE.unlink(missing_ok=True)


def start_viewer() -> str:
    """Start `kbrain serve` in the background and wait until it says its address."""
    log = RESULTS / "viewer.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [KBRAIN, "serve", RESULTS / "view", "--port", "0"],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    PID_FILE.write_text(str(server.pid))
    for _ in range(100):
        address = re.search(r"http://\S+", log.read_text())
        if address:
            return address.group()
        if server.poll() is not None:
            break
        time.sleep(0.1)
    return sys.exit(f"The viewer did not start: {log.read_text().strip()}")


def main() -> None:
    """Run or stop the demo."""
    stop_viewer()
    if "--stop" in sys.argv:
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    run_steps()
    reports = ", ".join(sorted(path.name for path in RESULTS.glob("*-report.html")))
    print(f"\nReports in {RESULTS.relative_to(PROJECT)}: {reports}")
    print(
        f"The volume in KNeuroViz: {start_viewer()}   (runs in the background; end it with `make demo-stop`)"
    )


if __name__ == "__main__":
    main()
