"""The loads of the benchmarks: what wrk prints, which heads are sent."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.figures import (
    BenchmarkError,
)
from benchmarks.loads import generator, wrk
from benchmarks.loads.shapes import DIFFERING, REPEATED, Kind, Shape

WRK_OUTPUT = """\
Running 3s test @ http://127.0.0.1:9104/metadata/instance
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   360.45us  571.65us  {longest}   96.36%
    Req/Sec    76.61k    10.63k   91.27k    76.67%
  Latency Distribution
     50%  {half}
     75%  338.00us
     90%  480.00us
     99%  {nearly_all}
  228711 requests in 3.00s, 628.83MB read
{failures}Requests/sec:  76236.19
Transfer/sec:    209.61MB
"""


@pytest.mark.parametrize(
    ("half", "nearly_all", "p50", "p99"),
    [
        ("374.00us", "2.17ms", 0.374, 2.17),
        ("19.65ms", "353.24ms", 19.65, 353.24),
        ("1.15s ", "2.00m ", 1150.0, 120_000.0),
    ],
)
def test_wrk_output_is_read(half: str, nearly_all: str, p50: float, p99: float) -> None:
    sample = wrk.read(WRK_OUTPUT.format(half=half, nearly_all=nearly_all, longest="12.12ms", failures=""))
    assert (sample.count, sample.rate, sample.failed) == (228_711, 76_236.19, 0)
    assert [sample.p50_ms, sample.p99_ms] == pytest.approx([p50, p99])


@pytest.mark.parametrize(
    ("printed", "longest"), [("12.12ms", 12.12), ("  3.01s ", 3010.0), ("987.00us", 0.987), ("  1.00m ", 60_000.0)]
)
def test_longest_response_of_wrk_is_read(printed: str, longest: float) -> None:
    text = WRK_OUTPUT.format(half="1.00ms", nearly_all="2.00ms", longest=printed, failures="")
    assert wrk.read(text).longest_ms == pytest.approx(longest)


@pytest.mark.parametrize("kind", ["repeated", "differing", "entries"])
def test_load_whose_connections_end_says_so_in_each_request(kind: Kind) -> None:
    stays, ends = Shape(kind, 3), Shape(kind, 3, ends=True)
    heads = [set(itertools.islice(generator.requests(1, shape), 9)) for shape in (stays, ends)]
    assert not any(b"Connection:" in head for head in heads[0])
    assert all(head.endswith(b"\r\nConnection: close\r\n\r\n") for head in heads[1])
    assert all(head.count(b"\r\n\r\n") == 1 for head in heads[0] | heads[1])
    without, with_end = (wrk.command("wrk", 1, shape, 32, 1) for shape in (stays, ends))
    assert set(with_end) - set(without) <= {"Connection: close", "close"}
    assert len(with_end) > len(without)


@pytest.mark.parametrize(("seconds", "flag", "early"), [(0.2, "1s", 0.2), (1, "1s", None), (2.5, "3s", 2.5)])
def test_wrk_is_interrupted_where_a_load_takes_no_whole_seconds(seconds: float, flag: str, early: float | None) -> None:
    command = wrk.command("wrk", 1, REPEATED, 32, seconds)
    assert command[command.index("-d") + 1] == flag
    assert wrk.early(seconds) == early


@pytest.mark.parametrize(
    ("failures", "failed"),
    [
        ("  Socket errors: connect 1, read 2, write 3, timeout 4\n", 10),
        ("  Non-2xx or 3xx responses: 16932\n", 16_932),
        ("  Socket errors: connect 0, read 0, write 0, timeout 1\n  Non-2xx or 3xx responses: 5\n", 6),
    ],
)
def test_wrk_failures_are_counted(failures: str, failed: int) -> None:
    text = WRK_OUTPUT.format(half="1.00ms", nearly_all="2.00ms", longest="3.00ms", failures=failures)
    assert wrk.read(text).failed == failed


def test_wrk_output_without_a_rate_is_an_error_that_quotes_it() -> None:
    with pytest.raises(BenchmarkError, match="wrk printed no rate: unable to connect"):
        wrk.read("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_heads_differ_from_request_to_request_and_from_run_to_run() -> None:
    runs = [itertools.islice(generator.requests(1, DIFFERING), 100) for _ in range(2)]
    heads = {head for run_of_it in runs for head in run_of_it}
    assert len(heads) == 200
    assert {head.partition(b"\r\nx-ms-client-request-id: ")[0] for head in heads} == {
        b"GET /metadata/instance?api-version=2021-02-01 HTTP/1.1\r\nHost: 127.0.0.1:1\r\nMetadata: true"
    }


def test_entries_are_requested_in_turn() -> None:
    told = itertools.islice(generator.requests(1, Shape("entries", 3)), 6)
    assert [head.split()[1][-4:] for head in told] == [b"&n=0", b"&n=1", b"&n=2"] * 2
