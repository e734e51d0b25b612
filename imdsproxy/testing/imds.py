"""An emulated IMDS that a test controls, and whose arrivals it reads."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

from imdsproxy.emulator.emulator import Arrival, Emulator
from imdsproxy.emulator.faults import Fault
from imdsproxy.emulator.schedule import UNKNOWN_DURATION
from imdsproxy.emulator.server import EmulatorServer, run_in_thread
from imdsproxy.emulator.vm.fields import with_set
from imdsproxy.testing import counting
from imdsproxy.testing.options import Options, assignment, emulator_of
from imdsproxy.testing.variables import set_variables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PAUSE = 0.005


class Imds:
    """A running emulated IMDS. `url` is for clients, without a trailing slash."""

    def __init__(self, server: EmulatorServer) -> None:
        self.url = server.url
        self.port = server.port
        self.emulator: Emulator = server.emulator
        self._first = 0

    # What the machine is.

    def set(self, field: str, value: Any) -> None:
        """Change a field of the instance document, from now on.

        Args:
            field: The names on the way to the field, such as `compute.location` or `network.interface.0.macAddress`.
            value: The value, as JSON has it.

        Raises:
            ValueError: There is no such field, or it cannot have this value.
        """
        if field.partition(".")[0] not in {"compute", "network"}:
            raise ValueError(f"{field} is decided when the emulated IMDS starts: set={{{field!r}: …}}")
        machine = replace(self.emulator.machine.vm, instance=self.emulator.instance)
        self.emulator.instance = dict(with_set(machine, assignment(field, value)).instance)

    # What goes wrong.

    def fail(  # noqa: PLR0913 - one keyword for each property of a fault
        self,
        status: int | None = None,
        *,
        path: str = "/",
        for_: float | None = None,
        times: int | None = None,
        share: float = 1.0,
        body: str | None = None,
        retry_after: float | str | None = None,
        hang: bool = False,
        reset: bool = False,
        truncate: bool = False,
        garbage: bool = False,
    ) -> None:
        """Make requests fail from now on: with a status, which is 500 if nothing is named, or one broken connection.

        Args:
            status: The status of the answer, such as 410 or 429.
            path: The path that fails, with all paths below it.
            for_: Seconds; None is until `recover`.
            times: The number of requests that fail; None is all.
            share: The share of the requests that fail, from 0 to 1.
            body: The body of the answer; None is that of IMDS.
            retry_after: The Retry-After of the answer.
            hang: Accept the request and never answer.
            reset: End the connection with RST.
            truncate: Send a part of the body, and close.
            garbage: Send bytes that are not HTTP.

        Raises:
            ValueError: The values contradict each other.
        """
        if status is None and not (hang or reset or truncate or garbage):
            status = 500
        self.emulator.faults.add(
            Fault(
                path=_path(path),
                status=status,
                seconds=for_,
                times=times,
                share=share,
                body=body,
                retry_after=None if retry_after is None else str(retry_after),
                hang=hang,
                reset=reset,
                truncate=truncate,
                garbage=garbage,
            )
        )

    def slow_down(
        self, latency: float, *, path: str = "/", for_: float | None = None, times: int | None = None
    ) -> None:
        """Delay answers by `latency` seconds from now on; the other arguments are those of `fail`."""
        self.emulator.faults.add(Fault(path=_path(path), latency=latency, seconds=for_, times=times))

    def recover(self) -> None:
        """End every fault."""
        self.emulator.faults.clear()

    # What happens to the machine.

    def add_event(  # noqa: PLR0913 - one keyword for each property of an event
        self,
        event_type: str = "Reboot",
        *,
        in_: float | None = None,
        for_: float = UNKNOWN_DURATION,
        after: float = 0.0,
        cancel_after: float | None = None,
        resources: Sequence[str] | None = None,
        event_id: str | None = None,
    ) -> str:
        """Schedule an event, and return its id.

        Args:
            event_type: `Freeze`, `Reboot`, `Redeploy`, `Preempt`, `Terminate`, or another name of `emulator.schedule`.
            in_: Seconds from its announcement to the event; None is the shortest notice of its type.
            for_: The seconds that it takes, -1 if not known.
            after: Seconds until it is announced.
            cancel_after: Seconds from its announcement until it is cancelled; None is never.
            resources: The names of the machines; None is this machine.
            event_id: None makes one.

        Raises:
            ValueError: There is no such type, or a time is negative.
        """
        return self.emulator.events.add(
            event_type,
            notice=in_,
            duration=for_,
            after=after,
            cancel_after=cancel_after,
            resources=resources,
            event_id=event_id,
        )

    def remove_event(self, event_id: str) -> None:
        """Drop an event, whatever has become of it; raise ValueError if there is none of this id."""
        self.emulator.events.remove(event_id)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events as IMDS lists them, and those that are not announced yet.

        `EventStatus` is `Started` once a program has approved one. `StartsIn` and `EndsIn` are seconds from now.
        """
        return list(self.emulator.events.listing()["Events"])

    # What arrived.

    @property
    def arrivals(self) -> list[Arrival]:
        """The requests that have reached IMDS, oldest first."""
        return self.emulator.arrivals_since(self._first)

    def asked(self, target: str = "/", *, method: str | None = None) -> int:
        """Return how many requests have reached IMDS.

        Args:
            target: Count only those for this path and the paths below it, with these parameters at least:
                `/metadata/instance?api-version=2021-02-01`.
            method: Count only those with this method.
        """
        return len(self._matching(target, method))

    def worst_second(self, target: str = "/") -> int:
        """Return the most requests that have arrived within one second, whichever it is.

        Azure's IMDS answers 5 a second for a whole VM, and 20 below `/metadata/identity`.

        Args:
            target: Count only these, as in `asked`.
        """
        return counting.most_in_a_second(arrival.at for arrival in self._matching(target, None))

    def wait_until_asked(self, target: str = "/", *, times: int = 1, within: float = 5.0) -> None:
        """Wait until as many requests have reached IMDS.

        Args:
            target: Count only these, as in `asked`.
            times: The number of requests.
            within: Seconds.

        Raises:
            AssertionError: They have not come in time; the message lists what came.
        """
        end = time.monotonic() + within
        while (count := self.asked(target)) < times:
            if time.monotonic() > end:
                raise AssertionError(
                    f"{count} of {times} requests for {target} came within {within:g} s.\n{self.account()}"
                )
            time.sleep(_PAUSE)

    def account(self) -> str:
        """Return what arrived, and when, as lines for a person."""
        return counting.account(self.arrivals)

    def forget(self) -> None:
        """Count from now on: `arrivals`, `asked` and `worst_second` leave out what has arrived so far."""
        self._first += len(self.arrivals)

    def _matching(self, target: str, method: str | None) -> list[Arrival]:
        _path(target)
        return [
            arrival
            for arrival in self.arrivals
            if counting.matches(arrival, target) and (method is None or arrival.method == method.upper())
        ]


@contextlib.contextmanager
def emulator(*, environment: bool = True, **options: Unpack[Options]) -> Iterator[Imds]:
    """Run an emulated IMDS during the block, on a free port of this machine.

    Args:
        environment: Whether to set `AZURE_POD_IDENTITY_AUTHORITY_HOST` during the block, so that client libraries find
            it.
        options: See `Options`.

    Raises:
        ValueError: An option or a field does not exist; the message names those that do.
    """
    with contextlib.ExitStack() as stack:
        imds = Imds(stack.enter_context(run_in_thread(emulator_of(options))))
        if environment:
            stack.enter_context(set_variables(imds.url))
        yield imds


def _path(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"{path!r} is not a path of IMDS; it begins with a slash, such as /metadata/instance")
    return path
