"""What is made of the runs: ratios, numbers, verdicts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.console import Console

from benchmarks.goals import GOALS, PAST, TARGETS, Goal, Summary, Target, ratios
from benchmarks.harness import PEER, SUBJECT, Result, Session
from benchmarks.report import UNITS, markdown, number, print_session
from benchmarks.scenarios import SCENARIOS, select


def session(**runs: Any) -> Session:
    result = Result("flow-1k", "steady flow", "1 KiB", ["rate", "confirm_p99_ms"], runs)
    brokers = {name: f"version of {name}" for name in runs}
    return Session("2024-01-01", {"processors": "2"}, {"runs": 3}, brokers, [result])


RUNS = {
    SUBJECT: [{"rate": 80.0, "confirm_p99_ms": 1.0}, {"rate": 100.0}, {}, {"rate": 90.0}],
    PEER: [{"rate": 10.0, "confirm_p99_ms": 4.0}, {"rate": 10.0}, {"rate": 1.0}, {"rate": 10.0}],
}


def test_ratios_are_those_of_neighbours() -> None:
    (result,) = session(**RUNS).results
    assert ratios(result, "rate", SUBJECT, PEER) == Summary(9.0, 8.0, 10.0)
    assert ratios(result, "delivery_p99_ms", SUBJECT, PEER) is None


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


PAST_RUNS = [
    {"rate": 110.0, "loop_cpu_us": 4.0},
    {"rate": 111.0, "loop_cpu_us": 4.0},
    {},
    {"rate": 112.0, "loop_cpu_us": 4.0},
]


def test_several_peers_have_a_column_and_a_ratio_each() -> None:
    made = session(**RUNS, **{PAST: PAST_RUNS, "lavinmq": RUNS[PEER]})
    assert (made.subject, made.peers) == (SUBJECT, [PEER, PAST, "lavinmq"])
    lines = markdown(made).splitlines()
    assert (
        "| flow-1k | messages/s | 90 (80-100) | 10 (1-10) | 9 (8-10) | 111 (110-112) | "
        "0.804 (0.727-0.901) | 10 (1-10) | 9 (8-10) |" in lines
    )
    assert "| scenario | × f8c01d8, and what is asked | × lavinmq, and what is asked |" in lines
    assert "| flow 1 KiB | 0.804 (0.727-0.901), ≥ 1: **no** | 9 (8-10), ≥ 2: yes |" in lines


@pytest.mark.parametrize(
    ("ours_us", "theirs_us", "verdict"),
    [(4.0, 4.0, "yes: loop's time 1.00 ×"), (4.1, 4.0, "**no**"), (3.0, 4.0, "yes: loop's time")],
)
def test_a_goal_is_reached_by_equal_time_of_the_loop(
    ours_us: float, theirs_us: float, verdict: str
) -> None:
    ours, theirs = {"rate": 8.0, "loop_cpu_us": ours_us}, {"rate": 10.0, "loop_cpu_us": theirs_us}
    made = session(**{SUBJECT: [ours], PAST: [theirs]})
    (result,) = made.results
    goal = Goal("flow", "flow-1k", "rate", {PAST: 1.0}, or_loop=True)
    assert str(goal.verdict(made, result, PAST)).startswith(verdict)
    # Where the goal is to be faster, the rate alone counts.
    goal = Goal("flow", "flow-1k", "rate", {PAST: 1.0})
    assert goal.verdict(made, result, PAST) == "**no**"


@pytest.mark.parametrize(("rate", "verdict"), [(9.5, "yes"), (9.4, "**no**"), (20.0, "yes")])
def test_a_goal_is_reached_within_five_percent(rate: float, verdict: str) -> None:
    made = session(**{SUBJECT: [{"rate": rate}], PAST: [{"rate": 10.0}]})
    goal = Goal("flow", "flow-1k", "rate", {PAST: 1.0})
    assert goal.verdict(made, made.results[0], PAST) == verdict
    assert goal.verdict(made, made.results[0], "rabbitmq4") is None


@pytest.mark.parametrize(("p99_ms", "verdict"), [(20.0, "yes"), (20.1, "**no**"), (1.0, "yes")])
def test_a_goal_can_be_a_limit(p99_ms: float, verdict: str) -> None:
    made = session(**{SUBJECT: [{"confirm_p99_ms": p99_ms}], PAST: [{"confirm_p99_ms": 10.0}]})
    goal = Goal("flood", "flow-1k", "confirm_p99_ms", {PAST: 2.0}, higher=False)
    assert goal.verdict(made, made.results[0], PAST) == verdict


def test_goals_targets_and_headlines_name_what_there_is() -> None:
    figures = {scenario.name: scenario.headline for scenario in SCENARIOS}
    for goal in GOALS:
        assert goal.figure in figures[goal.scenario], goal
        if goal.or_loop:
            assert goal.figure.removesuffix("rate") + "loop_cpu_us" in figures[goal.scenario], goal
    assert {target.scenario for target in TARGETS} <= set(figures)
    assert {figure for headline in figures.values() for figure in headline} <= set(UNITS)


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
    found = [scenario.name for scenario in select(["in-turn-10", "in-turn-10*"])]
    assert found == [
        "in-turn-10", "in-turn-10-consumed", "in-turn-100", "in-turn-100-consumed",
    ]  # fmt: skip
    with pytest.raises(KeyError):
        select(["nothing"])
