"""Reading an access file: what is read, and the line and reason of each mistake."""

from __future__ import annotations

import json
from ipaddress import ip_network
from textwrap import dedent

import pytest

from imdsproxy.access.document import AccessFileError
from imdsproxy.access.file import read_rules
from imdsproxy.access.query import TOKEN
from imdsproxy.access.rules import Grant, Mode, Rule, Rules
from imdsproxy.access.subject import Who

FULL = """\
default = "allow"
mode = "audit"
reserved = ["/metadata/Identity/"]

[[rule]]
name = "web"
user = ["www-data", 1001]
unix_user = 5
group = "ops"
executable = ["/usr/bin/app"]
address = "10.0.0.0/8"
namespace = "shop"
service_account = ["shop/web"]
allow = ["/metadata/instance", "/metadata/%76ersions"]
deny = "/metadata/instance/compute/userData"

[[rule.token]]
identity = ["system-assigned", "client_id=AB", "resource_id=/subscriptions/S"]
resource = "https://vault.azure.net/"

[[rule.token]]
resource = ["a"]

[[rule]]
name = "rest"
anyone = true
allow = "/metadata/versions"
"""
RULES = Rules(
    (
        Rule(
            "web",
            (
                Who(
                    users=frozenset({"www-data", 1001}),
                    unix_users=frozenset({5}),
                    groups=frozenset({"ops"}),
                    executables=frozenset({"/usr/bin/app"}),
                    addresses=(ip_network("10.0.0.0/8"),),
                    namespaces=frozenset({"shop"}),
                    service_accounts=frozenset({("shop", "web")}),
                ),
            ),
            (
                Grant(("metadata", "instance")),
                Grant(("metadata", "versions")),
                Grant(
                    TOKEN,
                    below=False,
                    identities=frozenset(
                        {("system-assigned", ""), ("client_id", "ab"), ("resource_id", "/subscriptions/s")}
                    ),
                    audiences=frozenset({"https://vault.azure.net"}),
                ),
                Grant(TOKEN, below=False, audiences=frozenset({"a"})),
            ),
            (("metadata", "instance", "compute", "userdata"),),
        ),
        Rule("rest", (Who(anyone=True),), (Grant(("metadata", "versions")),)),
    ),
    default_allows=True,
    mode=Mode.AUDIT,
    reserved=(Grant(("metadata", "identity")),),
)


def test_read_rules_reads_toml() -> None:
    assert read_rules(FULL, "access.toml") == RULES
    assert read_rules(FULL, "access") == RULES


def test_read_rules_reads_json_by_its_name_or_its_content() -> None:
    import tomllib  # noqa: PLC0415  # for this test only

    text = json.dumps(tomllib.loads(FULL), indent=1)
    assert read_rules(text, "access.json") == RULES
    assert read_rules(text, "access") == RULES


def test_read_rules_without_rules_has_the_default() -> None:
    assert read_rules('default = "deny"', "a.toml") == Rules()


