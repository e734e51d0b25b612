"""`imdsproxy serve`: check the configuration, open the listeners, make the application, run it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

from imdsproxy.app import create_app
from imdsproxy.cli.startup_checks import check_loop, check_targets, check_upstream
from imdsproxy.config import Config
from imdsproxy.errors import ImdsproxyError
from imdsproxy.ops.start_errors import report
from imdsproxy.ops.status import Listening
from imdsproxy.server.listeners import Listener, close, open_listeners
from imdsproxy.server.memory_bound import beside, connections_within, memory_limit, most_memory
from imdsproxy.server.run import run
from imdsproxy.settings.forked_loader import ReadConfig

logger = logging.getLogger(__name__)

_FEWEST_CONNECTIONS = 64
START_FAILED = 2
"""The exit status if the settings or this machine do not allow the start."""


def serve(read: ReadConfig, announce: Callable[[str], None] = lambda _url: None) -> int:
    """Run the proxy until a signal ends it, and return the exit status.

    Args:
        read: The configuration, with warnings about the settings, to be logged.
        announce: Called with the address of the first listener once all listeners are served.
    """
    config = read.config
    for warning in read.warnings:
        logger.warning(warning)
    listeners: list[Listener] = []
    try:
        check_targets(config)
        addresses = check_upstream(config.upstream)
        listeners = open_listeners(config, os.environ)
        check_loop(config.upstream, addresses, listeners)
        application = create_app(config, settings=read.differing)
        application.status.listeners = tuple(Listening(each.url, each.admin) for each in listeners)
    except ImdsproxyError as error:
        close(listeners)
        report(error, config.log_format)
        return START_FAILED
    run(
        application,
        listeners,
        header_timeout=config.header_timeout,
        connections=_connections(config),
        announce=lambda: _report(listeners, config, announce),
    )
    return 0


def _connections(config: Config) -> int:
    """Return how many connections fit into the memory limit of this container or unit."""
    limit = memory_limit()
    optional = beside(pods=config.pods_of_node is not None, traces=config.traces)
    found = connections_within(limit, config.cache_max_bytes, config.max_body_bytes, optional)
    if limit is not None and found < _FEWEST_CONNECTIONS:
        needed = most_memory(config.cache_max_bytes, config.max_body_bytes, _FEWEST_CONNECTIONS, optional)
        fields = {"limit": limit, "needed": needed, "connections": _FEWEST_CONNECTIONS}
        logger.warning(
            "the memory limit of this container or unit is too low for the settings; raise it, "
            "or lower IMDSPROXY_CACHE_MAX_BYTES or IMDSPROXY_MAX_BODY_BYTES",
            extra={"fields": fields},
        )
    return max(_FEWEST_CONNECTIONS, found)


def _report(listeners: Sequence[Listener], config: Config, announce: Callable[[str], None]) -> None:
    for listener in listeners:
        more = {"serves": "/-/"} if listener.admin else {"upstream": str(config.upstream)}
        logger.info("listening", extra={"fields": {"address": listener.url, **more}})
        if listener.reaches_out and not listener.admin and not config.clients:
            logger.warning(
                "other machines may reach this address, and every client that reaches it gets this VM's tokens; "
                "set IMDSPROXY_HOST=127.0.0.1 to listen on this machine only, "
                "or IMDSPROXY_CLIENTS to the address ranges that may ask"
            )
    announce(listeners[0].url)
