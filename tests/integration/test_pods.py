"""The pods of a node, watched at a small API server over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from lightkube import KubeConfig
from lightkube.config.models import Cluster, User

from imdsproxy.app import create_app
from imdsproxy.clock import SystemClock
from imdsproxy.config import Config
from imdsproxy.emulator import EmulatorServer
from imdsproxy.errors import SettingsError
from imdsproxy.ops.pod_troubles import PodTroubleLog
from imdsproxy.peers import kubernetes, pod_watch
from imdsproxy.peers.kubernetes import KubernetesPods, pods_of
from imdsproxy.peers.pod_watch import PodWatch, pause_after
from imdsproxy.peers.pods import HELD_FOR, MOST_PODS, PodTable
from imdsproxy.protocol.address import Address
from imdsproxy.protocol.peer import Pod
from imdsproxy.server.application import Application
from imdsproxy.testing.clock import FakeClock
from tests.api_server import NODE, ApiServer, begin, body, chunk, drop, pod, refusal, running, status
from tests.kit import METADATA
from tests.targets import INSTANCE, TOKEN

PATIENCE = 20.0


def plain(server: ApiServer) -> KubeConfig:
    """Return the configuration for a server without TLS."""
    return KubeConfig.from_one(cluster=Cluster(server=server.url), user=User(token="any"))


class Pauses:
    """Stands in for the pauses between tries: notes them, and does not wait."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def watching(server: ApiServer, clock: FakeClock | None = None) -> AsyncIterator[tuple[PodTable, Pauses]]:
    table, pauses, used = PodTable(NODE), Pauses(), clock or SystemClock()
    api = KubernetesPods(NODE, plain(server))
    watch = PodWatch(table, api, used, PodTroubleLog(used, NODE, HELD_FOR), pauses)
    watch.start()
    try:
        yield table, pauses
    finally:
        await watch.close()


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, which network traffic brings about."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.005)


def name_at(table: PodTable, address: str) -> str | None:
    found = table.find(address, SystemClock.monotonic())
    return None if found is None else found.name


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_pods_are_listed_and_followed() -> None:
    async def test() -> None:
        async with running() as server:
            server.put(pod("x", "10.244.0.5", "fd00::5"))
            server.put(pod("host", "10.0.0.4", host_network=True))
            server.put(pod("done", "10.244.0.9", phase="Succeeded"))
            server.put(pod("elsewhere", "10.244.1.1", node="node-b"))
            async with watching(server) as (table, _):
                await until(lambda: server.watches)
                found = table.find("fd00::5", SystemClock.monotonic())
                assert found == Pod("shop", "x", "web", (("app", "x"),))
                assert [name_at(table, each) for each in ("10.0.0.4", "10.244.0.9", "10.244.1.1")] == [None] * 3
                server.put(pod("y", "10.244.0.6", created=5, account=None))
                await until(lambda: name_at(table, "10.244.0.6") == "y")
                server.put(pod("y", "10.244.0.6", created=5, phase="Failed"))
                server.delete("x")
                await until(lambda: len(table) == 0)
            await until(lambda: not server.watches)
        assert server.kinds() == ["list", "watch"]

    run(test())


def test_long_list_comes_in_pages() -> None:
    async def test() -> None:
        async with running() as server:
            for number in range(500):
                server.put(pod(f"pod-{number}", f"10.244.{number // 250}.{number % 250 + 1}"))
            async with watching(server) as (table, _):
                await until(lambda: len(table) == 500)
        assert server.kinds()[:2] == ["list", "list"]

    run(test())


def test_ended_watch_goes_on_from_the_version_of_a_bookmark() -> None:
    async def test() -> None:
        async with running() as server:
            server.put(pod("x", "10.244.0.5"))
            async with watching(server) as (table, pauses):
                await until(lambda: server.watches)
                server.bookmark()
                server.end_watches()
                await until(lambda: len(server.requests) == 3)
                assert server.requests[2]["resourceVersion"] == str(server.version)
                server.put(pod("y", "10.244.0.6"))
                await until(lambda: name_at(table, "10.244.0.6") == "y")
                assert len(pauses.seconds) == 1
                assert 0 < pauses.seconds[0] <= pod_watch.SHORTEST_TURN
        assert server.kinds() == ["list", "watch", "watch"]

    run(test())


