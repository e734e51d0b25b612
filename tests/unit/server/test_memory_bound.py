"""The stated bound of the memory, and the connections that fit into a limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from imdsproxy.config import Config
from imdsproxy.server.memory_bound import MOST_CONNECTIONS, beside, connections_within, memory_limit, most_memory

MIB = 1 << 20
CACHE = Config().cache_max_bytes
BODY = Config().max_body_bytes


def test_bound_of_the_defaults_equals_the_documented_one() -> None:
    assert round(most_memory(CACHE, BODY, MOST_CONNECTIONS) / MIB) in {259, 260}
    assert round(most_memory(CACHE, BODY, 100) / MIB) == 134


@pytest.mark.parametrize(
    ("limit", "connections"),
    [
        (None, MOST_CONNECTIONS),
        (1 << 40, MOST_CONNECTIONS),
        (288 * MIB, MOST_CONNECTIONS),
        (200 * MIB, 2200),
        (160 * MIB, 920),
        (100 * MIB, 0),
    ],
)
def test_connections_within_grows_with_the_limit(limit: int | None, connections: int) -> None:
    assert connections_within(limit, CACHE, BODY) == connections


@pytest.mark.parametrize(
    ("pods", "traces", "more"), [(False, False, 0), (True, False, 14), (False, True, 48), (True, True, 62)]
)
def test_optional_parts_in_use_add_to_the_bound(pods: bool, traces: bool, more: int) -> None:
    optional = beside(pods=pods, traces=traces)
    assert most_memory(CACHE, BODY, 100, optional) - most_memory(CACHE, BODY, 100) == more * MIB
    assert (
        connections_within(200 * MIB, CACHE, BODY) - connections_within(200 * MIB, CACHE, BODY, optional) == more * 32
    )


def test_connections_within_a_limit_do_not_exceed_it() -> None:
    for limit in range(140 * MIB, 280 * MIB, 7 * MIB):
        assert most_memory(CACHE, BODY, connections_within(limit, CACHE, BODY)) <= limit


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")
    return root


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "167772160\n"}, 160 * MIB),
        (
            {
                "proc/self/cgroup": "0::/system.slice/imdsproxy.service\n",
                "sys/fs/cgroup/system.slice/imdsproxy.service/memory.max": "301989888\n",
                "sys/fs/cgroup/system.slice/imdsproxy.service/memory.high": "285212672\n",
                "sys/fs/cgroup/system.slice/memory.max": "max\n",
            },
            272 * MIB,
        ),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "301989888\n",
                "sys/fs/cgroup/a/memory.max": "104857600\n",
            },
            100 * MIB,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,memory:/x\n1:name=systemd:/y\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "104857600\n",
            },
            100 * MIB,
        ),
        ({"proc/self/cgroup": "nonsense\n\n"}, None),
        # In a container the path may be one of the host's, which is not there.
        ({"proc/self/cgroup": "0::/../../pod/1\n", "sys/fs/cgroup/memory.max": "104857600\n"}, 100 * MIB),
    ],
)
def test_limit_is_the_smallest_of_the_group_and_those_above_it(
    tmp_path: Path, files: dict[str, str], limit: int | None
) -> None:
    assert memory_limit(_write(tmp_path, files)) == limit
