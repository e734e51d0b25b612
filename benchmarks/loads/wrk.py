"""wrk as the source of the load: its command line, and its output."""

from __future__ import annotations

import math
import re
from pathlib import Path

from benchmarks.figures import BenchmarkError
from benchmarks.loads.shapes import Sample, Shape
from benchmarks.targets import INSTANCE

_SCRIPT = Path(__file__).resolve().parent / "requests.lua"
_TIMEOUT = "10s"
_COUNT = re.compile(r"^ *(\d+) requests in ", re.MULTILINE)
_RATE = re.compile(r"^Requests/sec: +([\d.]+)$", re.MULTILINE)
_SHARE = re.compile(r"^ *(50|99)% +([\d.]+)(us|ms|s|m) *$", re.MULTILINE)
_LONGEST = re.compile(r"^ *Latency +\S+ +\S+ +([\d.]+)(us|ms|s|m) ", re.MULTILINE)
_REFUSED = re.compile(r"^ *Non-2xx or 3xx responses: (\d+)$", re.MULTILINE)
_BROKEN = re.compile(r"^ *Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)$", re.MULTILINE)
_MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


def command(program: str, port: int, shape: Shape, connections: int, seconds: float) -> list[str]:
    """Return the command line that loads a server at this port of 127.0.0.1; wrk takes whole seconds, rounded up."""
    options = ["-t", "1", "-c", str(connections), "-d", f"{math.ceil(seconds)}s", "--timeout", _TIMEOUT, "--latency"]
    url = f"http://127.0.0.1:{port}{INSTANCE}"
    match shape.kind:
        case "repeated":
            ends = ["-H", "Connection: close"] if shape.ends else []
            return [program, *options, "-H", "Metadata: true", *ends, url]
        case "differing":
            arguments = ["differing"]
        case "entries":
            arguments = ["entries", str(shape.entries)]
    return [program, *options, "-s", str(_SCRIPT), url, "--", *arguments, *(["close"] if shape.ends else [])]


def early(seconds: float) -> float | None:
    """Return the seconds after which to interrupt wrk, which then prints its report; None if it ends by itself."""
    return None if seconds == math.ceil(seconds) else seconds


def read(text: str) -> Sample:
    """Read the output of `wrk --latency`.

    Raises:
        BenchmarkError: The output has no rate or no times.
    """
    count, rate, longest = _COUNT.search(text), _RATE.search(text), _LONGEST.search(text)
    shares = {share: float(value) * _MILLISECONDS[unit] for share, value, unit in _SHARE.findall(text)}
    if count is None or rate is None or longest is None or shares.keys() != {"50", "99"}:
        raise BenchmarkError(f"wrk printed no rate: {' '.join(text.split())}")
    refused, broken = _REFUSED.search(text), _BROKEN.search(text)
    failed = (int(refused[1]) if refused else 0) + (sum(map(int, broken.groups())) if broken else 0)
    longest_ms = float(longest[1]) * _MILLISECONDS[longest[2]]
    return Sample(int(count[1]), float(rate[1]), shares["50"], shares["99"], longest_ms, failed)
