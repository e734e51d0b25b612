"""Readiness: the proxy is ready once IMDS has answered and the warm-up is done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from random import SystemRandom

from imdsproxy.ops.snapshot import take_snapshot
from imdsproxy.policy.decisions import Refuse
from imdsproxy.policy.policy import Policy
from imdsproxy.protocol.messages import Refusal, Request, Target
from imdsproxy.protocol.target import read_target
from imdsproxy.proxy.proxy import Proxy
from imdsproxy.records import Outcome, RequestRecord

logger = logging.getLogger(__name__)

_VERSIONS = b"/metadata/versions"
_LONGEST_PAUSE = 10.0
_LOOK_AGAIN = 0.5
_RANDOM = SystemRandom()


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
        self._targets = [_target(text.encode("ascii")) for text in warmup]
        self._warm = False
        self._last_word = "the targets have just been requested"
        self.stopping = False

    @property
    def obstacle(self) -> str | None:
        """Why the proxy is not ready, in one sentence, or None once it is."""
        if self.stopping:
            return "The proxy is shutting down."
        state = take_snapshot(self._proxy)
        if not state.imds_answered:
            return f"IMDS has not answered yet: {state.trouble or 'the first request has just been sent'}"
        return self._further() if self._warm else f"Warming up: {self._last_word}"

    async def become(self) -> None:
        """Request IMDS's versions until it answers, then fetch the warm-up targets."""
        await self._fetch(_target(_VERSIONS), unrestricted=True)
        await asyncio.gather(*(self._fetch(target) for target in self._targets))
        self._warm = True
        while self._further() is not None:  # noqa: ASYNC110  # the clock can end it, too
            await asyncio.sleep(_LOOK_AGAIN)
        logger.info("ready")

    async def _fetch(self, target: Target, *, unrestricted: bool = False) -> None:
        """Repeat the request until an answer comes that a repetition would not change."""
        request = Request("GET", target, metadata=True)
        decision = self._proxy.policy.decide(request)
        if unrestricted and isinstance(decision, Refuse):
            # ALLOW and DENY limit clients, not the proxy's own first request.
            decision = Policy(allow=("/",)).decide(request)
        pause = 1.0
        while True:
            answer = self._proxy.perform(request, decision)
            served = answer if isinstance(answer, RequestRecord) else await answer
            word = f"status {served.response.status} for {target.path}" + (
                f" ({served.detail})" if served.detail else ""
            )
            if isinstance(decision, Refuse) or served.outcome not in {Outcome.ERROR, Outcome.REFUSED}:
                if served.response.status >= 400:
                    logger.warning("warm-up target without a document", extra={"fields": {"answer": word}})
                return
            self._last_word = word
            # The pause is random. Two proxies that are each other's upstream would otherwise always send at the same
            # moment, and each would wait for the other's answer to the same request.
            await asyncio.sleep(pause * _RANDOM.uniform(0.5, 1))
            pause = min(_LONGEST_PAUSE, pause * 2)


def _target(raw: bytes) -> Target:
    target = read_target(raw)
    if isinstance(target, Refusal):
        raise ValueError(f"{raw.decode('ascii')}: {target.description}")  # noqa: TRY004  # the text is wrong, not its type
    return target
