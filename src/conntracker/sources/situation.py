"""The rules in force and the host they are on, read once for a recording, by a process of its own.

libnftables begins anew with every change of the rules, and may never end: a process can be ended.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from conntracker.rules.stored import Situation, to_text
from conntracker.sources.host import read_host
from conntracker.sources.live_rules import read_ruleset
from conntracker.sources.netns import Namespace

__all__ = ["Reading", "read_situation"]

_TIMEOUT = 120  # seconds
_SCRIPT = "from conntracker.sources.situation import _print; _print()"


def read_situation() -> Situation:
    """That of the calling thread's network namespace. Raises OSError."""
    now = time.time_ns() // 1000
    return Situation(now, read_ruleset(), read_host())


def _print() -> None:
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    sys.stdout.write(to_text(read_situation()))


class Reading:
    """A thread that waits for the situation of a namespace and hands it over as text (rules.stored)."""

    def __init__(self, namespace: Namespace, take: Callable[[str], None], notice: Callable[[str], None]) -> None:
        """`take` is called in the thread; OSError that it raises is told to `notice`, as are other failures."""
        self._take, self._notice = take, notice
        self._ended = False
        with namespace:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SCRIPT], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        self._thread = threading.Thread(target=self._wait, name="rules", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Waits a little for a reading that is under way, and gives it up."""
        self._thread.join(2.0)
        self._ended = True
        with contextlib.suppress(OSError):
            self._process.kill()
        self._thread.join()

    def _wait(self) -> None:
        try:
            text, said = self._process.communicate(timeout=_TIMEOUT)
            if self._process.returncode == 0:
                self._take(text.decode("utf-8", "surrogateescape"))
                return
            why = (said.decode("utf-8", "replace").strip().splitlines() or ["it was ended"])[-1]
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            why = f"no answer in {_TIMEOUT} s"
        except OSError as error:
            why = error.strerror or str(error)
        if not self._ended:
            self._notice(f"the recording is without the rules in force: {why}")
