"""What the figures should be: targets of a figure, and ratios to other brokers in the same session.

Judges what was measured; knows nothing of how it is printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.harness import PEER, Result, Session
from benchmarks.scenarios.bystanders import OPERATIONS

# A rate this close below its goal is within what two runs on the same machine differ by.
TOLERANCE = 0.95
# Peers by the names that goals know them by: `--against f8c01d8`, `--peer rabbitmq4=...`.
PAST, RABBITMQ, LAVINMQ = "f8c01d8", "rabbitmq4", "lavinmq"


@dataclass(frozen=True, slots=True)
class Summary:
    """The middle and the ends of some values."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary | None:
        return cls(median(values), min(values), max(values)) if values else None


def values(result: Result, name: str, figure: str) -> list[float]:
    """A figure of all runs on a broker."""
    return [run[figure] for run in result.runs.get(name, []) if figure in run]


def ratios(result: Result, figure: str, subject: str, peer: str) -> Summary | None:
    """The subject's value by the peer's, run by run: neighbours saw the same machine."""
    pairs = zip(result.runs.get(subject, []), result.runs.get(peer, []), strict=False)
    return Summary.of(
        [
            ours[figure] / theirs[figure]
            for ours, theirs in pairs
            if ours.get(figure) and theirs.get(figure)
        ]
    )


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

    def measured(self, session: Session, result: Result) -> Summary | None:
        if self.by_ratio:
            return ratios(result, self.figure, session.subject, PEER)
        return Summary.of(values(result, session.subject, self.figure))

    def verdict(self, summary: Summary) -> str:
        def meets(bound: float | None) -> bool:
            if bound is None:
                return False
            return summary.median >= bound if self.higher else summary.median <= bound

        if meets(self.aim):
            return "aim"
        return "yes" if meets(self.least) else "**no**"


@dataclass(frozen=True, slots=True)
class Goal:
    """The ratios that one figure should reach, by the names of the peers.

    Attributes:
        label: what the table calls it.
        scenario: the scenario's name.
        figure: the figure's name.
        bounds: the ratio to each peer that has to be reached, by the peer's name.
        higher: the ratio has to be at least that, else at most.
        or_loop: against an older qlog it is enough that the loop spends no more processor time on
            a message: on a busy machine rates say less than that.
    """

    label: str
    scenario: str
    figure: str
    bounds: dict[str, float] = field(default_factory=dict)
    higher: bool = True
    or_loop: bool = False

    def verdict(self, session: Session, result: Result, peer: str) -> str | None:
        """Whether the ratio to a peer is reached; None when nothing was measured or asked."""
        reached = ratios(result, self.figure, session.subject, peer)
        bound = self.bounds.get(peer)
        if reached is None or bound is None:
            return None
        if reached.median >= bound * TOLERANCE if self.higher else reached.median <= bound:
            return "yes"
        if self.or_loop:
            figure = self.figure.removesuffix("rate") + "loop_cpu_us"
            cost = ratios(result, figure, session.subject, peer)
            if cost is not None and cost.median <= 1:
                return f"yes: loop's time {cost.median:.2f} ×"
        return "**no**"


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
    Target(
        "longest answer but for one in 1,000 while 60,000 messages are in memory", "stalls",
        "turn_p999_ms", 20, None, by_ratio=False, higher=False,
    ),
    *(
        Target(
            f"beside {name}: {label}", f"bystander-{name}", figure, most, None,
            by_ratio=False, higher=False,
        )
        for name, *_ in OPERATIONS
        for label, figure, most in (
            ("confirm p99", "confirm_p99_ms", 20),
            ("longest confirm", "confirm_max_ms", 100),
        )
    ),
    Target(
        "a stream read by 10 consumers, messages/s in all", "stream-read-by-10", "drain_rate",
        100_000, None, by_ratio=False,
    ),
    Target(
        "1 million delayed messages, published a second", "memory-delayed", "fill_rate", 20_000,
        None, by_ratio=False,
    ),
    Target(
        "how late delayed messages come, p99", "delayed-paced", "late_p99_ms", 100, None,
        by_ratio=False, higher=False,
    ),
    Target(
        "how late a million come that waited a minute, p99", "delayed-million", "late_p99_ms", 100,
        None, by_ratio=False, higher=False,
    ),
    Target(
        "declare beside a flow, p99", "declares", "declare_p99_ms", 20, None,
        by_ratio=False, higher=False,
    ),
    Target("flow kept beside 1,000 declares", "declares", "flow_kept", 0.9, None, by_ratio=False),
    Target(
        "an idle connection, anonymous", "connections", "anonymous_kib_each", 6, None,
        by_ratio=False, higher=False,
    ),
)  # fmt: skip


