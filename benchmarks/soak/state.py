"""What the clients of one run share: where the proxy is, the pace, the fault in force, the outcomes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.soak.outcomes import CLOSED, TIMEOUT, Ledger
from benchmarks.soak.pace import Pace

Work = Coroutine[Any, Any, None]

PATIENCE = 60.0
"""Seconds within which every request has an end: the proxy's longest wait, its retries and one slow attempt."""
RECOVERY = 15.0
"""Seconds after a fault in which the proxy may not know yet that IMDS is back: its longest pause, and a request."""


class Request:
    """One request of a client, until its outcome is known."""

    def __init__(self) -> None:
        self.outcome = CLOSED
        self.detail = ""

    def end(self, outcome: str | int, detail: str = "") -> None:
        """Set the outcome."""
        self.outcome, self.detail = str(outcome), detail


class Run:
    """One run, for its clients."""

    def __init__(self, port: int, socket: Path, seed: int) -> None:
        self.port = port
        self.socket = socket
        self.chance = Random(seed)  # repeatable on purpose
        self.pace = Pace()
        self.ledger = Ledger()
        self.waiting: dict[Request, str] = {}
        """The requests whose outcome is not known yet, with their clients."""
        self._trouble_until = 0.0

    def fault_lasts(self, seconds: float) -> None:
        """Note a fault of IMDS, from now on."""
        self._trouble_until = max(self._trouble_until, time.monotonic() + seconds + RECOVERY)

    @contextlib.asynccontextmanager
    async def request(self, client: str) -> AsyncIterator[Request]:
        """Count one request, which has to end within `PATIENCE`.

        An error of the connection is its outcome too.
        """
        began = time.monotonic()
        one = Request()
        self.ledger.start(client)
        self.waiting[one] = client
        try:
            async with asyncio.timeout(PATIENCE):
                yield one
        except TimeoutError:
            one.end(TIMEOUT)
        except (OSError, EOFError) as error:
            one.end(CLOSED, type(error).__name__)
        finally:
            del self.waiting[one]
        self.ledger.end(client, one.outcome, trouble=began < self._trouble_until, detail=one.detail)
