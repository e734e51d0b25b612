"""The command `imdsproxy emulator`: an emulated IMDS on a local port, with faults by flag."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from imdsproxy.emulator import az_tokens, events_command
from imdsproxy.emulator.az_tokens import AzTokens, is_loopback
from imdsproxy.emulator.command_line import USAGE_ERROR, Parser
from imdsproxy.emulator.emulator import Emulator
from imdsproxy.emulator.errors import KeysError, LendError
from imdsproxy.emulator.flag_values import count, fault, port, seconds, speed, timeline, url
from imdsproxy.emulator.keys import UNKNOWN_URL, Keys
from imdsproxy.emulator.server import serving
from imdsproxy.emulator.vm.loading import load
from imdsproxy.emulator.vm.model import VmError
from imdsproxy.emulator.vm.presets import PRESETS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from imdsproxy.emulator.vm.model import VirtualMachine

PROGRAM = "imdsproxy emulator"
_COMMON_VERSION = "2021-02-01"
DEFAULT_PORT = 8255

_FAULT_HELP = (
    "add a fault; may be repeated. A fault is a comma-separated list of what happens (status=N, hang, reset, truncate "
    "or garbage, and latency=SECONDS) and when (for=SECONDS, times=N, share=0..1, path=PREFIX); retry-after=TEXT goes "
    "with a status. Examples: status=410,for=20; status=500,share=0.1,path=/metadata/instance; hang,times=1"
)
_SET_HELP = (
    "change one field of the machine; may be repeated. A field is one of the instance document, as compute.location or "
    "network.interface.0.macAddress, or one of cloud, classic, user-data, identities, tenant-id, token-life, versions, "
    "newest-version, event-versions, load-balancer. Examples: compute.tags=env:test;team:web; identities=system,web"
)


_ENABLE_HELP = (
    "time that the first request for scheduled events takes, which enables them (0); IMDS takes up to 120, and again "
    "after a day without a request"
)
_TOKENS_HELP = (
    "own: tokens of the emulator, which open nothing (the default); az: DANGEROUS, your own tokens from the Azure CLI, "
    "for every program of this machine that asks"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command until SIGINT, SIGTERM or, on Windows, SIGBREAK.

    Returns:
        0, or 2 after one line on standard error.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["events"]:
        return events_command.main(arguments[1:])
    try:
        options = make_parser().parse_args(arguments)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    try:
        machine = load(options.vm, options.preset, options.set)
    except VmError as error:
        _write(sys.stderr, f"{PROGRAM}: {error}\n")
        return USAGE_ERROR
    try:
        keys = _keys(options)
    except KeysError as error:
        _write(sys.stderr, f"{PROGRAM}: --ca: {error}\n")
        return USAGE_ERROR
    try:
        lender = _lender(options)
    except LendError as error:
        _write(sys.stderr, f"{PROGRAM}: --tokens az: {error}\n")
        return USAGE_ERROR
    return asyncio.run(_serve(options, machine, keys, lender))


def _lender(options: argparse.Namespace) -> AzTokens | None:
    if options.tokens != "az":
        return None
    if not is_loopback(options.host):
        raise LendError(400, f"your own tokens are lent on 127.0.0.1 or ::1 only, not on --host {options.host}")
    return AzTokens.found()


def _keys(options: argparse.Namespace) -> Keys:
    keys = Keys(options.ca, options.public_url or UNKNOWN_URL)
    if options.ca is not None:
        if not keys.available:
            raise KeysError(
                "the cryptography package is not installed; requirements/emulator.txt in the source locks it"
            )
        keys.authority()  # a folder that cannot be used stops the start
    return keys


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog=PROGRAM,
        description="Azure's Instance Metadata Service, emulated on this machine.",
        epilog=f"`{events_command.PROGRAM} --help`: the scheduled events of a running emulator.",
        allow_abbrev=False,
    )
    _add_serving(parser.add_argument_group("where it listens, and how"))
    _add_machine(parser.add_argument_group("the virtual machine"))
    _add_signing(parser.add_argument_group("tokens and signatures"))
    _add_events(parser.add_argument_group("scheduled events"))
    _add_trouble(parser.add_argument_group("limits and trouble"))
    return parser


def _add_serving(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=port, default=DEFAULT_PORT, help="port to listen on, 0 for a free one (%(default)s)")
    add("--quiet", action="store_true", help="print only the address")


def _add_machine(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--vm", metavar="FILE", help="its description, .toml or .yaml, or an instance document that IMDS sent, .json")
    add("--preset", choices=PRESETS, metavar="NAME", help=f"the machine to begin with: {', '.join(PRESETS)} (linux)")
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help=_SET_HELP)
    add("--token-life", type=seconds, metavar="SECONDS", help="lifetime of an access token (86400)")


def _add_signing(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--ca", type=Path, metavar="FOLDER", help="keep certificates and keys there, made once (new ones at each start)"
    )
    add("--tokens", choices=("own", "az"), default="own", help=_TOKENS_HELP)
    add("--public-url", type=url, metavar="URL", help="address that clients use, for issuer and certificates (own)")


def _add_events(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--events", type=timeline, default=[], metavar="FILE", help="a timeline of scheduled events, TOML or JSON")
    add("--enable-delay", type=seconds, default=0.0, metavar="SECONDS", help=_ENABLE_HELP)
    add("--speed", type=speed, default=1.0, metavar="N", help="pass scheduled events N times as fast (1)")


def _add_trouble(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--latency", type=seconds, default=0.0, metavar="SECONDS", help="time added to every answer (0)")
    add("--rate", type=count, default=5, metavar="N", help="requests a second, 0 for no limit (%(default)s)")
    add("--identity-rate", type=count, default=20, metavar="N", help="the same for identity (%(default)s)")
    add("--strict", action="store_true", help="refuse what IMDS does not document, so that no program relies on it")
    add("--fault", type=fault, action="append", default=[], metavar="SPEC", help=_FAULT_HELP)


async def _serve(options: argparse.Namespace, machine: VirtualMachine, keys: Keys, lender: AzTokens | None) -> int:
    emulator = Emulator(
        lender=lender,
        keys=keys,
        machine=machine,
        rate=options.rate,
        identity_rate=options.identity_rate,
        token_life=options.token_life,
        latency=options.latency,
        enable_delay=options.enable_delay,
        speed=options.speed,
        strict=options.strict,
    )
    if options.quiet:
        logging.getLogger("imdsproxy.emulator").setLevel(logging.ERROR)
    stop = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_set_by_signals(stop))
        try:
            server = await stack.enter_async_context(serving(emulator, options.host, options.port))
        except OSError as error:
            # asyncio puts the address before the system's words, and from Python 3.13 on their number, too.
            reason = (error.strerror or str(error)).rpartition("): ")[2].rpartition("] ")[2]
            advice = "choose another --host or --port (0 takes a free one)"
            _write(sys.stderr, f"{PROGRAM}: cannot listen at {options.host}, port {options.port}: {reason}; {advice}\n")
            return USAGE_ERROR
        # Added only now, so that `for=20` and `at = 20` count from the start of serving.
        emulator.faults.add(*options.fault)
        for event in options.events:
            emulator.events.add(**event)
        _write(sys.stdout, f"emulator: {server.url}\n")
        if lender is not None:
            stack.callback(lender.end)
            _write(sys.stderr, f"{az_tokens.WARNING.format(url=server.url)}\n")
        if not options.quiet:
            _write(sys.stdout, f"{hint(server.url, machine)}\n")
            if keys.available and lender is None:
                _write(sys.stdout, f"tokens: {keys.url}/{machine.tenant_id}/.well-known/openid-configuration\n")
            if keys.available:
                kept = "" if options.ca is None else f" (kept in {options.ca})"
                _write(sys.stdout, f"root certificate: {keys.url}/-/ca.pem{kept}\n")
        await stop.wait()
    return 0


def hint(url: str, machine: VirtualMachine) -> str:
    """Return the line that shows how to ask the emulator, with an api-version that its region offers."""
    version = _COMMON_VERSION if _COMMON_VERSION in machine.versions else machine.versions[-1]
    return f'try: curl -H Metadata:true "{url}/metadata/instance?api-version={version}"'


def _write(stream: TextIO | None, text: str) -> None:
    """Write to a stream, and ignore one that is closed or has lost its reader."""
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.write(text)
            stream.flush()


@contextlib.contextmanager
def _set_by_signals(stop: asyncio.Event) -> Iterator[None]:
    """Set the event on SIGINT and SIGTERM, and on SIGBREAK on Windows.

    Call it in the main thread, which alone receives signals.
    """
    loop = asyncio.get_running_loop()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if sys.platform == "win32":
        numbers.append(signal.SIGBREAK)  # Ctrl-Break, and a console that is closed
    previous = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        try:
            loop.add_signal_handler(number, stop.set)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    try:
        yield
    finally:
        for number, handler in previous.items():
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, handler)
