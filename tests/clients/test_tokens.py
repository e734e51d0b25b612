"""azure-identity and msal, unchanged, in front of the proxy: with a cold and a warm cache, and while IMDS fails."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from imdsproxy.emulator import Arrival, Emulator, Fault, run_in_thread
from imdsproxy.testing.counting import most_in_a_second
from tests.clients.callers import CASES, MOST_LATE, PATIENCE, Case, Client, Got, environment, result, start
from tests.kit import running_proxy, wait_until
from tests.size import size

pytestmark = [pytest.mark.process, pytest.mark.large, pytest.mark.client]

TOKEN_PATH = b"/metadata/identity/oauth2/token"
SHORT = f"{TOKEN_PATH.decode()}=1"
STALE_AFTER = 2.2
"""Seconds. With SHORT as TTL: one of being fresh, and one in which a renewal stays in the background."""
TROUBLE = 3.0


@dataclass(frozen=True)
class Situation:
    """What IMDS does while the clients ask, and whether the proxy has been asked the same before."""

    name: str
    status: int | None = None
    """What IMDS answers instead: where the cache is cold for three seconds, else to the end."""
    warm: bool = False
    stale: bool = False
    down: bool = False
    asked: tuple[int, ...] = ()
    """The statuses that IMDS gives the proxy in the meantime, none where it must not be asked at all."""
    at_once: int = len(CASES)
    """How many clients ask together, of one proxy. After a 429 the proxy is slow, and msal does not ask again."""


SITUATIONS = (
    Situation("cold", asked=(200,)),
    Situation("warm", warm=True),
    Situation("410 and cold", 410, asked=(200, 410)),
    Situation("410 and stale", 410, warm=True, stale=True, asked=(410,)),
    Situation("429 and cold", 429, asked=(200, 429), at_once=4),
    Situation("429 and stale", 429, warm=True, stale=True, asked=(429,)),
    Situation("down and warm", warm=True, down=True),
    Situation("down and stale", warm=True, stale=True, down=True),
)


@dataclass
class Played:
    """One situation, over: what each client got, before (if it was warmed) and in it, and who came to IMDS."""

    situation: Situation
    before: dict[str, Got] = field(default_factory=dict)
    got: dict[str, Got] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    warming: list[list[Arrival]] = field(default_factory=list)
    arrivals: list[list[Arrival]] = field(default_factory=list)
    """One list for each IMDS, of which there are several where not all clients ask together."""

    def start(self, cases: Sequence[Case], home: Path, url: str) -> dict[str, Client]:
        """Start these clients, all at once."""
        return {case.name: start(case, environment(home, url)) for case in cases}

    def end(self, started: dict[str, Client]) -> dict[str, Got]:
        """Wait for these clients, and add those that fail to `failed`."""
        got = {}
        for name, process in started.items():
            try:
                (got[name],) = result(process)
            except AssertionError as error:
                self.failed[name] = str(error)
        return got

    def play(self, cases: Sequence[Case], home: Path) -> None:
        """Put these clients into the situation, in front of a proxy and an IMDS of their own."""
        situation, emulator = self.situation, Emulator()
        with contextlib.ExitStack() as stack:
            imds = stack.enter_context(contextlib.ExitStack())
            server = imds.enter_context(run_in_thread(emulator))
            lifetime = SHORT if situation.stale else ""
            proxy = stack.enter_context(running_proxy(home, upstream=server.url, ttl=lifetime))
            if situation.warm:
                self.before |= self.end(self.start(cases, home, proxy.url))
            if situation.stale:
                time.sleep(STALE_AFTER)
            self.warming.append(emulator.arrivals)
            if situation.status:
                emulator.faults.add(Fault(status=situation.status))
            if situation.down:
                imds.close()
            started = self.start(cases, home, proxy.url)
            if situation.status and not situation.warm:
                wait_until(lambda: len(emulator.arrivals) > len(self.warming[-1]), PATIENCE)
                time.sleep(TROUBLE)
                emulator.faults.clear()
            self.got |= self.end(started)
            self.arrivals.append(emulator.arrivals[len(self.warming[-1]) :])


IN_SHORT = ("cold", "warm", "410 and cold", "429 and stale", "down and stale")
"""One of each thing that IMDS does; the others differ in whether the cache was warm."""
PLAYED = [each for each in SITUATIONS if each.name in size(short=IN_SHORT, full=tuple(one.name for one in SITUATIONS))]


@pytest.fixture(scope="module", params=PLAYED, ids=lambda situation: situation.name)
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Play one situation with every client, each in a process of its own."""
    played = Played(request.param)
    for first in range(0, len(CASES), played.situation.at_once):
        played.play(CASES[first : first + played.situation.at_once], tmp_path_factory.mktemp("situation"))
    return played


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_client_gets_the_token_of_its_identity_with_its_remaining_life(played: Played, case: Case) -> None:
    assert case.name not in played.failed, played.failed[case.name]
    got = played.got[case.name]
    assert (got.claims["appid"], got.claims["aud"]) == (case.identity.client_id, case.resource)
    got.assert_remaining_life()
    if played.situation.warm:
        assert got.token == played.before[case.name].token


