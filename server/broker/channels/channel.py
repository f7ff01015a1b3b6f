"""One channel: consumers, acknowledgements, prefetch, transactions.

Publishing is in publisher.py, exchange.* and queue.* are in topology.py. Each handler runs to its
end. A handler that refuses raises `SoftError` (the channel is closed) or `HardError` (the
connection is closed); what was done before stays done, as in RabbitMQ.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import nsmallest
from itertools import chain
from operator import attrgetter
from typing import Any, Protocol, TypeVar

from qlog.server.amqp import spec
from qlog.server.amqp.connection import Acks, Connection, Event, MethodReceived, Publishes
from qlog.server.amqp.deliver import DeliveryEncoder
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import (
    AMQPError,
    HardError,
    command_invalid,
    not_allowed,
    not_implemented,
    precondition_failed,
)
from qlog.server.amqp.recognise import AckRange
from qlog.server.broker.access.users import User
from qlog.server.broker.channels import topology
from qlog.server.broker.channels.answers import Answers, Asking, Reply, nothing
from qlog.server.broker.channels.consumer import Consumer
from qlog.server.broker.channels.facts import channel_counts, channel_details, channel_facts
from qlog.server.broker.channels.outstanding import Outstanding
from qlog.server.broker.channels.publisher import Publisher
from qlog.server.broker.channels.reply_to import REPLY_TO
from qlog.server.broker.channels.sink import Sink
from qlog.server.broker.channels.transactions import Settlement, Transaction, Verdict
from qlog.server.broker.channels.unacked import UnackedRun
from qlog.server.broker.features.firehose import Origin
from qlog.server.broker.jobs import Steps
from qlog.server.broker.numbers import Numbers
from qlog.server.broker.operations import Operations
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.queues.arguments import check_consumer
from qlog.server.broker.queues.backlog import Backlog, Taken
from qlog.server.broker.queues.type import Owner, QueueType, Taker
from qlog.server.broker.services import Services
from qlog.server.broker.stats import Counts, QueueCounts, Stats
from qlog.server.broker.vhost import VHost

logger = logging.getLogger("qlog.connection")

T = TypeVar("T")

# A job settles or requeues so many deliveries between two looks at the clock.
RUNS_AT_ONCE = 128
# So many consumers are fed at once: each costs two microseconds, and a channel may have thousands.
FED_AT_ONCE = 200
# Up to so many acknowledgements, each of one delivery, are obeyed without a job.
ACKS_AT_ONCE = 32


class ChannelClient(Owner, Asking, Protocol):
    """What a channel needs of its client.

    `starving`: channels with consumers that were refused a message while the sink was full.
    """

    services: Services
    operations: Operations
    protocol: Connection
    sink: Sink
    peer: str

    @property
    def name(self) -> str:
        """The connection's name for operators."""

    @property
    def user(self) -> User:
        """Who logged in."""

    def capable(self, capability: str) -> bool:
        """Whether the client said that it knows an extension."""

    starving: dict[Channel, None]

    def fail(self, error: AMQPError, number: int) -> None:
        """Close the channel or the connection, as far as an error of ours reaches."""


class Returning:
    """Messages on their way back to one backlog of a queue: `size` octets in all."""

    __slots__ = ("numbers", "queue", "size")

    def __init__(self, queue: QueueType) -> None:
        self.queue = queue
        self.numbers = Numbers()
        self.size = 0


class Released:
    """How many messages each consumer holds no more, and how many there are in all."""

    __slots__ = ("by_taker", "count")

    def __init__(self) -> None:
        self.by_taker: dict[Taker, int] = {}
        self.count = 0

    def add(self, runs: Iterable[UnackedRun]) -> None:
        """Count deliveries that are settled, or go back to their queues."""
        by_taker = self.by_taker
        for run in runs:
            taker, count = run.taker, run.count
            self.count += count
            if taker is not None:
                by_taker[taker] = by_taker.get(taker, 0) + count


_last_tag = attrgetter("last_tag")


