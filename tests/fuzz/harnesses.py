"""What is read from clients, from IMDS and from files, each as a function of bytes that fails if it is read wrongly.

A harness accepts every input. Bytes that the proxy refuses by its own kind of error are read rightly; any other
exception, and each broken rule that an assertion states, is a fault.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from imdsproxy.access.document import AccessFileError
from imdsproxy.access.file import read_rules
from imdsproxy.access.query import read_query
from imdsproxy.access.subject import Names
from imdsproxy.budget import shared_record
from imdsproxy.cache.access_token import read_token
from imdsproxy.errors import SettingsError
from imdsproxy.policy.policy import Policy
from imdsproxy.protocol.accepted_hosts import AcceptedHosts
from imdsproxy.protocol.cache_status import proxy_detail
from imdsproxy.protocol.messages import Refusal, Request, Response, Target
from imdsproxy.protocol.request_parser import read
from imdsproxy.protocol.target import read_target
from imdsproxy.settings.load import load
from imdsproxy.settings.model import PREFIX
from imdsproxy.settings.report import env, toml
from tests.property.test_fast_path import HITS, OTHERS, WISHES, House, Pass, Send, compare
from tests.targets import INSTANCE, TOKEN

BOOT = bytes(range(16))
NOW = 1_000.0
_HOSTS = AcceptedHosts(instance="0123456789abcdef")
_POLICY = Policy()
_ALIKE = b"/metadata/instance?api-version=2021-02-01"


class Harness(NamedTuple):
    """A function of bytes, and inputs to begin with."""

    run: Callable[[bytes], None]
    seeds: Sequence[bytes]


def read_a_target(data: bytes) -> None:
    """Show that a target has one reading, that IMDS gets nothing else, and that rules and cache agree about it."""
    target = read_target(data)
    if isinstance(target, Refusal):
        assert 400 <= target.status < 500
        return
    assert not any(byte <= 0x20 or byte >= 0x7F or byte in b'\\#"<>' for byte in target.raw), target.raw
    assert all(segment not in {"", ".", ".."} and not set(segment) & set("/\\") for segment in target.segments)
    names = [name for name, _ in target.parameters]
    assert len(names) == len(set(names))
    again = read_target(target.raw)
    assert isinstance(again, Target), again
    assert (again.raw, again.segments, again.parameters) == (target.raw, target.segments, target.parameters)
    assert again.key == target.key or target.authority is not None
    for method in ("GET", "POST"):
        read_query(method, target)
        decision = _POLICY.decide(Request(method, target, metadata=True))
        assert decision == _POLICY.decide(Request(method, again, metadata=True))


def read_a_request(data: bytes) -> None:
    """Show that lines of fields are read or refused, and that what the guard needs is never overlooked."""
    first, *lines = data.split(b"\n")
    fields = tuple((name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines) if name)
    for method in ("GET", "POST"):
        found = read(method, first, fields, _HOSTS)
        if isinstance(found, Refusal):
            continue
        names = [name for name, _ in fields]
        assert b"x-forwarded-for" not in names
        assert b"origin" not in names
        assert names.count(b"host") == 1
        values = [value.lower() for name, value in fields if name == b"metadata"]
        assert not found.metadata or values == [b"true"]


def answer_a_connection(data: bytes) -> None:
    """Show that bytes get the same answer whole and byte by byte, and with the fast path as without it."""
    data = data[:4_000]
    half = len(data) // 2
    compare(House(access_log=False), [Send(0, (data,)), Pass(0.5), Send(1, (data[:half], data[half:])), Pass(80.0)])


def read_a_cache_status(data: bytes) -> None:
    """Show that nothing is taken for an imdsproxy but a last member of that name."""
    detail = proxy_detail(Response(508, ((b"cache-status", data),), b""))
    if detail is not None:
        assert data.rpartition(b",")[2].split(b";")[0].strip() == b"imdsproxy"
        assert detail.encode("latin-1") in data


def read_a_token(data: bytes) -> None:
    """Show that a token's body keeps every byte but its figures, and never gains life."""
    token = read_token(data)
    if token is None:
        return
    assert token.aged(0.0) == data or b'"0' in data  # a figure with leading zeros loses them
    whole = json.loads(data)
    for seconds in (0.0, 0.4, 1.0, 299.5, 1e6, math.inf):
        document = json.loads(token.aged(seconds))
        assert document.keys() == whole.keys()
        assert document["access_token"] == whole["access_token"]
        assert 0 <= int(document["expires_in"]) <= max(0.0, int(whole["expires_in"]) - seconds)


def read_a_budget_file(data: bytes) -> None:
    """Show that a record is refused, or is one that a proxy can have written and would write in the same way."""
    with contextlib.suppress(shared_record.UnknownVersionError):
        shared_record.read_header(data, BOOT, NOW)
    for section in (0, 1):
        record = shared_record.read(data, section, NOW)
        if record is None:
            continue
        state = record.state
        assert 1 <= state.requests <= shared_record.MOST_PERMITS
        assert 0 < state.window <= shared_record.LONGEST_LEASE
        assert all(when <= NOW + shared_record.LONGEST_LEASE + 1 for when in state.rests_from)
        begin, again = shared_record.write(state, section, record.number, record.settings)
        assert shared_record.read(data[:begin] + again + data[begin + len(again) :], section, NOW) == record


