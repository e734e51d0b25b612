"""Standard input, output and error, which may be closed, or lose their readers, without harm to a command."""

from __future__ import annotations

import contextlib
import io
import os
import sys


def open_missing() -> None:
    """Open the null device in place of each standard stream that is closed (`imdsproxy <&- >&- 2>&-`).

    Else the next sockets would get their numbers, which libuv refuses to close: it aborts the process.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, so the missing one
            if number <= 2:
                os.set_inheritable(number, True)  # noqa: FBT003  # the standard library's signature
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def show(text: str) -> bool:
    """Write to standard output; return whether it still has a reader.

    What its encoding lacks is escaped, as on standard error: a Windows pipe has one code page, a path any character.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:
        # The reader, such as `head`, has closed the pipe; on Windows that is no BrokenPipeError. Discard the rest,
        # because the interpreter would try to write it again at exit and print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def complain(text: str) -> None:
    """Write a line to standard error; a missing reader must not change the exit status."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{text}\n")
