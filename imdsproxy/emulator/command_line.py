"""Report a command line that the emulator's commands cannot read."""

from __future__ import annotations

import argparse
from typing import NoReturn

USAGE_ERROR = 2


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        """Write the error in one line, and exit with status 2."""
        self.exit(USAGE_ERROR, f"{self.prog}: {message.removeprefix('argument ')} (--help lists every flag)\n")
