"""Queues, exchanges, bindings, connections, channels and consumers: listed, purged, closed.

The API tells no process ids. What scripts take from `list_connections pid` they give to
`close_connection`: so a pid here is made of the connection's name, and looks like an Erlang one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from qlog.tools.ctl.api import ApiError
from qlog.tools.ctl.command import (
    NO_OBJECT,
    Call,
    Command,
    Failure,
    Message,
    Option,
    Rows,
    Run,
    Status,
    no_such_user,
    wanted_columns,
)
from qlog.tools.ctl.values import Address, Arguments, Atom, Definition, Numbers, inspected

Item = Mapping[str, Any]
View = Callable[[Item], Any]

_PROTOCOL = Numbers((0, 9, 1))


def pid_of(node: str, name: str) -> str:
    """What stands for the process of a connection or a channel with that name."""
    digest = hashlib.sha256(name.encode()).digest()
    first, second = int.from_bytes(digest[:4]) >> 1, int.from_bytes(digest[4:8]) >> 1
    return f"<{node}.{first}.{second}.0>"


def _same(name: str, default: Any = "") -> View:
    return lambda item: item.get(name, default)


def _table(name: str) -> View:
    return lambda item: Arguments(item.get(name) or {})


def _details(name: str, inner: str) -> View:
    return lambda item: item.get(name, {}).get(inner, "")


def _nodes(name: str) -> View:
    return lambda item: [Atom(node) for node in item.get(name) or [item.get("node", "")]]


def _listing(
    path: str, views: Mapping[str, View], defaults: Sequence[str], *, in_vhost: bool = True
) -> Run:
    """A listing; of a vhost that is not there it is empty, as RabbitMQ's is."""

    def run(call: Call) -> Rows:
        columns = wanted_columns(call, defaults)
        where = (path, call.vhost) if in_vhost else (path,)
        try:
            items = call.get(*where, missing=NO_OBJECT)
        except Failure as failure:
            if failure is not NO_OBJECT:
                raise
            items = []
        return Rows(columns, _rows(items, columns, views))

    return run


def _rows(items: Any, columns: Sequence[str], views: Mapping[str, View]) -> Iterator[Item]:
    for item in items:
        yield {column: views[column](item) for column in columns}


# -- queues ------------------------------------------------------------------------------------


def _is_exclusive(item: Item) -> Any:
    return "" if item.get("type") == "quorum" else bool(item.get("exclusive", False))


def _owner(item: Item) -> Any:
    owner = item.get("owner_pid_details")
    return pid_of(item["node"], owner["name"]) if isinstance(owner, dict) and owner else ""


def _zero_unless_quorum(name: str) -> View:
    return lambda item: item.get(name, "" if item.get("type") == "quorum" else 0)


def _count(name: str) -> View:
    return lambda item: item.get(name, 0)


def _online(item: Item) -> Any:
    return [Atom(node) for node in item["online"]] if item.get("online") else ""


QUEUES: dict[str, View] = {
    "arguments": _table("arguments"),
    "auto_delete": _same("auto_delete"),
    "consumer_capacity": _zero_unless_quorum("consumer_capacity"),
    "consumer_utilisation": _zero_unless_quorum("consumer_utilisation"),
    "consumers": _count("consumers"),
    "disk_reads": _zero_unless_quorum("disk_reads"),
    "disk_writes": _zero_unless_quorum("disk_writes"),
    "durable": _same("durable"),
    "effective_policy_definition": lambda item: Definition(
        item.get("effective_policy_definition") or {}
    ),
    "exclusive": _is_exclusive,
    "exclusive_consumer_pid": lambda item: "",
    "exclusive_consumer_tag": lambda item: item.get("exclusive_consumer_tag") or "",
    "head_message_timestamp": lambda item: item.get("head_message_timestamp") or "",
    "leader": lambda item: item.get("leader") or item.get("node", ""),
    "members": _nodes("members"),
    "memory": _count("memory"),
    "message_bytes": _zero_unless_quorum("message_bytes"),
    "message_bytes_persistent": _zero_unless_quorum("message_bytes_persistent"),
    "message_bytes_ram": _count("message_bytes_ram"),
    "message_bytes_ready": _zero_unless_quorum("message_bytes_ready"),
    "message_bytes_unacknowledged": _zero_unless_quorum("message_bytes_unacknowledged"),
    "messages": _count("messages"),
    "messages_persistent": _zero_unless_quorum("messages_persistent"),
    "messages_ram": _count("messages_ram"),
    "messages_ready": _count("messages_ready"),
    "messages_ready_ram": _zero_unless_quorum("messages_ready_ram"),
    "messages_unacknowledged": _count("messages_unacknowledged"),
    "messages_unacknowledged_ram": _zero_unless_quorum("messages_unacknowledged_ram"),
    "name": _same("name"),
    "online": _online,
    "operator_policy": lambda item: item.get("operator_policy") or "",
    "owner_pid": _owner,
    "pid": lambda item: pid_of(item.get("node", ""), f"{item['vhost']} {item['name']}"),
    "policy": lambda item: item.get("policy") or "",
    "state": lambda item: Atom(item.get("state", "running")),
    "type": _same("type"),
}


