"""Does the cluster's head still answer?

Without it Ray's calls wait for ever, and after a minute Ray ends each of the cluster's processes, a driver on another
node included, with a message of its own. A run that is to end with one that helps must end before.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from sharding.errors import UserError

#: Seconds between looks.
LOOK_SECONDS = 1.0
#: How long a connection may take.
CONNECT_SECONDS = 1.0
#: An absence of so many seconds is worth a line.
SAY_SECONDS = 5.0
#: And one of so many ends the run: half of what Ray itself waits, so that there is time for an orderly end.
GIVE_UP_SECONDS = 30.0


class HeadLost(UserError):
    """The head has not answered for :data:`GIVE_UP_SECONDS`."""


class Head:
    """The head at ``address`` (HOST:PORT); ``log`` is told when it stops answering and when it answers again."""

    def __init__(self, address: str, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._address, self._log, self._clock = address, log, clock
        self._looked = clock()
        self._away_since: float | None = None
        self._said = False

    def answers(self) -> bool:
        """Return whether it answered when looked at last; raises :class:`HeadLost` once it is lost for good."""
        now = self._clock()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            if self._connects():
                self._back()
            elif self._away_since is None:
                self._away_since = now
        if self._away_since is not None:
            self._away(now - self._away_since)
        return self._away_since is None

    def _back(self) -> None:
        if self._said:
            self._log(f"the cluster's head at {self._address} answers again")
        self._away_since, self._said = None, False

    def _away(self, seconds: float) -> None:
        if seconds > GIVE_UP_SECONDS:
            raise HeadLost(
                f"the cluster's head at {self._address} has not answered for {seconds:.0f} s",
                "once it runs again, or on another cluster, `boostlu resume` goes on from the newest checkpoint",
            )
        if seconds > SAY_SECONDS and not self._said:
            self._log(f"the cluster's head at {self._address} does not answer")
            self._said = True

    def _connects(self) -> bool:
        host, _, port = self._address.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS):
                return True
        except OSError:
            return False
