"""The report of the benchmarks: goals, tables, the picture."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from benchmarks.figures import (
    BARE,
    DIRECT,
    NGINX,
    OURS,
    VARNISH,
    Curve,
    Figure,
    Findings,
)
from benchmarks.report import goals, picture, svg, tables

SVG = "{http://www.w3.org/2000/svg}"


def some_findings(servers: Mapping[str, float]) -> Findings:
    """Return findings of some parts; each server has the rate given beside its name."""
    figures = [
        Figure(name="hits_per_second", what="hits", unit="/s", measured=servers, note="A note."),
        Figure(name="differing_per_second", what="others", unit="/s", measured=servers),
        Figure(name="memory_at_rest_mib", what="memory", unit="MiB", measured={OURS: 41.0}),
        Figure(name="cold_reached_requests", what="reached", unit="requests", measured={OURS: 40, DIRECT: 6895}),
        Figure(name="cold_refused_requests", what="refused", unit="requests", measured={OURS: 0, DIRECT: 6860}),
        Figure(name="cold_last_s", what="last", unit="s", measured={OURS: 7.3, DIRECT: 63.0}),
        Figure(name="cold_gave_up_clients", what="gave up", unit="clients", measured={OURS: 0, DIRECT: 965}),
    ]
    rate = {name: [value, value / 2, value / 4] for name, value in servers.items()}
    p99 = {name: [0.1, 1.0, 400.0] for name in servers}
    curve = Curve(
        name="entries",
        what="entries",
        along="entries",
        points=(1, 10, 10_000),
        rate=rate,
        p99_ms=p99,
        longest_ms=p99,
        processor_ms=p99,
    )
    return Findings(figures=figures, curves=[curve], left_out={VARNISH: "varnishd is not installed"})


def test_goals_are_listed_only_if_measured() -> None:
    found = goals.reached(some_findings({OURS: 120_000.0, NGINX: 100_000.0}))
    told = {(goal.what, goal.bound, goal.goal): (round(goal.measured, 2), goal.missed) for goal in found}
    assert told == {
        ("hits, beside nginx", "at least", 1.25): (1.2, True),
        ("others, beside nginx", "at least", 1.0): (1.2, False),
        ("hits", "at least", 15_000): (120_000, False),
        ("memory", "at most", 38.0): (41.0, True),
        ("refused", "at most", 0): (0, False),
        ("gave up", "at most", 0): (0, False),
        ("hits with up to 10,000 entries, the lowest rate beside that with one", "at least", 0.8): (0.25, True),
    }
    assert goals.reached(Findings()) == []


def test_goals_of_a_crowd_compare_its_slowest_responses() -> None:
    times = {OURS: [1.0, 30.0, 90.0], NGINX: [2.0, 20.0, 30.0]}
    curve = Curve(
        name="connections",
        what="any",
        along="connections",
        points=(500, 1000, 4000),
        rate=times,
        p99_ms=times,
        longest_ms={OURS: [9999.0, 299.0, 300.0], NGINX: [1.0, 1.0, 1.0]},
        processor_ms={},
    )
    found = goals.reached(Findings(curves=[curve]))
    assert [(goal.what, goal.measured, goal.missed) for goal in found] == [
        ("1,000 connections that begin at once: 99 of 100 within, beside nginx", 1.5, False),
        ("1,000 connections that begin at once: the longest", 299.0, False),
        ("4,000 connections that begin at once: 99 of 100 within, beside nginx", 3.0, True),
        ("4,000 connections that begin at once: the longest", 300.0, True),
    ]
    alone = replace(curve, p99_ms={OURS: times[OURS]})
    assert [goal.unit for goal in goals.reached(Findings(curves=[alone]))] == ["ms", "ms"]


def test_tables_show_ratios_losses_and_omitted_servers() -> None:
    findings = some_findings({OURS: 50_000.0, NGINX: 100_000.0})
    findings.goals = goals.reached(findings)
    for written in (tables.text({"cpu": "any"}, findings), tables.markdown({"cpu": "any"}, findings)):
        assert "100,000 (0.50)" in written
        assert re.search(r"hits, beside nginx +(\| )?0.50 x +(\| )?at least 1.25 x +(\| )?missed", written)
        assert re.search(r"10,000 +(\| )?12,500 \(400.00\)", written)
        assert "Left out: Varnish: varnishd is not installed." in written
        assert "hits: A note." in written
    assert json.loads(json.dumps(tables.document({}, findings, 1.0)))["goals"][0]["missed"] is True


@pytest.mark.parametrize(
    ("highest", "expected"),
    [(0.0, [0.0, 1.0]), (4.0, [0, 1, 2, 3, 4]), (190_000.0, [0, 50_000, 100_000, 150_000, 200_000]), (0.9, None)],
)
def test_ticks_are_round_and_reach_the_highest(highest: float, expected: list[float] | None) -> None:
    found = svg.ticks(highest)
    assert expected is None or found == expected
    assert found[0] == 0
    assert found[-1] >= highest
    assert 2 <= len(found) <= 7


@pytest.mark.parametrize(
    ("lowest", "highest", "expected"),
    [(0.13, 467.0, [0.1, 1, 10, 100, 1000]), (1.0, 1.0, [1, 10]), (0.1, 100.0, [0.1, 1, 10, 100])],
)
def test_decades_enclose_the_values(lowest: float, highest: float, expected: list[float]) -> None:
    assert svg.decades(lowest, highest) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scale", "value", "place"),
    [
        (svg.Scale(0, 10, 100, 200), 5, 150),
        (svg.Scale(0, 10, 200, 100), 2.5, 175),
        (svg.Scale(1, 100, 0, 10, logarithmic=True), 10, 5),
        (svg.Scale(0, 10, 100, 200), 11, 200),
        (svg.Scale(3, 3, 100, 200), 3, 150),
    ],
)
def test_scale_maps_values_to_positions(scale: svg.Scale, value: float, place: float) -> None:
    assert scale(value) == pytest.approx(place)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (150_000.0, "150k"), (2500.0, "2.5k"), (0.1, "0.1"), (10.0, "10")]
)
def test_values_are_short_at_an_axis(value: float, text: str) -> None:
    assert svg.short(value) == text


@pytest.mark.parametrize(
    "findings",
    [
        Findings(),
        some_findings({OURS: 120_000.0}),
        some_findings({OURS: 1.0, NGINX: 200_000.0, VARNISH: 90.0, BARE: 1.0}),
    ],
)
def test_picture_contains_all_its_parts(findings: Findings) -> None:
    root = ET.fromstring(picture.draw({"cpu": "a <cpu> & more"}, findings))
    wide, high = (float(root.attrib[name]) for name in ("width", "height"))
    for element in root.iter():
        x, y = (float(element.attrib.get(name, 0)) for name in ("x", "y"))
        right = x + float(element.attrib.get("width", 0)) if element is not root else 0
        if element.tag == f"{SVG}text":
            long = svg.width(element.text or "", float(element.attrib["font-size"]))
            shift = {"start": 0.0, "middle": 0.5, "end": 1.0}[element.attrib.get("text-anchor", "start")]
            x -= shift * long
            right = x + long
        assert 0 <= x <= right <= wide
        assert 0 <= y <= high
        for point in element.attrib.get("points", "").split():
            across, down = map(float, point.split(","))
            assert 0 <= across <= wide
            assert 0 <= down <= high
