"""What the policy can decide about a request, and how long an answer may be used."""

from __future__ import annotations

from dataclasses import dataclass

from imdsproxy.protocol.messages import BudgetClass, Refusal


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long an answer may be used, in seconds. With a `fresh` of 0 it is not stored."""

    fresh: float = 0.0
    revalidate: float = 0.0
    """How long after `fresh` it is served while it is refreshed in the background (RFC 5861 section 3)."""
    stale_if_error: float = 0.0
    """How long after `fresh` it is served while IMDS fails (RFC 5861 section 4)."""
    negative: float = 0.0
    """How long a 400 or 404 is stored."""
    token: bool = False
    """Whether the answer is an access token, whose own life bounds all of the above."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer at once, without a request to IMDS."""

    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Forward:
    """Forward the request for this client alone, and store nothing."""

    endpoint: str
    budget: BudgetClass
    add_metadata: bool
    """Whether to send `Metadata: true`. Without the header, IMDS decides how to answer."""
    once: bool = False
    """Never retry, because the request changes something (RFC 9110 section 9.2.2)."""
    drops: str | None = None
    """The path whose entries are dropped when IMDS has answered."""
    slow: bool = False
    """Whether IMDS may take two minutes to answer (Microsoft's scheduled-events page)."""


@dataclass(frozen=True, slots=True)
class Cache:
    """Answer from the entry of this target, or fetch it once for all clients that wait."""

    endpoint: str
    budget: BudgetClass
    lifetimes: Lifetimes
    slow: bool = False
    handed_over: bool = False
    """Whether its entry may be kept for the next process (`HANDOVER_FILE`)."""


Decision = Refuse | Forward | Cache
