"""Who a rule means: each comparison has a result for yes, no and unknown."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from imdsproxy.access.subject import Names, Subject, Who, program, subject_of
from imdsproxy.protocol.peer import Peer

NAMES = Names({"web": 33, "root": 0}, {"ops": 100, 27: 27})
UNKNOWN = Subject()


@pytest.mark.parametrize(
    ("who", "subject", "result"),
    [
        (Who(anyone=True), UNKNOWN, True),
        (Who(users=frozenset({33})), Subject(user=33), True),
        (Who(users=frozenset({33})), Subject(user=0), False),
        (Who(users=frozenset({33})), UNKNOWN, None),
        (Who(users=frozenset({"web"})), Subject(user=33), True),
        (Who(users=frozenset({"web"})), Subject(user_name="web"), True),
        (Who(users=frozenset({"root"})), Subject(user=33), False),
        (Who(users=frozenset({"other"})), Subject(user=33), False),
        (Who(unix_users=frozenset({33})), Subject(user=33, unix=True), True),
        (Who(unix_users=frozenset({33})), Subject(user=33), False),
        (Who(unix_users=frozenset({33})), Subject(unix=True), None),
        (Who(groups=frozenset({"ops"})), Subject(user=33, groups=frozenset({5, 100})), True),
        (Who(groups=frozenset({27})), Subject(user=0, groups=frozenset({27})), True),
        (Who(groups=frozenset({"ops"})), Subject(user=0, groups=frozenset({27})), False),
        (Who(groups=frozenset({"ops"})), Subject(user=33), None),
        (Who(groups=frozenset({"ops"})), UNKNOWN, None),
        (Who(groups=frozenset({"ops"})), Subject(groups=frozenset({"ops"})), True),
        (Who(groups=frozenset({"ops"})), Subject(groups=frozenset({"web"})), False),
        (Who(executables=frozenset({"/bin/a"})), Subject(executable="/bin/a"), True),
        (Who(executables=frozenset({"/bin/a"})), Subject(executable="/bin/a (deleted)"), False),
        (Who(executables=frozenset({"/bin/a"})), Subject(executable="/bin/A"), False),
        (Who(executables=frozenset({"/bin/a"})), UNKNOWN, None),
        (Who(processes=frozenset({"a"})), Subject(executable="/opt/bin/a"), True),
        (Who(processes=frozenset({"a"})), Subject(executable="/opt/a/b"), False),
        (Who(processes=frozenset({"a"})), UNKNOWN, None),
        (Who(addresses=(ip_network("10.1.0.0/16"),)), Subject(address="10.1.255.1"), True),
        (Who(addresses=(ip_network("10.1.0.0/16"),)), Subject(address="::ffff:10.1.0.1"), True),
        (Who(addresses=(ip_network("fe80::/10"),)), Subject(address="fe80::1%eth0"), True),
        (Who(addresses=(ip_network("10.1.0.0/16"),)), Subject(address="10.2.0.1"), False),
        (Who(addresses=(ip_network("0.0.0.0/0"),)), Subject(address="::1"), False),
        (Who(addresses=(ip_network("0.0.0.0/0"),)), Subject(unix=True), False),
        (Who(addresses=(ip_network("0.0.0.0/0"),)), UNKNOWN, None),
        (Who(addresses=(ip_network("0.0.0.0/0"),)), Subject(address="a name"), None),
        (Who(namespaces=frozenset({"shop"})), Subject(namespace="shop"), True),
        (Who(namespaces=frozenset({"shop"})), Subject(namespace="bank"), False),
        (Who(namespaces=frozenset({"shop"})), UNKNOWN, None),
        (Who(service_accounts=frozenset({("shop", "web")})), Subject(namespace="shop", service_account="web"), True),
        (Who(service_accounts=frozenset({("shop", "web")})), Subject(namespace="bank", service_account="web"), False),
        (Who(service_accounts=frozenset({("shop", "web")})), Subject(namespace="shop"), None),
    ],
)
def test_who_matches(who: Who, subject: Subject, result: bool | None) -> None:
    assert who.resolved(NAMES).matches(subject) is result


def test_program_of_windows_has_one_spelling() -> None:
    assert program("C:/Apps\\Agent.EXE") == "c:\\apps\\agent.exe"
    assert program("/usr/bin/Agent") == "/usr/bin/Agent"
    peer = Peer(executable="C:\\Apps\\Agent.exe", user="S-1-5-18")
    assert subject_of(peer)[:4] == ("S-1-5-18", None, None, "c:\\apps\\agent.exe")


def test_who_matches_only_if_all_lists_do() -> None:
    who = Who(users=frozenset({33}), executables=frozenset({"/bin/a"}))
    assert who.matches(Subject(user=33, executable="/bin/a")) is True
    assert who.matches(Subject(user=33, executable="/bin/b")) is False
    assert who.matches(Subject(user=33)) is None
    assert who.matches(Subject(executable="/bin/b")) is False, "what is known and differs decides"


@pytest.mark.parametrize(
    ("who", "needs"),
    [
        (Who(anyone=True), (False, False, False)),
        (Who(users=frozenset({1})), (True, False, False)),
        (Who(unix_users=frozenset({1})), (True, False, False)),
        (Who(groups=frozenset({1})), (True, False, False)),
        (Who(executables=frozenset({"/a"})), (False, True, False)),
        (Who(processes=frozenset({"a"})), (False, True, False)),
        (Who(namespaces=frozenset({"a"})), (False, False, True)),
        (Who(service_accounts=frozenset({("a", "b")})), (False, False, True)),
    ],
)
def test_who_says_what_it_needs_to_know(who: Who, needs: tuple[bool, bool, bool]) -> None:
    assert (who.of_users, who.of_programs, who.of_pods) == needs


def test_who_names_the_users_and_groups_that_the_machine_does_not_have() -> None:
    who = Who(
        users=frozenset({"web", "nobody", 99}), unix_users=frozenset({"gone"}), groups=frozenset({"ops", "x", 27, 28})
    )
    assert who.unresolved(NAMES) == ['user "gone"', 'user "nobody"', 'group "28"', 'group "x"']


def test_who_in_words_has_each_list() -> None:
    who = Who(
        users=frozenset({"web", 1}),
        addresses=(ip_network("10.0.0.0/8"),),
        namespaces=frozenset({"shop"}),
        service_accounts=frozenset({("shop", "web")}),
    )
    words = [words for words, _ in who.compared(UNKNOWN)]
    assert words == ["user 1 or web", "address 10.0.0.0/8", "namespace shop", "service_account shop/web"]
