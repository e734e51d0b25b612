from __future__ import annotations

import pytest

from imdsproxy.cache.shares import divide


@pytest.mark.parametrize("max_bytes", [1, 15, 1000, 20_000, 1 << 24, 1 << 40])
def test_shares_add_up_to_the_setting(max_bytes: int) -> None:
    shares = divide(max_bytes)
    parts = (shares.entries, shares.heads, shares.readings, shares.routes, shares.guards)
    assert sum(parts) == max_bytes
    assert min(parts) >= 0


@pytest.mark.parametrize(("max_bytes", "keys"), [(1, 64), (1 << 20, 64), (1 << 24, 672), (1 << 40, 4096)])
def test_minimum_of_keys_is_guarded_for_any_setting(max_bytes: int, keys: int) -> None:
    assert divide(max_bytes).keys == keys
