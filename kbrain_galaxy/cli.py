"""The `kbrain-galaxy` command: KBrain on an embedded Galaxy, and on any other."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import cyclopts

from kbrain_core.command import new_app, run_command
from kbrain_core.engine import say
from kbrain_core.errors import CheckFailedError, KBrainError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `kbrain-galaxy` command and return its exit code; a failure is one line on stderr.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.
    """
    return run_command("kbrain-galaxy", _make_app, argv)


def _make_app(name: str) -> cyclopts.App:
    app = new_app(
        "kbrain-galaxy",
        "KBrain in Galaxy: a server of your own on this computer, and workflows on any Galaxy.",
    )
    for command in (start, stop, status, test, install):
        app.command(command)
    if name not in ("start", "stop", "status"):  # these need not wait for the libraries of the client
        from .run_command import run_workflow_command

        app.command(run_workflow_command, name="run")
    return app


def start(*, port: int | None = None, folder: Path | None = None) -> None:
    """Start a Galaxy of your own on this computer, or find the one that runs. The last line is its address.

    The first start makes an environment for Galaxy (a few minutes); later ones take half a minute. Only programs of yours on
    this computer can reach it. Jobs that were running when the server ended are taken up again.

    Parameters
    ----------
    port : int
        Port to serve at; 0 takes a free one. Default: 8080, or a free one when that is taken.
    folder : Path
        Where it keeps its data. Default: the variable KBRAIN_GALAXY_FOLDER, or else the checkout's `.galaxy` or your data
        folder.
    """
    from .connection import open_server
    from .server import start_server
    from .workflow_library import import_workflow, packaged_workflows

    connection = start_server(folder, port)
    server = open_server(connection)
    for path in packaged_workflows().values():
        import_workflow(server, path)
    say("Open this address in your browser; `kbrain-galaxy stop` ends the server")
    print(connection.url)


def stop(*, folder: Path | None = None) -> None:
    """End the embedded Galaxy. Jobs go on by themselves and are collected at the next start.

    Parameters
    ----------
    folder : Path
        The folder it was started with.
    """
    from .server import stop_server
    from .server_status import read_status

    jobs = 0
    with contextlib.suppress(KBrainError):  # one that does not answer is stopped all the same
        jobs = read_status(folder).jobs_running
    if not stop_server(folder):
        say("The embedded Galaxy does not run")
        return
    say("Galaxy has stopped")
    if jobs:
        say(
            f"{jobs} job{'s go' if jobs > 1 else ' goes'} on without it; the next start collects what they have made"
        )


def status(*, folder: Path | None = None) -> None:
    """Tell where the embedded Galaxy runs, what it does and how much disk it takes; exit code 2 when it does not run.

    Parameters
    ----------
    folder : Path
        The folder it was started with.
    """
    from .server_status import read_status

    for name, value in read_status(folder).lines():
        print(f"{name + ':':10} {value}")


def test(
    *,
    tool: Annotated[list[str] | None, cyclopts.Parameter(consume_multiple=False, negative=())] = None,
    url: str | None = None,
    key_file: Path | None = None,
) -> None:
    """Run the tests that the tools bring with them, on the embedded Galaxy or another one, and show a table of results.

    Parameters
    ----------
    tool : list of str
        A tool like stitch-tiles; repeat it for more. Default: all.
    url : str
        Address of the Galaxy. Default: the variable KBRAIN_GALAXY_URL, or else the embedded Galaxy.
    key_file : Path
        File that holds your API key. Default: the variable KBRAIN_GALAXY_KEY, or the embedded Galaxy's own.
    """
    from .connection import find_connection
    from .tool_tests import run_tool_tests, table_of

    results = run_tool_tests(find_connection(url, key_file), tool or [])
    print(table_of(results))
    failed = [result for result in results if result.status not in ("success", "skip")]
    for result in failed:
        say(f"{result.tool} test {result.index + 1}: {result.problem} {result.job}".strip())
    if failed:
        raise CheckFailedError(f"{len(failed)} of {len(results)} tests failed: see above")


def install(*, url: str, key_file: Path | None = None) -> None:
    """Bring KBrain to an existing Galaxy: import the workflows, check what the server has, and say what must be added.

    Tools, datatypes and the viewer can only be added by the server's administrator: the lines and folders are printed.
    Exit code 6 when something is missing.

    Parameters
    ----------
    url : str
        Address of the Galaxy.
    key_file : Path
        File that holds your API key there. Default: the variable KBRAIN_GALAXY_KEY.
    """
    from .connection import find_connection
    from .installation import install_on

    install_on(find_connection(url, key_file))


if __name__ == "__main__":
    sys.exit(main())
