"""`imdsproxy redirect`: the exempt user, the destination, and the notes and errors."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from imdsproxy.cli import main as cli
from imdsproxy.cli.redirect import LoadError, end_of_redirect, load_ruleset, redirect
from imdsproxy.errors import SettingsError
from imdsproxy.settings.load import Settings
from tests.kit import ROOT

ROOT_NOTE = ["requests of root's processes are not redirected; run the proxy as a user of its own"]
NODE = {"uid": "990", "node": "true"}


def rendered(options: dict[str, str], **settings: object) -> str:
    return redirect(Settings(**settings).config(), options)[0]


def program(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Put a program of that name first, and alone, on the path."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr("imdsproxy.cli.redirect._ROOTS_PROGRAMS", ())
    return path


def systemctl(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program("systemctl", folder, monkeypatch, script)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("990", "skuid != 990 "),
        ("0990", "skuid != 990 "),
        ("4294967294", "skuid != 4294967294 "),
        ("imdsproxy", 'skuid != "imdsproxy" '),
        ("_imds-proxy.2", 'skuid != "_imds-proxy.2" '),
    ],
)
def test_exempt_user_is_a_number_or_name(given: str, written: str) -> None:
    assert written in rendered({"uid": given})


@pytest.mark.parametrize(
    "given", ["", "-1", "4294967295", "9" * 5000, "a b", 'a"', "a;", "a\n", "٣", "1x", "x" * 33, "@users"]
)
def test_invalid_user_is_refused_with_its_value(given: str) -> None:
    with pytest.raises(SettingsError, match="neither a user's number nor a user's name"):
        rendered({"uid": given})


@pytest.mark.parametrize(
    ("host", "port", "goal"),
    [
        ("127.0.0.1", 8254, "127.0.0.1:8254"),
        ("localhost", 8254, "127.0.0.1:8254"),
        ("0.0.0.0", 99, "127.0.0.1:99"),
        ("10.0.0.4", 80, "10.0.0.4:80"),
    ],
)
def test_redirect_goes_to_the_listening_address(host: str, port: int, goal: str) -> None:
    assert f"dnat to {goal}\n" in rendered({"uid": "990"}, host=host, port=port)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"host": "::1"}, "IMDSPROXY_HOST=::1"),
        ({"host": "no.such.host.invalid"}, "cannot be listened on"),
        ({"host": "224.0.0.1"}, "IMDSPROXY_HOST=224.0.0.1"),
        ({"host": "169.254.169.254"}, "not an address"),
        ({"port": 0}, "IMDSPROXY_PORT=0"),
    ],
)
def test_unusable_destination_is_reported(settings: dict[str, object], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        rendered({"uid": "990"}, **settings)


def test_remove_needs_no_user_and_no_valid_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMDSPROXY_PORT", "no port")
    monkeypatch.setenv("IMDSPROXY_NO_SUCH", "1")
    assert cli.main(["redirect", "--remove"]) == 0
    assert capsys.readouterr().out == end_of_redirect()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="users of processes are read from /proc")
def test_default_user_is_that_of_the_running_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemctl(
        tmp_path, monkeypatch, f'[ "$*" = "show --property=MainPID --value imdsproxy.service" ] && echo {os.getpid()}'
    )
    listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        port = listener.getsockname()[1]
        text, notes, _ = redirect(Settings(port=port).config(), {})
        assert "chain answer {" in text, "the user is certain, so no other user may answer"
        assert (f"skuid != {os.getuid()} " in text, notes) == (True, ROOT_NOTE if os.getuid() == 0 else [])
    (note,) = set(redirect(Settings(port=port).config(), {})[1]) - set(ROOT_NOTE)
    assert note.startswith(f"nothing listens at 127.0.0.1:{port}; ")


@pytest.mark.skipif(sys.platform == "win32", reason="a script stands for systemctl")
@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo 0", "is not running here"),
        ("exit 1", "is not running here"),
        ("echo 4194305", "has just ended"),  # one above the largest process number of Linux
    ],
)
def test_stopped_unit_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, told: str) -> None:
    systemctl(tmp_path, monkeypatch, script)
    with pytest.raises(SettingsError, match=told) as error:
        rendered({})
    assert "imdsproxy redirect --uid NAME-OR-NUMBER" in str(error.value)


def test_missing_systemd_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match="systemd is not running"):
        rendered({})


def test_exempting_root_adds_a_note() -> None:
    for user in ("0", "root"):
        (note,) = redirect(Settings().config(), {"uid": user})[1]
        assert "a user of its own" in note


def test_missing_route_localnet_adds_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = tmp_path / "route_localnet"
    monkeypatch.setattr("imdsproxy.cli.redirect._ROUTE_LOCALNET", setting)
    for value, told in (("0\n", True), ("1\n", False)):
        setting.write_text(value, encoding="ascii")
        assert ("route_localnet=1" in "".join(redirect(Settings().config(), NODE)[1])) is told
    assert "route_localnet" not in "".join(redirect(Settings(host="10.0.0.4").config(), NODE)[1])


def test_exclusive_adds_the_answer_chain() -> None:
    assert "chain answer {" not in rendered({"uid": "990"})
    assert "skuid != { 0, 990 } counter drop" in rendered({"uid": "990", "exclusive": "true"})


def test_node_adds_a_note_about_bans_of_pods() -> None:
    assert "NetworkPolicy" in redirect(Settings().config(), NODE)[1][0]
    assert redirect(Settings().config(), {"uid": "990"})[1] == []


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of Linux")
def test_removal_adds_a_note_if_route_localnet_is_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = tmp_path / "route_localnet"
    monkeypatch.setattr("imdsproxy.cli.redirect._ROUTE_LOCALNET", setting)
    for value, notes in (("0\n", 0), ("1\n", 1)):
        setting.write_text(value, encoding="ascii")
        assert len(end_of_redirect()[1]) == notes


@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        ("imdsproxy.nft", ["--uid", "imdsproxy", "--exclusive"]),
        ("imdsproxy-node.nft", ["--uid", "imdsproxy", "--node", "--exclusive"]),
        ("imdsproxy-remove.nft", ["--remove"]),
    ],
)
def test_sample_rulesets_equal_the_printed_ones(
    file: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["redirect", *arguments]) == 0
    assert capsys.readouterr().out == (ROOT / "config" / "nftables" / file).read_text(encoding="ascii")


def test_notes_are_not_part_of_the_ruleset(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["redirect", "--uid=0", "--port=99"]) == 0
    printed = capsys.readouterr()
    assert "note" not in printed.out
    assert printed.out.endswith("}\n")
    assert "127.0.0.1:99" in printed.out
    assert printed.err.startswith("imdsproxy: note: requests of root's processes")


def test_mistake_is_reported_in_one_line_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["redirect", "--uid", "no such"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# Loading it


@pytest.mark.skipif(sys.platform == "win32", reason="a script stands for nft")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--uid", "990"], "calls of 169.254.169.254:80 now go to 127.0.0.1:8254, except those of user 990"),
        (["--uid", "imdsproxy", "--port=99"], "now go to 127.0.0.1:99, except those of user imdsproxy"),
        (
            ["--uid", "990", "--node", "--host=10.0.0.4"],
            "calls of 169.254.169.254:80, those of this machine's pods too, now go to 10.0.0.4:8254, except",
        ),
        (["--remove"], "calls of 169.254.169.254:80 go to IMDS itself again"),
    ],
)
def test_load_passes_the_printed_ruleset_to_nft_and_reports_its_effect(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["redirect", *arguments]) == 0
    printed = capsys.readouterr()
    program("nft", tmp_path, monkeypatch, f'[ "$*" = "-f -" ] && /bin/cat > {tmp_path}/loaded')
    assert cli.main(["redirect", "--load", *arguments]) == 0
    assert (tmp_path / "loaded").read_text(encoding="ascii") == printed.out
    said = capsys.readouterr()
    first, *notes = said.err.splitlines(keepends=True)
    assert said.out == ""
    assert first.startswith("imdsproxy: calls of ")
    assert told in first
    assert "".join(notes) == printed.err


@pytest.mark.skipif(sys.platform == "win32", reason="a script stands for nft")
@pytest.mark.parametrize(
    ("script", "told"),
    [
        (
            "echo '/dev/stdin:1:71-78: Error: User does not exist' >&2; echo '   ^^^^' >&2; exit 1",
            "nft does not accept the ruleset: User does not exist",
        ),
        (
            "echo 'netlink: Error: cache initialization failed: Operation not permitted' >&2; exit 1",
            "changing nftables needs root or CAP_NET_ADMIN",
        ),
        ("exit 3", "nft does not accept the ruleset: it ended with status 3 and no reason"),
        ("echo lost >&2; exit 1", "nft does not accept the ruleset: lost"),
    ],
)
def test_nft_failure_is_reported_in_one_line(
    script: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program("nft", tmp_path, monkeypatch, script)
    assert cli.main(["redirect", "--load", "--uid=0"]) == 2
    assert capsys.readouterr() == ("", f"imdsproxy: {told}\n")


def test_missing_nft_is_reported_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("imdsproxy.cli.redirect._ROOTS_PROGRAMS", ())
    for arguments in (["--uid=990"], ["--remove"]):
        assert cli.main(["redirect", "--load", *arguments]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert (
            said.err == "imdsproxy: nft is not installed on this machine; install nftables (apt-get install nftables)\n"
        )


@pytest.mark.skipif(sys.platform == "win32", reason="a script stands for nft")
def test_failing_or_hanging_nft_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program("nft", tmp_path, monkeypatch, "exec /bin/sleep 10")
    monkeypatch.setattr("imdsproxy.cli.redirect._LONGEST_LOADING", 0.1)
    with pytest.raises(LoadError, match=r"did not end within 0\.1 seconds"):
        load_ruleset("")
    path.write_text("#!/no/such/interpreter\n", encoding="ascii")
    with pytest.raises(LoadError, match="cannot be run: No such file"):
        load_ruleset("")


@pytest.mark.skipif(sys.platform == "win32", reason="a script stands for nft")
def test_nft_is_found_outside_the_users_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program("nft", tmp_path, monkeypatch, f": > {tmp_path}/ran")
    monkeypatch.setenv("PATH", "/no/such/folder")
    monkeypatch.setattr("imdsproxy.cli.redirect._ROOTS_PROGRAMS", (str(tmp_path),))
    load_ruleset("")
    assert (tmp_path / "ran").exists()
