"""What there is to measure, by RabbitMQ's families: which metrics, of which objects.

A family looks at each object once and keeps a row of numbers, so that its metrics can be written
one after the other, as Prometheus wants them. The sums over all objects are made of the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlog.server.broker.operations import Connected, ListedChannel, QueueType, VHost
from qlog.server.http.ask import Ask
from qlog.server.http.metrics.text import Block, Labels, Metric, label_text, metrics
from qlog.server.http.pace import paced

Row = tuple[Labels, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Family:
    """`metrics` have names without prefix; `rows` gives the objects of the vhosts that are asked for.

    `summed`: the sums over all objects are metrics, too.
    """

    metrics: Sequence[Metric]
    rows: Callable[[Ask, Sequence[VHost]], Iterator[Row]]
    summed: bool = True

    async def by_object(self, ask: Ask, vhosts: Sequence[VHost], prefix: str) -> Block:
        """A row for each object."""
        rows = [(label_text(labels), values) async for labels, values in self._paced(ask, vhosts)]
        return Block(self._named(prefix), rows)

    async def sums(self, ask: Ask, vhosts: Sequence[VHost], prefix: str) -> Block:
        """One row: the sums."""
        totals: list[Any] = [0] * len(self.metrics)
        async for _, values in self._paced(ask, vhosts):
            for place, value in enumerate(values):
                totals[place] += value
        return Block(self._named(prefix), [("", totals)])

    def _paced(self, ask: Ask, vhosts: Sequence[VHost]) -> Any:
        return paced(self.rows(ask, vhosts))

    def _named(self, prefix: str) -> list[Metric]:
        return [Metric(f"{prefix}{one.name}", one.kind, one.help) for one in self.metrics]


# -- queues


def _queues(ask: Ask, vhosts: Sequence[VHost]) -> Iterator[tuple[Labels, QueueType]]:
    for vhost in vhosts:
        for queue in ask.operations.queues(vhost):
            yield {"vhost": vhost.name, "queue": queue.name}, queue


def _queue_coarse(ask: Ask, vhosts: Sequence[VHost]) -> Iterator[Row]:
    for labels, queue in _queues(ask, vhosts):
        ready, unacked = queue.ready, queue.unacked
        yield labels, (ready, unacked, ready + unacked)


def _queue_consumers(ask: Ask, vhosts: Sequence[VHost]) -> Iterator[Row]:
    for labels, queue in _queues(ask, vhosts):
        yield labels, (len(queue.takers),)


def _queue_metrics(ask: Ask, vhosts: Sequence[VHost]) -> Iterator[Row]:
    for labels, queue in _queues(ask, vhosts):
        ready, unacked, consumers = queue.ready_bytes, queue.unacked_bytes, len(queue.takers)
        capacity = 1.0 if consumers and not queue.ready else 0.0
        yield (
            labels,
            (
                consumers,
                capacity,
                capacity,
                ask.operations.queue_memory(queue),
                ready + unacked,
                ready,
                unacked,
            ),
        )


_DELIVERED = (
    ("get_ack", "get"),
    ("get", "get_no_ack"),
    ("messages_delivered_ack", "deliver"),
    ("messages_delivered", "deliver_no_ack"),
    ("messages_redelivered", "redeliver"),
    ("messages_acked", "ack"),
    ("get_empty", "get_empty"),
)


def _queue_delivery(ask: Ask, vhosts: Sequence[VHost]) -> Iterator[Row]:
    for labels, queue in _queues(ask, vhosts):
        counts = queue.counts
        values = [getattr(counts, name) for _, name in _DELIVERED]
        yield labels, [*values, queue.published]


def _exchange_metrics(ask: Ask, vhosts: Sequence[VHost]) -> Iterator[Row]:
    for vhost in vhosts:
        for exchange in ask.operations.exchanges(vhost):
            published = ask.operations.published_to(vhost, exchange)
            if published:
                yield {"vhost": vhost.name, "exchange": exchange.name}, (published,)


# -- connections and channels


def _clients(ask: Ask, vhosts: Sequence[VHost]) -> Iterator[Connected]:
    for client in ask.operations.connections():
        if client.is_open and client.vhost in vhosts:
            yield client


def _connection_coarse(ask: Ask, vhosts: Sequence[VHost]) -> Iterator[Row]:
    for client in _clients(ask, vhosts):
        yield {"connection": client.name}, (client.traffic.recv_oct, client.traffic.send_oct)


def _connection_metrics(ask: Ask, vhosts: Sequence[VHost]) -> Iterator[Row]:
    for client in _clients(ask, vhosts):
        traffic = client.traffic
        yield (
            {"connection": client.name},
            (traffic.recv_cnt, traffic.send_cnt, traffic.send_pend, len(client.channels)),
        )


def _channels(ask: Ask, vhosts: Sequence[VHost]) -> Iterator[tuple[Labels, ListedChannel]]:
    for client in _clients(ask, vhosts):
        for channel in ask.operations.channels(client):
            yield {"channel": channel.name}, channel


_CHANNEL_FACTS = (
    "consumer_count",
    "messages_unacknowledged",
    "messages_unconfirmed",
    "messages_uncommitted",
    "acks_uncommitted",
    "prefetch_count",
    "global_prefetch_count",
)


def _channel_metrics(ask: Ask, vhosts: Sequence[VHost]) -> Iterator[Row]:
    for labels, channel in _channels(ask, vhosts):
        facts = channel.facts()
        yield labels, [facts[name] for name in _CHANNEL_FACTS]


_PUBLISHED = ("publish", "confirm", "return_unroutable", "drop_unroutable")


def _channel_exchange(ask: Ask, vhosts: Sequence[VHost]) -> Iterator[Row]:
    for labels, channel in _channels(ask, vhosts):
        stats = channel.message_stats()
        yield labels, [stats.get(name, 0) for name in _PUBLISHED]


def _channel_queue(ask: Ask, vhosts: Sequence[VHost]) -> Iterator[Row]:
    for labels, channel in _channels(ask, vhosts):
        stats = channel.message_stats()
        yield labels, [stats.get(name, 0) for _, name in _DELIVERED]


# -- the node and the cluster


def _churn(ask: Ask, vhosts: Sequence[VHost]) -> Iterator[Row]:
    yield {}, list(ask.operations.churn().values())


def _node_coarse(ask: Ask, vhosts: Sequence[VHost]) -> Iterator[Row]:
    facts = ask.context.resources()
    yield {}, (facts["descriptors_used"], facts["memory_used"], facts["disk_free"])


def _node(ask: Ask, vhosts: Sequence[VHost]) -> Iterator[Row]:
    facts = ask.context.resources()
    yield {}, (facts["descriptors_max"], facts["memory_limit"], facts["disk_free_limit"])


def _logins(ask: Ask, vhosts: Sequence[VHost]) -> Iterator[Row]:
    succeeded, failed = ask.operations.login_counts()
    http = ask.context.attempts
    amqp = succeeded - http.succeeded, failed - http.failed
    for protocol, (good, bad) in (("http", (http.succeeded, http.failed)), ("amqp091", amqp)):
        yield {"protocol": protocol}, (good + bad, good, bad)


def _vhost_status(ask: Ask, vhosts: Sequence[VHost]) -> Iterator[Row]:
    for vhost in vhosts:
        yield {"vhost": vhost.name}, (1,)


def _exchange_names(ask: Ask, vhosts: Sequence[VHost]) -> Iterator[Row]:
    for vhost in vhosts:
        for exchange in ask.operations.exchanges(vhost):
            yield {"vhost": vhost.name, "exchange": exchange.name, "type": exchange.type}, (1,)


def _exchange_bindings(ask: Ask, vhosts: Sequence[VHost]) -> Iterator[Row]:
    for vhost in vhosts:
        for exchange in ask.operations.exchanges(vhost):
            labels = {"vhost": vhost.name, "exchange": exchange.name, "type": exchange.type}
            yield labels, (ask.operations.binding_count(vhost, exchange.name),)


def _of(place: str, names: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The names of deliveries, of queues or channels."""
    return [(f"{place}_{name}", text) for name, text in names]


