"""The application under another ASGI server: plain ASGI calls in this process, in front of the emulator."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import httpx
import pytest

from imdsproxy.app import create_app
from imdsproxy.emulator import EmulatorServer
from imdsproxy.server.application import Application
from imdsproxy.settings.load import load
from tests.kit import METADATA
from tests.targets import INSTANCE, TOKEN

Client = httpx.AsyncClient
Visit = Callable[[Client], Coroutine[Any, Any, None]]


@contextlib.asynccontextmanager
async def alive(application: Application) -> AsyncIterator[None]:
    """Run the application's lifespan around the block, as a server does."""
    to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    from_app: asyncio.Queue[Any] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    task = asyncio.create_task(application(scope, to_app.get, from_app.put))
    to_app.put_nowait({"type": "lifespan.startup"})
    assert (await from_app.get())["type"] == "lifespan.startup.complete"
    try:
        yield
    finally:
        to_app.put_nowait({"type": "lifespan.shutdown"})
        assert (await from_app.get())["type"] == "lifespan.shutdown.complete"
        await task


async def _ready(client: Client) -> None:
    while (await client.get("/-/ready")).status_code != 200:  # noqa: ASYNC110  # a client has no event to wait for
        await asyncio.sleep(0.01)


def run(fresh_imds: EmulatorServer, visit: Visit, **flags: str) -> None:
    """Yield a client of an application of its own, without the target extension."""

    async def running() -> None:
        application = create_app(load({"upstream": fresh_imds.url, **flags}, {}).settings.config())
        transport = httpx.ASGITransport(application)
        async with (
            asyncio.timeout(30),
            alive(application),
            Client(transport=transport, base_url="http://127.0.0.1", headers=METADATA) as client,
        ):
            await _ready(client)
            await visit(client)

    asyncio.run(running())


def test_miss_is_followed_by_a_hit(fresh_imds: EmulatorServer) -> None:
    async def visit(client: Client) -> None:
        first, second = await client.get(INSTANCE), await client.get(INSTANCE)
        assert (first.status_code, second.status_code) == (200, 200)
        assert second.content == first.content
        assert "fwd=uri-miss" in first.headers["cache-status"]
        assert "; hit" in second.headers["cache-status"]
        assert second.headers["server"] == "IMDS/150.870.65.1854"
        assert int(second.headers["age"]) >= 0

    run(fresh_imds, visit)
    assert [arrival.target.decode() for arrival in fresh_imds.emulator.arrivals] == ["/metadata/versions", INSTANCE]


@pytest.mark.parametrize(
    "target",
    [
        TOKEN,
        "/Metadata/Instance?api-version=2021-02-01&a=;%3B",
        "/metadata/unknown?x=%C3%A9+y&&z",
    ],
)
def test_path_and_query_reach_imds_unchanged(fresh_imds: EmulatorServer, target: str) -> None:
    async def visit(client: Client) -> None:
        await client.get(target)

    run(fresh_imds, visit)
    assert fresh_imds.emulator.arrivals[-1].target == target.encode()


def test_server_without_raw_path_is_supported(fresh_imds: EmulatorServer) -> None:
    """`raw_path` is optional in ASGI."""

    async def call(application: Application, path: str, query: bytes) -> tuple[int, bytes]:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "query_string": query,
            "headers": [(b"host", b"127.0.0.1"), (b"metadata", b"true")],
        }
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(3600)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await application(scope, receive, send)
        return sent[0]["status"], sent[1]["body"]

    async def running() -> None:
        application = create_app(load({"upstream": fresh_imds.url}, {}).settings.config())
        async with asyncio.timeout(30), alive(application):
            status, body = await call(application, "/metadata/instance", b"api-version=2021-02-01")
            assert (status, json.loads(body)["compute"]["name"]) == (200, "examplevmname")
            assert (await call(application, "/-/healthy", b""))[0] == 200
            assert (await call(application, "/metadata/\u0131nstance", b""))[0] == 400

    asyncio.run(running())