class Channel:
    """An open channel of a client."""

    def __init__(self, client: ChannelClient, vhost: VHost, number: int) -> None:
        self.client = client
        self.services = services = client.services
        self.operations = client.operations
        self.number = number
        self.vhost = vhost
        self._core = client.protocol.channel(number)
        self.sink = client.sink
        self.outstanding = Outstanding(number, self._core, client.sink, services.now_s)
        self.publisher = Publisher(client, self.outstanding, vhost, services.post)
        self.consumers: dict[str, Consumer] = {}
        self.last_queue = ""
        self._consumer_prefetch = 0  # for consumers yet to come
        self._reply_consumer: DeliveryEncoder | None = None
        self._reply_tag = ""
        self.answers = Answers(client, self.outstanding, services.jobs)
        self.counts = Counts()
        services.stats.channels_opened += 1
        self._event: Event | None = None  # the method that is being obeyed

    @property
    def origin(self) -> Origin:
        """The channel as the firehose names it."""
        return self.publisher.origin

    def details(self) -> dict[str, Any]:
        """Which channel it is, as operators see it."""
        return channel_details(self)

    def facts(self) -> dict[str, Any]:
        """What operators see of it."""
        return channel_facts(self)

    @property
    def publishes(self) -> bool:
        """It has published."""
        return self.publisher.confirms.published > 0

    def message_stats(self) -> dict[str, int]:
        """What passed it."""
        return channel_counts(self)

    @property
    def name(self) -> str:
        """Its name for operators."""
        return f"{self.client.name} ({self.number})"

    @property
    def prefetch(self) -> int:
        """The prefetch of consumers yet to come, or that of the whole channel; 0: no limit."""
        return self.outstanding.prefetch or self._consumer_prefetch

    @property
    def closed(self) -> bool:
        """Nothing may be sent on the channel any more, but for close-ok."""
        return self.outstanding.closed

    def send(self, method: spec.Method) -> None:
        """Send a method on this channel."""
        self.sink.send(self.number, method)

    def fail(self, error: HardError) -> None:
        """End the connection: a queue that this channel consumes from has failed."""
        self.client.fail(error, 0)

    # -- events ------------------------------------------------------------------------------

    def answer(self, outcome: Outcome[T], reply: Reply[T]) -> None:
        """Reply with the outcome of an operation, now or when it is known: see answers.py."""
        assert self._event is not None
        self.answers.answer(self._event, outcome, reply)

    def handle(self, event: Event) -> None:
        """Obey what the client sent. Raises AMQPError."""
        if self.answers.holds(event):
            self.answers.hold(event)
        elif isinstance(event, Publishes):
            self.publisher.publish(event.runs)
        elif isinstance(event, Acks):
            self._acks(event)
        else:
            assert isinstance(event, MethodReceived)
            self._event = event
            self.services.delivery.pump()  # what the client sent before takes effect before
            handler = _HANDLERS.get(type(event.method))
            try:
                if handler is None:
                    raise command_invalid("unimplemented method")
                handler(self, event.method)
            except AMQPError as error:
                self.answers.refuse(event, error)

    def close(self) -> Outcome[None]:
        """The channel ends: consumers go, and what is unacked goes back to its queues."""
        self.stop()
        return self.services.jobs.start_in_turn(self.leaving())

    def stop(self) -> None:
        """The channel ends: it hands nothing out any more. `leaving` gives back what it holds."""
        stop_all(self.services.stats, (self,))

    def leaving(self) -> Steps[None]:
        """Take the consumers from their queues, and then requeue what was out."""
        self._forget_reply_consumer()
        transaction = self.publisher.transaction
        kept = [] if transaction is None else transaction.take_settlements()
        if transaction is not None:
            transaction.roll_back()
        pieces = chain((settlement.runs for settlement in kept), self._all_unacked())
        leaving = deque(self.consumers.values())  # which lets go of them one by one
        while leaving:
            consumer = leaving.popleft()
            if self.consumers.pop(consumer.tag, None) is consumer:  # its queue is not deleted
                consumer.queue.remove_taker(consumer)
            yield
        self.outstanding.refused.clear()  # consumers, which hold the channel
        yield from self._requeueing(pieces, lost=True)

    # -- consuming ---------------------------------------------------------------------------

    def qos(self, method: spec.BasicQos) -> None:
        if method.prefetch_size:
            raise not_implemented(f"prefetch_size!=0 ({method.prefetch_size})")
        if method.global_:
            self.outstanding.prefetch = method.prefetch_count
            self.services.delivery.feed_later(self)
        else:
            self._consumer_prefetch = method.prefetch_count
        self.send(spec.BasicQosOk())

    def consume(self, method: spec.BasicConsume) -> None:
        tag = method.consumer_tag or "amq.ctag-" + secrets.token_urlsafe(16)
        if tag in self.consumers:  # that of replies has tags of its own, as in RabbitMQ
            raise not_allowed(f"attempt to reuse consumer tag '{tag}'")
        if method.queue == REPLY_TO:
            self._consume_replies(method, tag)
            return
        queue = topology.find_queue(self, method.queue)
        check_consumer(method.arguments, str(queue), queue.declared.arguments.type)
        priority = method.arguments.get("x-priority", 0)
        assert isinstance(priority, int)
        timeout_ms = method.arguments.get("x-consumer-timeout")
        shares_prefetch = self.outstanding.prefetch > 0
        queue.admit(
            exclusive=method.exclusive,
            shares_prefetch=shares_prefetch,
            no_ack=method.no_ack,
            prefetch=self._consumer_prefetch,
        )
        consumer = Consumer(
            self,
            self.outstanding,
            self.counts,
            queue,
            tag,
            no_ack=method.no_ack,
            exclusive=method.exclusive,
            prefetch=self._consumer_prefetch,
            priority=priority,
            own_timeout_s=timeout_ms / 1000 if isinstance(timeout_ms, int) else None,
            arguments=method.arguments,
        )
        self.consumers[tag] = consumer
        if not method.nowait:
            self.send(spec.BasicConsumeOk(tag))
        queue.add_taker(consumer)

    def check_consumers(self) -> None:
        """Raises 403 if the user may not read any more from a queue that is consumed here."""
        for consumer in self.consumers.values():
            self.operations.check(self.vhost, "read", "queue", consumer.queue.name)

    def cancel(self, method: spec.BasicCancel) -> None:
        if self._reply_consumer is not None and method.consumer_tag == self._reply_tag:
            self._forget_reply_consumer()
        elif (consumer := self.consumers.pop(method.consumer_tag, None)) is not None:
            self.outstanding.refused.pop(consumer, None)
            consumer.queue.remove_taker(consumer)
        if not method.nowait:
            self.send(spec.BasicCancelOk(method.consumer_tag))

    def queue_deleted(self, consumer: Consumer) -> None:
        """Its queue is gone: the client is told, if it can hear (consumer_cancel_notify)."""
        del self.consumers[consumer.tag]
        self.outstanding.refused.pop(consumer, None)
        consumer.queue.remove_taker(consumer)
        if self.client.capable("consumer_cancel_notify") and not self.closed:
            self.send(spec.BasicCancel(consumer.tag, nowait=True))

    def get(self, method: spec.BasicGet) -> None:
        queue = topology.find_queue(self, method.queue)
        arriving = queue.arriving()
        if arriving is None:
            self._got(method, queue, queue.get())
        else:
            # Mostly what the same client has published just now.
            self.answer(arriving, lambda _: self._got(method, queue, queue.get()))

    def _got(self, method: spec.BasicGet, queue: QueueType, taken: Taken | None) -> None:
        if taken is None:
            for each in (self.counts, queue.counts, queue.counts.of_type):
                each.get_empty += 1
            self.send(spec.BasicGetEmpty())
            return
        if self.vhost.firehose is not None:
            self.vhost.firehose.delivered(self.origin, queue.name, taken)
        outstanding, backlog, qseq = self.outstanding, taken.backlog, taken.first_qseq
        envelope = taken.envelopes[0]
        tag = outstanding.take_tags(1)
        ok = spec.BasicGetOk(
            tag, taken.redelivered, envelope.exchange, envelope.routing_key, queue.ready
        )
        self.sink.send_content(self.number, ok, envelope, taken.bodies[0])
        self._count_got(queue.counts, taken, method.no_ack)
        if method.no_ack:
            backlog.settle(qseq, 1, taken.sizes[0])
        else:
            now_s = outstanding.now_s()
            outstanding.by_gets += 1
            outstanding.unacked.add(
                UnackedRun(tag, 1, queue, backlog, qseq, taken.sizes, 0, None, now_s)
            )

    def _count_got(self, counts: QueueCounts, taken: Taken, no_ack: bool) -> None:
        for each in (self.counts, counts, counts.of_type):
            if no_ack:
                each.get_no_ack += 1
            else:
                each.get += 1
            if taken.redelivered:
                each.redeliver += 1

    def starve(self) -> None:
        """One of its consumers is refused a message while the socket is full."""
        if not self.outstanding.ended:  # else the client, which has gone, would hold it for good
            self.client.starving[self] = None

    def feed_refused(self) -> bool:
        """Let the consumers that had to wait for others of this channel have their turn.

        Who has waited longest for a delivery comes first: else the first queue would take all that
        the channel may have out, again and again. False: they are very many, and some are left.
        """
        refused = self.outstanding.refused
        takers = nsmallest(FED_AT_ONCE, refused, key=_last_tag)
        for taker in takers:
            del refused[taker]
        for taker in takers:
            if (consumer := self.consumers.get(taker.tag)) is taker and consumer is not None:
                consumer.queue.feed(consumer)
        return not refused

    @property
    def has_room(self) -> bool:
        """More messages may be out with consumers."""
        outstanding = self.outstanding
        return not outstanding.prefetch or outstanding.by_consumers < outstanding.prefetch

    # -- acknowledging -----------------------------------------------------------------------

    def _acks(self, event: Acks) -> None:
        """Obey acknowledgements that came together. Raises 406 at the first unknown tag."""
        ranges = event.ranges
        if len(ranges) == 1 and ranges[0].first == ranges[0].last and not ranges[0].multiple:
            self._settle(self._take_range(ranges[0].first, ranges[0].first))
        elif len(ranges) <= ACKS_AT_ONCE and all(map(self._is_little, ranges)):
            for range_ in ranges:
                if range_.multiple:
                    through = self.outstanding.through(range_.last)
                    self._settle(self.outstanding.unacked.take_through(through))
                else:
                    self._settle(self._take_range(range_.first, range_.last))
        else:
            self._event = event
            self.answer(self.services.jobs.start(self._acknowledging(ranges)), nothing)

    def _is_little(self, range_: AckRange) -> bool:
        """Whether an acknowledgement is surely for few deliveries; a cheap estimate."""
        if range_.multiple:
            return self.outstanding.unacked.few
        return range_.last - range_.first < RUNS_AT_ONCE

    def _acknowledging(self, ranges: Iterable[AckRange]) -> Steps[None]:
        for range_ in ranges:
            if range_.multiple:
                for runs in self._unacked_through(range_.last):
                    self._settle(runs)
                    yield
            else:
                for first in range(range_.first, range_.last + 1, RUNS_AT_ONCE):
                    last = min(first + RUNS_AT_ONCE - 1, range_.last)
                    self._settle(self._take_range(first, last))
                    yield

    def ack(self, method: spec.BasicAck) -> None:
        tag = method.delivery_tag
        self._acks(Acks(self.number, [AckRange(tag, tag, method.multiple)]))

    def nack(self, method: spec.BasicNack) -> None:
        tag = method.delivery_tag
        if not method.multiple:
            self._reject(self._take_range(tag, tag), method.requeue)
            return
        pieces = self._unacked_through(tag)
        if method.requeue and self.publisher.transaction is None:
            steps = self._requeueing(pieces, lost=False)
        else:
            steps = self._rejecting(pieces, method.requeue)
        self.answer(self.services.jobs.start(steps), nothing)

    def reject(self, method: spec.BasicReject) -> None:
        tag = method.delivery_tag
        self._reject(self._take_range(tag, tag), method.requeue, failed=True)

    def recover(self, method: spec.BasicRecover | spec.BasicRecoverAsync) -> None:
        if not method.requeue:
            raise not_implemented("requeue=false")

        def reply(_: None) -> None:
            if isinstance(method, spec.BasicRecover):
                self.send(spec.BasicRecoverOk())

        steps = self._requeueing(self._all_unacked(), lost=False)
        self.answer(self.services.jobs.start(steps), reply)

    def _take_range(self, first: int, last: int) -> list[UnackedRun]:
        taken, tag = self.outstanding.take_range(first, last)
        if tag <= last:
            self._settle(taken)  # those before the bad tag are settled, as in RabbitMQ
            raise precondition_failed(f"unknown delivery tag {tag}")
        return taken

    def _unacked_through(self, tag: int) -> Iterator[list[UnackedRun]]:
        """Take all deliveries up to a tag (0: all there are), in pieces. Raises 406."""
        unacked = self.outstanding.unacked
        through = self.outstanding.through(tag)
        while runs := unacked.take_through(through, RUNS_AT_ONCE):
            yield runs

    def _all_unacked(self) -> Iterator[list[UnackedRun]]:
        """Take all deliveries that are out at the first step, in pieces."""
        return self._unacked_through(0)

    def _settle(self, runs: list[UnackedRun]) -> None:
        """Acknowledge, or keep for tx.commit."""
        if self.publisher.transaction is not None:
            settlement = Settlement(runs, Verdict.ACKNOWLEDGED)
            self.publisher.transaction.settlements.append(settlement)
            return
        self._acknowledge(runs)

    def _acknowledge(self, runs: list[UnackedRun], after_lsn: int = 0) -> None:
        """Settle deliveries; that lasts only once the log is durable up to `after_lsn`."""
        count = self._release(runs)
        for run in runs:
            run.backlog.settle(run.qseq, run.count, run.size, after_lsn)
            counts = run.queue.counts
            counts.ack += run.count
            counts.of_type.ack += run.count
        self.counts.ack += count

    def _reject(self, runs: list[UnackedRun], requeue: bool, *, failed: bool = False) -> None:
        """Deliveries are rejected; `failed`: and would count as failed if they are requeued."""
        if self.publisher.transaction is not None:
            again = Verdict.FAILED if failed else Verdict.REQUEUED
            verdict = again if requeue else Verdict.REJECTED
            self.publisher.transaction.settlements.append(Settlement(runs, verdict))
        elif requeue:
            self._requeue(runs, failed=failed)
        else:
            self._discard(runs)

    def _rejecting(self, pieces: Iterable[list[UnackedRun]], requeue: bool) -> Steps[None]:
        for runs in pieces:
            self._reject(runs, requeue)
            yield

    def _discard(self, runs: list[UnackedRun], after_lsn: int = 0) -> None:
        """Settle deliveries that were rejected without requeue."""
        count = self._release(runs)
        for run in runs:
            run.queue.discard(run.backlog, run.qseq, run.count, run.size, after_lsn)
        self.services.stats.rejected += count

    def _requeue(self, runs: list[UnackedRun], *, failed: bool = False) -> None:
        count = self._release(runs)
        for run in runs:
            run.queue.requeue(run.backlog, run.qseq, run.count, run.size, failed=failed)
        self.services.stats.requeued += count

    def _requeueing(self, pieces: Iterable[list[UnackedRun]], *, lost: bool) -> Steps[None]:
        """Requeue any number of deliveries. They are gathered first, so that others see them come
        back all at once. `lost`: the client did not give them back itself.
        """
        gathered: dict[Backlog, Returning] = {}
        released = Released()
        for runs in pieces:
            for run in runs:
                returning = gathered.get(run.backlog)
                if returning is None:
                    returning = gathered[run.backlog] = Returning(run.queue)
                returning.numbers.add(run.qseq, run.count)
                returning.size += run.size
            released.add(runs)
            yield
        self._give_credit_back(released)
        for backlog, returning in gathered.items():
            returning.queue.requeue_all(backlog, returning.numbers, returning.size, lost=lost)
            self.services.stats.requeued += returning.numbers.count

    def _release(self, runs: list[UnackedRun]) -> int:
        """Give the consumers of these deliveries their credit back; how many messages they are."""
        if len(runs) == 1:
            run = runs[0]
            count, taker = run.count, run.taker
            if taker is not None:
                taker.unacked -= count
                self.outstanding.by_consumers -= count
                if not self.closed:
                    self._feed_again(taker)
            else:
                self.outstanding.by_gets -= count
            return count
        released = Released()
        released.add(runs)
        self._give_credit_back(released)
        return released.count

    def _give_credit_back(self, released: Released) -> None:
        by_consumers = 0
        for taker, count in released.by_taker.items():
            taker.unacked -= count
            by_consumers += count
        self.outstanding.by_consumers -= by_consumers
        self.outstanding.by_gets -= released.count - by_consumers
        if self.closed or not released.by_taker:
            return
        for taker in released.by_taker:
            self._feed_again(taker)

    def _feed_again(self, taker: Taker) -> None:
        """The consumer holds less than before: it can take more, unless it was cancelled.

        If the prefetch is for the whole channel, the channel's other consumers can take more, too.
        """
        if self.outstanding.prefetch:
            self.outstanding.refused[taker] = None
            self.services.delivery.feed_later(self)
            return
        consumer = self.consumers.get(taker.tag)
        if consumer is taker:
            consumer.queue.feed(consumer)

    def lapsing(self, now_s: float) -> Steps[float | None]:
        """The timeout (in seconds) of a delivery that is overdue; None: no delivery is overdue.

        Overdue messages of queues with `x-consumer-timeout-action=requeue` are requeued here, all
        at once, and are not reported.
        """
        overdue_s: float | None = None

        def pieces() -> Iterator[list[UnackedRun]]:
            nonlocal overdue_s
            for runs in self.outstanding.unacked.overdue(now_s):
                lapsed: list[UnackedRun] = []
                for run in runs:
                    if run.queue.effective.timeout_requeues:
                        lapsed += self.outstanding.lapse(run)
                    else:
                        overdue_s = (run.taker or run.queue).timeout_s
                yield lapsed

        yield from self._requeueing(pieces(), lost=True)
        return overdue_s

    # -- direct replies ----------------------------------------------------------------------

    def _consume_replies(self, method: spec.BasicConsume, tag: str) -> None:
        if self._reply_consumer is not None:
            raise precondition_failed("reply consumer already set")
        if not method.no_ack:
            raise precondition_failed("reply consumer cannot acknowledge")
        self._reply_consumer = DeliveryEncoder(self.number, tag, self.sink.frame_max)
        self._reply_tag = tag
        self.publisher.reply_address = self.services.replies.register(self)
        if not method.nowait:
            self.send(spec.BasicConsumeOk(tag))

    def _forget_reply_consumer(self) -> None:
        if self._reply_consumer is not None:
            self.services.replies.forget(self.publisher.reply_address)
            self.publisher.reply_address = ""
            self._reply_consumer = None
            self._reply_tag = ""

    def deliver_replies(self, envelopes: Sequence[Envelope], bodies: Sequence[bytes]) -> None:
        """Send answers to this channel's requests. A client that does not read loses them."""
        if self._reply_consumer is None or self.closed or self.sink.overfull:
            return  # None: the consumer left between a transaction's publish and its commit
        first_tag = self.outstanding.take_tags(len(bodies))
        self.sink.write(self._reply_consumer.encode(first_tag, False, envelopes, bodies))

    # -- confirms and transactions -----------------------------------------------------------

    def confirm_select(self, method: spec.ConfirmSelect) -> None:
        if self.publisher.transaction is not None:
            raise precondition_failed("cannot switch from tx to confirm mode")
        self.publisher.confirms.select()
        if not method.nowait:
            self.send(spec.ConfirmSelectOk())

    def tx_select(self, method: spec.TxSelect) -> None:
        if self.publisher.confirms.selected:
            raise precondition_failed("cannot switch from confirm to tx mode")
        if self.publisher.transaction is None:
            self.publisher.begin()
        self.send(spec.TxSelectOk())

    def tx_commit(self, method: spec.TxCommit) -> None:
        """Publish and settle what was kept back; CommitOk follows when that is durable."""
        transaction = self._new_transaction()
        committed: Outcome[None] = Outcome()

        def sync(outcome: Outcome[tuple[int, bool]]) -> None:
            try:
                lsn, complete = outcome.result()
            except Exception as error:  # noqa: BLE001 - the client hears of it
                committed.fail(error)
                return
            after_lsn = lsn if transaction.settlements else 0
            synced = self.services.durability.sync(after_lsn)
            if complete:
                synced.then(lambda _: committed.set(None))
            else:
                incomplete = precondition_failed("partial tx completion")
                synced.then(lambda _: committed.fail(incomplete))

        self.services.jobs.start(self._committing(transaction)).then(sync)
        self.answer(committed, lambda _: spec.TxCommitOk())

    def _committing(self, transaction: Transaction) -> Steps[tuple[int, bool]]:
        """Publish, then settle.

        Returns the LSN that makes the messages durable, and so the acks, and whether the queues
        took all messages. What one has rejected undoes nothing of the rest, as in RabbitMQ.
        """
        lsn, complete = yield from self.publisher.committing(transaction)
        for runs, verdict in transaction.settlements:
            if verdict in (Verdict.REQUEUED, Verdict.FAILED):
                self._requeue(runs, failed=verdict is Verdict.FAILED)
            elif verdict is Verdict.REJECTED:
                self._discard(runs, lsn)
            else:
                self._acknowledge(runs, lsn)
            yield
        return lsn, complete

    def tx_rollback(self, method: spec.TxRollback) -> None:
        """Forget the publishes; what was acknowledged is unacknowledged again."""
        steps = self._rolling_back(self._new_transaction())
        self.answer(self.services.jobs.start(steps), lambda _: spec.TxRollbackOk())

    def _rolling_back(self, transaction: Transaction) -> Steps[None]:
        transaction.roll_back()
        for settlement in transaction.take_settlements():
            for run in settlement.runs:
                self.outstanding.unacked.give_back(run)
            yield

    def _new_transaction(self) -> Transaction:
        """Begin a new transaction; returns the one before. Raises 406."""
        if self.publisher.transaction is None:
            raise precondition_failed("channel is not transactional")
        before = self.publisher.transaction
        self.publisher.begin()
        return before

    # -- the rest ----------------------------------------------------------------------------

    def flow(self, method: spec.ChannelFlow) -> None:
        if not method.active:
            raise not_implemented("active=false")
        self.send(spec.ChannelFlowOk(active=True))

    def access_request(self, method: spec.AccessRequest) -> None:
        self.send(spec.AccessRequestOk(ticket=1))

    def ignore(self, method: spec.Method) -> None:
        """Do nothing: the client answers something, and wants no answer."""


