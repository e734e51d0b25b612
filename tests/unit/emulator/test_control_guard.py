"""A program may use `/-/`, the emulator's own page may, and no other page in a browser."""

from __future__ import annotations

import pytest

from imdsproxy.emulator import Emulator
from imdsproxy.emulator.control import control
from imdsproxy.emulator.control_guard import PAGE_HEADER, is_own_host, refusal
from imdsproxy.emulator.messages import Request

OWN = "127.0.0.1:8255"
TOKEN = "the page's own"
HERE = {"host": OWN, "origin": f"http://{OWN}", "sec-fetch-site": "same-origin", PAGE_HEADER: TOKEN}


def refused(method: str = "POST", path: str = "/-/reset", **headers: str) -> bool:
    pairs = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    answer = refusal(Request(method, path, (), pairs), TOKEN)
    assert answer is None or (answer.status, answer.body[:10]) == (403, b'{"error":"')
    return answer is not None


@pytest.mark.parametrize(
    ("host", "own"),
    [
        *(
            (host, True)
            for host in ("127.0.0.1", OWN, "10.0.0.4:80", "[::1]:8255", "[::1]", "localhost", "LOCALHOST:1")
        ),
        *((host, True) for host in ("imds", "imds:80", "app.localhost:8255")),
        *((host, False) for host in ("evil.example", "evil.example:8255", "127.0.0.1.evil.example", "", ":8255", "[")),
        *((host, False) for host in ("localhost.evil.example", "1.2.3", "127.0.0.1.", "localhost.", "notlocalhost.x")),
    ],
)
def test_host_with_a_dot_is_a_strangers_name(host: str, own: bool) -> None:
    assert is_own_host(host) is own
    assert refused(host=host) is not own


def test_two_hosts_are_refused() -> None:
    assert refusal(Request("GET", "/-/healthy", (), (("host", OWN), ("host", OWN))), TOKEN)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, False),
        ({"host": OWN}, False),
        ({"host": OWN, "sec-fetch-site": "none"}, False),
        ({"host": OWN, "sec-fetch-site": "cross-site"}, True),
        ({"host": OWN, "sec-fetch-site": "same-site"}, True),
        ({"host": OWN, "sec-fetch-site": "same-origin"}, True),
        ({"host": OWN, "origin": "null"}, True),
        ({"host": OWN, "origin": f"http://{OWN}"}, True),
        (HERE, False),
        ({**HERE, PAGE_HEADER: ""}, True),
        ({**HERE, PAGE_HEADER: "tök"}, True),
        ({**HERE, "origin": "http://127.0.0.1:9000"}, True),
        ({**HERE, "origin": f"https://{OWN}"}, True),
        ({**HERE, "sec-fetch-site": "same-site"}, True),
        ({**HERE, "host": "evil.example:8255", "origin": "http://evil.example:8255"}, True),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
def test_page_of_another_site_is_refused(method: str, headers: dict[str, str], expected: bool) -> None:
    assert refused(method, **headers) is expected


@pytest.mark.parametrize(
    ("method", "path", "mode", "expected"),
    [
        ("GET", "/-/", "navigate", False),
        ("GET", "/-/", "no-cors", True),
        ("POST", "/-/", "navigate", True),
        ("GET", "/-/state", "navigate", True),
    ],
)
def test_link_may_lead_to_the_page_alone(method: str, path: str, mode: str, expected: bool) -> None:
    assert refused(method, path, host=OWN, sec_fetch_site="cross-site", sec_fetch_mode=mode) is expected


@pytest.mark.parametrize("path", ["/-/healthy", "/-/reset", "/-/events/x", "/-/nothing"])
def test_every_control_path_is_guarded(path: str) -> None:
    assert control(Emulator(), Request("POST", path, (), (("origin", "http://evil.example"),))).status == 403


def test_token_of_the_page_differs_by_emulator() -> None:
    assert len({Emulator().page_token for _ in range(3)}) == 3
