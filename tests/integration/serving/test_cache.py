"""What is stored, under which key, and within which bound."""

from __future__ import annotations

import pytest

from tests.integration.serving.kit import ATTESTED, LEAF, PLATFORM, REPROVISION, Start
from tests.kit import Arrivals, ProxyProcess, cache_status, get, is_hit, unused, wait_until
from tests.targets import INSTANCE

pytestmark = pytest.mark.process


def test_miss_is_followed_by_hits_with_a_growing_age(proxy: ProxyProcess, arrivals: Arrivals) -> None:
    target = unused(INSTANCE)
    first = get(proxy.port, target)
    status = cache_status(first)
    assert 40 <= int(status.pop("ttl")) <= 60
    assert status == {"fwd": "uri-miss", "fwd-status": "200", "stored": ""}
    assert "age" not in first.headers

    def grown() -> bool:
        second = get(proxy.port, target)
        status = cache_status(second)
        age = int(second.headers["age"])
        assert 58 <= int(status.pop("ttl")) + age <= 60
        assert status == {"hit": ""}
        assert second.body == first.body
        assert second.headers["x-ms-request-id"] == first.headers["x-ms-request-id"]
        assert second.headers["date"] == first.headers["date"]
        return age >= 1

    wait_until(grown)
    assert arrivals.targets() == [target]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("resource=https://a.b/&n=1", "n=1&resource=https%3A%2F%2Fa.b%2F", True),
        ("resource=https://a.b&n=2", "resource=https://a.b/&n=2", False),
        ("resource=https://a.b&n=3", "resource=https://A.b&n=3", False),
        ("resource=https://a.b&n=4&client_id=", "resource=https://a.b&n=4", False),
    ],
)
def test_equivalent_spellings_share_an_entry(proxy: ProxyProcess, first: str, second: str, same: bool) -> None:
    base = "/metadata/identity/oauth2/token?api-version=2018-02-01&"
    assert not is_hit(get(proxy.port, base + first))
    assert is_hit(get(proxy.port, base + second)) == same


@pytest.mark.parametrize("target", [ATTESTED + "&nonce=1234567890", PLATFORM, REPROVISION, "/metadata/unknown"])
def test_uncacheable_target_is_fetched_each_time(proxy: ProxyProcess, arrivals: Arrivals, target: str) -> None:
    for _ in range(2):
        status = cache_status(get(proxy.port, target))
        assert status["fwd"] == "bypass"
        assert "stored" not in status
    assert arrivals.targets() == [target] * 2


def test_attested_data_is_stored_only_without_a_nonce(proxy: ProxyProcess, arrivals: Arrivals) -> None:
    target = unused(ATTESTED)
    first, second = get(proxy.port, target), get(proxy.port, target)
    assert (is_hit(first), is_hit(second)) == (False, True)
    assert second.body == first.body
    with_nonce = [get(proxy.port, f"{target}&nonce=1") for _ in range(2)]
    assert not any(map(is_hit, with_nonce))
    assert len(arrivals()) == 3


def test_cache_stays_within_its_bytes(start: Start) -> None:
    bound = 20_000
    with start(cache_max_bytes=bound) as process:
        targets = [f"{LEAF}&n={number}" for number in range(40)]
        for target in targets:
            assert get(process.port, target).status == 200
        assert 0 < process.metric("imdsproxy_cache_bytes") <= bound
        assert 5 < process.metric("imdsproxy_cache_entries") < 35
        assert is_hit(get(process.port, targets[-1]))
        assert not is_hit(get(process.port, targets[0]))


def test_answer_larger_than_the_cache_is_served_and_not_stored(start: Start) -> None:
    with start(cache_max_bytes=1500) as process:
        for _ in range(2):
            answer = get(process.port, INSTANCE)
            assert answer.status == 200
            assert "stored" not in cache_status(answer)
