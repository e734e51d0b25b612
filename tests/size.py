"""The size of a test: small in `make test`, full in `make test-long`.

A size is only a matter of cost. What a test asserts is the same at both.
"""

from __future__ import annotations

import os
from typing import TypeVar

Size = TypeVar("Size")

LONG = bool(os.environ.get("TEST_LONG"))
"""Whether this run has time for the full sizes."""


def size(*, short: Size, full: Size) -> Size:
    """Return the size for this run."""
    return full if LONG else short


def examples(full: int) -> int:
    """Return how many examples Hypothesis tries in this run: `full`, or an eighth of them."""
    return size(short=full // 8, full=full)
