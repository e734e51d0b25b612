"""Readiness: an answer of IMDS, then the warm-up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from random import SystemRandom

from imdsproxy.policy import Policy, Refuse
from imdsproxy.protocol.messages import Refusal, Request, Target
from imdsproxy.protocol.target import read_target
from imdsproxy.proxy import Proxy
from imdsproxy.records import Outcome, RequestRecord

logger = logging.getLogger(__name__)

_VERSIONS = b"/metadata/versions"
_LONGEST_PAUSE = 10.0
_RANDOM = SystemRandom()


class Readiness:
    """Whether the proxy should receive clients, and if not, why."""

    def __init__(self, proxy: Proxy, warmup: Sequence[str]) -> None:
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
        if not self._proxy.fetcher.health.answered:
            return f"IMDS has not answered yet: {self._proxy.fetcher.trouble or 'it has just been asked'}"
        return None if self._warm else f"Warming up: {self._last_word}"

    async def become(self) -> None:
        """Ask IMDS for its versions until it answers, then fetch the warm-up targets."""
        await self._ask(_target(_VERSIONS), unrestricted=True)
        await asyncio.gather(*(self._ask(target) for target in self._targets))
        self._warm = True
        logger.info("ready")

    async def _ask(self, target: Target, *, unrestricted: bool = False) -> None:
        """Ask until an answer comes that a repetition would not change."""
        request = Request("GET", target, metadata=True)
        decision = self._proxy.policy.decide(request)
        if unrestricted and isinstance(decision, Refuse):
            # ALLOW and DENY limit clients, not the proxy's own first question.
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
            # A random pause: two proxies that are each other's upstream would otherwise ask in the same moment for
            # ever, each waiting for the other's answer to the same question.
            await asyncio.sleep(pause * _RANDOM.uniform(0.5, 1))
            pause = min(_LONGEST_PAUSE, pause * 2)


def _target(raw: bytes) -> Target:
    target = read_target(raw)
    if isinstance(target, Refusal):
        raise ValueError(f"{raw.decode('ascii')}: {target.description}")  # noqa: TRY004  # the text is wrong, not its type
    return target