def test_pages_and_refusals_are_served(fresh_imds: EmulatorServer) -> None:
    async def visit(client: Client) -> None:
        for path, status in {
            "/-/healthy": 200,
            "/-/metrics": 200,
            "/-/nothing": 404,
            "/elsewhere": 404,
            "/metadata/a%2fb": 400,
            "/metadata/versions": 200,
            "/metadata/loadbalancer?api-version=2021-02-01": 403,
        }.items():
            assert (await client.get(path)).status_code == status, path
        assert (await client.get(TOKEN, headers={"Metadata": "false"})).status_code == 400
        assert (await client.get(INSTANCE, headers={"Host": "evil.example"})).status_code == 403
        assert (await client.head(INSTANCE)).status_code == 405
        refused = await client.post(INSTANCE)
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET")

    run(fresh_imds, visit, deny="/metadata/loadbalancer")


def test_status_page_ends_because_the_server_would_wait_for_it(fresh_imds: EmulatorServer) -> None:
    async def visit(client: Client) -> None:
        answer = await client.get("/-/status", headers={"accept": "text/html"})
        assert answer.status_code == 200
        assert 'data-once="true"' in answer.text

    run(fresh_imds, visit)


def test_post_is_forwarded_with_its_body(fresh_imds: EmulatorServer) -> None:
    event = fresh_imds.emulator.events.add("Redeploy")

    async def visit(client: Client) -> None:
        target = "/metadata/scheduledevents?api-version=2020-07-01"
        assert (await client.get(target)).json()["Events"][0]["EventStatus"] == "Scheduled"
        assert (await client.post(target, json={"StartRequests": [{"EventId": event}]})).status_code == 200
        assert (await client.get(target)).json()["Events"][0]["EventStatus"] == "Started"
        assert (await client.post(target, content=b"x" * 70_000)).status_code == 413

    run(fresh_imds, visit)


def test_concurrent_requests_are_collapsed(fresh_imds: EmulatorServer) -> None:
    async def visit(client: Client) -> None:
        answers = await asyncio.gather(*(client.get(INSTANCE) for _ in range(50)))
        assert {(answer.status_code, answer.content) for answer in answers} == {(200, answers[0].content)}

    run(fresh_imds, visit)
    assert len(fresh_imds.emulator.arrivals) == 2


def test_proxy_is_not_ready_after_shutdown(fresh_imds: EmulatorServer) -> None:
    async def running() -> None:
        application = create_app(load({"upstream": fresh_imds.url}, {}).settings.config())
        async with Client(transport=httpx.ASGITransport(application), base_url="http://127.0.0.1") as client:
            before = await client.get("/-/ready")
            assert (before.status_code, before.json()["error"]) == (503, "not_ready")
            async with asyncio.timeout(30), alive(application):
                await _ready(client)
            after = await client.get("/-/ready")
            assert (after.status_code, "shutting down" in after.json()["error_description"]) == (503, True)

    asyncio.run(running())


def test_settings_are_read_from_the_environment_by_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMDSPROXY_UPSTREAM", "http://127.0.0.1:9")
    monkeypatch.setenv("IMDSPROXY_MAX_WAIT", "long")
    with pytest.raises(SystemExit) as ended:
        create_app()
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("imdsproxy: IMDSPROXY_MAX_WAIT ")


def test_other_servers_client_outside_the_ranges_gets_403(fresh_imds: EmulatorServer) -> None:
    async def running() -> None:
        flags = {"upstream": fresh_imds.url, "clients": "10.244.3.0/24"}
        application = create_app(load(flags, {}).settings.config())
        async with asyncio.timeout(30), alive(application):
            for address, status in (("10.0.0.9", 403), ("10.244.3.7", 200), ("127.0.0.1", 200)):
                transport = httpx.ASGITransport(application, client=(address, 40000))
                async with Client(transport=transport, base_url="http://127.0.0.1", headers=METADATA) as client:
                    answer = await client.get(INSTANCE)
                    assert answer.status_code == status, address
                    assert (await client.get("/-/healthy")).status_code == status, address
            assert application.metrics.requests.responses()["4xx", "client"] == 2

    asyncio.run(running())
