"""What a confined proxy can do, and what it cannot: as its unit and as its containers confine it.

`test_units` and `test_image` hold the files. Here the restrictions are in force, a proxy lives its whole life in them,
and another process in the same place tries what must fail (`attempts`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kit import ROOT, is_hit, wait_for_log, wait_until
from tests.system import attempts, confined
from tests.system.containers import USER, Mount, contained, run_contained
from tests.system.test_units import ADDRESS, TOOLS, arguments, confinement, get_unix, settings_of
from tests.system.topology import ORDINARY_USER, PROXY_USER, Azure, HostedProxy
from tests.targets import EVENTS, INSTANCE, TOKEN

pytestmark = pytest.mark.system

SERVICE = "imdsproxy.service"
FOLDER = "/run/imdsproxy"
PROFILE = Path("/usr/share/containers/seccomp.json")
"""The default of containers-common, which is Docker's in the main; a runtime's own is what RuntimeDefault names."""
REFUSED = {"EPERM", "EACCES", "EROFS", "ENOENT", "ESRCH", "ENOSYS", "not allowed to raise maximum limit"}
ALLOWED_BY_CONTAINERS = {
    "trace a child": "its own, which has no more rights than it",
    "trace the first process": "it is the first process's child, of the same user; a container has no other processes",
    "signal the first process": "the same",
    "see another process": "the same",
    "a namespace of users": "this profile is that of podman; Docker's refuses it (its page on seccomp)",
    "enter a namespace": "the same",
    "a keyring": "the same",
    "a key": "the same",
    "keep memory from swap": "within RLIMIT_MEMLOCK",
    "memory to write and execute": "no setting of containers forbids it",
    "more core dumps": "the proxy itself forbids its own",
    "a program that changes the user": "to its own user, which it is already",
}
WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")
CHANGES = (
    *("open", "openat", "openat2", "creat", "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "rename", "renameat"),
    *(
        "renameat2",
        "link",
        "linkat",
        "symlink",
        "symlinkat",
        "mknod",
        "mknodat",
        "chmod",
        "fchmodat",
        "chown",
        "fchownat",
    ),
    *("lchown", "truncate", "utimensat", "setxattr", "lsetxattr", "bind"),
)
"""The system calls that change files, by their paths."""
NO_FILE = {"/dev/null", "/dev/tty"}
RULES = ROOT / "config" / "access.toml"
"""The tokens are root's; the documents everyone's."""


@pytest.fixture(scope="module", autouse=True)
def _able(_able: None) -> None:
    absent = [tool for tool in (*TOOLS, "strace") if shutil.which(tool) is None]
    absent += [] if PROFILE.exists() else [str(PROFILE)]
    if absent:
        reason = f"not installed: {', '.join(absent)}"
        if os.environ.get("REQUIRE_SYSTEM_TESTS"):
            pytest.fail(f"REQUIRE_SYSTEM_TESTS is set, but {reason}", pytrace=False)
        pytest.skip(reason)


def outcomes(text: str, but: dict[str, str] | None = None) -> dict[str, str]:
    """Return what was not refused, but the writing to the given folders and what is named."""
    found: dict[str, str] = json.loads(text)
    given = {name for name in found if name.startswith("write to the given folder")}
    assert {found[name] for name in given} == {"done"}
    assert len(found) > 50
    return {name: what for name, what in found.items() if what not in REFUSED and name not in {*given, *(but or ())}}


def test_everything_else_is_refused_by_the_unit(azure: Azure, tmp_path: Path) -> None:
    it = replace(confinement(SERVICE, sys.executable, "-IS", attempts.__file__, FOLDER), fails=True)
    done = azure.vm.run(sys.executable, "-IS", confined.__file__, it.write(tmp_path / "confinement"))
    assert outcomes(done.stdout) == {}, done.stderr


def test_everything_else_is_refused_by_a_container_with_the_default_profile(azure: Azure, tmp_path: Path) -> None:
    done = run_contained(
        azure.vm,
        *(sys.executable, "-IS", confined.__file__, "--profile", str(PROFILE)),
        *(sys.executable, "-IS", attempts.__file__, FOLDER),
        env={"PATH": "/usr/bin:/bin"},
        mounts=[Mount(run_folder(tmp_path), FOLDER)],
    )
    assert outcomes(done.stdout, ALLOWED_BY_CONTAINERS) == {}, done.stderr


def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    os.chown(folder, USER, USER)
    return folder


def live(azure: Azure, proxy: HostedProxy, unix: Path) -> None:
    """Have a proxy do all that it has to: each kind of answer, over TCP and the socket, for users, and a reload."""
    first = proxy.get(INSTANCE)
    assert first.status == 200, proxy.log
    wait_until(lambda: proxy.answers("/-/ready"))
    assert is_hit(proxy.get(INSTANCE))
    assert is_hit(get_unix(unix, INSTANCE)), "one cache for both"
    tokens = [proxy.get(TOKEN), proxy.get(TOKEN), get_unix(unix, TOKEN), proxy.get(f"{TOKEN}&bypass_cache=true")]
    assert [answer.status for answer in tokens] == [200] * 4
    assert proxy.get(EVENTS).status == 200
    assert azure.vm.fetch(f"http://{ADDRESS}{INSTANCE}", user=ORDINARY_USER).status == 200
    refused = azure.vm.fetch(f"http://{ADDRESS}{TOKEN}", user=ORDINARY_USER)
    assert refused.status == 403, "the kernel has named its user"
    wait_for_log(proxy, "access refused")
    for page in ("healthy", "metrics", "status", "status.json"):
        assert proxy.get(f"/-/{page}").status == 200
    azure.faults({"status": 500, "path": "/metadata/instance/network"})
    assert proxy.get(INSTANCE.replace("instance", "instance/network")).status == 500
    azure.no_faults()
    proxy.signal(signal.SIGHUP)
    wait_for_log(proxy, "cache emptied")
    assert not is_hit(proxy.get(INSTANCE))


def end(proxy: HostedProxy) -> None:
    proxy.process.terminate()
    assert proxy.process.wait(20) == 0, proxy.log
    assert " error " not in proxy.log, proxy.log
    assert "Traceback" not in proxy.log


def test_proxy_lives_its_life_in_the_unit_and_writes_nowhere_else(azure: Azure, tmp_path: Path) -> None:
    """Traced from outside; -D keeps the process's number, by which it knows that the sockets are for it."""
    service = settings_of(SERVICE)
    unix, log, trace = tmp_path / "imdsproxy.sock", tmp_path / "service.log", tmp_path / "trace"
    command = confinement(SERVICE, *arguments(*service["ExecStart"]))
    settings = (
        *service["Environment"],
        f"PYTHONPATH={ROOT}",
        f"IMDSPROXY_ACCESS_FILE={RULES}",
        "IMDSPROXY_ACCESS_LOG=true",
        "IMDSPROXY_RETRY_MAX=1",
    )
    started = (
        *("systemd-socket-activate", f"--listen={ADDRESS}", f"--listen={unix}"),
        *(f"--setenv={one}" for one in (*settings, "PYTHONDONTWRITEBYTECODE=1")),
        *("strace", "-D", "-f", "-q", "-s", "4096", "-o", str(trace), f"--trace=execve,{','.join(CHANGES)}"),
        *(sys.executable, "-IS", confined.__file__, command.write(tmp_path / "confinement")),
    )
    with azure.vm.start(*started, log=log) as process:
        wait_until(lambda: unix.exists() or process.poll() is not None)
        proxy = HostedProxy(azure.vm, process, log, 8254)
        live(azure, proxy, unix)
        root = Path(f"/proc/{process.pid}/root")
        assert {each.name for each in (root / FOLDER[1:]).iterdir()} == {"budget"}
        assert list((root / "tmp").iterdir()) == [] or str(ROOT).startswith("/tmp/")
        assert Path(f"/proc/{process.pid}/environ").stat().st_uid == 0, "its memory is closed to its user"
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        assert re.search(rf"^Uid:\t{PROXY_USER}\t{PROXY_USER}\t", status, re.MULTILINE)
        assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
        end(proxy)
    wait_until(lambda: "+++ exited with 0 +++" in trace.read_text(encoding="utf-8", errors="replace"))
    written = changed_by(trace.read_text(encoding="utf-8", errors="replace"))
    assert any(path.startswith(f"{FOLDER}/handover") for path in written)
    assert {path for path in written if not path.startswith(f"{FOLDER}/")} - NO_FILE == set()


