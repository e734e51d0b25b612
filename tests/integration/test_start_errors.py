"""A start that fails is reported in the form of the log: as one JSON object, or as lines for a person."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import ROOT, environment

pytestmark = pytest.mark.process
SERVER = [sys.executable, "-c", "from imdsproxy.app import create_app; create_app()"]
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def start(command: list[str], **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment(**settings), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


def assert_reported(done: subprocess.CompletedProcess[str], log_format: str, *words: str) -> None:
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if log_format == "json":
        (line,) = done.stderr.splitlines()
        entry = json.loads(line)
        assert (entry["level"], entry["message"]) == ("error", "start failed")
        text = entry["because"]
    else:
        text = done.stderr
        assert all(line.startswith("imdsproxy: ") for line in text.splitlines())
    assert all(word in text for word in words), text


@pytest.mark.parametrize("log_format", ["json", "text"])
class TestStart:
    @pytest.mark.parametrize("command", [[sys.executable, "-m", "imdsproxy"], SERVER], ids=["serve", "create_app"])
    def test_wrong_settings(self, log_format: str, command: list[str]) -> None:
        done = start(command, port=70000, max_wait="\x1bsoon", log_format=log_format)
        assert_reported(done, log_format, "IMDSPROXY_PORT", "IMDSPROXY_MAX_WAIT")
        assert "\x1b" not in done.stderr

    def test_flag_that_does_not_exist(self, log_format: str) -> None:
        command = [sys.executable, "-m", "imdsproxy", "serve", "--prot=1", f"--log-format={log_format}"]
        assert_reported(start(command), log_format, "--prot")

    def test_port_in_use(self, log_format: str, taken: int) -> None:
        command = [sys.executable, "-m", "imdsproxy"]
        done = start(command, port=taken, upstream=NOWHERE, log_format=log_format)
        assert_reported(done, log_format, f"IMDSPROXY_PORT={taken}")

    def test_file_of_a_budget_that_cannot_be_used(self, log_format: str, tmp_path: Path) -> None:
        settings = {
            "budget_file": tmp_path / "none" / "budget",
            "upstream": NOWHERE,
            "log_format": log_format,
            "port": 0,
        }
        for command in ([sys.executable, "-m", "imdsproxy"], SERVER):
            assert_reported(start(command, **settings), log_format, "IMDSPROXY_BUDGET_FILE")

    def test_form_in_the_file_is_obeyed_although_another_setting_is_wrong(
        self, log_format: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "config.toml"
        file.write_text(f'log_format = "{log_format}"\nport = "x"\n', encoding="utf-8")
        assert_reported(start([sys.executable, "-m", "imdsproxy"], config_file=file), log_format, "port")

    def test_error_of_the_proxy_itself(self, log_format: str) -> None:
        program = (
            "import sys, imdsproxy.cli.serve as serve\n"
            "from imdsproxy.cli.main import main\n"
            "def fail(*_): raise RuntimeError('no reason\\nat all')\n"
            "serve.serve = fail\n"
            "sys.exit(main(['serve']))"
        )
        done = start([sys.executable, "-c", program], upstream=NOWHERE, log_format=log_format)
        assert done.returncode == 1
        message = "imdsproxy was ended by an error of its own; please report it"
        if log_format == "json":
            (line,) = done.stderr.splitlines()
            entry = json.loads(line)
            assert (entry["level"], entry["message"]) == ("critical", message)
            assert "RuntimeError: no reason\nat all" in entry["exception"]
        else:
            first, *below = done.stderr.splitlines()
            assert message in first
            assert all(line.startswith("    ") for line in below)
