"""Clients with a hard-coded address, unchanged, on a machine whose redirect sends them to the proxy."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from imdsproxy.testing.counting import most_in_a_second
from tests.kit import wait_until
from tests.size import size
from tests.system.hard_coded import (
    CLIENTS,
    CLOUD_INIT,
    DEFAULT,
    DETECTED,
    DETECTOR,
    EXPORTER,
    ON_A_VM,
    UNKNOWN,
    Client,
    need,
)
from tests.system.topology import Arrival, Azure, running_azure

pytestmark = pytest.mark.system

SHORT = "/metadata/instance=1,/metadata/identity/oauth2/token=1"
STALE_AFTER = 2.2
"""Seconds. With SHORT as TTL: one of being fresh, and one in which a renewal stays in the background."""
TROUBLE = 3.0
TRIES = 3
"""How often the impatient may ask: a busy machine takes a fifth of a second by itself now and then."""
LATER = 15
"""The same once the trouble is over: after several 429s a budget's token rests for some seconds."""
DETECTION = (
    "/metadata/instance/compute?api-version=2021-12-13&format=json",
    "/metadata/instance/compute?api-version=2017-12-01&format=json",
)
"""What OpenTelemetry's detector and Azure Monitor's exporter ask for."""
SILENCE = 'table ip silence { chain input { type filter hook input priority 0; iifname != "lo" tcp dport 80 drop; }; }'


@dataclass(frozen=True)
class Situation:
    """What IMDS does while the clients ask, and whether the proxy has been asked the same before."""

    name: str
    fault: dict[str, Any] = field(default_factory=dict)
    """Where the cache is cold, until `lasts` seconds after all have begun to ask; else to the end."""
    warm: bool = False
    stale: bool = False
    silent: bool = False
    too_slow: bool = False
    """Whether a fifth of a second is too short for an answer, with the proxy or without."""
    asked: tuple[int | None, ...] = ()
    """The statuses that IMDS gives the proxy in the meantime; None stands for no answer at all."""
    lasts: float = TROUBLE
    at_once: int = len(CLIENTS)
    """How many clients ask on one machine. After a 429 the proxy is slow, and msal does not ask again."""


SITUATIONS = (
    Situation("cold", asked=(200,)),
    Situation("410 and cold", {"status": 410}, too_slow=True, asked=(200, 410)),
    Situation("410 and stale", {"status": 410}, warm=True, stale=True, asked=(410,)),
    Situation("429 and cold", {"status": 429}, too_slow=True, asked=(200, 429), at_once=5),
    Situation("429 and stale", {"status": 429}, warm=True, stale=True, asked=(429,)),
    Situation("down and stale", {"reset": True}, warm=True, stale=True, asked=(None,)),
    Situation("silent and cold", silent=True, too_slow=True, asked=(200,), lasts=8.0, at_once=5),
    Situation("silent and warm", warm=True, silent=True),
    Situation("silent and stale", warm=True, stale=True, silent=True, too_slow=True),
)


@dataclass
class Played:
    """One situation, over: what each client found out, what the impatient did when they asked again, who came."""

    situation: Situation
    found: dict[str, Any] = field(default_factory=dict)
    again: dict[str, Any] = field(default_factory=dict)
    warming: list[list[Arrival]] = field(default_factory=list)
    arrivals: list[list[Arrival]] = field(default_factory=list)

    def play(self, clients: Sequence[Client], azure: Azure) -> None:
        """Put these clients into the situation, on a machine of their own."""
        situation = self.situation
        with azure.running_proxy(ttl=SHORT if situation.stale else ""):
            azure.redirect()
            patient = [client for client in clients if not client.impatient]
            impatient = [client for client in clients if client.impatient]
            if situation.warm:  # the impatient by themselves: they do not wait for their turn
                assert all(_ask(azure, client, TRIES) == client.truth for client in impatient)
                _ask_at_once(azure, patient)
            if situation.stale:
                time.sleep(STALE_AFTER)
            self.warming.append(azure.arrivals())
            if situation.fault:
                azure.faults(situation.fault)
            if situation.silent:
                azure.imds.nft(SILENCE)
            self.found |= {client.name: _ask(azure, client, 1 if situation.too_slow else TRIES) for client in impatient}
            end = threading.Timer(situation.lasts, _end_trouble, [azure, situation])
            if (situation.fault or situation.silent) and not situation.warm:
                end.start()
            self.found |= _ask_at_once(azure, patient)
            if end.ident:
                end.join()
            self.again |= {client.name: _ask(azure, client, LATER) for client in impatient}
            self.arrivals.append(azure.arrivals()[len(self.warming[-1]) :])