def test_imds_gets_no_unnecessary_request(played: Played) -> None:
    answered = 0
    for warming, arrivals in zip(played.warming, played.arrivals, strict=True):
        assert {arrival.status for arrival in arrivals} == set(played.situation.asked)
        assert most_in_a_second([arrival.at for arrival in [*warming, *arrivals]]) <= 5
        answered += sum(arrival.status == 200 and TOKEN_PATH in arrival.target for arrival in [*warming, *arrivals])
    if not played.situation.stale:
        assert answered == len(CASES)


def test_identities_never_share_a_token(tmp_path: Path) -> None:
    resource = "https://vault.azure.net"
    with run_in_thread(Emulator()) as server, running_proxy(tmp_path, upstream=server.url) as proxy:
        for _ in range(2):
            started = [(case, start(case, environment(tmp_path, proxy.url), [resource])) for case in CASES]
            for case, process in started:
                (got,) = result(process)
                assert got.claims["appid"] == case.identity.client_id, case.name
        asked = [arrival.target for arrival in server.emulator.arrivals if TOKEN_PATH in arrival.target]
    # The machine's own; two identities by client_id and object_id each, and by msi_res_id each.
    assert len(asked) == len(set(asked)) == 1 + 2 + 2 + 2


def test_token_from_the_cache_has_its_remaining_life(tmp_path: Path) -> None:
    """Its `expires_in` was written when it was fetched; a client that took it for new would keep it too long."""
    seconds = 3.0 * MOST_LATE
    cases = [case for case in CASES if case.name in {"azure-identity system", "msal client_id", "default system"}]
    with run_in_thread(Emulator(token_life=3600)) as server, running_proxy(tmp_path, upstream=server.url) as proxy:
        for case in cases:
            result(start(case, environment(tmp_path, proxy.url)))
        time.sleep(seconds)
        known = len(server.emulator.arrivals)
        for case in cases:
            (got,) = result(start(case, environment(tmp_path, proxy.url)))
            got.assert_remaining_life()
        assert len(server.emulator.arrivals) == known


def test_machine_without_identity_gets_imds_own_error(tmp_path: Path) -> None:
    """A client turns the 400 into a sentence of its own, and IMDS's reason is in it."""
    with run_in_thread(Emulator(identities=())) as server, running_proxy(tmp_path, upstream=server.url) as proxy:
        started = [(case, start(case, environment(tmp_path, proxy.url))) for case in CASES]
        for case, process in started:
            _, said = process.communicate(timeout=60)
            assert process.returncode != 0, case.name
            assert "Identity not found" in said, case.name
