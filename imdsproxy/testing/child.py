"""The proxy as a child of a test run: it ends when its standard input does, so that it never outlives the run."""

from __future__ import annotations

import os
import signal
import sys
import threading

from imdsproxy.cli.main import main


def _end_with_the_input() -> None:
    while os.read(0, 4096):  # not through sys.stdin, whose lock the interpreter takes when it ends
        pass
    signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_input, daemon=True).start()
    sys.exit(main())
