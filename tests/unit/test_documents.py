"""The documents: every command is run or marked, every link leads somewhere, every setting is found."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from imdsproxy.cli.command_line import COMMANDS, make_parser, parse
from imdsproxy.emulator import cli as emulator
from imdsproxy.emulator import events_command
from imdsproxy.settings import report
from imdsproxy.settings.model import Settings, environment_name
from tests import documents
from tests.documents import Block
from tests.kit import ROOT

pytestmark = pytest.mark.any_python

README = ROOT / "README.md"
PAGES = documents.documents()
BLOCKS = [block for page in PAGES for block in documents.blocks(page)]

_NO_SETTING = {"IMDSPROXY_COLOUR"}
"""The example of a name that no release knows."""
# A block of data that begins a line with one of these holds a command.
_PROGRAMS = re.compile(
    r"^(\$ |(sudo )?(imdsproxy|curl|make|python3?|pip|docker|kubectl|systemctl|nft|sysctl|apt-get|git|uvicorn|ssh) )",
    re.MULTILINE,
)


def ids(page: Path) -> str:
    return documents.name(page)


@cache
def names_of_tests(file: str) -> set[str]:
    """Return the names of the tests in a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block_of_commands_is_run_or_marked(block: Block) -> None:
    known = (*documents.COMMANDS, *documents.FOREIGN, *documents.PROGRAMS, *documents.DATA)
    assert block.language in known, f"{block}: name the language of the block; one of {', '.join(known)}"
    if block.language in documents.DATA:
        assert not _PROGRAMS.search(block.text), f"{block}: commands belong in a block of sh or console"
        assert not block.run_by
        assert not block.not_run
    elif block.language in {*documents.FOREIGN, *documents.PROGRAMS}:
        assert block.run_by or block.not_run, f"{block}: say which test runs it, or why none does"
    elif block.language == "console":
        assert re.search(r"^\$ ", block.text, re.MULTILINE), f"{block}: a command of console begins with $"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.run_by], ids=str)
def test_mark_names_tests_that_exist(block: Block) -> None:
    for test in block.run_by:
        file, _, function = test.partition("::")
        assert function in names_of_tests(file), f"{block}: there is no {test}"


def parse_line(line: str) -> None:
    """Parse a command line of the program, without running it. UsageError, or SystemExit, for a mistake."""
    words = shlex.split(line, comments=True)[1:]
    match words:
        case [] | ["--version"] | [*_, "--help"]:
            return
        case ["emulator", "events", *rest]:
            events_command.make_parser().parse_args(rest)
        case ["emulator", *rest]:
            emulator.make_parser().parse_args(rest)
        case ["access", "explain", *rest]:
            parse(make_parser("access"), rest)
        case [command, *rest] if command in COMMANDS:
            parse(make_parser(command), rest)
        case _:
            parse(make_parser("serve"), words)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_in_sentences_are_commands_of_the_program(page: Path) -> None:
    """A placeholder in capitals stands for a value."""
    for span in re.findall(r"`(imdsproxy(?: [^`…]*)?)`", documents.prose(page)):
        parse_line(re.sub(r"[\[\]]| [<>].*", "", span))


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in documents.COMMANDS], ids=str)
def test_commands_in_blocks_are_commands_of_the_program(block: Block) -> None:
    """Those that are not run have the flags of the program as well."""
    for line in block.text.replace("\\\n", " ").splitlines():
        command = re.match(r"(?:\$ )?(?:\w+=\S+ )*(?:\S+/)?(imdsproxy(?: .*)?)$", line)
        if command:
            parse_line(re.split(r" [|<>&]", command[1])[0])


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_make_targets_in_documents_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"`make ([\w-]+)", documents.prose(page)))
    for block in documents.blocks(page):
        named |= set(re.findall(r"^make ([\w-]+)", block.text, re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_to_a_file_and_its_heading(page: Path) -> None:
    for file, anchor in documents.links(page):
        assert file.exists(), f"{documents.name(page)} links to {file}, which does not exist"
        assert not anchor or anchor in documents.anchors(file), f"{documents.name(page)}: no heading #{anchor}"


@pytest.mark.parametrize("field", Settings.model_fields)
def test_setting_is_within_two_clicks_of_the_readme(field: str) -> None:
    found = [page for page in documents.within(2, README) if page.name != "CHANGELOG.md"]
    row = f"| `{environment_name(field)}` |"
    assert any(row in page.read_text(encoding="utf-8") for page in found)


def test_every_page_and_every_command_is_within_two_clicks_of_the_readme() -> None:
    found = documents.within(2, README)
    assert set(PAGES) <= found
    text = "".join(page.read_text(encoding="utf-8") for page in found)
    assert [command for command in COMMANDS if f"imdsproxy {command}" not in text] == []


def test_settings_in_documents_exist() -> None:
    known = {environment_name(field) for field in Settings.model_fields} | _NO_SETTING
    for page in PAGES:
        named = set(re.findall(r"IMDSPROXY_[A-Z][A-Z_]*[A-Z]", page.read_text(encoding="utf-8")))
        assert named <= known, documents.name(page)


def test_configuration_page_has_the_settings_as_the_program_prints_them() -> None:
    """After a change: `imdsproxy config --markdown` prints the table."""
    assert report.markdown() in (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


def test_security_page_defends_the_default_of_every_setting() -> None:
    """Each setting has a row in the table, in the order of the settings, with its default and two reasons."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    table = text.partition("\n## Each default and its reason\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "| `IMDS" in line]
    expected = [line.split("|") for line in report.markdown().splitlines() if line.startswith("| `IMDS")]
    assert [row[:2] for row in rows] == [[name.strip(), default.strip()] for _, name, default, *_ in expected]
    assert [row for row in rows if len(row) != 4 or not all(row)] == []


def test_mechanism_sees_commands_marks_and_data(tmp_path: Path) -> None:
    page = ROOT / "example.md"
    text = (
        "# A `b` c\n\n```sh\nimdsproxy status\n```\n\n<!-- not run: needs\nAzure -->\n```sh\ncurl x\n```\n"
        "<!-- run by: tests/a.py::test_b, tests/c.py::test_d -->\n\n```powershell\nx\n```\n\n```\nno language\n```\n"
    )
    file = tmp_path / page.name
    file.write_text(text, encoding="utf-8")
    found = documents.blocks(file)
    assert [block.language for block in found] == ["sh", "sh", "powershell", ""]
    assert [block.runs for block in found] == [True, False, False, False]
    assert [block.line for block in found] == [3, 9, 14, 18]
    assert found[1].not_run == "needs Azure"
    assert found[2].run_by == ("tests/a.py::test_b", "tests/c.py::test_d")
    assert documents.anchors(file) == {"a-b-c"}
