"""Bring KBrain to an existing Galaxy, and say what only its administrator can add."""

from __future__ import annotations

from collections.abc import Iterable

from kbrain_core.engine import say
from kbrain_core.errors import CheckFailedError

from .client import VIEWER
from .connection import open_server, plain_errors
from .places import packaged, tool_folder, viewer_folder
from .server import Connection
from .server_check import ServerCheck, check_server
from .workflow_library import import_workflow, packaged_workflows


def install_on(connection: Connection) -> None:
    """Import the workflows, print what was found and what must be added.

    Parameters
    ----------
    connection : Connection
        Address and key.

    Raises
    ------
    InputError
        When the address is no Galaxy, the Galaxy is too old, or the key is wrong.
    CheckFailedError
        When the server lacks what the workflows need.
    """
    check = check_server(connection)
    server = open_server(connection)
    with plain_errors(connection.url):
        names = [name for name, path in packaged_workflows().items() if import_workflow(server, path)]
    print(f"Galaxy {check.version} at {connection.url}")
    print(f"Workflows: {', '.join(names)} are there")
    for line in _findings(check):
        print(line)
    steps = list(_steps(check))
    if steps:
        print(
            "\nWhat the server's administrator must add (all paths as they are on this computer; copy the folders there):"
        )
    for number, step in enumerate(steps, start=1):
        print(f"\n{number}. {step}")
    if not check.complete:
        raise CheckFailedError(
            f"{connection.url} cannot run the workflows yet: give the lines above to its administrator"
        )
    say("Everything that the workflows need is there")


def _findings(check: ServerCheck) -> Iterable[str]:
    if check.missing_tools:
        yield f"Tools: {len(check.missing_tools)} are missing ({_names(tool.id for tool in check.missing_tools)})"
    for tool, versions in check.other_versions:
        yield f"Tools: {tool.id} is there as {versions}, the workflows need {tool.version}"
    if not check.missing_tools and not check.other_versions:
        yield "Tools: all are there"
    if check.missing_datatypes:
        yield f"Datatypes: {_names(check.missing_datatypes)} are missing"
    else:
        yield "Datatypes: all are there"
    yield f"Viewer: {VIEWER} is {'there' if check.has_viewer else 'missing (volumes cannot be looked at in Galaxy)'}"
    if not check.is_admin:
        yield "Reports: whether their pages are shown cannot be told without an administrator's key"
    elif check.stripped_reports:
        yield f"Reports: Galaxy strips the pages of {len(check.stripped_reports)} tools"


def _steps(check: ServerCheck) -> Iterable[str]:
    """What to add, each with the file it goes to and the lines themselves."""
    tools = packaged("tools")
    if check.missing_tools or check.other_versions:
        yield (
            f"Tools. Copy '{tools}' to the server and name its list in galaxy.yml (add it to what is there):\n"
            f"     tool_config_file: <what is there>,{tools / 'tool_conf.xml'}\n"
            "   or install the suite 'suite_kbrain' from a Tool Shed, if there is one.\n"
            "   Jobs must find the command `kbrain`. Without containers or conda, in job_conf.yml, where the tools run:\n"
            "     env:\n"
            "       - name: PATH\n"
            f"         value: {tool_folder()}:$PATH\n"
            "       - name: GALAXY_MEMORY_MB   # what a job may use, unless the scheduler says so\n"
            '         value: "16000"'
        )
        yield (
            "Cores and memory. The tools say what they need at least; with Total Perspective Vortex, give more to the two\n"
            "   that work on whole volumes:\n"
            "     tools:\n"
            "       kbrain_(stitch_tiles|precompute_volume):\n"
            "         cores: 8\n"
            "         mem: cores * 4"
        )
    if check.missing_datatypes:
        yield (
            "Datatypes. In galaxy.yml, ours before Galaxy's own, since theirs recognise any zip:\n"
            f"     datatypes_config_file: {tools / 'datatypes_conf.xml'},config/datatypes_conf.xml.sample\n"
            "   The python code, in the environment of Galaxy's processes (web, job handlers, Celery):\n"
            f"     PYTHONPATH={tools / 'datatypes'}\n"
            f"   The converter, beside Galaxy's own (lib/galaxy/datatypes/converters): '{tools / 'datatypes'}/*.xml'"
        )
    if not check.has_viewer:
        yield (
            "Viewer. Copy the plugin and the page it shows into Galaxy's static folder:\n"
            f"     cp -r '{tools / 'visualizations' / VIEWER}' <galaxy>/static/plugins/visualizations/\n"
            f"     cp -r '{viewer_folder()}' <galaxy>/static/plugins/visualizations/{VIEWER}/static/client"
        )
    if check.stripped_reports:
        ids = "\n".join(f"     {name}" for name in check.stripped_reports)
        yield (
            "Reports. In the file that sanitize_allowlist_file names, or under Admin > Manage Allowlist (without it the\n"
            f"   report as Markdown and its pictures are shown all the same):\n{ids}"
        )
    if check.missing_tools:
        yield (
            "Data behind addresses of your institute. In galaxy.yml (public addresses need nothing):\n"
            "     fetch_url_allowlist: 10.0.0.0/8"
        )


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)
