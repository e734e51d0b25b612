"""Access tokens: their remaining life, and their renewal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from imdsproxy.emulator import Emulator, run_in_thread
from tests.integration.serving.kit import Start
from tests.kit import METADATA, Arrivals, ProxyProcess, cache_status, get, is_hit, running_proxy, unused, wait_until
from tests.targets import INSTANCE, TOKEN

pytestmark = pytest.mark.process


# The figures that age; all other bytes are IMDS's own.
_LIFE = re.compile(rb'"(?:ext_)?expires_in":"\d+"|"refresh_in":"\d+"')


def _expires_in(body: bytes) -> int:
    return int(json.loads(body)["expires_in"])


def test_token_expires_in_is_its_remaining_life_and_other_bytes_are_unchanged(proxy: ProxyProcess) -> None:
    target = unused(TOKEN)
    first = get(proxy.port, target)

    def aged() -> bool:
        later = get(proxy.port, target)
        assert is_hit(later)
        assert int(later.headers["content-length"]) == len(later.body)
        was, now = _expires_in(first.body), _expires_in(later.body)
        assert _LIFE.sub(b"", later.body) == _LIFE.sub(b"", first.body)
        assert now <= was - int(later.headers["age"])
        return int(later.headers["age"]) >= 1

    wait_until(aged)


def test_token_is_fresh_for_at_most_an_hour(proxy: ProxyProcess) -> None:
    assert 3_590 <= int(cache_status(get(proxy.port, unused(TOKEN)))["ttl"]) <= 3_600


def test_short_token_is_fresh_for_half_of_its_life(start: Start) -> None:
    with start(token_fresh=80_000) as process:
        assert 43_180 <= int(cache_status(get(process.port, unused(TOKEN)))["ttl"]) <= 43_200


def test_token_about_to_expire_is_passed_on_and_not_stored(tmp_path: Path) -> None:
    emulator = Emulator(rate=0, identity_rate=0, token_life=290)
    with run_in_thread(emulator) as imds, running_proxy(tmp_path, upstream=imds.url) as process:
        for _ in range(2):
            answer = get(process.port, TOKEN)
            assert (answer.status, _expires_in(answer.body) > 280) == (200, True)
            assert "stored" not in cache_status(answer)
        assert process.metric("imdsproxy_token_expiry_seconds") == 0, "no token, no figure"


def test_bypass_cache_renews_the_entry_at_a_limited_rate(proxy: ProxyProcess, arrivals: Arrivals) -> None:
    target = unused(TOKEN)
    old = json.loads(get(proxy.port, target).body)["access_token"]
    renewing = get(proxy.port, f"{target}&bypass_cache=true")
    new = json.loads(renewing.body)["access_token"]
    assert new != old
    assert cache_status(renewing)["fwd"] == "request"
    for again in (target, f"{target}&bypass_cache=true", target.replace("?", "?bypass_cache=TRUE&")):
        answer = get(proxy.port, again)
        assert (is_hit(answer), json.loads(answer.body)["access_token"]) == (True, new)
    assert arrivals.targets() == [target, f"{target}&bypass_cache=true"]


def test_no_cache_renews_the_entry_at_a_limited_rate(proxy: ProxyProcess, arrivals: Arrivals) -> None:
    target = unused(INSTANCE)
    first = get(proxy.port, target)
    wish = {**METADATA, "Cache-Control": "max-age=0, No-Cache"}
    second = get(proxy.port, target, wish)
    assert second.headers["x-ms-request-id"] != first.headers["x-ms-request-id"]
    for headers in (METADATA, wish):
        answer = get(proxy.port, target, headers)
        assert (is_hit(answer), answer.headers["x-ms-request-id"]) == (True, second.headers["x-ms-request-id"])
    assert len(arrivals()) == 2
