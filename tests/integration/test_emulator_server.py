"""The emulator on real loopback sockets, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import importlib.util
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from imdsproxy.emulator import Arrival, Emulator, EmulatorServer, Fault, run_in_thread
from imdsproxy.emulator.cli import main
from imdsproxy.emulator.messages import json_answer
from imdsproxy.emulator.protocol import LINGER
from imdsproxy.emulator.server import serving
from imdsproxy.emulator.vm.presets import TENANT
from tests.kit import wait_until
from tests.targets import EVENTS, INSTANCE, TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator

METADATA = {"Metadata": "true"}


@contextlib.contextmanager
def connected(server: EmulatorServer) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        yield connection
    finally:
        connection.close()


def ask(
    server: EmulatorServer,
    target: str,
    method: str = "GET",
    body: Any = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, http.client.HTTPMessage, bytes]:
    with connected(server) as connection:
        content = None if body is None else json.dumps(body).encode()
        connection.request(method, target, content, METADATA if headers is None else headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def raw(server: EmulatorServer, data: bytes, timeout: float = 5) -> bytes:
    """Send bytes and return everything that comes until the end of the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout) as connection:
        connection.sendall(data)
        parts = []
        while part := connection.recv(65_536):
            parts.append(part)
        return b"".join(parts)


class TestAnswers:
    def test_answer_has_the_headers_of_imds(self, fresh_imds: EmulatorServer) -> None:
        status, headers, body = ask(fresh_imds, INSTANCE)
        assert status == 200
        assert headers["server"] == "IMDS/150.870.65.1854"
        assert headers["content-type"] == "application/json; charset=utf-8"
        assert headers["content-length"] == str(len(body))
        assert headers["date"].endswith(" GMT")
        assert len(headers["x-ms-request-id"]) == 36
        assert headers["x-ms-request-id"] != ask(fresh_imds, INSTANCE)[1]["x-ms-request-id"]

    def test_empty_value_is_an_empty_body(self, fresh_imds: EmulatorServer) -> None:
        target = "/metadata/instance/compute/zone?api-version=2021-02-01&format=text"
        status, headers, body = ask(fresh_imds, target)
        assert (status, body, headers["content-length"]) == (200, b"", "0")
        assert headers["content-type"] == "text/plain; charset=utf-8"

    def test_connection_stays_open(self, fresh_imds: EmulatorServer) -> None:
        with connected(fresh_imds) as connection:
            for target in (INSTANCE, TOKEN, EVENTS, "/nothing"):
                connection.request("GET", target, headers=METADATA)
                connection.getresponse().read()
                assert connection.sock is not None

    def test_pipelined_and_split_requests_are_answered(self, fresh_imds: EmulatorServer) -> None:
        one = f"GET {INSTANCE} HTTP/1.1\r\nHost: x\r\nMetadata: true\r\n\r\n"
        last = one.replace("Metadata", "Connection: close\r\nMetadata")
        assert raw(fresh_imds, (one + one + last).encode()).count(b"HTTP/1.1 200 OK") == 3

    def test_head_is_not_allowed(self, fresh_imds: EmulatorServer) -> None:
        status, headers, body = ask(fresh_imds, INSTANCE, "HEAD")
        assert (status, headers["allow"], body) == (405, "GET", b"")

    def test_absolute_form_is_recorded_as_sent(self, fresh_imds: EmulatorServer) -> None:
        target = f"http://169.254.169.254{INSTANCE}"
        request = f"GET {target} HTTP/1.1\r\nHost: x\r\nMetadata: true\r\nConnection: close\r\n\r\n"
        assert raw(fresh_imds, request.encode()).startswith(b"HTTP/1.1 200 OK\r\n")
        assert fresh_imds.emulator.arrivals[0].target == target.encode()

    def test_event_is_acknowledged(self, fresh_imds: EmulatorServer) -> None:
        event_id = fresh_imds.emulator.events.add("Redeploy")
        body = {"StartRequests": [{"EventId": event_id}]}
        assert ask(fresh_imds, EVENTS, "POST", body)[::2] == (200, b"")
        assert json.loads(ask(fresh_imds, EVENTS)[2])["Events"][0]["EventStatus"] == "Started"
        assert ask(fresh_imds, EVENTS, "POST", {})[0] == 400

    def test_large_body_in_parts(self, fresh_imds: EmulatorServer) -> None:
        body = {"StartRequests": [], "filling": "x" * 1_000_000}
        assert ask(fresh_imds, EVENTS, "POST", body)[0] == 200

    def test_instance_document_can_be_changed(self, fresh_imds: EmulatorServer) -> None:
        fresh_imds.emulator.instance["compute"]["tags"] = "a:b"
        assert b'"tags":"a:b"' in ask(fresh_imds, INSTANCE)[2]
        fresh_imds.emulator.instance = {"compute": {"tags": "c:d"}}
        assert ask(fresh_imds, INSTANCE)[2] == b'{"compute":{"tags":"c:d"}}'
        assert fresh_imds.emulator.instance == {"compute": {"tags": "c:d"}}

    def test_parameters_change_the_machine(self) -> None:
        extra = {"identity/getplatformmetadata": json_answer({"clientId": "c"})}
        emulator = Emulator(
            instance={"compute": {"name": "other"}, "network": {}},
            identities=(),
            load_balancer=False,
            extra=extra,
        )
        with run_in_thread(emulator) as fresh_imds:
            assert ask(fresh_imds, INSTANCE)[2] == b'{"compute":{"name":"other"},"network":{}}'
            assert b"Identity not found" in ask(fresh_imds, TOKEN)[2]
            assert ask(fresh_imds, "/metadata/loadbalancer?api-version=2021-02-01")[0] == 404
            assert ask(fresh_imds, "/metadata/identity/getplatformmetadata")[2] == b'{"clientId":"c"}'


