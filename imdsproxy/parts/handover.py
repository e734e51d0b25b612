"""Handing entries over to the next process of this machine by a file (`HANDOVER_FILE`).

Nothing here fails a start or an end. A file that cannot be used costs one log line, and the requests that it would have
saved.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from imdsproxy import clock as clocks
from imdsproxy.cache import handover, handover_file
from imdsproxy.cache.handover import Situation, UnusableError
from imdsproxy.clock import Clock
from imdsproxy.errors import SettingsError
from imdsproxy.protocol.address import Address
from imdsproxy.proxy.handover import kept_entries, take_over
from imdsproxy.proxy.proxy import Proxy

assert sys.platform == "linux"  # noqa: S101  # the setting is refused elsewhere; this tells the type checker

logger = logging.getLogger(__name__)


class Handover:
    """The file, and the proxy whose entries go there."""

    def __init__(self, path: str, proxy: Proxy, clock: Clock, upstream: Address) -> None:
        """Check that a file can be made there. Raise SettingsError if none can."""
        why = handover_file.obstacle(Path(path))
        if why is None and not clocks.is_machine_wide():
            why = "this container has a clock of its own (time_namespaces(7))"
        if why is not None:
            raise SettingsError(f"IMDSPROXY_HANDOVER_FILE={path} cannot be used: {why}")
        self._path = Path(path)
        self._proxy = proxy
        self._clock = clock
        self._upstream = str(upstream)

    def take(self) -> None:
        """Take over the entries of the last process, and remove the file."""
        try:
            content = handover_file.take(self._path, self._proxy.store.max_bytes)
            if content is None:
                return
            kept = handover.read(content, self._situation())
        except (OSError, UnusableError) as error:
            self._complain("handover file not used", error)
            return
        count = take_over(self._proxy, kept)
        logger.info("entries taken over", extra={"fields": {"entries": count, "file": str(self._path)}})

    def leave(self) -> None:
        """Leave the entries for the next process."""
        content = handover.write(kept_entries(self._proxy), self._situation(), self._proxy.store.max_bytes)
        try:
            handover_file.leave(self._path, content)
        except (OSError, UnusableError) as error:
            self._complain("entries not handed over", error)

    def forget(self) -> None:
        """Remove a file that another process may have left meanwhile, because entries were dropped."""
        handover_file.remove(self._path)

    def _situation(self) -> Situation:
        return Situation(clocks.boot_id(), self._upstream, self._clock.monotonic(), self._clock.wall())

    def _complain(self, what: str, error: Exception) -> None:
        because = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        logger.warning(what, extra={"fields": {"file": str(self._path), "because": because}})
