"""The messages in a queue: looked at, moved, sent back, changed, deleted."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC
from typing import Any

from qlog.tools.ctl.command import (
    BadUsage,
    Call,
    Command,
    Failure,
    Message,
    Option,
    Options,
    Result,
    Rows,
    Status,
    bad_argument,
    check_positive,
    wanted_columns,
)
from qlog.tools.ctl.values import printable, to_json

COLUMNS = (
    "id",
    "offset",
    "published_at",
    "expires_at",
    "redelivered",
    "exchange",
    "routing_key",
    "properties",
    "payload_bytes",
    "payload",
    "payload_encoding",
)
DEFAULTS = ("id", "published_at", "routing_key", "payload_bytes", "payload")
COUNT = 10
PAGE = 100
# What is shown of a body in a table; JSON has all of it.
SHOWN_BYTES = 80
_AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _no_message(call: Call) -> Failure:
    return Failure(f"no message {call.args[1]} is ready in the queue", Status.DATA)


def _no_queue(call: Call) -> Failure:
    return Failure(f"no queue '{call.args[0]}' in vhost '{call.vhost}'", Status.DATA)


def _time_ms(text: str) -> int:
    """A time: `2026-11-27T10:00:00+00:00`, seconds since 1970, or how long ago (`90m`).

    Raises BadUsage.
    """
    ago = re.fullmatch(r"(\d+)([smhd])", text)
    if ago is not None:
        return int((time.time() - int(ago[1]) * _AGES[ago[2]]) * 1000)
    if text.isdigit():
        return int(text) * 1000
    from datetime import datetime

    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        raise bad_argument(f"{text} is not a time, such as 90m or 2026-11-27T10:00:00") from None


def _match(options: Options) -> dict[str, Any]:
    """Which messages are meant, for the API."""
    found = {
        name: options[option]
        for name, option in (
            ("key", "key"),
            ("header", "header"),
            ("reason", "reason"),
            ("died_in", "died_in"),
        )
        if option in options
    }
    for name in ("since", "until"):
        if name in options:
            found[name] = _time_ms(options[name])
    return found


def _check(args: list[str], options: Options) -> None:
    _match(options)
    if "header" in options and "=" not in options["header"]:
        raise bad_argument("a header is given as NAME=VALUE")


# -- peek --------------------------------------------------------------------------------------


def peek(call: Call) -> Rows:
    """Look at messages; nothing is delivered, and nothing changes its place."""
    columns = wanted_columns(_Columns(call), DEFAULTS)
    return Rows(columns, _peeked(call))


class _Columns(Call):
    """The call without the name of the queue: what is left are columns."""

    def __init__(self, call: Call) -> None:
        super().__init__(call.args[1:], call.options, call.api, call.tool)


def _check_peek(args: list[str], options: Options) -> None:
    _check(args, options)
    unknown = [name for arg in args[1:] for name in arg.split(",") if name not in COLUMNS]
    if unknown:
        raise BadUsage(f"Info key(s) {','.join(unknown)} are not supported")


def _peeked(call: Call) -> Iterator[Mapping[str, Any]]:
    left = call.options.get("count", COUNT)
    skip = call.options.get("offset", 0)
    is_json = call.options.get("formatter") == "json"
    query = {name: str(value) for name, value in _match(call.options).items()}
    if not is_json:
        query["truncate"] = str(SHOWN_BYTES)
    start = call.options.get("from", "")
    while left > 0:
        count = min(left + skip, PAGE)
        page = call.get(
            *("qlog", "queues", call.vhost, call.args[0], "messages"),
            missing=_no_queue(call),
            **query,
            **{"count": str(count), "from": start},
        )
        found = page["messages"]
        passed = min(skip, len(found))
        skip -= passed
        for message in found[passed:]:
            left -= 1
            yield message if is_json else _shown(message)
        start = page["next"]
        if not start:
            return


def _shown(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message in a table."""
    from datetime import datetime

    row = dict(message)
    for name in ("published_at", "expires_at"):
        if row[name]:
            moment = datetime.fromtimestamp(row[name] / 1000, UTC)
            row[name] = moment.isoformat(timespec="milliseconds")
    row["properties"] = to_json(row["properties"] or {})
    row["payload"] = printable(row["payload"])
    return row


