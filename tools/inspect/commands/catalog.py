"""`qlog inspect catalog`: what is defined, by the ledger. No secrets are shown.

What of the catalog's file is damaged is named too: it is a checkpoint of the definitions.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from qlog.tools.inspect.command import command
from qlog.tools.inspect.look.decode import brief, json_value
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.rows import Report, counted, name, number, text


class Kind(StrEnum):
    """What can be defined."""

    VHOSTS = "vhosts"
    USERS = "users"
    EXCHANGES = "exchanges"
    QUEUES = "queues"
    BINDINGS = "bindings"


_VHOST = name("vhost")
_FLAGS = name(
    "flags",
    lambda row: ", ".join(key for key in ("auto_delete", "internal") if row.get(key)) or None,
)
_ARGUMENTS = name(
    "arguments",
    lambda row: [f"{key}={brief(value)}" for key, value in row["arguments"].items()] or None,
)
_COLUMNS = {
    Kind.VHOSTS: (_VHOST,),
    Kind.USERS: (
        name("user"),
        name("tags", lambda row: ", ".join(row["tags"]) or None),
        name(
            "permissions",
            lambda row: (
                [f"{key}: {', '.join(rights)}" for key, rights in row["permissions"].items()]
                or None
            ),
        ),
    ),
    Kind.EXCHANGES: (_VHOST, name("exchange"), text("type"), _FLAGS, _ARGUMENTS),
    Kind.QUEUES: (_VHOST, name("queue"), number("lane"), _FLAGS, _ARGUMENTS),
    Kind.BINDINGS: (
        _VHOST,
        name("source", lambda row: row["source"] or "(default)"),
        name("destination", lambda row: f"{row['destination_kind']} {row['destination']}"),
        name("routing key", "routing_key"),
        _ARGUMENTS,
    ),
}


@command
def catalog(
    directory: Directory,
    report: Report,
    kind: Annotated[
        Kind | None, typer.Argument(help="Only these. [default: all]", show_default=False)
    ] = None,
    vhost: Annotated[str | None, typer.Option(help="Of this vhost only. [default: all]")] = None,
) -> None:
    """Show what is defined.

    Vhosts, users, exchanges, queues and bindings. Durable ones only: the others are in the
    broker's memory. Every queue is bound to the default exchange by its name; these bindings are
    not written down.
    """
    found = definitions_of(directory)
    identity = directory.known_identity
    report.content = {
        "identity": None
        if identity is None
        else {
            "uuid": identity.uuid.hex(),
            "epoch": identity.epoch,
            "format": identity.version,
            "lane_ids_reserved": identity.lane_ids_reserved,
        },
        "damaged": [{"kind": kind, "name": key} for kind, key in directory.catalog_facts.damaged],
    }
    if identity is not None and kind is None:
        epoch = f"{identity.epoch} (starts so far)"
        report.facts(
            [("uuid", identity.uuid.hex()), ("epoch", epoch), ("format", str(identity.version))]
        )
    counts = []
    for item in Kind if kind is None else (kind,):
        rows = found[item.value]
        if vhost is not None:
            rows = [row for row in rows if vhost in (row.get("vhost"), *row.get("permissions", ()))]
        counts.append(counted(len(rows), item.value[:-1]))
        report.table(_COLUMNS[item], rows, title="" if kind else item.value, key=item.value)
    report.say(", ".join(counts))


def definitions_of(directory: Directory) -> dict[str, list[dict[str, Any]]]:
    """All that decode, by kind, for JSON."""
    defined = directory.defined
    return {
        "vhosts": [{"vhost": vhost} for vhost in defined.vhosts],
        "users": [
            {
                "user": user.name,
                "tags": list(user.tags),
                "permissions": {key: list(item) for key, item in user.permissions.items()},
            }
            for user in defined.users
        ],
        "exchanges": [
            {
                "vhost": vhost,
                "exchange": exchange.name,
                "type": exchange.type,
                "auto_delete": exchange.auto_delete,
                "internal": exchange.internal,
                "arguments": json_value(exchange.arguments),
            }
            for vhost, exchange in defined.exchanges
        ],
        "queues": [
            {
                "vhost": queue.vhost,
                "queue": queue.name,
                "lane": queue.lane_id,
                "auto_delete": queue.auto_delete,
                "arguments": json_value(queue.arguments),
            }
            for queue in defined.queues
        ],
        "bindings": [
            {
                "vhost": vhost,
                "source": binding.source,
                "destination_kind": binding.kind,
                "destination": binding.destination,
                "routing_key": binding.routing_key,
                "arguments": json_value(binding.arguments),
            }
            for vhost, binding in defined.bindings
        ],
    }
