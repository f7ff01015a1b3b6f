"""The paths of the metrics: aggregated, by object, and by family."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from qlog import __version__
from qlog.server.broker.operations import Counts, VHost
from qlog.server.http.answers import Answer
from qlog.server.http.ask import Ask
from qlog.server.http.metrics.families import CLUSTER, CONTAINED, OBJECTS
from qlog.server.http.metrics.text import (
    CONTENT_TYPE,
    Block,
    Metric,
    label_text,
    metrics,
    one,
    written,
)
from qlog.server.http.pace import paced
from qlog.server.http.table import Endpoint

PREFIX = "rabbitmq_"
DETAILED = "rabbitmq_detailed_"
_CLUSTER = "rabbitmq_cluster_"
_AMQP = {"protocol": "amqp091"}
QUEUE_TYPES = ("classic", "quorum", "stream")


async def aggregated(ask: Ask) -> Answer:
    """Sums over all objects."""
    return _answer(_blocks(ask, by_object=False))


async def per_object(ask: Ask) -> Answer:
    """Each object for itself."""
    return _answer(_blocks(ask, by_object=True))


async def detailed(ask: Ask) -> Answer:
    """The families that are asked for, in the vhosts that are asked for."""
    return _answer(_detailed(ask))


def _answer(blocks: AsyncIterator[Block]) -> Answer:
    return Answer(body=written(blocks), content_type=CONTENT_TYPE)


async def _blocks(ask: Ask, *, by_object: bool) -> AsyncIterator[Block]:
    vhosts = list(ask.operations.vhosts())
    for name, family in OBJECTS.items():
        if name in CONTAINED:
            continue
        if by_object or not family.summed:
            yield await family.by_object(ask, vhosts, PREFIX)
        else:
            yield await family.sums(ask, vhosts, PREFIX)
    for block in (*await _totals(ask, vhosts), *_global(ask), *_own(ask), *_alarms(ask)):
        yield block
    for block in _about(ask):
        yield block


async def _detailed(ask: Ask) -> AsyncIterator[Block]:
    names = ask.every("family")
    wanted = ask.every("vhost")
    vhosts = [vhost for vhost in ask.operations.vhosts() if not wanted or vhost.name in wanted]
    for name, family in OBJECTS.items():
        if name in names and CONTAINED.get(name) not in names:
            yield await family.by_object(ask, vhosts, DETAILED)
    for name, family in CLUSTER.items():
        if name in names:
            yield await family.by_object(ask, vhosts, _CLUSTER)
    for block in _about(ask):
        yield block


# -- sums over everything


async def _totals(ask: Ask, vhosts: Sequence[VHost]) -> list[Block]:
    connections = channels = consumers = publishers = 0
    async for client in paced(ask.operations.connections()):
        if client.is_open:
            connections += 1
            channels += len(client.channels)
            for channel in client.channels.values():
                consumers += len(channel.consumers)
                publishers += channel.publishes
    queues = sum(ask.operations.queue_count(vhost) for vhost in vhosts)
    named = metrics(
        "gauge",
        [
            ("connections", "Connections that are open"),
            ("channels", "Channels that are open"),
            ("consumers", "Consumers"),
            ("queues", "Queues"),
        ],
        PREFIX,
    )
    gauges = metrics(
        "gauge",
        [("publishers", "Channels that have published"), ("consumers", "Consumers")],
        f"{PREFIX}global_",
    )
    return [
        Block(named, [("", (connections, channels, consumers, queues))]),
        Block(gauges, [(label_text(_AMQP), (publishers, consumers))]),
    ]


_BY_TYPE = (
    ("messages_delivered", "Messages that were handed out", None),
    ("messages_delivered_consume_manual_ack", "To consumers that acknowledge", "deliver"),
    ("messages_delivered_consume_auto_ack", "To consumers that do not", "deliver_no_ack"),
    ("messages_delivered_get_manual_ack", "By basic.get, to be acknowledged", "get"),
    ("messages_delivered_get_auto_ack", "By basic.get, acknowledged at once", "get_no_ack"),
    ("messages_get_empty", "How often basic.get found nothing", "get_empty"),
    ("messages_acknowledged", "Messages that were acknowledged", "ack"),
    ("messages_redelivered", "Messages that were handed out again", "redeliver"),
)


def _global(ask: Ask) -> list[Block]:
    """What RabbitMQ's Overview dashboard shows, by protocol and type of queue."""
    stats = ask.operations.stats()
    counters = metrics(
        "counter",
        [
            ("messages_received", "Messages from publishers"),
            ("messages_received_confirm", "Those of channels in confirm mode"),
            ("messages_routed", "Messages that a queue took"),
            ("messages_confirmed", "Messages that were confirmed"),
            ("messages_unroutable_returned", "Messages that no queue took, returned"),
            ("messages_unroutable_dropped", "Messages that no queue took, dropped"),
        ],
        f"{PREFIX}global_",
    )
    received = (
        stats.published,
        stats.published_confirm,
        stats.published - stats.unrouted,
        stats.confirmed,
        stats.returned,
        stats.unrouted - stats.returned,
    )
    by_type = metrics("counter", [(name, text) for name, text, _ in _BY_TYPE], f"{PREFIX}global_")
    rows = [
        (
            label_text({**_AMQP, "queue_type": f"rabbit_{name}_queue"}),
            _delivered(stats.counts_of(name)),
        )
        for name in QUEUE_TYPES
    ]
    return [
        Block(counters, [(label_text(_AMQP), received)]),
        Block(by_type, rows),
    ]


