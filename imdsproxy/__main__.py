"""`python -m imdsproxy` is the same as the command `imdsproxy`."""

import sys

from imdsproxy.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
