"""The few requests of a check, and who is asked: the running proxy, otherwise the upstream of the settings.

| request | requests to IMDS through a proxy | directly |
|---|---|---|
| `/metadata/versions` | one, within the proxy's budget | one |
| one without `Metadata` | none | one |
| one with `X-Forwarded-For` | none | one |
| with `--identity`, an access token | one unless it is cached | one |
| while a redirect is loaded, `/metadata/versions` of 169.254.169.254 | none, it ends in the proxy's cache | none |

Those that go to IMDS directly are a second apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import quote

from imdsproxy.cli.check.answers import Exchange, Token
from imdsproxy.cli.check.documents import member, words
from imdsproxy.cli.check.probes.asking import Asker, Pace
from imdsproxy.cli.check.ruleset import Redirect
from imdsproxy.config import Config
from imdsproxy.protocol.address import IMDS, Address

_LONGEST_PATIENCE = 10.0
"""Seconds for one answer. IMDS answers in milliseconds, and a person waits for this check."""
_VERSIONS = "/metadata/versions"
_TENANT = "/metadata/identity/info?api-version=2018-02-01"
_TOKEN = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fmanagement.azure.com%2F"  # noqa: S105  # a target
_METADATA = {"Metadata": "true"}


@dataclass(frozen=True)
class Answers:
    """What came. Each is None if it was not asked."""

    versions: Exchange
    without_metadata: Exchange | None = None
    forwarded: Exchange | None = None
    redirected: Exchange | None = None
    token: Token | None = None


def ask_questions(
    config: Config, proxy: Address | None, identity: str | None, redirect: Redirect | None, pace: Pace
) -> Answers:
    """Ask, and stop after the first question if nothing answers.

    Args:
        config: The settings.
        proxy: Where the proxy runs; None if none does.
        identity: The client id of the identity that is asked for a token; empty for the VM's own, None for no token.
        redirect: The loaded redirect, unless this process is exempt from it.
        pace: Keeps the requests apart.
    """
    patience = min(_LONGEST_PATIENCE, config.connect_timeout + config.read_timeout)
    if proxy is None:
        asker = Asker(config.upstream, f"{config.upstream}", proxied=False, patience=patience, pace=pace)
    else:
        asker = Asker(proxy, f"the proxy at {proxy}", proxied=True, patience=patience, pace=pace)
    # What is stored in a proxy, this one or one that is the upstream, may be a day old.
    renewed = {} if asker.address == IMDS else {"Cache_Control": "no-cache"}
    versions = asker.ask(_VERSIONS, **_METADATA, **renewed)
    redirected = _ask_redirected(redirect, config, patience, pace)
    if versions.status is None:
        return Answers(versions, redirected=redirected, token=None if identity is None else Token(versions))
    opens = proxy is not None and config.require_metadata_header == "never"  # the answer would be a document
    return Answers(
        versions,
        without_metadata=None if opens else asker.ask(_TENANT),
        forwarded=asker.ask(_VERSIONS, **_METADATA, X_Forwarded_For="192.0.2.1"),
        redirected=redirected,
        token=None if identity is None else _ask_token(asker, identity),
    )


def _ask_redirected(redirect: Redirect | None, config: Config, patience: float, pace: Pace) -> Exchange | None:
    """Ask IMDS's address itself, where a redirect for this upstream leads it to the proxy."""
    if redirect is None or not redirect.host or config.upstream != IMDS:
        return None
    asker = Asker(IMDS, "169.254.169.254 through the redirect", proxied=False, patience=patience, pace=pace)
    return asker.ask(_VERSIONS, **_METADATA)


def _ask_token(asker: Asker, identity: str) -> Token:
    target = f"{_TOKEN}&client_id={quote(identity, safe='', errors='surrogateescape')}" if identity else _TOKEN
    got = asker.ask(target, **_METADATA)
    if got.status != 200:
        return Token(got)
    return Token(replace(got, body=""), _life(got.body))


def _life(body: str) -> int | None:
    """Return the remaining life of the access token in a body, or None if there is none."""
    if not words(body, "access_token"):
        return None
    life = str(member(body, "expires_in"))
    return int(life) if life.isascii() and life.isdigit() else None
