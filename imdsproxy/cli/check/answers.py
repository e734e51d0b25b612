"""What IMDS and the running proxy answered the probes, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its answer. `status` is None if no HTTP answer came."""

    asked: str
    """Who was asked, for people."""
    proxied: bool
    """Whether the running proxy was asked."""
    status: int | None = None
    fields: tuple[tuple[str, str], ...] = ()
    """Header fields, names in lower case."""
    body: str = field(default="", repr=False)
    """At most the first 4,096 characters. Never that of an access token."""
    trouble: str = ""
    """`refused`, `timeout`, `unreachable`, `denied` or `broken`, if no answer came."""
    words: str = ""
    """The system's words for the trouble."""
    seconds: float = 0.0
    wall: float = 0.0
    """Wall time at the end of the exchange, in seconds since 1970."""

    def header(self, name: str) -> str:
        """Return a header field, or the empty string if there is none."""
        return dict(self.fields).get(name, "")

    @property
    def from_proxy(self) -> bool:
        """Whether an imdsproxy answered; IMDS itself sends no Cache-Status."""
        return "imdsproxy" in self.header("cache-status")

    @property
    def own_error(self) -> bool:
        """Whether it is an error of the proxy's own: it carries no status of IMDS."""
        return self.from_proxy and self.status != 200 and "fwd-status" not in self.header("cache-status")

    @property
    def from_cache(self) -> bool:
        """Whether the answer was stored before this request."""
        return self.age is not None

    @property
    def age(self) -> int | None:
        """Seconds for which the answer had been stored; None if it had not been."""
        text = self.header("age")
        return int(text) if text.isascii() and text.isdigit() else None


@dataclass(frozen=True, slots=True)
class Token:
    """The outcome of asking for an access token; the token itself is not kept."""

    exchange: Exchange
    """The answer, without its body unless that is an error."""
    expires_in: int | None = None
    """Remaining life in seconds."""


@dataclass(frozen=True, slots=True)
class RunningProxy:
    """What the running proxy reports under `/-/`."""

    url: str
    obstacle: str = ""
    """Why it is not ready; empty if it is."""
    failure: str = ""
    """The latest failure of IMDS, if IMDS fails now."""
    throttled: int = 0
    """Answers 429 of IMDS in the last hour."""
    settings: tuple[tuple[str, str], ...] = ()
    """Its settings that differ from their defaults: variable and value."""
    upstream_requests: int = 0
    """Requests that it has sent to IMDS."""
    upstream_seconds: float = 0.0
    """The time that IMDS took for all of them."""
