"""The tour of `imdsproxy demo`: requests over real sockets, and how many of them reached the emulated IMDS.

Every figure is counted: outcomes by the `Cache-Status` of the answers, requests to IMDS by the emulator's arrivals.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException
from threading import Event
from typing import Any
from urllib.parse import urlsplit

from imdsproxy.cli.tour_text import Arrival, most_in_a_second, outcome, outcomes, read_arrival, sent_to_imds, summary

SHORT_LIVED = "/metadata/loadbalancer"
SHORT_LIFE = 0.2
"""Seconds for which the demo keeps `SHORT_LIVED` fresh, so that the tour need not wait until it is stale."""

# Another version than that of the commands to try, whose first request is to be a miss.
_VERSION = "api-version=2021-03-01"
_DOCUMENT = f"/metadata/instance?{_VERSION}"
_IDENTITY = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://management.azure.com/"
_STALE = f"{SHORT_LIVED}?{_VERSION}"
_LEAVES = (
    *("azEnvironment", "location", "name", "offer", "osType", "publisher"),
    *("resourceGroupName", "sku", "subscriptionId", "version", "vmId", "vmSize"),
)
_CROWD = 40
_SLOW = 0.3
_CLIENT = {"Metadata": "true"}
_TIMEOUT = 60.0
_READY_WITHIN = 10.0
_RENEWED_WITHIN = 5.0
_POLL = 0.05


class TourEndedError(Exception):
    """The tour cannot go on; the text is the reason."""


class Tour:
    """One tour.

    Args:
        proxy: The URL of the proxy.
        emulator: The URL of the emulator.
        ending: Set when the demo ends.
        say: Called with each line as soon as it is known.
    """

    def __init__(self, proxy: str, emulator: str, ending: Event, say: Callable[[str], object]) -> None:
        self._proxy = proxy
        self._emulator = emulator
        self._ending = ending
        self._say = say
        self._requests = 0
        self._before = 0
        self._counted = 0

    def run(self) -> None:
        """Take all steps.

        Raises:
            TourEndedError: The proxy or the emulator does not answer, or the demo ends.
        """
        try:
            self._wait(self._is_ready, _READY_WITHIN, "the proxy does not become ready")
            self._before = len(self._arrivals())  # the proxy's own request at its start
            self._miss_and_hit()
            self._crowd()
            self._stale()
            self._budget()
            self._say("")
            self._say(summary(self._requests, self._arrivals()))
        except (OSError, HTTPException) as error:
            raise TourEndedError(str(error) or type(error).__name__) from error

    def _miss_and_hit(self) -> None:
        for line in (
            "1  miss    A client asks for a document that is not stored.",
            "2  hit     Another client asks for the same document.",
        ):
            self._say(line)
            started = time.monotonic()
            found = self._ask(_DOCUMENT)
            self._report(found, f" after {(time.monotonic() - started) * 1000:.1f} ms")

    def _crowd(self) -> None:
        self._say(f"3  crowd   {_CROWD} clients ask for the same access token at once. IMDS takes {_SLOW} s to answer.")
        self._control("POST", "/-/faults", {"latency": _SLOW, "times": 1, "path": "/metadata/identity"})
        self._report(self._ask(*[_IDENTITY] * _CROWD))

    def _stale(self) -> None:
        self._say(
            f"4  stale   A client asks for the load balancer, which this demo keeps fresh for only {SHORT_LIFE} s."
        )
        self._report(self._ask(_STALE))
        # For as long again it would be refreshed in the background.
        self._pause(3 * SHORT_LIFE)
        self._control("POST", "/-/faults", {"status": 410})
        self._say("           IMDS is updated and answers 410. A client asks for the load balancer again.")
        self._report(self._ask(_STALE))
        self._control("DELETE", "/-/faults")
        self._say("           IMDS is back. The proxy repeats its request, and stores the answer.")
        self._wait(self._is_renewed, _RENEWED_WITHIN, "the proxy does not repeat its request")
        self._report([])

    def _budget(self) -> None:
        self._say(f"5  budget  Clients ask for {len(_LEAVES)} different documents at once.")
        started = time.monotonic()
        found = self._ask(*(f"/metadata/instance/compute/{leaf}?{_VERSION}&format=text" for leaf in _LEAVES))
        most = most_in_a_second(self._arrivals()[self._counted :])
        self._report(found, f", the last after {time.monotonic() - started:.1f} s", f", at most {most} in any second")

    def _report(self, found: list[str], more: str = "", about_imds: str = "") -> None:
        """Print which outcomes the requests of a step had, and how many requests reached IMDS since the last call."""
        arrivals = self._arrivals()
        new, self._counted = arrivals[self._counted :], len(arrivals)
        answers = f"{outcomes(found)}{more}. " if found else ""
        self._say(f"           {answers}{sent_to_imds(new)}{about_imds}.")

    def _ask(self, *targets: str) -> list[str]:
        """Send each request over a connection of its own, then read the answers, and return their outcomes."""
        connections = [_connect(self._proxy) for _ in targets]
        try:
            for connection in connections:
                connection.connect()
            for connection, target in zip(connections, targets, strict=True):
                connection.request("GET", target, headers=_CLIENT)
            answers = [connection.getresponse() for connection in connections]
            for answer in answers:
                answer.read()
        finally:
            for connection in connections:
                connection.close()
        self._requests += len(answers)
        return [outcome(answer.status, answer.getheader("Cache-Status") or "") for answer in answers]

    def _arrivals(self) -> list[Arrival]:
        """Return what reached IMDS since the tour began."""
        return [read_arrival(each) for each in self._control("GET", f"/-/arrivals?since={self._before}")]

    def _is_ready(self) -> bool:
        return _exchange(self._proxy, "GET", "/-/ready")[0] == 200

    def _is_renewed(self) -> bool:
        return any(arrival.status == 200 for arrival in self._arrivals()[self._counted :])

    def _control(self, method: str, path: str, document: Mapping[str, object] | None = None) -> Any:
        status, body = _exchange(self._emulator, method, path, json.dumps(document) if document else None)
        if status != 200:
            raise TourEndedError(f"the emulator answers {method} {path} with {status}")
        return json.loads(body)

    def _wait(self, true: Callable[[], bool], seconds: float, otherwise: str) -> None:
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                raise TourEndedError(otherwise)
            self._pause(_POLL)

    def _pause(self, seconds: float) -> None:
        if self._ending.wait(seconds):
            raise TourEndedError("the demo ends")


def _connect(url: str) -> HTTPConnection:
    place = urlsplit(url)
    return HTTPConnection(place.hostname or "", place.port, timeout=_TIMEOUT)


def _exchange(url: str, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    connection = _connect(url)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
