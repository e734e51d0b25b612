"""Facts for tests of the steps: a healthy VM with a running proxy, and what is changed of it."""

from __future__ import annotations

import json
from typing import Any

from imdsproxy.cli.check.answers import Exchange, RunningProxy
from imdsproxy.cli.check.facts import Facts, Listener, Place, Process, Reach, Route, Routes
from imdsproxy.cli.check.ruleset import Redirect, Rule, Ruleset
from imdsproxy.config import Config

PROXY = Process(42, 990, "imdsproxy")
PROXY_URL = "the proxy at http://127.0.0.1:8254"
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
DATED = 784111777.0
BY_PROXY = ("cache-status", "imdsproxy; fwd=request; fwd-status=200; ttl=3600; stored")
IMDS_FIELDS = (("server", "IMDS/150.870.65.1854"), ("date", DATE))
VERSIONS = json.dumps({"apiVersions": ["2017-03-01", "2025-04-07"]})
WAY = Route(Reach.ROUTED, "eth0", "10.0.0.4", "10.0.0.1")
TO_IMDS = Routes("169.254.169.254", WAY, WAY)


def exchange(status: int | None = 200, body: str = VERSIONS, *, proxied: bool = False, **values: Any) -> Exchange:
    """Return an answer of IMDS, through the proxy or directly."""
    fields = (*IMDS_FIELDS, BY_PROXY) if proxied else IMDS_FIELDS
    asked = PROXY_URL if proxied else "http://169.254.169.254"
    return Exchange(
        asked, proxied, status, **{"fields": fields, "body": body, "seconds": 0.002, "wall": DATED, **values}
    )


def silence(trouble: str = "timeout", *, proxied: bool = False) -> Exchange:
    """Return an exchange without an answer."""
    return Exchange(PROXY_URL if proxied else "http://169.254.169.254", proxied, trouble=trouble, words="its words")


def own_error(status: int, description: str) -> Exchange:
    """Return an answer of the proxy's own."""
    body = json.dumps({"error": "some_error", "error_description": description})
    return exchange(status, body, proxied=True, fields=(("cache-status", "imdsproxy; detail=reason"),))


def facts(**changed: Any) -> Facts:
    """Return the facts of a VM where the proxy runs and the redirect is loaded, with some of them changed."""
    values: dict[str, Any] = {
        "system": "linux",
        "config": Config(),
        "user": 0,
        "listeners": (Listener("PORT", "127.0.0.1:8254", Place.OURS, processes=(PROXY,)),),
        "proxy": RunningProxy("http://127.0.0.1:8254", upstream_requests=10, upstream_seconds=0.05),
        "routes": TO_IMDS,
        "versions": exchange(proxied=True),
        "without_metadata": exchange(400, proxied=True),
        "forwarded": exchange(400, proxied=True),
        "redirected": exchange(proxied=True),
        "ruleset": Ruleset(Redirect("127.0.0.1", 8254, "990")),
        "route_localnet": False,
    }
    return Facts(**{**values, **changed})


def direct(**changed: Any) -> Facts:
    """Return the facts of a VM without proxy and redirect, with some of them changed."""
    values: dict[str, Any] = {
        "listeners": (Listener("PORT", "127.0.0.1:8254", Place.FREE),),
        "proxy": None,
        "versions": exchange(),
        "without_metadata": exchange(400),
        "forwarded": exchange(400),
        "redirected": None,
        "ruleset": Ruleset(None),
    }
    return facts(**{**values, **changed})


def rule(action: str = "drop", *hooks: str, priority: int = 0, goal: str = "") -> Rule:
    """Return a rule of another program."""
    return Rule("ip filter", "theirs", frozenset(hooks or ("output",)), priority, action, goal)
