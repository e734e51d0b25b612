"""The process that has a socket, by a search in /proc and in folders that look like it."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imdsproxy.peers import processes
from imdsproxy.peers.lookup import PeerLookup
from imdsproxy.peers.processes import Holder, ProcessSearch, program_of, search, sees_everyone
from imdsproxy.protocol.peer import Peer, PeerKind
from tests.kit import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes have descriptors in /proc on Linux only")


def make(folder: Path, process: int, user: int, sockets: list[int], program: str = "/bin/one") -> None:
    """Make a process's files: its users, its program and its descriptors."""
    files = folder / str(process)
    (files / "fd").mkdir(parents=True)
    (files / "status").write_text(f"Name:\tx\nUid:\t{user}\t{user}\t{user}\t{user}\n")
    (files / "exe").symlink_to(program)
    (files / "fd" / "0").symlink_to("/dev/null")
    for number, inode in enumerate(sockets, start=3):
        (files / "fd" / str(number)).symlink_to(f"socket:[{inode}]")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a /proc of four processes. Its files belong to the test's user, as those of root in /proc may."""
    make(tmp_path, 10, os.getuid(), [1, 2])
    make(tmp_path, 11, os.getuid(), [3])
    make(tmp_path, 12, os.getuid() + 1, [4, 1])
    make(tmp_path, 13, os.getuid(), [3], "/bin/other")
    (tmp_path / "self").mkdir()
    (tmp_path / "14").mkdir()
    return tmp_path


def test_socket_belongs_to_the_process_of_its_user_that_has_it(folder: Path) -> None:
    user = os.getuid()
    found = search({1: user, 2: user, 4: user, 5: user}, str(folder))
    assert found == {1: Holder(10, "/bin/one"), 2: Holder(10, "/bin/one")}


def test_socket_of_several_programs_has_no_program(folder: Path) -> None:
    assert search({3: os.getuid()}, str(folder)) == {3: Holder(11, None)}


@pytest.mark.parametrize("limit", ["LONGEST_SEARCH", "LONGEST_WAIT"])
def test_search_that_ends_early_knows_no_program(folder: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    (folder / "14").rmdir()
    monkeypatch.setattr(processes, limit, -1.0)
    assert search({3: os.getuid()}, str(folder)) == {3: Holder(13, None)}


def test_search_on_a_busy_machine_finds_the_program(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes while others have the processor, but the search itself takes little."""
    passed = itertools.count(step=0.3)
    monkeypatch.setattr(time, "monotonic", lambda: next(passed))
    assert search({1: os.getuid()}, str(folder)) == {1: Holder(10, "/bin/one")}


def test_this_process_is_found_by_its_socket() -> None:
    with socket.socket() as one:
        inode = os.fstat(one.fileno()).st_ino
        program = program_of(os.getpid())
        assert search({inode: os.getuid(), 1: os.getuid()}) == {inode: Holder(os.getpid(), program)}


@pytest.mark.parametrize(
    ("text", "all_of_them"),
    [
        ("CapEff:\t0000000000080000\n", True),
        ("CapEff:\t0000000000000000\n", False),
        ("CapEff:\tx\n", False),
        ("", False),
    ],
)
def test_ptrace_capability_shows_every_process(tmp_path: Path, text: str, all_of_them: bool) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text(text)
    assert sees_everyone(str(tmp_path)) is all_of_them
    one = ProcessSearch(str(tmp_path))
    assert (one.may_find(os.geteuid() + 1), one.may_find(os.geteuid())) == (all_of_them, True)


def test_requests_during_a_search_share_the_next_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[int] = []

    def counting(wanted: dict[int, int], where: str) -> dict[int, Holder]:
        searches.append(len(wanted))
        return search(wanted, where)

    monkeypatch.setattr(processes, "search", counting)

    async def main() -> None:
        one, user = ProcessSearch(str(folder)), os.getuid()
        first = asyncio.create_task(one.find(user, 1))
        await asyncio.sleep(0)  # the request begins a search
        await asyncio.sleep(0)  # the search begins
        later = [one.find(user, inode) for inode in (1, 2, 2, 5)]
        found = await asyncio.gather(first, *later)
        assert [holder and holder.process for holder in found] == [10, 10, 10, 10, None]
        assert searches == [1, 3]
        assert await one.find(user, 3) == Holder(11, None)

    asyncio.run(main())


def test_process_is_looked_for_once(folder: Path) -> None:
    async def main() -> None:
        peers = PeerLookup()
        peers._processes = ProcessSearch(str(folder))
        known = Peer(address="127.0.0.1", user=os.getuid(), inode=2, kind=PeerKind.TCP)
        found = await peers.with_process(known)
        assert (found.process, found.executable) == (10, "/bin/one")
        missing = await peers.with_process(known._replace(inode=99))
        assert missing.process is None
        assert missing.unknown == "no process of this user was found with this socket"
        for peer in (found, missing, Peer(address="10.0.0.7"), Peer(user=1, kind=PeerKind.UNIX)):
            assert not peers.can_find_process(peer)
            assert await peers.with_process(peer) is peer

    asyncio.run(main())


_CONNECT = """
import socket, sys, os
with socket.socket(socket.AF_UNIX) as one:
    one.connect(sys.argv[1])
    os.set_inheritable(one.fileno(), True)
    if os.fork():
        os._exit(0)
    sys.stdin.read()
"""


def test_program_of_a_unix_client_that_has_ended_is_unknown(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    peers = PeerLookup()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        with subprocess.Popen([sys.executable, "-ISc", _CONNECT, path], stdin=subprocess.PIPE) as client:
            accepted, _ = listening.accept()
            with accepted:
                assert client.wait(20) == 0
                found = peers.find(accepted)
                assert (found.user, found.executable) == (os.getuid(), None)
                assert client.stdin is not None
                client.stdin.close()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can mount")
def test_program_that_is_another_file_at_the_same_path_is_unknown() -> None:
    """As any user can have it, with `unshare --map-root-user`."""
    cat = os.path.realpath(shutil.which("cat") or "")
    sleep = os.path.realpath(shutil.which("sleep") or "")
    script = f"mount --bind {sleep} {cat} && exec {cat} 30"
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", script]) as process:
        try:
            wait_until(lambda: str(Path(f"/proc/{process.pid}/exe").readlink()) == cat)
            assert program_of(process.pid) is None
        finally:
            process.kill()
    with subprocess.Popen([sleep, "30"]) as process:
        wait_until(lambda: str(Path(f"/proc/{process.pid}/exe").readlink()) == sleep)
        assert program_of(process.pid) == sleep
        process.kill()
