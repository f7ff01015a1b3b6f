"""`qlog inspect messages`: the records of the log, decoded, from an offset on."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qlog.tools.inspect.options import (
    DATA_DIR_DEFAULT,
    AsJson,
    DataDir,
    finish,
    look_at,
    stop,
    stop_for_rights,
)

if TYPE_CHECKING:
    from qlog.storage.examine import FileView
    from qlog.storage.format import Record
    from qlog.tools.inspect.directory import Directory
    from qlog.tools.inspect.log import Entry
    from qlog.tools.inspect.report import Cell, Report

_BODY_CHARACTERS_MAX = 160  # of a body in a table; JSON has all of it


def messages(
    data_dir: DataDir = DATA_DIR_DEFAULT,
    from_lsn: Annotated[
        int,
        typer.Option("--from", metavar="LSN", min=0, help="Begin with this record of the log."),
    ] = 0,
    queue: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only what went to this queue.")
    ] = None,
    vhost: Annotated[str, typer.Option(help="The vhost of --queue.")] = "/",
    limit: Annotated[int, typer.Option(min=1, help="Show so many at most.")] = 20,
    body: Annotated[bool, typer.Option("--body", help="Show the bodies too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Decode messages of the log, oldest first, settled ones too as long as they are there.

    #N behind a queue is the message's offset in it. Damaged messages are shown as far as they
    decode. Transient messages are not in the log.
    """
    directory = look_at(data_dir)
    lane_ids = None
    if queue is not None:
        lane_ids = frozenset(
            lane_id
            for lane_id, owner in directory.owners.items()
            if (owner.vhost, owner.name) == (vhost, queue)
        )
        if not lane_ids:
            why = "; the catalog is damaged" if directory.catalog_facts.damaged else ""
            stop(f"no durable queue '{queue}' in vhost '{vhost}'{why}; see `qlog inspect queues`")
    try:
        report = _report(directory, from_lsn, lane_ids, limit, body)
    except PermissionError as error:
        stop_for_rights(error)
    finish(report, as_json=as_json)


def _report(
    directory: Directory, from_lsn: int, lane_ids: frozenset[int] | None, limit: int, body: bool
) -> Report:
    from qlog.tools.inspect.log import survey, views_of
    from qlog.tools.inspect.report import Column, Damage, Report, counted

    views = views_of(directory)
    report = Report("messages", str(directory.root), directory.in_use)
    report.columns = (
        Column("LSN", right=True),
        Column("time (UTC)"),
        Column("size", right=True),
        Column("message", name=True),
        Column("queue #offset", name=True),
    )
    report.notes = list(directory.notes)
    report.damage = list(directory.damage)
    items: list[dict[str, Any]] = []
    next_lsn: int | None = None
    for view, entry in _walk(directory, views, from_lsn, lane_ids):
        if len(items) == limit:
            next_lsn = entry.lsn
            break
        file = directory.relative(view.path)
        item, row = _shown(directory, file, entry, body)
        items.append(item)
        report.rows.append(row)
        if item["damage"] is not None:
            report.damage.append(
                Damage(
                    file,
                    f"LSN {entry.lsn}: {item['damage']}",
                    entry.position,
                    entry.position + entry.length,
                    entry.lsn,
                    entry.lsn_end,
                    None if entry.lsn_end is None else entry.lsn_end - entry.lsn,
                )
            )
    else:
        # Walked to the end: what is not there at all is told too.
        found = survey(directory, views, verify=False, advance=lambda size: None)
        shown = {(item.file, item.position) for item in report.damage}
        report.damage += [
            item
            for item in found.damage
            if (item.file, item.position) not in shown
            and (item.lsn_end is None or item.lsn_end > from_lsn)
        ]
        report.notes += found.notes
    report.content = {"messages": items, "next_lsn": next_lsn}
    in_use = ", in use by a broker" if directory.in_use else ""
    report.summary = f"{directory.root}{in_use}: {counted(len(items), 'message')}"
    if not items:
        report.summary = f"{directory.root}{in_use}: no messages from LSN {from_lsn} on"
    if next_lsn is not None:
        report.summary += f"; there are more: --from {next_lsn}"
    return report


def _walk(
    directory: Directory,
    views: list[FileView],
    from_lsn: int,
    lane_ids: frozenset[int] | None,
) -> Iterator[tuple[FileView, Entry]]:
    from qlog.tools.inspect.log import entries

    for view, following in zip(views, [*views[1:], None], strict=True):
        attested_lsn = directory.attested_lsn
        if following is not None and following.header is not None:
            if following.header.base <= from_lsn:
                continue
            attested_lsn = max(attested_lsn, following.header.base)
        try:
            for entry in entries(directory, view, from_lsn, lane_ids, attested_lsn):
                yield view, entry
        except FileNotFoundError:  # given up by a running broker
            continue


