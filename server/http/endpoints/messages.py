"""The messages in a queue: looked at, moved, sent back, changed, deleted. For administrators.

A move, and a walk that looks for few messages among many, stop after some thousand messages and say
where (`next`): the caller goes on from there, with the same `ends`.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import trio

from qlog.server.broker.message_operations import Ends, Match, Moved, Page, Place, Seen, Walk
from qlog.server.broker.operations import Found, Outcome
from qlog.server.http.answers import NO_CONTENT, Answer, encode
from qlog.server.http.ask import Ask
from qlog.server.http.endpoints.exchanges import properties_of
from qlog.server.http.endpoints.queues import message_document, message_facts
from qlog.server.http.fields import table, text, whole
from qlog.server.http.pace import Pace
from qlog.server.http.refusals import bad_request, not_found
from qlog.server.http.table import Endpoint

PEEKED_MAX = 500
DELIVERIES_MAX = 10_000
EXTENSION_S_MAX = 1_000_000_000
MOVED_MAX = 2**62
BUSY_S = 0.02  # a pause while the disk, or a queue, is behind
# What the query, or the body, says of the messages that are meant.
_MATCH = {
    "key": "their routing key",
    "header": "NAME=VALUE, a header that they have",
    "since": "published then or later: milliseconds since 1970",
    "until": "published then or before",
    "reason": "why a dead letter died last: rejected, expired, maxlen, delivery_limit",
    "died_in": "the queue in which a dead letter died last",
}


def _match(given: Mapping[str, Any]) -> Match:
    """Which messages are meant. Raises 400."""
    headers: dict[str, str] = {}
    wanted = given.get("header") or []
    for pair in [wanted] if isinstance(wanted, str) else wanted:
        name, equals, value = str(pair).partition("=")
        if not equals:
            raise bad_request("a header is NAME=VALUE")
        headers[name] = value
    return Match(
        text(given, "key") if "key" in given else None,
        headers,
        whole(given, "since"),
        whole(given, "until") if "until" in given else None,
        text(given, "reason") if "reason" in given else None,
        text(given, "died_in") if "died_in" in given else None,
    )


def _place(words: str) -> Place:
    """The place of a message. Raises 404."""
    try:
        return Place.of(words)
    except ValueError:
        raise not_found() from None


def _start(given: Mapping[str, Any]) -> Place | None:
    """Where a walk begins. Raises 400."""
    if not given.get("from"):
        return None
    try:
        return Place.of(text(given, "from"))
    except ValueError:
        raise bad_request("from is not a place: LANE-NUMBER") from None


def _ends(given: Any) -> Ends:
    """Where a walk ends. Raises 400."""
    try:
        places = [Place.of(words) for words in given]
    except (TypeError, ValueError, AttributeError):
        raise bad_request("ends are not places: LANE-NUMBER") from None
    return Ends({place.lane: place.qseq for place in places})


async def peek(ask: Ask) -> Answer:
    """Look at messages that are ready, from the head of the queue or a place on."""
    count = whole(ask.query, "count", 10)
    if not 0 < count <= PEEKED_MAX:
        raise bad_request(f"count is not between 1 and {PEEKED_MAX}")
    encoding = ask.query.get("encoding", "auto")
    if encoding not in ("auto", "base64"):
        raise bad_request("Unsupported encoding. Please use auto or base64.")
    truncate = whole(ask.query, "truncate") if "truncate" in ask.query else None
    page = await ask.settled(
        ask.operations.peek_messages(
            ask.vhost(), ask.path["queue"], _start(ask.query), count, _match(ask.query)
        )
    )
    return Answer(body=_page(page, encoding, truncate))


async def _page(page: Page, encoding: str, truncate: int | None) -> AsyncGenerator[bytes, None]:
    pace = Pace()
    yield b'{"messages":['
    for number, seen in enumerate(page.found):
        if number:
            yield b","
        body = seen.body[:truncate]
        async with aclosing(message_document(_facts(seen), body, encoding)) as pieces:
            async for piece in pieces:
                yield piece
        await pace.rest()
    yield b'],"next":' + encode(None if page.next is None else str(page.next)) + b"}"


def _facts(seen: Seen) -> dict[str, Any]:
    return {
        "id": str(seen.place),
        "offset": seen.place.qseq,
        "published_at": seen.time_ms,
        "expires_at": seen.due_ms or None,
        **message_facts(Found(seen.envelope, seen.body, seen.redelivered, 0)),
    }


async def delete(ask: Ask) -> Answer:
    """Delete a message that is ready."""
    place = _place(ask.path["message"])
    await ask.settled(ask.operations.delete_message(ask.vhost(), ask.path["queue"], place))
    return NO_CONTENT


async def edit(ask: Ask) -> dict[str, Any]:
    """Put a changed copy of a message at the end of its queue, and take the original away."""
    place = _place(ask.path["message"])
    document = await ask.document()
    properties = None
    if "properties" in document:
        properties = properties_of(table(document, "properties"))
    body: bytes | None = None
    if "payload" in document:
        body = text(document, "payload").encode()
        if document.get("payload_encoding", "string") == "base64":
            try:
                body = b64decode(body, validate=True)
            except binascii.Error:
                raise bad_request("payload is not base64") from None
    try:
        outcome = ask.operations.edit_message(
            ask.vhost(), ask.path["queue"], place, properties=properties, body=body
        )
    except ValueError as error:  # properties that AMQP has no octets for
        raise bad_request(str(error)) from None
    moved = await ask.settled(outcome)
    return {"changed": moved.moved == 1}


async def move(ask: Ask) -> dict[str, Any]:
    """Move messages to the end of another queue."""
    document = await ask.document()
    to = text(document, "to")
    return await _walked(
        ask,
        document,
        lambda walk: ask.operations.move_messages(ask.vhost(), ask.path["queue"], to, walk),
    )


async def redrive(ask: Ask) -> dict[str, Any]:
    """Send dead letters back to the queues that they died in."""
    return await _walked(
        ask,
        await ask.document(),
        lambda walk: ask.operations.redrive_messages(ask.vhost(), ask.path["queue"], walk),
    )


async def _walked(ask: Ask, document: dict[str, Any], walking: Any) -> dict[str, Any]:
    count = whole(document, "count", MOVED_MAX)
    match = _match(table(document, "match"))
    if document.get("ends"):
        ends = _ends(document["ends"])
    else:
        ends = ask.operations.message_ends(ask.vhost(), ask.path["queue"])
    outcome: Outcome[Moved] = walking(Walk(_start(document), ends, count, match))
    moved = await ask.settled(outcome)
    if moved.busy:
        await trio.sleep(BUSY_S)
    return {
        "moved": moved.moved,
        "refused": moved.refused,
        "next": None if moved.next is None else str(moved.next),
        "ends": [str(Place(lane, qseq)) for lane, qseq in ends.by_lane.items()],
    }


async def list_deliveries(ask: Ask) -> list[dict[str, Any]]:
    """What clients hold of a queue."""
    count = whole(ask.query, "count", 100)
    if not 0 < count <= DELIVERIES_MAX:
        raise bad_request(f"count is not between 1 and {DELIVERIES_MAX}")
    found = await ask.settled(ask.operations.deliveries(ask.vhost(), ask.path["queue"], count))
    return [
        {
            "id": str(Place(one.lane, one.qseq)),
            "channel": one.channel,
            "consumer_tag": one.consumer_tag,
            "delivery_tag": one.delivery_tag,
            "age_s": round(one.age_s, 3),
            "left_s": None if one.left_s is None else round(one.left_s, 3),
        }
        for one in found
    ]


async def extend_deadline(ask: Ask) -> Answer:
    """Let a delivery stay unacknowledged for so many seconds more."""
    place = _place(ask.path["message"])
    document = await ask.document()
    seconds = whole(document, "seconds")
    if not 0 < seconds <= EXTENSION_S_MAX:
        raise bad_request(f"seconds is not between 1 and {EXTENSION_S_MAX}")
    outcome = ask.operations.extend_deadline(
        ask.vhost(), ask.path["queue"], place.lane, place.qseq, seconds
    )
    if not await ask.settled(outcome):
        raise not_found()
    return NO_CONTENT


_QUEUE = "/qlog/queues/{vhost}/{queue}"
_MESSAGE = f"{_QUEUE}/messages/{{message}}"
_WALK = {
    "count": {"type": "integer", "minimum": 0},
    "from": {"type": "string"},
    "ends": {"type": "array", "items": {"type": "string"}},
    "match": {"type": "object"},
}

ENDPOINTS = [
    Endpoint(
        "GET",
        f"{_QUEUE}/messages",
        peek,
        "Look at messages",
        "administrator",
        query={
            "from": "the id to begin at",
            "count": f"so many at most, up to {PEEKED_MAX}",
            "encoding": "auto or base64",
            "truncate": "so many octets of each body",
            **_MATCH,
        },
    ),
    Endpoint("DELETE", _MESSAGE, delete, "Delete a message", "administrator", status=204),
    Endpoint(
        "PUT",
        _MESSAGE,
        edit,
        "Change a message",
        "administrator",
        body={
            "properties": {"type": "object"},
            "payload": {"type": "string"},
            "payload_encoding": {"enum": ["string", "base64"]},
        },
    ),
    Endpoint(
        "POST",
        f"{_QUEUE}/move",
        move,
        "Move messages to another queue",
        "administrator",
        body={"to": {"type": "string"}, **_WALK},
        required=("to",),
    ),
    Endpoint(
        "POST",
        f"{_QUEUE}/redrive",
        redrive,
        "Send dead letters back",
        "administrator",
        body=_WALK,
    ),
    Endpoint(
        "GET",
        f"{_QUEUE}/deliveries",
        list_deliveries,
        "What clients hold",
        "administrator",
        query={"count": f"so many at most, up to {DELIVERIES_MAX}"},
    ),
    Endpoint(
        "PUT",
        f"{_QUEUE}/deliveries/{{message}}",
        extend_deadline,
        "Put off the deadline of a delivery",
        "administrator",
        body={"seconds": {"type": "integer", "minimum": 1}},
        required=("seconds",),
        status=204,
    ),
]
