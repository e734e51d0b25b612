"""`python -m imdsproxy.emulator`: the same as `imdsproxy emulator`."""

import sys

from imdsproxy.emulator.cli import main

if __name__ == "__main__":
    sys.exit(main())
