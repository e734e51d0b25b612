"""The proxy as a configured `http_proxy`."""

from __future__ import annotations

import urllib.error
import urllib.request

import httpx
import pytest

from imdsproxy.emulator import EmulatorServer
from tests.kit import METADATA, Arrivals, ProxyProcess, unused
from tests.targets import INSTANCE, TOKEN

pytestmark = pytest.mark.process


@pytest.mark.parametrize(
    ("target", "status"), [(INSTANCE, 200), (TOKEN, 200), ("/metadata/unknown", 404), ("/elsewhere", 404)]
)
def test_httpx_can_use_it_as_an_http_proxy(proxy: ProxyProcess, target: str, status: int) -> None:
    with httpx.Client(proxy=proxy.url, trust_env=False, timeout=30) as client:
        for _ in range(2):
            assert client.get(f"http://169.254.169.254{target}", headers=METADATA).status_code == status


def test_urllib_can_use_it_as_an_http_proxy(proxy: ProxyProcess, imds: EmulatorServer, arrivals: Arrivals) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": proxy.url}))
    target = unused(INSTANCE)
    for host in ("169.254.169.254", "169.254.169.254:80", imds.url.removeprefix("http://")):
        request = urllib.request.Request(f"http://{host}{target}", headers=METADATA)
        with opener.open(request, timeout=30) as response:
            assert (response.status, response.headers["server"][:5]) == (200, "IMDS/")
    assert arrivals.targets() == [target], "in origin-form, and once for all spellings of the host"
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener.open(urllib.request.Request(f"http://10.0.0.1{target}", headers=METADATA), timeout=30)
    with refused.value:
        assert refused.value.code == 403
