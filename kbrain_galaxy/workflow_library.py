"""The workflows that can be run: those that come with KBrain, a `.ga` file, and those on the server."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

from kbrain_core.engine import say
from kbrain_core.errors import InputError

from .connection import Server
from .labels import hint, plain
from .places import packaged
from .workflow_form import WorkflowForm, read_form


def packaged_workflows() -> dict[str, Path]:
    """The workflows that come with KBrain: folder name and `.ga` file."""
    return {path.parent.name: path for path in sorted(packaged("workflows").glob("*/*.ga"))}


def find_workflow(server: Server, name: str) -> str:
    """The id on the server of a workflow, imported when it comes with KBrain and is absent or older there.

    Parameters
    ----------
    server : Server
        The Galaxy.
    name : str
        Name of a workflow of KBrain (`tiles-to-volume`, or its title), path of a `.ga` file, or name or id of a
        workflow on the server.

    Raises
    ------
    InputError
        When there is none, or several on the server have the name.
    """
    own = packaged_workflows()
    titles = {folder: str(_read(path)["name"]) for folder, path in own.items()}
    for folder, path in own.items():
        if plain(name) in (plain(folder), plain(titles[folder])):
            return import_workflow(server, path)
    if name.endswith(".ga"):
        if not Path(name).is_file():
            raise InputError(f"There is no '{name}': check the path")
        return import_workflow(server, Path(name))
    known = [entry for entry in server.workflows.get_workflows() if not entry.get("deleted")]
    same = [entry for entry in known if entry["id"] == name] or [
        w for w in known if plain(w["name"]) == plain(name)
    ]
    if len(same) == 1:
        return str(same[0]["id"])
    if same:
        ids = ", ".join(entry["id"] for entry in same)
        raise InputError(
            f"{len(same)} workflows on {server.base_url} are called '{name}': give the id of one ({ids[:200]})"
        )
    names = [*own, *(entry["name"] for entry in known)]
    raise InputError(f"There is no workflow '{name}'. {hint(name, names, 'workflow')}")


def import_workflow(server: Server, path: Path) -> str:
    """Bring a `.ga` file to the server unless this very version is there.

    Parameters
    ----------
    server : Server
        The Galaxy.
    path : Path
        The file.

    Returns
    -------
    str
        Id on the server.
    """
    content = _read(path)
    # An id made from the content: whether the server has this very version is one comparison. Galaxy takes version 4 only.
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    identity = str(uuid.UUID(bytes=digest[:16], version=4))
    for entry in server.workflows.get_workflows():
        if entry.get("latest_workflow_uuid") == identity and not entry.get("deleted"):
            return str(entry["id"])
    imported = server.workflows.import_workflow_dict({**content, "uuid": identity})
    say(f"Imported workflow '{content['name']}'")
    return str(imported["id"])


def load_form(server: Server, workflow: str, history: str) -> WorkflowForm:
    """What a workflow asks for, with the options of the tools that the server has.

    Parameters
    ----------
    server : Server
        The Galaxy.
    workflow : str
        Id on the server.
    history : str
        The history it shall run in.

    Raises
    ------
    InputError
        When the server lacks a tool or has another version of it.
    """
    from bioblend import ConnectionError as GalaxyAnswerError

    from .connection import answer_text

    try:
        description = server.read(f"workflows/{workflow}/download", style="run", history_id=history)
    except GalaxyAnswerError as error:
        said = answer_text(error.body)
        if "missing" in said.lower() and "tool" in said.lower():
            raise _lacking(server, said) from None
        raise
    if description["step_version_changes"]:
        raise _lacking(server, "; ".join(map(str, description["step_version_changes"])))
    return read_form(description)


def _lacking(server: Server, what: str) -> InputError:
    return InputError(
        f"{server.base_url} lacks tools of this workflow ({' '.join(what.split())[:300]}): `kbrain-galaxy install` says "
        "what its administrator must add"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "steps" in content and "name" in content:
            return content
    except (OSError, ValueError):
        pass
    raise InputError(f"'{path}' is no Galaxy workflow: give a .ga file as Galaxy downloads it")
