"""Queues, exchanges, bindings and vhosts as operators see them: JSON with RabbitMQ's names.

Each function looks at one object and costs some microseconds; whoever lists many pauses between
them.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any
from urllib.parse import quote_plus

from qlog.routing.binding import Binding
from qlog.routing.delayed import DELAYED
from qlog.routing.exchange import Exchange
from qlog.server.amqp.values import encode_table
from qlog.server.broker.features.firehose import NODE
from qlog.server.broker.listings.values import delivery_counts, json_value
from qlog.server.broker.queues.type import QueueType
from qlog.server.broker.stats import Stats
from qlog.server.broker.vhost import VHost

# By name, with a description.
EXCHANGE_TYPES = {
    "direct": "AMQP direct exchange, as per the AMQP specification",
    "fanout": "AMQP fanout exchange, as per the AMQP specification",
    "headers": "AMQP headers exchange, as per the AMQP specification",
    "topic": "AMQP topic exchange, as per the AMQP specification",
    "x-consistent-hash": "Routes by a hash of the routing key, or of a header",
    "x-local-random": "Routes to one of the queues that are bound, by chance",
    "x-modulus-hash": "Routes by a hash of the routing key, modulo the queues that are bound",
    "x-random": "Routes by one of the bindings, by chance",
    "x-recent-history": "Gives the last messages to what is bound anew",
}
# About so many octets are taken by a queue, each of its lanes, and each of its consumers.
_QUEUE_BYTES, _LANE_BYTES, _CONSUMER_BYTES = 2000, 2000, 1500
_HASH_BYTES = 5  # of the arguments of a binding, in its `properties_key`


def queue_facts(queue: QueueType, *, single: bool = False) -> dict[str, Any]:
    """One queue; `single`: with what RabbitMQ tells of one queue alone."""
    declared, applied = queue.declared, queue.effective.applied
    queue_type = declared.arguments.type
    ready, unacked = queue.ready, queue.unacked
    ready_bytes, unacked_bytes = queue.ready_bytes, queue.unacked_bytes
    takers = list(queue.takers)
    facts: dict[str, Any] = bare_queue_facts(queue)
    facts |= {
        "storage_version": 2,
        "consumers": len(takers),
        "consumer_capacity": consumer_capacity(ready, len(takers)),
        "consumer_utilisation": consumer_capacity(ready, len(takers)),
        "operator_policy": applied.operator_policy,
        "effective_policy_definition": dict(applied.definition),
        "memory": queue_memory(queue),
        "messages": ready + unacked,
        "messages_ready": ready,
        "messages_unacknowledged": unacked,
        "message_bytes": ready_bytes + unacked_bytes,
        "message_bytes_ready": ready_bytes,
        "message_bytes_unacknowledged": unacked_bytes,
        "message_stats": queue_counts(queue),
        "exclusive_consumer_tag": next((taker.tag for taker in takers if taker.exclusive), None),
        "single_active_consumer_tag": None
        if queue.active_taker is None
        else queue.active_taker.tag,
    }
    if queue_type == "quorum":
        facts["delivery_limit"] = queue.effective.delivery_limit
    if declared.exclusive:
        facts["owner_pid_details"] = {"name": getattr(queue.owner, "name", "")}
    if single:
        facts["consumer_details"] = [taker.facts() for taker in takers]
        facts["incoming"] = []
        facts["deliveries"] = []
    return facts


def bare_queue_facts(queue: QueueType) -> dict[str, Any]:
    """One queue, without what is counted."""
    declared = queue.declared
    queue_type = declared.arguments.type
    facts: dict[str, Any] = {
        "name": declared.name,
        "vhost": declared.vhost,
        "durable": declared.durable,
        "auto_delete": declared.auto_delete,
        "exclusive": declared.exclusive,
        "arguments": {**json_value(declared.arguments.table), "x-queue-type": queue_type},
        "node": NODE,
        "state": "running",
        "type": queue_type,
        "policy": queue.effective.applied.policy,
    }
    if queue_type != "classic":
        facts |= {"leader": NODE, "members": [NODE], "online": [NODE]}
    return facts


def consumer_capacity(ready: int, consumers: int) -> float:
    """How ready the consumers are for messages: 1 if nothing waits, 0 without consumers."""
    return 1.0 if consumers and not ready else 0.0


def queue_memory(queue: QueueType) -> int:
    """An estimate of the octets that the queue takes in memory, beside the cache of messages."""
    return _QUEUE_BYTES + _LANE_BYTES * len(queue.lanes) + _CONSUMER_BYTES * len(queue.takers)


def queue_counts(queue: QueueType) -> dict[str, int]:
    """What passed a queue; nothing if nothing ever did."""
    found: dict[str, int] = {}
    if published := queue.published:
        found["publish"] = published
    return found | delivery_counts(queue.counts)


def message_counts(stats: Stats) -> dict[str, int]:
    """What the broker did with messages; nothing if there were none."""
    if not stats.published and not any(stats.of_type.values()):
        return {}
    names = ("deliver", "deliver_no_ack", "get", "get_no_ack", "get_empty", "redeliver", "ack")
    found = {name: stats.total(name) for name in names}
    found["deliver_get"] = sum(found[name] for name in names[:4])
    found["publish"] = stats.published
    found["confirm"] = stats.confirmed
    found["return_unroutable"] = stats.returned
    found["drop_unroutable"] = stats.unrouted - stats.returned
    return found


def declared_exchange(vhost: VHost, exchange: Exchange) -> dict[str, Any]:
    """How one exchange was declared."""
    return {
        "name": exchange.name,
        "vhost": vhost.name,
        "type": exchange.type,
        "durable": exchange.durable,
        "auto_delete": exchange.auto_delete,
        "internal": exchange.internal,
        "arguments": json_value(exchange.arguments),
    }


def exchange_facts(vhost: VHost, exchange: Exchange) -> dict[str, Any]:
    """One exchange."""
    applied = vhost.policies.for_exchange(exchange.name)
    facts = declared_exchange(vhost, exchange)
    facts["user_who_performed_action"] = "rmq-internal"
    if applied.policy is not None:
        facts["policy"] = applied.policy
    delayed = vhost.delayed.find(exchange.name)
    if exchange.type == DELAYED:  # as RabbitMQ's plugin tells it
        facts["messages_delayed"] = 0 if delayed is None else delayed.count
    counts = vhost.passed_exchange(exchange.name)
    if counts is not None and counts.published_in:
        facts["message_stats"] = {
            "publish_in": counts.published_in,
            "publish_out": counts.published_out,
        }
    return facts


def binding_facts(vhost: str, binding: Binding) -> dict[str, Any]:
    """One binding."""
    return {
        "source": binding.source,
        "vhost": vhost,
        "destination": binding.destination,
        "destination_type": binding.kind,
        "routing_key": binding.routing_key,
        "arguments": json_value(binding.arguments),
        "properties_key": properties_key(binding),
    }


def properties_key(binding: Binding) -> str:
    """What tells a binding from the others between the same two ends (rabbit_mgmt_format)."""
    key = quote_plus(binding.routing_key, safe="-_.")
    if not binding.arguments:
        return key or "~"
    table = encode_table({name: json_value(value) for name, value in binding.arguments.items()})
    digest = hashlib.sha256(table).digest()[:_HASH_BYTES]
    return f"{key}~{base64.b32encode(digest).decode().rstrip('=')}"


def vhost_facts(vhost: VHost) -> dict[str, Any]:
    """One vhost, without what is counted in it."""
    settings = vhost.settings
    tags = list(settings.tags)
    default_type = settings.default_queue_type or "classic"
    return {
        "name": vhost.name,
        "description": settings.description,
        "tags": tags,
        "default_queue_type": default_type,
        "metadata": {
            "description": settings.description,
            "tags": tags,
            "default_queue_type": default_type,
            "protected_from_deletion": settings.protected_from_deletion,
        },
        "protected_from_deletion": settings.protected_from_deletion,
        "tracing": vhost.firehose is not None,
        "cluster_state": {NODE: "running"},
    }
