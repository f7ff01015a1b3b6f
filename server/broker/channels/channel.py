"""One channel: consumers, acknowledgements, prefetch, transactions; publishing is `publisher`'s, and
exchange.* and queue.* are `topology`'s.

Each handler runs to completion. A handler that refuses raises `SoftError` (the channel is closed) or
`HardError` (the connection is); what was done before stays done, as in RabbitMQ.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from qlog.server.amqp import spec
from qlog.server.amqp.connection import Acks, Event, MethodReceived, Publishes
from qlog.server.amqp.deliver import DeliveryEncoder
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import (
    HardError,
    access_refused,
    command_invalid,
    not_allowed,
    not_implemented,
    precondition_failed,
)
from qlog.server.amqp.recognise import AckRange
from qlog.server.broker.channels import topology
from qlog.server.broker.channels.consumer import Consumer
from qlog.server.broker.channels.outstanding import Outstanding
from qlog.server.broker.channels.publisher import Publisher
from qlog.server.broker.channels.reply_to import REPLY_TO
from qlog.server.broker.channels.transactions import Settlement, Transaction
from qlog.server.broker.channels.unacked import UnackedRun
from qlog.server.broker.queues.arguments import assert_integer
from qlog.storage.errors import StorageError

if TYPE_CHECKING:
    from qlog.server.broker.channels.client import Client
    from qlog.server.broker.channels.sink import Sink

logger = logging.getLogger("qlog.connection")


class Channel:
    """An open channel of a client."""

    def __init__(self, client: Client, number: int) -> None:
        assert client.vhost is not None
        self.client = client
        self.number = number
        self.vhost = client.vhost
        self._core = client.protocol.channel(number)
        self.sink: Sink = client.sink
        self.publisher = Publisher(self, client.vhost, client.broker)
        self.consumers: dict[str, Consumer] = {}
        self.outstanding = Outstanding(number, self._core, client.sink, client.broker.now_s)
        self.last_queue = ""
        self._consumer_prefetch = 0  # for consumers yet to come
        self._reply_consumer: DeliveryEncoder | None = None
        self._reply_tag = ""
        self._reply_address = ""
        self._held: list[Event] | None = None  # events that wait for tx.commit to be on disk

    @property
    def closed(self) -> bool:
        """Nothing is to be sent on it any more. The protocol core says so."""
        return self._core.closed

    def send(self, method: spec.Method) -> None:
        """Send a method on this channel."""
        self.sink.send(self.number, method)

    def fail(self, error: HardError) -> None:
        """The connection ends, for something that a queue of this channel's consumers met."""
        self.client.fail(error, 0)

    # -- events ------------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Whether what the client sends has to wait for a tx.commit to be on disk."""
        return self._held is not None

    def handle(self, event: Event) -> None:
        """Obey what the client sent. Raises AMQPError."""
        if self._held is not None:
            self._held.append(event)
            self.client.hold_event()
        elif isinstance(event, Publishes):
            self.publisher.publish(event.runs)
        elif isinstance(event, Acks):
            self._acks(event.ranges)
        else:
            assert isinstance(event, MethodReceived)
            self.client.broker.pump()  # what came before in the stream takes effect before
            handler = _HANDLERS.get(type(event.method))
            if handler is None:
                raise command_invalid("unimplemented method")
            handler(self, event.method)

    def close(self) -> None:
        """The channel ends: consumers go, and what is unacked goes back to its queues."""
        self._forget_reply_consumer()
        if self.publisher.transaction is not None:
            self._requeue(self.publisher.transaction.unsettled())
        self._requeue(self.outstanding.unacked.take_all())
        for consumer in list(self.consumers.values()):
            try:
                consumer.queue.remove_taker(consumer)
            except StorageError as error:
                # An auto-delete queue whose definition could not be deleted stays; the rest must end.
                logger.error("cannot delete %s error=%s", consumer.queue, error)
        self.consumers.clear()

    # -- consuming ---------------------------------------------------------------------------

    def qos(self, method: spec.BasicQos) -> None:
        if method.prefetch_size:
            raise not_implemented(f"prefetch_size!=0 ({method.prefetch_size})")
        if method.global_:
            self.outstanding.prefetch = method.prefetch_count
        else:
            self._consumer_prefetch = method.prefetch_count
        self.send(spec.BasicQosOk())
        self.feed_consumers()

    def consume(self, method: spec.BasicConsume) -> None:
        tag = method.consumer_tag or "amq.ctag-" + secrets.token_urlsafe(16)
        if tag in self.consumers or (self._reply_consumer and tag == self._reply_tag):
            raise not_allowed(f"attempt to reuse consumer tag '{tag}'")
        if method.queue == REPLY_TO:
            self._consume_replies(method, tag)
            return
        queue = topology.find_queue(self, method.queue)
        assert_integer(method.arguments, "x-priority", str(queue))
        priority = method.arguments.get("x-priority", 0)
        assert isinstance(priority, int)
        timeout_ms = method.arguments.get("x-consumer-timeout")
        if queue.exclusive_taker or (method.exclusive and queue.takers):
            raise access_refused(f"{queue} in exclusive use")
        consumer = Consumer(
            self,
            self.outstanding,
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

    def cancel(self, method: spec.BasicCancel) -> None:
        consumer = self.consumers.pop(method.consumer_tag, None)
        if consumer is not None:
            consumer.queue.remove_taker(consumer)
        elif method.consumer_tag == self._reply_tag:
            self._forget_reply_consumer()
        if not method.nowait:
            self.send(spec.BasicCancelOk(method.consumer_tag))

    def queue_deleted(self, consumer: Consumer) -> None:
        """Its queue is gone: the client is told, if it can hear (consumer_cancel_notify)."""
        del self.consumers[consumer.tag]
        consumer.queue.remove_taker(consumer)
        if self.client.capable("consumer_cancel_notify"):
            self.send(spec.BasicCancel(consumer.tag, nowait=True))

    def get(self, method: spec.BasicGet) -> None:
        queue = topology.find_queue(self, method.queue)
        taken = queue.get()
        if taken is None:
            self.send(spec.BasicGetEmpty())
            return
        outstanding, backlog, qseq = self.outstanding, taken.backlog, taken.first_qseq
        envelope = taken.envelopes[0]
        tag = outstanding.take_tags(1)
        ok = spec.BasicGetOk(
            tag, taken.redelivered, envelope.exchange, envelope.routing_key, queue.ready
        )
        self.sink.send_content(self.number, ok, envelope, taken.bodies[0])
        if method.no_ack:
            backlog.settle(qseq, 1, taken.sizes[0])
        else:
            now_s = outstanding.now_s()
            outstanding.unacked.add(
                UnackedRun(tag, 1, queue, backlog, qseq, taken.sizes, 0, None, now_s)
            )

    def feed_consumers(self) -> None:
        """Credit came back, or the socket drained: whoever can take more says so."""
        for consumer in self.consumers.values():
            consumer.queue.feed(consumer)

    # -- acknowledging -----------------------------------------------------------------------

    def _acks(self, ranges: Iterable[AckRange]) -> None:
        for range_ in ranges:
            if range_.multiple:
                self._settle(self.outstanding.take_through(range_.last))
                continue
            self._settle(self._take_range(range_.first, range_.last))

    def ack(self, method: spec.BasicAck) -> None:
        tag = method.delivery_tag
        self._acks([AckRange(tag, tag, method.multiple)])

    def nack(self, method: spec.BasicNack) -> None:
        if method.multiple:
            taken = self.outstanding.take_through(method.delivery_tag)
        else:
            taken = self._take_range(method.delivery_tag, method.delivery_tag)
        self._reject(taken, method.requeue)

    def reject(self, method: spec.BasicReject) -> None:
        self._reject(self._take_range(method.delivery_tag, method.delivery_tag), method.requeue)

    def recover(self, method: spec.BasicRecover | spec.BasicRecoverAsync) -> None:
        if not method.requeue:
            raise not_implemented("requeue=false")
        self._requeue(self.outstanding.unacked.take_all())
        if isinstance(method, spec.BasicRecover):
            self.send(spec.BasicRecoverOk())

    def _take_range(self, first: int, last: int) -> list[UnackedRun]:
        taken, tag = self.outstanding.take_range(first, last)
        if tag <= last:
            self._settle(taken)  # those before the bad tag are settled, as in RabbitMQ
            raise precondition_failed(f"unknown delivery tag {tag}")
        return taken

    def _settle(self, runs: list[UnackedRun]) -> None:
        """Acknowledge, or keep for tx.commit."""
        if self.publisher.transaction is not None:
            self.publisher.transaction.settlements.append(Settlement(runs, requeue=False))
            return
        self._acknowledge(runs)

    def _acknowledge(self, runs: list[UnackedRun], after_lsn: int = 0) -> None:
        """These are done with, lastingly not before the log is durable up to `after_lsn`."""
        self._release(runs)
        for run in runs:
            run.backlog.settle(run.qseq, run.count, run.size, after_lsn)

    def _reject(self, runs: list[UnackedRun], requeue: bool) -> None:
        if not requeue:
            self._settle(runs)
        elif self.publisher.transaction is not None:
            self.publisher.transaction.settlements.append(Settlement(runs, requeue=True))
        else:
            self._requeue(runs)

    def _requeue(self, runs: list[UnackedRun]) -> None:
        self._release(runs)
        for run in runs:
            run.queue.requeue(run.backlog, run.qseq, run.count, run.size)

    def _release(self, runs: list[UnackedRun]) -> None:
        """Give the consumers of these deliveries their credit back."""
        takers = {}
        count = 0
        for run in runs:
            taker = run.taker
            if taker is not None:
                taker.unacked -= run.count
                count += run.count
                takers[taker.tag] = taker
        self.outstanding.by_consumers -= count
        if self.closed:
            return
        if self.outstanding.prefetch:
            self.feed_consumers()
        else:
            for tag, taker in takers.items():
                consumer = self.consumers.get(tag)
                if consumer is taker:
                    consumer.queue.feed(consumer)

    def take_overdue(self, now_s: float) -> float | None:
        """The consumer ack timeout: the timeout in seconds of a delivery that is overdue, if any is.

        With the queue argument `x-consumer-timeout-action=requeue` overdue messages go back by
        themselves and do not count.
        """
        overdue_s = None
        for run in self.outstanding.unacked.overdue(now_s):
            if run.queue.effective.timeout_requeues:
                self._requeue(self.outstanding.lapse(run))
            else:
                overdue_s = (run.taker or run.queue).timeout_s
        return overdue_s

    # -- direct replies ----------------------------------------------------------------------

    def _consume_replies(self, method: spec.BasicConsume, tag: str) -> None:
        if self._reply_consumer is not None:
            raise precondition_failed("reply consumer already set")
        if not method.no_ack:
            raise precondition_failed("reply consumer cannot acknowledge")
        self._reply_consumer = DeliveryEncoder(self.number, tag, self.sink.frame_max)
        self._reply_tag = tag
        self._reply_address = self.client.broker.replies.register(self)
        if not method.nowait:
            self.send(spec.BasicConsumeOk(tag))

    def _forget_reply_consumer(self) -> None:
        if self._reply_consumer is not None:
            self.client.broker.replies.forget(self._reply_address)
            self._reply_consumer = None
            self._reply_tag = ""

    def reply_address(self) -> str:
        """What `reply_to` becomes in this channel's requests. Raises 406 without a reply consumer."""
        if self._reply_consumer is None:
            raise precondition_failed("fast reply consumer does not exist")
        return self._reply_address

    def deliver_replies(self, envelopes: Sequence[Envelope], bodies: Sequence[bytes]) -> None:
        """Answers to this channel's requests. Who does not read them loses them."""
        if self._reply_consumer is None or self.sink.overfull:
            return  # None: it left between a transaction's publish and its commit
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
        """Publish and settle what was kept back; CommitOk follows when log and ledger are synced."""
        transaction = self._new_transaction()
        lsn = self.publisher.commit(transaction)
        for runs, requeue in transaction.settlements:
            if requeue:
                self._requeue(runs)
            else:
                self._acknowledge(runs, lsn)
        self._held = []
        self.client.broker.await_sync(self, lsn if transaction.settlements else 0)

    def synced(self) -> None:
        """What tx.commit did is on disk: answer, and go on with what came meanwhile."""
        held, self._held = self._held, None
        assert held is not None
        if not self.closed:
            self.send(spec.TxCommitOk())
            self.client.resume_channel(self.number, held)
        self.client.release_events(len(held))

    def tx_rollback(self, method: spec.TxRollback) -> None:
        """Forget the publishes; what was acknowledged is unacknowledged again."""
        for run in self._new_transaction().unsettled():
            self.outstanding.unacked.give_back(run)
        self.send(spec.TxRollbackOk())

    def _new_transaction(self) -> Transaction:
        """Begin anew; returns what was kept back until now. Raises 406."""
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
        """Answers of the client that need no answer."""


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
