"""The command `imdsproxy emulator`: an emulated IMDS on a local port, with faults by flag."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import math
import signal
import sys
from typing import TYPE_CHECKING, NoReturn, TextIO

from imdsproxy.emulator.emulator import Emulator
from imdsproxy.emulator.faults import Fault
from imdsproxy.emulator.server import serving

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PROGRAM = "imdsproxy emulator"
DEFAULT_PORT = 8255
_LAST_PORT = 65_535
_USAGE_ERROR = 2

_FAULT_HELP = (
    "add a fault; may be repeated. A fault is a comma-separated list of what happens (status=N, hang, reset, truncate "
    "or garbage, and latency=SECONDS) and when (for=SECONDS, times=N, share=0..1, path=PREFIX); retry-after=TEXT goes "
    "with a status. Examples: status=410,for=20; status=500,share=0.1,path=/metadata/instance; hang,times=1"
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Write the error in one line, and exit with status 2."""
        self.exit(_USAGE_ERROR, f"{self.prog}: {message.removeprefix('argument ')} (--help lists every flag)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command until SIGINT, SIGTERM or, on Windows, SIGBREAK.

    Returns:
        0, or 2 after one line on standard error.
    """
    try:
        options = make_parser().parse_args(argv)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return asyncio.run(_serve(options))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = _Parser(
        prog=PROGRAM,
        description="Azure's Instance Metadata Service, emulated on this machine.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=_port, default=DEFAULT_PORT, help="port to listen on, 0 for a free one (%(default)s)")
    add("--latency", type=_seconds, default=0.0, metavar="SECONDS", help="time added to every answer (0)")
    add("--rate", type=_count, default=5, metavar="N", help="requests a second, 0 for no limit (%(default)s)")
    add("--identity-rate", type=_count, default=20, metavar="N", help="the same for identity (%(default)s)")
    add("--token-life", type=_seconds, default=86_400.0, metavar="SECONDS", help="lifetime of an access token (86400)")
    add("--fault", type=_fault, action="append", default=[], metavar="SPEC", help=_FAULT_HELP)
    add("--quiet", action="store_true", help="print only the address")
    return parser


async def _serve(options: argparse.Namespace) -> int:
    emulator = Emulator(
        rate=options.rate,
        identity_rate=options.identity_rate,
        token_life=options.token_life,
        latency=options.latency,
    )
    if options.quiet:
        logging.getLogger("imdsproxy.emulator").setLevel(logging.ERROR)
    stop = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_set_by_signals(stop))
        try:
            server = await stack.enter_async_context(serving(emulator, options.host, options.port))
        except OSError as error:
            reason = error.strerror or str(error)
            advice = "choose another --host or --port (0 takes a free one)"
            _write(sys.stderr, f"{PROGRAM}: cannot listen: {reason}; {advice}\n")
            return _USAGE_ERROR
        # Added only now, so that `for=20` counts from the start of serving.
        emulator.faults.add(*options.fault)
        _write(sys.stdout, f"emulator: {server.url}\n")
        if not options.quiet:
            target = f"{server.url}/metadata/instance?api-version=2021-02-01"
            _write(sys.stdout, f'try: curl -H Metadata:true "{target}"\n')
        await stop.wait()
    return 0


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


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > _LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a number from 0 to {_LAST_PORT}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate; give a whole number, 0 for no limit")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; give seconds, 0 or more, e.g. 0.2")
    return seconds


def _fault(text: str) -> Fault:
    """Read a fault such as `status=410,for=20` or `hang,times=1`."""
    mapping: dict[str, str | bool] = {}
    try:
        for item in text.split(","):
            key, equals, value = item.strip().partition("=")
            if key in mapping:
                raise ValueError(f"{key} is given twice")  # noqa: TRY301 - reported like every other mistake
            mapping[key] = value if equals else True
        return Fault.from_mapping(mapping)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}; e.g. status=410,for=20") from None