def list_queues(call: Call) -> Rows:
    """The queues of a vhost."""
    if call.options.get("offline"):
        return Rows(wanted_columns(call, ("name", "messages")), ())
    return _listing("queues", QUEUES, ("name", "messages"))(call)  # type: ignore[return-value]


def _queues_banner(call: Call) -> str:
    timeout = call.options.get("timeout")
    waits = "60.0" if timeout is None else f"{float(timeout)}"
    return f"Timeout: {waits} seconds ...\nListing queues for vhost {call.vhost} ..."


def list_unresponsive_queues(call: Call) -> Rows:
    """None: all queues are answered for by one loop."""
    call.api.node()
    return Rows(wanted_columns(call, ("name",)), ())


def purge_queue(call: Call) -> None:
    """All that is ready goes."""
    call.ask("DELETE", "queues", call.vhost, call.args[0], "contents", missing=NO_OBJECT)


def delete_queue(call: Call) -> Message:
    """Delete a queue with its messages."""
    missing = Failure("Queue not found", Status.USAGE)
    path = ("queues", call.vhost, call.args[0])
    ready = call.get(*path, missing=missing).get("messages_ready", 0)
    query = {
        name: "true"
        for name, option in (("if-unused", "if_unused"), ("if-empty", "if_empty"))
        if call.options.get(option)
    }
    try:
        call.api.ask("DELETE", path, query=query)
    except ApiError as error:
        if error.status == 404:
            raise missing from None
        if error.status != 400:
            raise call.refused(error) from None
        kind = "not_implemented" if "not supported" in error.reason else "precondition_failed"
        raise Failure(
            f"{{:amqp_error, :{kind}, ~c{inspected(error.reason)}, :none}}", Status.UNAVAILABLE
        ) from None
    return Message(f"Queue was successfully deleted with {ready} ready messages")


def _delete_banner(call: Call) -> str:
    conditions = [
        text
        for option, text in (("if_empty", "queue is empty"), ("if_unused", "queue is unused"))
        if call.options.get(option)
    ]
    when = f" if {' and if '.join(conditions)}" if conditions else ""
    return f"Deleting queue '{call.args[0]}' on vhost '{call.vhost}'{when} ..."


# -- exchanges, bindings, consumers --------------------------------------------------------------

EXCHANGES: dict[str, View] = {
    "arguments": _table("arguments"),
    "auto_delete": _same("auto_delete"),
    "durable": _same("durable"),
    "internal": _same("internal"),
    "name": _same("name"),
    "policy": lambda item: item.get("policy") or "",
    "type": _same("type"),
}
BINDINGS: dict[str, View] = {
    "source_name": _same("source"),
    "source_kind": lambda item: Atom("exchange"),
    "destination_name": _same("destination"),
    "destination_kind": lambda item: Atom(item["destination_type"]),
    "routing_key": _same("routing_key"),
    "arguments": _table("arguments"),
}
CONSUMERS: dict[str, View] = {
    "queue_name": _details("queue", "name"),
    "channel_pid": lambda item: pid_of(
        item["channel_details"].get("node", ""), item["channel_details"].get("name", "")
    ),
    "consumer_tag": _same("consumer_tag"),
    "ack_required": _same("ack_required"),
    "prefetch_count": _same("prefetch_count"),
    "active": _same("active"),
    "activity_status": lambda item: Atom(item.get("activity_status", "up")),
    "arguments": _table("arguments"),
}

# -- connections and channels ----------------------------------------------------------------------

_TLS = ("ssl_protocol", "ssl_key_exchange", "ssl_cipher", "ssl_hash")
_CERTIFICATE = ("peer_cert_issuer", "peer_cert_subject", "peer_cert_validity")


def _or_empty(name: str) -> View:
    return lambda item: item.get(name) or ""