def _delivered(counts: Counts) -> list[int]:
    values = [0 if name is None else getattr(counts, name) for _, _, name in _BY_TYPE]
    values[0] = sum(values[1:5])
    return values


def _alarms(ask: Ask) -> list[Block]:
    alarms = ask.operations.alarms
    return [
        one(Metric(f"{PREFIX}alarms_{name}", "untyped", f"1: {text}"), alarms[text])
        for name, text in (
            ("file_descriptor_limit", "low on file descriptors"),
            ("free_disk_space_watermark", "low on disk"),
            ("memory_used_watermark", "low on memory"),
        )
    ]


def _about(ask: Ask) -> list[Block]:
    about = ask.operations.about()
    build = {"rabbitmq_version": about.version, "qlog_version": __version__}
    identity = {"rabbitmq_node": about.node, "rabbitmq_cluster": about.cluster_name}
    return [
        one(Metric(f"{PREFIX}build_info", "untyped", "Versions"), 1, build),
        one(Metric(f"{PREFIX}identity_info", "untyped", "Names"), 1, identity),
    ]


# -- qlog's own


def _own(ask: Ask) -> list[Block]:
    """The storage and the loop."""
    storage = ask.operations.storage()
    commits, lag = storage.commits, ask.context.lag
    live_ratio = storage.live_bytes / storage.segment_bytes if storage.segment_bytes else 1.0

    def gauge(name: str, value: Any, text: str) -> Block:
        return one(Metric(f"qlog_{name}", "gauge", text), value)

    def counter(name: str, value: Any, text: str) -> Block:
        return one(Metric(f"qlog_{name}_total", "counter", text), value)

    def histogram(name: str, value: Any, text: str) -> Block:
        return one(Metric(f"qlog_{name}", "histogram", text), value)

    stats = ask.operations.stats()
    return [
        histogram("commit_seconds", commits.took_s, "What a commit of the log took"),
        histogram("fsync_seconds", commits.sync_s, "Of which its sync"),
        histogram("commit_messages", commits.messages, "Messages of a commit"),
        histogram("commit_bytes", commits.octets, "Octets of a commit"),
        histogram("loop_lag_seconds", lag.late_s, "How late the loop is, looked at once a second"),
        gauge("segments", storage.segment_count, "Segments of the log"),
        gauge("segment_bytes", storage.segment_bytes, "Octets of the log on the disk"),
        gauge("live_bytes", storage.live_bytes, "Octets of the log that are not settled"),
        gauge("live_ratio", live_ratio, "The share of these"),
        gauge("cache_bytes", storage.cache_bytes, "Octets of messages in memory"),
        gauge("pending_bytes", storage.pending_bytes, "Octets that wait for the disk"),
        counter("cold_read_bytes", storage.cold_bytes, "Octets read back from the disk"),
        counter("compactions", storage.compaction_count, "Compactions that were finished"),
        counter("compacted_bytes", storage.compacted_bytes, "Octets that compactions went over"),
        counter("dead_lettered", stats.dead_lettered, "Dead letters that a queue took"),
        counter("dead_letters_dropped", stats.dead_dropped, "Dead letters that no queue took"),
        counter("requeued", stats.requeued, "Messages that went back to their queues"),
        counter("rejected", stats.rejected, "Messages that were rejected for good"),
    ]


_DETAILED_QUERY = {
    "family": "a family of metrics; may come several times",
    "vhost": "only this vhost; may come several times",
}


def _metrics(
    path: str, handler: Any, summary: str, query: dict[str, str] | None = None
) -> Endpoint:
    return Endpoint(
        "GET",
        path,
        handler,
        summary,
        tag="any",
        query=query or {},
        content_type=CONTENT_TYPE,
    )


METRICS = [
    _metrics("/metrics", aggregated, "Sums over all objects"),
    _metrics("/metrics/per-object", per_object, "Each object for itself"),
    _metrics("/metrics/detailed", detailed, "By family and vhost", _DETAILED_QUERY),
]
