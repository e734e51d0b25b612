"""Ask for tokens by azure-identity or msal, in a process of its own: `python -m benchmarks.soak.sdk LIBRARY`.

It writes `ready`. For each line with a resource on standard input it asks for a token, and writes one line: `200`, or
the status or the words of the failure.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from http import HTTPStatus

from benchmarks.soak.outcomes import IN_TROUBLE, WRONG
from imdsproxy.protocol.messages import Failure, FailureKind
from tests.loopback import only_loopback

_STATUS = re.compile(r"\b(?:status|code|[Rr]esponse)\D{0,20}([45]\d\d)\b|\b(4(?:10|29)|50[0234])\b")

# msal leaves the status out, and passes on the words of IMDS, which are HTTP's, or the name of the proxy's own error.
_PHRASES = {HTTPStatus(int(status)).phrase.lower(): status for status in IN_TROUBLE}
_NAMES = {refusal.error: str(refusal.status) for refusal in (Failure(kind, "").refusal(1) for kind in FailureKind)}


def _azure_identity() -> Callable[[str], str]:
    from azure.core.exceptions import ClientAuthenticationError  # noqa: PLC0415  # only one library is loaded
    from azure.identity import CredentialUnavailableError, ManagedIdentityCredential  # noqa: PLC0415

    def ask(resource: str) -> str:
        # A new credential each time, because each keeps its token in memory.
        with ManagedIdentityCredential() as credential:
            try:
                token = credential.get_token(f"{resource}/.default")
            except (ClientAuthenticationError, CredentialUnavailableError) as error:
                return failure(str(error))
            return "200" if token.token and token.expires_on > time.time() else WRONG

    return ask


def _msal() -> Callable[[str], str]:
    import msal  # noqa: PLC0415  # only one library is loaded
    import requests  # noqa: PLC0415

    def ask(resource: str) -> str:
        with requests.Session() as session:
            client = msal.ManagedIdentityClient(msal.SystemAssignedManagedIdentity(), http_client=session)
            try:
                answer = client.acquire_token_for_client(resource=resource)
            except requests.RequestException as error:
                return failure(str(error))
        if "access_token" not in answer:
            return failure(str(answer))
        return "200" if answer["expires_in"] > 0 else WRONG

    return ask


def failure(text: str) -> str:
    """Return the status that a failure names, or else its words in one line."""
    found = _STATUS.search(text)
    if found:
        return str(next(filter(None, found.groups())))
    named = _NAMES | _PHRASES
    return next((status for words, status in named.items() if words in text.lower()), " ".join(text.split())[:200])


LIBRARIES: dict[str, Callable[[], Callable[[str], str]]] = {"azure-identity": _azure_identity, "msal": _msal}


def main() -> None:
    """Serve the lines of standard input."""
    only_loopback()
    ask = LIBRARIES[sys.argv[1]]()
    _write("ready")
    for line in sys.stdin:
        _write(ask(line.strip()))


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
