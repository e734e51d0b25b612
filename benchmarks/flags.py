"""The values of flags that several commands have. Each function raises ArgumentTypeError with the value it refuses."""

from __future__ import annotations

import argparse
from pathlib import Path


def file(text: str) -> Path:
    """Return the path of a file that can be written. It is checked before minutes are spent on its content."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a file in an existing folder")
    return path


def folder(text: str) -> Path:
    """Return the path of a folder, and make the folder if it does not exist."""
    path = Path(text)
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder and cannot be made: {error.strerror}") from None
    return path
