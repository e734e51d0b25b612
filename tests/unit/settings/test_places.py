"""Hosts, sockets and files in the settings: the upstream, the listeners, the budget file."""

from __future__ import annotations

import pytest

from imdsproxy.protocol.address import IMDS, Address
from imdsproxy.settings import places as settings_places
from imdsproxy.settings.load import load
from tests.unit.settings.kit import UPSTREAM, one, refusal


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://169.254.169.254", IMDS),
        ("HTTP://Example.COM:8080/", Address("example.com", 8080)),
        ("http://[::1]:81", Address("::1", 81)),
        ("unix:/run/imdsproxy.sock", Address("localhost", unix="/run/imdsproxy.sock")),
        ("unix:///run/imdsproxy.sock", Address("localhost", unix="/run/imdsproxy.sock")),
    ],
)
def test_upstream_is_parsed(text: str, expected: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_places, "_WINDOWS", False)
    settings = load({}, {"IMDSPROXY_UPSTREAM": text}).settings
    assert settings.upstream == text
    assert settings.upstream_address == expected


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("unix:", UPSTREAM),
        ("unix:/", UPSTREAM),
        ("unix:run/x", UPSTREAM),
        ("unix:/" + "a" * 107, f"{UPSTREAM}: the path of a Unix socket has at most 107 bytes"),
    ],
)
def test_invalid_socket_path_is_reported(text: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_places, "_WINDOWS", False)
    assert refusal({"IMDSPROXY_UPSTREAM": text}).endswith(f", but must be {rule}")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("uds", "/run/imdsproxy/imdsproxy.sock", "/run/imdsproxy/imdsproxy.sock"),
        ("uds", "", None),
        ("admin_host", "", None),
        ("admin_port", "0", 0),
        ("admin_port", "8256", 8256),
        ("admin_port", "", None),
        ("budget_file", "/run/imdsproxy/budget", "/run/imdsproxy/budget"),
        ("budget_file", "", None),
        ("handover_file", "/run/imdsproxy/handover", "/run/imdsproxy/handover"),
        ("handover_file", "", None),
    ],
)
def test_further_listeners_and_budget_file_are_read(name: str, text: str, value: object) -> None:
    assert one(name, text) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("UDS", text) for text in ("imdsproxy.sock", "/", "/run/a\nb", "/" + "a" * 102)),
        *(("BUDGET_FILE", text) for text in ("budget", "/", "/run/imdsproxy/", "/run/a\nb")),
        *(("HANDOVER_FILE", text) for text in ("handover", "/", "/run/imdsproxy/", "/run/a\nb")),
        *(("ADMIN_PORT", text) for text in ("65536", "-1", "http", "8256.5")),
        ("ADMIN_HOST", "10.0.0.4:8256"),
    ],
)
def test_unusable_places_are_reported(name: str, text: str) -> None:
    assert refusal({f"IMDSPROXY_{name}": text, "IMDSPROXY_UPSTREAM": "http://127.0.0.1:9"}).startswith(
        f"IMDSPROXY_{name} is "
    )


def test_admin_host_needs_a_port_and_admin_port_uses_host() -> None:
    assert "IMDSPROXY_ADMIN_PORT is unset, but must be " in refusal({"IMDSPROXY_ADMIN_HOST": "10.0.0.4"})
    assert load({}, {"IMDSPROXY_ADMIN_PORT": "8256"}).settings.admin_host is None


def test_own_socket_is_refused_as_upstream() -> None:
    told = refusal({"IMDSPROXY_UDS": "/run/x.sock", "IMDSPROXY_UPSTREAM": "unix:/run/x.sock"})
    assert "the proxy itself listens there" in told
    other = load({}, {"IMDSPROXY_UDS": "/run/x.sock", "IMDSPROXY_UPSTREAM": "unix:/run/y.sock"})
    assert (other.settings.uds, other.settings.upstream) == ("/run/x.sock", "unix:/run/y.sock")


def test_shared_budget_is_refused_outside_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_places, "_LINUX", False)
    assert "a budget is shared on Linux only, because only there" in refusal({"IMDSPROXY_BUDGET_FILE": "/run/b"})
    assert "are kept over a restart on Linux only, because" in refusal({"IMDSPROXY_HANDOVER_FILE": "/run/h"})


def test_unix_socket_is_refused_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_places, "_WINDOWS", True)
    assert refusal({"IMDSPROXY_UDS": "/run/x"}).endswith("Python does not support Unix sockets on Windows")
    told = refusal({"IMDSPROXY_UPSTREAM": "unix:/run/x"})
    assert told.endswith(f"{UPSTREAM}: Python does not support Unix sockets on Windows")


@pytest.mark.parametrize(
    ("host", "port", "upstream", "itself"),
    [
        ("127.0.0.1", 8254, "http://LOCALHOST:8254/", True),
        ("::1", 80, "http://[0:0:0:0:0:0:0:1]", True),
        ("proxy.example", 8254, "http://Proxy.example:8254", True),
        ("127.0.0.1", 8254, "http://[::1]:8254", False),
        ("0.0.0.0", 80, "http://169.254.169.254", False),
    ],
)
def test_own_address_is_refused_as_upstream(host: str, port: int, upstream: str, itself: bool) -> None:
    environ = {"IMDSPROXY_HOST": host, "IMDSPROXY_PORT": str(port), "IMDSPROXY_UPSTREAM": upstream}
    if itself:
        assert refusal(environ).endswith("so no request would reach IMDS")
    else:
        assert load({}, environ).settings.upstream == upstream


def test_own_address_equal_to_the_default_upstream_is_refused() -> None:
    told = refusal({"IMDSPROXY_HOST": "169.254.169.254", "IMDSPROXY_PORT": "80"})
    assert told.startswith('IMDSPROXY_UPSTREAM is "http://169.254.169.254", but must be ')
