"""The settings: their sources and the order of these, unknown names, and the model that they fill."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from imdsproxy.settings import parsers as settings_values
from imdsproxy.settings.load import Loaded, Settings, load
from tests.unit.settings.kit import DEFAULTS, PORT, SECONDS, refusal, write


def test_defaults_are_those_of_the_contract() -> None:
    assert load({}, {}).settings.model_dump() == DEFAULTS


def test_load_reports_every_mistake_a_line_each(tmp_path: Path) -> None:
    path = write(tmp_path, "prot = 1\nmax_wait = 'y'\n[server]\nport = 1\n")
    environ = {"IMDSPROXY_PORT": "x", "IMDSPROXY_TTL": "x", "IMDSPROXY_COLOUR": "1", "IMDSPROXY_CONFIG_FILE": path}
    told = refusal(environ, {"prot": "1"}).splitlines()
    assert [line.partition(" is ")[0].replace(settings_values.shown(path), "FILE") for line in told] == [
        "--prot",
        "[server] in FILE",
        "IMDSPROXY_COLOUR",
        "prot in FILE",
        "IMDSPROXY_PORT",
        "IMDSPROXY_MAX_WAIT (max_wait in FILE)",
        "IMDSPROXY_TTL",
    ]


def test_settings_are_frozen_hashable_and_closed() -> None:
    settings = Settings(port=1, ttl={"/metadata/a": 2}, retry_statuses={500})
    assert hash(settings) == hash(Settings(port=1, ttl=(("/metadata/a", 2),), retry_statuses=[500]))
    with pytest.raises(ValidationError):
        settings.port = 2  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Settings(prot=1)  # type: ignore[call-arg]


def test_settings_constructor_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMDSPROXY_PORT", "1")
    assert Settings().port == 8254


@pytest.mark.parametrize("bad", [{"ttl": 5}, {"ttl": [("/metadata/a",)]}, {"allow": 5}, {"allow": [None]}])
def test_settings_constructor_checks_its_values(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**bad)


def test_invalid_port_is_reported_under_its_own_name() -> None:
    told = refusal({"IMDSPROXY_PORT": "x", "IMDSPROXY_UPSTREAM": "http://localhost:8254"})
    assert told == f'IMDSPROXY_PORT is "x", but must be {PORT}'


def test_flag_overrides_environment_overrides_file_overrides_default(tmp_path: Path) -> None:
    path = write(tmp_path, "port = 1\nmax_wait = 1\nread_timeout = 1\n")
    environ = {"IMDSPROXY_PORT": "2", "IMDSPROXY_MAX_WAIT": "2", "IMDSPROXY_CONFIG_FILE": path}
    loaded = load({"port": "3"}, environ)
    settings = loaded.settings
    assert (settings.port, settings.max_wait, settings.read_timeout, settings.connect_timeout) == (3, 2, 1, 2)
    assert settings.config_file == path
    assert loaded.sources.keys() == Settings.model_fields.keys()
    assert {name: source for name, source in loaded.sources.items() if source != "default"} == {
        "port": "flag --port",
        "max_wait": "environment IMDSPROXY_MAX_WAIT",
        "read_timeout": f"file {path}",
        "config_file": "environment IMDSPROXY_CONFIG_FILE",
    }


def test_environment_is_that_of_the_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMDSPROXY_PORT", "9")
    assert load().settings.port == 9


def test_empty_flag_disables_the_config_file(tmp_path: Path) -> None:
    path = write(tmp_path, "port = 1")
    assert load({"config_file": path}, {}).settings.port == 1
    assert load({"config_file": ""}, {"IMDSPROXY_CONFIG_FILE": path}).settings.port == 8254


def test_invalid_flag_is_reported_with_its_variable() -> None:
    told = refusal({"IMDSPROXY_MAX_WAIT": "3"}, {"max_wait": "x"})
    assert told == f'IMDSPROXY_MAX_WAIT (flag --max-wait) is "x", but must be {SECONDS}'


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("IMDSPROXY_PROT", "did you mean IMDSPROXY_PORT?"),
        ("IMDSPROXY_CACHE_BYTES", "did you mean IMDSPROXY_CACHE_MAX_BYTES?"),
        ("imdsproxy_port", "did you mean IMDSPROXY_PORT?"),
        ("ImdsProxy_Max_Wait", "did you mean IMDSPROXY_MAX_WAIT?"),
        ("IMDSPROXY_LOG_LEVLE", "did you mean IMDSPROXY_LOG_LEVEL?"),
        ("IMDSPROXY_", '"imdsproxy config" lists all settings'),
        ("IMDSPROXY_COLOUR", '"imdsproxy config" lists all settings'),
    ],
)
def test_unknown_variable_is_refused(name: str, remedy: str) -> None:
    assert refusal({name: "1"}) == f"{name} is not a setting; {remedy}"


def test_unknown_variables_are_escaped() -> None:
    told = refusal({"IMDSPROXY_B": "1", "IMDSPROXY_A\n": "1"}).splitlines()
    assert told[0] == 'IMDSPROXY_A\\n is not a setting; "imdsproxy config" lists all settings'
    assert told[1] == 'IMDSPROXY_B is not a setting; "imdsproxy config" lists all settings'


@pytest.mark.parametrize("name", ["IMDSPROXY_FRESHNESS_FILE", "IMDSPROXY_COLOUR"])
def test_unknown_settings_warn_accepts_names_of_other_versions(name: str) -> None:
    loaded = load({}, {name: "1", "IMDSPROXY_UNKNOWN_SETTINGS": "warn"})
    assert loaded.warnings == (f"{name} is not a setting of this version, and has no effect",)


def test_unknown_settings_warn_applies_to_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "unknown_settings = 'warn'\ncolour = 1\n")
    [warning] = load({"config_file": path}, {}).warnings
    assert warning.startswith("colour in ")


@pytest.mark.parametrize("name", ["IMDSPROXY_PROT", "imdsproxy_port", "IMDSPROXY_LOG_LEVLE"])
def test_unknown_settings_warn_still_refuses_a_misspelt_name(name: str) -> None:
    assert "did you mean" in refusal({name: "1", "IMDSPROXY_UNKNOWN_SETTINGS": "warn"})


def test_unknown_flag_is_refused() -> None:
    assert refusal({}, {"prot": "1"}) == "--prot is not a setting; did you mean --port?"


def test_variables_without_the_prefix_are_ignored() -> None:
    load({}, {"IMDSPROXY": "x", "MY_IMDSPROXY_PORT": "x", "PATH": "x"})


KUBERNETES = {
    "IMDSPROXY_SERVICE_HOST": "10.0.0.1",
    "IMDSPROXY_SERVICE_PORT": "8254",
    "IMDSPROXY_SERVICE_PORT_HTTP": "8254",
    "IMDSPROXY_PORT": "tcp://10.0.0.1:8254",
    "IMDSPROXY_PORT_8254_TCP": "tcp://10.0.0.1:8254",
    "IMDSPROXY_PORT_8254_TCP_PROTO": "tcp",
    "IMDSPROXY_PORT_8254_TCP_PORT": "8254",
    "IMDSPROXY_PORT_8254_TCP_ADDR": "10.0.0.1",
    "IMDSPROXY_PORT_53_UDP": "udp://10.0.0.1:53",
}


def test_load_ignores_kubernetes_service_links() -> None:
    assert load({}, KUBERNETES) == load({}, {})
    assert load({}, {**KUBERNETES, "IMDSPROXY_PORT": "tcp://[fd00::1]:8254"}).settings.port == 8254
    assert load({"port": "1"}, KUBERNETES).settings.port == 1


@pytest.mark.parametrize(
    "name",
    [
        "IMDSPROXY_SERVICE",
        "IMDSPROXY_SERVICE_NAME",
        "IMDSPROXY_SERVICE_PORT_",
        "IMDSPROXY_PORT_HTTP",
        "IMDSPROXY_PORT_8254_TCP_HOST",
        "imdsproxy_service_host",
    ],
)
def test_load_refuses_names_that_only_resemble_service_links(name: str) -> None:
    assert refusal({name: "1"}).startswith(f"{name} is not a setting")


@pytest.mark.parametrize(
    ("flags", "environ"),
    [({"port": "tcp://10.0.0.1:8254"}, {}), ({}, {"IMDSPROXY_PORT": "http://a:1"})],
)
def test_only_the_service_port_of_kubernetes_is_ignored(flags: dict[str, str], environ: dict[str, str]) -> None:
    assert refusal(environ, flags).endswith(f"but must be {PORT}")


def test_loaded_has_settings_and_sources() -> None:
    loaded = load({}, {})
    assert isinstance(loaded, Loaded)
    assert set(loaded.sources.values()) == {"default"}
