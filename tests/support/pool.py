"""Slow calls of one function, done in several processes while their results are asked for one after the other."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Generic, TypeVar

__all__ = ["Pool"]

WORKERS = 6
PR_SET_PDEATHSIG = 1  # linux/prctl.h

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class Pool(Generic[Argument, Result]):
    """Calls `function` with each of the arguments, beginning when the first result is asked for.

    Processes, not threads: libnftables works for one thread at a time.
    """

    def __init__(self, function: Callable[[Argument], Result], arguments: Iterable[Argument]) -> None:
        self._function = function
        self._arguments = list(arguments)
        self._futures: list[Future[Result]] = []
        self._executor: ProcessPoolExecutor | None = None

    def result(self, argument: Argument) -> Result:
        """What the function returned or raised."""
        if self._executor is None:
            # Not forked: libraries of this process may have threads.
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(WORKERS, context, _die_with_parent)
            self._futures = [self._executor.submit(self._function, one) for one in self._arguments]
        return self._futures[self._arguments.index(argument)].result()

    def __enter__(self) -> Pool[Argument, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
