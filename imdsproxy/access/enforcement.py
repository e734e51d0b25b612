"""Put the access file in force at the start, and again when it has changed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from imdsproxy.access.groups import Memberships
from imdsproxy.access.guard import Guard, RefusedAccess
from imdsproxy.access.loading import rules_in_force
from imdsproxy.access.rules import Mode, Rules
from imdsproxy.errors import SettingsError
from imdsproxy.protocol.peer import Pod

logger = logging.getLogger(__name__)


def enforce(
    path: str,
    *,
    audit: bool,
    observers: Sequence[Callable[[RefusedAccess], None]],
    pod_at: Callable[[str], Pod | None] | None = None,
    memberships: Memberships | None = None,
) -> Guard:
    """Return the guard for an access file.

    Args:
        path: The file.
        audit: Whether refusals are only reported to the observers, whatever the mode of the file.
        observers: Called with each refusal.
        pod_at: Returns the pod that has an address, or None if that is unknown; None if pods are never known.
        memberships: What is known of the groups of users; None if nothing is.

    Raises:
        SettingsError: The file is not sound.
    """

    def observe_all(refused: RefusedAccess) -> None:
        for observe in observers:
            observe(refused)

    rules, warnings = rules_in_force(path, pods_known=pod_at is not None)
    guard = Guard(
        rules, audit=audit, observe=observe_all, pod_at=pod_at, groups_of=(memberships or Memberships()).known
    )
    _report(path, guard, warnings)
    return guard


def reload(path: str, guard: Guard, memberships: Memberships | None = None) -> None:
    """Put a file that has changed in force. If it is not sound, log why, and keep the rules.

    The groups of users are looked up again in any case.
    """
    if memberships is not None:
        memberships.forget()
    try:
        rules, warnings = rules_in_force(path, pods_known=guard.knows_pods)
    except SettingsError as error:
        fields: dict[str, object] = {"because": str(error), "rules": len(guard.rules.rules)}
        logger.error("access file not taken up; the earlier rules stay in force", extra={"fields": fields})  # noqa: TRY400  # the reason is for people
        return
    guard.replace(rules)
    _report(path, guard, warnings)


def _report(path: str, guard: Guard, warnings: list[str]) -> None:
    for warning in warnings:
        logger.warning(warning)
    rules: Rules = guard.rules
    mode = rules.mode if rules.mode is Mode.DISABLED else Mode.ENFORCE if guard.enforces else Mode.AUDIT
    fields: dict[str, object] = {"file": path, "rules": len(rules.rules), "mode": mode.value}
    fields["default"] = "allow" if rules.default_allows else "deny"
    logger.info("access rules in force", extra={"fields": fields})
