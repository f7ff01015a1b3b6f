"""Checks for probes and monitors: each exits with 0 when all is well."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any

from qlog.tools.ctl.command import (
    NO_OBJECT,
    TIMEOUT,
    Call,
    Command,
    Document,
    Failure,
    Message,
    Option,
    Result,
    Rows,
    Status,
    check_positive,
)
from qlog.tools.ctl.commands.status import PURPOSES, alarm_lines, listener_line, listeners_of, size

CONNECT_S = 5.0
# Names under which a protocol may be asked for.
_ALIASES = {
    "amqp091": "amqp",
    "amqp0.9.1": "amqp",
    "amqps": "amqp/ssl",
    "prometheus": "http/prometheus",
}


def _status(call: Call) -> Any:
    return call.get("qlog", "status")


def check_running(call: Call) -> Message:
    """Whether clients are accepted."""
    if _status(call)["running"]:
        return Message(f"RabbitMQ on node {call.node} is fully booted and running")
    raise Failure(
        f"RabbitMQ on node {call.node} is not running or has not fully booted yet "
        "(check with is_booting)",
        Status.UNAVAILABLE,
    )


def is_running(call: Call) -> Message:
    """The same; exits with 0 either way."""
    try:
        return check_running(call)
    except Failure as failure:
        return Message(failure.text)


def is_booting(call: Call) -> Message:
    """The broker answers when it has started."""
    call.api.node()
    return Message(
        f"RabbitMQ on node {call.node} is fully booted (check with is_running), stopped or has "
        "not started booting yet"
    )


def listeners(call: Call) -> Document:
    """What is listened on."""
    found = listeners_of(_status(call))
    document = {"listeners": found, "node": call.node, "result": "ok"}
    return Document(document, "\n".join(map(listener_line, found)))


def check_port_listener(call: Call) -> Message:
    """Whether something listens on a port."""
    port = int(call.args[0])
    found = listeners_of(_status(call))
    ports = sorted({item["port"] for item in found})
    if port in ports:
        return Message(f"A listener for port {port} is running on node {call.node}.")
    raise Failure(
        f"No listener for port {port} is active on node {call.node}. "
        f"Found listeners that use the following ports: {_joined(ports)}",
        Status.UNAVAILABLE,
        plain=True,
        document={"listeners": found, "missing": port, "node": call.node, "result": "error"},
    )


def check_protocol_listener(call: Call) -> Message:
    """Whether a protocol is spoken."""
    wanted = call.args[0]
    protocols = sorted({item["protocol"] for item in listeners_of(_status(call))})
    if _ALIASES.get(wanted.lower(), wanted.lower()) in protocols:
        return Message(f"A listener for protocol {wanted} is running on node {call.node}.")
    raise Failure(
        f"No listener for protocol {wanted} is active on node {call.node}. "
        f"Found listeners for the following protocols: {_joined(protocols)}",
        Status.UNAVAILABLE,
    )


def _joined(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))


def check_port_connectivity(call: Call) -> Message:
    """Whether each listener takes a connection."""
    said: list[str] = []
    failed: list[str] = []
    ports: list[int] = []
    for item in _status(call)["listeners"]:
        host = call.options.get("address") or _local(item["host"])
        said.append(f"Will connect to {host}:{item['port']}")
        try:
            socket.create_connection((host, item["port"]), CONNECT_S).close()
            ports.append(item["port"])
        except OSError as error:
            failed.append(f"{host}:{item['port']} ({error})")
    if failed:
        raise Failure(
            f"Connection to ports of the following listeners on node {call.node} failed: "
            f"{', '.join(failed)}",
            Status.UNAVAILABLE,
        )
    said.append(
        f"Successfully connected to ports {_joined(sorted(ports))} on node {call.node} "
        "(using node hostname resolution)"
    )
    return Message("\n".join(said))


def _local(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def check_virtual_hosts(call: Call) -> Message:
    """Whether all vhosts run: they do."""
    call.api.node()
    return Message(f"Node {call.node} reported all vhosts as running")


def _check_alarms(scope: str) -> Any:
    def run(call: Call) -> Message:
        facts = _status(call)
        if not facts["alarms"]:
            return Message(f"Node {call.node} reported no {scope}")
        raise Failure(
            "\n".join((f"Node {call.node} reported the following alarms:", *alarm_lines(facts))),
            Status.UNAVAILABLE,
        )

    return run


def alarms(call: Call) -> Message:
    """The alarms that are on."""
    facts = _status(call)
    if not facts["alarms"]:
        return Message(f"Node {call.node} reported no alarms, local or clusterwide")
    return Message("\n".join((f"Node {call.node} alarms:", *alarm_lines(facts))))


def server_version(call: Call) -> Message:
    """The version of RabbitMQ that the broker stands for."""
    return Message(_status(call)["version"])


def memory_breakdown(call: Call) -> Message:
    """How much memory is used."""
    facts = _status(call)
    return Message(f"total: {size(facts['memory_used'], call.options.get('unit', 'gb'))} (100.0%)")


def log_location(call: Call) -> Message:
    """Where the log goes."""
    return Message(_status(call)["log_file"])


def check_quorum_critical(call: Call) -> Message:
    """There is one node."""
    call.api.node()
    return Message(
        f"Node {call.node} seems to be the only one in a single node cluster, "
        "the check does not apply"
    )


def check_certificates(call: Call) -> Result:
    """Whether a certificate expires soon."""
    within, unit = str(call.options.get("within", 4)), call.options.get("unit", "weeks")
    document = call.get("health", "checks", "certificate-expiration", within, unit)
    if document["status"] == "ok":
        return Message(f"No certificates are expiring within {within} {unit}.")
    raise Failure(str(document), Status.UNAVAILABLE)


def check_deprecated(call: Call) -> Message:
    """Whether something is used that will go."""
    if not call.get("deprecated-features", "used"):
        return Message("Cluster reported no deprecated features in use")
    raise Failure("Cluster reported deprecated features in use", Status.UNAVAILABLE)


def quorum_status(call: Call) -> Rows:
    """A quorum queue is kept on the one log: its one member leads."""
    queue = call.get("queues", call.vhost, call.args[0], missing=NO_OBJECT)
    if queue.get("type") != "quorum":
        raise Failure("Cannot get quorum status of a classic queue", Status.UNAVAILABLE)
    row = {"Node Name": call.node, "Raft State": "leader", "Membership": "voter"}
    return Rows(tuple(row), (row,))


_M = "Monitoring, observability and health checks"
_D = ("diagnostics",)


def _check(name: str, about: str, run: Any, banner: str, **more: Any) -> Command:
    usage = more.pop("usage", TIMEOUT)
    return Command(name, _M, about, run, usage=usage, banner=banner, tools=_D, **more)


_ASKING = "Asking node {node} "

COMMANDS = (
    _check(
        "check_running",
        "Exits with 69 unless clients are accepted",
        check_running,
        "Checking if RabbitMQ is running on node {node} ...",
    ),
    _check(
        "is_running",
        "Says whether clients are accepted",
        is_running,
        _ASKING + "for its status ...",
    ),
    _check(
        "is_booting",
        "Says whether the broker is starting",
        is_booting,
        _ASKING + "for its boot status ...",
    ),
    _check(
        "listeners",
        "Lists what is listened on",
        listeners,
        _ASKING + "to report its protocol listeners ...",
    ),
    _check(
        "check_port_listener",
        "Exits with 69 unless something listens on the port",
        check_port_listener,
        _ASKING + "if there's an active listener on port {0} ...",
        usage=f"<port> {TIMEOUT}",
        args=(1, 1),
        check=check_positive,
        examples=("check_port_listener 5672",),
    ),
    _check(
        "check_protocol_listener",
        "Exits with 69 unless the protocol is spoken",
        check_protocol_listener,
        _ASKING + "if there's an active listener for protocol {0} ...",
        usage=f"<protocol> {TIMEOUT}",
        args=(1, 1),
        arguments={"<protocol>": ", ".join(PURPOSES)},
        examples=("check_protocol_listener amqp",),
    ),
    _check(
        "check_port_connectivity",
        "Exits with 69 unless each listener takes a connection",
        check_port_connectivity,
        "Testing TCP connections to all active listeners on node {node} "
        "using hostname resolution ...",
        usage=f"[--address <target address>] {TIMEOUT}",
        options=(Option("address", about="connect to this host"),),
    ),
    _check(
        "check_virtual_hosts",
        "Exits with 69 unless all virtual hosts run",
        check_virtual_hosts,
        "Checking if all vhosts are running on node {node} ...",
    ),
    _check(
        "check_alarms",
        "Exits with 69 while publishers are blocked",
        _check_alarms("alarms, local or clusterwide"),
        _ASKING + "to report any local resource alarms ...",
    ),
    _check(
        "check_local_alarms",
        "Exits with 69 while publishers are blocked",
        _check_alarms("local alarms"),
        _ASKING + "to report any local resource alarms ...",
    ),
    _check(
        "alarms",
        "Lists the alarms that are on",
        alarms,
        _ASKING + "to report any known resource alarms ...",
    ),
    _check(
        "server_version",
        "Shows the version of RabbitMQ that the broker stands for",
        server_version,
        _ASKING + "for its RabbitMQ version...",
    ),
    _check(
        "memory_breakdown",
        "Shows how much memory is used",
        memory_breakdown,
        "Reporting memory breakdown on node {node}...",
        usage=f"[--unit <unit>] {TIMEOUT}",
        options=(Option("unit", about="bytes, mb, mib, gb or gib"),),
    ),
    _check(
        "log_location",
        "Says where the log goes",
        log_location,
        "Log file location(s) on node {node} ...",
        usage=f"[--all|-a] {TIMEOUT}",
        options=(Option("all", bool, ("-a",)),),
    ),
    _check(
        "check_certificate_expiration",
        "Exits with 69 if a certificate expires soon",
        check_certificates,
        "Checking certificate expiration on node {node} ...",
        usage="[--within <period>] [--unit <unit>]",
        options=(
            Option("within", int, about="how soon (default: 4)"),
            Option("unit", about="days, weeks (the default), months or years"),
        ),
    ),
    _check(
        "check_if_any_deprecated_features_are_used",
        "Exits with 69 if something is used that will go",
        check_deprecated,
        "Checking if any deprecated features are used ...",
    ),
    Command(
        "check_if_node_is_quorum_critical",
        _M,
        "Says that there is one node",
        check_quorum_critical,
        usage=TIMEOUT,
        banner="Checking if node {node} is critical for quorum of any queues/streams ...",
        tools=("diagnostics", "queues"),
    ),
    Command(
        "quorum_status",
        _M,
        "Shows the one member of a quorum queue",
        quorum_status,
        usage="[--vhost <vhost>] <queue>",
        args=(1, 1),
        banner="Status of quorum queue {0} on node {node} ...",
        tools=("diagnostics", "queues"),
        formatter="pretty_table",
    ),
)
