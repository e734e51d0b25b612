"""The commands: one module a command, and the checks before the proxy starts.

`main` parses the command line and imports a command only when it runs, so that `--help` is fast. No other room imports
from here.
"""
