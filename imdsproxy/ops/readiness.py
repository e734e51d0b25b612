"""Readiness: the proxy is ready once IMDS has answered and the warm-up is done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from imdsproxy.ops.snapshot import take_snapshot
from imdsproxy.proxy.proxy import Proxy
from imdsproxy.proxy.warmup import Warmup

logger = logging.getLogger(__name__)

_LOOK_AGAIN = 0.5


class Readiness:
    """Whether the proxy should receive requests, and the reason if it should not."""

    def __init__(self, proxy: Proxy, warmup: Sequence[str], further: Callable[[], str | None] = lambda: None) -> None:
        """Begin as not ready.

        Args:
            proxy: Asks IMDS.
            warmup: The targets to fetch.
            further: Returns why the proxy is not ready for another reason, in one sentence, or None.
        """
        self._further = further
        self._proxy = proxy
        self._warmup = Warmup(proxy, warmup)
        self.stopping = False

    @property
    def obstacle(self) -> str | None:
        """Why the proxy is not ready, in one sentence, or None once it is."""
        if self.stopping:
            return "The proxy is shutting down."
        state = take_snapshot(self._proxy)
        if not state.imds_answered:
            return f"IMDS has not answered yet: {state.trouble or 'the first request has just been sent'}"
        return self._further() if self._warmup.is_done else f"Warming up: {self._warmup.latest}"

    async def become(self) -> None:
        """Warm up, then wait until nothing else is in the way."""
        await self._warmup.run()
        while self._further() is not None:  # noqa: ASYNC110  # the clock can end it, too
            await asyncio.sleep(_LOOK_AGAIN)
        logger.info("ready")
