"""The API server of Kubernetes, by lightkube.

Only this module imports lightkube, and only `parts/extras` imports this module, where pods are watched.
Of each pod only the fields that the table needs are decoded; the rest, such as the containers with their environment,
is skipped by the decoder and never becomes an object.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
from lightkube import AsyncClient, KubeConfig
from lightkube.core.exceptions import ApiError as StatusError
from lightkube.core.exceptions import ConfigError, NotReadyError
from lightkube.core.resource import ApiInfo, NamespacedResourceG, ResourceDef

from imdsproxy.errors import SettingsError
from imdsproxy.peers.pod_watch import ApiError, Change, GoneError
from imdsproxy.peers.pods import ChangeKind, PodState, bounded_labels
from imdsproxy.protocol.peer import Pod

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where the kubelet puts the credentials of a pod's service account."""
_PAGE = 250
_TIMEOUT = 10.0
_GONE = 410
_FORBIDDEN = 403
_FINISHED = frozenset({"Succeeded", "Failed"})
_LONGEST_WORDS = 200
_KINDS = frozenset(ChangeKind)


# The API server sends null for some empty fields.
class _Address(msgspec.Struct):
    ip: str | None = None


class _Metadata(msgspec.Struct):
    uid: str | None = None
    name: str | None = None
    namespace: str | None = None
    labels: dict[str, str] | None = None
    creation_timestamp: str | None = msgspec.field(default=None, name="creationTimestamp")
    resource_version: str | None = msgspec.field(default=None, name="resourceVersion")

    @property
    def resourceVersion(self) -> str | None:  # noqa: N802  # lightkube reads it by this name
        """The version of the pod, which is that of the watch."""
        return self.resource_version


class _Spec(msgspec.Struct):
    node_name: str | None = msgspec.field(default=None, name="nodeName")
    service_account_name: str | None = msgspec.field(default=None, name="serviceAccountName")
    host_network: bool | None = msgspec.field(default=None, name="hostNetwork")


class _Status(msgspec.Struct):
    phase: str | None = None
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    pod_ips: list[_Address] | None = msgspec.field(default=None, name="podIPs")
    host_ip: str | None = msgspec.field(default=None, name="hostIP")
    host_ips: list[_Address] | None = msgspec.field(default=None, name="hostIPs")