def read_an_access_file(data: bytes) -> None:
    """Show that rules are read, or refused with a line, and that rules read can be resolved."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    for name in ("access.toml", "access.json"):
        try:
            rules = read_rules(text, name)
        except AccessFileError as error:
            _check_lines(error, most=1)
            continue
        rules.resolved(Names({"root": 0}, {"root": 0}))


def read_settings(data: bytes) -> None:
    """Show that settings are refused line by line, or mean the same when they are written out and read again."""
    lines = data.decode("latin-1").replace("\0", "").split("\n")
    pairs = [line.partition("=") for line in lines if "=" in line]
    environ = {PREFIX + name: value for name, _, value in pairs if name != "CONFIG_FILE"}
    try:
        loaded = load({}, environ)
    except SettingsError as error:
        _check_lines(error)
        return
    for warning in loaded.warnings:
        assert warning.isprintable(), warning
    toml(loaded.settings)
    again = dict(line.split("=", 1) for line in env(loaded.settings).splitlines() if line and not line.startswith("#"))
    assert again.keys() >= {PREFIX + name for name, _, _ in pairs if PREFIX + name in again}


def _check_lines(error: Exception, most: float = math.inf) -> None:
    """Check that an error can be shown to a person, in lines."""
    lines = str(error).split("\n")
    assert len(lines) <= most, lines
    assert all(line.isprintable() for line in lines), lines


def _budget_file() -> bytes:
    header = shared_record.empty(shared_record.Header(BOOT, 1.0, 1.0))
    begin, record = shared_record.write(shared_record.begun(5, 1.0, 1.0), 0, 1, ((5, 1.0), *(None,) * 15))
    return header[:begin] + record + header[begin + len(record) :]


_ACCESS = b"""default = "deny"
[[rule]]
name = "web"
user = ["root", 33]
allow = ["/metadata/instance"]
[[rule.token]]
identity = "client_id=x"
resource = "https://vault.azure.net"
"""

_PROFILE = {
    "mode": "enforce",
    "defaultAccess": "deny",
    "rules": {
        "privileges": [{"name": "p", "path": "/metadata"}],
        "roles": [{"name": "r", "privileges": ["p"]}],
        "identities": [{"name": "i", "userName": "root"}],
        "roleAssignments": [{"role": "r", "identities": ["i"]}],
    },
}

HARNESSES = {
    "target": Harness(
        read_a_target,
        (
            _ALIKE,
            TOKEN.encode(),
            b"http://169.254.169.254" + _ALIKE,
            b"//metadata/%69nstance/?format=text&api-version=2021-02-01",
            rb"/metadata/identity\oauth2\token",
            b"/metadata/instance/../identity?x=%2C;+%20&bypass_cache=true",
        ),
    ),
    "request": Harness(
        read_a_request,
        (
            _ALIKE + b"\nHost: localhost\nMetadata: true",
            TOKEN.encode() + b"\nhost: 169.254.169.254\nMETADATA: True\nX-Forwarded-For: 1",
            _ALIKE + b"\nHost: [::1]:8254\nOrigin: null\nSec-Fetch-Site: none\nCache-Control: no-cache",
        ),
    ),
    "connection": Harness(answer_a_connection, (*HITS[:10], *WISHES[:4], *(one for one in OTHERS if len(one) < 4_000))),
    "cache-status": Harness(
        read_a_cache_status, (b"imdsproxy; detail=loop", b"other;hit, imdsproxy ; x=1; detail=ending", b"a,b")
    ),
    "token": Harness(
        read_a_token,
        (
            b'{"access_token":"t","expires_in":"86399","expires_on":"1","refresh_in":"43199","token_type":"Bearer"}',
            b'{"access_token":"t","expires_in": 300 ,"ext_expires_in":"0300"}',
            rb'{"access_token":"\"expires_in\":\"1\",","expires_in":"900"}',
        ),
    ),
    "budget-file": Harness(read_a_budget_file, (_budget_file(),)),
    "access-file": Harness(
        read_an_access_file,
        (
            _ACCESS,
            json.dumps({"default": "allow", "rule": [{"name": "a", "anyone": True, "deny": "/metadata"}]}).encode(),
            json.dumps(_PROFILE).encode(),
        ),
    ),
    "settings": Harness(
        read_settings,
        (
            b"PORT=0\nUPSTREAM=http://127.0.0.1:9\nTTL=/metadata/instance=5\nALLOW=/metadata",
            b"HOST=::1\nUDS=/run/x.sock\nBUDGET_REQUESTS=5\nBUDGET_WINDOW=1.5\nRETRY_STATUSES=410,500",
            b'WARMUP=["'
            + INSTANCE.encode()
            + b'"]\nCLIENTS=10.0.0.0/8\nLOG_FORMAT=json\nUNKNOWN_SETTINGS=warn\nPROT=1',
        ),
    ),
}
