"""The settings file: every kind of value, and what is reported about a bad one."""

from __future__ import annotations

from pathlib import Path

import pytest

from imdsproxy.settings import parsers as settings_values
from imdsproxy.settings.load import Settings, load
from tests.unit.settings.kit import MAP, PORT, SECONDS, refusal, write


def test_file_accepts_every_kind_of_value(tmp_path: Path) -> None:
    content = """\
        port = 9000
        max_wait = 1.5
        access_log = true
        log_level = "DEBUG"
        retry_statuses = [429, 503]
        deny = "/metadata/identity,/metadata/attested"
        allowed_hosts = ["imds.example"]
        [ttl]
        "/metadata/instance" = 30
        [stale_if_error]
        "/metadata/instance" = 7.5
    """
    path = write(tmp_path, b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode())
    assert load({"config_file": path}, {}).settings == Settings(
        port=9000,
        max_wait=1.5,
        access_log=True,
        log_level="debug",
        retry_statuses={429, 503},
        deny=("/metadata/identity", "/metadata/attested"),
        allowed_hosts=("imds.example",),
        ttl={"/metadata/instance": 30},
        stale_if_error={"/metadata/instance": 7.5},
        config_file=path,
    )


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("prot = 1", "prot in {path} is not a setting; did you mean port?"),
        ("PORT = 1", "PORT in {path} is not a setting; did you mean port?"),
        ("udx = 'x'", 'udx in {path} is not a setting; "imdsproxy config" lists all settings'),
        ("config_file = 'x'", 'config_file in {path} is not a setting; "imdsproxy config" lists all settings'),
        (
            "[server]\nport = 1",
            "[server] in {path} is a section, and settings must be above all sections: move port to",
        ),
        ("[server]\nx = 1", 'server in {path} is not a setting; "imdsproxy config" lists all settings'),
        ("port = true", 'IMDSPROXY_PORT (port in {path}) is "true", but must be ' + PORT),
        ("port = 'x'", 'IMDSPROXY_PORT (port in {path}) is "x", but must be ' + PORT),
        ("max_wait = inf", 'IMDSPROXY_MAX_WAIT (max_wait in {path}) is "inf", but must be ' + SECONDS),
        ("port = 1979-05-27", 'IMDSPROXY_PORT (port in {path}) is "1979-05-27", but must be ' + PORT),
        ("host = ['a']", "IMDSPROXY_HOST (host in {path}) is \"['a']\", but must be an IP address"),
        ("ttl = 5", 'IMDSPROXY_TTL (ttl in {path}) is "5", but must be ' + MAP),
        ("[ttl]\n'/x' = 5", "IMDSPROXY_TTL (ttl in {path}) is \"{{'/x': 5}}\", but must be " + MAP),
        ("[ttl.a]\nb = 5", "IMDSPROXY_TTL (ttl in {path}) is \"{{'a': {{'b': 5}}}}\", but must be " + MAP),
        ("port = ", 'IMDSPROXY_CONFIG_FILE is "{path}", but must be a TOML file that can be read: Invalid'),
        (
            "port = 1".encode("utf-16"),
            'IMDSPROXY_CONFIG_FILE is "{path}", but must be a TOML file that can be read: it is en',
        ),
        (
            "port = 1".encode("utf-16-be"),
            'IMDSPROXY_CONFIG_FILE is "{path}", but must be a TOML file that can be read: it is en',
        ),
        (
            b"port = 1 # \xe9",
            'IMDSPROXY_CONFIG_FILE is "{path}", but must be a TOML file that can be read: it is not UTF-8',
        ),
    ],
)
def test_bad_file_is_reported_with_its_name_and_key(content: str | bytes, told: str, tmp_path: Path) -> None:
    path = write(tmp_path, content)
    shown = settings_values.shown(path)
    assert refusal({"IMDSPROXY_CONFIG_FILE": path}).startswith(told.format(path=shown))


@pytest.mark.parametrize("name", ["missing.toml", ""])
def test_unreadable_file_is_reported(name: str, tmp_path: Path) -> None:
    told = refusal({}, {"config_file": str(tmp_path / name)})
    assert told.startswith("IMDSPROXY_CONFIG_FILE (flag --config-file) is ")
    assert ", but must be a TOML file that can be read: " in told
