"""Run by Windows' Python: start a program in a new console, and send that console the event that a file names.

Arguments: the file, then the command line. Its exit status is the program's.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from pathlib import Path

assert sys.platform == "win32"

_LOOK = 0.02


def main(order: Path, command: list[str]) -> int:
    """Run the command; whatever is sent to the console does not end this process."""
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    handler = ctypes.WINFUNCTYPE(ctypes.c_int, ctypes.c_uint32)(lambda _event: 1)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as program:
        # Not before the program has begun, which would inherit that Ctrl-C is ignored.
        kernel.SetConsoleCtrlHandler(handler, 1)
        while program.poll() is None:
            if order.exists():
                event = int(order.read_text(encoding="ascii"))
                order.unlink()
                if not kernel.GenerateConsoleCtrlEvent(event, 0):
                    raise ctypes.WinError(ctypes.get_last_error())
            time.sleep(_LOOK)
        return program.returncode


if __name__ == "__main__":
    if sys.argv[1] == "--apart":
        sys.exit(main(Path(sys.argv[2]), sys.argv[3:]))
    # Wine gives a process with pipes no console that could get an event; this kind of process has one.
    again = [sys.executable, __file__, "--apart", *sys.argv[1:]]
    sys.exit(
        subprocess.run(
            again,
            stdin=subprocess.DEVNULL,
            stdout=sys.stdout,
            stderr=sys.stderr,
            creationflags=subprocess.CREATE_NO_WINDOW,
            check=False,
        ).returncode
    )