CONNECTIONS: dict[str, View] = {
    "pid": lambda item: pid_of(item.get("node", ""), item["name"]),
    "name": _same("name"),
    "port": _same("port"),
    "host": lambda item: Address(item.get("host", "")),
    "peer_port": _same("peer_port"),
    "peer_host": lambda item: Address(item.get("peer_host", "")),
    "ssl": _same("ssl", False),
    **{name: _or_empty(name) for name in (*_TLS, *_CERTIFICATE)},
    "state": lambda item: Atom(item.get("state", "running")),
    "channels": _count("channels"),
    "protocol": lambda item: _PROTOCOL,
    "auth_mechanism": _same("auth_mechanism"),
    "user": _same("user"),
    "vhost": _same("vhost"),
    "timeout": _same("timeout"),
    "frame_max": _same("frame_max"),
    "channel_max": _same("channel_max"),
    "client_properties": _table("client_properties"),
    **{
        name: _count(name) for name in ("recv_oct", "recv_cnt", "send_oct", "send_cnt", "send_pend")
    },
    "connected_at": _same("connected_at"),
}
CHANNELS: dict[str, View] = {
    "pid": lambda item: pid_of(item.get("node", ""), item["name"]),
    "connection": lambda item: pid_of(item.get("node", ""), item["connection_details"]["name"]),
    **{
        name: _same(name)
        for name in ("name", "number", "user", "vhost", "transactional", "confirm")
    },
    **{
        name: _count(name)
        for name in (
            "consumer_count",
            "messages_unacknowledged",
            "messages_uncommitted",
            "acks_uncommitted",
            "messages_unconfirmed",
            "prefetch_count",
        )
    },
}


def _close(call: Call, name: str, reason: str) -> bool:
    """Close a connection; False: it had gone."""
    try:
        call.api.ask("DELETE", ("connections", name), headers={"x-reason": _header(reason)})
    except ApiError as error:
        if error.status != 404:
            raise call.refused(error) from None
        return False
    return True


def _header(text: str) -> str:
    """A text that a header can hold."""
    line = " ".join(text.split())
    return line.encode("utf-8").decode("latin-1")


def close_connection(call: Call) -> None:
    """Close the connection with that pid, or with that name."""
    wanted, reason = call.args
    is_pid = wanted.startswith("<") and wanted.endswith(">")
    if not is_pid and "->" not in wanted:
        raise Failure(f"Error:\n{{:invalid_pid_syntax, {inspected(wanted)}}}", Status.UNAVAILABLE)
    for item in call.get("connections", columns="name,node"):
        if wanted == item["name"] or wanted == pid_of(item["node"], item["name"]):
            _close(call, item["name"], reason)


def close_all_connections(call: Call) -> Message:
    """Close the connections of a vhost, or all of them, some at a time if so asked."""
    found = call.get("connections", columns="name,vhost")
    names = [
        item["name"] for item in found if call.options.get("global") or item["vhost"] == call.vhost
    ]
    limit = call.options.get("limit", 0)
    delay_ms = call.options.get("per_connection_delay", 0)
    closed = 0
    for name in names[: limit or None]:
        closed += _close(call, name, call.args[0])
        if delay_ms:
            time.sleep(delay_ms / 1000)
    return Message(f"Closed {closed} connections")


def _close_all_banner(call: Call) -> str:
    reason = call.args[0]
    if call.options.get("global"):
        return f"Closing all connections to node {call.node}, reason: {reason}..."
    return f"Closing all connections in vhost {call.vhost}, reason: {reason}..."


def close_all_user_connections(call: Call) -> None:
    """Close the connections of a user."""
    name, reason = call.args
    path = ("connections", "username", name)
    call.ask("DELETE", *path, headers={"x-reason": _header(reason)}, missing=no_such_user(name))


_M = "Monitoring, observability and health checks"
_O = "Operations"
_BOTH = ("ctl", "diagnostics")
_USAGE = "[--no-table-headers] [<column> ...] [--timeout <timeout>]"


def _list_command(
    name: str,
    about: str,
    path: str,
    views: Mapping[str, View],
    defaults: Sequence[str],
    banner: str,
    *,
    in_vhost: bool = True,
    usage: str = _USAGE,
    examples: tuple[str, ...] = (),
) -> Command:
    return Command(
        name,
        _M,
        about,
        _listing(path, views, defaults, in_vhost=in_vhost),
        usage=f"[--vhost <vhost>] {usage}" if in_vhost else usage,
        args=(0, None),
        banner=banner,
        columns=tuple(sorted(views)),
        tools=_BOTH,
        examples=examples,
    )


