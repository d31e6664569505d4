"""Writing in a thread of its own: the kernel copies one part of a log while the next one is made."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from types import TracebackType
from typing import BinaryIO

_WAITING = 4  # parts that may wait; more would only take memory


class WriteBehind:
    """Parts are written in their order. The end of the block waits for them; an error of the stream comes from there,
    or from the next `write`."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._parts: SimpleQueue[bytes | bytearray | None] = SimpleQueue()
        self._room = threading.Semaphore(_WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def write(self, part: bytes | bytearray) -> None:
        """Writes soon. The part must not be changed any more."""
        self._room.acquire()
        if self._error is not None:
            raise self._error
        self._parts.put(part)

    def _run(self) -> None:
        while (part := self._parts.get()) is not None:
            if self._error is None:
                try:
                    self._out.write(part)
                except BaseException as error:
                    self._error = error
            self._room.release()

    def __enter__(self) -> WriteBehind:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parts.put(None)
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error
