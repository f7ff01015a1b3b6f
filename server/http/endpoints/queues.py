"""Queues: listed, declared, deleted, purged; messages taken from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qlog.server.broker.operations import QueueType
from qlog.server.http.answers import Listing
from qlog.server.http.ask import Ask
from qlog.server.http.refusals import not_found
from qlog.server.http.table import Endpoint

_STATISTICS = (
    "consumer_details",
    "consumers",
    "effective_policy_definition",
    "memory",
    "message_bytes",
    "message_bytes_ready",
    "message_bytes_unacknowledged",
    "message_stats",
)
_TOTALS = ("messages", "messages_ready", "messages_unacknowledged")


def _objects(ask: Ask) -> Iterator[QueueType]:
    for vhost in ask.vhosts():
        yield from ask.operations.queues(vhost)


async def list_queues(ask: Ask) -> Listing[QueueType]:
    """All queues."""
    return Listing(
        _objects(ask),
        ask.operations.queue_facts,
        name=lambda queue: queue.name,
        order=lambda queue: (queue.declared.vhost, queue.name),
        paged=True,
    )


def _queue(ask: Ask) -> QueueType:
    queue = ask.operations.find_queue(ask.vhost(), ask.path["queue"])
    if queue is None:
        raise not_found()
    return queue


async def show_queue(ask: Ask) -> dict[str, Any]:
    """One queue."""
    return ask.operations.queue_facts(_queue(ask), single=True)


async def queue_bindings(ask: Ask) -> Listing[Any]:
    """The bindings to one queue."""
    vhost, queue = ask.vhost(), _queue(ask)
    return Listing(
        ask.operations.bindings_to(vhost, "queue", queue.name),
        lambda binding: ask.operations.binding_facts(vhost, binding),
    )


ENDPOINTS = [
    Endpoint("GET", "/queues", list_queues, "All queues"),
    Endpoint("GET", "/queues/detailed", list_queues, "All queues"),
    Endpoint("GET", "/queues/{vhost}", list_queues, "The queues of a vhost"),
    Endpoint("GET", "/queues/{vhost}/{queue}", show_queue, "One queue"),
    Endpoint("GET", "/queues/{vhost}/{queue}/bindings", queue_bindings, "Its bindings"),
]
