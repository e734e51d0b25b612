"""`imdsproxy access explain`: text and exit status."""

from __future__ import annotations

from pathlib import Path

import pytest

from imdsproxy.cli.main import main

TOKEN = "/metadata/identity/oauth2/token?resource=https://vault.azure.net"
FILE = """\
default = "deny"
[[rule]]
name = "web"
user = ["no-such-user", 4242]
allow = "/metadata/instance"
[[rule]]
name = "socket"
unix_user = 4242
allow = "/metadata/versions"
[[rule]]
name = "programs"
executable = "/usr/bin/app"
group = "no-such-group"
allow = "/metadata/loadbalancer"
[[rule]]
name = "net"
address = "10.0.0.0/8"
[[rule.token]]
resource = "https://vault.azure.net"
[[rule]]
name = "pods"
service_account = "shop/web"
allow = "/metadata/attested"
[[rule]]
name = "namespace"
namespace = "shop"
allow = "/metadata/scheduledevents"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "access.toml"
    path.write_text(FILE, encoding="ascii")
    return path


@pytest.mark.parametrize(
    ("flags", "status", "headline"),
    [
        (["--user", "no-such-user", "--path", "/metadata/instance"], 0, "allowed by rule web"),
        (["--user", "4242", "--path", "/metadata/Instance/compute"], 0, "allowed by rule web"),
        (["--user", "4243", "--path", "/metadata/instance"], 1, "refused by default"),
        (["--path", "/metadata/instance"], 1, "refused by default"),
        (["--user", "4242", "--path", "/metadata/versions"], 1, "refused by default"),
        (["--unix-user", "4242", "--path", "/metadata/versions"], 0, "allowed by rule socket"),
        (["--address", "10.1.1.1", "--path", TOKEN], 0, "allowed by rule net"),
        (["--address", "10.1.1.1", "--path", TOKEN, "--method", "post"], 1, "refused by default"),
        (["--service-account", "shop/web", "--path", "/metadata/attested"], 0, "allowed by rule pods"),
        (["--service-account", "shop/web", "--path", "/metadata/scheduledevents"], 0, "allowed by rule namespace"),
        (["--namespace", "shop", "--path", "/metadata/scheduledevents"], 0, "allowed by rule namespace"),
        (
            ["--executable", "/usr/bin/app", "--group", "a,no-such-group", "--path", "/metadata/loadbalancer"],
            0,
            "allowed by rule programs",
        ),
        (
            ["--access-mode", "audit", "--path", "/metadata/instance"],
            1,
            "refused by default, but only audited: the request is served, logged and counted",
        ),
    ],
)
def test_explain_says_what_happens(
    file: Path, capsys: pytest.CaptureFixture[str], flags: list[str], status: int, headline: str
) -> None:
    assert main(["access", "explain", "--access-file", str(file), *flags]) == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == headline
    assert lines[-1] == "default: deny"


@pytest.mark.parametrize(
    ("flags", "notes"),
    [
        (["--user", "4242"], []),
        (["--user", "0", "--address", "10.1.1.1"], []),
        (
            ["--user", "nobody-here"],
            ["--user='nobody-here' is no user of this machine, so only rules that name it mean it; name its groups"],
        ),
        (["--unix-user", "nobody-here", "--group", "a"], ["--unix-user='nobody-here' is no user of this machine"]),
    ],
)
def test_explain_notes_what_this_machine_does_not_have(
    file: Path, capsys: pytest.CaptureFixture[str], flags: list[str], notes: list[str]
) -> None:
    assert main(["access", "explain", "--access-file", str(file), "--path", TOKEN, *flags]) in {0, 1}
    expected = [
        'a rule names user "no-such-user", which this machine does not have, so a proxy does not start here',
        *notes,
    ]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(expected)
    for line, note in zip(lines, expected, strict=True):
        assert line.startswith(f"imdsproxy: note: {note}")


def test_explain_names_rule_client_and_grant(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["access", "explain", "--access-file", str(file), "--address", "10.1.1.1", "--path", TOKEN]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == [
        "  client: address 10.0.0.0/8",
        "  grant: /metadata/identity/oauth2/token with resource https://vault.azure.net",
        "",
    ]


@pytest.mark.parametrize(
    ("document", "headline"),
    [
        ('{"defaultAccess": "deny", "mode": "disabled"}', "refused by default, but the file disables its rules"),
        (
            (
                '{"defaultAccess": "allow", "privileges": [{"name": "p", "path": "/metadata/identity"}], '
                '"roles": [{"name": "r", "privileges": ["p"]}], "identities": [{"name": "i", "userName": "u"}], '
                '"roleAssignments": [{"role": "r", "identities": ["i"]}]}'
            ),
            "refused because the path is reserved",
        ),
    ],
)
def test_explain_reads_a_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], document: str, headline: str
) -> None:
    path = tmp_path / "profile.json"
    path.write_text(document, encoding="ascii")
    assert main(["access", "explain", "--access-file", str(path), "--user", "0", "--path", TOKEN]) == 1
    assert capsys.readouterr().out.startswith(headline)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["access"], '"imdsproxy access" needs a word behind it'),
        (["access", "explain", "--path", "/metadata"], "no access rules are set"),
        (["access", "explain", "--access-file", "FILE"], "--path is missing"),
        (["access", "explain", "--access-file", "FILE", "--path", "/metadata/%2e"], "--path='/metadata/%2e': "),
        (["access", "explain", "--access-file", "/nowhere", "--path", "/metadata"], "IMDSPROXY_ACCESS_FILE=/nowhere: "),
        (
            ["access", "explain", "--access-file", "FILE", "--path", "/metadata", "--address", "here"],
            "--address='here' is not an IP address",
        ),
        (["access", "explain", "--access-file", "FILE", "--usr", "a"], "'--usr' is not a flag"),
    ],
)
def test_explain_with_a_mistake_ends_with_2(
    file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([str(file) if argument == "FILE" else argument for argument in arguments]) == 2
    assert capsys.readouterr().err.startswith(f"imdsproxy: {message}")


def test_explain_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["access", "--help"]) == 0
    assert "--executable FILE" in capsys.readouterr().out
