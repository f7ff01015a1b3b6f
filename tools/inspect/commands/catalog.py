"""`qlog inspect catalog`: what is defined, by the ledger. No secrets are shown.

What of the catalog's file is damaged is named too: it is a checkpoint of the definitions.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

import typer

from qlog.tools.inspect.command import command
from qlog.tools.inspect.look.decode import brief, json_value
from qlog.tools.inspect.look.definitions import Defined, counted_kind
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.rows import Report, name, number, picked, text


class Kind(StrEnum):
    VHOSTS = "vhosts"
    USERS = "users"
    POLICIES = "policies"
    OPERATOR_POLICIES = "operator_policies"
    EXCHANGES = "exchanges"
    QUEUES = "queues"
    BINDINGS = "bindings"


# What JSON has of a definition: `key=attribute`, or one name for both.
_POLICY = "policy=name pattern apply_to priority definition"
_FIELDS = {
    Kind.VHOSTS: "description tags default_queue_type limits protected_from_deletion",
    Kind.USERS: "user=name tags permissions topic_permissions limits hashing_algorithm",
    Kind.POLICIES: _POLICY,
    Kind.OPERATOR_POLICIES: _POLICY,
    Kind.EXCHANGES: "exchange=name type auto_delete internal arguments",
    Kind.QUEUES: "vhost queue=name lane=lane_id auto_delete arguments",
    Kind.BINDINGS: "source destination_kind=kind destination routing_key arguments",
}
_VHOST = name("vhost")
_FLAGS = name(
    "flags",
    lambda row: ", ".join(key for key in ("auto_delete", "internal") if row.get(key)) or None,
)


def _pairs(items: dict[str, Any]) -> list[str] | None:
    return [f"{key}={brief(value)}" for key, value in items.items()] or None


_ARGUMENTS = name("arguments", lambda row: _pairs(row["arguments"]))
_PERMISSIONS = name(
    "permissions",
    lambda row: [f"{key}: {', '.join(item)}" for key, item in row["permissions"].items()] or None,
)
_TAGS = name("tags", lambda row: ", ".join(row["tags"]) or None)
_POLICY_COLUMNS = (
    _VHOST,
    name("policy"),
    name("pattern"),
    name("apply to", "apply_to"),
    number("priority"),
    name("definition", lambda row: _pairs(row["definition"])),
)
_COLUMNS = {
    Kind.VHOSTS: (
        _VHOST,
        name("description", lambda row: row["description"] or None),
        _TAGS,
        name("default queue type", "default_queue_type"),
        name("limits", lambda row: _pairs(row["limits"])),
    ),
    Kind.USERS: (name("user"), _TAGS, _PERMISSIONS),
    Kind.POLICIES: _POLICY_COLUMNS,
    Kind.OPERATOR_POLICIES: _POLICY_COLUMNS,
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

    Vhosts, users, policies, exchanges, queues and bindings. Durable ones only: the others are in the
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
        counts.append(counted_kind(item, len(rows)))
        title = item.value.replace("_", " ")
        report.table(_COLUMNS[item], rows, title="" if kind else title, key=item.value)
    report.say(", ".join(counts))


def _rows(defined: Defined, kind: Kind) -> Iterator[dict[str, Any]]:
    """All of a kind that decode, for JSON."""
    for item in getattr(defined, kind):
        vhost, one = item if isinstance(item, tuple) else (None, item)
        row = picked(one, _FIELDS[kind])
        if vhost is not None:
            row = {"vhost": vhost, **row}
        yield {key: json_value(value) for key, value in row.items()}
