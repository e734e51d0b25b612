"""No client gets an answer to another's request, or is affected by another's fields or disconnect."""

from __future__ import annotations

import json
import random
import socket
import time
from collections import Counter

import pytest

from imdsproxy.emulator import EmulatorServer, Fault
from imdsproxy.emulator.identity import SYSTEM_ASSIGNED, USER_ASSIGNED
from tests.integration.attacks.kit import HOST, Starter, converse, nothing_arrives, request
from tests.kit import Answer, ProxyProcess, get
from tests.servers import AnsweringServer, ok
from tests.targets import INSTANCE

pytestmark = [pytest.mark.any_python, pytest.mark.process]

# --- one entry for each meaning


# No two of these can be taken for the same thing by every reader, so no two share an entry.
_DIFFERENT = [
    "resource=a",
    "resource=A",
    "resource=a/",
    "resource=a//",
    "resource=a%26client_id=x",
    "resource=a%2526client_id=x",
    "resource=a;client_id=x",
    "resource=a%3Bclient_id=x",
    "resource=a+b",
    "resource=a%20b",
    "resource=a%2Bb",
    "Resource=a",
    "resource=",
    "resource",
    "resource=a&client_id=",
    "resource=a&client_id",
    *(f"resource=a&client_id={identity.client_id}" for identity in (SYSTEM_ASSIGNED, *USER_ASSIGNED)),
    *(f"resource=a&object_id={identity.object_id}" for identity in (SYSTEM_ASSIGNED, *USER_ASSIGNED)),
    *(f"resource=a&msi_res_id={identity.resource_id}" for identity in USER_ASSIGNED),
    *(f"resource=a&mi_res_id={identity.resource_id}" for identity in USER_ASSIGNED),
    f"resource=a&Client_ID={USER_ASSIGNED[0].client_id}",
    f"resource=a&client_id={USER_ASSIGNED[0].client_id.upper()}",
    "resource=a&unknown=1",
    "resource=a&unknown=2",
    "resource=a&Unknown=1",
    "resource=a&unknown=1%26x=2",
    "resource=a&unknown=1&x=2",
    "resource=a&=1",
    "resource=a&bypass_cache=false",
]


def _token_target(query: str) -> str:
    return f"/metadata/identity/oauth2/token?api-version=2018-02-01&{query}"


