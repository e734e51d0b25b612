"""The command line: the arguments of each command, the report of mistakes, the exit statuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from imdsproxy import __version__
from imdsproxy.cli import main as cli
from imdsproxy.config import Config
from imdsproxy.errors import SettingsError
from imdsproxy.ops import logs
from imdsproxy.settings import report as settings_report
from imdsproxy.settings.forked_loader import ReadConfig
from imdsproxy.settings.load import Settings
from imdsproxy.settings.model import environment_name, flag_name

COMMANDS = ("serve", "demo", "emulator", "config", "redirect", "check")


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("IMDSPROXY_"):
            monkeypatch.delenv(name)


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(logs, "configure", lambda *arguments: calls.append(arguments))
    return calls


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[object]]:
    """Put a module of that name in place whose function keeps what it is called with."""

    def place(module: str, function: str, status: int = 0, error: BaseException | None = None) -> list[object]:
        calls: list[object] = []

        def called(argument: object, *_: object) -> int:
            calls.append(argument)
            if error is not None:
                raise error
            return status

        stub = ModuleType(module)
        setattr(stub, function, called)
        monkeypatch.setitem(sys.modules, module, stub)
        return calls

    return place


def plain(**values: object) -> Config:
    """Return settings as the server gets them: plain values, from the child that read them."""
    return Settings(**values).config()


def configs(calls: list[object]) -> list[Config]:
    """Return the configurations that the server got."""
    assert all(isinstance(call, ReadConfig) for call in calls)
    return [call.config for call in calls if isinstance(call, ReadConfig)]


def run(
    *arguments: str, environ: dict[str, str] | None = None, options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the program as users do; only for what ends by itself, since a started proxy would ask IMDS."""
    clean = {name: value for name, value in os.environ.items() if not name.upper().startswith("IMDSPROXY_")}
    return subprocess.run(
        [sys.executable, *options, "-m", "imdsproxy", *arguments],
        env={**clean, **(environ or {})},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


# Commands


@pytest.mark.parametrize("argv", [[], ["serve"]])
def test_serve_is_the_default_command(
    argv: list[str], stand_in: Callable[..., list[object]], configured: list[tuple[str, str]]
) -> None:
    calls = stand_in("imdsproxy.cli.serve", "serve", status=7)
    assert cli.main(argv) == 7
    assert configs(calls) == [plain()]
    assert configured == [("info", "text")]


@pytest.mark.parametrize("prefix", [[], ["serve"]])
def test_serve_gets_settings_from_flags_and_environment(
    prefix: list[str],
    stand_in: Callable[..., list[object]],
    configured: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = stand_in("imdsproxy.cli.serve", "serve")
    monkeypatch.setenv("IMDSPROXY_LOG_LEVEL", "debug")
    monkeypatch.setenv("IMDSPROXY_PORT", "1")
    argv = [*prefix, "--port", "9000", "--log-format=json", "--ttl=/metadata/a=1", "--access-log"]
    assert cli.main(argv) == 0
    assert configs(calls) == [
        plain(port=9000, log_level="debug", log_format="json", ttl={"/metadata/a": 1}, access_log=True)
    ]
    assert configured == [("debug", "json")]


@pytest.mark.parametrize(
    ("flags", "value"),
    [(["--access-log"], True), (["--access-log", "true"], True), (["--access-log=no"], False), ([], False)],
)
def test_boolean_flag_needs_no_value(
    flags: list[str], value: bool, stand_in: Callable[..., list[object]], configured: list[tuple[str, str]]
) -> None:
    calls = stand_in("imdsproxy.cli.serve", "serve")
    assert cli.main([*flags, "--port", "1"]) == 0
    assert configs(calls) == [plain(access_log=value, port=1)]


def test_last_of_repeated_flags_wins(stand_in: Callable[..., list[object]], configured: list[tuple[str, str]]) -> None:
    calls = stand_in("imdsproxy.cli.serve", "serve")
    assert cli.main(["--port", "1", "--port", "2"]) == 0
    assert configs(calls) == [plain(port=2)]


def test_demo_gets_the_flags_without_its_own(stand_in: Callable[..., list[object]]) -> None:
    calls = stand_in("imdsproxy.cli.demo", "demo", status=3)
    assert cli.main(["demo", "--max-wait", "5", "--no-tour", "--emulator-port", "0", "--cache-max-bytes", "10"]) == 3
    assert calls == [{"max_wait": "5", "cache_max_bytes": "10"}]


def test_emulator_gets_its_arguments(stand_in: Callable[..., list[object]]) -> None:
    calls = stand_in("imdsproxy.emulator.cli", "main", status=4)
    assert cli.main(["emulator", "--port", "1", "--help", "x"]) == 4
    assert calls == [["--port", "1", "--help", "x"]]


def test_demo_reports_an_invalid_setting(
    stand_in: Callable[..., list[object]], capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in("imdsproxy.cli.demo", "demo", error=SettingsError("IMDSPROXY_X is wrong"))
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr() == ("", "imdsproxy: IMDSPROXY_X is wrong\n")


def test_interrupt_exits_with_130(
    stand_in: Callable[..., list[object]], configured: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in("imdsproxy.cli.serve", "serve", error=KeyboardInterrupt())
    assert cli.main([]) == 130
    assert capsys.readouterr() == ("", "")


def test_config_prints_the_settings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    assert cli.main(["config", "--port", "9"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 90
    assert "flag --port\n" in out
    assert cli.main(["config", "--toml"]) == 0
    assert capsys.readouterr().out == settings_report.toml(Settings())
    assert cli.main(["config", "--toml", "--port", "9"]) == 0
    assert capsys.readouterr().out == settings_report.toml(Settings(port=9))
    assert cli.main(["config", "--env", "--port", "9"]) == 0
    assert capsys.readouterr().out == settings_report.env(Settings(port=9))
    assert cli.main(["config", "--markdown"]) == 0
    assert capsys.readouterr().out == settings_report.markdown()


# Mistakes


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["sevre"], "'sevre' is not a command of imdsproxy; did you mean serve?"),
        (["x"], "'x' is not a command of imdsproxy; \"imdsproxy --help\" lists them"),
        ([""], "'' is not a command of imdsproxy; \"imdsproxy --help\" lists them"),
        (["--prot", "1"], "'--prot' is not a flag of imdsproxy serve; did you mean --port?"),
        (["--prot=1"], "'--prot' is not a flag of imdsproxy serve; did you mean --port?"),
        (["--por", "1"], "'--por' is not a flag of imdsproxy serve; did you mean --port?"),
        (["check", "--jsn"], "'--jsn' is not a flag of imdsproxy check; did you mean --json?"),
        (["redirect", "--exclusiv"], "'--exclusiv' is not a flag of imdsproxy redirect; did you mean --exclusive?"),
        (["config", "--markdwn"], "'--markdwn' is not a flag of imdsproxy config; did you mean --markdown?"),
        (
            ["status", "--exclusive"],
            "'--exclusive' is not a flag of imdsproxy status; \"imdsproxy status --help\" lists them",
        ),
        (["demo", "--zzz"], "'--zzz' is not a flag of imdsproxy demo; \"imdsproxy demo --help\" lists them"),
        (["serve", "x"], "'x' is not a flag of imdsproxy serve; \"imdsproxy serve --help\" lists them"),
        (["serve", "a\n\x1bb"], "'a\\n\\x1bb' is not a flag of imdsproxy serve; \"imdsproxy serve --help\" lists them"),
        (["--toml"], "'--toml' is not a flag of imdsproxy serve; \"imdsproxy serve --help\" lists them"),
        (["--port"], "argument --port: expected one argument"),
        (["config", "--toml", "--markdown"], "argument --markdown: not allowed with argument --toml"),
        (["config", "--markdown", "--env"], "argument --env: not allowed with argument --markdown"),
        (
            ["config", "--port", "abc"],
            'IMDSPROXY_PORT (flag --port) is "abc", but must be a whole number from 0 to 65535',
        ),
        (
            ["config", "--max-wait", "-1"],
            'IMDSPROXY_MAX_WAIT (flag --max-wait) is "-1", but must be a number of seconds from 0 to 31536000',
        ),
        (["--access-log", "maybe"], 'IMDSPROXY_ACCESS_LOG (flag --access-log) is "maybe", but must be true or false'),
    ],
)
def test_misspelling_is_reported_in_one_line(argv: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    assert capsys.readouterr() == ("", f"imdsproxy: {told}\n")


# Help


def test_help_at_the_top_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--help", "-h"):
        assert cli.main([flag]) == 0
        out, err = capsys.readouterr()
        assert all(f"\n  {command} " in out for command in COMMANDS)
        assert err == ""


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"imdsproxy {__version__}\n"


@pytest.mark.parametrize("argv", [["serve", "--help"], ["demo", "-h"], ["config", "--help"], ["--port", "1", "--help"]])
def test_help_of_a_command_lists_every_setting(
    argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name, info in Settings.model_fields.items():
        # A long flag stands on a line of its own, its meaning on the next.
        entry = out.partition(f"\n  {flag_name(name)} ")[2].partition("\n  --")[0]
        assert f" {info.description} [{environment_name(name)}, default: " in entry
    assert "\n  --cache-max-bytes BYTES\n" in out
    assert "\n  --access-log [true|false]\n" in out
    for form in ("--toml", "--env", "--markdown"):
        assert (f"\n  {form} " in out) == (argv[0] == "config")


@pytest.mark.parametrize("argument", ["--help", "--version", "sevre"])
def test_commands_without_settings_do_not_import_them(argument: str) -> None:
    result = run(argument, options=["-X", "importtime"])
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "imdsproxy.cli.main" in imported
    heavy = {"pydantic", "uvicorn", "httpx", "starlette", "asyncio", "logging", "argparse"}
    assert imported.isdisjoint(heavy)


def test_config_does_not_import_the_server() -> None:
    result = run("config", options=["-X", "importtime"])
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "imdsproxy.settings.load" in imported
    assert imported.isdisjoint({"uvicorn", "uvloop", "httpx", "starlette", "prometheus_client", "imdsproxy.server.run"})


# As a process


@pytest.mark.parametrize(
    ("argv", "environ", "status", "told"),
    [
        (["--help"], {}, 0, ""),
        (["--version"], {"IMDSPROXY_PROT": "1"}, 0, ""),
        (["config"], {"IMDSPROXY_PORT": "tcp://10.0.0.1:8254", "IMDSPROXY_SERVICE_HOST": "10.0.0.1"}, 0, ""),
        (["config", "--markdown"], {}, 0, ""),
        (["serve", "--help"], {}, 0, ""),
        (["config", "--port", "abc"], {}, 2, 'imdsproxy: IMDSPROXY_PORT (flag --port) is "abc", but must be '),
        ([], {"IMDSPROXY_PORT": "abc"}, 2, 'imdsproxy: IMDSPROXY_PORT is "abc", but must be '),
        (["config"], {"IMDSPROXY_COLOUR": "x"}, 2, "imdsproxy: IMDSPROXY_COLOUR is not a setting; "),
        (["config", "--env"], {}, 0, ""),
        (["config"], {"IMDSPROXY_CONFIG_FILE": "no.toml"}, 2, 'imdsproxy: IMDSPROXY_CONFIG_FILE is "no.toml", but '),
        (["--prot"], {}, 2, "imdsproxy: '--prot' is not a flag of imdsproxy serve; did you mean --port?"),
        (["install"], {}, 2, "imdsproxy: 'install' is not a command of imdsproxy; "),
    ],
)
def test_exit_status_follows_the_result(argv: list[str], environ: dict[str, str], status: int, told: str) -> None:
    result = run(*argv, environ=environ)
    assert result.returncode == status
    assert result.stderr.startswith(told)
    assert result.stderr.count("\n") == (1 if told else 0)
    assert bool(result.stdout) == (not told)


def test_printed_toml_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(run("config", "--toml", "--port", "9").stdout, encoding="utf-8")
    result = run("config", environ={"IMDSPROXY_CONFIG_FILE": str(path), "COLUMNS": "1000"})
    assert result.returncode == 0
    assert re.search(r"^IMDSPROXY_PORT +9 +file ", result.stdout, re.MULTILINE)


def test_printed_environment_is_accepted() -> None:
    lines = run("config", "--env", "--port", "9").stdout.splitlines()
    environ = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    result = run("config", environ={**environ, "COLUMNS": "1000"})
    assert result.returncode == 0
    assert re.search(r"^IMDSPROXY_PORT +9 +environment$", result.stdout, re.MULTILINE)


def test_closed_output_exits_with_1() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "imdsproxy", "config"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.upper().startswith("IMDSPROXY_")},
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(timeout=60)
    assert errors == b""
    assert process.returncode == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_sigterm_during_start_exits_with_zero() -> None:
    # The kernel does not deliver SIGTERM to a container's first process without a handler.
    program = """
import os, signal, sys
from imdsproxy.settings import forked_loader as settings_reader
from imdsproxy.cli.main import main
settings_reader.read_config = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
sys.exit(main(["serve"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
