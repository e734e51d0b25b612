from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imdsproxy.emulator.recorded.spans import cut, rewritten, routes, strings, text_of
from tests.size import examples

TEXT = ' {"a" : {"B":"x\\u0041", "c":[1.50 , "d", {"e":null}]},"z":"" } '


@pytest.mark.parametrize(
    ("route", "part"),
    [
        ((), TEXT.strip()),
        (("a", "b"), '"x\\u0041"'),
        (("A", "C"), '[1.50 , "d", {"e":null}]'),
        (("a", "c", "0"), "1.50"),
        (("a", "c", "2", "e"), "null"),
        (("a", "c", "3"), None),
        (("a", "c", "00"), None),
        (("z", "deeper"), None),
        (("nothing",), None),
    ],
)
def test_part_is_cut_as_it_is_written(route: tuple[str, ...], part: str | None) -> None:
    assert cut(TEXT, route) == part


@pytest.mark.parametrize(
    ("part", "text"),
    [('"x\\u0041"', "xA"), ("1.50", "1.50"), ("{}", ""), ('{"a":{},"b":"","c":[]}', "a/\nb\nc/"), ("[[],1]", "0/\n1")],
)
def test_text_is_the_leaf_or_a_list_of_children(part: str, text: str) -> None:
    assert text_of(part) == text


def test_only_changed_strings_change() -> None:
    changed = rewritten(TEXT, lambda path, value: "ü" if path == ("a", "c") else value)
    assert changed == TEXT.replace('"d"', '"ü"')
    assert strings(TEXT) == [(("a", "B"), "xA"), (("a", "c"), "d"), (("z",), "")]


def has_one_case(fields: dict[str, Any]) -> bool:
    return len({name.lower() for name in fields}) == len(fields)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4).filter(has_one_case),
    max_leaves=15,
)


@settings(max_examples=examples(200), deadline=None)
@given(JSON, st.booleans(), st.sampled_from([None, 1]))
def test_every_part_is_cut_to_the_byte(document: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent)
    assert rewritten(text, lambda _path, value: value) == text
    for route, part in routes(text):
        element = document
        for step in route:
            element = element[int(step)] if isinstance(element, list) else element[step]
        assert json.loads(part) == element
        assert cut(text, route) == part
    assert routes(text)[0] == ((), text)
    emptied = rewritten(text, lambda _path, _value: "")
    assert all(value == "" for _, value in strings(emptied))
    assert len(strings(emptied)) == len(strings(text))
