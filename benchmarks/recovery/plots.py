"""The plots of the page: how what a restart takes grows with the backlog, and with what is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from benchmarks.chart import Chart, Line, Point, Target, short
from benchmarks.goals import Summary
from benchmarks.harness import PEER, SUBJECT
from benchmarks.recovery.cases import NONE, PATTERNS
from benchmarks.recovery.session import RAW, RAW_ALLOCATED, CaseResult, LatencyResult

BLUE, SKY, ORANGE, SAND, GREEN, GREY, SILVER = (
    "#1d4ed8", "#38bdf8", "#c2410c", "#fb923c", "#15803d", "#6b7280", "#9ca3af",
)  # fmt: skip
MESSAGES = "messages of 1 KiB in backlog"


def summary(result: CaseResult | LatencyResult, part: str, figure: str) -> Summary | None:
    """Median, least and most of a figure; None when it was not measured."""
    return Summary.of(result.samples.get(part, {}).get(figure, []))


def over_messages(cases: Sequence[CaseResult]) -> list[CaseResult]:
    """The cases that differ in size alone."""
    return [result for result in cases if result.queues == 1 and result.acks == NONE]


def over_queues(cases: Sequence[CaseResult]) -> dict[int, list[CaseResult]]:
    """By size of the backlog, the cases that differ in queues alone."""
    plain = [result for result in cases if result.acks == NONE]
    sizes = sorted({result.messages for result in plain if result.queues > 1})
    return {size: [result for result in plain if result.messages == size] for size in sizes}


def over_acks(cases: Sequence[CaseResult]) -> dict[int, list[CaseResult]]:
    """By size of the backlog, the cases that differ in acknowledgements alone."""
    single = [result for result in cases if result.queues == 1]
    sizes = sorted({result.messages for result in single if result.acks != NONE})
    return {size: [result for result in single if result.messages == size] for size in sizes}


def _line(
    label: str,
    color: str,
    results: Sequence[CaseResult] | Sequence[LatencyResult],
    part: str,
    figure: str,
    x: Callable[[CaseResult | LatencyResult], float],
    dashed: bool = False,
) -> Line:
    points = []
    for result in results:
        found = summary(result, part, figure)
        if found is not None and found.least > 0:
            points.append(Point(x(result), found.median, found.least, found.most))
    return Line(label, color, points, dashed)


def _messages(result: CaseResult | LatencyResult) -> float:
    assert isinstance(result, CaseResult)
    return result.messages


def _queues(result: CaseResult | LatencyResult) -> float:
    assert isinstance(result, CaseResult)
    return result.queues


def _in_flight(result: CaseResult | LatencyResult) -> float:
    assert isinstance(result, LatencyResult)
    return result.in_flight


def charts(
    cases: Sequence[CaseResult], latencies: Sequence[LatencyResult]
) -> Iterator[tuple[str, Chart]]:
    """File names without ending, and what is in them; some may have nothing to draw."""
    yield from _over_messages(cases)
    yield from _over_queues(cases)
    yield from _of_latencies(latencies)


def _over_messages(cases: Sequence[CaseResult]) -> Iterator[tuple[str, Chart]]:
    """What grows with the backlog."""
    sizes = over_messages(cases)

    def grows(label: str, color: str, part: str, figure: str, dashed: bool = False) -> Line:
        return _line(label, color, sizes, part, figure, _messages, dashed)

    yield (
        "restart",
        Chart(
            "From kill -9 to the first delivery",
            MESSAGES,
            "seconds, process start included",
            [
                grows("qlog", BLUE, SUBJECT, "warm_delivery_s"),
                grows("qlog, page cache dropped", SKY, SUBJECT, "cold_delivery_s", True),
                grows("RabbitMQ", ORANGE, PEER, "warm_delivery_s"),
                grows("RabbitMQ, dropped", SAND, PEER, "cold_delivery_s", True),
            ],
            [Target("target: 2 s at 10 M", 2)],
        ),
    )
    yield (
        "rebuild",
        Chart(
            "A start without the index, and a check of every byte",
            MESSAGES,
            "seconds",
            [
                grows("index rebuilt, first delivery", BLUE, SUBJECT, "rebuild_delivery_s"),
                grows("qlog inspect verify", GREEN, SUBJECT, "verify_s", True),
            ],
            [Target("target: 60 s at 10 M", 60)],
        ),
    )
    yield (
        "memory",
        Chart(
            "Memory",
            MESSAGES,
            "MiB, anonymous",
            [
                grows("qlog: growth by the fill", BLUE, SUBJECT, "fill_growth_mib"),
                grows("qlog: after a restart", SKY, SUBJECT, "warm_anonymous_mib", True),
                grows("RabbitMQ: growth", ORANGE, PEER, "fill_growth_mib"),
                grows("after a restart", SAND, PEER, "warm_anonymous_mib", True),
            ],
            [Target("target: growth under 100 MiB at 10 M", 100)],
        ),
    )
    yield (
        "read",
        Chart(
            "Read until the first delivery",
            MESSAGES,
            "MiB",
            [
                grows("qlog: asked for", BLUE, SUBJECT, "warm_asked_mib"),
                grows("from disk, dropped", SKY, SUBJECT, "cold_disk_mib", True),
                grows("RabbitMQ: asked for", ORANGE, PEER, "warm_asked_mib"),
                grows("from disk, dropped", SAND, PEER, "cold_disk_mib", True),
            ],
        ),
    )


def _over_queues(cases: Sequence[CaseResult]) -> Iterator[tuple[str, Chart]]:
    """One backlog in many queues, or acknowledged in many ways."""
    spread = over_queues(cases)

    def by_queues(label: str, color: str, part: str, figure: str, dashed: bool = False) -> Line:
        """At the largest backlog that was measured of this broker with more than one queue."""
        sizes = [
            size
            for size, results in spread.items()
            if any(result.queues > 1 and summary(result, part, figure) for result in results)
        ]
        size = max(sizes, default=0)
        label = f"{label}, {short(size)} messages"
        return _line(label, color, spread.get(size, []), part, figure, _queues, dashed)

    yield (
        "queues",
        Chart(
            "A backlog over many queues: from kill -9 to the first delivery",
            "queues",
            "seconds, process start included",
            [
                by_queues("qlog", BLUE, SUBJECT, "warm_delivery_s"),
                by_queues("index rebuilt", GREEN, SUBJECT, "rebuild_delivery_s", True),
                by_queues("RabbitMQ", ORANGE, PEER, "warm_delivery_s"),
            ],
        ),
    )

    yield (
        "acks",
        Chart(
            "By what was acknowledged: from kill -9 to the first delivery",
            "messages of 1 KiB published",
            "seconds, process start included",
            [
                _line(
                    PATTERNS[acks].text,
                    color,
                    [result for result in cases if result.queues == 1 and result.acks == acks],
                    SUBJECT,
                    "warm_delivery_s",
                    _messages,
                )
                for acks, color in zip(PATTERNS, (BLUE, SKY, ORANGE, GREEN, GREY), strict=True)
            ],
        ),
    )


def _of_latencies(latencies: Sequence[LatencyResult]) -> Iterator[tuple[str, Chart]]:
    """Confirms, by how many messages are in flight."""

    def flying(label: str, color: str, part: str, figure: str, dashed: bool = False) -> Line:
        return _line(label, color, latencies, part, figure, _in_flight, dashed)

    yield (
        "confirms",
        Chart(
            "Confirm latency beside the disk alone",
            "messages in flight, 1 KiB each",
            "milliseconds",
            [
                flying("qlog p50", BLUE, SUBJECT, "p50_ms"),
                flying("p99", BLUE, SUBJECT, "p99_ms", True),
                flying("fdatasync p50", GREY, RAW_ALLOCATED, "p50_ms"),
                flying("p99", GREY, RAW_ALLOCATED, "p99_ms", True),
                flying("RabbitMQ p50", ORANGE, PEER, "p50_ms"),
                flying("p99", ORANGE, PEER, "p99_ms", True),
            ],
        ),
    )
    yield (
        "rates",
        Chart(
            "Confirmed messages beside the disk alone",
            "messages in flight, 1 KiB each",
            "messages a second",
            [
                flying("qlog", BLUE, SUBJECT, "rate"),
                flying("write + fdatasync of as many KiB", GREY, RAW_ALLOCATED, "rate"),
                flying("the same, file growing", SILVER, RAW, "rate", True),
                flying("RabbitMQ", ORANGE, PEER, "rate"),
            ],
        ),
    )
