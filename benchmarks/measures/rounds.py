"""The order of the servers in a round."""

from __future__ import annotations

from collections.abc import Sequence


def rotated(names: Sequence[str], number: int) -> list[str]:
    """Return the order for a round. Each round starts with another name, so that none always follows the same one."""
    first = number % len(names) if names else 0
    return [*names[first:], *names[:first]]
