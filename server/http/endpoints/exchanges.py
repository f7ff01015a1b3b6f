"""Exchanges and bindings."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from qlog.server.amqp.errors import AMQPError
from qlog.server.amqp.properties import Properties
from qlog.server.amqp.values import Timestamp
from qlog.server.broker.operations import Binding, DestinationKind, Exchange, Rejected, VHost
from qlog.server.http.answers import NO_CONTENT, Answer, Listing, created, put
from qlog.server.http.ask import Ask, required
from qlog.server.http.fields import flag, table, text
from qlog.server.http.long_texts import LongText
from qlog.server.http.pace import paced
from qlog.server.http.refusals import Refusal, bad_request, not_found, refusal
from qlog.server.http.spans import spans
from qlog.server.http.table import HISTORY, LISTED, Endpoint

SHORTSTR_BYTES_MAX = 255
DEFAULT_EXCHANGE = "amq.default"


def exchange_name(ask: Ask, parameter: str = "exchange") -> str:
    """The name in the path; the default exchange has one there, too."""
    name = ask.path[parameter]
    return "" if name == DEFAULT_EXCHANGE else name


def _exchanges(ask: Ask) -> Iterator[tuple[VHost, Exchange]]:
    for vhost in ask.vhosts():
        for exchange in ask.operations.exchanges(vhost):
            yield vhost, exchange


async def list_exchanges(ask: Ask) -> Listing[Any]:
    """All exchanges."""
    asked = spans(ask)
    return Listing(
        _exchanges(ask),
        lambda pair: ask.operations.exchange_facts(*pair, spans=asked),
        name=lambda pair: pair[1].name,
        order=lambda pair: (pair[0].name, pair[1].name),
        paged=True,
    )


async def show_exchange(ask: Ask) -> dict[str, Any]:
    """One exchange."""
    vhost = ask.vhost()
    exchange = ask.operations.find_exchange(vhost, exchange_name(ask))
    if exchange is None:
        raise not_found()
    facts = ask.operations.exchange_facts(vhost, exchange, spans=spans(ask))
    return {**facts, "incoming": [], "outgoing": []}


async def list_bindings(ask: Ask) -> Listing[Any]:
    """All bindings."""

    def bindings() -> Iterator[tuple[VHost, Binding]]:
        for vhost in ask.vhosts():
            for binding in ask.operations.bindings(vhost):
                yield vhost, binding

    return Listing(bindings(), lambda pair: ask.operations.binding_facts(*pair))


async def bindings_from(ask: Ask) -> Listing[Any]:
    """The bindings whose source an exchange is."""
    vhost = ask.vhost()
    return Listing(
        ask.operations.bindings_from(vhost, exchange_name(ask)),
        lambda binding: ask.operations.binding_facts(vhost, binding),
    )


async def bindings_to(ask: Ask) -> Listing[Any]:
    """The bindings whose destination an exchange is."""
    vhost = ask.vhost()
    return Listing(
        ask.operations.bindings_to(vhost, "exchange", exchange_name(ask)),
        lambda binding: ask.operations.binding_facts(vhost, binding),
    )


async def declare_exchange(ask: Ask) -> Answer:
    """Declare an exchange."""
    vhost, name = ask.vhost(), exchange_name(ask)
    document = await ask.document()
    existed = ask.operations.find_exchange(vhost, name) is not None
    outcome = ask.operations.declare_exchange(
        vhost,
        name,
        text(document, "type", "direct"),
        durable=flag(document, "durable"),
        auto_delete=flag(document, "auto_delete"),
        internal=flag(document, "internal"),
        arguments=table(document),
    )
    await ask.settled(outcome)
    return put(existed)


def _found(ask: Ask) -> str:
    """The name of the exchange in the path. Raises 404."""
    name = exchange_name(ask)
    if ask.operations.find_exchange(ask.vhost(), name) is None:
        raise not_found()
    return name


async def delete_exchange(ask: Ask) -> Answer:
    """Delete an exchange."""
    outcome = ask.operations.delete_exchange(
        ask.vhost(), _found(ask), if_unused=ask.flag("if-unused")
    )
    await ask.settled(outcome)
    return NO_CONTENT


# -- publishing


async def publish(ask: Ask) -> dict[str, Any]:
    """Publish a message."""
    vhost, name = ask.vhost(), exchange_name(ask)
    if ask.operations.find_exchange(vhost, name) is None:
        raise refusal(404, "not_found", "exchange_not_found")
    document = await ask.wide_document("payload")
    required(document, "routing_key", "properties", "payload", "payload_encoding")
    body = await _body(document)
    properties = properties_of(table(document, "properties"))
    if reason := ask.operations.blocked_reason:
        raise bad_request(f"publishers are blocked: {reason}")
    try:
        outcome = ask.operations.publish(
            vhost,
            name,
            text(document, "routing_key"),
            properties,
            body,
        )
        routed = await ask.settled(outcome)
    except AMQPError as error:
        raise _not_published(error) from error
    except (ValueError, UnicodeError) as error:
        raise bad_request(str(error)) from None
    return {"routed": routed}


def _not_published(error: AMQPError) -> Refusal:
    if isinstance(error, Rejected):
        return bad_request("rejected Unable to publish message. Check queue limits.")
    return bad_request(f"{error.code} {error.reply_text}")


async def _body(document: dict[str, Any]) -> bytes:
    """The octets of the payload. Raises 400."""
    payload, encoding = document["payload"], document["payload_encoding"]
    if encoding not in ("string", "base64"):
        raise bad_request(["unsupported_encoding", encoding])
    try:
        if isinstance(payload, LongText):
            return await (payload.utf8() if encoding == "string" else payload.from_base64())
        octets = text(document, "payload").encode()
        return octets if encoding == "string" else base64.b64decode(octets, validate=True)
    except ValueError:
        shown = "a long text" if isinstance(payload, LongText) else payload
        raise bad_request(["not_base64" if encoding == "base64" else "not_utf8", shown]) from None


_OCTETS = ("delivery_mode", "priority")


def properties_of(given: Mapping[str, Any]) -> Properties:
    """The properties that AMQP knows; others are left out, as RabbitMQ does. Raises 400."""
    properties = Properties()
    for name, value in given.items():
        if name == "headers":
            properties.headers = table(given, "headers")
        elif name in _OCTETS:
            setattr(properties, name, _number(name, value, 255))
        elif name == "timestamp":
            properties.timestamp = Timestamp(_number(name, value, 2**63 - 1))
        elif name in Properties.__slots__:
            if not isinstance(value, str):
                raise bad_request(["not_a_string", name])
            if len(value.encode()) > SHORTSTR_BYTES_MAX:
                raise bad_request(["too_long", name])
            setattr(properties, name, value)
    return properties


def _number(name: str, value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise bad_request(["not_int", name])
    return value


# -- bindings between two ends

_KINDS: Mapping[str, DestinationKind] = {"q": "queue", "e": "exchange"}


def _ends(ask: Ask) -> tuple[VHost, str, DestinationKind, str]:
    """Vhost, source, and destination of the path. Raises 404."""
    kind = _KINDS.get(ask.path["kind"])
    if kind is None:
        raise not_found()
    name = exchange_name(ask, "destination") if kind == "exchange" else ask.path["destination"]
    return ask.vhost(), exchange_name(ask), kind, name


def _between(ask: Ask) -> Iterator[Binding]:
    vhost, source, kind, destination = _ends(ask)
    for binding in ask.operations.bindings_to(vhost, kind, destination):
        if binding.source == source:
            yield binding


async def bindings_between(ask: Ask) -> Listing[Any]:
    """The bindings between an exchange and a queue or an exchange."""
    vhost = ask.vhost()
    return Listing(_between(ask), lambda binding: ask.operations.binding_facts(vhost, binding))


async def bind(ask: Ask) -> Answer:
    """Make a binding; the answer says where it is."""
    vhost, source, kind, destination = _ends(ask)
    document = await ask.document()
    key, arguments = text(document, "routing_key"), table(document)
    try:
        outcome = ask.operations.bind(vhost, None, source, kind, destination, key, arguments)
        await ask.settled(outcome)
        made = Binding(source, kind, destination, key, arguments)
        name = ask.operations.binding_facts(vhost, made)["properties_key"]
    except ValueError as error:
        raise bad_request(str(error)) from None
    return created(f"{quote(destination, safe='')}/{quote(name, safe='~')}")


async def _binding(ask: Ask) -> Binding:
    """The binding of the path. Raises 404."""
    vhost = ask.vhost()
    async for binding in paced(_between(ask)):
        facts = ask.operations.binding_facts(vhost, binding)
        if facts["properties_key"] == ask.path["props"]:
            return binding
    raise not_found()


async def show_binding(ask: Ask) -> dict[str, Any]:
    """One binding."""
    return ask.operations.binding_facts(ask.vhost(), await _binding(ask))


async def unbind(ask: Ask) -> Answer:
    """Delete a binding."""
    binding = await _binding(ask)
    await ask.settled(ask.operations.unbind_it(ask.vhost(), binding))
    return NO_CONTENT


_ONE = "/exchanges/{vhost}/{exchange}"
_BETWEEN = "/bindings/{vhost}/e/{exchange}/{kind}/{destination}"
_DECLARED = {
    "type": {"type": "string"},
    "durable": {"type": "boolean"},
    "auto_delete": {"type": "boolean"},
    "internal": {"type": "boolean"},
    "arguments": {"type": "object"},
}
_PUBLISHED = {
    "routing_key": {"type": "string"},
    "properties": {"type": "object"},
    "payload": {"type": "string"},
    "payload_encoding": {"type": "string", "enum": ["string", "base64"]},
}
_BOUND = {"routing_key": {"type": "string"}, "arguments": {"type": "object"}}

ENDPOINTS = [
    Endpoint("GET", "/exchanges", list_exchanges, "All exchanges", query=LISTED),
    Endpoint("GET", "/exchanges/{vhost}", list_exchanges, "Those of a vhost", query=LISTED),
    Endpoint("GET", _ONE, show_exchange, "One exchange", query=HISTORY),
    Endpoint("PUT", _ONE, declare_exchange, "Declare an exchange", body=_DECLARED, status=201),
    Endpoint(
        "DELETE",
        _ONE,
        delete_exchange,
        "Delete an exchange",
        query={"if-unused": "only without bindings"},
        status=204,
    ),
    Endpoint("GET", f"{_ONE}/bindings/source", bindings_from, "The bindings that it is source of"),
    Endpoint("GET", f"{_ONE}/bindings/destination", bindings_to, "Those that lead to it"),
    Endpoint(
        "POST",
        f"{_ONE}/publish",
        publish,
        "Publish a message",
        body=_PUBLISHED,
        required=tuple(_PUBLISHED),
        fails=(503,),
    ),
    Endpoint("GET", "/bindings", list_bindings, "All bindings"),
    Endpoint("GET", "/bindings/{vhost}", list_bindings, "The bindings of a vhost"),
    Endpoint("GET", _BETWEEN, bindings_between, "The bindings between two ends"),
    Endpoint("POST", _BETWEEN, bind, "Make a binding", body=_BOUND, status=201),
    Endpoint("GET", f"{_BETWEEN}/{{props}}", show_binding, "One binding"),
    Endpoint("DELETE", f"{_BETWEEN}/{{props}}", unbind, "Delete a binding", status=204),
]
