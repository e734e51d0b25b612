"""`--tokens az`: a developer's own tokens, from an Azure CLI that the tests wrote."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imdsproxy.emulator import Emulator, EmulatorServer, run_in_thread
from imdsproxy.emulator.az_tokens import AzTokens, is_loopback
from imdsproxy.emulator.cli import main
from imdsproxy.emulator.errors import LendError
from imdsproxy.emulator.vm.presets import TENANT
from tests.kit import wait_until

pytestmark = [
    pytest.mark.any_python,
    pytest.mark.skipif(sys.platform == "win32", reason="the Azure CLI of these tests is a shell script"),
]

VAULT = "https://vault.azure.net"
EXPIRY = 2_000_000_000
GOOD = f'{{"accessToken": "the developer\'s", "expires_on": {EXPIRY}, "expiresOn": "x", "tokenType": "Bearer"}}'


def fake_az(folder: Path, script: str) -> Path:
    """Write an `az` that notes its arguments and then runs a script."""
    az = folder / "az"
    az.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >>"{folder}/arguments"\n{script}\n', encoding="utf-8")
    az.chmod(0o755)
    return az


def says(folder: Path, output: str) -> AzTokens:
    (folder / "output").write_text(output, encoding="utf-8")
    return AzTokens(str(fake_az(folder, f'cat "{folder}/output"')))


def asked(folder: Path) -> list[str]:
    file = folder / "arguments"
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


@contextlib.contextmanager
def lending(tokens: AzTokens) -> Iterator[EmulatorServer]:
    with run_in_thread(Emulator(lender=tokens, rate=0, identity_rate=0)) as server:
        yield server


def ask(server: EmulatorServer, resource: str = VAULT, **headers: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    target = f"/metadata/identity/oauth2/token?api-version=2018-02-01&resource={resource}"
    try:
        pairs = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET", target, headers={"Metadata": "true", **pairs})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_token_of_the_developer_is_handed_out_once_and_kept(tmp_path: Path) -> None:
    with lending(says(tmp_path, GOOD)) as server:
        status, answer = ask(server)
        assert ask(server)[0] == 200
    assert (status, answer["access_token"], answer["expires_on"]) == (200, "the developer's", str(EXPIRY))
    assert (answer["resource"], answer["token_type"]) == (VAULT, "Bearer")
    assert int(answer["expires_in"]) == pytest.approx(EXPIRY - time.time(), abs=30)
    assert asked(tmp_path) == ["account", "get-access-token", f"--resource={VAULT}", "--output=json"]


def test_local_time_of_an_old_azure_cli_is_read(tmp_path: Path) -> None:
    local = time.strftime("%Y-%m-%d %H:%M:%S.000000", time.localtime(EXPIRY))
    token = says(tmp_path, f'{{"accessToken": "t", "expiresOn": "{local}"}}').lend(VAULT)
    assert token == ("t", EXPIRY)


@pytest.mark.parametrize(
    "resource",
    [
        *("--query=x", "-x", "a b", "a&calc", "a|b", "a;b", "a%25PATH%25", "%22x", "a^b", "$(id)", "a%0ab", "a'b", "é"),
        "a" * 257,
    ],
)
def test_resource_that_could_be_a_command_never_reaches_az(tmp_path: Path, resource: str) -> None:
    tokens = says(tmp_path, GOOD)
    with pytest.raises(LendError, match="the resource has characters that no resource of Azure has"):
        tokens.lend(resource)
    assert asked(tmp_path) == []


@pytest.mark.parametrize(
    "resource", [VAULT, "https://management.azure.com/", "api://app-1/x_y", "00000002-0000-0000-c000-000000000000"]
)
def test_resource_of_azure_reaches_az(tmp_path: Path, resource: str) -> None:
    assert says(tmp_path, GOOD).lend(resource).expires_on == EXPIRY


@pytest.mark.parametrize(
    ("script", "status", "reason"),
    [
        ("echo 'WARNING: x' >&2; echo \"ERROR: Please run 'az login' to setup account.\" >&2; exit 1", 400, "az login"),
        ("echo 'it broke' >&2; exit 3", 400, "az: it broke"),
        ("exit 1", 400, "az: it failed and said nothing"),
        ("printf 'ERROR: a\\033[31mb' >&2; exit 1", 400, "az: a[31mb"),
        ("echo no-json", 400, "az answered with no token"),
        ("echo '{}'", 400, "az answered with no token"),
        ("echo '[]'", 400, "az answered with no token"),
        ('echo \'{"accessToken": "t", "expiresOn": "soon"}\'', 400, "az answered with no token"),
        ("sleep 60 & wait", 500, "az has not answered within 0.3 s"),
    ],
)
def test_failure_of_az_is_translated(tmp_path: Path, script: str, status: int, reason: str) -> None:
    with lending(AzTokens(str(fake_az(tmp_path, script)), timeout=0.3 if "sleep" in script else 20)) as server:
        found, answer = ask(server)
    assert (found, answer["error"]) == (status, "invalid_request")
    assert reason in answer["error_description"]


def test_missing_az_is_an_answer_too(tmp_path: Path) -> None:
    with lending(AzTokens(str(tmp_path / "az"))) as server:
        assert ask(server)[1]["error_description"] == "az cannot be started: No such file or directory"


def test_az_never_asks_this_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_POD_IDENTITY_AUTHORITY_HOST", "IDENTITY_ENDPOINT", "MSI_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    tokens = AzTokens(str(fake_az(tmp_path, f"env >'{tmp_path}/environment'; echo '{GOOD}'".replace("'s", "s"))))
    tokens.lend(VAULT)
    assert "http://127.0.0.1:1" not in (tmp_path / "environment").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-origin"},
        {"Host": "evil.example"},
    ],
)
def test_page_in_a_browser_gets_no_token_of_the_developer(tmp_path: Path, headers: dict[str, str]) -> None:
    with lending(says(tmp_path, GOOD)) as server:
        assert ask(server, **headers)[0] == 403
    assert asked(tmp_path) == []


def test_keys_of_the_emulator_are_not_offered_for_tokens_of_microsoft(tmp_path: Path) -> None:
    with lending(says(tmp_path, GOOD)) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        connection.request("GET", f"/{TENANT}/discovery/keys")
        response = connection.getresponse()
        assert (response.status, b"your own, from the Azure CLI" in response.read()) == (404, True)
        connection.close()


def test_other_requests_are_answered_while_az_runs(tmp_path: Path) -> None:
    go = tmp_path / "go"
    az = fake_az(tmp_path, f"while [ ! -e '{go}' ]; do sleep 0.02; done; cat '{tmp_path}/output'")
    (tmp_path / "output").write_text(GOOD, encoding="utf-8")
    found: list[int] = []
    with lending(AzTokens(str(az))) as server:
        waiting = threading.Thread(target=lambda: found.append(ask(server)[0]))
        waiting.start()
        wait_until(lambda: bool(asked(tmp_path)))
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        connection.request("GET", "/metadata/versions", headers={"Metadata": "true"})
        assert connection.getresponse().status == 200
        connection.close()
        assert found == []
        go.touch()
        waiting.join(20)
    assert found == [200]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *(("127.0.0.1", True), ("127.9.9.9", True), ("::1", True)),
        *(("0.0.0.0", False), ("::", False), ("10.0.0.4", False), ("localhost", False), ("", False)),
    ],
)
def test_only_an_address_of_this_machine_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_command_needs_az(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--tokens", "az"]) == 2
    assert "--tokens az: the Azure CLI, az, is not found on PATH; install it and log in" in capsys.readouterr().err


@pytest.mark.process
def test_command_warns_loudly_even_if_quiet_and_ends_a_running_az(tmp_path: Path) -> None:
    fake_az(tmp_path, f"echo $$ >'{tmp_path}/id'; sleep 300 & wait")
    command = [sys.executable, "-m", "imdsproxy.emulator", "--port", "0", "--tokens", "az", "--quiet"]
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[1]
            server = EmulatorServer("127.0.0.1", int(url.rpartition(":")[2]), Emulator())
            waiting = threading.Thread(target=ask_in_vain, args=(server,))
            waiting.start()
            wait_until(lambda: (tmp_path / "id").exists() and (tmp_path / "id").read_text(encoding="utf-8") != "")
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=10)
            waiting.join(20)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "WARNING: --tokens az hands out YOUR OWN Azure access tokens" in errors
    assert url in errors
    group = int((tmp_path / "id").read_text(encoding="utf-8"))
    wait_until(lambda: not alive(group))


def ask_in_vain(server: EmulatorServer) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        ask(server)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
