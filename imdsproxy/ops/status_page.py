"""`/-/status`: one page for people, which draws the status with a script of its own.

The request of a web page is refused (Origin, or `Sec-Fetch-Site` other than `none`), even if it is the proxy's own
page. So the page makes no request. The answer that brings it does not end, and brings new figures every two seconds.
When it does end, the proxy is gone, and the page says so.

The figures are JSON in a data block, which no browser executes. The script writes every text as a text node.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from functools import cache
from typing import NamedTuple

from imdsproxy.web_page.document import document

MOST_LIVE = 16
"""Pages that get figures at the same time. Each further one gets them once."""
_EVERY = 2.0
_CHECK = 0.5


class Page(NamedTuple):
    """The page without its figures."""

    live: bytes
    once: bytes
    """The page for figures that are sent once only."""
    headers: dict[str, str]
    """Its header fields. Its Content-Security-Policy allows no request at all."""


@cache
def page() -> Page:
    """Return the page."""
    text, headers = document("imdsproxy.ops", "status")
    once = text.replace('<html lang="en">', '<html lang="en" data-once="true">', 1)
    return Page(text.encode("utf-8"), once.encode("utf-8"), dict(headers))


def figures(json: bytes) -> bytes:
    """Return the block that brings figures to the page. The element behind it says that the block is complete."""
    return b'<script type="application/json">%b</script><wbr>\n' % json


class LivePages:
    """The pages that are open."""

    def __init__(self, json: Callable[[], bytes], stopping: Callable[[], bool]) -> None:
        """Make the counter of open pages.

        Args:
            json: Returns the status as JSON.
            stopping: Returns whether the proxy is shutting down.
        """
        self._json = json
        self._stopping = stopping
        self._open = 0

    def once(self) -> bytes:
        """Return the page with its figures, which stay as they are."""
        return page().once + figures(self._json())

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """Yield the page and its figures, again and again if not too many are open."""
        if self._open >= MOST_LIVE:
            yield self.once()
            return
        yield page().live + figures(self._json())
        self._open += 1
        try:
            while await self._pause():
                yield figures(self._json())
        finally:
            self._open -= 1

    async def _pause(self) -> bool:
        """Wait until the next figures are due, and return whether there are any: not during the shutdown."""
        for _ in range(int(_EVERY / _CHECK)):
            await asyncio.sleep(_CHECK)
            if self._stopping():
                return False
        return True