def changed_by(trace: str) -> list[str]:
    """Return the paths that the last program of a trace has changed, or has tried to."""
    _, _, ours = trace.rpartition("execve(")
    assert '"-m", "imdsproxy"' in ours.partition("\n")[0]
    paths = []
    for line in ours.splitlines()[1:]:
        call = re.match(r"\d+ +(\w+)\((.*)", line)
        if call is None or (call[1].startswith("open") and not WRITES.search(call[2])):
            continue
        paths += re.findall(r'"((?:[^"\\]|\\.)*)"', call[2])
    return paths


def test_proxy_lives_its_life_in_a_container_with_the_default_profile(azure: Azure, tmp_path: Path) -> None:
    folder, log = run_folder(tmp_path), tmp_path / "container.log"
    names = {"UDS": "socket", "BUDGET_FILE": "budget", "HANDOVER_FILE": "handover"}
    env = {f"IMDSPROXY_{name}": f"{FOLDER}/{file}" for name, file in names.items()}
    env |= {"PYTHONPATH": str(ROOT), "IMDSPROXY_ACCESS_FILE": "/etc/access.toml", "IMDSPROXY_ACCESS_LOG": "true"}
    env |= {"IMDSPROXY_RETRY_MAX": "1"}
    command = (sys.executable, "-IS", confined.__file__, "--profile", str(PROFILE), sys.executable, "-m", "imdsproxy")
    mounts = [Mount(folder, FOLDER), Mount(RULES, "/etc/access.toml", read_only=True)]
    with contained(azure.vm, *command, env=env, mounts=mounts, log=log) as process:
        wait_until(lambda: (folder / "socket").exists() or process.poll() is not None)
        proxy = HostedProxy(azure.vm, process, log, 8254)
        live(azure, proxy, folder / "socket")
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
        end(proxy)
    assert {each.name for each in folder.iterdir()} <= {"socket", "budget", "handover"}
    assert (folder / "handover").stat().st_mode & 0o777 == 0o600
