"""What our commands have in common: a failure is one line on stderr and an exit code with a name."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType

import cyclopts

from . import __version__
from .errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_OK, EXIT_UNEXPECTED, KBrainError, StageStopped

DEBUG_VARIABLE = "KBRAIN_DEBUG"


def new_app(program: str, text: str) -> cyclopts.App:
    """An empty command-line application whose errors are left to `run_command`."""
    return cyclopts.App(
        name=program,
        help=text,
        version=__version__,
        help_format="markdown",
        exit_on_error=False,
        print_error=False,
        result_action="return_none",
        suppress_keyboard_interrupt=False,
    )


def run_command(program: str, make_app: Callable[[str], cyclopts.App], argv: Sequence[str] | None) -> int:
    """Run a command and return its exit code.

    Parameters
    ----------
    program : str
        Name of the program.
    make_app : callable
        Makes the application, given the name of the command that is asked for (empty for the overview).
    argv : sequence of str or None
        The arguments; None for those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    prefix = f"{program} {name}".strip()
    with contextlib.suppress(ValueError):  # outside the main thread whoever runs it there handles signals
        signal.signal(signal.SIGTERM, _stop)
    try:
        make_app(name)(arguments)
    except cyclopts.CycloptsError as error:
        return _fail(f"{prefix}: {_one_line(error)} (see `{prefix} --help`)", EXIT_BAD_INPUT)
    except StageStopped as stopped:
        print(f"{prefix}: {stopped}", file=sys.stderr)
        return EXIT_OK
    except KBrainError as error:
        return _fail(f"{prefix}: {error}", error.exit_code)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and isinstance(stop.code, int):
            return stop.code
        return _fail(
            f"{prefix}: interrupted; run the same command again to go on where it stopped", EXIT_INTERRUPTED
        )
    except Exception as error:
        message = f"{prefix}: unexpected {type(error).__name__}: {_one_line(error)}"
        return _fail(f"{message} (set {DEBUG_VARIABLE}=1 to see where)", EXIT_UNEXPECTED)
    return EXIT_OK


def _stop(signal_number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(message: str, exit_code: int) -> int:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exc()
    print(message, file=sys.stderr)
    return exit_code


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