# -- move, redrive -----------------------------------------------------------------------------


def _walking(what: str, done: str, body: Callable[[Call], Mapping[str, Any]]) -> Any:
    def run(call: Call) -> Message:
        asked: dict[str, Any] = {**body(call), "match": _match(call.options)}
        left: int | None = call.options.get("count")
        moved = refused = 0
        while left is None or left > 0:
            if left is not None:
                asked["count"] = left
            answer = call.ask(
                *("POST", "qlog", "queues", call.vhost, call.args[0], what),
                body=asked,
                missing=Failure("no such queue", Status.DATA),
            )
            moved += answer["moved"]
            refused += answer["refused"]
            if left is not None:
                left -= answer["moved"]
            if not answer["next"]:
                break
            asked["from"], asked["ends"] = answer["next"], answer["ends"]
        counts = {"moved": moved, "refused": refused}
        stayed = f", {refused} could not be taken and stayed" if refused else ""
        messages = "message" if moved == 1 else "messages"
        return Message(f"{moved} {messages} {done}{stayed}", counts)

    return run


def delete_message(call: Call) -> None:
    """Delete one message that is ready."""
    name, place = call.args
    path = ("qlog", "queues", call.vhost, name, "messages", place)
    call.ask("DELETE", *path, missing=_no_message(call))


def _check_edit(args: list[str], options: Options) -> None:
    if not {"payload", "payload_file", "properties"} & set(options):
        raise BadUsage("not enough arguments.")


def edit_message(call: Call) -> Result:
    """Put a changed copy at the end of the queue, and take the original away."""
    import base64

    from qlog.tools.ctl.commands import documents

    name, place = call.args
    body: dict[str, Any] = {}
    if "properties" in call.options:
        body["properties"] = documents.parsed(call.options["properties"])
    if "payload" in call.options:
        body["payload"] = call.options["payload"]
    if "payload_file" in call.options:
        try:
            octets = _read(call.options["payload_file"])
        except OSError as error:
            raise Failure(f"{error.filename}: {error.strerror}", Status.DATA) from None
        body |= {"payload": base64.b64encode(octets).decode(), "payload_encoding": "base64"}
    path = ("qlog", "queues", call.vhost, name, "messages", place)
    if not call.ask("PUT", *path, body=body, missing=_no_message(call))["changed"]:
        raise Failure("the queue rejected the copy; the message is as it was", Status.UNAVAILABLE)
    return None


_DELIVERY = ("id", "channel", "consumer_tag", "delivery_tag", "age_s", "left_s")


def list_deliveries(call: Call) -> Rows:
    """What clients hold of a queue, and for how long they may."""
    count = str(call.options.get("count", 100))
    path = ("qlog", "queues", call.vhost, call.args[0], "deliveries")
    return Rows(_DELIVERY, call.get(*path, count=count, missing=_no_queue(call)))


def extend_deadline(call: Call) -> None:
    """Let a consumer keep one delivery longer."""
    name, place, seconds = call.args
    missing = Failure(f"nobody holds the message {place} of the queue", Status.DATA)
    path = ("qlog", "queues", call.vhost, name, "deliveries", place)
    call.ask("PUT", *path, body={"seconds": int(seconds)}, missing=missing)


def _check_seconds(args: list[str], options: Options) -> None:
    check_positive(args[2:], options)


def _read(path: str) -> bytes:
    if path == "-":
        return sys.stdin.buffer.read()
    with open(path, "rb") as file:
        return file.read()


_G = "Messages"
_MATCH_OPTIONS = (
    Option("key", about="those with this routing key"),
    Option("header", about="NAME=VALUE: those with this header"),
    Option("since", about="published since then: 90m, 2d, or 2026-11-27T10:00:00"),
    Option("until", about="published until then"),
    Option("reason", about="dead letters: rejected, expired, maxlen or delivery_limit"),
    Option("died_in", about="dead letters of this queue"),
)
_COUNT = Option("count", int, about="so many at most")
_FILTER = (
    "[--key <key>] [--header <name>=<value>] [--since <time>] [--until <time>] "
    "[--reason <reason>] [--died-in <queue>]"
)

