"""The client of a request."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple


class PeerKind(StrEnum):
    """The kind of a client's connection."""

    UNIX = "unix"
    TCP = "tcp"
    NONE = "none"
    """No connection: a request of the proxy's own, or a server that does not name its clients."""


class Pod(NamedTuple):
    """A pod of Kubernetes."""

    namespace: str
    name: str
    service_account: str | None
    """The name of its service account in that namespace; None if it has none, as the kubelet's static pods."""
    labels: tuple[tuple[str, str], ...] = ()


class Peer(NamedTuple):
    """What is known of a client. Every unknown part is None."""

    address: str | None = None
    """The source address of a TCP connection, as text."""
    user: int | str | None = None
    """The user id, from the kernel: of the process that made the socket at the other end. On Windows it is a SID."""
    process: int | None = None
    """The process id; None if its container has process ids of its own, or if it has not been looked up."""
    proxy: str | None = None
    """The imdsproxy instance that the request names in `Imdsproxy-Via`. Any client can write that field."""
    user_name: str | None = None
    """The user's name in /etc/passwd, or of Windows' own accounts."""
    executable: str | None = None
    """The path of the process's program, where permissions allow to read it."""
    kind: PeerKind = PeerKind.NONE
    inode: int | None = None
    """The inode of the TCP socket at the other end, by which its process can be found."""
    cgroup: int | None = None
    """The id of the control group in which the TCP socket was made: of a systemd service, a container or a session."""
    pod: Pod | None = None
    """The pod that had the address when the connection was looked up."""
    unknown: str | None = None
    """Why the user or the process is unknown, in words for people; None if nothing is missing or nothing was asked."""

    @property
    def name(self) -> str:
        """The client's name in the access log."""
        return describe(self)


UNKNOWN = Peer()
"""The client of whom nothing is known."""

Client = Callable[[], Peer]
"""Returns the client of a request. It is called only if the client matters, because a lookup takes microseconds."""


def no_client() -> Peer:
    """Return the client of the proxy's own requests."""
    return UNKNOWN


def describe(peer: Peer) -> str:
    """Return a client's name for people: its user and process, or else its address and pod, or `-`."""
    if peer.user is None and peer.process is None:
        address = peer.address or "-"
        return address if peer.pod is None else f"{address} (pod {peer.pod.namespace}/{peer.pod.name})"
    parts = []
    if peer.user is not None:
        name = "" if peer.user_name is None else f" ({peer.user_name})"
        parts.append(f"user {peer.user}{name}")
    if peer.process is not None:
        program = "" if peer.executable is None else f" ({peer.executable})"
        parts.append(f"process {peer.process}{program}")
    elif peer.kind is PeerKind.UNIX:
        parts.append("another container")
    return ", ".join(parts)
