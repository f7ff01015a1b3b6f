"""`qlog inspect catalog`: what is defined, by the ledger. No secrets are shown.

What of the catalog's file is damaged is named too: it is a checkpoint of the definitions.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

import typer

from qlog.tools.inspect.command import command
from qlog.tools.inspect.look.decode import brief, json_value
from qlog.tools.inspect.look.definitions import Defined
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.rows import Report, counted, name, number, text


class Kind(StrEnum):
    VHOSTS = "vhosts"
    USERS = "users"
    EXCHANGES = "exchanges"
    QUEUES = "queues"
    BINDINGS = "bindings"


# What JSON has of a definition: `key=attribute`, or one name for both.
_FIELDS = {
    Kind.USERS: "user=name tags permissions",
    Kind.EXCHANGES: "exchange=name type auto_delete internal arguments",
    Kind.QUEUES: "vhost queue=name lane=lane_id auto_delete arguments",
    Kind.BINDINGS: "source destination_kind=kind destination routing_key arguments",
}
_VHOST = name("vhost")
_FLAGS = name(
    "flags",
    lambda row: ", ".join(key for key in ("auto_delete", "internal") if row.get(key)) or None,
)
_ARGUMENTS = name(
    "arguments",
    lambda row: [f"{key}={brief(value)}" for key, value in row["arguments"].items()] or None,
)
_PERMISSIONS = name(
    "permissions",
    lambda row: [f"{key}: {', '.join(item)}" for key, item in row["permissions"].items()] or None,
)
_COLUMNS = {
    Kind.VHOSTS: (_VHOST,),
    Kind.USERS: (
        name("user"),
        name("tags", lambda row: ", ".join(row["tags"]) or None),
        _PERMISSIONS,
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
    identity = directory.known_identity
    who = None
    if identity is not None:
        who = {
            "uuid": identity.uuid.hex(),
            "epoch": identity.epoch,
            "format": identity.version,
            "lane_ids_reserved": identity.lane_ids_reserved,
        }
        if kind is None:
            shown = {"epoch": f"{identity.epoch} (starts so far)", "format": str(identity.version)}
            report.facts([("uuid", identity.uuid.hex()), *shown.items()])
    damaged = [{"kind": kind, "name": key} for kind, key in directory.catalog_facts.damaged]
    report.content = {"identity": who, "damaged": damaged}
    counts = []
    for item in Kind if kind is None else (kind,):
        rows = list(_rows(directory.defined, item))
        if vhost is not None:
            rows = [row for row in rows if vhost in (row.get("vhost"), *row.get("permissions", ()))]
        counts.append(counted(len(rows), item.value[:-1]))
        report.table(_COLUMNS[item], rows, title="" if kind else item.value, key=item.value)
    report.say(", ".join(counts))


def _rows(defined: Defined, kind: Kind) -> Iterator[dict[str, Any]]:
    """All of a kind that decode, for JSON."""
    if kind is Kind.VHOSTS:
        yield from ({"vhost": vhost} for vhost in defined.vhosts)
        return
    for item in getattr(defined, kind):
        vhost, one = item if isinstance(item, tuple) else (None, item)
        row = {} if vhost is None else {"vhost": vhost}
        for field in _FIELDS[kind].split():
            key, _, attribute = field.partition("=")
            row[key] = json_value(getattr(one, attribute or key))
        yield row
