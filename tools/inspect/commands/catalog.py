"""`qlog inspect catalog`: what is defined, and which definitions are damaged. No secrets are shown."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qlog.tools.inspect.command import (
    DATA_DIR_DEFAULT,
    AsJson,
    DataDir,
    finish,
    look_at,
    stop,
    stop_for_rights,
)

if TYPE_CHECKING:
    from qlog.tools.inspect.look.directory import Directory
    from qlog.tools.inspect.rows import Cell, Report


class Kind(StrEnum):
    """What can be defined."""

    VHOSTS = "vhosts"
    USERS = "users"
    EXCHANGES = "exchanges"
    QUEUES = "queues"
    BINDINGS = "bindings"


_COLUMNS = {
    Kind.VHOSTS: ("vhost",),
    Kind.USERS: ("user", "tags", "permissions"),
    Kind.EXCHANGES: ("vhost", "exchange", "type", "flags", "arguments"),
    Kind.QUEUES: ("vhost", "queue", "lane", "flags", "arguments"),
    Kind.BINDINGS: ("vhost", "source", "destination", "routing key", "arguments"),
}


def catalog(
    kind: Annotated[
        Kind | None, typer.Argument(help="Only these. [default: all]", show_default=False)
    ] = None,
    data_dir: DataDir = DATA_DIR_DEFAULT,
    vhost: Annotated[str | None, typer.Option(help="Of this vhost only. [default: all]")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is defined.

    Vhosts, users, exchanges, queues and bindings. Durable ones only: the others are in the broker's memory. Every queue is bound to the default
    exchange by its name; these bindings are not written down.
    """
    directory = look_at(data_dir)
    try:
        report = _report(directory, kind, vhost)
    except PermissionError as error:
        stop_for_rights(error)
    finish(report, as_json=as_json)


def definitions_of(directory: Directory) -> dict[str, list[dict[str, Any]]]:
    """All that are not damaged, by kind, for JSON. Raises Forbidden."""
    from qlog.tools.inspect.look.environment import Unreadable, read

    try:
        return read(directory.paths.catalog, _definitions)
    except Unreadable:
        assert directory.damage  # said already
        return {item.value: [] for item in Kind}


def _report(directory: Directory, kind: Kind | None, vhost: str | None) -> Report:
    from qlog.tools.inspect.look.environment import Forbidden
    from qlog.tools.inspect.rows import Column, Facts, Report, Table, counted

    report = Report("catalog", str(directory.root), directory.in_use)
    report.notes = list(directory.notes)
    report.damage = list(directory.damage)
    try:
        found = definitions_of(directory)
    except Forbidden as error:
        stop(str(error))
    identity = directory.catalog_facts.identity
    report.content = {
        "identity": None
        if identity is None
        else {
            "uuid": identity.uuid.hex(),
            "epoch": identity.epoch,
            "format": identity.version,
            "lane_ids_reserved": identity.lane_ids_reserved,
            "closed_lsn": identity.closed_lsn,
        },
        "damaged": [{"kind": kind, "name": name} for kind, name in directory.catalog_facts.damaged],
    }
    if identity is not None and kind is None:
        report.sections.append(
            Facts(
                "",
                [
                    ("uuid", identity.uuid.hex()),
                    ("epoch", f"{identity.epoch} (starts so far)"),
                    ("format", str(identity.version)),
                ],
            )
        )
    counts = []
    for item in Kind:
        if kind not in (None, item):
            continue
        rows = [
            row
            for row in found[item.value]
            if vhost is None or vhost in (row.get("vhost"), *row.get("permissions", ()))
        ]
        if item is Kind.VHOSTS and vhost is not None:
            rows = [row for row in rows if row["vhost"] == vhost]
        report.content[item.value] = rows
        counts.append(counted(len(rows), item.value[:-1]))
        columns = tuple(
            Column(title, name=title not in ("lane", "type"), right=title == "lane")
            for title in _COLUMNS[item]
        )
        cells = [[_cell(row, title) for title in _COLUMNS[item]] for row in rows]
        report.sections.append(Table("" if kind else item.value, columns, [*cells]))
    in_use = ", in use by a broker" if directory.in_use else ""
    report.summary = f"{directory.root}{in_use}: {', '.join(counts)}"
    return report


def _cell(row: dict[str, Any], title: str) -> Cell:
    from qlog.tools.inspect.look.decode import brief

    match title:
        case "flags":
            flags = [name for name in ("auto_delete", "internal") if row.get(name)]
            return ", ".join(flags) or None
        case "arguments":
            return [f"{name}={brief(value)}" for name, value in row[title].items()] or None
        case "tags":
            return ", ".join(row[title]) or None
        case "permissions":
            return [f"{vhost}: {', '.join(rights)}" for vhost, rights in row[title].items()] or None
        case "lane":
            return str(row[title])
        case "destination":
            return f"{row['destination_kind']} {row['destination']}"
        case "routing key":
            return str(row["routing_key"])
        case "source":
            return row[title] or "(default)"
    return str(row[title])


def _definitions(directory: Path, lock: bool) -> dict[str, list[dict[str, Any]]]:
    """Read in a child; what is damaged is left out here."""
    from qlog.server.broker.definitions import Definitions
    from qlog.tools.inspect.look.decode import json_value
    from qlog.tools.inspect.look.environment import SoundEntries

    catalog = SoundEntries(directory, lock)
    try:
        definitions = Definitions(catalog)
        return {
            "vhosts": [{"vhost": name} for name in sorted(definitions.vhosts())],
            "users": [
                {
                    "user": user.name,
                    "tags": list(user.tags),
                    "permissions": {name: list(item) for name, item in user.permissions.items()},
                }
                for user in definitions.users()
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
                for vhost, exchange in definitions.exchanges()
            ],
            "queues": [
                {
                    "vhost": queue.vhost,
                    "queue": queue.name,
                    "lane": queue.lane_id,
                    "auto_delete": queue.auto_delete,
                    "arguments": json_value(queue.arguments),
                }
                for queue in definitions.queues()
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
                for vhost, binding in definitions.bindings()
            ],
        }
    finally:
        catalog.close()
