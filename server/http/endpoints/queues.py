"""Queues: listed, declared, deleted, purged; messages taken from them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from qlog.server.amqp.errors import AMQPError
from qlog.server.broker.operations import Found, QueueType
from qlog.server.http import long_texts
from qlog.server.http.answers import NO_CONTENT, Answer, Listing, encode, put
from qlog.server.http.ask import Ask, required
from qlog.server.http.fields import flag, table, whole
from qlog.server.http.pace import Pace
from qlog.server.http.refusals import bad_request, not_authorised, not_found, refusal
from qlog.server.http.spans import spans
from qlog.server.http.table import HISTORY, LISTED, Endpoint

ACCESS_REFUSED = 403
_ACK_MODES = (
    "ack_requeue_true",
    "ack_requeue_false",
    "reject_requeue_true",
    "reject_requeue_false",
)


def _objects(ask: Ask) -> Iterator[QueueType]:
    for vhost in ask.vhosts():
        yield from ask.operations.queues(vhost)


def _bare(ask: Ask, queue: QueueType) -> dict[str, Any]:
    """A queue without statistics (`disable_stats`), with the three counts if they are asked for."""
    facts = ask.operations.bare_queue_facts(queue)
    facts.setdefault("online", None)
    if ask.flag("enable_queue_totals"):
        ready, unacked = queue.ready, queue.unacked
        facts |= {
            "messages": ready + unacked,
            "messages_ready": ready,
            "messages_unacknowledged": unacked,
        }
    return facts


async def list_queues(ask: Ask) -> Listing[QueueType]:
    """All queues."""
    bare = partial(_bare, ask) if ask.flag("disable_stats") else None
    return Listing(
        _objects(ask),
        bare or partial(ask.operations.queue_facts, spans=spans(ask)),
        name=lambda queue: queue.name,
        order=lambda queue: (queue.declared.vhost, queue.name),
        paged=True,
    )


def _queue(ask: Ask) -> QueueType:
    queue = ask.operations.find_queue(ask.vhost(), ask.path["queue"])
    if queue is None:
        raise not_found()
    return queue


async def show_queue(ask: Ask) -> dict[str, Any]:
    """One queue."""
    return ask.operations.queue_facts(_queue(ask), single=True, spans=spans(ask))


async def queue_bindings(ask: Ask) -> Listing[Any]:
    """The bindings to one queue; none to one that is not there, as in RabbitMQ."""
    vhost = ask.vhost()
    return Listing(
        ask.operations.bindings_to(vhost, "queue", ask.path["queue"]),
        lambda binding: ask.operations.binding_facts(vhost, binding),
    )


async def declare_queue(ask: Ask) -> Answer:
    """Declare a queue."""
    vhost, name = ask.vhost(), ask.path["queue"]
    document = await ask.document()
    existed = ask.operations.find_queue(vhost, name) is not None
    outcome = ask.operations.declare_queue(
        vhost,
        None,
        name,
        durable=flag(document, "durable"),
        exclusive=False,
        auto_delete=flag(document, "auto_delete"),
        arguments=table(document),
    )
    await ask.settled(outcome)
    return put(existed)


async def delete_queue(ask: Ask) -> Answer:
    """Delete a queue."""
    queue = _queue(ask)
    outcome = ask.operations.delete_queue(
        ask.vhost(),
        None,
        queue.name,
        if_unused=ask.flag("if-unused"),
        if_empty=ask.flag("if-empty"),
    )
    await ask.settled(outcome)
    return NO_CONTENT


async def purge_queue(ask: Ask) -> Answer:
    """Drop all ready messages."""
    await ask.settled(ask.operations.purge_queue(ask.vhost(), None, _queue(ask).name))
    return NO_CONTENT


async def queue_action(ask: Ask) -> Answer:
    """RabbitMQ had actions for mirrored queues; there are none any more."""
    _queue(ask)
    (action,) = required(await ask.document(), "action")
    raise bad_request(["unknown", action])


async def rebalance(ask: Ask) -> Answer:
    """Move the leaders of queues to other nodes, of which there are none."""
    return NO_CONTENT


async def get_messages(ask: Ask) -> Answer:
    """Take messages from a queue, and put them back or not."""
    vhost = ask.vhost()
    if ask.operations.find_queue(vhost, ask.path["queue"]) is None:
        raise refusal(404, "not_found", "queue_not_found")
    document = await ask.document()
    required(document, "ackmode", "count", "encoding")
    mode, encoding = document["ackmode"], document["encoding"]
    if encoding not in ("auto", "base64"):
        raise bad_request("Unsupported encoding. Please use auto or base64.")
    if mode not in _ACK_MODES:
        raise bad_request(f"Unsupported ackmode. Please use one of {', '.join(_ACK_MODES)}.")
    count = whole(document, "count")
    truncate = whole(document, "truncate") if "truncate" in document else None
    try:
        found = await ask.settled(ask.operations.take(vhost, ask.path["queue"], count, mode))
    except AMQPError as error:
        if error.code == ACCESS_REFUSED:
            raise not_authorised(error.reply_text) from error
        raise
    return Answer(body=_messages(found, encoding, truncate))


async def _messages(
    found: Sequence[Found], encoding: str, truncate: int | None
) -> AsyncGenerator[bytes, None]:
    pace = Pace()
    for number, message in enumerate(found):
        yield b"," if number else b"["
        facts = {**message_facts(message), "message_count": message.left}
        async with aclosing(message_document(facts, message.body[:truncate], encoding)) as pieces:
            async for piece in pieces:
                yield piece
        await pace.rest()
    yield b"]" if found else b"[]"


def message_facts(message: Found) -> dict[str, Any]:
    """A message as RabbitMQ's API shows it, without its body."""
    envelope = message.envelope
    return {
        "payload_bytes": len(message.body),
        "redelivered": message.redelivered,
        "exchange": envelope.exchange,
        "routing_key": envelope.routing_key,
        "properties": message.properties or [],
    }


