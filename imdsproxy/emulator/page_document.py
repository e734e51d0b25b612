"""`GET /-/`: the page that shows what arrived, and adds trouble and events.

It asks the JSON paths of `control` with a token that only this page has (`control_guard`). Its script writes every text
as a text node.
"""

from __future__ import annotations

from functools import cache

from imdsproxy.emulator.messages import Answer
from imdsproxy.web_page.document import Document, document

_TOKEN = "{token}"  # noqa: S105 - a place in the page


def page(token: str) -> Answer:
    """Return the page with the token that lets it use the paths of `control`."""
    text, headers = _document()
    return Answer(200, text.replace(_TOKEN, token, 1).encode(), "text/html; charset=utf-8", headers)


@cache
def _document() -> Document:
    """Return the page without its token. It may send requests to its emulator."""
    return document("imdsproxy.emulator", "emulator", "connect-src 'self'")
