"""Log when the pods of the node cannot be watched, and when they can be again."""

from __future__ import annotations

import logging

from imdsproxy.clock import Clock
from imdsproxy.ops.episodes import Episode, seconds

logger = logging.getLogger("imdsproxy.troubles")


class PodTroubleLog:
    """Logs the beginning and the end of each trouble once. It implements `peers.pod_watch.Observer`."""

    def __init__(self, clock: Clock, node: str, held_for: float) -> None:
        """Begin without trouble.

        Args:
            clock: The clock.
            node: The name of the node.
            held_for: The seconds for which the pods known so far are used.
        """
        self._clock = clock
        self._node = node
        self._held_for = held_for
        self._episode = Episode()

    def trouble(self, reason: str) -> None:
        """Note a failure, and log it if it is the first."""
        if self._episode.trouble(self._clock.monotonic()):
            fields: dict[str, object] = {"node": self._node, "because": reason, "known_pods_used_for": self._held_for}
            logger.warning("pods cannot be watched; clients become unknown pods", extra={"fields": fields})

    def good(self) -> None:
        """Note that the watch goes on, and log the end of the trouble if it is due."""
        now = self._clock.monotonic()
        self._episode.good(now)
        ended = self._episode.end(now)
        if ended is not None:
            fields: dict[str, object] = {"node": self._node, "seconds": seconds(ended.seconds), "failures": ended.count}
            logger.info("pods are watched again", extra={"fields": fields})
