"""What lives of a broker must notice: one thing done wrong, and that it is caught."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from qlog.server.broker.features.dead_letter import Addressed, DeadLetters, Letters
from qlog.server.broker.features.delayed import Delayed
from qlog.server.broker.features.expiry import Expiry
from qlog.server.broker.features.overflow import Overflow
from qlog.server.broker.jobs import Steps
from qlog.server.broker.post import PostOffice
from qlog.server.broker.queues.backlog import Backlog, Taken
from qlog.server.broker.queues.mail import Mail, Receipt
from qlog.server.broker.queues.targets import Targets
from qlog.server.broker.queues.type import QueueType
from qlog.server.broker.removals import Removals
from qlog.storage.index.due_rows import Due
from qlog.storage.lanes.lane import Lane
from qlog.storage.store import Store
from qlog.storage.write.settling import Settling
from tests.simulation.broker_lives import live
from tests.simulation.lives import Violation


@dataclass(frozen=True, slots=True)
class BrokerMutation:
    """One thing done wrong, and how it comes out."""

    name: str
    breaks: str
    patches: Callable[[], list[AbstractContextManager[Any]]]
    taste: dict[str, float] = field(default_factory=dict)


def _settled_at_once() -> list[AbstractContextManager[Any]]:
    def settle_after(self: Lane[Any], lsn: int, first: int, count: int, size: int) -> None:
        self.settle(first, count, size)

    return [patch.object(Lane, "settle_after", settle_after)]


def _deleted_before_copies() -> list[AbstractContextManager[Any]]:
    def handing_on(self: Removals, queue: QueueType) -> Steps[None]:
        yield from self._vhost.dead_letters.finishing(queue)

    return [patch.object(Removals, "_handing_on", handing_on)]


def _deleted_at_once() -> list[AbstractContextManager[Any]]:
    return [patch.object(Removals, "_handing_on", lambda *arguments: iter(()))]


def _transient_copies() -> list[AbstractContextManager[Any]]:
    original = DeadLetters._mail

    def mail(self: DeadLetters, addressed: Any, bodies: Any) -> Mail:
        made = original(self, addressed, bodies)
        return Mail(False, made.traits, made.envelopes, made.bodies, made.now_ms)

    return [patch.object(DeadLetters, "_mail", mail)]


def _insists_no_more() -> list[AbstractContextManager[Any]]:
    def insist(self: DeadLetters, letters: Letters, addressed: Addressed, body: bytes) -> bool:
        return True

    return [patch.object(DeadLetters, "_insist", insist)]


def _expired_are_given_out() -> list[AbstractContextManager[Any]]:
    def living(self: Expiry, queue: Any, taken: Taken) -> list[Taken]:
        return [taken]

    return [patch.object(Expiry, "living", living)]


def _never_searched() -> list[AbstractContextManager[Any]]:
    return [patch.object(Expiry, "_search", lambda *arguments: None)]


def _attempts_not_written() -> list[AbstractContextManager[Any]]:
    original = Settling.flush

    def flush(self: Settling[Any]) -> None:
        for lane in self.changes.attempted:
            lane.attempts_unwritten = []
        original(self)

    return [patch.object(Settling, "flush", flush)]


def _no_limit() -> list[AbstractContextManager[Any]]:
    return [patch.object(Overflow, "trim", lambda *arguments: None)]


def _released_before_copies() -> list[AbstractContextManager[Any]]:
    hand_over, settle = Delayed._hand_over, Backlog.settle

    def settled(self: Backlog, qseq: int, count: int, size: int, after_lsn: int = 0) -> None:
        settle(self, qseq, count, size)

    def handed_over(self: Delayed, taken: Taken) -> None:
        with patch.object(Backlog, "settle", settled):
            hand_over(self, taken)

    return [patch.object(Delayed, "_hand_over", handed_over)]


def _released_early() -> list[AbstractContextManager[Any]]:
    due = Store.due

    def earlier(self: Store[Any], until_ms: int, count_max: int) -> list[Due]:
        return due(self, until_ms + 15, count_max)

    return [patch.object(Store, "due", earlier)]


def _never_released() -> list[AbstractContextManager[Any]]:
    return [patch.object(Delayed, "due", lambda *arguments: None)]


def _released_twice() -> list[AbstractContextManager[Any]]:
    pass_on = PostOffice.pass_on

    def twice(self: PostOffice, targets: Targets, mail: Mail) -> Receipt:
        pass_on(self, targets, mail)
        return pass_on(self, targets, mail)

    def handed_over(self: Delayed, taken: Taken) -> None:
        with patch.object(PostOffice, "pass_on", twice):
            hand_over(self, taken)

    hand_over = Delayed._hand_over
    return [patch.object(Delayed, "_hand_over", handed_over)]


MUTATIONS = [
    BrokerMutation(
        "a dead letter is settled before its copy is on the disk",
        "on a full disk acknowledgements go on, and the copy is lost",
        _settled_at_once,
        {"fill_disk": 6, "publish": 2, "free_disk": 0.3, "sync": 0.3},
    ),
    BrokerMutation(
        "a queue is deleted before what has left it is on the disk",
        "on a full disk the deletion goes on, and the copies are lost",
        _deleted_before_copies,
        {
            "delete": 6,
            "consume": 4,
            "publish": 2,
            "fill_disk": 6,
            "free_disk": 0.4,
            "work": 3,
            "crash": 4,
            "settle_some": 0.5,
            "lose_client": 0.2,
            "publish_later": 0.2,
        },
    ),
    BrokerMutation(
        "a queue is deleted with what was about to be handed on",
        "rejected messages are lost",
        _deleted_at_once,
        {"delete": 8, "consume": 2},
    ),
    BrokerMutation("copies of dead letters are transient", "a crash loses them", _transient_copies),
    BrokerMutation(
        "at-least-once does not insist", "what its target rejects is lost", _insists_no_more
    ),
    BrokerMutation(
        "who takes messages does not ask whether they live",
        "a late broker gives out what has expired",
        _expired_are_given_out,
        {"be_late": 5},
    ),
    BrokerMutation("nobody looks for messages whose time is over", "they stay", _never_searched),
    BrokerMutation(
        "returns are not in the ledger",
        "their count is forgotten",
        _attempts_not_written,
        {"sync": 3, "consume": 2, "crash": 2},
    ),
    BrokerMutation("nothing is dropped at a limit", "the limit is not kept", _no_limit),
    BrokerMutation(
        "a delayed message is settled before its copy is on the disk",
        "on a full disk settlements go on, and the copy is lost",
        _released_before_copies,
        {"publish_later": 5, "fill_disk": 6, "free_disk": 0.3, "sync": 0.3, "crash": 2},
    ),
    BrokerMutation(
        "delayed messages are released before their time",
        "they come too early",
        _released_early,
        {"publish_later": 5},
    ),
    BrokerMutation("delayed messages are not released", "they stay", _never_released),
    BrokerMutation(
        "delayed messages are released twice",
        "they are in the queue twice, or come twice",
        _released_twice,
        {"publish_later": 3},
    ),
]


def find(mutation: BrokerMutation, seed: int, rounds_max: int) -> tuple[int, str] | None:
    """(after how many rounds, what) a mutated broker was caught; None: it was not."""
    rounds = 0
    with ExitStack() as stack:
        for context in mutation.patches():
            stack.enter_context(context)
        while rounds < rounds_max:
            try:
                rounds += live(seed, taste=mutation.taste)["rounds"]
            except Violation as violation:
                violation.assert_found(mutation.name)
                return rounds, violation.reason
            seed += 1
    return None
