"""The remedy for a loop, as far as the sender can know it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from imdsproxy.protocol.address import IMDS, Address
from imdsproxy.protocol.messages import FailureKind
from imdsproxy.upstream.client import UpstreamClient

posix = pytest.mark.skipif(sys.platform == "win32", reason="users have numbers on POSIX")
IDENTITY = "         0          0 4294967295\n"


@posix
@pytest.mark.parametrize(
    ("numbered", "named"),
    [(IDENTITY, f"`meta skuid != {os.getuid()}`" if sys.platform != "win32" else ""), ("0 4243 1\n", "--uid USER`")],
    ids=["the machine's numbers", "a user namespace"],
)
def test_advice_names_the_missing_rule_of_a_redirect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbered: str, named: str
) -> None:
    table = tmp_path / "uid_map"
    table.write_text(numbered, encoding="ascii")
    monkeypatch.setattr("imdsproxy.upstream.loop_advice._UID_MAP", table)
    loop = UpstreamClient(IMDS)._loop()
    assert (loop.kind, loop.sent) == (FailureKind.LOOP, False)
    assert named in loop.description


@posix
def test_user_number_without_user_namespaces_is_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imdsproxy.upstream.loop_advice._UID_MAP", tmp_path / "none")
    assert f"--uid {os.getuid()}`" in UpstreamClient(IMDS)._loop().description


def test_advice_names_the_setting_of_another_upstream() -> None:
    told = UpstreamClient(Address("10.0.0.9", 8254))._loop().description
    assert told.startswith("IMDSPROXY_UPSTREAM=http://10.0.0.9:8254 leads back")
    assert "set it to http://169.254.169.254" in told
