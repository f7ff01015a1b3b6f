"""The broker as a whole: overview, who is asking, names and versions."""

from __future__ import annotations

from typing import Any

from qlog.server.http.ask import Ask
from qlog.server.http.pace import paced
from qlog.server.http.spans import spans
from qlog.server.http.table import HISTORY, Endpoint


async def overview(ask: Ask) -> dict[str, Any]:
    """Names, versions, totals and rates."""
    operations = ask.operations
    about = operations.about()
    totals = await object_totals(ask)
    lengths = await queue_totals(ask)
    asked = spans(ask)
    return {
        "management_version": about.version,
        "rabbitmq_version": about.version,
        "product_name": about.product,
        "product_version": about.version,
        "cluster_name": about.cluster_name,
        "node": about.node,
        "rates_mode": "basic",
        "default_queue_type": "classic",
        "disable_stats": False,
        "is_op_policy_updating_enabled": True,
        "cluster_tags": {},
        "node_tags": {},
        "sample_retention_policies": {
            "global": [600, 86400],
            "basic": [600],
            "detailed": [600],
        },
        "enable_queue_totals": False,
        "exchange_types": [
            {"name": name, "description": text, "enabled": True}
            for name, text in operations.exchange_types()
        ],
        "message_stats": operations.total_rates(operations.message_counts(), asked.messages),
        "churn_rates": operations.total_rates(dict(operations.churn())),
        "queue_totals": operations.total_rates(lengths, asked.lengths) if lengths else {},
        "object_totals": totals,
        "statistics_db_event_queue": 0,
        "listeners": listeners(ask),
        "contexts": contexts(ask),
    }


async def queue_totals(ask: Ask) -> dict[str, int]:
    """What waits in queues that the user may see; nothing, if there are no queues."""
    ready = unacked = queues = 0
    for vhost in ask.vhosts():
        async for queue in paced(ask.operations.queues(vhost)):
            queues += 1
            ready += queue.ready
            unacked += queue.unacked
    if not queues:
        return {}
    return {
        "messages": ready + unacked,
        "messages_ready": ready,
        "messages_unacknowledged": unacked,
    }


async def object_totals(ask: Ask) -> dict[str, int]:
    """How many of each kind there are, as far as the user may see."""
    operations = ask.operations
    queues = exchanges = 0
    for vhost in ask.vhosts():
        queues += operations.queue_count(vhost)
        exchanges += operations.exchange_count(vhost)
    connections = channels = consumers = 0
    async for client in paced(operations.connections()):
        if client.is_open:
            connections += 1
            channels += len(client.channels)
            consumers += sum(len(channel.consumers) for channel in client.channels.values())
    return {
        "channels": channels,
        "consumers": consumers,
        "exchanges": exchanges,
        "queues": queues,
        "connections": connections,
    }


def listeners(ask: Ask) -> list[dict[str, Any]]:
    """The addresses that are listened on."""
    node = ask.operations.about().node
    return [
        {
            "node": node,
            "protocol": listener.protocol,
            "ip_address": listener.host,
            "port": listener.port,
            "socket_opts": {},
        }
        for listener in ask.context.listeners()
    ]


_TITLES = {
    "http": "RabbitMQ Management",
    "https": "RabbitMQ Management",
    "http/prometheus": "RabbitMQ Prometheus",
}


def contexts(ask: Ask) -> list[dict[str, Any]]:
    """What is served over HTTP."""
    node = ask.operations.about().node
    return [
        {
            "node": node,
            "description": _TITLES[listener.protocol],
            "path": "/",
            "protocol": listener.protocol,
            "ip": listener.host,
            "port": str(listener.port),
        }
        for listener in ask.context.listeners()
        if listener.protocol in _TITLES
    ]


async def whoami(ask: Ask) -> dict[str, Any]:
    """The user who asks."""
    return {
        "name": ask.identity.name,
        "tags": sorted(ask.identity.tags),
        "is_internal_user": True,
    }


async def version(ask: Ask) -> str:
    """RabbitMQ's version, as clients are told."""
    return ask.operations.about().version


async def auth(ask: Ask) -> dict[str, Any]:
    """How users log in to the page."""
    return {"oauth_enabled": False}


ENDPOINTS = [
    Endpoint("GET", "/overview", overview, "The broker as a whole", query=HISTORY),
    Endpoint("GET", "/whoami", whoami, "The user who asks"),
    Endpoint("GET", "/version", version, "The version"),
    Endpoint("GET", "/auth", auth, "How users log in", tag="any"),
]
