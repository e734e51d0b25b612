"""Shared fixtures of the system tests: a virtual machine of Azure, or the reason why it is not available."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.hosts import Host, link
from tests.system.topology import Azure, running_azure

TOOLS = ("ip", "nft", "setpriv", "sh")
_PROBE = """
table ip probe {
    chain output {
        type nat hook output priority -100
        tcp dport 80 meta skuid != 0 counter dnat to 127.0.0.1:80
    }
    chain prerouting {
        type nat hook prerouting priority -100
        fib daddr . iif oif missing counter
    }
}
"""


def missing() -> str:
    """Return what this machine lacks to make hosts of namespaces; empty if it lacks nothing."""
    if sys.platform != "linux":
        return "network namespaces exist on Linux only"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    try:
        with Host("one") as one, Host("other") as other:
            link(one, "eth0", other, "eth0")
            one.ip("link add name br0 type bridge", "link add link eth0 name card type macvlan mode bridge")
            one.sysctl("net.ipv4.ip_forward", 1)
            one.nft(_PROBE)
            one.run("true", user=65534)
    except (OSError, AssertionError) as error:
        return f"this system does not allow it: {error}"
    return ""


@pytest.fixture(scope="session", autouse=True)
def _able() -> None:
    """Skip where hosts cannot be made; fail instead where REQUIRE_SYSTEM_TESTS says that they can."""
    if reason := missing():
        if os.environ.get("REQUIRE_SYSTEM_TESTS"):
            pytest.fail(f"REQUIRE_SYSTEM_TESTS is set, but {reason}", pytrace=False)
        pytest.skip(reason)


@pytest.fixture
def azure(tmp_path: Path) -> Iterator[Azure]:
    """Make the hosts of `topology`: no redirect, no proxy, no request at IMDS yet."""
    with running_azure(tmp_path) as azure:
        yield azure
