"""A real proxy leaves its entries at a clean end, and the next one begins with them."""

from __future__ import annotations

import signal
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from imdsproxy.emulator import Emulator, run_in_thread
from tests.kit import Arrivals, get, is_hit, refused_start, running_proxy, wait_for_log
from tests.targets import INSTANCE, TOKEN

pytestmark = [
    pytest.mark.process,
    pytest.mark.any_python,
    pytest.mark.skipif(sys.platform != "linux", reason="entries are handed over on Linux only"),
]


def test_restart_keeps_documents_and_no_token_and_a_killed_proxy_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "handover"
    with run_in_thread(Emulator(rate=0)) as imds:
        settings: Any = {"upstream": imds.url, "handover_file": file}
        with running_proxy(tmp_path, **settings) as first:
            token = get(first.port, TOKEN)
            assert (get(first.port, INSTANCE).status, token.status) == (200, 200)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert b"access_token" not in file.read_bytes()

        instances, tokens = Arrivals(imds, INSTANCE.partition("?")[0]), Arrivals(imds, TOKEN.partition("?")[0])
        with running_proxy(tmp_path, **settings) as second:
            assert not file.exists()
            assert is_hit(get(second.port, INSTANCE))
            assert not is_hit(get(second.port, TOKEN))
            assert (len(instances()), len(tokens())) == (0, 1)
            wait_for_log(second, "entries taken over")
            second.signal(signal.SIGKILL)
            second.process.wait(60)
        assert not file.exists()


def test_path_without_a_folder_is_refused_with_the_remedy(tmp_path: Path) -> None:
    told = refused_start(handover_file=tmp_path / "none" / "handover")
    assert "is not a folder; make it" in told
    assert "IMDSPROXY_HANDOVER_FILE" in told
