"""The figures as Markdown, and their place in the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.harness import PEER, SUBJECT
from benchmarks.recovery.cases import PATTERNS
from benchmarks.recovery.plots import charts, over_acks, over_messages, over_queues, summary
from benchmarks.recovery.session import (
    RAW,
    RAW_ALLOCATED,
    CaseResult,
    LatencyResult,
    RecoverySession,
    merge,
)
from benchmarks.report import number, spread

BEGIN, END = "<!-- figures: python -m benchmarks plot -->", "<!-- end of figures -->"

# Column, who, figure; of the restarts of a case.
RESTARTS = (
    ("first delivery, s", SUBJECT, "warm_delivery_s"),
    ("page cache dropped, s", SUBJECT, "cold_delivery_s"),
    ("index rebuilt, s", SUBJECT, "rebuild_delivery_s"),
    ("processor time, s", SUBJECT, "warm_cpu_s"),
    ("read, MiB", SUBJECT, "warm_asked_mib"),
    ("from disk when dropped, MiB", SUBJECT, "cold_disk_mib"),
    ("anonymous memory after, MiB", SUBJECT, "warm_anonymous_mib"),
    ("RabbitMQ: first delivery, s", PEER, "warm_delivery_s"),
    ("dropped, s", PEER, "cold_delivery_s"),
)
FILLS = (
    ("fill/s", SUBJECT, "fill_rate"),
    ("anonymous memory grows by, MiB", SUBJECT, "fill_growth_mib"),
    ("written for each byte", SUBJECT, "written_per_byte"),
    ("log, MiB", SUBJECT, "log_mib"),
    ("index, MiB", SUBJECT, "index_mib"),
    ("verify, s", SUBJECT, "verify_s"),
    ("verify, MiB/s", SUBJECT, "verify_mib_s"),
    ("RabbitMQ: fill/s", PEER, "fill_rate"),
    ("grows by, MiB", PEER, "fill_growth_mib"),
    ("written", PEER, "written_per_byte"),
)
LATENCIES = (
    ("p50, ms", "p50_ms"),
    ("p99, ms", "p99_ms"),
    ("p99.9, ms", "p999_ms"),
    ("messages/s", "rate"),
)
DISKS = {
    SUBJECT: "qlog",
    RAW_ALLOCATED: "write + fdatasync",
    RAW: "the same, file growing",
    PEER: "RabbitMQ",
}

# Label, figure, at most; of the largest backlog.
TARGETS = (
    ("first delivery after kill -9, s", "warm_delivery_s", 2.0),
    ("growth of anonymous memory by the fill, MiB", "fill_growth_mib", 100.0),
    ("first delivery with the index rebuilt from nothing, s", "rebuild_delivery_s", 60.0),
    ("bytes written for each confirmed byte", "written_per_byte", 1.3),
)
FULL_SIZE = 10_000_000


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield _row(head)
    yield "|" + "---|" * len(head)
    for row in rows:
        yield _row(row)
    yield ""


def _cases_table(
    first: str,
    results: Sequence[tuple[str, CaseResult]],
    columns: Sequence[tuple[str, str, str]],
) -> Iterator[str]:
    """One row for each case; columns in which nothing was measured are left out."""
    shown = [
        (label, part, figure)
        for label, part, figure in columns
        if any(summary(result, part, figure) for _, result in results)
    ]
    rows = [
        [name, *(spread(summary(result, part, figure)) for _, part, figure in shown)]
        for name, result in results
    ]
    yield from _table([first, *(label for label, _, _ in shown)], rows)


def tables(sessions: Sequence[RecoverySession]) -> str:
    """All figures as Markdown; medians, with the least and the most in brackets."""
    cases, latencies = merge(sessions)
    lines = []
    for session in sessions:
        about = [*session.brokers.items(), *session.environment.items(), *session.settings.items()]
        lines += [
            f"Measured {session.made}: "
            + ", ".join(f"{name} {value}" for name, value in about)
            + ".",
            "",
        ]
    sizes = [(f"{result.messages:,}", result) for result in over_messages(cases)]
    if sizes:
        largest = sizes[-1][1]
        lines += [f"With {largest.messages:,} messages of 1 KiB in one queue:", ""]
        rows = []
        for label, figure, most in TARGETS:
            found = summary(largest, SUBJECT, figure)
            met = "" if found is None else "yes" if found.median < most else "**no**"
            rows.append([label, f"< {most:g}", spread(found), met])
        lines += _table([f"target for {FULL_SIZE:,}", "", "measured", "met"], rows)
        lines += ["Restarts by backlog:", "", *_cases_table("messages", sizes, RESTARTS)]
        lines += ["Fill, size and check:", "", *_cases_table("messages", sizes, FILLS)]
    for size, results in over_queues(cases).items():
        named = [(f"{result.queues:,}", result) for result in results]
        lines += [f"Restarts by queues, {size:,} messages:", ""]
        lines += _cases_table("queues", named, (*RESTARTS, *FILLS[:3]))
    for size, results in over_acks(cases).items():
        ordered = sorted(results, key=lambda result: list(PATTERNS).index(result.acks))
        named = [(PATTERNS[result.acks].text, result) for result in ordered]
        lines += [f"Restarts by what was acknowledged, of {size:,} messages:", ""]
        lines += _cases_table("acknowledged", named, RESTARTS)
    if latencies:
        lines += ["Confirms:", "", *_latency_table(latencies)]
        calls = [summary(result, SUBJECT, "calls_per_sync") for result in latencies]
        for result, found in zip(latencies, calls, strict=True):
            if found is not None:
                lines += [
                    (
                        f"With {result.in_flight} in flight qlog makes {number(found.median)} system "
                        "calls on files for each sync, that one included."
                    ),
                    "",
                ]
    errors = [error for session in sessions for error in session.errors]
    if errors:
        lines += ["Failed:", "", *(f"- {error}" for error in errors), ""]
    return "\n".join(lines)


def _latency_table(latencies: Sequence[LatencyResult]) -> Iterator[str]:
    rows = []
    for result in latencies:
        for part, name in DISKS.items():
            if part in result.samples:
                cells = [spread(summary(result, part, figure)) for _, figure in LATENCIES]
                rows.append([f"{result.in_flight:,}", name, *cells])
    return _table(["in flight", "", *(label for label, _ in LATENCIES)], rows)


def write_page(page: Path, sessions: Sequence[RecoverySession]) -> list[Path]:
    """Replace what stands between the marks of a page, and draw its plots; what was written.

    Raises:
        ValueError: the page has no marks.
    """
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no lines {BEGIN} and {END}")
    written = [page]
    images = []
    plots = page.with_suffix("")
    plots.mkdir(exist_ok=True)
    for name, chart in charts(*merge(sessions)):
        if any(line.points for line in chart.lines):
            path = plots / f"{name}.svg"
            path.write_text(chart.svg())
            written.append(path)
            images.append(f"![{chart.title}]({plots.name}/{path.name})\n")
    figures = "\n".join([*images, tables(sessions)])
    page.write_text(f"{before}{begin}\n\n{figures}\n{end}{after}")
    return written
