"""Where things lie: what the package brings, the environments it makes, and the folder of the embedded Galaxy."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HOME_VARIABLE = "KBRAIN_HOME"
INSTANCE_VARIABLE = "KBRAIN_GALAXY_FOLDER"
PACKAGE = Path(__file__).parent


def packaged(name: str) -> Path:
    """A folder that comes with the package: tools, workflows or requirements (beside the package in a checkout)."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name


def checkout() -> Path | None:
    """The checkout whose `.venv` runs this; None for a package installed elsewhere."""
    folder = Path(sys.prefix).parent
    return folder if (folder / "kbrain_galaxy").is_dir() and (folder / "pyproject.toml").is_file() else None


def environments_folder() -> Path:
    """Where the environments of other programs are made: `KBRAIN_HOME`, the checkout's `.envs`, or the user's cache."""
    if os.environ.get(HOME_VARIABLE):
        return Path(os.environ[HOME_VARIABLE]).expanduser().absolute()
    root = checkout()
    if root is not None:
        return root / ".envs"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kbrain"


def instance_folder() -> Path:
    """Where the embedded Galaxy keeps its data: `KBRAIN_GALAXY_FOLDER`, the checkout's `.galaxy`, or the user's data."""
    if os.environ.get(INSTANCE_VARIABLE):
        return Path(os.environ[INSTANCE_VARIABLE]).expanduser().absolute()
    root = checkout()
    if root is not None:
        return root / ".galaxy"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "kbrain" / "galaxy"


def tool_path() -> str:
    """The PATH on which Galaxy's jobs find `kbrain`: the environment this runs in first."""
    return os.pathsep.join([str(tool_folder()), os.environ.get("PATH", os.defpath)])


def tool_folder() -> Path:
    """Where the command `kbrain` lies."""
    return Path(sys.executable).absolute().parent


def viewer_folder() -> Path:
    """The page that shows volumes, as it was built into the package."""
    import kbrain_core

    return Path(kbrain_core.__file__).parent / "visualization" / "kneuroviz"
