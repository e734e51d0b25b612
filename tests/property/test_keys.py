"""The conditions under which two targets share an entry, and properties of every reading of a target."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, unquote_to_bytes

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from imdsproxy.protocol.messages import Refusal, Target
from imdsproxy.protocol.target import read_target

PLUS = "<+>"
"""An unescaped `+`, which is distinct from a space and from `%2B`."""
WRITTEN = {f"<{delimiter}>": delimiter for delimiter in "!$'()*+,;"} | {"<=>": "="}
"""Delimiters that were written as such: some readers split at them, and at their escapes none does."""

Component = tuple[str, ...]
"""A query's name or value as what it means: characters, and those of `WRITTEN` for what was written as such."""
Parameter = tuple[Component, Component | None]
"""A name and a value; None where there is no `=`."""

_UNRESERVED = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_~"
_PATH_ONLY = ".!$&'()*+,=:@"
_QUERY_PLAIN = _UNRESERVED + '."/:<>?@[\\]^`{|}'


@dataclass(frozen=True)
class Meaning:
    """What a target says, however it is written."""

    path: tuple[str, ...]
    parameters: frozenset[Parameter]


def spoken(component: Component) -> str:
    """Return a component as a reader would who takes a plus for a space."""
    return "".join(" " if atom == PLUS else WRITTEN.get(atom, atom) for atom in component).lower()


characters = st.sampled_from([*"aZ0 +%&=#/;.-_~", "é", "\u212a"]) | st.characters(
    blacklist_categories=("Cc", "Cs"), blacklist_characters="\x7f"
)
components = st.lists(characters | st.sampled_from(sorted(WRITTEN)), max_size=5).map(tuple)
names = st.sampled_from(
    [tuple(name) for name in ("api-version", "resource", "client_id", "nonce")]
) | components.filter(lambda name: "<=>" not in name)
parameters = st.lists(
    st.tuples(names, st.none() | components).filter(lambda pair: pair != ((), None)),
    unique_by=lambda pair: spoken(pair[0]),
    max_size=5,
).filter(lambda pairs: all(spoken(name) != "bypass_cache" for name, _ in pairs))
segments = st.text(_UNRESERVED + _PATH_ONLY, min_size=1, max_size=6).filter(lambda segment: not segment.endswith("."))
paths = st.lists(st.sampled_from(["metadata", "instance", "Instance"]) | segments, min_size=1, max_size=4).map(tuple)
meanings = st.builds(Meaning, paths, parameters.map(frozenset))
# So few of each that two are sometimes equal.
few = st.builds(
    Meaning,
    st.sampled_from([("a",), ("A",), ("a", "b"), ("a+b",)]),
    st.lists(
        st.tuples(
            st.sampled_from([("a",), ("A",), ("b",), ("b", "="), ("a", "&", "b")]),
            st.sampled_from(
                [
                    None,
                    (),
                    ("1",),
                    (" ",),
                    ("+",),
                    (PLUS,),
                    ("<;>",),
                    (";",),
                    ("<=>",),
                    ("%",),
                    ("=",),
                    ("&", "b", "=", "1"),
                ]
            ),
        ),
        unique_by=lambda pair: spoken(pair[0]),
        max_size=2,
    ).map(frozenset),
)


def escaped(draw: st.DrawFn, text: str) -> str:
    """Escape a character, the hexadecimal digits in either case."""
    return "".join(
        f"%{byte:02x}" if draw(st.booleans()) else f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass")
    )


def write(draw: st.DrawFn, component: Component, plain: str) -> str:
    return "".join(
        WRITTEN[atom] if atom in WRITTEN else atom if atom in plain and draw(st.booleans()) else escaped(draw, atom)
        for atom in component
    )


@st.composite
def spellings(draw: st.DrawFn, meaning: Meaning) -> bytes:
    """Write a meaning in one of the ways in which it can be written."""
    path = "".join(
        "/" + "".join(escaped(draw, c) if c in _UNRESERVED and draw(st.booleans()) else c for c in segment)
        for segment in meaning.path
    )
    pairs = [
        write(draw, name, _QUERY_PLAIN) + ("" if value is None else "=" + write(draw, value, _QUERY_PLAIN))
        for name, value in draw(st.permutations(sorted(meaning.parameters, key=repr)))
    ]
    slash, marked = draw(st.sampled_from(["", "/"])), draw(st.booleans())
    mark = "?" if pairs or marked else ""
    front = "/" * draw(st.integers(0, 2)) if meaning.path[0] == "metadata" else ""
    return (front + path + slash + mark + "&".join(pairs)).encode("ascii")


def read(raw: bytes) -> Target:
    target = read_target(raw)
    assert isinstance(target, Target), (raw, target)
    return target


@pytest.mark.attack(5, 22)
@given(st.data(), meanings)
def test_reordering_and_re_encoding_never_change_the_key(data: st.DataObject, meaning: Meaning) -> None:
    one, other = data.draw(spellings(meaning)), data.draw(spellings(meaning))
    assert read(one).key == read(other).key