class _Fields(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec | None = None
    status: _Status | None = None


class _Pod(NamespacedResourceG, _Fields):
    _api_info = ApiInfo(ResourceDef("", "v1", "Pod"), "pods", ["global_list", "global_watch"])


class _WatchEnded(Exception):  # noqa: N818  # no error
    """The API server has ended a watch, and lightkube begins the next one."""


class _OneWatch(httpx2.AsyncBaseTransport):
    """Sends the requests. Asks watches for bookmarks, and stops lightkube where it would begin a second watch."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner
        self.watching = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request."""
        if "watch" in request.url.params:
            if self.watching:
                raise _WatchEnded
            self.watching = True
            request.url = request.url.copy_set_param("allowWatchBookmarks", "true")
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._inner.aclose()


class KubernetesPods:
    """The pods of one node. It implements `pod_watch.PodApi`."""

    def __init__(self, node: str, config: KubeConfig) -> None:
        """Read the certificates of a configuration. Nothing is connected.

        Raises:
            OSError: The certificates cannot be read.
        """
        self._node = node
        single = config.get()
        assert single is not None  # noqa: S101  # it has a current context
        verify = ssl.create_default_context(cafile=single.cluster.certificate_auth)
        # No environment variable changes where requests go: `http_proxy` may be this proxy.
        self._transport = _OneWatch(httpx2.AsyncHTTPTransport(verify=verify, trust_env=False))
        self._client = AsyncClient(
            config=single, timeout=httpx2.Timeout(_TIMEOUT), trust_env=False, transport=self._transport
        )

    async def list(self) -> tuple[list[PodState], str]:
        """Return the pods and the version of this list; see `pod_watch.PodApi`."""
        try:
            found = self._client.list(_Pod, namespace="*", chunk_size=_PAGE, fields={"spec.nodeName": self._node})
            return [_state(pod) async for pod in found], found.resourceVersion
        except _ERRORS as error:
            raise _described(error) from None

    async def watch(self, version: str, seconds: int) -> AsyncGenerator[Change, None]:
        """Yield the changes since a version; see `pod_watch.PodApi`."""
        self._transport.watching = False
        changes: Any = self._client.watch(
            _Pod,
            namespace="*",
            fields={"spec.nodeName": self._node},
            server_timeout=seconds,
            resource_version=version,
        )
        try:
            async for kind, pod in changes:
                if kind in _KINDS:
                    state = None if kind == ChangeKind.BOOKMARK else _state(pod)
                    yield Change(ChangeKind(kind), state, pod.metadata.resource_version or version)
        except _WatchEnded:
            return
        except _ERRORS as error:
            raise _described(error) from None
        finally:
            await changes.aclose()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()


_ERRORS = (httpx2.HTTPError, msgspec.MsgspecError, ConfigError, NotReadyError, UnicodeError)


def _in_cluster(folder: Path) -> KubeConfig:
    """Return the configuration that Kubernetes gives to every pod.

    Raises:
        SettingsError: This process does not run in a pod with a service account's token.
    """
    try:
        return KubeConfig.from_service_account(folder)
    except (ConfigError, OSError, KeyError) as error:
        missing = f"{error} is not set" if isinstance(error, KeyError) else str(error)
        raise SettingsError(
            f"IMDSPROXY_PODS_OF_NODE needs the credentials of a pod's service account ({missing}): run the proxy in a "
            "pod with automountServiceAccountToken: true, as pods.watch=true of the chart does, or unset it"
        ) from None


def pods_of(node: str) -> KubernetesPods:
    """Return the API server of the cluster in which this process runs. Raises SettingsError."""
    folder = SERVICE_ACCOUNT
    config = _in_cluster(folder)
    try:
        return KubernetesPods(node, config)
    except OSError as error:  # no such file, or no certificate in it
        raise SettingsError(
            f"IMDSPROXY_PODS_OF_NODE: the certificates in {folder / 'ca.crt'} cannot be used ({error})"
        ) from None


def _state(pod: Any) -> PodState:
    """Return what the table needs of a pod."""
    metadata, spec, status = pod.metadata, pod.spec or _Spec(), pod.status or _Status()
    namespace, name = metadata.namespace or "", metadata.name or ""
    return PodState(
        uid=metadata.uid or f"{namespace}/{name}",
        pod=Pod(namespace, name, spec.service_account_name or None, bounded_labels(metadata.labels or {})),
        node=spec.node_name or "",
        created=metadata.creation_timestamp or "",
        addresses=_all(status.pod_ip, status.pod_ips),
        host_addresses=_all(status.host_ip, status.host_ips),
        host_network=bool(spec.host_network),
        finished=status.phase in _FINISHED,
    )


def _all(first: str | None, addresses: list[_Address] | None) -> tuple[str, ...]:
    """Return the addresses of both fields: older API servers fill only the single one."""
    return tuple(dict.fromkeys(filter(None, [first, *(address.ip for address in addresses or ())])))


def _described(error: Exception) -> ApiError:
    """Return an error of lightkube in this project's words."""
    if isinstance(error, httpx2.HTTPStatusError):
        return _status(error)
    if isinstance(error, httpx2.HTTPError):
        words = str(error) or type(error).__name__
        return ApiError(f"the API server cannot be reached or broke off ({words[:_LONGEST_WORDS]})", resumable=True)
    if isinstance(error, ConfigError):
        return ApiError(str(error))
    return ApiError(f"the API server's answer is not understood ({str(error)[:_LONGEST_WORDS]})")


def _status(error: httpx2.HTTPStatusError) -> ApiError:
    if isinstance(error, StatusError):
        code, message = error.status.code, error.status.message
    else:
        code, message = error.response.status_code, error.response.reason_phrase
    words = f"the API server answered {code} ({(message or 'no reason')[:_LONGEST_WORDS]})"
    if code == _GONE:
        return GoneError(words)
    if code == _FORBIDDEN:
        return ApiError(
            f"{words}; its service account needs get, list and watch of pods (pods.watch=true of the chart)"
        )
    return ApiError(words)
