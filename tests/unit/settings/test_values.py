"""Valid and invalid values of single settings, and the messages about them."""

from __future__ import annotations

import re

import pytest

from imdsproxy.settings.model import environment_name
from tests.unit.settings.kit import MAP, PORT, SECONDS, UPSTREAM, one, refusal


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


COUNT = "a whole number from 1 to 100000"
ABOVE_ZERO = "a number of seconds above 0, at most 31536000"
PATHS = "path prefixes such as /metadata/instance, separated by commas, or a JSON array"
RANGES = "address ranges such as 10.244.3.0/24, separated by commas, or a JSON array"
ALONE = "address alone"
HOSTS = "host names without scheme, port or wildcard, separated by commas, or a JSON array"
STATUSES = "HTTP statuses from 400 to 599, separated by commas, or a JSON array"
TARGETS = "targets under /metadata/, separated by commas, or a JSON array"
NODE_NAME = "the name of a Kubernetes node: labels of a-z, 0-9 and -, separated by dots"
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
