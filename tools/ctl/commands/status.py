"""The long texts of `status` and `cluster_status`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Facts = Mapping[str, Any]
PURPOSES = {
    "amqp": "AMQP 0-9-1",
    "amqp/ssl": "AMQP 0-9-1 over TLS",
    "http": "HTTP API",
    "https": "HTTP API over TLS (HTTPS)",
    "http/prometheus": "Prometheus exporter API over HTTP",
}
_UNITS = {"bytes": 1, "mb": 10**6, "mib": 2**20, "gb": 10**9, "gib": 2**30}


def listeners_of(facts: Facts) -> list[dict[str, Any]]:
    """The listeners, with what they are for."""
    return [
        {
            "node": facts["node"],
            "port": item["port"],
            "protocol": item["protocol"],
            "interface": f"[{item['host']}]" if ":" in item["host"] else item["host"],
            "purpose": PURPOSES.get(item["protocol"], item["protocol"]),
        }
        for item in facts["listeners"]
    ]


def listener_line(listener: Mapping[str, Any]) -> str:
    """A listener, for people."""
    return "Interface: {interface}, port: {port}, protocol: {protocol}, purpose: {purpose}".format(
        **listener
    )


def alarm_lines(facts: Facts) -> list[str]:
    """The alarms, for people."""
    node = facts["node"]
    texts = {"memory": "Memory alarm on node", "disk": "Free disk space alarm on node"}
    return [f"{texts.get(name, f'{name} alarm on node')} {node}" for name in facts["alarms"]]


def status_document(facts: Facts) -> dict[str, Any]:
    """What `status` says in JSON: RabbitMQ's keys, without those of Erlang's runtime."""
    memory = facts["memory_used"]
    total = {"erlang": memory, "rss": memory, "allocated": memory}
    return {
        "memory": {"total": total, "strategy": "rss"},
        "pid": facts["pid"],
        "os": facts["os"],
        "alarms": [f"{name} alarm on node {facts['node']}" for name in facts["alarms"]],
        "tags": [],
        "listeners": listeners_of(facts),
        "product_name": facts["product"],
        "product_version": facts["qlog_version"],
        "rabbitmq_version": facts["version"],
        "uptime": facts["uptime_s"],
        "is_under_maintenance": not facts["running"],
        "active_plugins": facts["plugins"],
        "data_directory": facts["data_dir"],
        "config_files": [],
        "log_files": [facts["log_file"]],
        "vm_memory_calculation_strategy": "rss",
        "vm_memory_high_watermark_setting": {"absolute": facts["memory_limit"]},
        "vm_memory_high_watermark_limit": facts["memory_limit"],
        "file_descriptors": {
            "total_used": facts["descriptors_used"],
            "total_limit": facts["descriptors_max"],
            "sockets_limit": facts["descriptors_max"],
            "sockets_used": facts["connections"],
        },
        "disk_free_limit": facts["disk_free_limit"],
        "disk_free": facts["disk_free"],
        "totals": {
            "virtual_host_count": facts["vhosts"],
            "connection_count": facts["connections"],
            "queue_count": facts["queues"],
        },
    }


def status_text(facts: Facts, unit: str) -> str:
    """What `status` says for people."""
    return "\n".join(_status_lines(facts, unit)).strip("\n")


def _status_lines(facts: Facts, unit: str) -> Iterator[str]:
    yield from _section(
        "Runtime",
        (
            f"OS PID: {facts['pid']}",
            f"OS: {facts['os']}",
            f"Uptime (seconds): {facts['uptime_s']}",
            f"Is under maintenance?: {'false' if facts['running'] else 'true'}",
            f"RabbitMQ version: {facts['version']}",
            f"qlog version: {facts['qlog_version']}",
            f"Node name: {facts['node']}",
        ),
    )
    plugins = [f" * {name}" for name in facts["plugins"]]
    yield from _section("Plugins", ("Enabled plugins:", "", *plugins))
    yield from _section("Data directory", (f"Node data directory: {facts['data_dir']}",))
    yield from _section("Log file(s)", (f" * {facts['log_file']}",))
    yield from _section("Alarms", alarm_lines(facts) or ("(none)",))
    yield from _section("Tags", ("(none)",))
    yield from _section(
        "Memory",
        (
            f"Total memory used: {size(facts['memory_used'], unit)}",
            "Calculation strategy: rss",
            f"Memory high watermark: {size(facts['memory_limit'], unit)}",
        ),
    )
    used, limit = facts["descriptors_used"], facts["descriptors_max"]
    yield from _section("File Descriptors", (f"Total: {used}, limit: {limit}",))
    yield from _section(
        "Free Disk Space",
        (
            f"Low free disk space watermark: {size(facts['disk_free_limit'], unit)}",
            f"Free disk space: {size(facts['disk_free'], unit)}",
        ),
    )
    yield from _section(
        "Totals",
        (
            f"Connection count: {facts['connections']}",
            f"Queue count: {facts['queues']}",
            f"Virtual host count: {facts['vhosts']}",
        ),
    )
    yield from _section("Listeners", map(listener_line, listeners_of(facts)))


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield from (title, "", *lines, "")


def size(octets: int, unit: str) -> str:
    """A size, for people: in `bytes`, `mb`, `mib`, `gb` or `gib`."""
    if unit == "bytes":
        return f"{octets} bytes"
    return f"{round(octets / _UNITS.get(unit, 10**9), 4)} {unit}"


def cluster_text(facts: Facts, flags: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], str]:
    """What `cluster_status` says, in JSON and for people."""
    node, listed = facts["node"], listeners_of(facts)
    every = list(flags)
    document = {
        "alarms": alarm_lines(facts),
        "cluster_tags": [],
        "listeners": {node: listed},
        "cpu_cores": {node: facts["processors"]},
        "cluster_name": facts["cluster_name"],
        "disk_nodes": [node],
        "ram_nodes": [],
        "running_nodes": [node] if facts["running"] else [],
        "versions": {
            node: {"rabbitmq_name": facts["product"], "rabbitmq_version": facts["version"]}
        },
        "partitions": {},
        "maintenance_status": {node: "not under maintenance"},
        "feature_flags": every,
    }
    lines = [
        *_section(
            "Basics",
            (
                f"Cluster name: {facts['cluster_name']}",
                f"Total CPU cores available cluster-wide: {facts['processors']}",
            ),
        ),
        *_section("Cluster Tags", ("(none)",)),
        *_section("Disk Nodes", (node,)),
        *_section("Running Nodes", document["running_nodes"] or ("(none)",)),
        *_section("Versions", (f"{node}: {facts['product']} {facts['version']}",)),
        *_section("CPU Cores", (f"Node: {node}, available CPU cores: {facts['processors']}",)),
        *_section("Maintenance status", (f"Node: {node}, status: not under maintenance",)),
        *_section("Alarms", alarm_lines(facts) or ("(none)",)),
        *_section("Network Partitions", ("(none)",)),
        *_section(
            "Listeners",
            (f"Node: {node}, i{listener_line(item)[1:]}" for item in listed),
        ),
        *_section(
            "Feature flags", (f"Flag: {flag['name']}, state: {flag['state']}" for flag in every)
        ),
    ]
    return document, "\n".join(lines).strip("\n")