def _shown(
    directory: Directory, file: str, entry: Entry, body: bool
) -> tuple[dict[str, Any], tuple[Cell, ...]]:
    """A message for JSON and for the table."""
    from qlog.server.amqp.envelope import Envelope
    from qlog.server.amqp.errors import AMQPError
    from qlog.tools.inspect.report import Bytes

    record = entry.record
    item: dict[str, Any] = {
        "lsn": entry.lsn,
        "lsn_end": entry.lsn_end,
        "file": file,
        "position": entry.position,
        "stored_bytes": entry.length,
        "damage": entry.damage,
    }
    if record is None:
        row = (str(entry.lsn), None, Bytes(entry.length), f"DAMAGED: {entry.damage}", None)
        return item, row
    lines: list[str] = []
    if entry.damage is not None:
        lines.append(f"DAMAGED: {entry.damage}")
    item["time"] = _time(record.timestamp_ms)
    item["timestamp_ms"] = record.timestamp_ms
    item["body_bytes"] = len(record.body)
    try:
        envelope = Envelope.unpack(record.meta, len(record.body))
        properties = _properties(envelope)
    except (ValueError, TypeError, AMQPError):
        item["damage"] = entry.damage or "its exchange, routing key and properties do not decode"
        item["exchange"] = item["routing_key"] = item["properties"] = None
        if entry.damage is None:
            lines.append(f"DAMAGED: {item['damage']}")
    else:
        item["exchange"] = _text(envelope.exchange)
        item["routing_key"] = _text(envelope.routing_key)
        item["properties"] = {name: _value(value) for name, value in properties.items()}
        lines.append(f"{envelope.exchange or '(default)'} / {envelope.routing_key}")
        lines += (f"{name}={_brief(value)}" for name, value in item["properties"].items())
    item["targets"], targets = _targets(directory, record)
    if body:
        _add_body(item, record.body)
        encoding = "" if item["body_encoding"] == "utf-8" else "in base64 "
        lines.append(f"body {encoding}{_brief_body(item['body'])}")
    time = str(item["time"] or "?").removesuffix("Z").split("T")
    return item, (str(entry.lsn), time, Bytes(len(record.body)), lines, targets)


def _targets(directory: Directory, record: Record) -> tuple[list[dict[str, Any]], list[str]]:
    items = []
    lines = []
    for lane_id, qseq in zip(record.targets[0::2], record.targets[1::2], strict=True):
        queue = directory.queue_of(lane_id)
        if directory.is_gone(lane_id):
            state = "deleted"  # with its queue
        else:
            state = "unsettled" if directory.unsettled(lane_id, qseq, 1) else "settled"
        items.append(
            {
                "vhost": None if queue is None else queue.vhost,
                "queue": None if queue is None else queue.name,
                "lane": lane_id,
                "offset": qseq,
                "state": state,
            }
        )
        name = f"lane {lane_id}" if queue is None else queue.name
        where = "" if queue is None or queue.vhost == "/" else f"{queue.vhost}: "
        lines.append(f"{where}{name} #{qseq} {state}")
    return items, lines


def _time(timestamp_ms: int) -> str | None:
    try:
        time = datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):  # of a damaged message
        return None
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _properties(envelope: Any) -> dict[str, Any]:
    from dataclasses import fields

    properties = envelope.decoded_properties()
    pairs = ((field.name, getattr(properties, field.name)) for field in fields(properties))
    return {name: value for name, value in pairs if value is not None}


def _text(text: str) -> str:
    from qlog.tools.inspect.report import well_formed

    return well_formed(text)


def _value(value: Any) -> Any:
    """A property for JSON: what JSON has no type for becomes text."""
    match value:
        case bool():
            return value
        case int():
            return int(value)
        case float():
            return float(value) if math.isfinite(value) else str(value)
        case str():
            return _text(value)
        case bytes() | bytearray() | memoryview():
            return {"base64": base64.b64encode(value).decode()}
        case dict():
            return {_text(name): _value(item) for name, item in value.items()}
        case list() | tuple():
            return [_value(item) for item in value]
        case None:
            return None
        case _:
            return _text(str(value))


def _brief(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _add_body(item: dict[str, Any], body: bytes) -> None:
    try:
        item["body"] = body.decode()
        item["body_encoding"] = "utf-8"
    except UnicodeDecodeError:
        item["body"] = base64.b64encode(body).decode()
        item["body_encoding"] = "base64"


def _brief_body(body: str) -> str:
    if len(body) <= _BODY_CHARACTERS_MAX:
        return body
    return f"{body[:_BODY_CHARACTERS_MAX]}… ({len(body)} characters, all with --json)"
