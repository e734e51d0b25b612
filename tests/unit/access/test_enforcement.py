"""Putting the access file in force, and taking up a change only if it is sound."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from imdsproxy.access.enforcement import enforce, reload
from imdsproxy.access.guard import RefusedAccess
from imdsproxy.access.subject import UNKNOWN_SUBJECT
from imdsproxy.errors import SettingsError
from imdsproxy.protocol.messages import Request, Target
from imdsproxy.protocol.target import read_target


def request() -> Request:
    target = read_target(b"/metadata/versions")
    assert isinstance(target, Target)
    return Request("GET", target)


def test_every_observer_is_told_of_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    path.write_text('default = "deny"', encoding="ascii")
    told: list[RefusedAccess] = []
    guard = enforce(str(path), audit=False, observers=(told.append, told.append))
    assert guard is not None
    assert guard.refusal(UNKNOWN_SUBJECT, request()) is not None
    assert len(told) == 2


def test_changed_file_is_taken_up_only_if_it_is_sound(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "access.toml"
    path.write_text('default = "deny"', encoding="ascii")
    guard = enforce(str(path), audit=False, observers=())
    assert guard is not None
    path.write_text('default = "allow"\nx = 1', encoding="ascii")
    reload(str(path), guard)
    assert guard.refusal(UNKNOWN_SUBJECT, request()) is not None
    path.write_text('default = "allow"', encoding="ascii")
    reload(str(path), guard)
    assert guard.refusal(UNKNOWN_SUBJECT, request()) is None
    assert [record.message for record in caplog.records] == [
        "access rules in force",
        "access file not taken up; the earlier rules stay in force",
        "access rules in force",
    ]
    assert "line 2" in caplog.records[1].__dict__["fields"]["because"]


def test_file_that_is_not_sound_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        enforce(str(tmp_path / "none"), audit=False, observers=())
