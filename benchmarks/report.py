"""Tables of a session: for the terminal, and as Markdown for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.harness import PEER, SUBJECT, Result, Session

UNITS = {
    "rate": ("messages/s", ""),
    "publish_rate": ("published/s", ""),
    "fill_rate": ("fill/s", ""),
    "drain_rate": ("drain/s", ""),
    "confirm_p50_ms": ("confirm p50", " ms"),
    "confirm_p99_ms": ("confirm p99", " ms"),
    "fill_confirm_p99_ms": ("confirm p99", " ms"),
    "delivery_p50_ms": ("end to end p50", " ms"),
    "delivery_p99_ms": ("end to end p99", " ms"),
    "load_cpu_share": ("load CPUs", ""),
    "broker_cpu_share": ("broker CPUs", ""),
    "raw_sync_p50_ms": ("fdatasync p50", " ms"),
    "anonymous_mib": ("anonymous", " MiB"),
    "resident_mib": ("resident", " MiB"),
    "anonymous_kib_each": ("each, anonymous", " KiB"),
    "resident_kib_each": ("each, resident", " KiB"),
    "start_s": ("start", " s"),
    "connect_s": ("connect", " s"),
    "close_s": ("close", " s"),
    "declare_s": ("declare", " s"),
    "delete_s": ("delete", " s"),
}


@dataclass(frozen=True, slots=True)
class Summary:
    """The middle and the ends of some values."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary | None:
        return cls(median(values), min(values), max(values)) if values else None


def values(result: Result, part: str, figure: str) -> list[float]:
    return [run[figure] for run in result.runs.get(part, []) if figure in run]


def ratios(result: Result, figure: str) -> Summary | None:
    """The subject's value by the peer's, run by run: neighbours saw the same machine."""
    pairs = zip(result.runs.get(SUBJECT, []), result.runs.get(PEER, []), strict=False)
    return Summary.of(
        [
            ours[figure] / theirs[figure]
            for ours, theirs in pairs
            if ours.get(figure) and theirs.get(figure)
        ]
    )


def number(value: float) -> str:
    """Three significant digits, without exponents."""
    if abs(value) >= 100:
        digits = len(str(int(abs(value)))) - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}"


def spread(summary: Summary | None) -> str:
    if summary is None:
        return "-"
    if summary.least == summary.most:
        return number(summary.median)
    return f"{number(summary.median)} ({number(summary.least)}-{number(summary.most)})"


def rows(result: Result) -> Iterator[tuple[str, str, str, str]]:
    """Figure, subject, peer and ratio of the headline figures that were measured."""
    for figure in result.headline:
        ours = Summary.of(values(result, SUBJECT, figure))
        theirs = Summary.of(values(result, PEER, figure))
        if ours or theirs:
            name, unit = UNITS[figure]
            yield (
                f"{name}{unit and ','}{unit}",
                spread(ours),
                spread(theirs),
                spread(ratios(result, figure)),
            )


def print_session(session: Session, console: Console) -> None:
    """One table for each scenario; medians, with the least and the most in brackets."""
    for part, version in session.brokers.items():
        console.print(f"[bold]{part}[/]: {version}")
    console.print(", ".join(f"{name} {value}" for name, value in session.environment.items()))
    console.print(", ".join(f"{name} {value}" for name, value in session.settings.items()))
    for result in session.results:
        table = Table(
            title=f"{result.scenario}: {result.title}",
            caption=result.state,
            title_justify="left",
            caption_justify="left",
            min_width=60,
        )
        table.add_column("", no_wrap=True)
        for name in (SUBJECT, PEER, "ratio"):
            table.add_column(name, justify="right")
        for row in rows(result):
            table.add_row(*row)
        if table.row_count:
            console.print()
            console.print(table)
        for error in result.errors:
            console.print(f"failed: {error}", style="red", markup=False)


@dataclass(frozen=True, slots=True)
class Target:
    """What the product promises of one figure, judged by ratio to the peer or by its own value.

    Attributes:
        label: what the table calls it.
        scenario: the scenario's name.
        figure: the figure's name.
        least: what has to be reached.
        aim: what would be better.
        by_ratio: the ratio to the peer counts, else the subject's own value.
        higher: more is better, else less.
    """

    label: str
    scenario: str
    figure: str
    least: float | None
    aim: float | None
    by_ratio: bool = True
    higher: bool = True

    def text(self, bound: float | None) -> str:
        if bound is None:
            return ""
        sign = "" if self.higher else "≤ "
        if self.by_ratio:
            return f"{sign}{_fraction(bound)} ×"
        return f"{sign}{bound:g}{UNITS.get(self.figure, ('', ''))[1]}"

    def measured(self, result: Result) -> Summary | None:
        if self.by_ratio:
            return ratios(result, self.figure)
        return Summary.of(values(result, SUBJECT, self.figure))

    def verdict(self, summary: Summary) -> str:
        def meets(bound: float | None) -> bool:
            if bound is None:
                return False
            return summary.median >= bound if self.higher else summary.median <= bound

        if meets(self.aim):
            return "aim"
        return "yes" if meets(self.least) else "**no**"


