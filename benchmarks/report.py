"""Tables of a session: for the terminal, and as Markdown for the documentation."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from benchmarks.goals import GOALS, TARGETS, Summary, Target, ratios, values
from benchmarks.harness import PEER, Result, Session

UNITS = {
    "rate": ("messages/s", ""),
    "publish_rate": ("published/s", ""),
    "fill_rate": ("fill/s", ""),
    "drain_rate": ("drain/s", ""),
    "confirm_p50_ms": ("confirm p50", " ms"),
    "confirm_p99_ms": ("confirm p99", " ms"),
    "fill_confirm_p99_ms": ("confirm p99", " ms"),
    "delivery_p50_ms": ("end to end p50", " ms"),
    "late_p50_ms": ("late p50", " ms"),
    "late_p99_ms": ("late p99", " ms"),
    "late_max_ms": ("latest", " ms"),
    "delivery_p99_ms": ("end to end p99", " ms"),
    "load_cpu_share": ("load CPUs", ""),
    "drain_load_cpu_share": ("load CPUs", ""),
    "broker_cpu_share": ("broker CPUs", ""),
    "broker_cpu_us": ("broker's time each", " µs"),
    "loop_cpu_us": ("loop's time each", " µs"),
    "fill_loop_cpu_us": ("fill: loop's time each", " µs"),
    "drain_loop_cpu_us": ("drain: loop's time each", " µs"),
    "drain_broker_cpu_us": ("drain: broker's time each", " µs"),
    "plain_rate": ("without that, messages/s", ""),
    "plain_broker_cpu_us": ("without that, broker's time each", " µs"),
    "plain_loop_cpu_us": ("without that, loop's time each", " µs"),
    "scraped_to_plain": ("rate with scrapes to rate without", ""),
    "scraped_to_plain_cpu": ("loop's time each with scrapes to that without", ""),
    "tls_to_plain": ("rate with TLS to rate without", ""),
    "mib_s": ("MiB/s", ""),
    "confirm_p999_ms": ("confirm p99.9", " ms"),
    "confirm_max_ms": ("confirm, longest", " ms"),
    "turn_p50_ms": ("answer p50", " ms"),
    "turn_p999_ms": ("answer p99.9", " ms"),
    "turn_max_ms": ("answer, longest", " ms"),
    "reply_p50_ms": ("reply p50", " ms"),
    "reply_p99_ms": ("reply p99", " ms"),
    "ack_rate": ("acks/s", ""),
    "ack_broker_cpu_us": ("broker's time each", " µs"),
    "ack_loop_cpu_us": ("loop's time each", " µs"),
    "declare_p50_ms": ("declare p50", " ms"),
    "declare_p99_ms": ("declare p99", " ms"),
    "declare_max_ms": ("declare, longest", " ms"),
    "flow_kept": ("flow meanwhile, by flow alone", ""),
    "flow_lost": ("messages that the flow lost", ""),
    "bystander_rate": ("messages/s", ""),
    "alone_bystander_rate": ("alone, messages/s", ""),
    "alone_confirm_p50_ms": ("alone, confirm p50", " ms"),
    "alone_confirm_p99_ms": ("alone, confirm p99", " ms"),
    "alone_confirm_max_ms": ("alone, confirm, longest", " ms"),
    "reconnects_rate": ("reconnects/s", ""),
    "guesses_rate": ("wrong passwords/s", ""),
    "login_p50_ms": ("from connect to close-ok, p50", " ms"),
    "login_p99_ms": ("from connect to close-ok, p99", " ms"),
    "loop_cpu_share": ("loop's CPU", ""),
    "flood_rate": ("flood, messages/s", ""),
    "bulk_s": ("in bulk", " s"),
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


def columns(session: Session) -> list[str]:
    """The names above `rows`: the subject, then each peer and the ratio to it."""
    names = [session.subject]
    for peer in session.peers:
        names += [peer, "ratio"]
    return names


def rows(session: Session, result: Result) -> Iterator[list[str]]:
    """The headline figures that were measured: the figure's name, then what `columns` says."""
    for figure in result.headline:
        summaries = [Summary.of(values(result, session.subject, figure))]
        for peer in session.peers:
            summaries.append(Summary.of(values(result, peer, figure)))
            summaries.append(ratios(result, figure, session.subject, peer))
        if any(summaries):
            name, unit = UNITS[figure]
            yield [f"{name}{unit and ','}{unit}", *map(spread, summaries)]


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
        for name in columns(session):
            table.add_column(name, justify="right", overflow="fold")
        for row in rows(session, result):
            table.add_row(*row)
        if table.row_count:
            console.print()
            console.print(table)
        for error in result.errors:
            console.print(f"failed: {error}", style="red", markup=False)


