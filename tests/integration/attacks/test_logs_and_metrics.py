"""Logs and metrics under hostile requests: bounded labels, no token, no forged line."""

from __future__ import annotations

import json

import pytest

from imdsproxy.emulator import EmulatorServer
from tests.integration.attacks.kit import (
    CLOSE,
    HOST,
    LOG_LINE,
    TOKEN_MARK,
    Starter,
    assert_refused,
    check_labels,
    converse,
    nothing_arrives,
    request,
    until_closed,
)
from tests.kit import ProxyProcess, get, wait_for_log
from tests.targets import INSTANCE, TOKEN

pytestmark = [pytest.mark.any_python, pytest.mark.process]


@pytest.mark.attack(13)
def test_metric_labels_are_bounded_for_any_request(proxy: ProxyProcess) -> None:
    for number in range(30):
        sent = request(b"/metadata/x%d" % number, HOST) + request(b"/metadata/instance/y%d" % number, HOST)
        converse(proxy.port, sent + request(b"/z%d" % number, HOST) + request(b"/", b"Host: h%d\r\n" % number), 4)
    check_labels(proxy)


@pytest.mark.attack(13)
def test_no_page_shows_a_token_or_changes_anything(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    token = json.loads(get(proxy.port, TOKEN).body)["access_token"]
    with nothing_arrives(imds):
        for path in (
            "/-/healthy",
            "/-/ready",
            "/-/metrics",
            "/-/status",
            "/-/status.json",
            "/-/METRICS",
            "/-/metrics/",
        ):
            answer = get(proxy.port, path + "?x=%3Cscript%3Einjected", {})
            assert token not in answer.body.decode()
            if "status" not in path and "metrics" not in path.lower():  # they name a token by its audience
                assert "vault.azure.net" not in answer.body.decode()
            assert b"2018-02-01&" not in answer.body
            assert b"injected" not in answer.body
            (answer,) = converse(proxy.port, request(path.encode(), HOST, method=b"POST"))
            assert_refused(answer, 405, "method")
        assert "; hit" in get(proxy.port, TOKEN).headers["cache-status"]


@pytest.mark.attack(13)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_client_bytes_cannot_forge_a_log_line(imds: EmulatorServer, start: Starter, log_format: str) -> None:
    with start(imds.url, log_format=log_format) as process:
        answers = [get(process.port, TOKEN), get(process.port, TOKEN)]
        token = json.loads(answers[0].body)["access_token"]
        for target in (
            *(
                b"/metadata/%0d%0a2026-01-01T00:00:00.000Z%20info%20forged",
                b"/metadata/\x1b[31m",
                b"/metadata/\xe2\x80\xa8forged",
            ),
            *(
                b"/metadata/x?access_token=" + token.encode(),
                b"/x" * 3000,
                b'/metadata/"} forged=1 x="',
                b"http://a\\n/\r/",
            ),
        ):
            until_closed(process.port, request(target, HOST, b"X: \xff\r\n", CLOSE))
    lines = process.log.splitlines()
    assert token not in process.log
    assert TOKEN_MARK not in process.log
    assert len(lines) > 6
    for line in lines:
        assert len(line) < 1000
        if log_format == "json":
            assert {"time", "level", "logger", "message"} <= set(json.loads(line))
        else:
            assert LOG_LINE.match(line)
            assert line.isprintable()


@pytest.mark.attack(13)
def test_malformed_request_is_counted_and_logged(proxy: ProxyProcess) -> None:
    before, seen = proxy.metric("imdsproxy_requests_total"), len(proxy.log)
    until_closed(proxy.port, request(INSTANCE.encode(), HOST, method=b"FOO"))
    until_closed(proxy.port, b"\x00\xff\r\n\r\n")
    assert proxy.metric("imdsproxy_requests_total") == before + 2
    wait_for_log(proxy, "status=405 outcome=refused detail=method", after=seen)
    wait_for_log(proxy, "status=400 outcome=refused detail=malformed", after=seen)
