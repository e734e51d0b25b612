"""A small API server of Kubernetes for tests: it lists and watches pods on loopback, and can be made to fail.

It speaks what the API's documentation describes (Kubernetes API concepts: watches, bookmarks, 410 Gone), over HTTP or
TLS, with one connection a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

Writer = asyncio.StreamWriter
Fault = Callable[[Writer], Awaitable[None]]

NODE = "node-a"


def pod(name: str, *addresses: str, created: int = 0, **changes: Any) -> dict[str, Any]:
    """Return a pod as the API server describes it, with fields that the proxy does not read."""
    fields: dict[str, Any] = {
        "namespace": "shop",
        "account": "web",
        "uid": f"uid-{name}",
        "node": NODE,
        "phase": "Running",
        "host_network": False,
        "labels": {"app": name},
        **changes,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": fields["namespace"],
            "uid": fields["uid"],
            "labels": fields["labels"],
            "creationTimestamp": f"2026-01-01T00:{created // 60:02}:{created % 60:02}Z",
            "managedFields": [{"manager": "kubelet"}],
        },
        "spec": {
            "nodeName": fields["node"],
            "serviceAccountName": fields["account"],
            "hostNetwork": fields["host_network"],
            "containers": [{"name": "main", "env": [{"name": "SECRET", "value": "do not keep"}]}],
        },
        "status": {
            "phase": fields["phase"],
            "hostIP": "10.0.0.4",
            "podIP": addresses[0] if addresses else "",
            "podIPs": [{"ip": address} for address in addresses],
        },
    }


class ApiServer:
    """The pods of a cluster. Every change gets a version, and the watches under way."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.version = 1
        self.oldest = 0
        """Watches from older versions are answered with 410."""
        self.faults: list[Fault] = []
        """What the next requests are answered with, one a request."""
        self.requests: list[dict[str, str]] = []
        """The query of each request, and `authorization`."""
        self._log: list[tuple[int, dict[str, Any]]] = []
        self._watches: set[asyncio.Queue[dict[str, Any] | None]] = set()
        self._server: asyncio.Server | None = None
        self._connections: dict[Writer, asyncio.Task[None] | None] = {}
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def watches(self) -> int:
        """The watches under way."""
        return len(self._watches)

    def kinds(self) -> list[str]:
        """Return what was asked, in order."""
        return ["watch" if "watch" in request else "list" for request in self.requests]

    async def start(self, context: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, and cut every connection off."""
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.sleep(0)

    def cut(self) -> None:
        """Cut every connection off."""
        for writer, task in list(self._connections.items()):
            writer.transport.abort()
            if task is not None:
                task.cancel()

    def put(self, described: dict[str, Any]) -> None:
        """Add or change a pod."""
        uid = described["metadata"]["uid"]
        self._change("MODIFIED" if uid in self.pods else "ADDED", described)
        self.pods[uid] = described

    def delete(self, name: str) -> None:
        self._change("DELETED", self.pods.pop(f"uid-{name}"))

    def bookmark(self) -> None:
        self.version += 1
        version = {"metadata": {"resourceVersion": str(self.version), "creationTimestamp": None}}
        self.send({"type": "BOOKMARK", "object": {"kind": "Pod", "apiVersion": "v1", **version}})

    def end_watches(self) -> None:
        """End the watches, as their time is over."""
        for queue in self._watches:
            queue.put_nowait(None)

    def send(self, event: dict[str, Any]) -> None:
        """Send any event to the watches."""
        for queue in self._watches:
            queue.put_nowait(event)

    def _change(self, kind: str, described: dict[str, Any]) -> None:
        self.version += 1
        described["metadata"]["resourceVersion"] = str(self.version)
        event = {"type": kind, "object": json.loads(json.dumps(described))}
        self._log.append((self.version, event))
        self.send(event)

    async def _serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self._connections[writer] = asyncio.current_task()
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                line, *fields = head.split("\r\n")
                where = urlsplit(line.split()[1])
                query = {name: values[0] for name, values in parse_qs(where.query).items()}
                bearer = [field.partition(": ")[2] for field in fields if field.lower().startswith("authorization:")]
                self.requests.append({**query, **({"authorization": bearer[0]} if bearer else {})})
                if self.faults:
                    await self.faults.pop(0)(writer)
                elif where.path != "/api/v1/pods" or query.get("fieldSelector") != f"spec.nodeName={NODE}":
                    await refusal(404)(writer)
                elif "watch" in query:
                    await self._watch(reader, writer, query)
                else:
                    await answer(writer, 200, json.dumps(self._list(query)).encode())
        finally:
            del self._connections[writer]
            writer.close()

    def _list(self, query: dict[str, str]) -> dict[str, Any]:
        found = [pod for pod in self.pods.values() if pod["spec"]["nodeName"] == NODE]
        begin, most = int(query.get("continue", "0")), int(query.get("limit", "500"))
        metadata = {"resourceVersion": str(self.version)}
        if begin + most < len(found):
            metadata["continue"] = str(begin + most)
        return {"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": found[begin : begin + most]}

    async def _watch(self, reader: asyncio.StreamReader, writer: Writer, query: dict[str, str]) -> None:
        assert query["allowWatchBookmarks"] == "true"
        assert int(query["timeoutSeconds"]) > 0
        since = int(query["resourceVersion"])
        await begin(writer)
        if since < self.oldest:
            await chunk(writer, json.dumps({"type": "ERROR", "object": status(410, "too old resource version")}))
            return
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._watches.add(queue)
        leaving = asyncio.create_task(reader.read())
        leaving.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            for version, event in self._log:
                if version > since:
                    await chunk(writer, json.dumps(event))
            while (following := await queue.get()) is not None:
                await chunk(writer, json.dumps(following))
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        finally:
            leaving.cancel()
            self._watches.discard(queue)


def status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}


async def answer(writer: Writer, code: int, body: bytes) -> None:
    head = f"HTTP/1.1 {code} Any\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    writer.write(f"{head}connection: close\r\n\r\n".encode() + body)
    await writer.drain()


async def begin(writer: Writer) -> None:
    """Begin an answer without a length."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
    await writer.drain()


async def chunk(writer: Writer, line: str) -> None:
    data = f"{line}\n".encode()
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))
    await writer.drain()


def refusal(code: int, message: str = "no") -> Fault:
    """Return a fault: a refusal with a Status."""
    return lambda writer: answer(writer, code, json.dumps(status(code, message)).encode())


def body(content: bytes) -> Fault:
    """Return a fault: an answer with this content."""
    return lambda writer: answer(writer, 200, content)


async def drop(writer: Writer) -> None:
    """Cut the connection off before an answer."""
    writer.transport.abort()


@contextlib.asynccontextmanager
async def running(context: ssl.SSLContext | None = None) -> AsyncIterator[ApiServer]:
    server = ApiServer()
    await server.start(context)
    try:
        yield server
    finally:
        await server.stop()
