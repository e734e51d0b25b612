from __future__ import annotations

import base64
import hashlib
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


def test_policy_allows_only_its_own_script_and_style() -> None:
    answer = page(Emulator())
    headers = dict(answer.headers)
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    for element, directive in (("script", "script-src"), ("style", "style-src")):
        (text,) = re.findall(rf"<{element}>(.*?)</{element}>", answer.body.decode(), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"
    assert (policy["default-src"], policy["connect-src"], policy["frame-ancestors"]) == ("'none'", "'self'", "'none'")
    assert headers["cache-control"] == "no-store"
    assert not re.findall(r"(?:src|href)=\"(?!data:)", answer.body.decode())


def test_state_names_the_client_of_each_arrival() -> None:
    emulator = Emulator()
    for headers in (((b"user-agent", b"curl/8"),), ()):
        emulator.leave(emulator.accept(Request("GET", "/a"), b"/a", headers))
    body = control(emulator, Request("GET", "/-/state")).body.decode()
    assert re.findall(r'"client":"([^"]*)"', body) == ["curl/8", ""]
