"""Reading the settings in a child process: the same values and errors, without the memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from imdsproxy.config import SettingInForce
from imdsproxy.errors import SettingsError
from imdsproxy.settings.forked_loader import NEEDED_BY_BOTH, ReadConfig, read_config
from imdsproxy.settings.load import Settings

FLAGS = {"port": "9000", "ttl": "/metadata/instance=5", "retry_statuses": "410,500"}
READ = ReadConfig(
    Settings(port=9000, ttl={"/metadata/instance": 5}, retry_statuses={410, 500}).config(),
    (),
    (
        SettingInForce("IMDSPROXY_PORT", "9000", "flag --port"),
        SettingInForce("IMDSPROXY_RETRY_STATUSES", "410,500", "flag --retry-statuses"),
        SettingInForce("IMDSPROXY_TTL", "/metadata/instance=5", "flag --ttl"),
    ),
)
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@forks
def test_read_config_returns_the_values_of_load() -> None:
    assert read_config(lambda: FLAGS) == READ


def test_read_config_reads_in_place_without_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork", raising=False)
    assert read_config(lambda: FLAGS) == READ


@pytest.mark.parametrize("fork", [pytest.param(True, marks=forks), False])
def test_forked_loader_raises_the_same_error(fork: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fork:
        monkeypatch.delattr(os, "fork", raising=False)
    with pytest.raises(SettingsError, match=r'^IMDSPROXY_PORT \(flag --port\) is "x", but must be a whole number'):
        read_config(lambda: {"port": "x"})


@forks
def test_meanwhile_runs_while_the_child_reads() -> None:
    done = []
    read_config(dict, meanwhile=lambda: done.append(1))
    assert done == [1]


@forks
def test_dead_child_is_replaced_by_reading_in_place() -> None:
    parent = os.getpid()

    def flags() -> dict[str, str]:
        if os.getpid() != parent:
            os._exit(9)
        return FLAGS

    assert read_config(flags) == READ


@forks
def test_serving_process_never_imports_pydantic() -> None:
    code = (
        "import sys; from imdsproxy.settings.forked_loader import read_config; import imdsproxy.cli.serve; "
        "print(read_config(dict).config.port, 'pydantic' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.split() == ["8254", "False"]


def test_both_processes_need_what_is_imported_before_the_fork() -> None:
    for module in ("imdsproxy.settings.load", "imdsproxy.cli.serve"):
        code = f"import sys, {module}; print(*sys.modules)"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        assert set(NEEDED_BY_BOTH) <= set(result.stdout.split()), module
