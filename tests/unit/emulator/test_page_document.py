from __future__ import annotations

import re

from imdsproxy.emulator import Emulator
from imdsproxy.emulator.control import control
from imdsproxy.emulator.messages import Answer, Request


def page(emulator: Emulator) -> Answer:
    return control(emulator, Request("GET", "/-/"))


def test_page_has_the_token_of_its_emulator_once() -> None:
    one, other = Emulator(), Emulator()
    text = page(one).body.decode()
    assert text.count(one.page_token) == 1
    assert one.page_token != other.page_token
    assert page(other).body.decode() == text.replace(one.page_token, other.page_token)


def test_page_may_ask_its_emulator_and_is_not_stored() -> None:
    headers = dict(page(Emulator()).headers)
    assert "; connect-src 'self'; " in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"


def test_state_names_the_client_of_each_arrival() -> None:
    emulator = Emulator()
    for headers in (((b"user-agent", b"curl/8"),), ()):
        emulator.leave(emulator.accept(Request("GET", "/a"), b"/a", headers))
    body = control(emulator, Request("GET", "/-/state")).body.decode()
    assert re.findall(r'"client":"([^"]*)"', body) == ["curl/8", ""]