def told_apart(raw: bytes) -> tuple[bytes, list[bytes]]:
    """Return the meaning of a target: everything but the order of parameters with different names."""
    path, _, query = raw.partition(b"?")
    return path, sorted(query.split(b"&"))


@given(st.data(), meanings)
def test_targets_of_one_key_send_the_same_bytes(data: st.DataObject, meaning: Meaning) -> None:
    one, other = read(data.draw(spellings(meaning))), read(data.draw(spellings(meaning)))
    assert told_apart(one.raw) == told_apart(other.raw)


@pytest.mark.attack(5, 22)
@given(st.data(), few, few)
def test_targets_share_a_key_only_if_they_send_the_same_bytes(
    data: st.DataObject, one: Meaning, other: Meaning
) -> None:
    first, second = (read(data.draw(spellings(meaning))) for meaning in (one, other))
    assert (first.key == second.key) is (told_apart(first.raw) == told_apart(second.raw))


@given(st.data(), meanings)
def test_canonical_spelling_is_read_as_the_same_target(data: st.DataObject, meaning: Meaning) -> None:
    target = read(data.draw(spellings(meaning)))
    again = read(target.raw)
    assert (again.raw, again.key, again.segments) == (target.raw, target.key, target.segments)
    assert again.parameters == target.parameters
    assert read(target.key.encode("ascii")).key == target.key


@given(st.data(), few, few)
def test_targets_share_a_key_if_and_only_if_they_mean_the_same(
    data: st.DataObject, one: Meaning, other: Meaning
) -> None:
    keys = [read(data.draw(spellings(meaning))).key for meaning in (one, other)]
    assert (keys[0] == keys[1]) is (one == other)


@given(st.data(), meanings, meanings)
def test_different_meanings_have_different_keys(data: st.DataObject, one: Meaning, other: Meaning) -> None:
    assume(one != other)
    assert read(data.draw(spellings(one))).key != read(data.draw(spellings(other))).key


def decoded(raw: bytes) -> tuple[bytes, list[tuple[bytes, ...]]]:
    """Say what a target means by the plainest reading there is, every written plus kept apart from the others."""
    path, _, query = raw.partition(b"?")
    marks = bytes.maketrans(b"!$'()*+,;=", bytes(range(246, 256)))
    pairs = (pair.partition(b"=") for pair in query.split(b"&") if pair)
    read_pairs = ((unquote_to_bytes(n.translate(marks)), e, unquote_to_bytes(v.translate(marks))) for n, e, v in pairs)
    plain = b"/" + unquote_to_bytes(path).lstrip(b"/").removesuffix(b"/")
    return plain, sorted(pair for pair in read_pairs if pair[0].lower() != b"bypass_cache")


@given(st.data(), meanings, st.integers(0, 10_000), st.text("aA1=&+%2Bf/?.", max_size=3))
def test_changing_any_byte_changes_the_key_unless_it_is_only_the_spelling(
    data: st.DataObject, meaning: Meaning, place: int, change: str
) -> None:
    raw = data.draw(spellings(meaning))
    place %= len(raw)
    changed = raw[:place] + change.encode() + raw[place + 1 :]
    other = read_target(changed)
    if isinstance(other, Target) and decoded(changed) != decoded(raw):
        assert other.key != read(raw).key


@given(st.data(), meanings, st.integers(0, 10_000), characters)
def test_changing_a_character_of_a_value_changes_the_key(
    data: st.DataObject, meaning: Meaning, place: int, character: str
) -> None:
    changeable = [pair for pair in meaning.parameters if pair[1]]
    assume(changeable)
    name, value = data.draw(st.sampled_from(sorted(changeable, key=repr)))
    assert value
    place %= len(value)
    assume(value[place] != character)
    changed = Meaning(
        meaning.path,
        meaning.parameters - {(name, value)} | {(name, (*value[:place], character, *value[place + 1 :]))},
    )
    assert read(data.draw(spellings(meaning))).key != read(data.draw(spellings(changed))).key


@pytest.mark.attack(22)
@given(st.text("ab+ ", min_size=1, max_size=6), st.data())
def test_plus_space_and_escaped_plus_have_different_keys(text: str, data: st.DataObject) -> None:
    ways = {"+": ["+", "%2B"], " ": ["%20"]}
    one, other = (
        "".join(data.draw(st.sampled_from(ways.get(character, [character]))) for character in text) for _ in range(2)
    )
    # The same text with every space written as a plus is a third thing.
    third = one.replace("%20", "+")
    keys = [read(b"/metadata/instance?a=" + way.encode()).key for way in (one, other, third)]
    assert (keys[0] == keys[1]) is (one == other)
    assert (keys[0] == keys[2]) is (one == third)


