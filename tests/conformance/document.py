"""Write the tables of `docs/conformance.md` from the rules: `python -m tests.conformance.document`."""

from __future__ import annotations

from pathlib import Path

from tests.conformance import cache_rules, field_rules, wire_rules
from tests.conformance.rules import CACHE, CISPA, GARDEN, H1SPEC, Rule
from tests.kit import ROOT

PAGE = ROOT / "docs" / "conformance.md"
BEGIN = "<!-- the rules, written by tests/conformance/document.py -->\n"
RULES = (*wire_rules.RULES, *field_rules.RULES, *cache_rules.RULES)
SUITES = {
    H1SPEC: "https://github.com/uNetworking/h1spec",
    CISPA: "https://github.com/cispa/http-conformance",
    GARDEN: "https://github.com/narfindustries/http-garden",
    CACHE: "https://github.com/http-tests/cache-tests",
}


def written(rules: tuple[Rule, ...] = RULES) -> str:
    """Return the tables: a count for each suite, then a line for each rule."""
    lines = ["| suite | rules | with a test here | kept without a remark |", "|---|---|---|---|"]
    for suite, address in SUITES.items():
        own = [rule for rule in rules if rule.suite == suite]
        kept = sum(bool(rule.test) and not rule.why for rule in own)
        lines.append(f"| [{suite}]({address}) | {len(own)} | {sum(bool(rule.test) for rule in own)} | {kept} |")
    for suite in SUITES:
        lines += [
            "",
            f"## {suite}",
            "",
            "| rule | in our words | source | test, and what differs |",
            "|---|---|---|---|",
        ]
        lines += [_line(rule) for rule in rules if rule.suite == suite]
    return "\n".join(lines) + "\n"


def _line(rule: Rule) -> str:
    test = f"`{rule.test.replace('::', ': ')}`" if rule.test else "none"
    last = f"{test}; {rule.why}" if rule.why else test
    return f"| {rule.name} | {rule.words} | {rule.source} | {last} |"


def write(page: Path = PAGE) -> None:
    """Write the tables into the page, behind what a person has written."""
    head = page.read_text(encoding="utf-8").partition(BEGIN)[0]
    page.write_text(f"{head}{BEGIN}\n{written()}", encoding="utf-8")


if __name__ == "__main__":
    write()
