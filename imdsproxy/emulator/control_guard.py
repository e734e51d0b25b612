"""Who may use the paths under `/-/`: programs, and the emulator's own page, but no other page in a browser.

1. The Host is an IP address, `localhost` or a name without a dot. A name that a stranger's DNS server binds to this
   machine (DNS rebinding) always has a dot.
2. A request of a page (it has Origin, or a Sec-Fetch-Site other than `none`) is refused, unless it is of the same
   origin and repeats the token of the page in `X-Emulator-Page`. Browsers send Sec-Fetch-Site to this machine only
   (W3C Fetch Metadata: trustworthy URLs), and no Origin with a GET of the same origin, so rule 1 is needed as well.
3. A link may lead to the page itself: `GET /-/` as a navigation is answered.
"""

from __future__ import annotations

import hmac
import ipaddress

from imdsproxy.emulator.messages import Answer, Request, failure

PAGE_HEADER = "x-emulator-page"
PAGE = "/-/"
_PROGRAM = "Programs may use this path, and the emulator's own page; this request comes from another page in a browser"
_HOST = "Use an IP address, localhost or a name without a dot as host, so that no stranger's DNS name is this machine"


def refusal(request: Request, page_token: str) -> Answer | None:
    """Return the answer that refuses a request under `/-/`, None if it may be answered.

    Args:
        request: The request.
        page_token: What the emulator's own page knows, and no other page does.
    """
    hosts = request.values("host")
    if len(hosts) > 1 or not all(map(is_own_host, hosts)):
        return failure(403, message=_HOST)
    origins, sites = request.values("origin"), request.values("sec-fetch-site")
    if not origins and all(site == "none" for site in sites):
        return None
    if request.method == "GET" and request.path == PAGE and request.values("sec-fetch-mode") == ["navigate"]:
        return None
    same_origin = all(origin == f"http://{host}" for origin in origins for host in hosts or [""])
    same_site = all(site == "same-origin" for site in sites)
    shown = "".join(request.values(PAGE_HEADER)).encode()
    if same_origin and same_site and hmac.compare_digest(shown, page_token.encode()):
        return None
    return failure(403, message=_PROGRAM)


def is_own_host(host: str) -> bool:
    """Return whether a Host header, with or without a port, cannot be a name that a stranger bound to this machine."""
    name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if "." not in name and ":" not in name:
        return bool(name)
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower().endswith(".localhost")
    return True
