"""Checks before the proxy serves. Each raises StartError if it fails, with the remedy."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from imdsproxy.config import Config
from imdsproxy.errors import StartError
from imdsproxy.protocol.messages import Refusal
from imdsproxy.protocol.target import read_target
from imdsproxy.server.listeners import Listener


def check_targets(config: Config) -> None:
    """Raise StartError if a warm-up target cannot be read."""
    for text in config.warmup:
        target = read_target(text.encode("ascii"))
        if isinstance(target, Refusal):
            raise StartError(f"IMDSPROXY_WARMUP={text}: {target.description}")


def check_upstream(config: Config) -> None:
    """Raise StartError if the name of the upstream cannot be resolved."""
    address = config.upstream
    if address.unix is not None:
        return
    try:
        socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise StartError(
            f"IMDSPROXY_UPSTREAM={config.upstream} cannot be resolved ({why}); "
            "the metadata service is http://169.254.169.254"
        ) from None


def check_loop(config: Config, listeners: Sequence[Listener]) -> None:
    """Raise StartError if the upstream is one of the listeners. A port that was 0 in the settings is known now."""
    address = config.upstream
    own = {config.host, "localhost", "127.0.0.1", "::1"}
    for listener in listeners:
        if address.unix == listener.path if address.unix else (address.port == listener.port and address.host in own):
            raise StartError(
                f"IMDSPROXY_UPSTREAM={config.upstream} is the address of this proxy itself; "
                "name the metadata service, http://169.254.169.254"
            )
