"""The node, of which there is one: the process, its memory, what it can do."""

from __future__ import annotations

import os
from typing import Any

from qlog import __version__
from qlog.server.http.answers import Answer
from qlog.server.http.ask import Ask
from qlog.server.http.endpoints.overview import contexts
from qlog.server.http.refusals import bad_request, not_found
from qlog.server.http.table import Endpoint

_NODE = "/nodes/{node}"
# What RabbitMQ's tools ask whether it is on; everything here is.
_FLAGS = {
    "classic_queue_type_delivery_support": "Deliveries from classic queues",
    "detailed_queues_endpoint": "Queues are listed by /queues/detailed, too",
    "direct_exchange_routing_v2": "Routes of direct exchanges are remembered",
    "drop_unroutable_metric": "What no queue takes is counted",
    "empty_basic_get_metric": "A basic.get that finds nothing is counted",
    "feature_flags_v2": "Feature flags",
    "implicit_default_bindings": "The default exchange's bindings are not kept",
    "message_containers": "One form of messages for all protocols",
    "message_containers_deaths_v2": "Cycles of dead letters end",
    "quorum_queue": "Queues of the type quorum",
    "rabbit_exchange_type_local_random": "Exchanges of the type x-local-random",
    "rabbitmq_4.0.0": "What RabbitMQ 4.0 does",
    "stream_filtering": "Consumers of streams get what passes their filter",
    "stream_queue": "Queues of the type stream",
    "user_limits": "Limits of connections and channels by user",
    "virtual_host_metadata": "Vhosts have a description and tags",
}
# What RabbitMQ permits by default, for now; qlog keeps it.
_DEPRECATED = {
    "global_qos": "A limit of basic.qos for the whole channel",
    "management_metrics_collection": "Rates and counts over the management API",
    "transient_nonexcl_queues": "Queues that are neither durable nor exclusive",
}
# What RabbitMQ's memory is for. Clients expect every name; most is of Erlang, and 0 here.
_MEMORY = (
    "connection_readers",
    "connection_writers",
    "connection_channels",
    "connection_other",
    "queue_procs",
    "quorum_queue_procs",
    "quorum_queue_dlx_procs",
    "stream_queue_procs",
    "stream_queue_replica_reader_procs",
    "stream_queue_coordinator_procs",
    "plugins",
    "metadata_store",
    "other_proc",
    "metrics",
    "mgmt_db",
    "mnesia",
    "quorum_ets",
    "metadata_store_ets",
    "other_ets",
    "binary",
    "msg_index",
    "code",
    "atom",
    "other_system",
    "allocated_unused",
    "reserved_unallocated",
)


def _node(ask: Ask) -> None:
    """Raises 404 for the name of another node."""
    if ask.path["node"] != ask.operations.about().node:
        raise not_found()


def node_facts(ask: Ask) -> dict[str, Any]:
    """The node as RabbitMQ shows one."""
    operations = ask.operations
    about, resources, alarms = operations.about(), ask.context.resources(), operations.alarms
    stats = operations.total_rates(dict(operations.churn()))
    connections = sum(1 for _ in operations.connections())
    return {
        "name": about.node,
        "type": "disc",
        "running": True,
        "being_drained": False,
        "os_pid": str(os.getpid()),
        "mem_used": resources["memory_used"],
        "mem_limit": resources["memory_limit"],
        "mem_alarm": alarms["low on memory"],
        "mem_calculation_strategy": "rss",
        "disk_free": resources["disk_free"],
        "disk_free_limit": resources["disk_free_limit"],
        "disk_free_alarm": alarms["low on disk"],
        "fd_used": resources["descriptors_used"],
        "fd_total": resources["descriptors_max"],
        "sockets_used": connections,
        "sockets_total": resources["descriptors_max"],
        "proc_used": 1,
        "proc_total": 1,
        "run_queue": 0,
        "uptime": round(ask.context.uptime_s() * 1000),
        "processors": os.cpu_count() or 1,
        "rates_mode": "basic",
        "net_ticktime": 60,
        "partitions": [],
        "cluster_links": [],
        "applications": [
            {"name": "qlog", "description": "qlog", "version": __version__},
            {"name": "rabbit", "description": about.product, "version": about.version},
        ],
        "exchange_types": [
            {"name": name, "description": text, "enabled": True}
            for name, text in operations.exchange_types()
        ],
        "auth_mechanisms": [
            {"name": name, "description": text, "enabled": enabled}
            for name, text, enabled in operations.auth_mechanisms()
        ],
        "contexts": contexts(ask),
        "enabled_plugins": ["rabbitmq_management", "rabbitmq_prometheus"],
        "log_files": [ask.context.log_file],
        "config_files": [],
        "db_dir": ask.context.data_dir,
        **stats,
    }