def watch_fault(*lines: str, then_drop: bool = True) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    async def fault(writer: asyncio.StreamWriter) -> None:
        await begin(writer)
        for line in lines:
            await chunk(writer, line)
        if then_drop:
            writer.transport.abort()
        else:
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    return fault


def test_expired_version_is_followed_by_a_list_and_the_table_is_never_empty(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with running() as server:
            server.put(pod("x", "10.244.0.5"))
            server.put(pod("old", "10.244.0.7"))
            async with watching(server) as (table, _):
                await until(lambda: server.watches)
                listing = asyncio.Event()

                async def slow(writer: asyncio.StreamWriter) -> None:
                    await listing.wait()
                    await drop(writer)

                server.oldest = server.version = server.version + 5
                gone = json.dumps({"type": "ERROR", "object": status(410, "too old resource version")})
                server.faults.extend([watch_fault(gone), slow])
                server.end_watches()
                await until(lambda: server.kinds() == ["list", "watch", "watch", "list"])
                assert (name_at(table, "10.244.0.5"), name_at(table, "10.244.0.7")) == ("x", "old")
                server.pods.pop("uid-old")
                listing.set()
                await until(lambda: server.watches)
                assert (name_at(table, "10.244.0.5"), name_at(table, "10.244.0.7")) == ("x", None)

    run(test())
    assert [record.__dict__["fields"]["because"] for record in caplog.records if record.levelno >= logging.WARNING] == [
        "the API server cannot be reached or broke off (Server disconnected without sending a response.)"
    ]


def test_watch_from_an_expired_version_is_answered_and_survived() -> None:
    async def test() -> None:
        async with running() as server:
            server.put(pod("x", "10.244.0.5"))
            async with watching(server) as (table, _):
                await until(lambda: server.watches)
                server.pods.pop("uid-x")
                server.oldest = server.version = server.version + 5
                server.end_watches()
                await until(lambda: server.kinds()[:5] == ["list", "watch", "watch", "list", "watch"])
                assert name_at(table, "10.244.0.5") is None

    run(test())


FAULTS: dict[str, Callable[[asyncio.StreamWriter], Awaitable[None]]] = {
    "dropped": drop,
    "refused": refusal(403, "pods is forbidden"),
    "unavailable": refusal(503),
    "gone": refusal(410),
    "no JSON": body(b"<html>"),
    "another type": body(b'{"items": [{"metadata": {"uid": 5}}]}'),
    "no version": body(b'{"items": []}'),
    "no list": body(b"[]"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("count", [1, 5])
def test_failed_list_is_tried_again_after_longer_and_longer_pauses(fault: str, count: int) -> None:
    async def test() -> None:
        async with running() as server:
            server.put(pod("x", "10.244.0.5"))
            server.faults.extend([FAULTS[fault]] * count)
            async with watching(server) as (table, pauses):
                await until(lambda: name_at(table, "10.244.0.5") == "x")
                await until(lambda: server.watches)
                assert len(pauses.seconds) == count
                for number, seconds in enumerate(pauses.seconds, 1):
                    assert pause_after(number, 0) <= seconds <= pause_after(number, 1)

    run(test())


@pytest.mark.parametrize(
    ("fault", "then"),
    [
        (drop, "watch"),
        (watch_fault(), "watch"),
        (watch_fault(then_drop=False), "watch"),
        (watch_fault('{"type": "UNKNOWN", "object": {"metadata": {}}}', then_drop=False), "watch"),
        (watch_fault("nonsense"), "list"),
        (watch_fault('{"type": "ADDED"}'), "list"),
        (watch_fault('{"type": "ADDED", "object": {"metadata": {"uid": 5}}}'), "list"),
        (watch_fault(json.dumps({"type": "ERROR", "object": status(500, "etcd")})), "list"),
        (refusal(403), "list"),
        (refusal(410), "list"),
    ],
)
def test_failed_watch_goes_on_from_its_version_or_lists_again(fault: Any, then: str) -> None:
    async def test() -> None:
        async with running() as server:
            server.put(pod("x", "10.244.0.5"))
            async with watching(server) as (table, _):
                await until(lambda: server.watches)
                server.faults.append(fault)
                server.end_watches()
                await until(lambda: len(server.requests) >= 4 and server.watches)
                assert server.kinds()[:4] == ["list", "watch", "watch", then]
                server.put(pod("y", "10.244.0.6"))
                await until(lambda: name_at(table, "10.244.0.6") == "y")
                assert name_at(table, "10.244.0.5") == "x"

    run(test())


def test_restart_of_the_server_is_survived_and_logged_once_with_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "imdsproxy")

    async def test() -> None:
        async with running() as server:
            server.put(pod("x", "10.244.0.5"))
            server.put(pod("gone", "10.244.0.6"))
            async with watching(server) as (table, pauses):
                await until(lambda: server.watches)
                await server.stop()
                await until(lambda: len(pauses.seconds) >= 4)
                assert name_at(table, "10.244.0.5") == "x"
                server.delete("gone")
                await server.start()
                await until(lambda: name_at(table, "10.244.0.6") is None and server.watches)
                server.bookmark()
                await until(lambda: "pods are watched again" in caplog.text)

    run(test())
    told = [record.message for record in caplog.records if record.name == "imdsproxy.troubles"]
    assert told == ["pods cannot be watched; clients become unknown pods", "pods are watched again"]


def test_unreachable_server_makes_every_address_unknown_after_the_bound() -> None:
    clock = FakeClock()

    async def test() -> None:
        async with running() as server:
            server.put(pod("x", "10.244.0.5"))
            async with watching(server, clock) as (table, pauses):
                await until(lambda: server.watches)
                await server.stop()
                await until(lambda: pauses.seconds)
                clock.advance(HELD_FOR - 1)
                assert table.find("10.244.0.5", clock.monotonic()) is not None
                clock.advance(1)
                assert table.find("10.244.0.5", clock.monotonic()) is None
                await server.start()
                await until(lambda: server.watches)
                server.bookmark()
                await until(lambda: table.find("10.244.0.5", clock.monotonic()) is not None)

    run(test())


def test_server_that_starts_late_is_found() -> None:
    async def test() -> None:
        async with running() as server:
            await server.stop()
            async with watching(server) as (table, pauses):
                await until(lambda: len(pauses.seconds) >= 2)
                assert not table.known(SystemClock.monotonic())
                server.put(pod("x", "10.244.0.5"))
                await server.start()
                await until(lambda: name_at(table, "10.244.0.5") == "x")

    run(test())


def test_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_watch, "LIST_TIMEOUT", 0.05)
    monkeypatch.setattr(pod_watch, "WATCH_SECONDS", 1)
    monkeypatch.setattr(pod_watch, "_GRACE", -0.95)

    async def silence(writer: asyncio.StreamWriter) -> None:
        await begin(writer)
        await asyncio.Event().wait()

    async def test() -> None:
        async with running() as server:
            server.put(pod("x", "10.244.0.5"))
            server.faults.append(silence)
            async with watching(server) as (table, _):
                await until(lambda: server.kinds()[:4] == ["list", "list", "watch", "watch"])
                assert name_at(table, "10.244.0.5") == "x"

    run(test())


def test_too_many_pods_are_a_failure_and_not_a_larger_table(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with running() as server:
            for number in range(MOST_PODS + 1):
                server.put(pod(f"pod-{number}", f"10.244.{number // 250}.{number % 250 + 1}"))
            async with watching(server) as (table, pauses):
                await until(lambda: pauses.seconds)
                assert len(table) == 0
                server.delete("pod-0")
                await until(lambda: len(table) == MOST_PODS)

    run(test())
    assert "pods cannot be watched" in caplog.text


def test_closing_ends_the_watch_at_any_moment() -> None:
    async def test() -> None:
        async with running() as server:
            watch = PodWatch(
                PodTable(NODE),
                KubernetesPods(NODE, plain(server)),
                SystemClock(),
                PodTroubleLog(SystemClock(), NODE, HELD_FOR),
            )
            await watch.close()
            watch.start()
            watch.start()
            await asyncio.sleep(0)
            await watch.close()
        assert server.kinds() in ([], ["list"])

    run(test())


# In a cluster


def credentials(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, ssl.SSLContext]:
    """Return a folder that the proxy takes for its service account's, and the API server's side of it."""
    monkeypatch.setattr(kubernetes, "SERVICE_ACCOUNT", folder)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kubernetes")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "namespace").write_text("imdsproxy", encoding="ascii")
    (folder / "token").write_text("first\n", encoding="ascii")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.crt", folder / "key.pem")
    return folder, context


def test_in_a_pod_the_service_account_is_used_and_its_new_token_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, context = credentials(tmp_path, monkeypatch)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")

    async def test() -> None:
        async with running(context) as server:
            monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
            server.put(pod("x", "10.244.0.5"))
            api = pods_of(NODE)
            assert len((await api.list())[0]) == 1
            (folder / "token").write_text("second\n", encoding="ascii")
            server.faults.append(refusal(401))
            assert len((await api.list())[0]) == 1
            await api.close()
        assert [request["authorization"] for request in server.requests] == [
            "Bearer first",
            "Bearer first",
            "Bearer second",
        ]

    run(test())


def test_another_servers_certificate_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    _, context = credentials(tmp_path / "two", monkeypatch)
    credentials(tmp_path / "one", monkeypatch)

    async def test() -> None:
        async with running(context) as server:
            monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
            api = pods_of(NODE)
            with pytest.raises(pod_watch.ApiError, match="certificate verify failed"):
                await api.list()
            await api.close()
        assert server.requests == []

    run(test())


@pytest.mark.parametrize("lacking", ["token", "namespace", "ca.crt", "host"])
def test_outside_a_pod_the_start_is_refused(lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = credentials(tmp_path, monkeypatch)
    if lacking == "host":
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    else:
        (folder / lacking).unlink()
    with pytest.raises(SettingsError, match="IMDSPROXY_PODS_OF_NODE") as error:
        pods_of(NODE)
    assert lacking.upper() in str(error.value).upper()


# The whole proxy

RULES = """
default = "deny"

[[rule]]
name = "everyone"
anyone = true
allow = ["/metadata/instance"]

[[rule]]
name = "web"
service_account = "shop/web"
allow = ["/metadata/identity"]
"""


def test_rules_name_pods_and_an_unknown_address_gets_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imds: EmulatorServer, caplog: pytest.LogCaptureFixture
) -> None:
    _, context = credentials(tmp_path, monkeypatch)
    (tmp_path / "access.toml").write_text(RULES, encoding="ascii")
    clock = FakeClock()
    config = Config(
        upstream=Address("127.0.0.1", imds.port), access_file=str(tmp_path / "access.toml"), pods_of_node=NODE
    )

    async def status_of(app: Application, address: str, target: str = TOKEN) -> int:
        transport = httpx.ASGITransport(app, client=(address, 40000))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return (await client.get(target, headers=METADATA)).status_code

    async def becomes(app: Application, address: str, status: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while await status_of(app, address) != status:  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0.01)

    async def test() -> None:
        async with running(context) as server:
            monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
            server.put(pod("web", "10.244.0.5"))
            server.put(pod("other", "10.244.0.6", account="other"))
            app = create_app(config, clock)
            assert server.requests == []
            async with app.lifetime.lifespan(app):
                await until(lambda: server.watches)
                assert await status_of(app, "10.244.0.5") == 200
                # The token is cached from here on.
                for address in ("10.244.0.6", "10.244.0.7", "10.0.0.4", "127.0.0.1"):
                    assert await status_of(app, address) == 403, address
                    assert await status_of(app, address, INSTANCE) == 200, address
                server.put(pod("late", "10.244.0.7", created=9))
                await becomes(app, "10.244.0.7", 200)
                server.put(pod("web", "10.244.0.5", phase="Succeeded"))
                await becomes(app, "10.244.0.5", 403)
                app.hang_up()
                assert "not taken up" not in caplog.text
                assert await status_of(app, "10.244.0.7") == 200
                clock.advance(HELD_FOR)
                assert await status_of(app, "10.244.0.7") == 403
            assert server.watches <= 1

    run(test())
    told = [record.__dict__["fields"]["client"] for record in caplog.records if record.message == "access refused"]
    assert told[0] == "10.244.0.6, namespace shop, service account other"


def test_start_names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imdsproxy.peers.kubernetes", None)
    with pytest.raises(SettingsError, match=r"requirements/kubernetes\.txt"):
        create_app(Config(upstream=Address("127.0.0.1", 9), pods_of_node=NODE))


def test_nothing_of_kubernetes_is_imported_unless_it_is_set() -> None:
    program = (
        "import sys; from imdsproxy.app import create_app; from imdsproxy.config import Config; create_app(Config()); "
        "print([name for name in ('lightkube', 'httpx2', 'msgspec') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
