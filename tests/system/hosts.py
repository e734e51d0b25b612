"""Hosts made of Linux network namespaces: routing and nftables of a real kernel, in an isolated network.

A `Host` is a namespace that a descriptor of this process holds open. Nothing has a name outside of it, so nothing is
left behind: when the tests end, or are killed, the kernel takes the namespaces and the links between them away, and
every process started in one dies with the thread that started it.

    with Host("here") as here, Host("there") as there:
        link(here, "eth0", there, "eth0")
        here.ip("addr add 10.0.0.1/24 dev eth0", "link set eth0 up")
        here.run("ping", "-c1", "10.0.0.2")  # a command, to its end
        with here.start(sys.executable, "-m", "http.server") as process: ...
        with here.inside():  # this thread: its loopback is now the host's
            get(8000, "/")

Processes share this machine's files, users and `/sys`; only the network is the host's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self
from urllib.parse import urlsplit

from tests import forkserver
from tests.forkserver import ForkedProcess, Forkserver
from tests.kit import METADATA, ROOT
from tests.networks import Network

IMDS = "http://169.254.169.254"
ROOT_USER = 0

_CLIENT = ROOT / "tests" / "system" / "client.py"


@dataclass(frozen=True)
class Fetched:
    """What a client in a host got; header names in lower case. Where it got none, `status` is 0 and `error` set."""

    status: int
    headers: dict[str, str]
    body: bytes
    error: str
    seconds: float

    @property
    def by_proxy(self) -> bool:
        """Whether the proxy gave this answer: IMDS itself knows no Cache-Status."""
        return "cache-status" in self.headers

    @property
    def hit(self) -> bool:
        """Whether the proxy gave it from its cache."""
        return "hit" in [part.strip() for part in self.headers.get("cache-status", "").split(";")]


class Host:
    """A machine of one network namespace: its own interfaces, routes, nftables, sysctls and loopback."""

    def __init__(self, name: str) -> None:
        """Make the namespace, with its loopback up; OSError if this process may not."""
        self.name = name
        self._network = Network()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._network.close()

    @property
    def path(self) -> str:
        """The namespace's path, for `ip … netns PATH` and, from a shell, `nsenter --net=PATH`."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    @property
    def descriptor(self) -> int:
        """The open descriptor of the namespace, for `Forkserver.start`."""
        return self._network.descriptor

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Move the calling thread into the host and back; sockets made and threads started in it stay there."""
        with self._network.inside():
            yield

    def run(
        self,
        *command: str,
        user: int = ROOT_USER,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        timeout: float = 30,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and return its output as text. Raise AssertionError with the output if it fails.

        With `check=False`, return a failed command too. `env` is added to `environment(user)`. TimeoutExpired after
        `timeout` seconds.
        """
        with self.inside():
            done = subprocess.run(
                _as_user(user, command),
                env={**environment(user), **(env or {})},
                cwd=ROOT,
                input=stdin,
                timeout=timeout,
                capture_output=True,
                text=True,
                check=False,
            )
        if check:
            assert done.returncode == 0, f"{self.name}: {command} gave {done.returncode}:\n{done.stdout}{done.stderr}"
        return done

    def run_module(
        self,
        module: str,
        *arguments: str,
        imported_by: Callable[[], Forkserver],
        env: Mapping[str, str],
        user: int = ROOT_USER,
        timeout: float = 30,
    ) -> subprocess.CompletedProcess[str]:
        """Run a module of the checkout to its end, and return its output as text, for any exit status.

        Args:
            module: A module with `main()`; run by `python -m module` where nothing can be forked.
            arguments: The rest of the command line.
            imported_by: Returns the server to fork from.
            env: The whole environment.
            user: The user and group of the process.
            timeout: Seconds, after which TimeoutExpired is raised.
        """
        if not forkserver.AVAILABLE:
            variables = [f"{name}={value}" for name, value in env.items()]
            command = ("env", "-i", *variables, sys.executable, "-m", module, *arguments)
            return self.run(*command, user=user, timeout=timeout, check=False)
        pipe = subprocess.PIPE
        process = imported_by().start(
            module, arguments, env=env, user=user, network=self.descriptor, stdout=pipe, stderr=pipe
        )
        try:
            out, err = process.communicate(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess([module, *arguments], process.wait(60), out, err)

    @contextlib.contextmanager
    def start(
        self,
        *command: str,
        user: int = ROOT_USER,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> Iterator[subprocess.Popen[str]]:
        """Run a command in the background, its output going to `log`; ended on the way out, hard after 15 seconds."""
        with _output(log) as output, self.inside():
            process = subprocess.Popen(
                _as_user(user, command),
                env={**environment(user), **(env or {})},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                text=True,
            )
        try:
            yield process
        finally:
            _end(process)

    @contextlib.contextmanager
    def start_module(
        self,
        module: str,
        *arguments: str,
        user: int = ROOT_USER,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> Iterator[subprocess.Popen[str] | ForkedProcess]:
        """Run a module of the proxy's in the background, as `start` does with `python -m module`."""
        if not forkserver.AVAILABLE:
            with self.start(sys.executable, "-m", module, *arguments, user=user, env=env, log=log) as fresh:
                yield fresh
            return
        with _output(log) as output:
            process = forkserver.of_proxies().start(
                f"{module}.__main__",
                arguments,
                env={**environment(user), **(env or {})},
                user=user,
                network=self.descriptor,
                stdout=output,
                stderr=output,
            )
        try:
            yield process
        finally:
            _end(process)

    def ip(self, *commands: str) -> None:
        """Carry out `ip` commands in their order, each without the word itself."""
        with self.inside():  # without what `run` puts around a command, because there are thousands of these
            done = subprocess.run(
                ["ip", "-batch", "-"], input="\n".join(commands), capture_output=True, text=True, check=False
            )
        assert done.returncode == 0, f"{self.name}: {commands} gave {done.returncode}:\n{done.stdout}{done.stderr}"

    def nft(self, ruleset: str) -> None:
        """Load an nftables ruleset, whole or not at all."""
        self.run("nft", "-f", "-", stdin=ruleset)

    def sysctl(self, name: str, value: int) -> None:
        """Set a kernel setting of the host's network, named as `net.ipv4.ip_forward`."""
        with self.inside():
            Path("/proc/sys", *name.split(".")).write_text(f"{value}\n", encoding="ascii")

    def fetch(
        self, url: str, *, user: int = ROOT_USER, headers: Mapping[str, str] = METADATA, timeout: float = 10
    ) -> Fetched:
        """Ask from a process of its own in this host, `timeout` seconds long; a target alone is asked of IMDS."""
        return self.fetch_in_turn(url, 1, user=user, headers=headers, timeout=timeout)[0]

    def fetch_in_turn(
        self, url: str, times: int, *, user: int = ROOT_USER, headers: Mapping[str, str] = METADATA, timeout: float = 10
    ) -> list[Fetched]:
        """Ask so many times, one request after the other, each over a connection of its own."""
        whole = IMDS + url if url.startswith("/") else url
        url_parts = urlsplit(whole)
        target = f"{url_parts.path}?{url_parts.query}" if url_parts.query else url_parts.path
        fields = {"Host": url_parts.netloc, "Connection": "close", **headers}
        wish = json.dumps([url_parts.hostname, url_parts.port or 80, target, fields, times, timeout])
        longest = 30 + times * timeout
        if forkserver.AVAILABLE:
            done = self.run_module(
                "tests.system.client", wish, imported_by=forkserver.of_clients, env={}, user=user, timeout=longest
            )
            assert done.returncode == 0, f"{self.name}: {wish} gave {done.returncode}:\n{done.stderr}"
        else:
            done = self.run(sys.executable, "-IS", str(_CLIENT), wish, user=user, timeout=longest)
        return [
            Fetched(
                status=found["status"],
                headers={name.lower(): value for name, value in found["headers"]},
                body=found["body"].encode("latin-1"),
                error=found["error"],
                seconds=found["seconds"],
            )
            for found in json.loads(done.stdout)
        ]


def link(one: Host, one_name: str, other: Host, other_name: str) -> None:
    """Lay a cable between two hosts: an interface in each, by these names; both up, without addresses."""
    one.ip(
        f"link add name {one_name} type veth peer name {other_name} netns {other.path}",
        f"link set {one_name} up",
    )
    other.ip(f"link set {other_name} up")


def environment(user: int) -> dict[str, str]:
    """Return the environment of this user's processes: no setting of imdsproxy's, the checkout to be imported."""
    ours = {name: value for name, value in os.environ.items() if not name.upper().startswith("IMDSPROXY_")}
    if user != ROOT_USER:
        # Coverage is written into the checkout, where another user may not write.
        ours = {name: value for name, value in ours.items() if not name.startswith("COVERAGE_")}
        ours["HOME"] = "/"
    return {**ours, "PYTHONPATH": str(ROOT)}


def _as_user(user: int, command: tuple[str, ...]) -> list[str]:
    wrapper = ["setpriv", "--pdeathsig=KILL"]
    # This process may have ended before the kernel was told what to do then.
    unless_orphaned = ["sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"', str(os.getpid())]
    if user != ROOT_USER:
        # The interpreter may lie in a home directory, which others than its owner cannot enter.
        capability = "+dac_read_search"
        wrapper += [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        wrapper += [f"--inh-caps={capability}", f"--ambient-caps={capability}"]
    return [*wrapper, *unless_orphaned, *command]


@contextlib.contextmanager
def _output(log: Path | None) -> Iterator[IO[str] | int]:
    if log is None:
        yield subprocess.DEVNULL
    else:
        with log.open("w", encoding="utf-8") as file:
            yield file


def _end(process: subprocess.Popen[str] | ForkedProcess) -> None:
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
    if process.poll() is None:
        process.kill()
    process.wait(60)
