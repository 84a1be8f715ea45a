"""What is waited for, said while it lasts: no run is silent for long.

with Waiting(say) as waiting:
    waiting.on("compiling the dense side", of="resnet.py:build unified k=0.1")
    ...                    "resnet.py:build unified k=0.1: compiling the dense side: 10 s", again after 20, 40, ...
waiting.spent              {"compiling the dense side": 48.2}
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self

from meprop_bench.durations import duration

__all__ = ["Waiting"]

_SILENT_S = 10.0
_FACTOR = 2.0


class Waiting:
    """Says what lasts, for as long as the block does.

    Args:
        say: called with a line, in a thread of its own.
        silent_s: seconds after which a line is said; the next one follows after twice as many, and so on.
        now: the clock, in seconds.

    """

    def __init__(
        self, say: Callable[[str], object], silent_s: float | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._now = say, now
        self._silent_s = _SILENT_S if silent_s is None else silent_s
        self.spent: dict[str, float] = {}
        """What was waited for -> seconds, so far."""
        self._what, self._line, self._since, self._after_s = "", "", now(), self._silent_s
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def on(self, what: str, of: str = "", silent_s: float | None = None) -> None:
        """Wait for this from now on; "" for nothing. The same once more goes on. `silent_s` may be another one."""
        line = f"{of}: {what}" if of else what
        with self._changed:
            if line != self._line:
                self._end()
                self._what, self._line, self._after_s = what, line, silent_s or self._silent_s
                self._changed.notify()

    def _end(self) -> None:
        now = self._now()
        if self._what:
            self.spent[self._what] = self.spent.get(self._what, 0.0) + now - self._since
        self._since = now

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._end()
            self._what, self._line, self._closed = "", "", True
            self._changed.notify()
        self._thread.join()

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                line, since, after_s = self._line, self._since, self._after_s
                while not self._closed and (self._line, self._since) == (line, since):
                    left_s = since + after_s - self._now()
                    if not line or left_s > 0:
                        self._changed.wait(left_s if line else None)
                        continue
                    self._tell(f"{line}: {duration(self._now() - since)}")
                    after_s *= _FACTOR

    def _tell(self, line: str) -> None:
        """Say a line, for which nothing else has to wait."""
        self._changed.release()
        try:
            self._say(line)
        except Exception:  # noqa: BLE001 (a caller's own function, whose error the main thread meets in its next line)
            self._say = lambda _: None
        finally:
            self._changed.acquire()
