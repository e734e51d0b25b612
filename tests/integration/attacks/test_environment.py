"""The environment of the process does not change where requests go."""

from __future__ import annotations

from pathlib import Path

import pytest

from imdsproxy.emulator import EmulatorServer
from tests.integration.attacks.kit import Starter, check_log
from tests.kit import METADATA, get
from tests.targets import INSTANCE, TOKEN

pytestmark = [pytest.mark.any_python, pytest.mark.process]


@pytest.mark.attack(12)
def test_environment_changes_nothing_about_where_requests_go(
    imds: EmulatorServer,
    start: Starter,
    trap: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    elsewhere = f"http://user:hunter2@127.0.0.1:{trap}"
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, elsewhere)
        monkeypatch.setenv(name.upper(), elsewhere)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "example.com")
    for name in (".netrc", "_netrc"):
        (tmp_path / name).write_text("default login user password hunter2\n", encoding="ascii")
        (tmp_path / name).chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    keys = tmp_path / "keys"
    monkeypatch.setenv("SSLKEYLOGFILE", str(keys))
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(tmp_path / "missing"))
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    monkeypatch.setenv("UVICORN_PORT", str(trap))
    before = len(imds.emulator.arrivals)
    with start(imds.url) as process:
        answers = [get(process.port, target) for target in (TOKEN, INSTANCE, "/metadata/unknown")]
        assert [answer.status for answer in answers] == [200, 200, 404]
        assert get(process.port, TOKEN, {**METADATA, "X-Forwarded-For": "10.0.0.1"}).status == 400
        log = process.log
    arrivals = imds.emulator.arrivals[before:]
    assert len(arrivals) == 4  # the three, and the question for readiness
    for arrival in arrivals:
        assert arrival.target.startswith(b"/metadata/")
        assert not any(b"authorization" in name or b"hunter2" in value for name, value in arrival.headers)
    assert not keys.exists()
    assert "hunter2" not in log
    check_log(log)
