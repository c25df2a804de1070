"""What can go wrong, as one line for people and an exit code for programs."""

from __future__ import annotations

from typing import Any

EXIT_OK = 0
EXIT_UNEXPECTED = 1
EXIT_BAD_INPUT = 2
EXIT_OUTPUT_EXISTS = 3
EXIT_RESOURCES = 4
EXIT_INCOMPLETE = 5
EXIT_CHECK_FAILED = 6
EXIT_INTERRUPTED = 130


class KBrainError(Exception):
    """A failure told in one line: what was seen, what was expected, how to mend it."""

    exit_code = EXIT_UNEXPECTED

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class InputError(KBrainError):
    """An input or an option is not what the stage needs."""

    exit_code = EXIT_BAD_INPUT


class OutputExistsError(KBrainError):
    """Something else lies where the output should go."""

    exit_code = EXIT_OUTPUT_EXISTS


class ResourceError(KBrainError):
    """The disk or the memory that is left does not suffice."""

    exit_code = EXIT_RESOURCES


class IncompleteError(KBrainError):
    """A volume was left unfinished by the job that writes it."""

    exit_code = EXIT_INCOMPLETE


class CheckFailedError(KBrainError):
    """The work was done and a check of its result failed."""

    exit_code = EXIT_CHECK_FAILED


class StageStopped(Exception):
    """Not an error: nothing is left to do here (a dry run, or another part's share); exit code 0."""


class AlreadyComplete(Exception):
    """Not an error: the same job has finished before; `figures` is what it found."""

    def __init__(self, output: str, figures: dict[str, Any]) -> None:
        super().__init__(f"{output} is already complete: the same job finished before, nothing was done")
        self.figures = figures