async def message_document(
    facts: Mapping[str, Any], body: bytes, encoding: str
) -> AsyncGenerator[bytes, None]:
    """The JSON of a message, in pieces; its body as text if it is one (`auto`)."""
    is_text = encoding == "auto" and await long_texts.is_text(body)
    yield encode(facts)[:-1] + b',"payload":"'
    written = long_texts.as_text(body) if is_text else long_texts.as_base64(body)
    async with aclosing(written) as pieces:
        async for piece in pieces:
            yield piece
    yield b'","payload_encoding":"string"}' if is_text else b'","payload_encoding":"base64"}'


_LISTED = {
    **LISTED,
    "disable_stats": "true: without statistics",
    "enable_queue_totals": "true: but with the numbers of messages",
}
_DECLARED = {
    "durable": {"type": "boolean"},
    "auto_delete": {"type": "boolean"},
    "arguments": {"type": "object"},
}
_TAKEN = {
    "count": {"type": "integer"},
    "ackmode": {"type": "string", "enum": list(_ACK_MODES)},
    "encoding": {"type": "string", "enum": ["auto", "base64"]},
    "truncate": {"type": "integer", "minimum": 0},
}
_ONE = "/queues/{vhost}/{queue}"

ENDPOINTS = [
    Endpoint("GET", "/queues", list_queues, "All queues", query=_LISTED),
    Endpoint("GET", "/queues/detailed", list_queues, "All queues", query=_LISTED),
    Endpoint("GET", "/queues/{vhost}", list_queues, "The queues of a vhost", query=_LISTED),
    Endpoint("GET", _ONE, show_queue, "One queue", query=HISTORY),
    Endpoint("PUT", _ONE, declare_queue, "Declare a queue", body=_DECLARED, status=201),
    Endpoint(
        "DELETE",
        _ONE,
        delete_queue,
        "Delete a queue",
        query={"if-empty": "only if it is empty", "if-unused": "only without consumers"},
        status=204,
    ),
    Endpoint("GET", f"{_ONE}/bindings", queue_bindings, "The bindings to a queue"),
    Endpoint("DELETE", f"{_ONE}/contents", purge_queue, "Purge a queue", status=204),
    Endpoint(
        "POST",
        f"{_ONE}/get",
        get_messages,
        "Take messages from a queue",
        body=_TAKEN,
        required=("count", "ackmode", "encoding"),
    ),
    Endpoint(
        "POST",
        f"{_ONE}/actions",
        queue_action,
        "Nothing: RabbitMQ's actions were for mirrored queues",
        body={"action": {"type": "string"}},
        required=("action",),
    ),
    Endpoint(
        "POST",
        "/rebalance/queues",
        rebalance,
        "Nothing: there is one node",
        status=204,
        tag="administrator",
    ),
]
