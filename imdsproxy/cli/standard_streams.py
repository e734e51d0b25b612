"""Standard input, output and error. A command works even if they are closed, or have lost their readers."""

from __future__ import annotations

import contextlib
import io
import os
import sys


def open_missing() -> None:
    """Open the null device in place of each standard stream that is closed (`imdsproxy <&- >&- 2>&-`).

    Otherwise the next sockets would get their numbers, and libuv aborts the process when it closes such a socket.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is the missing one
            if number <= 2:
                os.set_inheritable(number, True)  # noqa: FBT003  # the standard library's signature
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def show(text: str) -> bool:
    """Write to standard output; return whether it still has a reader.

    Characters that its encoding lacks are escaped, as on standard error. A Windows pipe has one code page, and a path
    can have any character.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:
        # The reader, such as `head`, has closed the pipe; on Windows this raises no BrokenPipeError. Discard the rest,
        # because the interpreter would try to write it again at exit and print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def complain(text: str) -> None:
    """Write a line to standard error. A missing reader does not change the exit status."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{text}\n")
