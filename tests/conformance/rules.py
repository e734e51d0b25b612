"""A rule of a public conformance suite, as `docs/conformance.md` lists it: what tests it here, or why nothing does."""

from __future__ import annotations

from dataclasses import dataclass

H1SPEC = "h1spec"
CISPA = "http-conformance"
GARDEN = "HTTP Garden"
CACHE = "cache-tests"


@dataclass(frozen=True)
class Rule:
    """One rule."""

    suite: str
    name: str
    """The suite's own name of it, or its number there."""
    words: str
    source: str
    """The section that the rule comes from."""
    test: str = ""
    """The file and function, from `tests/`; empty if there is none."""
    why: str = ""
    """Why there is no test, or why the proxy does something else."""