def _ratios(past: float, rabbitmq: float | None, lavinmq: float | None) -> dict[str, float]:
    least = {PAST: past, RABBITMQ: rabbitmq, LAVINMQ: lavinmq}
    return {name: ratio for name, ratio in least.items() if ratio is not None}


GOALS = (
    Goal("10 publishers, one in flight each", "publishers-10", "rate", _ratios(2.2, 1.5, 0.7)),
    Goal("100 publishers, one in flight each", "publishers-100", "rate", _ratios(3.5, 2, 0.7)),
    Goal("500 publishers, one in flight each", "publishers-500", "rate", _ratios(3.5, 2.2, 0.7)),
    Goal("one in flight, its consumer acking", "one-acked", "rate", _ratios(1.4, 1.1, 0.65)),
    Goal("prefetch 1, one consumer", "prefetch-1", "drain_rate", _ratios(1.7, 1.7, 0.4)),
    Goal("prefetch 1, 50 consumers", "prefetch-1-by-50", "drain_rate", _ratios(2.8, 1.5, 0.45)),
    Goal("in turn to 10 queues", "in-turn-10", "rate", _ratios(3.5, 3.5, 1)),
    Goal("in turn to 100 queues", "in-turn-100", "rate", _ratios(1.8, 2.5, 0.6)),
    Goal("50 RPC clients", "rpc-50", "rate", _ratios(3, 0.95, 0.25)),
    Goal("Celery-like", "celery", "rate", _ratios(4, 5, None)),
    *(
        Goal(label, scenario, figure, _ratios(past, *others), or_loop=True)
        for label, scenario, figure, past, *others in (
            ("flow 1 KiB", "flow-1k", "rate", 1, 8, 2),
            ("flow 64 B", "flow-64b", "rate", 1, 8, 0.9),
            ("varied", "varied-default", "rate", 1.1, 5.5, 1.4),
            ("varied topic", "varied-topic", "rate", 1.1, 6, 1.3),
            ("4x4x4", "four-by-four", "rate", 1, 9, 1.7),
            ("fan-out 10", "fanout", "rate", 1, 20, 3),
            ("fill", "fill-drain", "fill_rate", 1, 8, 1.8),
            ("drain", "fill-drain", "drain_rate", 1.2, 10, 1.2),
            ("64 KiB", "flow-64k", "rate", 1.3, 1.2, 3),
            # The other rows that count messages must not fall behind the past.
            ("flow 1 KiB, single acks", "flow-1k-single-acks", "rate", 1, None, None),
            ("one in flight", "one-in-flight", "rate", 1, None, None),
            ("transient", "transient", "rate", 1, None, None),
            ("topic to 10 queues", "topic", "rate", 1, None, None),
        )
    ),
    Goal("256 KiB", "large-256k", "rate", _ratios(1.3, 0.8, 3)),
    Goal("1 MiB", "large-1m", "rate", _ratios(1.3, 0.6, 3)),
    Goal("8 MiB", "large-8m", "rate", _ratios(1.5, 0.5, 3)),
    *(
        Goal(label, scenario, "rate", {RABBITMQ: least})
        for label, scenario, least in (
            ("priorities", "priorities", 5),
            ("TTL of a queue", "ttl-queue", 5),
            ("TTL of each message", "ttl-message", 5),
            ("length limit", "limited", 5),
            ("dead letters of rejected messages", "dead-letters", 4),
            ("quorum queue", "quorum", 8),
        )
    ),
    Goal("one in flight beside a flood: confirm p99", "flood", "confirm_p99_ms", {PAST: 2}, False),
)