@given(
    st.data(),
    meanings,
    st.sampled_from(["true", "True", "TRUE", "tru%65"]),
    st.sampled_from(["bypass_cache", "BYPASS%5fcache"]),
)
def test_bypass_cache_true_does_not_enter_the_key(data: st.DataObject, meaning: Meaning, true: str, name: str) -> None:
    raw = data.draw(spellings(meaning))
    path, _, query = raw.decode().partition("?")
    pairs = query.split("&") if query else []
    pairs.insert(data.draw(st.integers(0, len(pairs))), f"{name}={true}")
    bypassing = read(f"{path}?{'&'.join(pairs)}".encode())
    assert bypassing.bypass
    assert not read(raw).bypass
    assert bypassing.key == read(raw).key


IDENTITIES = ["client_id", "object_id", "msi_res_id", "mi_res_id", "resource", "api-version", "unknown", "bypass_cache"]
selections = st.dictionaries(
    st.sampled_from(IDENTITIES) | st.text("abc_", min_size=1, max_size=3),
    st.sampled_from(["1", "2", "12", "", "false", "1&client_id=2", "/subscriptions/1", "A", "a"]),
    max_size=4,
)


@pytest.mark.attack(5)
@given(st.data(), selections, selections)
@example(None, {"client_id": "1"}, {"object_id": "1"})
@example(None, {"msi_res_id": "1"}, {"mi_res_id": "1"})
@example(None, {"client_id": "1"}, {})
@example(None, {"client_id": "1&client_id=2"}, {"client_id": "1"})
def test_two_identities_never_share_an_entry(
    data: st.DataObject | None, one: dict[str, str], other: dict[str, str]
) -> None:
    assume(one != other)
    keys = []
    for selection in (one, other):
        meaning = Meaning(
            ("metadata", "identity", "oauth2", "token"),
            parameters=frozenset((tuple(name), tuple(value)) for name, value in selection.items()),
        )
        raw = _plainly(meaning) if data is None else data.draw(spellings(meaning))
        keys.append(read(raw).key)
    assert keys[0] != keys[1]


def _plainly(meaning: Meaning) -> bytes:
    pairs = (
        "".join(name) + "=" + "".join(f"%{byte:02X}" for byte in "".join(value or ()).encode())
        for name, value in meaning.parameters
    )
    return f"/{'/'.join(meaning.path)}?{'&'.join(pairs)}".encode()


FRAGMENTS = [
    *(b"/", b"//", b"/.", b"/..", b"\\", b".", b";", b"?", b"&", b"=", b"#", b"%", b" ", b"\r\n", b"\x00", b"\xff"),
    *(b"%2F", b"%2f", b"%252F", b"%2E", b"%5C", b"%00", b"%3F", b"%61", b"%C3%A9", b"%c0%af", b"+", b"@", b":"),
    *(b"metadata", b"Identity", b"a", b"bypass_cache=true", b"http://", b"HTTPS://", b"169.254.169.254", b"[::1]"),
]
anything = st.binary(max_size=80) | st.lists(st.sampled_from(FRAGMENTS), max_size=12).map(b"".join)


@pytest.mark.attack(3)
@given(anything | anything.map(lambda raw: b"/" + raw) | anything.map(lambda raw: b"http://h" + raw))
@example(b"")
@example(b"/")
@example(b"http://")
@example(b"http://h")
@example(b"/%" + b"41" * 600)
@example(b"/?" + b"%00" * 600)
def test_any_bytes_are_refused_or_read_in_one_way_only(raw: bytes) -> None:
    target = read_target(raw)
    if isinstance(target, Refusal):
        assert target.status == 400
        assert target.description.isprintable()
        return
    if target.authority is not None:
        assert raw.lower().startswith(b"http://")
    assert target.raw.startswith(b"/")
    assert all(0x20 < byte < 0x7F and byte != ord("#") for byte in target.raw)
    for segment in target.segments:
        assert segment
        assert segment.isascii()
        assert segment == segment.lower()
        assert not segment.endswith(".")
        assert not set(segment) & set("/\\%;?# ")
    assert target.key.isascii()
    assert unquote(target.key.partition("?")[0]).lower().rstrip("/") == target.path.rstrip("/")
    said = [name for name, _ in target.parameters]
    assert len(said) == len(set(said))
    assert all(name == name.lower() for name in said)


@given(st.data(), meanings)
def test_long_target_is_read_like_a_short_one(data: st.DataObject, meaning: Meaning) -> None:
    short = read(data.draw(spellings(meaning)))
    long = read(short.raw + (b"&" if b"?" in short.raw else b"?") + b"a-long-one=" + b"%41" * 1_000)
    assert long.raw.endswith(b"a-long-one=" + b"A" * 1_000)
    assert long.segments == short.segments
    assert long.parameters == (*short.parameters, ("a-long-one", "A" * 1_000))
    assert long.bypass is short.bypass is False
    assert long.key != short.key
