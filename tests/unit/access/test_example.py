"""The example file is sound, and does what its comments and docs/access.md say."""

from __future__ import annotations

import re

import pytest

from imdsproxy.access.decision import decide
from imdsproxy.access.file import read_rules
from imdsproxy.access.subject import Subject
from imdsproxy.cli.main import main
from imdsproxy.protocol.messages import Target
from imdsproxy.protocol.target import read_target
from tests.kit import ROOT
from tests.targets import INSTANCE, TOKEN, VERSIONS

EXAMPLE = ROOT / "config" / "access.toml"


@pytest.mark.parametrize("commented", [True, False], ids=["as it is", "with every comment taken up"])
def test_example_does_what_it_says(commented: bool) -> None:
    text = EXAMPLE.read_text(encoding="ascii")
    if not commented:
        text = re.sub(r"(?m)^# (?=\[\[|\w+ = )", "", text)
    rules = read_rules(text, EXAMPLE.name)

    def allowed(subject: Subject, path: str) -> bool:
        target = read_target(path.encode("ascii"))
        assert isinstance(target, Target)
        return decide(rules, subject, "GET", target).allowed

    web = Subject(user_name="www-data", executable="/usr/bin/python3.11")
    nobody = Subject(user=65534, executable="/bin/sh")
    mine = f"{TOKEN}&client_id=00000000-0000-0000-0000-000000000000"
    assert all(allowed(each, VERSIONS) for each in (web, nobody, Subject()))
    assert allowed(nobody, INSTANCE) is commented, "the denied parts are in it"
    assert allowed(Subject(user=0), TOKEN)
    assert not allowed(nobody, TOKEN)
    assert not allowed(web, TOKEN)
    assert allowed(web, mine) is not commented
    assert not allowed(nobody, mine)


def test_example_is_explained_as_the_page_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "access.md").read_text(encoding="utf-8")
    found = re.search(r"\$ imdsproxy (access explain .*)\n((?:.*\n)*?)```", page)
    assert found is not None
    monkeypatch.chdir(ROOT)
    assert main(found[1].split()) == 0
    assert capsys.readouterr().out == found[2]
