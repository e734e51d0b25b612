"""`imdsproxy record` through a running proxy: the same recording as from IMDS, within the budget of the proxy."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from imdsproxy.cli.main import main
from imdsproxy.cli.record.asking import Asker
from imdsproxy.cli.record.conversation import conversation
from imdsproxy.cli.running.client import Place
from imdsproxy.emulator.vm.loading import load
from imdsproxy.testing import emulator, proxy


@pytest.mark.process
@pytest.mark.any_python
def test_running_proxy_is_asked_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "vm.toml"
    with (
        emulator(preset="windows", rate=0, environment=False) as imds,
        # A window in which all of the requests have their place.
        proxy(imds, environment=False, budget_requests=1000) as running,
    ):
        port = str(urlsplit(running.url).port)
        keep = "compute,network,tenantId"
        settings = ["--port", port, "--upstream", "http://127.0.0.1:1"]
        assert main(["record", "--out", str(out), "--keep", keep, *settings]) == 0
        parts = urlsplit(imds.url)
        direct = Asker(Place(imds.url, str(parts.hostname), parts.port or 0), lambda _seconds: None).hold(
            conversation()
        )
    told, progress = capsys.readouterr()
    assert f"asking http://127.0.0.1:{port};" in progress
    assert "replaced" not in told
    played = load(str(out)).recording
    assert played is not None
    assert played.answers == direct.answers
    # The proxy adds the header, so that this cannot be seen through it.
    assert dict(played.words) == {name: said for name, said in direct.words.items() if name != "no-header"}
