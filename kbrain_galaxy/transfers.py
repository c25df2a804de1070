"""Several files on their way at the same time; the first that fails ends the others, and its error is told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType

AT_A_TIME = 3


class _StoppedError(Exception):
    """Another file failed, or the user interrupted."""


class Transfers:
    """Runs transfers side by side, within a `with` block.

    Parameters
    ----------
    advance : callable
        Is told the bytes that have gone over.
    """

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._pool = ThreadPoolExecutor(AT_A_TIME)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._advance = advance

    def advance(self, n: int) -> None:
        """Tell progress; here a transfer under way ends when it shall not go on."""
        if self._stop.is_set():
            raise _StoppedError
        self._advance(n)

    def start(self, transfer: Callable[[], None]) -> Future[None]:
        """Begin a transfer when its turn comes."""

        def run() -> None:
            try:
                if not self._stop.is_set():
                    transfer()
            except BaseException as error:
                if self._failure is None and not isinstance(error, _StoppedError):
                    self._failure = error
                self._stop.set()
                raise

        return self._pool.submit(run)

    def __enter__(self) -> Transfers:
        return self

    def wait(self, transfer: Future[None]) -> None:
        """Wait for one transfer; raise what went wrong, here or in another one."""
        while not self._stop.is_set() and not wait([transfer], timeout=0.2).done:
            pass
        if self._failure is not None:
            raise self._failure
        transfer.result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stop.set()  # else a file under way would be sent to its end
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
