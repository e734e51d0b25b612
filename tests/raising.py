"""The proxy with a fault: it cannot store a token of the resource `raise`. Run as `python -m tests.raising`."""

from __future__ import annotations

import sys

from imdsproxy.cache.freshness import Entry
from imdsproxy.cache.store import Store
from imdsproxy.cli.main import main as run
from imdsproxy.protocol.messages import Key

_put = Store.put


def _raise(store: Store, key: Key, entry: Entry) -> bool:
    if "resource=raise" in key:
        raise LookupError(entry, store.find(key))  # as code would raise it that shows what it holds
    return _put(store, key, entry)


def main() -> int:
    """Run the proxy of this command line."""
    Store.put = _raise  # type: ignore[method-assign,assignment]
    return run()


if __name__ == "__main__":
    sys.exit(main())
