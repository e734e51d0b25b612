"""`GET /-/`: the page that shows what arrived, and adds trouble and events.

It asks the JSON paths of `control` with a token that only this page has (`control_guard`). Its script writes every text
as a text node.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources

from imdsproxy.emulator.messages import Answer

_TOKEN = "{token}"  # noqa: S105 - a place in the page
_HEADERS = (
    ("cache-control", "no-store"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
)


def page(token: str) -> Answer:
    """Return the page with the token that lets it use the paths of `control`."""
    text, policy = _text()
    body = text.replace(_TOKEN, token, 1).encode()
    return Answer(200, body, "text/html; charset=utf-8", (*_HEADERS, ("content-security-policy", policy)))


@cache
def _text() -> tuple[str, str]:
    """Return the page without its token, and its Content-Security-Policy (W3C CSP Level 3)."""
    folder = resources.files("imdsproxy.emulator") / "page"
    frame, style, script = ((folder / f"emulator.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    text = frame.replace("{style}", style, 1).replace("{script}", script, 1)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    )
    return text, policy


def _hash(text: str) -> str:
    """Return the source expression of an inline script or style (CSP Level 3, section 2.3.1)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"
