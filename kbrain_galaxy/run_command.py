"""The command `kbrain-galaxy run`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from kbrain_core.errors import InputError

from .client import Galaxy
from .connection import find_connection
from .workflow_form import parse_settings

MANY = {"consume_multiple": False, "negative": ()}


def run_workflow_command(
    workflow: str,
    data: list[str] | None = None,
    /,
    *,
    output: Path,
    inputs: Annotated[list[str] | None, Parameter(name="--input", **MANY)] = None,
    settings: Annotated[list[str] | None, Parameter(name="--set", **MANY)] = None,
    section_pattern: str | None = None,
    fetch_volumes: Annotated[bool, Parameter(negative=())] = False,
    defer: Annotated[bool, Parameter(negative=())] = False,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    url: str | None = None,
    key_file: Path | None = None,
) -> None:
    r"""Upload data, run a workflow on them, wait, and fetch the results.

    The same command again goes on where it was: nothing is uploaded, computed or fetched twice. Interrupting it (Ctrl-C)
    leaves the run going.

    Parameters
    ----------
    workflow : str
        Name of a workflow of KBrain (tiles-to-volume), path of a .ga file, or name or id of a workflow on the server.
    data : list of str
        Files, folders, zip or tar archives and URLs for the workflow's input; with several inputs use --input.
    output : Path
        Folder for the results. It also remembers how far the run is.
    inputs : list of str
        Files for the input with a label, like 'Tiles=tiles/'. Repeat it for more files and inputs.
    settings : list of str
        A value, like 'Stitch tiles|max_shift_um=20': the step's label, the parameter's name and the value; or the label of a
        parameter of the workflow. Repeat it for more.
    section_pattern : str
        Regular expression whose group tells the section from a file's path, like '_s(\d+)'. Default: the folder.
    fetch_volumes : bool
        Fetch volumes too. They stay in Galaxy otherwise, because they may have terabytes.
    defer : bool
        Have Galaxy fetch URLs only when a job needs them.
    overwrite : bool
        Start anew where the results of another run are. Uploads that are the same are kept.
    url : str
        Address of the Galaxy. Default: the variable KBRAIN_GALAXY_URL, or else the embedded Galaxy.
    key_file : Path
        File that holds your API key. Default: the variable KBRAIN_GALAXY_KEY, or the embedded Galaxy's own.
    """
    connection = find_connection(url, key_file)
    run = Galaxy(connection.url, connection.key).run(
        workflow,
        combine_inputs(data or [], inputs or []),
        output=output,
        set=parse_settings(settings or []),
        section_pattern=section_pattern,
        fetch_volumes=fetch_volumes,
        defer=defer,
        overwrite=overwrite,
    )
    for label in run.labels:
        place = run.outputs.get(label)
        sys.stdout.write(f"{label}: {f'{place}  ' if place else ''}{run.link(label)}\n")
    sys.stdout.write(f"Run: {run.url}\n")


def combine_inputs(data: list[str], inputs: list[str]) -> Mapping[str, Any] | list[str]:
    """Data without a label, or files by label; both together would leave open what the former are for.

    Raises
    ------
    InputError
        When a text has no label, or both ways are used.
    """
    if not inputs:
        return data
    if data:
        raise InputError(f"'{data[0]}' has no label while --input is used: write --input 'LABEL={data[0]}'")
    found: dict[str, list[str]] = {}
    for text in inputs:
        label, equals, path = text.partition("=")
        if not equals or not label.strip() or not path:
            raise InputError(f"'{text}' is no input: write --input 'LABEL=PATH'")
        found.setdefault(label.strip(), []).append(path)
    return found
