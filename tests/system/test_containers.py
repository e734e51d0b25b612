"""The containers of `containers.py` have the properties that other tests rely on."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Unpack

import pytest

from tests import forkserver
from tests.kit import ROOT, open_files, wait_until
from tests.system.containers import USER, Mount, Options, contained, contained_module, run_contained
from tests.system.hosts import Host

pytestmark = pytest.mark.system

ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
_WRITE = """
import sys
for path in sys.argv[1:]:
    try:
        open(path, "w").close()
        print(path, "written")
    except OSError as error:
        print(path, error.strerror)
"""


@pytest.fixture
def node() -> Iterator[Host]:
    with Host("node") as node:
        yield node


def status(node: Host, **options: Unpack[Options]) -> dict[str, str]:
    """Return what /proc says of a process in a container."""
    shown = run_contained(node, "cat", "/proc/self/status", env=ENV, **options)
    assert shown.returncode == 0, shown.stderr
    return {name: value.strip() for name, _, value in (line.partition(":") for line in shown.stdout.splitlines())}


def test_container_is_its_user_and_process_1_and_gains_no_rights(node: Host) -> None:
    shown = status(node, user=4711, group=4712, groups=[4713, 4714])
    assert shown["Uid"].split() == ["4711"] * 4
    assert shown["Gid"].split() == ["4712"] * 4
    assert shown["Groups"].split() == ["4713", "4714"]
    assert shown["Pid"] == "1"
    assert shown["NoNewPrivs"] == "1"


@pytest.mark.parametrize(
    ("user", "capabilities", "effective", "bounding"),
    [
        (0, [], 0, 0),
        (0, ["CAP_NET_ADMIN"], 1 << 12, 1 << 12),
        # One for the machine's own files; the other could come of a file's capabilities alone.
        (USER, ["net_admin"], 1 << 2, 1 << 12 | 1 << 2),
    ],
)
def test_container_has_exactly_the_named_capabilities(
    node: Host, user: int, capabilities: list[str], effective: int, bounding: int
) -> None:
    shown = status(node, user=user, capabilities=capabilities)
    assert int(shown["CapEff"], 16) == int(shown["CapPrm"], 16) == effective
    assert int(shown["CapBnd"], 16) == bounding


def test_container_writes_only_to_writable_mounts(node: Host, tmp_path: Path) -> None:
    for name in ("written", "read"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
    mounts = [
        Mount(tmp_path / "written", "/run/imdsproxy"),
        Mount(tmp_path / "read", "/run/imdsproxy-read", read_only=True),
    ]
    refused = ["/run/imdsproxy-read/one", "/run/one", "/tmp/one", "/dev/one", "/proc/sys/kernel/hostname"]
    paths = ["/run/imdsproxy/one", *refused]
    done = run_contained(node, sys.executable, "-ISc", _WRITE, *paths, env=ENV, mounts=mounts)
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert said == {"/run/imdsproxy/one": "written"} | dict.fromkeys(refused, "Read-only file system")
    assert (tmp_path / "written" / "one").exists()
    assert not Path("/run/imdsproxy-read").exists()


def test_file_can_be_mounted_at_a_missing_path(node: Host, tmp_path: Path) -> None:
    (tmp_path / "settings").write_text("port = 1\n", encoding="ascii")
    mounts = [Mount(tmp_path / "settings", "/etc/imdsproxy/of/ours/settings.toml", read_only=True)]
    shown = run_contained(node, "cat", "/etc/imdsproxy/of/ours/settings.toml", env=ENV, mounts=mounts)
    assert shown.stdout == "port = 1\n"
    assert not Path("/etc/imdsproxy/of").exists()


def test_container_sees_only_its_own_network_processes_and_environment(node: Host) -> None:
    looks = (
        "import os; print(os.listdir('/sys/class/net'), [n for n in os.listdir('/proc') if n.isdigit()], os.uname()[1])"
    )
    assert run_contained(node, sys.executable, "-ISc", looks, env=ENV).stdout == "['lo'] ['1'] node\n"
    assert run_contained(node, "env", env={"ONE": "1", **ENV}).stdout == f"ONE=1\nPATH={ENV['PATH']}\n"


def test_status_names_the_failed_step(node: Host) -> None:
    absent = run_contained(node, "no-such-command", env=ENV)
    assert (absent.returncode, absent.stderr) == (127, "no-such-command: No such file or directory\n")
    unmade = run_contained(node, "true", env=ENV, workdir="/no/such/folder")
    assert unmade.returncode == 125
    assert "the container could not be made" in unmade.stderr


def test_container_ends_with_its_context_and_receives_signals(node: Host, tmp_path: Path) -> None:
    waits = "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print('here', flush=True); signal.pause()"
    log = tmp_path / "log"
    with contained(node, sys.executable, "-ISc", waits, env=ENV, log=log) as process:
        wait_until(lambda: log.read_text(encoding="ascii") == "here\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 7
    with contained(node, sys.executable, "-ISc", waits, env=ENV, log=log) as process:
        wait_until(lambda: log.read_text(encoding="ascii") == "here\n")
    assert process.returncode == 7


@pytest.mark.skipif(not forkserver.AVAILABLE, reason="long runs fork nothing")
@pytest.mark.parametrize(("user", "capabilities"), [(USER, []), (USER, ["net_admin"]), (0, []), (0, ["net_admin"])])
def test_forked_container_is_like_an_executed_one(
    node: Host, tmp_path: Path, user: int, capabilities: list[str]
) -> None:
    env = {**ENV, "PYTHONPATH": str(ROOT), "IMDSPROXY_UPSTREAM": "http://127.0.0.1:9"}
    options: Options = {"user": user, "group": 4712, "groups": [4713], "capabilities": capabilities}
    options["mounts"] = [Mount(tmp_path, "/run/imdsproxy", read_only=True)]
    log = tmp_path / "log"
    found = []
    for start in (
        contained(node, sys.executable, "-m", "imdsproxy", env=env, log=log, **options),
        contained_module(node, "imdsproxy.__main__", env=env, log=log, **options),
    ):
        with start as process:
            wait_until(partial(_serves, log))
            found.append(_state(process.pid))
        assert process.returncode == 0, log.read_text(encoding="utf-8")
    assert found[0] == found[1]


def _serves(log: Path) -> bool:
    return "listening" in log.read_text(encoding="utf-8")


def _state(pid: int) -> dict[str, object]:
    """Return what a process may do, and what it sees, less the numbers that each process has of its own."""
    of = Path("/proc", str(pid))
    lines = (line.partition(":") for line in (of / "status").read_text(encoding="ascii").splitlines())
    status = {name: value.split() for name, _, value in lines}
    kept = ("Uid", "Gid", "Groups", "Umask", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "SigIgn")
    mounted = [line.split()[4:6] for line in (of / "mountinfo").read_text(encoding="utf-8").splitlines()]
    opened = {re.sub(r"\d+", "N", name) for name in open_files(pid)}
    own = [
        (of / "ns" / name).readlink() != Path("/proc/self/ns", name).readlink() for name in ("mnt", "pid", "uts", "ipc")
    ]
    held = {name: status[name] for name in kept}
    return {**held, "pid": status["NSpid"][-1], "mounts": mounted, "descriptors": opened, "own": own}


def test_no_process_outlives_the_tests(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = (
        "import sys, os\nfrom pathlib import Path\nfrom tests.system.containers import contained\n"
        "from tests.system.hosts import Host\n"
        f"with Host('node') as node, contained(node, 'sleep', '600', env={ENV!r}, log=Path({str(log)!r})) as process:\n"
        "    while 'sleep' not in Path(f'/proc/{process.pid}/cmdline').read_text(): pass\n"
        "    print(process.pid, flush=True)\n    os.kill(os.getpid(), 9)\n"
    )
    with Host("node") as node:
        done = node.run(sys.executable, "-c", code, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = Path("/proc", done.stdout.strip())
    wait_until(lambda: not left.exists() or "\nState:\tZ" in (left / "status").read_text(encoding="ascii"))
