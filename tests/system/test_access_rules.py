"""Access rules behind the redirect: real users, clients with 169.254.169.254 built in, a warm cache."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.topology import ORDINARY_USER, PROXY_PORT, PROXY_USER, Azure
from tests.targets import INSTANCE, TOKEN, VERSIONS

pytestmark = pytest.mark.system

ANOTHER_USER = 9999
ROOT = 0
FILE = f"""\
default = "deny"
[[rule]]
name = "named"
user = {ORDINARY_USER}
allow = "/metadata/instance"
[[rule.token]]
resource = "https://vault.azure.net"
[[rule]]
name = "all"
anyone = true
allow = "/metadata/versions"
"""


@pytest.fixture
def file() -> Iterator[str]:
    """Make the access file where the proxy's user may read it."""
    with tempfile.TemporaryDirectory(prefix="imdsproxy") as folder:
        Path(folder).chmod(0o755)
        path = Path(folder, "access.toml")
        path.write_text(FILE, encoding="ascii")
        yield str(path)


def test_only_named_users_get_tokens_however_they_call_imds(azure: Azure, file: str) -> None:
    with azure.running_proxy(access_file=file) as proxy:
        azure.redirect("--exclusive")
        for _ in range(3):  # the first time cold, then warm
            for target in (TOKEN, INSTANCE):
                assert azure.vm.fetch(target, user=ORDINARY_USER).status == 200
                for user in (ANOTHER_USER, ROOT):
                    refused = azure.vm.fetch(target, user=user)
                    assert (refused.status, refused.by_proxy) == (403, True), (target, user)
                    assert b"access_token" not in refused.body
        assert (
            azure.vm.fetch(TOKEN.replace("vault.azure.net", "management.azure.com"), user=ORDINARY_USER).status == 403
        )
        assert azure.vm.fetch(VERSIONS, user=ANOTHER_USER).status == 200
        assert len(azure.arrivals(TOKEN)) == 1, "only the cold one"
        assert len(azure.arrivals(INSTANCE)) == 1
        assert proxy.metric("imdsproxy_access_refused_total") == 13
        assert azure.vm.fetch(TOKEN, user=PROXY_USER).by_proxy is False, "the exempt user calls IMDS itself"


_SAME_PORT = """
import json, socket, sys
first, second = (tuple(end) for end in json.loads(sys.argv[1]))
made = []
for end in (first, second):
    one = socket.socket()
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        one.setsockopt(socket.SOL_SOCKET, option, 1)
    one.settimeout(2)
    one.bind(made[0].getsockname() if made else ("10.0.0.4", 0))
    made.append(one)
    try:
        one.connect(end)
        print("connected")
    except TimeoutError:
        print("dropped")
"""


@pytest.mark.parametrize("order", [1, -1])
def test_connection_whose_port_the_kernel_changes_never_reaches_the_proxy(azure: Azure, order: int) -> None:
    """Its new port can be that of a connection which an exempt user has to IMDS, whose grants it would then get."""
    ends = [["127.0.0.1", PROXY_PORT], ["169.254.169.254", 80]][::order]
    with azure.running_proxy() as proxy:
        azure.redirect("--node")
        done = azure.vm.run(sys.executable, "-ISc", _SAME_PORT, json.dumps(ends), user=ANOTHER_USER)
        assert done.stdout.split() == ["connected", "dropped"]
        assert azure.counted("ports") >= 1
        assert proxy.metric("imdsproxy_connections") <= 2, "the first one, and the metrics'"


def test_rule_that_masquerades_everything_leaves_the_redirect_working(azure: Azure) -> None:
    azure.vm.nft("table ip other {\nchain every {\ntype nat hook postrouting priority 100\nmasquerade\n}\n}\n")
    with azure.running_proxy():
        azure.redirect()
        for _ in range(2):
            assert azure.vm.fetch(VERSIONS, user=ANOTHER_USER).by_proxy
