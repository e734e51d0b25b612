"""Checks before the proxy serves. Each raises StartError if it fails, with the remedy."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from imdsproxy.config import Config
from imdsproxy.errors import StartError
from imdsproxy.protocol.address import Address
from imdsproxy.protocol.messages import Refusal
from imdsproxy.protocol.target import read_target
from imdsproxy.server.listeners import Listener


def check_targets(config: Config) -> None:
    """Raise StartError if a warm-up target cannot be read."""
    for text in config.warmup:
        target = read_target(text.encode("ascii"))
        if isinstance(target, Refusal):
            raise StartError(f"IMDSPROXY_WARMUP={text}: {target.description}")


def check_upstream(upstream: Address) -> tuple[Address, ...]:
    """Return the addresses of the upstream, which its name is resolved to.

    Raises:
        StartError: The name cannot be resolved.
    """
    if upstream.unix is not None:
        return (upstream,)
    try:
        found = socket.getaddrinfo(upstream.host, upstream.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise StartError(
            f"IMDSPROXY_UPSTREAM={upstream} cannot be resolved ({why}); the metadata service is http://169.254.169.254"
        ) from None
    return tuple(Address(str(address[0]), upstream.port) for *_, address in found)


def check_loop(upstream: Address, addresses: Iterable[Address], listeners: Iterable[Listener]) -> None:
    """Raise StartError if the upstream is one of the listeners. A port that was 0 in the settings is known now.

    Args:
        upstream: The setting, which the error names.
        addresses: The addresses of the upstream.
        listeners: The open listeners.
    """
    if any(listener.receives(address) for address in addresses for listener in listeners):
        raise StartError(
            f"IMDSPROXY_UPSTREAM={upstream} is the address of this proxy itself; "
            "name the metadata service, http://169.254.169.254"
        )
