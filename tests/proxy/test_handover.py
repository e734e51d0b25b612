"""A restart with a handover file: what is kept, what never is, and that nothing gets staler for it."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("entries are handed over on Linux only", allow_module_level=True)

from imdsproxy.cache.freshness import Entry
from imdsproxy.errors import SettingsError
from imdsproxy.parts.handover import Handover
from imdsproxy.policy.endpoints import _TABLE
from imdsproxy.protocol.messages import Response
from imdsproxy.protocol.peer import Peer
from imdsproxy.records import Outcome
from tests import virtual
from tests.scripted import DOWN, NOWHERE, Imds, Stage, ok, token
from tests.targets import EVENTS, INSTANCE, TOKEN, VERSIONS

LEAF = "/metadata/instance/compute/vmId?api-version=2021-02-01&format=text"
ATTESTED = "/metadata/attested/document?api-version=2021-02-01"
INFO = "/metadata/identity/info?api-version=2021-02-01"
BALANCER = "/metadata/loadbalancer?api-version=2021-02-01"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "handover"


def answering() -> Imds:
    return Imds(lambda sent: token(86_400, "secret") if sent.target == TOKEN else ok("{}"))


def stage(path: Path, imds: Imds | None = None, **settings: Any) -> Stage:
    return Stage(imds or answering(), handover_file=str(path), **settings)


def read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def end(before: Stage) -> None:
    before.parts.close()


def test_entries_that_describe_the_vm_are_kept_and_nothing_else(path: Path) -> None:
    async def restart() -> None:
        first = stage(
            path, ttl=(("/metadata/attested", 60.0), ("/metadata/scheduledevents", 60.0), ("/metadata/x", 9.0))
        )
        targets = (INSTANCE, LEAF, BALANCER, TOKEN, ATTESTED, INFO, EVENTS, VERSIONS, "/metadata/x?api-version=1")
        for target in targets:
            assert (await first.get(target)).response.status == 200
        assert len(first.proxy.store) == len(targets)
        end(first)
        assert b"secret" not in read(path)
        second = stage(path)
        kept = {slot.key for slot, _ in second.proxy.store.slots()}
        assert kept == {first.request(target).target.key for target in (INSTANCE, LEAF, BALANCER)}
        assert read(path) == b""
        for target in (INSTANCE, LEAF, BALANCER):
            assert (await second.get(target)).outcome is Outcome.HIT
        assert second.imds.count == 0

    virtual.run(restart())


def test_only_rows_of_descriptions_are_handed_over() -> None:
    assert {row.endpoint for row in _TABLE if row.handed_over} == {"instance", "loadbalancer"}
    assert not [row for row in _TABLE if row.handed_over and (row.token or row.fixed or row.slow)]


def test_ages_continue_and_no_bound_moves(path: Path) -> None:
    async def restart() -> None:
        first = stage(path)
        await first.get()
        await asyncio.sleep(50)
        end(first)
        await asyncio.sleep(5)
        second = stage(path, Imds(lambda _sent: DOWN), retry_max=0)
        record = await second.get()
        assert (record.outcome, record.age, record.ttl) == (Outcome.HIT, 55, 5)
        await asyncio.sleep(6)
        assert (await second.get()).outcome is Outcome.STALE
        await asyncio.sleep(3600 - 2)
        assert (await second.get()).outcome is Outcome.STALE
        await asyncio.sleep(2)
        assert (await second.get()).outcome is Outcome.ERROR

    virtual.run(restart())


def test_time_in_which_the_whole_vm_was_stopped_counts_by_the_wall_clock(path: Path) -> None:
    async def restart() -> None:
        first = stage(path)
        await first.get()
        end(first)
        second = Stage(answering())
        second.clock.wall_offset += 100
        handover = Handover(str(path), second.proxy, second.clock, NOWHERE.upstream)
        handover.take()
        entry = second.proxy.store.get(second.request().target.key)
        assert entry is not None
        assert entry.age(second.now) == 100

    virtual.run(restart())


def test_settings_of_the_new_process_decide(path: Path) -> None:
    async def restart(**settings: Any) -> set[str]:
        first = stage(path)
        await first.get()
        await first.get(BALANCER)
        end(first)
        second = stage(path, **settings)
        return {slot.key.partition("?")[0] for slot, _ in second.proxy.store.slots()}

    assert virtual.run(restart()) == {"/metadata/instance", "/metadata/loadbalancer"}
    assert virtual.run(restart(deny=("/metadata/loadbalancer",))) == {"/metadata/instance"}
    assert virtual.run(restart(ttl=(("/metadata/instance", 0.0),))) == {"/metadata/loadbalancer"}
    assert virtual.run(restart(upstream="http://127.0.0.1:10")) == set()


def test_answer_that_would_be_a_failure_now_is_not_taken_over(path: Path) -> None:
    async def restart() -> None:
        first = stage(path, Imds(lambda _sent: ok("<html>"), raw=True))
        first.proxy.store.put(first.request().target.key, await entry_of(ok("<html>")))
        end(first)
        assert len(stage(path).proxy.store) == 0

    async def entry_of(response: Response) -> Entry:
        other = stage(path)
        await other.get()
        entry = other.proxy.store.get(other.request().target.key)
        assert entry is not None
        return replace(entry, response=response)

    virtual.run(restart())


def test_derive_cuts_no_part_out_of_an_older_process_s_document(path: Path) -> None:
    whole = json.dumps({"compute": {"vmId": "x"}}, separators=(",", ":"))
    imds = Imds(lambda sent: ok(whole) if sent.target == INSTANCE else ok("x"), raw=True)

    async def restart() -> None:
        first = stage(path, imds, derive=True)
        await first.get()
        assert (await first.get(LEAF)).detail == "derived"
        end(first)
        second = stage(path, imds, derive=True)
        assert (await second.get()).outcome is Outcome.HIT
        assert (await second.get(LEAF)).outcome is Outcome.MISS

    virtual.run(restart())


@pytest.mark.parametrize(
    ("content", "because"), [(b"a diary", "not a handover file"), (b"imdsproxy handover\x01\x00cut", "damaged")]
)
def test_unusable_file_costs_one_line_and_no_start(
    path: Path, caplog: pytest.LogCaptureFixture, content: bytes, because: str
) -> None:
    path.write_bytes(content)
    path.chmod(0o600)

    async def start() -> None:
        end(stage(path))

    with caplog.at_level(logging.WARNING):
        virtual.run(start())
    assert because in str(caplog.records[0].__dict__["fields"]["because"])
    is_foreign = because == "not a handover file"
    assert [record.message for record in caplog.records] == [
        "handover file not used",
        *(["entries not handed over"] if is_foreign else []),
    ]
    assert (path.read_bytes() == content) is is_foreign


def test_access_rules_decide_about_what_was_taken_over(path: Path) -> None:
    rules = path.with_name("access.toml")
    rules.write_text(
        'default = "deny"\n[[rule]]\nname = "web"\nuser = 33\nallow = "/metadata/instance"\n', encoding="ascii"
    )

    async def restart() -> None:
        first = stage(path)
        await first.get()
        end(first)
        second = stage(path, access_file=str(rules))
        assert (await second.get(client=Peer(user=34))).response.status == 403
        assert (await second.get(client=Peer(user=33))).outcome is Outcome.HIT
        assert second.imds.count == 0

    virtual.run(restart())


def test_dropping_entries_removes_what_another_process_left(path: Path) -> None:
    async def restart() -> None:
        first, second = stage(path), stage(path)
        await first.get()
        end(first)
        second.parts.forget_kept()
        assert read(path) == b""

    virtual.run(restart())


def test_setting_that_makes_no_sense_is_refused_at_start(path: Path) -> None:
    async def start(where: Path) -> None:
        stage(where)

    for where, why in ((path / "none" / "handover", "is not a folder"), (path.parent, "name a file in it")):
        with pytest.raises(SettingsError, match=f"IMDSPROXY_HANDOVER_FILE={where} cannot be used: .*{why}"):
            virtual.run(start(where))


def test_container_with_a_clock_of_its_own_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imdsproxy.clock.is_machine_wide", lambda: False)

    async def start() -> None:
        stage(path)

    with pytest.raises(SettingsError, match="a clock of its own"):
        virtual.run(start())


def test_rolling_restart_asks_imds_less(path: Path) -> None:
    async def restarts(where: Path | None) -> int:
        imds = answering()
        for _ in range(5):
            one = Stage(imds) if where is None else stage(where, imds)
            for target in (INSTANCE, LEAF, BALANCER):
                await one.get(target)
            end(one)
            await asyncio.sleep(2)
        return imds.count

    assert virtual.run(restarts(None)) == 15
    assert virtual.run(restarts(path)) == 3
