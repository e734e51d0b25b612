"""The access file on the disk, and this machine's users."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from imdsproxy.access.loading import _not_on_windows, load_file, names_in, rules_in_force
from imdsproxy.access.subject import Subject
from imdsproxy.errors import SettingsError

ME = pwd.getpwuid(os.getuid())


def rule(who: str) -> str:
    return f'default = "deny"\n[[rule]]\nname = "a"\n{who}\nallow = "/metadata"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.toml"


def test_load_file_accepts_a_byte_order_mark(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + rule("user = 1").encode())
    assert load_file(str(path)).rules[0].name == "a"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"default = 1\n", "line 1: default must be a text that is not empty"),
        (b"\xff", "it is not UTF-8 (byte 0); save it as UTF-8"),
        (b" " * 1_048_577, "it has more than 1048576 bytes, which is too long for rules; name another file"),
        (None, "No such file or directory; name a file that the proxy's user may read"),
    ],
)
def test_load_file_that_is_not_sound_states_file_and_reason(path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load_file(str(path))
    assert str(caught.value) == f"IMDSPROXY_ACCESS_FILE={path}: {reason}"


def refusal(path: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        load_file(str(path))
    return str(caught.value)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_file_that_others_can_write_to_is_not_obeyed(path: Path, mode: int) -> None:
    path.write_text(rule("user = 1"), encoding="utf-8")
    path.chmod(mode)
    assert f"(mode {mode:04o})" in refusal(path)
    assert "chmod go-w" in refusal(path)
    path.chmod(0o644)
    assert load_file(str(path)).rules


def test_file_that_is_no_file_is_refused_at_once(path: Path) -> None:
    path.mkdir()
    assert "irectory" in refusal(path) or "not a regular file" in refusal(path)
    path.rmdir()
    os.mkfifo(path, 0o600)
    assert "not a regular file" in refusal(path), "opening a pipe without a writer waits for one"


def test_file_behind_a_link_is_judged_itself(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "..data"
    target.write_text(rule("user = 1"), encoding="utf-8")
    path.symlink_to(target)
    assert load_file(str(path)).rules
    target.chmod(0o666)
    assert "chmod go-w" in refusal(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_file_of_another_user_is_not_obeyed(path: Path) -> None:
    path.write_text(rule("user = 1"), encoding="utf-8")
    os.chown(path, 12_345, 0)
    assert "it belongs to user 12345" in refusal(path)


def test_rules_in_force_have_the_ids_of_this_machine(path: Path) -> None:
    path.write_text(rule(f'user = "{ME.pw_name}"'), encoding="utf-8")
    rules, warnings = rules_in_force(str(path))
    assert rules.rules[0].who[0].matches(Subject(user=ME.pw_uid)) is True
    assert warnings == []


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ('user = "no such user"', 'this machine has no user "no such user"'),
        ('group = "no such group"', 'this machine has no group "no such group"'),
        ('namespace = "shop"', 'the rule "a" names pods (namespace, service_account)'),
        ('service_account = "shop/web"', 'the rule "a" names pods'),
    ],
)
def test_rules_in_force_refuse_what_can_never_match(path: Path, who: str, reason: str) -> None:
    path.write_text(rule(who), encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        rules_in_force(str(path))
    assert str(caught.value).startswith(f"IMDSPROXY_ACCESS_FILE={path}: {reason}")


def test_rules_in_force_accept_pods_where_they_are_known(path: Path) -> None:
    path.write_text(rule('namespace = "shop"'), encoding="utf-8")
    rules, _ = rules_in_force(str(path), pods_known=True)
    assert rules.of_pods == "a"


def test_rules_in_force_warn_of_names_in_a_profile_for_many_machines(path: Path) -> None:
    profile = path.with_suffix(".json")
    profile.write_text(
        '{"defaultAccess": "deny", "privileges": [{"name": "p", "path": "/metadata"}], '
        '"roles": [{"name": "r", "privileges": ["p"]}], "identities": [{"name": "i", "userName": "no such user"}], '
        '"roleAssignments": [{"role": "r", "identities": ["i"]}, {"role": "r", "identities": ["i"]}]}',
        encoding="utf-8",
    )
    rules, warnings = rules_in_force(str(profile))
    assert len(rules.rules) == 2
    assert warnings == [f'IMDSPROXY_ACCESS_FILE={profile}: this machine has no user "no such user"']


def test_names_in_rules_are_looked_up_one_by_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def enumerated() -> list[Any]:
        raise AssertionError("a directory service need not list its users")

    monkeypatch.setattr(pwd, "getpwall", enumerated)
    monkeypatch.setattr(grp, "getgrall", enumerated)
    group = grp.getgrgid(ME.pw_gid)
    path.write_text(rule(f'user = "{ME.pw_name}"\ngroup = ["{group.gr_name}", {group.gr_gid}]'), encoding="utf-8")
    names = names_in(load_file(str(path)), "no such user")
    assert names.users == {ME.pw_name: ME.pw_uid}
    assert names.groups == {group.gr_name: group.gr_gid, group.gr_gid: group.gr_gid}


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ('user = "S-1-5-18"', None),
        ('executable = "C:\\\\Apps\\\\agent.exe"', None),
        ("user = 0", "users of Windows have no numbers"),
        ('group = "Administrators"', "names groups, which are not looked up on Windows"),
        ('unix_user = "SYSTEM"', "the proxy has no Unix socket on Windows"),
    ],
)
def test_rules_that_windows_cannot_compare_are_named(path: Path, who: str, reason: str | None) -> None:
    path.write_text(rule(who), encoding="utf-8")
    found = _not_on_windows(load_file(str(path)))
    assert (found is None) if reason is None else (found is not None and reason in found and '"a"' in found)
