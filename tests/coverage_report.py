"""Check the coverage of the tests: every branch of the pure rooms, and most of the whole package.

`tests/test_architecture.py` names the pure rooms, so that they are listed once.
"""

from __future__ import annotations

import sys

from coverage import Coverage

from tests.test_architecture import PACKAGE, PURE_FILES

WHOLE = 90.0
PURE = 100.0


def main() -> int:
    """Print what the last run did not cover, and return 1 where that is too much."""
    coverage = Coverage()
    coverage.load()
    whole = coverage.report(skip_covered=True, show_missing=True)
    pure = coverage.report(include=[str(PACKAGE / f"{name}.py") for name in PURE_FILES], show_missing=True)
    if whole < WHOLE or pure < PURE:
        sys.stderr.write(f"covered: {whole:.1f} % of the package (at least {WHOLE}), {pure:.2f} % of the pure rooms\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