def _fraction(bound: float) -> str:
    return f"1/{round(1 / bound)}" if bound < 1 else f"{bound:g}"


def _latency(label: str, scenario: str) -> tuple[Target, Target]:
    return (
        Target(f"{label}: p99 of confirm", scenario, "confirm_p99_ms", 1 / 3, 1 / 8, higher=False),
        Target(f"{label}: p99 end to end", scenario, "delivery_p99_ms", 1 / 3, 1 / 8, higher=False),
    )


TARGETS = (
    Target("flow 1 KiB, persistent, confirms, manual acks", "flow-1k", "rate", 7, 12),
    *_latency("flow 1 KiB", "flow-1k"),
    Target("flow 64 B", "flow-64b", "rate", 8.5, 14),
    *_latency("flow 64 B", "flow-64b"),
    Target("flow 1 KiB varied, default exchange", "varied-default", "rate", 6.5, 9),
    Target("flow 1 KiB varied, topic exchange", "varied-topic", "rate", 6.5, 9),
    Target("4 publishers, 4 consumers, 4 queues", "four-by-four", "rate", 5, 10),
    Target("flow 64 KiB", "flow-64k", "rate", 1, 2),
    Target("fan-out to 10 queues", "fanout", "rate", 7, 12),
    Target("topic to 10 queues", "topic", "rate", 7, 12),
    Target("fill 300,000 × 1 KiB", "fill-drain", "fill_rate", 10, 13),
    Target("drain 300,000 × 1 KiB", "fill-drain", "drain_rate", 12, 18),
    Target("one in flight: confirm p50", "one-in-flight", "confirm_p50_ms", 1, None, higher=False),
    Target(
        "one in flight: confirm p50 by (1.3 × raw fdatasync + 0.5 ms)",
        "one-in-flight", "confirm_to_bound", None, 1, by_ratio=False, higher=False,
    ),
    *(
        Target(f"{label}, {kind}", scenario, figure, least, aim, by_ratio=False, higher=False)
        for label, scenario, least, aim in (
            ("memory idle", "memory-idle", 60, 45),
            ("memory after 1 million × 1 KiB", "memory-backlog", 200, 120),
        )
        for kind, figure in (("anonymous", "anonymous_mib"), ("resident", "resident_mib"))
    ),
    Target(
        "start on an empty directory", "start", "start_s", 1, 0.4, by_ratio=False, higher=False
    ),
)  # fmt: skip


def markdown(session: Session) -> str:
    """The table of targets, and below it all headline figures."""
    results = {result.scenario: result for result in session.results}
    lines = [
        f"Measured {session.made}: "
        + "; ".join(f"{part} {version}" for part, version in session.brokers.items())
        + "; "
        + ", ".join(f"{name} {value}" for name, value in session.environment.items())
        + "; "
        + ", ".join(f"{name} {value}" for name, value in session.settings.items())
        + ".",
        "",
        "| scenario | at least | to aim for | measured | min-max | reached |",
        "|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        result = results.get(target.scenario)
        summary = target.measured(result) if result else None
        goal = f"| {target.label} | {target.text(target.least)} | {target.text(target.aim)} "
        if summary is None:
            lines.append(goal + "| | | |")
            continue
        measured = number(summary.median) + (" ×" if target.by_ratio else "")
        ends = f"{number(summary.least)}-{number(summary.most)}"
        lines.append(goal + f"| {measured} | {ends} | {target.verdict(summary)} |")
    lines += [
        "",
        "| scenario | figure | broker: median (min-max) | peer | ratio |",
        "|---|---|---|---|---|",
    ]
    for result in session.results:
        for row in rows(result):
            lines.append(f"| {result.scenario} | " + " | ".join(row) + " |")
    failures = [error for result in session.results for error in result.errors]
    if failures:
        lines += ["", "Failed:", "", *(f"- {error}" for error in failures)]
    return "\n".join(lines) + "\n"