class TestLimits:
    def test_sixth_request_in_a_second_is_429(self) -> None:
        moments = iter([0.0, 0.1, 0.2, 0.3, 0.4, 0.999, 1.0, 1.05])
        with run_in_thread(Emulator(monotonic=lambda: next(moments))) as fresh_imds:
            answers = [ask(fresh_imds, "/metadata/versions") for _ in range(8)]
            assert [status for status, _, _ in answers] == [200, 200, 200, 200, 200, 429, 200, 429]
            assert answers[5][2] == b'{"error":"Too many requests"}'
            assert "retry-after" not in answers[5][1]

    def test_identity_429_has_its_own_wording(self) -> None:
        with run_in_thread(Emulator(identity_rate=1, monotonic=lambda: 0.0)) as fresh_imds:
            assert ask(fresh_imds, TOKEN)[0] == 200
            assert ask(fresh_imds, TOKEN)[2] == (
                b'{"error":"invalid_request","error_description":"Temporarily throttled, too many requests"}'
            )
            assert ask(fresh_imds, "/metadata/versions")[0] == 200

    def test_sixth_concurrent_identity_request_is_429(self) -> None:
        emulator = Emulator(identity_rate=0)
        emulator.faults.add(Fault(hang=True, times=5))
        with run_in_thread(emulator) as fresh_imds, contextlib.ExitStack() as stack:
            hanging = [stack.enter_context(connected(fresh_imds)) for _ in range(5)]
            for connection in hanging:
                connection.request("GET", TOKEN, headers=METADATA)
            wait_until(lambda: len(emulator.arrivals) == 5)
            assert ask(fresh_imds, TOKEN)[0] == 429
            hanging[0].close()
            wait_until(lambda: emulator.limits.identities_in_flight < 5)
            assert ask(fresh_imds, TOKEN)[0] == 200

    def test_refused_request_uses_up_no_fault(self) -> None:
        emulator = Emulator(rate=1, monotonic=lambda: 0.0)
        with run_in_thread(emulator) as fresh_imds:
            assert ask(fresh_imds, INSTANCE)[0] == 200
            emulator.faults.add(Fault(status=410, times=1))
            assert ask(fresh_imds, INSTANCE)[0] == 429
            assert len(emulator.faults) == 1


