"""Serve a KNeuroViz page and its volumes over HTTP, with byte ranges and CORS: what shards and other viewers need."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le

from ..errors import InputError, ResourceError
from ..stage import FolderIn

if TYPE_CHECKING:
    from starlette.applications import Starlette

MOUNTS_FILE = "kneuroviz.json"
MOUNTS_VERSION = 1
VOLUME_MARKS = ("info", "zarr.json", ".zattrs", ".zgroup", ".zarray", "attributes.json")
MOUNT_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    folder: FolderIn,
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Ge(0), Le(65535)] = 8080,
    cors_origin: str = "*",
) -> None:
    """Serve a view, or any folder of volumes, to a browser until Ctrl-C.

    A view made by `view-volume` appears with its volumes at the address printed. A folder that is no view is served as it
    is, so that another Neuroglancer can open the volumes in it. Byte ranges are answered (shards need them), chunks stored
    as `name.gz` are sent as `name` with their encoding, and nothing outside the folder and the volumes that the view names
    can be read: neither `..` nor a symbolic link leads out.

    Parameters
    ----------
    folder : Path
        Folder of a view, of a volume, or of several volumes.
    host : str
        Address to listen on. Default: this machine only; 0.0.0.0 lets everyone on the network read the data.
    port : int
        Port to listen on; 0 takes a free one and prints it.
    cors_origin : str
        Web site whose pages may read the data, like https://neuroglancer-demo.appspot.com; * is any. A page opened from this
        server itself may always.

    Raises
    ------
    InputError
        When the folder is missing, or a volume of the view no longer lies where it did.
    ResourceError
        When the port is taken or the address is not one of this machine.
    """
    import uvicorn

    if not folder.is_dir():
        raise InputError(f"'{folder}' is not a folder: give the folder that view-volume wrote")
    if not 0 <= port <= 65535:
        raise InputError(f"--port is {port}: give a number from 0 (any free port) to 65535")
    app = make_app(folder, cors_origin)
    with listen(host, port) as listener:
        shown_host = f"[{host}]" if ":" in host else host
        print(f"KNeuroViz: http://{shown_host}:{listener.getsockname()[1]}/", flush=True)
        if host not in LOOPBACK:
            print(f"Everyone who reaches {host} can read this data. Stop with Ctrl-C.", file=sys.stderr)
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            print("Stopped.", file=sys.stderr)


def make_app(folder: Path, cors_origin: str = "*") -> Starlette:
    """The web application that `serve` runs.

    Parameters
    ----------
    folder : Path
        Folder of a view (with its `kneuroviz.json`) or of volumes.
    cors_origin : str
        Web site whose pages may read the data; * is any.

    Raises
    ------
    InputError
        When `kneuroviz.json` is damaged or names a folder that is no volume.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.cors import CORSMiddleware
    from starlette.routing import Mount

    from .volume_files import VolumeFiles

    mounts = [
        Mount(f"/data/{name}", VolumeFiles(directory=path)) for name, path in read_mounts(folder).items()
    ]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=[cors_origin],
        allow_methods=["GET", "HEAD", "OPTIONS"],
        allow_headers=["*"],
        expose_headers=["Accept-Ranges", "Content-Encoding", "Content-Length", "Content-Range", "ETag"],
        allow_private_network=True,  # else a page from the Internet may not read a server on this machine
    )
    return Starlette(
        routes=[*mounts, Mount("/", VolumeFiles(directory=folder, html=True))], middleware=[cors]
    )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; a ResourceError in one line when there can be none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise ResourceError(
            f"Cannot listen on {host}:{port} ({error.strerror or error}): choose another --port (0 takes a free one) "
            "or --host"
        ) from error


def read_mounts(view: Path) -> dict[str, Path]:
    """Folders of the volumes that a view shows, by the name under which `/data/` serves them.

    Only a folder that holds a volume is accepted: a view somebody sent may not open the rest of the disk.
    """
    file = view / MOUNTS_FILE
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        volumes = {str(name): str(path) for name, path in content["volumes"].items()}
        known = content["version"] == MOUNTS_VERSION
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"'{file}' is damaged ({type(error).__name__}): make the view again") from error
    if not known or not all(MOUNT_NAME.fullmatch(name) for name in volumes):
        raise InputError(f"'{file}' is not one this version of KBrain wrote: make the view again")
    mounts = {name: (view / path).resolve() for name, path in volumes.items()}
    for name, path in mounts.items():
        if not any((path / mark).is_file() for mark in VOLUME_MARKS):
            raise InputError(
                f"The view's volume '{name}' is not at '{path}': put it back, or make the view again"
            )
    return mounts


def write_mounts(view: Path, volumes: dict[str, Path]) -> None:
    """Write down where a view's volumes lie, relative to the view, so that both can move together."""
    relative = {name: os.path.relpath(path.resolve(), view.resolve()) for name, path in volumes.items()}
    content = {"version": MOUNTS_VERSION, "volumes": relative}
    (view / MOUNTS_FILE).write_text(
        json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
