"""What the check learns about access rules and pods."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imdsproxy.cli.check.facts import Access
from imdsproxy.cli.check.probes.access import look_at_access, look_at_pods
from imdsproxy.clock import SystemClock
from imdsproxy.config import Config

RULES = 'default = "deny"\n[[rule]]\nname = "a"\nuser = 0\nallow = "/metadata"\n'


def looked(path: Path, text: str | None, **values: object) -> Access | None:
    if text is not None:
        path.write_text(text, encoding="utf-8")
    return look_at_access(Config(access_file=str(path), **values))  # type: ignore[arg-type]


def test_access_file_is_read_as_a_start_would(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    assert look_at_access(Config()) is None
    assert looked(path, None) == Access(
        str(path), "unusable", "No such file or directory; name a file that the proxy's user may read"
    )
    assert looked(path, RULES) == Access(str(path), rules=1)
    audited = looked(path, RULES, access_mode="audit")
    assert audited is not None
    assert audited.mode == "audit"
    assert looked(path, "default = 1") == Access(
        str(path), "unusable", "line 1: default must be a text that is not empty"
    )
    pods = RULES.replace("user = 0", 'namespace = "shop"')
    assert "names pods" in (looked(path, pods) or Access("")).words
    assert looked(path, pods, pods_of_node="n") == Access(str(path), rules=1)


def test_file_that_this_user_may_not_read_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "access.toml"
    path.write_text(RULES, encoding="utf-8")
    # Root, who runs some of the tests, may read every file.
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.R_OK)
    assert (looked(path, None) or Access("")).problem == "denied"


def test_pods_need_a_service_account() -> None:
    assert look_at_pods(Config(), SystemClock()) == ""
    assert "service account" in look_at_pods(Config(pods_of_node="n"), SystemClock())