def markdown(session: Session) -> str:
    """The tables of goals and targets, and below them all headline figures."""
    lines = [
        f"Measured {session.made}: "
        + "; ".join(f"{part} {version}" for part, version in session.brokers.items())
        + "; "
        + ", ".join(f"{name} {value}" for name, value in session.environment.items())
        + "; "
        + ", ".join(f"{name} {value}" for name, value in session.settings.items())
        + ".",
        "",
        *_goals(session),
        *_targets(session),
        "| scenario | figure | median (min-max): " + " | ".join(columns(session)) + " |",
        "|---|" + "---|" * (1 + len(columns(session))),
    ]
    for result in session.results:
        for row in rows(session, result):
            lines.append(f"| {result.scenario} | " + " | ".join(row) + " |")
    failures = [error for result in session.results for error in result.errors]
    if failures:
        lines += ["", "Failed:", "", *(f"- {error}" for error in failures)]
    return "\n".join(lines) + "\n"


def _goals(session: Session) -> Iterator[str]:
    """A row for each goal that was measured, a column for each peer that goals know."""
    results = {result.scenario: result for result in session.results}
    peers = [peer for peer in session.peers if any(peer in goal.bounds for goal in GOALS)]
    if not peers:
        return
    yield "| scenario | " + " | ".join(f"× {peer}, and what is asked" for peer in peers) + " |"
    yield "|---|" + "---|" * len(peers)
    for goal in GOALS:
        result = results.get(goal.scenario)
        if result is None:
            continue
        cells = []
        for peer in peers:
            verdict = goal.verdict(session, result, peer)
            reached = spread(ratios(result, goal.figure, session.subject, peer))
            sign = "≥" if goal.higher else "≤"
            asked = f"{reached}, {sign} {goal.bounds[peer]:g}: {verdict}" if verdict else reached
            cells.append(asked)
        yield f"| {goal.label} | " + " | ".join(cells) + " |"
    yield ""


def _targets(session: Session) -> Iterator[str]:
    """A row for each target whose scenario was run; by ratio only with a peer to judge them by."""
    results = {result.scenario: result for result in session.results}
    yield "| scenario | at least | to aim for | measured | min-max | reached |"
    yield "|---|---|---|---|---|---|"
    for target in TARGETS:
        if target.by_ratio and PEER not in session.brokers:
            continue
        result = results.get(target.scenario)
        if result is None:
            continue
        summary = target.measured(session, result)
        least, aim = bound_text(target, target.least), bound_text(target, target.aim)
        goal = f"| {target.label} | {least} | {aim} "
        if summary is None:
            yield goal + "| | | |"
            continue
        measured = number(summary.median) + (" ×" if target.by_ratio else "")
        ends = f"{number(summary.least)}-{number(summary.most)}"
        yield goal + f"| {measured} | {ends} | {target.verdict(summary)} |"
    yield ""


def bound_text(target: Target, bound: float | None) -> str:
    """What a target asks for, with its unit."""
    if bound is None:
        return ""
    sign = "" if target.higher else "≤ "
    if target.by_ratio:
        ratio = f"1/{round(1 / bound)}" if bound < 1 else f"{bound:g}"
        return f"{sign}{ratio} ×"
    return f"{sign}{bound:g}{UNITS.get(target.figure, ('', ''))[1]}"
