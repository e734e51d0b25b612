"""Run the proxy, and at its end write all modules that it has loaded: `python -m tests.loaded FILE`.

A line has a module's name, and `installed` if the module is in a folder of installed packages.
"""

from __future__ import annotations

import sys
from pathlib import Path

from imdsproxy.cli.main import main

if __name__ == "__main__":
    status = main([])
    files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
    lines = [f"{name} installed\n" if "site-packages" in file else f"{name}\n" for name, file in files.items()]
    Path(sys.argv[1]).write_text("".join(lines), encoding="ascii")
    sys.exit(status)
