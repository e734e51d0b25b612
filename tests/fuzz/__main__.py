"""Search for inputs that are read wrongly: `python -m tests.fuzz [--seconds N] [NAME...]`.

atheris guides the search by coverage where it is installed (requirements/fuzz.txt; it has wheels for Linux on x86_64
alone). Elsewhere Hypothesis searches, which keeps what it finds in its database. Each harness runs in a process of its
own, because a search ends with the first fault. What was tried stays in `.fuzz/NAME`, for the next search. An input
that is read wrongly is written to `tests/fuzz/regressions/NAME`, where the tests find it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
REGRESSIONS = Path(__file__).parent / "regressions"
CORPUS = ROOT / ".fuzz"
NAMES = ("target", "request", "connection", "cache-status", "token", "budget-file", "access-file", "settings")
LONGEST = 8_192
"""Bytes of an input."""


def main(argv: Sequence[str] | None = None) -> int:
    """Search with each harness in turn; return 1 if one of them has found a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="time for each harness (%(default)s)")
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)
    # Some releases of Python check the default against the choices as well, as a whole.
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], default=[], help="all by default")
    options = parser.parse_args(argv)
    guided = importlib.util.find_spec("atheris") is not None
    if options.within:
        return (search_guided if guided else search)(options.names[0], options.seconds)
    _say("guided by coverage (atheris)" if guided else "atheris is not installed: Hypothesis searches")
    failed = [name for name in options.names or NAMES if _run(name, options.seconds)]
    _say(f"faults: {', '.join(failed) or 'none'}")
    return int(bool(failed))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()  # before the output of the next process


def _run(name: str, seconds: int) -> bool:
    _say(f"--- {name}, {seconds} s")
    command = [sys.executable, "-m", "tests.fuzz", "--within", "--seconds", str(seconds), name]
    return subprocess.run(command, cwd=ROOT, check=False).returncode != 0


def search_guided(name: str, seconds: int) -> int:
    """Search with atheris, which ends the process."""
    atheris = importlib.import_module("atheris")

    with atheris.instrument_imports(include=["imdsproxy"]):
        from tests.fuzz.harnesses import HARNESSES  # noqa: PLC0415  # instrumented while it is imported
    corpus, found = CORPUS / name, REGRESSIONS / name
    corpus.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    _write_seeds(corpus, HARNESSES[name].seeds)
    limits = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=20", f"-artifact_prefix={found}/"]
    atheris.Setup([sys.argv[0], str(corpus), *limits, "-print_final_stats=1"], HARNESSES[name].run)
    atheris.Fuzz()  # ends the process, with a status that is not 0 after a fault
    return 0


def search(name: str, seconds: int) -> int:
    """Search with Hypothesis; raise what the harness raises, after its input is written."""
    from hypothesis import HealthCheck, Phase, given, settings  # noqa: PLC0415  # not needed by the other search
    from hypothesis import strategies as st  # noqa: PLC0415  # as above

    from tests.fuzz.harnesses import HARNESSES  # noqa: PLC0415  # not before the other search instruments it

    harness = HARNESSES[name]
    end = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < end:

        @settings(max_examples=1_000, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(st.one_of(st.binary(max_size=LONGEST), st.sampled_from(harness.seeds)))
        def run(data: bytes) -> None:
            nonlocal tried
            tried += 1
            if time.monotonic() < end:
                try:
                    harness.run(data)
                except Exception:
                    _write_seeds(REGRESSIONS / name, [data])
                    raise

        run()
    _say(f"{tried} inputs")
    return 0


def _write_seeds(folder: Path, inputs: Sequence[bytes]) -> None:
    import hashlib  # noqa: PLC0415  # for names alone

    folder.mkdir(parents=True, exist_ok=True)
    for data in inputs:
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