COMMANDS = (
    Command(
        "list_queues",
        _M,
        "Lists queues",
        list_queues,
        usage="[--vhost <vhost>] [--online] [--offline] [--local] [--no-table-headers] "
        "[<column>, ...] [--timeout <timeout>]",
        args=(0, None),
        banner=_queues_banner,
        options=(Option("local", bool),),
        columns=tuple(sorted(QUEUES)),
        tools=_BOTH,
        examples=(
            "list_queues -p / name messages_ready messages_unacknowledged consumers",
            "list_queues name messages --formatter json",
        ),
    ),
    _list_command(
        "list_exchanges",
        "Lists exchanges",
        "exchanges",
        EXCHANGES,
        ("name", "type"),
        "Listing exchanges for vhost {vhost} ...",
        examples=("list_exchanges name type durable policy",),
    ),
    _list_command(
        "list_bindings",
        "Lists bindings",
        "bindings",
        BINDINGS,
        tuple(BINDINGS),
        "Listing bindings for vhost {vhost}...",
        examples=("list_bindings source_name routing_key destination_name",),
    ),
    _list_command(
        "list_consumers",
        "Lists consumers",
        "consumers",
        CONSUMERS,
        tuple(name for name in CONSUMERS if name != "activity_status"),
        "Listing consumers in vhost {vhost} ...",
        examples=("list_consumers queue_name consumer_tag prefetch_count",),
    ),
    _list_command(
        "list_connections",
        "Lists connections",
        "connections",
        CONNECTIONS,
        ("user", "peer_host", "peer_port", "state"),
        "Listing connections ...",
        in_vhost=False,
        examples=("list_connections -q pid name user client_properties",),
    ),
    _list_command(
        "list_channels",
        "Lists channels",
        "channels",
        CHANNELS,
        ("pid", "user", "consumer_count", "messages_unacknowledged"),
        "Listing channels ...",
        in_vhost=False,
        usage="[--no-table-headers] [<column> ...]",
        examples=("list_channels name user messages_unacknowledged",),
    ),
    Command(
        "list_unresponsive_queues",
        _M,
        "Lists queues that do not answer: there are none",
        list_unresponsive_queues,
        usage="[--local] [--queue-timeout <milliseconds>] [<column> ...] [--no-table-headers] "
        "[--timeout <timeout>]",
        args=(0, None),
        banner="Listing unresponsive queues for vhost {vhost} ...",
        options=(Option("local", bool), Option("queue_timeout", int)),
        columns=("arguments", "auto_delete", "durable", "name", "pid"),
        tools=_BOTH,
    ),
    Command(
        "purge_queue",
        "Queues",
        "Removes all messages that are ready in a queue",
        purge_queue,
        usage="<queue> [--timeout <timeout>]",
        args=(1, 1),
        banner="Purging queue '{0}' in vhost '{vhost}' ...",
        examples=("purge_queue -p / orders",),
    ),
    Command(
        "delete_queue",
        "Queues",
        "Deletes a queue with its messages",
        delete_queue,
        usage="[--vhost <vhost>] <queue_name> [--if-empty|-e] [--if-unused|-u] "
        "[--timeout <timeout>]",
        args=(1, 1),
        banner=_delete_banner,
        options=(
            Option("if_empty", bool, ("-e",), "only if no message is ready"),
            Option("if_unused", bool, ("-u",), "only if it has no consumer"),
        ),
        examples=("delete_queue -p / orders --if-empty",),
    ),
    Command(
        "close_connection",
        _O,
        "Closes a connection",
        close_connection,
        usage="<connection pid> <explanation>",
        args=(2, 2),
        banner="Closing connection {0}, reason: {1}...",
        arguments={
            "<connection pid>": "from list_connections: its pid, or its name",
            "<explanation>": "what the client is told",
        },
        examples=("close_connection '127.0.0.1:40312 -> 127.0.0.1:5672' 'maintenance'",),
    ),
    Command(
        "close_all_connections",
        _O,
        "Closes the connections to a virtual host, or all of them",
        close_all_connections,
        usage="[--vhost <vhost> --limit <limit>] [-n <node> --global] "
        "[--per-connection-delay <delay>] <explanation>",
        args=(1, 1),
        banner=_close_all_banner,
        options=(
            Option("global", bool, about="those to all virtual hosts"),
            Option("limit", int, about="so many at most"),
            Option("per_connection_delay", int, about="milliseconds between two"),
        ),
        examples=("close_all_connections -p orders 'maintenance'",),
    ),
    Command(
        "close_all_user_connections",
        _O,
        "Closes the connections of a user",
        close_all_user_connections,
        usage="<username> <explanation>",
        args=(2, 2),
        banner="Closing connections of user {0}, reason: {1}...",
        examples=("close_all_user_connections alice 'maintenance'",),
    ),
)
