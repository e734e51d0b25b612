"""Making one HTML document of a page's three files, with the header fields that belong to it.

A page named `NAME` has `NAME.html`, `NAME.css` and `NAME.js` in the folder `page/` of its room. Each page gets the
rules of `layout.css` after its own, and the functions of `elements.js` before its own.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import NamedTuple

_HEADERS = (
    ("cache-control", "no-store"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
)


class Document(NamedTuple):
    """A page."""

    text: str
    headers: tuple[tuple[str, str], ...]
    """The header fields of an answer that brings the page, `Content-Type` excepted."""


def document(room: str, name: str, *directives: str) -> Document:
    """Return the page of this name.

    Args:
        room: The package whose folder `page/` has the page's files.
        name: Their name, without an ending.
        directives: What the page may do besides: further directives of its Content-Security-Policy (W3C CSP Level 3).
            Without any it may send no request.
    """
    folder, shared = resources.files(room) / "page", resources.files("imdsproxy.web_page")
    frame, style, script = ((folder / f"{name}.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    style += (shared / "layout.css").read_text(encoding="utf-8")
    script = (shared / "elements.js").read_text(encoding="utf-8") + script
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            *directives,
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    )
    text = frame.replace("{style}", style, 1).replace("{script}", script, 1)
    return Document(text, (*_HEADERS, ("content-security-policy", policy)))


def _hash(text: str) -> str:
    """Return the source expression of an inline script or style (CSP Level 3, section 2.3.1)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"
