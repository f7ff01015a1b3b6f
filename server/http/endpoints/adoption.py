"""Messages that `qlog ctl migrate` brings from another broker. For administrators.

The body of a request is messages, one behind the other:

    message: length of the head u32, length of the body u64 (big-endian); the head: msgpack of
    [exchange, routing key, properties as AMQP has them]; the body

They are put into the queue of the path, in their order, and not routed. The answer comes when they
are on the disk. One request at a time is obeyed for each queue: who asks what a queue has is told
of all that an earlier request brings, also if its client has gone.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import msgpack
import trio

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import AMQPError
from qlog.server.amqp.properties import BAD_EXPIRATION, examine
from qlog.server.broker.message_operations import Place, Search
from qlog.server.http.ask import Ask
from qlog.server.http.endpoints.messages import BUSY_S
from qlog.server.http.pace import ITEMS_AT_ONCE, Pace
from qlog.server.http.refusals import bad_request, refusal
from qlog.server.http.table import Endpoint

LENGTHS = struct.Struct(">IQ")
# A request may have so much beside the largest message.
BESIDE_BYTES_MAX = 4 << 20
MARK_BYTES_MAX = 100
# What is around a body. Brokers send properties in one frame, which mostly has 128 KiB at most.
HEAD_BYTES_MAX = 256 * 1024
Messages = tuple[list[Envelope], list[bytes]]


async def _read(body: bytes, mark: str, message_bytes_max: int) -> Messages:
    """The messages of a body. Raises 400."""
    pace = Pace()
    envelopes: list[Envelope] = []
    bodies: list[bytes] = []
    view = memoryview(body)
    at = 0
    while at < len(view):
        number = len(bodies)
        if len(view) - at < LENGTHS.size:
            raise bad_request(f"message {number} is cut off")
        head_bytes, body_bytes = LENGTHS.unpack_from(view, at)
        if body_bytes > message_bytes_max:
            raise bad_request(
                f"message {number} has {body_bytes} bytes; message_bytes_max is {message_bytes_max}"
            )
        start = at + LENGTHS.size + head_bytes
        at = start + body_bytes
        if at > len(view):
            raise bad_request(f"message {number} is cut off")
        if head_bytes > HEAD_BYTES_MAX:
            raise bad_request(
                f"message {number} has properties of {head_bytes} bytes; "
                f"{HEAD_BYTES_MAX} are taken at most"
            )
        envelopes.append(_envelope(view[start - head_bytes : start], body_bytes, mark, number))
        bodies.append(bytes(view[start:at]))
        if not number % ITEMS_AT_ONCE:
            await pace.rest()
    return envelopes, bodies


def _envelope(head: memoryview, size: int, mark: str, number: int) -> Envelope:
    """What is around a body. Raises 400."""
    try:
        exchange, key, properties = msgpack.unpackb(head)
        traits, properties = examine(properties)
        if traits.needs & BAD_EXPIRATION or not isinstance(exchange + key, str):
            raise ValueError
        return Envelope.pack(exchange, key, properties, size, mark=mark)
    except (AMQPError, ValueError, TypeError, msgpack.UnpackException):
        raise bad_request(f"message {number} is none") from None


def _mark(ask: Ask) -> str:
    """The mark of the portion. Raises 400."""
    mark = ask.query.get("mark", "")
    if not mark or len(mark.encode()) > MARK_BYTES_MAX:
        raise bad_request(f"mark has to have 1 to {MARK_BYTES_MAX} octets")
    return mark


def _search(given: Mapping[str, Any]) -> Search:
    """Where to look. Raises 400."""
    try:
        places = [Place.of(words) for words in given.get("from", "").split(",") if words]
    except ValueError:
        raise bad_request("from is not places: LANE-NUMBER,LANE-NUMBER") from None
    return Search({place.lane: place.qseq for place in places})


def _places(search: Search | None) -> str | None:
    if search is None:
        return None
    return ",".join(str(Place(lane, qseq)) for lane, qseq in search.starts.items())


def _turn(ask: Ask) -> trio.Lock:
    """What a request holds while it is obeyed."""
    return ask.context.adoptions.setdefault((ask.path["vhost"], ask.path["queue"]), trio.Lock())


async def adopt(ask: Ask) -> dict[str, Any]:
    """Put messages into a queue as they are; `ends` is where the next ones will be."""
    async with _turn(ask):
        return await _adopt(ask)


async def _adopt(ask: Ask) -> dict[str, Any]:
    operations, vhost, name = ask.operations, ask.vhost(), ask.path["queue"]
    operations.adoption_ends(vhost, name)  # 404 before anything is read
    bytes_max = operations.message_bytes_max
    mark = _mark(ask)
    body = await ask.body(bytes_max + BESIDE_BYTES_MAX)
    envelopes, bodies = await _read(body, mark, bytes_max)
    if bodies and (reason := operations.blocked_reason):
        raise refusal(400, "blocked", f"publishers are blocked: {reason}")
    rejected: list[int] = []
    start = lsn = 0
    while start < len(bodies):
        outcome = operations.adopt_messages(vhost, name, envelopes, bodies, start)
        part = await ask.settled(outcome)
        rejected += part.rejected
        start, lsn = part.next, max(lsn, part.lsn)
        if part.busy:
            await trio.sleep(BUSY_S)
    if lsn:
        await ask.settled(operations.adopted_last(lsn))
    ends = _places(operations.adoption_ends(vhost, name))
    return {"adopted": start - len(rejected), "rejected": rejected, "ends": ends}


async def adopted(ask: Ask) -> dict[str, Any]:
    """What was brought with a mark and nobody has taken, as digests; it is on the disk."""
    async with _turn(ask):
        found = await ask.settled(
            ask.operations.adopted_messages(
                ask.vhost(), ask.path["queue"], _mark(ask), _search(ask.query)
            )
        )
    return {"digests": found.digests, "next": _places(found.next)}


_PATH = "/qlog/queues/{vhost}/{queue}/adopted"
_MARK = {"mark": "the mark of the portion: a text that nobody else has"}

ENDPOINTS = [
    Endpoint(
        "POST",
        _PATH,
        adopt,
        "Put messages of another broker into a queue",
        "administrator",
        query=_MARK,
        content_of_body="application/octet-stream",
        fails=(503,),
    ),
    Endpoint(
        "GET",
        _PATH,
        adopted,
        "Which messages of a portion are in a queue",
        "administrator",
        query={**_MARK, "from": "where to look: `ends` of an earlier answer, or `next`"},
    ),
]
