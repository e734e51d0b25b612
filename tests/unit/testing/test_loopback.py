"""No test reaches beyond loopback, and what sees to it leaves threads and coverage alone."""

from __future__ import annotations

import socket
import sys
import threading

import pytest

from tests.loopback import is_loopback

REAL = ("169.254.169.254", 80)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("::1", True),
        ("::1%lo", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("169.254.169.254", False),
        ("::ffff:169.254.169.254", False),
        ("fe80::1%eth0", False),
        ("0.0.0.0", False),
        ("", False),
        ("example.org", False),
    ],
)
def test_loopback_is_known_without_dns(host: str, allowed: bool) -> None:
    assert is_loopback(host) is allowed


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("connect", (REAL,)),
        ("connect_ex", (REAL,)),
        ("sendto", (b"x", REAL)),
        ("sendto", (b"x", 0, REAL)),
        ("sendmsg", ([b"x"], [], 0, REAL)),
    ],
)
def test_other_addresses_are_refused(method: str, arguments: tuple[object, ...]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client, pytest.raises(RuntimeError, match="only loopback"):
        getattr(client, method)(*arguments)


def test_loopback_is_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendmsg([b"x"])
        accepted, _ = server.accept()
        with accepted:
            assert accepted.recv(1) == b"x"


def test_threads_may_install_trace_functions_at_the_same_time() -> None:
    failed: list[Exception] = []

    def install() -> None:
        try:
            for _ in range(20_000):
                sys.settrace(None)
        except RuntimeError as error:
            failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=install) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failed == []
