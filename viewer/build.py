"""Build the KNeuroViz client into the package: `make viewer`.

Runs npm and Vite on this folder and puts the result into ``kbrain_core/visualization/kneuroviz/`` (not committed, part
of the wheel). Does nothing when that folder was built from these very sources. Needs only Python: where there is no
Node.js of ``NODE_NEEDED`` or newer, one is installed from its Python package into an environment of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

VIEWER = Path(__file__).resolve().parent
CHECKOUT = VIEWER.parent
TARGET = CHECKOUT / "kbrain_core" / "visualization" / "kneuroviz"
NODE_LOCK = CHECKOUT / "requirements" / "node.txt"
NODE_NEEDED = (20, 19)  # Vite 8
SOURCES = ("package.json", "package-lock.json", "*.js", "index.html", "build.py", "vendor/**/*")
# A worker that Vite copied instead of bundled is under 1 kB, and draws nothing; a bundled one is over 300 kB.
CHUNK_WORKER_MIN_BYTES = 100_000
NOTICES = re.compile(r"(licen[cs]e|copying|notice)", re.IGNORECASE)


class BuildError(Exception):
    """The client could not be built; the message is one line."""


def fingerprint() -> str:
    """SHA-256 over the names and contents of everything the build is made of."""
    digest = hashlib.sha256()
    files = {path for pattern in SOURCES for path in VIEWER.glob(pattern) if path.is_file()}
    for path in sorted(files):
        digest.update(f"{path.relative_to(VIEWER).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def is_up_to_date(target: Path, sources: str) -> bool:
    """Whether `target` holds a checked build of these sources."""
    try:
        built = json.loads((target / "build.json").read_text(encoding="utf-8"))
        check_client(target)
    except (OSError, ValueError, BuildError):
        return False
    return isinstance(built, dict) and built.get("fingerprint") == sources


def check_client(folder: Path) -> None:
    """Refuse a client whose page or chunk worker is missing or was not bundled."""
    if not (folder / "index.html").is_file():
        raise BuildError(f"{folder} has no index.html: the build is incomplete.")
    workers = list((folder / "assets").glob("chunk_worker.bundle-*.js"))
    if len(workers) != 1:
        raise BuildError(f"Expected one assets/chunk_worker.bundle-*.js in {folder}, found {len(workers)}.")
    size = workers[0].stat().st_size
    if size < CHUNK_WORKER_MIN_BYTES:
        raise BuildError(
            f"{workers[0].name} has {size} bytes, expected at least {CHUNK_WORKER_MIN_BYTES}: Vite did not bundle the "
            "worker. Check the bare-workers plugin in viewer/vite.config.js against this Neuroglancer."
        )


def run(command: list[str], environment: dict[str, str]) -> None:
    """Run a program in the viewer folder; its output is shown only when it fails."""
    result = subprocess.run(command, cwd=VIEWER, env=environment, text=True, capture_output=True, check=False)
    if result.returncode != 0:
        sys.stderr.write(result.stdout + result.stderr)
        raise BuildError(
            f"`{' '.join(map(os.path.basename, command))}` failed ({result.returncode}); its output is above."
        )


def system_node_is_new_enough() -> bool:
    """Whether `node` and `npm` on PATH can run Vite."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        return False
    answer = subprocess.run(["node", "--version"], text=True, capture_output=True, check=False).stdout
    version = re.match(r"v(\d+)\.(\d+)", answer)
    return version is not None and (int(version[1]), int(version[2])) >= NODE_NEEDED


def node_environment() -> dict[str, str]:
    """The environment in which `node` and `npm` are found, installing them first where the system has none."""
    environment = dict(os.environ)
    if system_node_is_new_enough():
        return environment
    folder = Path(os.environ.get("KBRAIN_HOME", CHECKOUT / ".envs")) / "node"
    python = folder / "bin" / "python"
    if not (folder / "bin" / "npm").exists():
        print(
            f"No Node.js {'.'.join(map(str, NODE_NEEDED))} or newer here: installing one into {folder}",
            flush=True,
        )
        venv.create(folder, with_pip=True, clear=True)
        run(
            [str(python), "-m", "pip", "install", "-q", "--require-hashes", "-r", str(NODE_LOCK)], environment
        )
    environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{environment['PATH']}"
    return environment


def install_packages(environment: dict[str, str]) -> None:
    """`npm ci`, unless node_modules was installed from this very lock."""
    lock = hashlib.sha256((VIEWER / "package-lock.json").read_bytes()).hexdigest()
    mark = VIEWER / "node_modules" / ".kneuroviz-lock"
    if mark.exists() and mark.read_text() == lock:
        return
    print("Installing the client's npm packages (about 15 s)", flush=True)
    run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], environment)
    mark.write_text(lock)


def third_party_notices() -> str:
    """The licence texts of every package that may be in the bundle."""
    lock = json.loads((VIEWER / "package-lock.json").read_text(encoding="utf-8"))
    parts = ["KNeuroViz is made of these packages. Their licences follow."]
    for where, package in sorted(lock["packages"].items()):
        folder = VIEWER / where
        if where == "" or package.get("dev") or not folder.is_dir():
            continue
        about = json.loads((folder / "package.json").read_text(encoding="utf-8"))
        texts = [
            p.read_text(encoding="utf-8", errors="replace")
            for p in sorted(folder.iterdir())
            if NOTICES.match(p.name)
        ]
        heading = f"{about['name']} {about['version']} ({about.get('license', 'see text')})"
        parts.append("\n\n".join([heading, *texts]))
    return f"\n\n{'=' * 80}\n\n".join(parts) + "\n"


def replace_folder(new: Path, target: Path) -> None:
    """Put `new` in the place of `target` by renaming."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def build(target: Path) -> bool:
    """Build the client into `target`; returns False when it was up to date already."""
    sources = fingerprint()
    if is_up_to_date(target, sources):
        return False
    environment = node_environment()
    install_packages(environment)
    print("Building KNeuroViz", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.new")
    run(["npm", "run", "build", "--", "--outDir", str(fresh), "--emptyOutDir"], environment)
    check_client(fresh)
    (fresh / "THIRD-PARTY-LICENSES.txt").write_text(third_party_notices(), encoding="utf-8")
    (fresh / "build.json").write_text(json.dumps({"fingerprint": sources}) + "\n", encoding="utf-8")
    replace_folder(fresh, target)
    return True


def main() -> int:
    """Build, say what was done, and return the exit code."""
    parser = argparse.ArgumentParser(description="Build the KNeuroViz client into the package.")
    parser.add_argument("--output", type=Path, default=TARGET, help="folder of the finished client")
    target = parser.parse_args().output.resolve()
    try:
        built = build(target)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    shown = os.path.relpath(target)
    print(f"Built KNeuroViz into {shown}" if built else f"KNeuroViz is up to date in {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