class TestFaults:
    def test_status_fault_replaces_the_answer(self, fresh_imds: EmulatorServer) -> None:
        fresh_imds.emulator.faults.add(Fault(status=429, retry_after="3", times=1), Fault(status=304, times=1))
        status, headers, _ = ask(fresh_imds, TOKEN)
        assert (status, headers["retry-after"]) == (429, "3")
        status, headers, body = ask(fresh_imds, INSTANCE)
        assert (status, body, headers["content-type"]) == (304, b"", None)
        assert ask(fresh_imds, INSTANCE)[0] == 200

    def test_latency_delays_the_answer(self, fresh_imds: EmulatorServer) -> None:
        fresh_imds.emulator.faults.add(Fault(latency=0.1), Fault(latency=0.1, path="/metadata/instance"))
        began = time.monotonic()
        assert ask(fresh_imds, INSTANCE)[0] == 200
        assert 0.2 <= time.monotonic() - began < 3

    def test_latency_ends_when_the_client_disconnects(self) -> None:
        emulator = Emulator(latency=60)
        with run_in_thread(emulator) as fresh_imds, connected(fresh_imds) as connection:
            connection.request("GET", TOKEN, headers=METADATA)
            wait_until(lambda: emulator.limits.identities_in_flight == 1)
            connection.close()
            wait_until(lambda: emulator.limits.identities_in_flight == 0)
            assert emulator.arrivals[0].status is None

    def test_first_request_for_events_waits(self) -> None:
        with run_in_thread(Emulator(enable_delay=0.1)) as fresh_imds:
            began = time.monotonic()
            assert ask(fresh_imds, EVENTS)[0] == 200
            assert time.monotonic() - began >= 0.1

    def test_hang_never_answers(self, fresh_imds: EmulatorServer) -> None:
        fresh_imds.emulator.faults.add(Fault(hang=True, times=1))
        with pytest.raises(TimeoutError):
            raw(fresh_imds, f"GET {INSTANCE} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), timeout=0.2)
        assert fresh_imds.emulator.arrivals[0].status is None

    def test_reset_resets_the_connection(self, fresh_imds: EmulatorServer) -> None:
        fresh_imds.emulator.faults.add(Fault(reset=True, times=1))
        with pytest.raises(ConnectionResetError):
            ask(fresh_imds, INSTANCE)
        assert ask(fresh_imds, INSTANCE)[0] == 200

    @pytest.mark.parametrize("target", [INSTANCE, TOKEN, "/nothing"])
    def test_truncate_sends_a_part_of_the_body(self, fresh_imds: EmulatorServer, target: str) -> None:
        whole = ask(fresh_imds, target)[2]
        fresh_imds.emulator.faults.add(Fault(truncate=True, times=1))
        with pytest.raises(http.client.IncompleteRead) as caught:
            ask(fresh_imds, target)
        # Tokens of another second differ in a digit; their length does not.
        assert len(caught.value.partial) == len(whole) // 2
        assert caught.value.expected == len(whole) - len(whole) // 2

    def test_truncate_of_an_empty_body_announces_one_byte(self, fresh_imds: EmulatorServer) -> None:
        fresh_imds.emulator.faults.add(Fault(truncate=True, times=1))
        with pytest.raises(http.client.IncompleteRead) as caught:
            ask(fresh_imds, "/metadata/instance/compute/zone?api-version=2021-02-01&format=text")
        assert (caught.value.partial, caught.value.expected) == (b"", 1)

    def test_garbage_is_not_http(self, fresh_imds: EmulatorServer) -> None:
        fresh_imds.emulator.faults.add(Fault(garbage=True, times=1))
        with pytest.raises(http.client.BadStatusLine):
            ask(fresh_imds, INSTANCE)
        assert [arrival.status for arrival in fresh_imds.emulator.arrivals] == [None]

    def test_fault_applies_to_a_post(self, fresh_imds: EmulatorServer) -> None:
        fresh_imds.emulator.faults.add(Fault(reset=True))
        with pytest.raises(ConnectionResetError):
            ask(fresh_imds, EVENTS, "POST", {"StartRequests": []})

    def test_breakage_comes_after_the_latency(self, fresh_imds: EmulatorServer) -> None:
        fresh_imds.emulator.faults.add(Fault(reset=True, latency=0.1))
        began = time.monotonic()
        with pytest.raises(ConnectionResetError):
            ask(fresh_imds, INSTANCE)
        assert time.monotonic() - began >= 0.1


class TestRecord:
    def test_arrivals_are_recorded(self, fresh_imds: EmulatorServer) -> None:
        before = time.monotonic()
        ask(fresh_imds, INSTANCE, headers={"Metadata": "True", "X-A": "b"})
        ask(fresh_imds, "/nothing%20here?a=%2f", "PUT")
        first, second = fresh_imds.emulator.arrivals
        assert isinstance(first, Arrival)
        assert before <= first.at <= second.at <= time.monotonic()
        assert (first.method, first.target, first.status) == ("GET", INSTANCE.encode(), 200)
        assert (b"metadata", b"True") in first.headers
        assert (b"x-a", b"b") in first.headers
        assert (second.method, second.target, second.status) == ("PUT", b"/nothing%20here?a=%2f", 404)

    def test_control_requests_are_not_arrivals(self, fresh_imds: EmulatorServer) -> None:
        ask(fresh_imds, INSTANCE)
        listed = json.loads(ask(fresh_imds, "/-/arrivals", headers={})[2])
        assert [(entry["target"], entry["status"]) for entry in listed] == [(INSTANCE, 200)]
        assert ask(fresh_imds, "/-/arrivals?since=1", headers={})[2] == b"[]"
        assert ask(fresh_imds, "/-/faults", "POST", {"status": 410, "times": 1}, headers={})[0] == 200
        assert ask(fresh_imds, "/-/healthy", headers={})[0] == 200
        assert ask(fresh_imds, INSTANCE)[0] == 410
        assert ask(fresh_imds, "/-/reset", "POST", headers={})[0] == 200
        assert fresh_imds.emulator.arrivals == []


class TestThread:
    def test_defaults_listen_on_loopback(self) -> None:
        with run_in_thread() as fresh_imds:
            assert fresh_imds.url == f"http://127.0.0.1:{fresh_imds.port}"
            assert [ask(fresh_imds, "/metadata/versions")[0] for _ in range(6)] == [200] * 5 + [429]

    @pytest.mark.parametrize(
        ("host", "url"),
        [("::1", "http://[::1]:80"), ("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80")],
    )
    def test_url_is_usable_for_any_address(self, host: str, url: str) -> None:
        assert EmulatorServer(host, 80, Emulator()).url == url

    def test_emulator_stops_at_once_during_any_request(self) -> None:
        emulator = Emulator(latency=0)
        emulator.faults.add(Fault(hang=True, times=1), Fault(latency=60))
        with contextlib.ExitStack() as stack:
            with run_in_thread(emulator) as fresh_imds:
                for _ in range(2):
                    stack.enter_context(connected(fresh_imds)).request("GET", INSTANCE, headers=METADATA)
                stack.enter_context(socket.create_connection(("127.0.0.1", fresh_imds.port)))
                wait_until(lambda: len(emulator.arrivals) == 2)
                began = time.monotonic()
            assert time.monotonic() - began < 5, "the slow request would take a minute"
        assert not [thread for thread in threading.enumerate() if thread.name == "imds-emulator"]
        with pytest.raises(ConnectionRefusedError):
            ask(fresh_imds, INSTANCE)

    def test_taken_port(self, fresh_imds: EmulatorServer) -> None:
        with pytest.raises(OSError, match=str(fresh_imds.port)), run_in_thread(port=fresh_imds.port):
            pass

    def test_error_in_the_block_propagates(self) -> None:
        with pytest.raises(ZeroDivisionError), run_in_thread():
            raise ZeroDivisionError

    def test_serving_runs_in_a_running_loop(self) -> None:
        async def run() -> bytes:
            async with serving(Emulator()) as server:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                request = b"GET /-/healthy HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
                writer.write(request)
                data = await reader.read()
                writer.close()
                await writer.wait_closed()
                return data

        assert asyncio.run(run()).endswith(b'{"status":"healthy"}')

    def test_missing_cryptography_is_logged_once(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
        with run_in_thread() as fresh_imds:
            body = ask(fresh_imds, "/metadata/attested/document?api-version=2021-02-01")[2]
        assert b"MIIEEgYJKoZIhvcNAQcCoIIEAzCC" in body
        assert [record.getMessage() for record in caplog.records if "requirements/emulator.txt" in record.message]
        assert len(caplog.records) == 1

    def test_garbage_from_a_client_ends_its_connection_only(self, fresh_imds: EmulatorServer) -> None:
        assert raw(fresh_imds, b"\x00\x01\x02\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        with socket.create_connection(("127.0.0.1", fresh_imds.port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        assert ask(fresh_imds, INSTANCE)[0] == 200


@contextlib.contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    run = [sys.executable, "-m", "imdsproxy.emulator", *arguments]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send these signals to one process")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_serves_and_prints_its_address(number: signal.Signals) -> None:
    with command("--port", "0", "--fault", "status=410,times=1", "--rate", "0", "--token-life", "60") as process:
        line = first_line(process)
        assert line.startswith("emulator: http://127.0.0.1:")
        server = EmulatorServer("127.0.0.1", int(line.rpartition(":")[2]), Emulator())
        assert first_line(process) == f'try: curl -H Metadata:true "{server.url}{INSTANCE}"'
        if importlib.util.find_spec("cryptography"):
            assert first_line(process) == f"tokens: {server.url}/{TENANT}/.well-known/openid-configuration"
            assert first_line(process) == f"root certificate: {server.url}/-/ca.pem"
        assert ask(server, INSTANCE)[0] == 410
        assert json.loads(ask(server, TOKEN)[2])["expires_in"] == "60"
        with connected(server) as connection:
            connection.request("GET", INSTANCE, headers=METADATA)
            connection.getresponse().read()
            process.send_signal(number)
            out, err = process.communicate(timeout=5)
        assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.process
@pytest.mark.any_python
def test_command_answers_as_the_described_machine(tmp_path: Path) -> None:
    file = tmp_path / "vm.toml"
    file.write_text('preset = "windows"\n[compute]\nlocation = "norwayeast"\nzone = 2\n', encoding="utf-8")
    with command(
        "--port", "0", "--vm", str(file), "--set", "compute.zone=3", "--set", "identities=none", "--strict"
    ) as process:
        server = EmulatorServer("127.0.0.1", int(first_line(process).rpartition(":")[2]), Emulator())
        compute = json.loads(ask(server, "/metadata/instance/compute?api-version=2020-09-01")[2])
        assert (compute["offer"], compute["location"], compute["zone"]) == ("Windows", "norwayeast", "3")
        assert json.loads(ask(server, TOKEN)[2])["error_description"] == "Identity not found"
        assert ask(server, "/metadata/./instance?api-version=2020-09-01")[0] == 404


def test_command_reports_a_taken_port(fresh_imds: EmulatorServer, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert main(["--port", str(fresh_imds.port), "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert f"cannot listen at 127.0.0.1, port {fresh_imds.port}: address already in use; choose another --host" in err
    assert signal.getsignal(signal.SIGTERM) == before


def no_signal_handlers(*_arguments: object) -> None:
    raise NotImplementedError


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send a signal to one thread")
@pytest.mark.parametrize("loop_has_signal_handlers", [True, False])
def test_command_runs_in_this_process_until_a_signal(
    loop_has_signal_handlers: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not loop_has_signal_handlers:
        monkeypatch.setattr(asyncio.SelectorEventLoop, "add_signal_handler", no_signal_handlers)
    before = signal.getsignal(signal.SIGTERM)
    main_thread = threading.main_thread().ident
    assert main_thread is not None

    def end() -> None:
        wait_until(lambda: signal.getsignal(signal.SIGTERM) != before)
        signal.pthread_kill(main_thread, signal.SIGTERM)

    thread = threading.Thread(target=end)
    thread.start()
    try:
        assert main(["--port", "0", "--quiet"]) == 0
    finally:
        thread.join()
    assert capsys.readouterr().out.startswith("emulator: http://127.0.0.1:")
    assert signal.getsignal(signal.SIGTERM) == before


def test_connection_during_shutdown_is_closed() -> None:
    """Left open, such a connection would be found by the garbage collector in the middle of some other test."""
    for _ in range(10):
        held: list[socket.socket] = []
        with contextlib.ExitStack() as stack:
            with run_in_thread(Emulator()) as fresh_imds:

                def crowd(host: str = fresh_imds.host, port: int = fresh_imds.port) -> None:
                    with contextlib.suppress(OSError):
                        while len(held) < 40:  # noqa: B023  # used up before the next round
                            held.append(socket.create_connection((host, port), timeout=1))  # noqa: B023

                thread = threading.Thread(target=crowd)
                thread.start()
            thread.join()
            for connection in held:
                stack.callback(connection.close)
        gc.collect()  # an unclosed socket is a warning, and a warning is an error