def _end_trouble(azure: Azure, situation: Situation) -> None:
    if situation.silent:
        azure.imds.nft("delete table ip silence")
    azure.no_faults()


def _ask(azure: Azure, client: Client, tries: int = 1) -> Any:
    """Return what a client finds out, started so often at the most, a second apart; what it says if it fails."""
    for turn in range(tries):
        time.sleep(min(turn, 1))
        try:
            found = client.found(azure.vm)
        except AssertionError as error:
            found = str(error)
        if found == client.truth:
            break
    return found


def _ask_at_once(azure: Azure, clients: Sequence[Client]) -> dict[str, Any]:
    with ThreadPoolExecutor(max(1, len(clients))) as pool:
        found = pool.map(lambda client: _ask(azure, client), clients)
        return dict(zip((client.name for client in clients), found, strict=True))


IN_SHORT = ("cold", "410 and cold", "429 and stale", "down and stale", "silent and stale")
"""One of each thing that IMDS does; the others differ in whether the cache was warm."""
PLAYED = [each for each in SITUATIONS if each.name in size(short=IN_SHORT, full=tuple(one.name for one in SITUATIONS))]


@pytest.fixture(scope="module", params=PLAYED, ids=lambda situation: situation.name)
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Play one situation with every client that can run on this machine."""
    played = Played(request.param)
    able = [client for client in CLIENTS if not client.missing]
    for first in range(0, len(able), played.situation.at_once):
        with running_azure(tmp_path_factory.mktemp("azure")) as azure:
            played.play(able[first : first + played.situation.at_once], azure)
    return played


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_client_gets_its_result(played: Played, client: Client) -> None:
    """A client with a timeout of 0.2 s gets nothing while IMDS fails and the cache is cold; a later one does."""
    need(client)
    hopeless = client.impatient and played.situation.too_slow
    assert played.found[client.name] == (client.nothing if hopeless else client.truth)
    assert played.again.get(client.name, client.truth) == client.truth


def test_imds_gets_no_unnecessary_request(played: Played) -> None:
    for warming, arrivals in zip(played.warming, played.arrivals, strict=True):
        assert {arrival.status for arrival in arrivals} == set(played.situation.asked)
        assert most_in_a_second([arrival.at for arrival in [*warming, *arrivals]]) <= 5
        answered = [arrival.target for arrival in arrivals if arrival.status == 200]
        assert len(answered) == len(set(answered))


def test_exporter_sends_one_request_per_process(azure: Azure) -> None:
    """Azure Monitor's exporter takes a timeout to mean that this is no machine of Azure's, for good."""
    with azure.running_proxy():
        azure.redirect()
        azure.faults({"status": 410})
        with ThreadPoolExecutor(1) as pool:
            answers = pool.submit(EXPORTER.ask, azure.vm, times=2, pause=4)
            # Its interpreter may take seconds to start, so the trouble lasts until a second after the first request.
            wait_until(lambda: answers.done() or any(arrival.status == 410 for arrival in azure.arrivals()))
            time.sleep(1)
            azure.no_faults()
            first, second = answers.result()
        assert (first["got"], second["got"]) == (UNKNOWN, UNKNOWN)
        assert EXPORTER.found(azure.vm) == ON_A_VM


def test_warm_up_serves_impatient_clients_from_the_start(azure: Azure) -> None:
    with azure.running_proxy(warmup=",".join(DETECTION)):
        azure.redirect()
        azure.imds.nft(SILENCE)
        assert _ask(azure, DETECTOR, TRIES) == DETECTED
        assert _ask(azure, EXPORTER, TRIES) == ON_A_VM


def test_probe_of_a_client_takes_no_permit(azure: Azure) -> None:
    """DefaultAzureCredential sends a probe without `Metadata`. Any answer means that IMDS is there."""
    with azure.running_proxy() as proxy:
        azure.redirect()
        assert DEFAULT.found(azure.vm) == DEFAULT.truth
        assert (proxy.metric("imdsproxy_requests_total"), proxy.metric("imdsproxy_upstream_requests_total")) == (2, 2)
    assert [arrival.status for arrival in azure.arrivals("/metadata/identity")] == [200]


def test_reprovisiondata_is_forwarded_to_imds_each_time(azure: Azure) -> None:
    """Once a second, on a machine that Azure made in advance; a remembered 404 would keep its owner waiting."""
    need(CLOUD_INIT)
    with azure.running_proxy():
        azure.redirect()
        assert CLOUD_INIT.ask(azure.vm, what="reprovision", retries=2)["got"] == {}
    assert [arrival.status for arrival in azure.arrivals("/metadata/reprovisiondata")] == [404, 404, 404]
