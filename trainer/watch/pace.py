"""Which ranks hold up the others: every rank's own time of a step, compared now and then."""

from __future__ import annotations

import socket
from statistics import median_low
from typing import Any

from trainer.run.policies import stragglers
from trainer.watch.timing import StepTimes
from trainer.world import World

#: Ranks compare their times after so many steps in which the gradient exchange was timed, too.
SAMPLES = 5


class Pace:
    """Collects this rank's own times: a step and the wait for its batch, without waits for other ranks.

    Only steps with a sample of the gradient exchange count: in the others a fast rank's wait looks like its own time.
    """

    def __init__(self, world: World, factor: float) -> None:
        self._world, self._factor = world, factor
        self._own: list[float] = []
        self._waited: list[float] = []

    def add(self, times: StepTimes) -> list[dict[str, Any]]:
        """Take note of a step; now and then return who is slow: rank, host, seconds a step, the median's, of them the
        wait for data. Collective: DDP takes its samples in the same steps on all ranks."""
        if times.exchange is None:
            return []
        self._own.append(max(0.0, times.seconds - times.collectives - times.exchange) + times.waited)
        self._waited.append(times.waited)
        if len(self._own) < SAMPLES:
            return []
        mine = (sum(self._own) / SAMPLES, sum(self._waited) / SAMPLES, socket.gethostname())
        self._own.clear()
        self._waited.clear()
        ranks = self._world.gather(mine)
        seconds = [own for own, _, _ in ranks]
        usual = median_low(seconds)
        return [
            {"rank": rank, "host": host, "seconds": own, "median": usual, "waited": waited}
            for rank, (own, waited, host) in enumerate(ranks)
            if rank in stragglers(seconds, self._factor)
        ]
