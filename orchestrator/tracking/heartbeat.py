"""A thread that does something regularly, such as renewing a lease while its driver trains, waits or draws."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Heartbeat:
    """Calls `beat` every `every_s` seconds until `close`; the interpreter does not wait for it."""

    def __init__(self, beat: Callable[[], None], every_s: float) -> None:
        self._beat, self._every_s = beat, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="phasefront-heartbeat", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self._beat()
            except Exception:
                # Of any database driver or server. The next transaction meets the same outage, and reports it.
                continue

    def close(self) -> None:
        """End the thread. A beat that waits for the record is not waited for longer than a second."""
        self._stop.set()
        self._thread.join(timeout=1.0)