def stop_all(stats: Stats, channels: Iterable[Channel]) -> None:
    """Channels end; a client may have 65,535 of them. See `Channel.stop`."""
    ended = 0
    for channel in channels:
        outstanding = channel.outstanding
        if not outstanding.ended:
            outstanding.ended = True
            ended += 1
    stats.channels_closed += ended


_HANDLERS: dict[type[spec.Method], Callable[[Channel, Any], None]] = {
    spec.AccessRequest: Channel.access_request,
    spec.BasicAck: Channel.ack,
    spec.BasicCancel: Channel.cancel,
    spec.BasicCancelOk: Channel.ignore,
    spec.BasicConsume: Channel.consume,
    spec.BasicGet: Channel.get,
    spec.BasicNack: Channel.nack,
    spec.BasicQos: Channel.qos,
    spec.BasicRecover: Channel.recover,
    spec.BasicRecoverAsync: Channel.recover,
    spec.BasicReject: Channel.reject,
    spec.ChannelFlow: Channel.flow,
    spec.ChannelFlowOk: Channel.ignore,
    spec.ConfirmSelect: Channel.confirm_select,
    spec.ExchangeBind: topology.exchange_bind,
    spec.ExchangeDeclare: topology.exchange_declare,
    spec.ExchangeDelete: topology.exchange_delete,
    spec.ExchangeUnbind: topology.exchange_unbind,
    spec.QueueBind: topology.queue_bind,
    spec.QueueDeclare: topology.queue_declare,
    spec.QueueDelete: topology.queue_delete,
    spec.QueuePurge: topology.queue_purge,
    spec.QueueUnbind: topology.queue_unbind,
    spec.TxCommit: Channel.tx_commit,
    spec.TxRollback: Channel.tx_rollback,
    spec.TxSelect: Channel.tx_select,
}