async def list_nodes(ask: Ask) -> list[dict[str, Any]]:
    """All nodes: this one."""
    return [node_facts(ask)]


async def show_node(ask: Ask) -> dict[str, Any]:
    """This node."""
    _node(ask)
    return node_facts(ask)


async def memory(ask: Ask) -> dict[str, Any]:
    """What the memory is for, as far as it is known."""
    _node(ask)
    return {"memory": memory_facts(ask)}


async def memory_relative(ask: Ask) -> dict[str, Any]:
    """The same in hundredths of the whole."""
    _node(ask)
    facts = memory_facts(ask)
    whole = facts.pop("total")["rss"] or 1
    return {
        "memory": {
            name: round(100 * value / whole) if isinstance(value, int) else value
            for name, value in facts.items()
        }
        | {"total": 100}
    }


def memory_facts(ask: Ask) -> dict[str, Any]:
    """Octets by what they are for."""
    used = ask.context.resources()["memory_used"]
    parts = ask.operations.memory()
    return {
        **dict.fromkeys(_MEMORY, 0),
        **parts,
        "other_system": max(0, used - sum(parts.values())),
        "strategy": "rss",
        "total": {"rss": used, "allocated": used, "erlang": used},
    }


async def feature_flags(ask: Ask) -> list[dict[str, Any]]:
    """What RabbitMQ's tools ask whether it is on."""
    return [
        {
            "name": name,
            "desc": text,
            "doc_url": "",
            "state": "enabled",
            "stability": "required",
            "provided_by": "qlog",
        }
        for name, text in _FLAGS.items()
    ]


async def enable_feature_flag(ask: Ask) -> Answer:
    """Everything is on already."""
    if ask.path["name"] not in _FLAGS:
        raise bad_request("unsupported")
    return Answer(204)


async def deprecated_features(ask: Ask) -> list[dict[str, Any]]:
    """What RabbitMQ will take away, and qlog keeps."""
    return [
        {
            "name": name,
            "desc": text,
            "deprecation_phase": "permitted_by_default",
            "doc_url": "",
            "provided_by": "qlog",
        }
        for name, text in _DEPRECATED.items()
    ]


async def nothing(ask: Ask) -> list[Any]:
    """There is none."""
    return []


async def extensions(ask: Ask) -> list[Any]:
    """What RabbitMQ's page loads beside itself."""
    return []


async def auth_attempts(ask: Ask) -> list[dict[str, Any]]:
    """How often somebody logged in, or tried to, by protocol."""
    _node(ask)
    succeeded, failed = ask.operations.login_counts()
    http = ask.context.attempts
    return [
        _attempts("http", http.succeeded, http.failed),
        _attempts("amqp091", succeeded - http.succeeded, failed - http.failed),
    ]


def _attempts(protocol: str, succeeded: int, failed: int) -> dict[str, Any]:
    return {
        "protocol": protocol,
        "auth_attempts": succeeded + failed,
        "auth_attempts_failed": failed,
        "auth_attempts_succeeded": succeeded,
    }


async def auth_attempts_by_source(ask: Ask) -> list[Any]:
    """RabbitMQ counts by address only if that is switched on; here it is not done."""
    _node(ask)
    return []


async def aliveness(ask: Ask) -> dict[str, Any]:
    """RabbitMQ 4 only looks for the vhost."""
    ask.vhost()
    return {"status": "ok"}


ENDPOINTS = [
    Endpoint("GET", "/nodes", list_nodes, "All nodes", tag="monitoring"),
    Endpoint("GET", _NODE, show_node, "One node", tag="monitoring"),
    Endpoint("GET", f"{_NODE}/memory", memory, "What its memory is for", tag="monitoring"),
    Endpoint("GET", f"{_NODE}/memory/relative", memory_relative, "In hundredths", tag="monitoring"),
    Endpoint("GET", "/feature-flags", feature_flags, "What is on", tag="administrator"),
    Endpoint(
        "PUT",
        "/feature-flags/{name}/enable",
        enable_feature_flag,
        "Nothing: all are on",
        tag="administrator",
        status=204,
    ),
    Endpoint(
        "GET",
        "/deprecated-features",
        deprecated_features,
        "What RabbitMQ will take away",
        tag="administrator",
    ),
    Endpoint("GET", "/deprecated-features/used", nothing, "None", tag="administrator"),
    Endpoint("GET", "/extensions", extensions, "Parts of the page"),
    Endpoint("GET", "/auth/attempts/{node}", auth_attempts, "Logins", tag="monitoring"),
    Endpoint(
        "GET",
        "/auth/attempts/{node}/source",
        auth_attempts_by_source,
        "Logins by address: not counted",
        tag="monitoring",
    ),
    Endpoint("GET", "/aliveness-test/{vhost}", aliveness, "The vhost is there"),
]