_DELIVERED_HELP = (
    ("get_ack", "Messages that basic.get took, and that need an acknowledgement"),
    ("get", "Messages that basic.get took, and that need no acknowledgement"),
    ("messages_delivered_ack", "Messages that consumers got, and that need an acknowledgement"),
    ("messages_delivered", "Messages that consumers got, and that need no acknowledgement"),
    ("messages_redelivered", "Messages that were handed out again"),
    ("messages_acked", "Messages that were acknowledged"),
    ("get_empty", "How often basic.get found nothing"),
)

OBJECTS: Mapping[str, Family] = {
    "queue_coarse_metrics": Family(
        metrics(
            "gauge",
            [
                ("queue_messages_ready", "Messages that wait for a consumer"),
                ("queue_messages_unacked", "Messages that consumers have not acknowledged yet"),
                ("queue_messages", "Both together"),
            ],
        ),
        _queue_coarse,
    ),
    "queue_consumer_count": Family(
        metrics("gauge", [("queue_consumers", "Consumers of a queue")]), _queue_consumers
    ),
    "queue_metrics": Family(
        metrics(
            "gauge",
            [
                ("queue_consumers", "Consumers of a queue"),
                ("queue_consumer_capacity", "1: the consumers are ready for messages"),
                ("queue_consumer_utilisation", "The same"),
                ("queue_process_memory_bytes", "Memory of the queue, without messages: estimated"),
                ("queue_messages_bytes", "Octets of its messages"),
                ("queue_messages_ready_bytes", "Octets of those that wait"),
                ("queue_messages_unacked_bytes", "Octets of those that are out"),
            ],
        ),
        _queue_metrics,
    ),
    "queue_delivery_metrics": Family(
        metrics(
            "counter",
            [
                *_of("queue", _DELIVERED_HELP),
                ("queue_messages_published", "Messages that came to a queue"),
            ],
        ),
        _queue_delivery,
    ),
    "exchange_metrics": Family(
        metrics("counter", [("exchange_messages_published", "Messages that came to an exchange")]),
        _exchange_metrics,
    ),
    "connection_coarse_metrics": Family(
        metrics(
            "counter",
            [
                ("connection_incoming_bytes", "Octets from a client"),
                ("connection_outgoing_bytes", "Octets to a client"),
            ],
        ),
        _connection_coarse,
    ),
    "connection_metrics": Family(
        [
            *metrics(
                "counter",
                [
                    ("connection_incoming_packets", "Reads from a client"),
                    ("connection_outgoing_packets", "Writes to a client"),
                ],
            ),
            *metrics(
                "gauge",
                [
                    ("connection_pending_packets", "Octets that wait to be sent to a client"),
                    ("connection_channels", "Channels of a connection"),
                ],
            ),
        ],
        _connection_metrics,
    ),
    "channel_metrics": Family(
        metrics(
            "gauge",
            [
                ("channel_consumers", "Consumers on a channel"),
                ("channel_messages_unacked", "Messages not acknowledged yet"),
                ("channel_messages_unconfirmed", "Published messages not confirmed yet"),
                ("channel_messages_uncommitted", "Published messages of an open transaction"),
                ("channel_acks_uncommitted", "Acknowledgements of an open transaction"),
                ("consumer_prefetch", "The prefetch of each consumer"),
                ("channel_prefetch", "The prefetch of all consumers together"),
            ],
        ),
        _channel_metrics,
    ),
    "channel_exchange_metrics": Family(
        metrics(
            "counter",
            [
                ("channel_messages_published", "Messages that a channel published"),
                ("channel_messages_confirmed", "Messages that were confirmed"),
                ("channel_messages_unroutable_returned", "Messages that were returned"),
                ("channel_messages_unroutable_dropped", "Messages that no queue took"),
            ],
        ),
        _channel_exchange,
    ),
    "channel_queue_metrics": Family(
        metrics("counter", _of("channel", _DELIVERED_HELP)), _channel_queue
    ),
    "connection_churn_metrics": Family(
        metrics(
            "counter",
            [
                ("connections_opened", "Connections that were opened"),
                ("connections_closed", "Connections that were closed"),
                ("channels_opened", "Channels that were opened"),
                ("channels_closed", "Channels that were closed"),
                ("queues_declared", "Declarations of queues"),
                ("queues_created", "Queues that were made"),
                ("queues_deleted", "Queues that were deleted"),
            ],
        ),
        _churn,
    ),
    "node_coarse_metrics": Family(
        metrics(
            "gauge",
            [
                ("process_open_fds", "File descriptors in use"),
                ("process_resident_memory_bytes", "Memory in use"),
                ("disk_space_available_bytes", "Free space on the disk"),
            ],
        ),
        _node_coarse,
    ),
    "node_metrics": Family(
        metrics(
            "gauge",
            [
                ("process_max_fds", "File descriptors that may be used"),
                ("resident_memory_limit_bytes", "Publishers are blocked beyond this memory"),
                ("disk_space_available_limit_bytes", "Publishers are blocked below this space"),
            ],
        ),
        _node,
    ),
    "auth_attempt_metrics": Family(
        metrics(
            "counter",
            [
                ("auth_attempts", "Logins"),
                ("auth_attempts_succeeded", "Logins that succeeded"),
                ("auth_attempts_failed", "Logins that failed"),
            ],
        ),
        _logins,
        summed=False,
    ),
}
CLUSTER: Mapping[str, Family] = {
    "vhost_status": Family(
        metrics("gauge", [("vhost_status", "1: the vhost is there")]), _vhost_status
    ),
    "exchange_names": Family(
        metrics("gauge", [("exchange_name", "1: the exchange is there")]), _exchange_names
    ),
    "exchange_bindings": Family(
        metrics("gauge", [("exchange_bindings", "Bindings of an exchange")]), _exchange_bindings
    ),
}
# `queue_metrics` has what `queue_consumer_count` has: both together would be a double.
CONTAINED = {"queue_consumer_count": "queue_metrics"}
