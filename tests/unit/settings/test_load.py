"""The settings: valid and invalid values, their sources, and the messages."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from imdsproxy.errors import SettingsError
from imdsproxy.protocol.address import IMDS, Address
from imdsproxy.settings import parsers as settings_values
from imdsproxy.settings import places as settings_places
from imdsproxy.settings import report as settings_report
from imdsproxy.settings.load import Loaded, Settings, load
from imdsproxy.settings.model import environment_name, flag_name, form

SAMPLE_FILE = Path(__file__).parents[3] / "config" / "imdsproxy.toml"

DEFAULTS = {
    "host": "127.0.0.1",
    "port": 8254,
    "uds": None,
    "admin_host": None,
    "admin_port": None,
    "upstream": "http://169.254.169.254",
    "connect_timeout": 2.0,
    "read_timeout": 30.0,
    "stale_after": 2.0,
    "budget_requests": 5,
    "budget_window": 1.0,
    "identity_budget_requests": None,
    "budget_file": None,
    "header_timeout": 10.0,
    "max_wait": 10.0,
    "retry_statuses": frozenset({410, 429, 500, 502, 503, 504}),
    "retry_base": 1.0,
    "retry_max": 70.0,
    "ttl": (),
    "stale_if_error": (),
    "token_fresh": 3600.0,
    "negative_ttl": 5.0,
    "cache_max_bytes": 16_777_216,
    "max_body_bytes": 1_048_576,
    "require_metadata_header": "credentials",
    "allow": ("/metadata",),
    "deny": (),
    "allowed_hosts": (),
    "access_file": None,
    "access_mode": "enforce",
    "pods_of_node": None,
    "handover_file": None,
    "clients": (),
    "derive": False,
    "warmup": (),
    "log_level": "info",
    "log_format": "text",
    "access_log": False,
    "traces": False,
    "metrics_by_client": 0,
    "unknown_settings": "refuse",
    "config_file": None,
}


def one(name: str, text: str) -> object:
    """Return the value of one setting, given by the environment."""
    return getattr(load({}, {environment_name(name): text}).settings, name)


def refusal(environ: Mapping[str, str], flags: Mapping[str, str] | None = None) -> str:
    """Return the error message, which is always one line."""
    with pytest.raises(SettingsError) as caught:
        load(flags or {}, environ)
    text = str(caught.value)
    assert text.replace("\n", "").isprintable()
    return text


def write(folder: Path, content: str | bytes) -> str:
    path = folder / "settings.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


# Values


def test_defaults_are_those_of_the_contract() -> None:
    assert load({}, {}).settings.model_dump() == DEFAULTS


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("host", "0.0.0.0", "0.0.0.0"),
        ("host", " LocalHost\n", "localhost"),
        ("host", "[::1]", "::1"),
        ("host", "fe80::1%eth0", "fe80::1%eth0"),
        ("port", "0", 0),
        ("port", "65535", 65535),
        ("upstream", "http://imds.example", "http://imds.example"),
        ("connect_timeout", "0.2", 0.2),
        ("read_timeout", "1e1", 10.0),
        ("budget_requests", "1", 1),
        ("budget_window", "0.001", 0.001),
        ("identity_budget_requests", "20", 20),
        ("identity_budget_requests", "", None),
        ("max_wait", "0", 0.0),
        ("retry_max", "0", 0.0),
        ("retry_statuses", "400, 599", frozenset({400, 599})),
        ("retry_statuses", "[410, 429]", frozenset({410, 429})),
        ("retry_statuses", "", frozenset()),
        ("ttl", "", ()),
        ("ttl", "/metadata=0", (("/metadata", 0.0),)),
        (
            "ttl",
            "/Metadata/Instance/ = 30, /metadata/attested=1.5",
            (("/metadata/attested", 1.5), ("/metadata/instance", 30.0)),
        ),
        ("ttl", '{"/metadata/a=b": 30}', (("/metadata/a=b", 30.0),)),
        ("ttl", "/metadata/a=b=30", (("/metadata/a=b", 30.0),)),
        ("ttl", "{}", ()),
        ("stale_if_error", "/metadata/instance=31536000", (("/metadata/instance", 31_536_000.0),)),
        ("negative_ttl", "0", 0.0),
        ("cache_max_bytes", "1", 1),
        ("require_metadata_header", "ALWAYS", "always"),
        ("allow", "/metadata/Instance/,/metadata/versions", ("/metadata/instance", "/metadata/versions")),
        ("allow", "", ()),
        ("deny", '["/metadata/identity", "/metadata/identity/"]', ("/metadata/identity",)),
        ("deny", "/metadata/.hidden", ("/metadata/.hidden",)),
        ("allowed_hosts", "IMDS.example, my_proxy,", ("imds.example", "my_proxy")),
        ("access_file", "/etc/access.toml", "/etc/access.toml"),
        ("access_file", "", None),
        ("clients", "10.244.3.0/24, 10.0.0.4,10.0.0.4/32", ("10.244.3.0/24", "10.0.0.4/32")),
        ("clients", '["FD00::/16"]', ("fd00::/16",)),
        ("clients", "", ()),
        ("access_mode", "Audit", "audit"),
        ("pods_of_node", "aks-nodepool1-12345678-vmss00000a", "aks-nodepool1-12345678-vmss00000a"),
        ("pods_of_node", " ip-10.ec2.internal", "ip-10.ec2.internal"),
        ("pods_of_node", "", None),
        (
            "warmup",
            "/metadata/instance?api-version=2021-02-01,/Metadata/versions",
            ("/metadata/instance?api-version=2021-02-01", "/Metadata/versions"),
        ),
        ("warmup", '["/metadata/a?b=1,2"]', ("/metadata/a?b=1,2",)),
        ("log_level", "Warning", "warning"),
        ("log_format", "JSON", "json"),
        ("access_log", "yes", True),
        ("metrics_by_client", "10", 10),
        ("access_log", "0", False),
        ("config_file", "", None),
    ],
)
def test_valid_value_is_read(name: str, text: str, value: object) -> None:
    assert one(name, text) == value


PORT = "a whole number from 0 to 65535"
COUNT = "a whole number from 1 to 100000"
ABOVE_ZERO = "a number of seconds above 0, at most 31536000"
SECONDS = "a number of seconds from 0 to 31536000"
MAP = "path=seconds pairs under /metadata, separated by commas, or a JSON object"
PATHS = "path prefixes such as /metadata/instance, separated by commas, or a JSON array"
RANGES = "address ranges such as 10.244.3.0/24, separated by commas, or a JSON array"
ALONE = "address alone"
HOSTS = "host names without scheme, port or wildcard, separated by commas, or a JSON array"
STATUSES = "HTTP statuses from 400 to 599, separated by commas, or a JSON array"
TARGETS = "targets under /metadata/, separated by commas, or a JSON array"
NODE_NAME = "the name of a Kubernetes node: labels of a-z, 0-9 and -, separated by dots"
UPSTREAM = "http://host[:port] or unix:/absolute/path"
NOT_JSON = ": it begins like JSON, but is not valid JSON"


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("host", "", "an IP address or a host name, without a port"),
        ("host", "127.0.0.1:80", "an IP address or a host name, without a port"),
        ("host", "127.1", "an IP address or a host name, without a port"),
        ("host", "two words", "an IP address or a host name, without a port"),
        ("port", "abc", PORT),
        ("port", "", PORT),
        ("port", "-1", PORT),
        ("port", "65536", PORT),
        ("port", "80.5", PORT),
        ("connect_timeout", "0", ABOVE_ZERO),
        ("connect_timeout", "inf", ABOVE_ZERO),
        ("read_timeout", "nan", ABOVE_ZERO),
        ("read_timeout", "31536001", ABOVE_ZERO),
        ("budget_requests", "0", COUNT),
        ("budget_requests", "1e9", COUNT),
        ("budget_window", "0", ABOVE_ZERO),
        ("identity_budget_requests", "0", COUNT),
        ("header_timeout", "10s", ABOVE_ZERO),
        ("max_wait", "-1", SECONDS),
        ("retry_base", "0", ABOVE_ZERO),
        ("negative_ttl", "never", SECONDS),
        ("retry_statuses", "410,399", f'{STATUSES}: "399" is not one'),
        ("retry_statuses", "600", f'{STATUSES}: "600" is not one'),
        ("retry_statuses", "[true]", f'{STATUSES}: "True" is not one'),
        ("retry_statuses", "[429", STATUSES + NOT_JSON),
        ("cache_max_bytes", "16MiB", f"a whole number of bytes from 1 to {2**40}"),
        ("max_body_bytes", "0", f"a whole number of bytes from 1 to {2**40}"),
        ("ttl", "/metadata/instance", f'{MAP}: "/metadata/instance" has no "="'),
        ("ttl", "/metadata/a=x", f'{MAP}: "x" is not a number of seconds from 0 to 31536000'),
        ("ttl", "/metadata/a=-1", f'{MAP}: "-1" is not a number of seconds from 0 to 31536000'),
        ("ttl", "/metadata/a=inf", f'{MAP}: "inf" is not a number of seconds from 0 to 31536000'),
        ("ttl", "/metadataa=1", f'{MAP}: "/metadataa" is not under /metadata'),
        ("ttl", "metadata=1", f'{MAP}: "metadata" is not one'),
        ("ttl", "/metadata/A=1,/metadata/a/=2", f'{MAP}: "/metadata/a" occurs twice'),
        ("ttl", '{"/metadata/a": 1, "/metadata/a": 2}', f'{MAP}: "/metadata/a" occurs twice'),
        ("ttl", '{"/metadata/a": true}', f'{MAP}: "True" is not one'),
        ("ttl", '{"/metadata/a": NaN}', f'{MAP}: "nan" is not a number of seconds from 0 to 31536000'),
        ("stale_if_error", "{", MAP + NOT_JSON),
        ("allow", "metadata", f'{PATHS}: "metadata" is not one'),
        ("allow", "/", f'{PATHS}: "/" is not one'),
        ("deny", "/metadata//identity", f'{PATHS}: "/metadata//identity" is not one'),
        ("deny", "/metadata/../x", f'{PATHS}: "/metadata/../x" is not one'),
        ("deny", "/metadata/%69dentity", f'{PATHS}: "/metadata/%69dentity" is not one'),
        ("deny", "/metadata?x", f'{PATHS}: "/metadata?x" is not one'),
        ("access_mode", "off", "enforce or audit"),
        ("clients", "pods", f'{RANGES}: "pods" is not one'),
        ("clients", "10.0.0.4/24", f'{RANGES}: "10.0.0.4/24" begins within a range; write 10.0.0.0/24, or the {ALONE}'),
        ("pods_of_node", "Node", NODE_NAME),
        ("pods_of_node", "a,spec.nodeName!=b", NODE_NAME),
        ("pods_of_node", "node.", NODE_NAME),
        ("allowed_hosts", "http://a", f'{HOSTS}: "http://a" is not one'),
        ("allowed_hosts", "a:80", f'{HOSTS}: "a:80" is not one'),
        ("allowed_hosts", "*.example", f'{HOSTS}: "*.example" is not one'),
        ("allowed_hosts", "10.0.0.1", f'{HOSTS}: "10.0.0.1" is an IP address, and those are always accepted'),
        ("allowed_hosts", "[1]", f'{HOSTS}: "1" is not one'),
        ("warmup", "/metadata", f'{TARGETS}: "/metadata" is not one'),
        ("warmup", "http://169.254.169.254/metadata/x", f'{TARGETS}: "http://169.254.169.254/metadata/x" is not one'),
        ("warmup", "/metadata/a b", f'{TARGETS}: "/metadata/a b" is not one'),
        ("warmup", "/metadata/a#b", f'{TARGETS}: "/metadata/a#b" is not one'),
        ("require_metadata_header", "true", "credentials, always or never"),
        ("log_level", "loud", "debug, info, warning or error"),
        ("log_format", "xml", "text or json"),
        ("access_log", "perhaps", "true or false"),
        ("upstream", "", UPSTREAM),
        ("upstream", "169.254.169.254", UPSTREAM),
        ("upstream", "ftp://a", UPSTREAM),
        ("upstream", "http:a", UPSTREAM),
        ("upstream", "http://", UPSTREAM),
        ("upstream", "http://a:", UPSTREAM),
        ("upstream", "http://[::1", UPSTREAM),
        ("upstream", "http://[127.0.0.1]", UPSTREAM),
        ("upstream", "http://[:x]", f'{UPSTREAM}: ":x" is not a host'),
        ("upstream", "http://0x7f.1", f'{UPSTREAM}: "0x7f.1" is not a host'),
        ("upstream", "http://a:0", f"{UPSTREAM}: a port is from 1 to 65535"),
        ("upstream", "http://a:65536", f"{UPSTREAM}: a port is from 1 to 65535"),
        ("upstream", "HTTPS://a", f"{UPSTREAM}: IMDS speaks plain HTTP only"),
        ("upstream", "http://me@a", f"{UPSTREAM}: it must have no user name and no password"),
        *(
            ("upstream", url, f"{UPSTREAM}: it must have no path, query or fragment, because each request has its own")
            for url in ("http://a/metadata", "http://a//", "http://a?b", "http://a#b")
        ),
    ],
)
def test_bad_value_is_reported_with_name_value_and_remedy(name: str, text: str, rule: str) -> None:
    assert refusal({environment_name(name): text}) == f'{environment_name(name)} is "{text}", but must be {rule}'


@pytest.mark.parametrize(
    "target",
    [
        "/metadata/scheduledevents?api-version=2020-07-01",
        "/metadata/ScheduledEvents/",
        "/Metadata/scheduledevents;x",
        "/metadata/scheduled%65vents",
        "/metadata//scheduledevents",
        "/metadata/./scheduledevents/x",
        "/metadata/instance/../scheduledevents",
        "/metadata/%5Cscheduledevents",
    ],
)
def test_scheduled_events_are_refused_as_warm_up(target: str) -> None:
    told = refusal({"IMDSPROXY_WARMUP": f"/metadata/versions,{target}"})
    reason = "fetching scheduled events enables the feature and makes user-initiated restarts wait"
    assert told.startswith("IMDSPROXY_WARMUP is ")
    assert told.endswith(f'"{target}" is refused, because {reason}')


def test_warm_up_may_name_scheduled_events_in_a_query() -> None:
    assert one("warmup", "/metadata/instance?x=/scheduledevents") == ("/metadata/instance?x=/scheduledevents",)


def test_long_or_unprintable_value_is_shortened_and_escaped() -> None:
    assert refusal({"IMDSPROXY_PORT": "9" * 1000}) == f'IMDSPROXY_PORT is "{"9" * 77}...", but must be {PORT}'
    assert refusal({"IMDSPROXY_PORT": "1\n\x1b[2"}) == f'IMDSPROXY_PORT is "1\\n\\x1b[2", but must be {PORT}'
    assert len(re.findall(r'"(.*)"', refusal({"IMDSPROXY_PORT": "\x00é" * 1000}))[0]) == 80


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


# The upstream


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://169.254.169.254", IMDS),
        ("HTTP://Example.COM:8080/", Address("example.com", 8080)),
        ("http://[::1]:81", Address("::1", 81)),
        ("unix:/run/imdsproxy.sock", Address("localhost", unix="/run/imdsproxy.sock")),
        ("unix:///run/imdsproxy.sock", Address("localhost", unix="/run/imdsproxy.sock")),
    ],
)
def test_upstream_is_parsed(text: str, expected: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_places, "_WINDOWS", False)
    settings = load({}, {"IMDSPROXY_UPSTREAM": text}).settings
    assert settings.upstream == text
    assert settings.upstream_address == expected


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("unix:", UPSTREAM),
        ("unix:/", UPSTREAM),
        ("unix:run/x", UPSTREAM),
        ("unix:/" + "a" * 107, f"{UPSTREAM}: the path of a Unix socket has at most 107 bytes"),
    ],
)
def test_invalid_socket_path_is_reported(text: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_places, "_WINDOWS", False)
    assert refusal({"IMDSPROXY_UPSTREAM": text}).endswith(f", but must be {rule}")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("uds", "/run/imdsproxy/imdsproxy.sock", "/run/imdsproxy/imdsproxy.sock"),
        ("uds", "", None),
        ("admin_host", "", None),
        ("admin_port", "0", 0),
        ("admin_port", "8256", 8256),
        ("admin_port", "", None),
        ("budget_file", "/run/imdsproxy/budget", "/run/imdsproxy/budget"),
        ("budget_file", "", None),
        ("handover_file", "/run/imdsproxy/handover", "/run/imdsproxy/handover"),
        ("handover_file", "", None),
    ],
)
def test_further_listeners_and_budget_file_are_read(name: str, text: str, value: object) -> None:
    assert one(name, text) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("UDS", text) for text in ("imdsproxy.sock", "/", "/run/a\nb", "/" + "a" * 102)),
        *(("BUDGET_FILE", text) for text in ("budget", "/", "/run/imdsproxy/", "/run/a\nb")),
        *(("HANDOVER_FILE", text) for text in ("handover", "/", "/run/imdsproxy/", "/run/a\nb")),
        *(("ADMIN_PORT", text) for text in ("65536", "-1", "http", "8256.5")),
        ("ADMIN_HOST", "10.0.0.4:8256"),
    ],
)
def test_unusable_places_are_reported(name: str, text: str) -> None:
    assert refusal({f"IMDSPROXY_{name}": text, "IMDSPROXY_UPSTREAM": "http://127.0.0.1:9"}).startswith(
        f"IMDSPROXY_{name} is "
    )


def test_admin_host_needs_a_port_and_admin_port_uses_host() -> None:
    assert "IMDSPROXY_ADMIN_PORT is unset, but must be " in refusal({"IMDSPROXY_ADMIN_HOST": "10.0.0.4"})
    assert load({}, {"IMDSPROXY_ADMIN_PORT": "8256"}).settings.admin_host is None


def test_own_socket_is_refused_as_upstream() -> None:
    told = refusal({"IMDSPROXY_UDS": "/run/x.sock", "IMDSPROXY_UPSTREAM": "unix:/run/x.sock"})
    assert "the proxy itself listens there" in told
    other = load({}, {"IMDSPROXY_UDS": "/run/x.sock", "IMDSPROXY_UPSTREAM": "unix:/run/y.sock"})
    assert (other.settings.uds, other.settings.upstream) == ("/run/x.sock", "unix:/run/y.sock")


def test_shared_budget_is_refused_outside_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_places, "_LINUX", False)
    assert "a budget is shared on Linux only, because only there" in refusal({"IMDSPROXY_BUDGET_FILE": "/run/b"})
    assert "are kept over a restart on Linux only, because" in refusal({"IMDSPROXY_HANDOVER_FILE": "/run/h"})


def test_unix_socket_is_refused_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_places, "_WINDOWS", True)
    assert refusal({"IMDSPROXY_UDS": "/run/x"}).endswith("Python does not support Unix sockets on Windows")
    told = refusal({"IMDSPROXY_UPSTREAM": "unix:/run/x"})
    assert told.endswith(f"{UPSTREAM}: Python does not support Unix sockets on Windows")


@pytest.mark.parametrize(
    ("host", "port", "upstream", "itself"),
    [
        ("127.0.0.1", 8254, "http://127.0.0.1:8254", True),
        ("127.0.0.1", 8254, "http://LOCALHOST:8254/", True),
        ("127.0.0.1", 8254, "http://0.0.0.0:8254", True),
        ("127.0.0.1", 8254, "http://[::ffff:127.0.0.1]:8254", True),
        ("localhost", 8254, "http://[::1]:8254", True),
        ("::1", 80, "http://[0:0:0:0:0:0:0:1]", True),
        ("0.0.0.0", 8254, "http://127.0.0.9:8254", True),
        ("::", 8254, "http://localhost:8254", True),
        ("proxy.example", 8254, "http://Proxy.example:8254", True),
        ("10.0.0.4", 8254, "http://10.0.0.4:8254", True),
        ("127.0.0.1", 8254, "http://127.0.0.1:8255", False),
        ("127.0.0.1", 8254, "http://127.0.0.2:8254", False),
        ("127.0.0.1", 8254, "http://[::1]:8254", False),
        ("0.0.0.0", 8254, "http://10.0.0.4:8254", False),
        ("0.0.0.0", 80, "http://169.254.169.254", False),
        ("127.0.0.1", 0, "http://127.0.0.1:8254", False),
    ],
)
def test_own_address_is_refused_as_upstream(host: str, port: int, upstream: str, itself: bool) -> None:
    environ = {"IMDSPROXY_HOST": host, "IMDSPROXY_PORT": str(port), "IMDSPROXY_UPSTREAM": upstream}
    if itself:
        assert refusal(environ).endswith("so no request would reach IMDS")
    else:
        assert load({}, environ).settings.upstream == upstream


def test_own_address_equal_to_the_default_upstream_is_refused() -> None:
    told = refusal({"IMDSPROXY_HOST": "169.254.169.254", "IMDSPROXY_PORT": "80"})
    assert told.startswith('IMDSPROXY_UPSTREAM is "http://169.254.169.254", but must be ')


def test_invalid_port_is_reported_under_its_own_name() -> None:
    told = refusal({"IMDSPROXY_PORT": "x", "IMDSPROXY_UPSTREAM": "http://localhost:8254"})
    assert told == f'IMDSPROXY_PORT is "x", but must be {PORT}'


# Sources


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


# Names


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


# Warnings

IMDS_SAYS = "IMDS allows (5 a second); it will answer 429"


@pytest.mark.parametrize(
    ("name", "text", "warning"),
    [
        ("DENY", "/metadata/identiy", "/metadata/identiy matches no known endpoint; did you mean /metadata/identity?"),
        ("ALLOW", "/metadata/versions,/metadata/scheduledevent", "did you mean /metadata/scheduledevents?"),
        ("TTL", "/metadata/instance/comptue=5", "did you mean /metadata/instance/compute?"),
        ("STALE_IF_ERROR", "/metadata/zzz=5", "/metadata/zzz matches no known endpoint; Azure documents no endpoint"),
        ("WARMUP", "/metadata/versoins?x=1", "did you mean /metadata/versions?"),
        ("DENY", "/metadata/identity/oauth2/tokens", "did you mean /metadata/identity/oauth2/token?"),
        (
            "BUDGET_REQUESTS",
            "1000",
            f"IMDSPROXY_BUDGET_REQUESTS=1000 in IMDSPROXY_BUDGET_WINDOW=1 s is more than {IMDS_SAYS}",
        ),
        ("BUDGET_REQUESTS", "6", "it will answer 429"),
        ("IDENTITY_BUDGET_REQUESTS", "21", "IMDS allows (20 a second)"),
        ("TTL", "/metadata/scheduledevents=3600", "hides a scheduled event for up to"),
        ("STALE_IF_ERROR", "/metadata/scheduledevents=60", "scheduled events that may be over"),
        ("NEGATIVE_TTL", "3600", "IMDSPROXY_NEGATIVE_TTL=3600 keeps a 400 or 404 of IMDS"),
        ("REQUIRE_METADATA_HEADER", "never", "disables IMDS's guard against request forgery"),
        ("RETRY_STATUSES", "400,410", "IMDSPROXY_RETRY_STATUSES has 400: "),
        ("CACHE_MAX_BYTES", "1", "IMDSPROXY_CACHE_MAX_BYTES=1 is too small"),
        ("ALLOW", "", "IMDSPROXY_ALLOW is empty"),
    ],
)
def test_doubtful_setting_is_warned_about(name: str, text: str, warning: str) -> None:
    [told] = load({}, {f"IMDSPROXY_{name}": text}).warnings
    assert warning in told
    assert told.startswith(f"IMDSPROXY_{name}")


def test_allowed_path_that_is_denied_is_warned_about() -> None:
    environ = {"IMDSPROXY_ALLOW": "/metadata/identity/info", "IMDSPROXY_DENY": "/metadata/identity"}
    [told] = load({}, environ).warnings
    assert told == "IMDSPROXY_ALLOW: /metadata/identity/info has no effect, because IMDSPROXY_DENY refuses it"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("BUDGET_REQUESTS", "5"),
        ("IDENTITY_BUDGET_REQUESTS", "20"),
        ("DENY", "/metadata/identity,/metadata/attested/document,/metadata/reprovisiondata"),
        ("TTL", "/metadata/instance/compute/vmid=5,/metadata/instance/newcategory=5,/metadata/scheduledevents=5"),
        ("WARMUP", "/metadata/instance?api-version=2021-02-01,/metadata/Versions/"),
        ("RETRY_STATUSES", "408,404,410"),
    ],
)
def test_sound_setting_is_not_warned_about(name: str, text: str) -> None:
    assert load({}, {f"IMDSPROXY_{name}": text}).warnings == ()


@pytest.mark.parametrize(
    ("requests", "window", "warned"),
    [
        ("300", "60", True),
        ("5", "60", False),
        ("6", "1", True),
        ("5", "0.5", True),
        ("5", "0.01", True),
        ("1", "0.2", False),
    ],
)
def test_rate_warning_depends_on_what_may_come_in_one_second(requests: str, window: str, warned: bool) -> None:
    found = load({}, {"IMDSPROXY_BUDGET_REQUESTS": requests, "IMDSPROXY_BUDGET_WINDOW": window}).warnings
    assert [IMDS_SAYS in line for line in found] == ([True] if warned else [])


def test_rate_warning_is_for_imds_alone() -> None:
    elsewhere = {"IMDSPROXY_BUDGET_REQUESTS": "1000", "IMDSPROXY_UPSTREAM": "http://127.0.0.1:9"}
    assert load({}, elsewhere).warnings == ()


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("LOG_LEVEL", "warn", "debug, info, warning or error: write warning"),
        ("PORT", '"8254"', "the quotes are part of the value; write it without them"),
        ("LOG_FORMAT", "'json'", "the quotes are part of the value; write it without them"),
        ("UDS", "unix:/run/x", "write the path alone, without unix:"),
        ("BUDGET_FILE", "unix:/run/x", "write the path alone, without unix:"),
        ("HANDOVER_FILE", "unix:/run/x", "write the path alone, without unix:"),
        ("ALLOW", "/metadata/*", '"/metadata/*" is a pattern; write a prefix, which includes everything below it'),
        ("DENY", "/metadata/{identity}", "is a pattern"),
        ("DENY", "/identity", '"/identity" is not under /metadata, and nothing else is forwarded'),
        ("ALLOW", "/metadata/versions;/metadata/instance", "has a semicolon; separate by commas"),
        ("TTL", "/metadata/instance=60;/metadata/versions=5", "has a semicolon; separate by commas"),
    ],
)
def test_common_mistake_is_reported_with_its_remedy(name: str, text: str, hint: str) -> None:
    told = refusal({f"IMDSPROXY_{name}": text})
    assert told.startswith(f"IMDSPROXY_{name} is ")
    assert hint in told


@pytest.mark.parametrize(
    "url", ["http://me:secret@a", "http://me:secret@a:80/metadata", "http://me:se cret@a", "http://:secret@a"]
)
def test_password_in_a_url_is_never_shown(url: str) -> None:
    told = refusal({"IMDSPROXY_UPSTREAM": url})
    assert "cret" not in told
    assert "it must have no user name and no password" in told


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


# The file


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


# The output of `imdsproxy config`


def test_sample_file_equals_the_printed_defaults() -> None:
    assert SAMPLE_FILE.read_text(encoding="utf-8") == settings_report.toml(Settings())


def test_sample_file_sets_exactly_the_defaults() -> None:
    loaded = load({"config_file": str(SAMPLE_FILE)}, {})
    assert loaded.settings.model_dump() == {**DEFAULTS, "config_file": str(SAMPLE_FILE)}
    unset = {name for name, source in loaded.sources.items() if source == "default"}
    assert unset == {
        "uds",
        "admin_host",
        "admin_port",
        "identity_budget_requests",
        "budget_file",
        "access_file",
        "pods_of_node",
        "handover_file",
    }


def test_toml_file_round_trips(tmp_path: Path) -> None:
    settings = Settings(
        host="::1",
        port=0,
        upstream="http://imds.example:81",
        max_wait=0.25,
        identity_budget_requests=20,
        retry_statuses=(),
        ttl={"/metadata/a=b": 1, "/metadata": 0.5},
        stale_if_error={"/metadata/x": 0},
        allow=("/metadata/instance", "/metadata/versions"),
        warmup=('/metadata/a?b="c"', "/metadata/versions"),
        log_format="json",
        access_log=True,
    )
    path = write(tmp_path, settings_report.toml(settings))
    again = load({"config_file": path}, {}).settings
    assert again.model_dump() == {**settings.model_dump(), "config_file": path}
    # The file in force is not written into the next one, which could not be read then.
    assert settings_report.toml(again) == settings_report.toml(settings)


def test_every_commented_example_would_do(tmp_path: Path) -> None:
    lines = settings_report.toml(Settings()).splitlines()
    active = "\n".join(re.sub(r'^# (identity_\w+ = |"/)', r"\1", line) for line in lines)
    loaded = load({"config_file": write(tmp_path, active)}, {})
    assert loaded.settings.identity_budget_requests == 20
    assert loaded.settings.ttl
    assert loaded.settings.stale_if_error


def test_strings_are_quoted_for_toml() -> None:
    text = 'a "b" \\ \x7f \x00 é'
    assert tomllib.loads(f"x = {settings_report._toml_value(text)}") == {"x": text}


@pytest.mark.parametrize("width", [0, 72, 80, 160])
def test_table_shows_every_setting_and_keeps_its_width(width: int) -> None:
    loaded = load(
        {"port": "9"},
        {"IMDSPROXY_TTL": "/metadata/instance=30", "IMDSPROXY_WARMUP": "/metadata/" + "x" * 300},
    )
    text = settings_report.table(loaded, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= max(width, 72)
    starts = [line.split()[0] for line in lines if line.startswith("IMDSPROXY_")]
    assert starts == [environment_name(name) for name in Settings.model_fields]
    assert re.search(r"^IMDSPROXY_PORT +9 +flag --port$", text, re.MULTILINE)
    assert re.search(r"^IMDSPROXY_TTL +/metadata/inst", text, re.MULTILINE)
    assert re.search(r"^IMDSPROXY_TTL .* environment$", text, re.MULTILINE)
    assert re.search(r"^IMDSPROXY_CONFIG_FILE +unset +default$", text, re.MULTILINE)
    assert re.search(r"^IMDSPROXY_DENY +empty +default$", text, re.MULTILINE)


def test_markdown_table_has_a_row_for_every_setting() -> None:
    rows = settings_report.markdown().splitlines()[2:]
    assert len(rows) == len(Settings.model_fields)
    assert all(len(re.split(r"(?<!\\)\|", row)) == 5 for row in rows)
    assert "| `IMDSPROXY_PORT` | `8254` | TCP port " in rows[1]
    assert "| `IMDSPROXY_DENY` | empty | " in "".join(rows)


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_explained(name: str) -> None:
    description = Settings.model_fields[name].description or ""
    assert len(description) > 20
    assert description.endswith(".")
    # It is printed to consoles of any encoding.
    assert description.isascii()
    assert form(name).placeholder
    assert flag_name(name) == "--" + name.replace("_", "-")


def test_loaded_has_settings_and_sources() -> None:
    loaded = load({}, {})
    assert isinstance(loaded, Loaded)
    assert set(loaded.sources.values()) == {"default"}