RULE = 'default = "deny"\n[[rule]]\nname = "a"\nuser = "b"\nallow = "/metadata"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: default is missing"),
        ("default = deny", "line 1: Invalid value (TOML)"),
        ('default = "deny"\na = "b', "line 2:"),
        ('default = "maybe"', 'line 1: default is "maybe", and must be allow or deny'),
        ("default = 1", "line 1: default must be a text"),
        ('default = "deny"\nmode = "disabled"', "line 2: mode is"),
        (
            'default = "deny"\n# c\nallow = ["/metadata"]',
            'line 3: "allow" is not a key here; the keys are default, mode',
        ),
        ('default = "deny"\nreserved = ["/metadata"]', "line 2: reserved has no effect"),
        ('default = "deny"\nrule = 1', "line 2: rule must be a list of tables"),
        ('default = "deny"\nrule = [1]', "line 2: rule must be a table"),
        ('default = "deny"\n[[rule]]\nuser = "b"', "line 2: name is missing"),
        ('default = "deny"\n[[rule]]\nname = "a b"', 'line 3: "a b" is not a name'),
        ('default = "deny"\n[[rule]]\nname = "default"', 'line 3: "default" is not a name'),
        ('default = "deny"\n[[rule]]\nname = "a"\nuser = "b"', 'line 2: the rule "a" says nothing'),
        ('default = "deny"\n[[rule]]\nname = "a"\nallow = "/metadata"', "line 2: the rule names no client"),
        (RULE + RULE.partition("\n")[2], 'line 6: the name "a" is given to two rules'),
        (RULE + "anyone = true", "line 6: anyone can only be true"),
        (RULE.replace('user = "b"', "anyone = false"), "line 4: anyone can only be true"),
        (RULE.replace('"b"', "-1"), "line 4: user -1 is not a number"),
        (RULE.replace('"b"', "4294967295"), "line 4: user 4294967295 is not a number"),
        (RULE.replace('"b"', '"33"'), 'line 4: user "33" is a number in quotes'),
        (RULE.replace('"b"', "true"), "line 4: user must be a name or a number"),
        (RULE.replace('"b"', '[ "b",\n "" ]'), "line 4: user must be a name or a number"),
        (RULE.replace('"b"', "[]"), "line 4: user is an empty list"),
        (RULE.replace("user", "users"), 'line 4: "users" is not a key here'),
        (RULE + 'executable = "app"', 'line 6: executable "app" must be an absolute path'),
        (RULE + 'executable = "/a/../b"', "line 6: executable"),
        (RULE + 'executable = "//a"', "line 6: executable"),
        (RULE + 'address = "10.0.0.1/8"', 'line 6: address "10.0.0.1/8" is not an address range'),
        (RULE + 'namespace = "Shop"', 'line 6: namespace "Shop" is not a name of Kubernetes'),
        (RULE + 'service_account = "web"', 'line 6: service_account "web" must be NAMESPACE/NAME'),
        (RULE + 'service_account = "a/B"', "line 6: service_account"),
        (RULE.replace("/metadata", "metadata"), 'line 5: allow "metadata" is not a path under /metadata'),
        (RULE.replace("/metadata", "/metadata/*"), "line 5: allow"),
        (RULE.replace("/metadata", "/metadata?a=b"), "line 5: allow"),
        (RULE.replace("/metadata", "/metadata/%2e%2e/x"), "line 5: allow"),
        (RULE.replace("/metadata", "/other"), "line 5: allow"),
        (RULE + "token = 1", "line 6: token must be a list of tables"),
        (RULE + "[[rule.token]]", "line 6: a [[rule.token]] names identity or resource"),
        (RULE + '[[rule.token]]\nresource = "a"\n[[rule.token]]\nscope = "a"', 'line 9: "scope" is not a key here'),
        (RULE + '[[rule.token]]\nidentity = "ab"', 'line 7: identity "ab" must be system-assigned'),
        (RULE + '[[rule.token]]\nidentity = "client_id="', "line 7: identity"),
        (RULE + '[[rule.token]]\nidentity = "msi_res_id=/a"', "line 7: identity"),
    ],
)
def test_read_rules_states_line_and_reason_of_a_mistake(text: str, message: str) -> None:
    with pytest.raises(AccessFileError) as caught:
        read_rules(text, "access.toml")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: Expecting property name"),
        ('{"default": "deny",\n "default": "allow"}', 'line 2: the key "default" is given twice, first on line 1'),
        ("[1]", "line 1: the file must be a table"),
        ('{"default": "deny",\n "rule": [\n {"name": "a"},\n 5]}', "line 3: the rule"),
        ('{"default": "deny", "rule": [\n {"name": "a:b[{"}]}', 'line 2: "a:b[{" is not a name'),
        (
            '{"default": "deny", "rule": [\n{"name": "a", "user": ["b",\n7,\n"" ], "allow": ["/metadata"]}]}',
            "line 4: user must be a name or a number",
        ),
        ('{"default": "deny", "rule": [{"name": "a"}], "mode": "enforce", "x": null}', 'line 1: "x" is not a key'),
        ("[" * 100_000, "it is nested too deeply"),
    ],
)
def test_read_rules_states_the_line_in_json(text: str, message: str) -> None:
    with pytest.raises(AccessFileError) as caught:
        read_rules(text, "access.json")
    assert str(caught.value).startswith(message)


def test_read_rules_finds_lines_below_tables_that_are_written_in_other_ways() -> None:
    text = dedent("""\
        default = "deny"
        rule = [
          { name = "a", user = "b", allow = "/other" },
        ]
        """)
    with pytest.raises(AccessFileError, match="line 2: allow"):
        read_rules(text, "access.toml")
    with pytest.raises(AccessFileError, match='line 3: "c d" is not a key'):
        read_rules('default = "deny"\n[rule]\n[ "c d" ]\n', "access.toml")
