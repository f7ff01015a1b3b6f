"""What consumers hold of one queue: listed, and the deadline of a delivery put off.

A message that is out has its place in the queue (a lane, and a number there), by which operators
name it. Everything goes in slices, a chunk of a channel's deliveries at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from qlog.server.broker.channels.outstanding import Outstanding
from qlog.server.broker.channels.unacked import UnackedRun
from qlog.server.broker.jobs import Steps
from qlog.server.broker.queues.type import QueueType


class Holder(Protocol):
    """A channel."""

    outstanding: Outstanding

    @property
    def name(self) -> str:
        """Its name for operators."""


class Held(NamedTuple):
    """A delivery: the lane and qseq of its message, who has it, under which delivery tag.

    `age_s`: for how long; `left_s`: until it is overdue, None where there is no timeout.
    """

    lane: int
    qseq: int
    channel: str
    consumer_tag: str | None
    delivery_tag: int
    age_s: float
    left_s: float | None


def held(
    channels: Iterable[Holder], queue: QueueType, count: int, now_s: float
) -> Steps[list[Held]]:
    """Up to so many deliveries of a queue."""
    found: list[Held] = []
    for channel in channels:
        unacked = channel.outstanding.unacked
        for runs in unacked.of_queue(queue):
            for run in runs:
                found += _deliveries(channel, run, count - len(found), now_s)
                if len(found) >= count:
                    return found
            yield
        yield
    return found


def _deliveries(channel: Holder, run: UnackedRun, count: int, now_s: float) -> list[Held]:
    holder = run.queue if run.taker is None else run.taker
    age_s = now_s - run.delivered_at_s
    left_s = holder.timeout_s + run.grace_s - age_s if holder.timeout_s else None
    tag = None if run.taker is None else run.taker.tag
    lane = run.backlog.lane.id
    return [
        Held(lane, run.qseq + number, channel.name, tag, run.tag + number, age_s, left_s)
        for number in range(min(run.count, count))
    ]


def extending(
    channels: Iterable[Holder], queue: QueueType, lane: int, qseq: int, seconds: float
) -> Steps[bool]:
    """Put off the deadline of one delivery; False: nobody holds that message."""
    for channel in channels:
        unacked = channel.outstanding.unacked
        for runs in unacked.of_queue(queue):
            for run in runs:
                number = qseq - run.qseq
                if run.backlog.lane.id == lane and 0 <= number < run.count:
                    unacked.extend(run.tag + number, seconds)
                    return True
            yield
        yield
    return False