@pytest.mark.attack(5)
def test_two_identities_never_share_an_entry(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    answers: dict[str, list[Answer]] = {query: [] for query in _DIFFERENT}
    before = len(imds.emulator.arrivals)
    order = random.Random(1)
    for _ in range(3):
        for query in order.sample(_DIFFERENT, len(_DIFFERENT)):
            answers[query].append(get(proxy.port, _token_target(query)))
    asked = Counter(arrival.target.decode() for arrival in imds.emulator.arrivals[before:])
    assert all(asked[_token_target(query)] == 1 for query in _DIFFERENT)
    assert asked.total() == len(_DIFFERENT)
    for query, given in answers.items():
        direct = get(imds.port, _token_target(query))
        assert {answer.status for answer in given} == {direct.status}, query
        if direct.status == 200:
            document = json.loads(direct.body)
            for answer in given:
                told = json.loads(answer.body)
                names = ("access_token", "client_id", "resource")
                assert [told[name] for name in names] == [document[name] for name in names], query


@pytest.mark.attack(5)
def test_random_query_gets_the_answer_of_imds(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    """IMDS is asked directly for the same bytes: whatever the cache holds, the token has to be the same."""
    chance = random.Random(2)
    clients = [identity.client_id for identity in USER_ASSIGNED]
    names = ["resource", "client_id", "Client_Id", "object_id", "api-version", "x", "%72esource", ""]
    values = [
        *clients,
        "a",
        "b",
        "a%26client_id=" + clients[0],
        "a+b",
        "a%20b",
        "a%2Bb",
        "",
        "2018-02-01",
        "%61",
        "=",
        "a=b",
    ]
    for _ in range(150):
        count = chance.randint(1, 4)
        pairs = [f"{chance.choice(names)}={chance.choice(values)}" for _ in range(count)]
        pairs += ["api-version=2018-02-01"] * (chance.random() < 0.9) + ["resource=a"] * (chance.random() < 0.5)
        chance.shuffle(pairs)
        target = "/metadata/identity/oauth2/token?" + chance.choice(["&", "&&"]).join(pairs)
        given, direct = get(proxy.port, target), get(imds.port, target)
        if given.status == 200:
            told, document = json.loads(given.body), json.loads(direct.body)
            assert direct.status == 200, target
            assert (told["access_token"], told["client_id"]) == (document["access_token"], document["client_id"]), (
                target
            )
        else:
            assert given.status == direct.status == 400, target


@pytest.mark.attack(5)
def test_reordered_parameters_are_a_hit(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    target = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://same.net&x=1"
    assert get(proxy.port, target).status == 200
    with nothing_arrives(imds):
        for other in (
            "/metadata/identity/oauth2/token?x=1&resource=https://same.net&api-version=2018-02-01",
            "/metadata/identity/oauth2/token?x=1&resource=https%3A%2F%2Fsame.net&api-version=2018-02-01",
            "/metadata/identity/oauth2/t%6Fken?x=%31&re%73ource=https%3a%2f%2fsame.net&api-version=2018-02-01",
        ):
            assert "; hit" in get(proxy.port, other).headers["cache-status"]


# --- shared fetches


@pytest.mark.attack(6)
def test_client_cannot_spoil_an_entry_by_its_own_headers(start: Starter) -> None:
    """What is fetched for everyone is asked for in the proxy's own words.

    Servers refuse a long head (http.sys over 16 kB) with a 400, which would be remembered for everyone.
    """

    def answer(head: bytes) -> bytes:
        return ok(b'{"apiVersions":[],"compute":{}}') if len(head) < 16_000 else ok(b"{}", status=b"400 Bad Request")

    with AnsweringServer(answer) as upstream, start(upstream.url) as process:
        nasty = [
            b"imdsproxy-via: " + b"a" * 20_000 + b"\r\n",
            b"imdsproxy-via: a\r\nimdsproxy-via: " + b"b" * 20_000 + b"\r\n",
            b"Accept: " + b"a" * 20_000 + b"\r\n",
            b"Cookie: " + b"a" * 20_000 + b"\r\n",
            b"User-Agent: " + b"a" * 20_000 + b"\r\n",
        ]
        for number, field in enumerate(nasty):
            target = INSTANCE.encode() + b"&spoil=%d" % number
            converse(process.port, request(target, HOST, field))
            assert converse(process.port, request(target, HOST))[0].status == 200, field[:30]
            converse(process.port, request(target, HOST, field, b"Cache-Control: no-cache\r\n"))
            assert converse(process.port, request(target, HOST))[0].status == 200, field[:30]
        for head in upstream.heads:
            assert len(head) < 1000


def test_shared_fetch_carries_no_client_fields(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    before = len(imds.emulator.arrivals)
    fields = [
        *(b"Authorization: Bearer x\r\n", b"Cookie: x\r\n", b"Accept: text/plain\r\n", b"Accept-Encoding: gzip\r\n"),
        *(
            b"Range: bytes=0-1\r\n",
            b"If-None-Match: *\r\n",
            b"If-Modified-Since: x\r\n",
            b"X-Original-URL: /metadata/x\r\n",
        ),
        *(b"X-HTTP-Method-Override: DELETE\r\n", b"Content-Type: text/plain\r\n", b"imdsproxy-via: somebody\r\n"),
    ]
    (answer,) = converse(proxy.port, request(INSTANCE.encode() + b"&everyone=1", HOST, *fields))
    assert answer.status == 200
    (arrival,) = imds.emulator.arrivals[before:]
    allowed = {b"host", b"accept", b"accept-encoding", b"user-agent", b"metadata", b"imdsproxy-via"}
    assert {name for name, _ in arrival.headers} - {b"connection"} == allowed
    assert dict(arrival.headers)[b"accept"] == b"*/*"


@pytest.mark.attack(18)
def test_forged_hops_do_not_affect_the_upstream(imds: EmulatorServer, start: Starter) -> None:
    """Two proxies in a row, as on a node with one for each pod: one pod's client must not blind the other."""
    with start(imds.url) as node, start(node.url) as pod:
        for count in range(1, 10):
            hops = b"imdsproxy-via: " + b", ".join(b"%016x" % number for number in range(count)) + b"\r\n"
            target = INSTANCE.encode() + b"&hops=%d" % count
            (answer,) = converse(pod.port, request(target, HOST, hops))
            assert answer.status in {200, 400, 508}
            assert converse(pod.port, request(target, HOST))[0].status == 200
        assert "IMDS fails" not in pod.log
        assert "leads back" not in node.log


@pytest.mark.attack(9)
def test_disconnect_of_one_client_does_not_affect_others(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    imds.emulator.faults.add(Fault(path="/metadata/loadbalancer", latency=0.3))
    target = "/metadata/loadbalancer?api-version=2021-02-01&hang-up=1"
    before = len(imds.emulator.arrivals)
    with socket.create_connection(("127.0.0.1", proxy.port)) as first:
        first.sendall(request(target.encode(), HOST))
        time.sleep(0.1)
    assert get(proxy.port, target).status == 200
    imds.emulator.faults.clear()
    assert len(imds.emulator.arrivals) == before + 1
