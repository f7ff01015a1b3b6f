"""What is made of the runs: ratios, numbers, verdicts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.console import Console

from benchmarks.harness import PEER, SUBJECT, Result, Session
from benchmarks.report import Summary, Target, markdown, number, print_session, ratios
from benchmarks.scenarios import SCENARIOS, select


def session(**runs: Any) -> Session:
    result = Result("flow-1k", "steady flow", "1 KiB", ["rate", "confirm_p99_ms"], runs)
    return Session("2024-01-01", {"processors": "2"}, {"runs": 3}, {SUBJECT: "one"}, [result])


RUNS = {
    SUBJECT: [{"rate": 80.0, "confirm_p99_ms": 1.0}, {"rate": 100.0}, {}, {"rate": 90.0}],
    PEER: [{"rate": 10.0, "confirm_p99_ms": 4.0}, {"rate": 10.0}, {"rate": 1.0}, {"rate": 10.0}],
}


def test_ratios_are_those_of_neighbours() -> None:
    (result,) = session(**RUNS).results
    assert ratios(result, "rate") == Summary(9.0, 8.0, 10.0)
    assert ratios(result, "delivery_p99_ms") is None


def test_a_session_survives_its_file() -> None:
    before = session(**RUNS)
    assert Session.from_json(json.loads(json.dumps(before.as_json()))) == before


def test_markdown_sets_targets_beside_what_was_measured() -> None:
    lines = markdown(session(**RUNS)).splitlines()
    label = "flow 1 KiB, persistent, confirms, manual acks"
    assert f"| {label} | 7 × | 12 × | 9 × | 8-10 | yes |" in lines
    assert "| flow 1 KiB: p99 of confirm | ≤ 1/3 × | ≤ 1/8 × | 0.25 × | 0.25-0.25 | yes |" in lines
    assert "| flow 1 KiB: p99 end to end | ≤ 1/3 × | ≤ 1/8 × | | | |" in lines
    assert "| flow-1k | messages/s | 90 (80-100) | 10 (1-10) | 9 (8-10) |" in lines


@pytest.mark.parametrize(
    ("median", "verdict"), [(6.9, "**no**"), (7.0, "yes"), (11.9, "yes"), (12.0, "aim")]
)
def test_verdict(median: float, verdict: str) -> None:
    target = Target("flow", "flow-1k", "rate", 7, 12)
    assert target.verdict(Summary(median, median, median)) == verdict


def test_tables_fit_a_terminal_and_name_failures() -> None:
    made = session(**RUNS)
    made.results[0].errors.append("flow-1k 3 on qlog: [one] message was lost")
    console = Console(width=80)
    with console.capture() as capture:
        print_session(made, console)
    text = capture.get()
    assert "failed: flow-1k 3 on qlog: [one] message was lost" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123456, "0.0123"), (9.876, "9.88"), (123.4, "123"), (19624.0, "19,600"), (0.0, "0")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_scenarios_are_found_by_name() -> None:
    names = [scenario.name for scenario in SCENARIOS]
    assert len(set(names)) == len(names)
    assert select([]) == list(SCENARIOS)
    assert [scenario.name for scenario in select(["fanout", "flow-1k"])] == ["fanout", "flow-1k"]
    with pytest.raises(KeyError):
        select(["nothing"])
