"""Clients that come again, and guessers of passwords: what they leave of a broker's time."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial

from benchmarks.beside import beside
from benchmarks.brokers import Broker
from benchmarks.flow import Figures, LoadProcess, expect_ready
from benchmarks.load import GO, STOP, Report
from benchmarks.logins import PATIENCE_S, LoginPlan, Logins, log_in
from benchmarks.measure import Span, quantile_ms, rate
from benchmarks.scenarios.scenario import Scenario, Settings

RECONNECTS = LoginPlan(at_once=500, a_second=1_000)
GUESSES = LoginPlan(at_once=100, guesses=True)
COMPARED = ("bystander_rate", "confirm_p50_ms", "confirm_p99_ms", "confirm_max_ms")
SEEN = tuple(name for figure in COMPARED for name in (f"alone_{figure}", figure))


def run_logins(broker: Broker, settings: Settings, *, plans: dict[str, LoginPlan]) -> Figures:
    """A bystander alone, and then beside logins."""
    reports: dict[str, Report[Logins]] = {}
    with ExitStack() as stack:
        processes = {
            name: LoadProcess(log_in, broker.address, plan) for name, plan in plans.items()
        }
        for process in processes.values():
            stack.callback(process.end)
            expect_ready(process)
        seen = stack.enter_context(beside(broker))
        time.sleep(settings.warm_up_s)
        alone = _span(settings.seconds)
        for process in processes.values():
            process.send(GO)
        time.sleep(settings.warm_up_s)
        before = broker.cpu_s()
        span = _span(settings.seconds)
        after = broker.cpu_s()
        for name, process in processes.items():
            process.send(STOP)
            reports[name] = process.receive()
        seen.stop()
    figures = {f"alone_{name}": value for name, value in seen.figures(alone).items()}
    figures |= seen.figures(span)
    for name, report in reports.items():
        figures[f"{name}_rate"] = rate([one.ended for one in report.work], span)
        figures[f"{name}_load_cpu_share"] = report.cpu_s / report.wall_s
        if took := [sample for one in report.work for sample in one.took]:
            figures["login_p50_ms"] = quantile_ms(took, 0.5)
            figures["login_p99_ms"] = quantile_ms(took, 0.99)
    if before:
        figures["loop_cpu_share"] = (after["loop"] - before["loop"]) / span.seconds
        figures["broker_cpu_share"] = (after["broker"] - before["broker"]) / span.seconds
    return figures


def _span(seconds: float) -> Span:
    start_ns = time.monotonic_ns()
    time.sleep(seconds)
    return Span(start_ns, time.monotonic_ns())


STATE = (
    "bystander: 1 KiB, persistent, confirms, one message in flight, for as long alone and then "
    f"beside logins; a guess is another wrong password each, cut after {PATIENCE_S * 1000:.0f} ms, "
    f"{GUESSES.at_once} at once"
)
KINDS = (
    ("reconnects", "clients that connect, open a channel and close", {"reconnects": RECONNECTS}),
    ("guesses", "wrong passwords as fast as they come", {"guesses": GUESSES}),
    ("logins", "such clients and wrong passwords", {"reconnects": RECONNECTS, "guesses": GUESSES}),
)

SCENARIOS = tuple(
    Scenario(
        f"bystander-{name}",
        f"a bystander alone, and beside {title}",
        STATE,
        partial(run_logins, plans=plans),
        (
            *SEEN,
            "turn_max_ms",
            *(f"{kind}_rate" for kind in plans),
            *(("login_p50_ms", "login_p99_ms") if "reconnects" in plans else ()),
            "loop_cpu_share",
            "broker_cpu_share",
        ),
    )
    for name, title, plans in KINDS
)