COMMANDS = (
    Command(
        "peek",
        _G,
        "Shows messages that are ready; nothing is delivered, and none changes its place",
        peek,
        usage=f"[--vhost <vhost>] <queue> [--count <n>] [--offset <n>] [--from <id>] {_FILTER} "
        "[<column> ...]",
        args=(1, None),
        banner=lambda call: f"Peeking at queue '{call.args[0]}' in vhost '{call.vhost}' ...",
        options=(
            Option("count", int, about=f"so many at most (default: {COUNT})"),
            Option("offset", int, about="so many are left out first"),
            Option("from", about="begin at the message with this id"),
            *_MATCH_OPTIONS,
        ),
        check=_check_peek,
        arguments={"<column>": f"any of {', '.join(COLUMNS)}"},
        examples=(
            "peek orders --count 5",
            "peek orders --header customer=17 --since 2h id properties payload",
            "-q peek orders --count 1 --formatter json",
        ),
    ),
    Command(
        "move",
        _G,
        "Moves messages to the end of another queue",
        _walking("move", "moved", lambda call: {"to": call.args[1]}),
        usage=f"[--vhost <vhost>] <queue> <other queue> [--count <n>] {_FILTER}",
        args=(2, 2),
        banner="Moving messages from queue '{0}' to queue '{1}' in vhost '{vhost}' ...",
        options=(_COUNT, *_MATCH_OPTIONS),
        check=_check,
        examples=("move orders orders.parked --header customer=17",),
    ),
    Command(
        "redrive",
        _G,
        "Sends dead letters back to the queues that they died in",
        _walking("redrive", "sent back", lambda call: {}),
        usage=f"[--vhost <vhost>] <queue> [--count <n>] {_FILTER}",
        args=(1, 1),
        banner="Sending dead letters of queue '{0}' in vhost '{vhost}' back ...",
        options=(_COUNT, *_MATCH_OPTIONS),
        check=_check,
        examples=("redrive orders.dead --reason rejected --since 1d", "redrive orders.dead"),
    ),
    Command(
        "delete_message",
        _G,
        "Deletes one message that is ready",
        delete_message,
        usage="[--vhost <vhost>] <queue> <id>",
        args=(2, 2),
        banner="Deleting message {1} of queue '{0}' in vhost '{vhost}' ...",
        arguments={"<id>": "from peek"},
        examples=("delete_message orders 3-1704",),
    ),
    Command(
        "list_deliveries",
        _G,
        "Lists what clients hold of a queue, and how long they still may",
        list_deliveries,
        usage="[--vhost <vhost>] <queue> [--count <n>]",
        args=(1, 1),
        banner="Listing deliveries of queue '{0}' in vhost '{vhost}' ...",
        options=(_COUNT,),
        examples=("list_deliveries orders",),
    ),
    Command(
        "extend_deadline",
        _G,
        "Lets a client keep one delivery unacknowledged for longer",
        extend_deadline,
        usage="[--vhost <vhost>] <queue> <id> <seconds>",
        args=(3, 3),
        banner="Putting off the deadline of message {1} of queue '{0}' in vhost '{vhost}' ...",
        check=_check_seconds,
        arguments={"<id>": "from list_deliveries"},
        examples=("extend_deadline orders 3-1704 3600",),
    ),
    Command(
        "edit_message",
        _G,
        "Puts a changed copy of a message at the end of its queue, and takes the original away",
        edit_message,
        usage="[--vhost <vhost>] <queue> <id> [--payload <text>] [--payload-file <file>] "
        "[--properties <json>]",
        args=(2, 2),
        banner="Changing message {1} of queue '{0}' in vhost '{vhost}' ...",
        options=(
            Option("payload", about="the new body"),
            Option("payload_file", about="the file that has it; - is stdin"),
            Option("properties", about="JSON: all properties, as peek shows them"),
        ),
        check=_check_edit,
        arguments={"<id>": "from peek"},
        examples=("""edit_message orders 3-1704 --payload '{"customer": 18}'""",),
    ),
)
