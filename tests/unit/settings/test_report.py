"""The settings files in `config/`: they equal the printed ones, and other programs read them as intended."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from imdsproxy.cli import main as cli
from imdsproxy.errors import SettingsError
from imdsproxy.settings import places as settings_places
from imdsproxy.settings import report as settings_report
from imdsproxy.settings.load import Settings, load
from imdsproxy.settings.model import environment_name
from tests.kit import ROOT

CONFIG = ROOT / "config"
Reader = Callable[[str], dict[str, str]]


def as_systemd_reads(text: str) -> dict[str, str]:
    """Read what needs no quotes and no escapes, as EnvironmentFile= is described in systemd.exec(5)."""
    assert "\\" not in text, "it would continue a line, or escape a character"
    found = {}
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith(("#", ";")) or "=" not in line:
            continue
        name, _, value = line.partition("=")
        assert not value.lstrip().startswith(("'", '"')), "it would be taken for a quoted value"
        found[name.strip()] = value.strip()
    return found


def as_docker_reads(text: str) -> dict[str, str]:
    """Read lines as `docker run --env-file` does: comments are whole lines, and a value is all behind the `=`."""
    found = {}
    for line in text.splitlines():
        if not line.lstrip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.lstrip().partition("=")
        assert equals, "it would be taken from docker's own environment"
        assert not re.search(r"\s", name), "docker would refuse it"
        found[name] = value
    return found


READERS = pytest.mark.parametrize("read", [as_systemd_reads, as_docker_reads])


@pytest.mark.parametrize("name", ["toml", "env"])
def test_sample_file_equals_the_printed_one(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", f"--{name}"]) == 0
    printed = capsys.readouterr().out
    assert printed == (CONFIG / f"imdsproxy.{name}").read_text(encoding="ascii")
    assert max(map(len, printed.splitlines())) <= 110


@READERS
def test_environment_file_sets_the_defaults(read: Reader) -> None:
    environ = read((CONFIG / "imdsproxy.env").read_text(encoding="ascii"))
    loaded = load({}, environ)
    assert loaded.settings == Settings()
    for field, info in Settings.model_fields.items():
        # What has no value is left to be said elsewhere, in a unit, say.
        assert (loaded.sources[field] == "default") is (info.default in (None, ())), field
    assert list(environ) == [
        environment_name(field) for field in Settings.model_fields if environment_name(field) in environ
    ]


def test_environment_file_has_every_setting_with_its_meaning() -> None:
    blocks = (CONFIG / "imdsproxy.env").read_text(encoding="ascii").split("\n\n")[1:]
    for (field, info), block in zip(Settings.model_fields.items(), blocks, strict=True):
        *comment, default, entry = block.splitlines()
        assert " ".join(line.removeprefix("# ") for line in comment) == info.description
        assert default.startswith("# Default: ")
        assert entry.removeprefix("# ").startswith(f"{environment_name(field)}=")


@READERS
def test_every_commented_example_is_valid(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_places, "_WINDOWS", False)
    monkeypatch.setattr(settings_places, "_LINUX", True)
    text = settings_report.env(Settings())
    settings = load({}, read(re.sub(r"(?m)^# (?=IMDSPROXY_\w+=)", "", text))).settings
    for field, info in Settings.model_fields.items():
        assert (getattr(settings, field) != info.default) is bool(info.examples), field


@READERS
def test_environment_file_round_trips(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_places, "_WINDOWS", False)
    settings = Settings(
        host="::1",
        port=0,
        upstream="unix:/run/with a space/$HOME#1.sock",
        max_wait=0.25,
        identity_budget_requests=20,
        retry_statuses=(),
        ttl={"/metadata/a=b": 1, "/metadata": 0.5},
        stale_if_error={"/metadata/a,b": 0},
        allow=("/metadata/instance", "/metadata/it's"),
        warmup=('/metadata/a?b="c"', "/metadata/versions"),
        deny=("/metadata/a,b",),
        log_format="json",
        access_log=True,
    )
    again = load({}, read(settings_report.env(settings))).settings
    assert again == settings


def test_config_file_is_not_named_in_the_output() -> None:
    (line,) = [line for line in settings_report.env(Settings(config_file="x")).splitlines() if "_CONFIG_FILE=" in line]
    assert line == "# IMDSPROXY_CONFIG_FILE="


@pytest.mark.parametrize(
    "settings",
    [{"upstream": "unix:/run/a\\b"}, {"warmup": ('/metadata/a?b="c"', "/metadata/d,e")}],
)
def test_env_refuses_values_that_systemd_and_docker_read_differently(
    settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings_places, "_WINDOWS", False)
    with pytest.raises(SettingsError, match=r"^IMDSPROXY_\w+ is .* which systemd and docker would read differently; "):
        settings_report.env(Settings(**settings))


def test_unwritable_value_is_reported_in_one_line_with_status_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings_places, "_WINDOWS", False)
    assert cli.main(["config", "--env", "--upstream", "unix:/run/a\\b"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith('imdsproxy: IMDSPROXY_UPSTREAM is "unix:/run/a\\b", which systemd and docker would ')
    assert said.err.count("\n") == 1
