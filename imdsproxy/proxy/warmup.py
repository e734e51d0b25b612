"""The proxy's own first requests: IMDS's versions until it answers, then the targets of IMDSPROXY_WARMUP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from random import SystemRandom

from imdsproxy.policy.decisions import Refuse
from imdsproxy.policy.policy import Policy
from imdsproxy.protocol.messages import Refusal, Request, Target
from imdsproxy.protocol.target import read_target
from imdsproxy.proxy.proxy import Proxy
from imdsproxy.records import Outcome, RequestRecord

logger = logging.getLogger(__name__)

_VERSIONS = b"/metadata/versions"
_LONGEST_PAUSE = 10.0
_RANDOM = SystemRandom()


class Warmup:
    """Fetches what the proxy needs before it is ready."""

    def __init__(self, proxy: Proxy, targets: Sequence[str]) -> None:
        """Fetch nothing yet.

        Raises:
            ValueError: A target cannot be read.
        """
        self._proxy = proxy
        self._targets = [_target(text.encode("ascii")) for text in targets]
        self.is_done = False
        """Whether IMDS and all targets have answered."""
        self.latest = "the targets have just been requested"
        """The latest answer that will be asked for again, in words."""

    async def run(self) -> None:
        """Request IMDS's versions until it answers, then fetch all targets at once."""
        await self._fetch(_target(_VERSIONS), unrestricted=True)
        await asyncio.gather(*(self._fetch(target) for target in self._targets))
        self.is_done = True

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
            record = answer if isinstance(answer, RequestRecord) else await answer
            word = f"status {record.response.status} for {target.path}" + (
                f" ({record.detail})" if record.detail else ""
            )
            if isinstance(decision, Refuse) or record.outcome not in {Outcome.ERROR, Outcome.REFUSED}:
                if record.response.status >= 400:
                    logger.warning("warm-up target without a document", extra={"fields": {"answer": word}})
                return
            self.latest = word
            # The pause is random. Two proxies that are each other's upstream would otherwise always send at the same
            # moment, and each would wait for the other's answer to the same request.
            await asyncio.sleep(pause * _RANDOM.uniform(0.5, 1))
            pause = min(_LONGEST_PAUSE, pause * 2)


def _target(raw: bytes) -> Target:
    target = read_target(raw)
    if isinstance(target, Refusal):
        raise ValueError(f"{raw.decode('ascii')}: {target.description}")  # noqa: TRY004  # the text is wrong, not its type
    return target
