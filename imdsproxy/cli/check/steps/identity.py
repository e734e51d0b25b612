"""Whether the VM has a managed identity that IMDS issues tokens for. Asked only with `--identity`."""

from __future__ import annotations

from imdsproxy.cli.check.documents import words
from imdsproxy.cli.check.facts import Facts
from imdsproxy.cli.check.finding import Finding, failure, ok, skipped, warning


def judge_identity(facts: Facts) -> Finding:
    """Check that IMDS issues an access token."""
    token = facts.token
    if token is None:
        return skipped("identity-not-asked", "not asked for a token", "imdsproxy check --identity asks for one")
    got = token.exchange
    if got.status is None:
        return skipped("identity-unknown", "not checked, because nothing answers", "see the step answer")
    if got.status == 200 and token.expires_in is not None:
        return ok(f"an access token with {token.expires_in} s to live, which is not shown", asked=got.asked)
    told = words(got.body, "error_description")
    found = f"{got.asked} answers {got.status}{f': {told}' if told else ''}"
    if got.status == 400 and "not found" in told.lower():
        advice = "assign a managed identity to this VM (Azure portal, Identity), or name one that it has"
        return failure("identity-none", found, advice, asked=got.asked)
    if got.status == 400 and "multiple" in told.lower():
        advice = "name the identity: imdsproxy check --identity CLIENT-ID; clients have to name it as well"
        return failure("identity-ambiguous", found, advice, asked=got.asked)
    if got.status in {410, 429} or got.status >= 500:
        advice = "IMDS is busy or being updated; try again in a minute"
        return warning("identity-later", found, advice, asked=got.asked)
    advice = "see whether DENY or a firewall forbids identity paths, and the identity's state in the Azure portal"
    return failure("identity-refused", found, advice, asked=got.asked)
