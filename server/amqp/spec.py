"""Every method of AMQP 0-9-1 with RabbitMQ's extensions, described once.

The classes below are the table: their fields, in order, are the fields on the wire, and the
annotation of a field is its wire type. Fields the specification reserves are not attributes: they
are named in `@_method` as standing before or after the others, written as zeros and read past.

Promises that decoding raises nothing but `HardError`. Knows nothing of when a method may be sent.

    method payload: class id u16, method id u16, arguments; consecutive bits share octets
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, TypeVar, dataclass_transform

from qlog.server.amqp.errors import HardError, command_invalid, frame_error
from qlog.server.amqp.values import Table, decode_table, encode_table

Bit = Annotated[bool, "bit"]
Octet = Annotated[int, "octet"]
Short = Annotated[int, "short"]
Long = Annotated[int, "long"]
LongLong = Annotated[int, "longlong"]
ShortStr = Annotated[str, "shortstr"]
LongString = Annotated[bytes, "longstr"]
FieldTable = Annotated[Table, "table"]

_NUMBERS = {
    "octet": struct.Struct(">B"),
    "short": struct.Struct(">H"),
    "long": struct.Struct(">I"),
    "longlong": struct.Struct(">Q"),
}
_IDS = struct.Struct(">HH")
_LONG = _NUMBERS["long"]


class Method:
    """One method of AMQP; the subclasses are slotted, frozen dataclasses."""

    __slots__ = ()
    CLASS_ID: ClassVar[int]
    METHOD_ID: ClassVar[int]
    NAME: ClassVar[str]  # as error texts have it: queue.declare-ok
    HAS_CONTENT: ClassVar[bool]
    FROM_CLIENT: ClassVar[bool]  # a client may send it
    REPLIES: ClassVar[tuple[str, ...]]  # names of the methods that answer it, if any do
    LAYOUT: ClassVar[tuple[tuple[str, str], ...]]  # (attribute or "", wire type), in wire order


_BY_ID: dict[tuple[int, int], type[Method]] = {}
_M = TypeVar("_M", bound=Method)


@dataclass_transform(frozen_default=True)
def _method(
    class_id: int,
    method_id: int,
    *,
    client: bool = False,
    content: bool = False,
    replies: tuple[str, ...] = (),
    before: str = "",
    after: str = "",
) -> Callable[[type[_M]], type[_M]]:
    """Make a method of a class: `before` and `after` are the wire types of reserved fields."""

    def build(cls: type[_M]) -> type[_M]:
        made = dataclass(frozen=True, slots=True)(cls)
        made.CLASS_ID, made.METHOD_ID = class_id, method_id
        made.NAME = _name(made.__name__)
        made.FROM_CLIENT, made.HAS_CONTENT, made.REPLIES = client, content, replies
        made.LAYOUT = (
            *(("", kind) for kind in before.split()),
            *((field.name, _wire_type(field.type)) for field in fields(made)),  # type: ignore[arg-type]
            *(("", kind) for kind in after.split()),
        )
        _BY_ID[class_id, method_id] = made
        return made

    return build


def _wire_type(annotation: Any) -> str:
    kind: str = annotation.__metadata__[0]
    return kind


def _name(class_name: str) -> str:
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in class_name).split()
    return f"{words[0]}.{'-'.join(words[1:])}"


# --- connection


@_method(10, 10, replies=("connection.start-ok",))
class ConnectionStart(Method):
    version_major: Octet
    version_minor: Octet
    server_properties: FieldTable
    mechanisms: LongString
    locales: LongString


@_method(10, 11, client=True)
class ConnectionStartOk(Method):
    client_properties: FieldTable
    mechanism: ShortStr
    response: LongString
    locale: ShortStr


@_method(10, 20, replies=("connection.secure-ok",))
class ConnectionSecure(Method):
    challenge: LongString


@_method(10, 21, client=True)
class ConnectionSecureOk(Method):
    response: LongString


@_method(10, 30, replies=("connection.tune-ok",))
class ConnectionTune(Method):
    """`frame_max` in octets, `heartbeat` in seconds; 0 means no limit, and no heartbeat."""

    channel_max: Short
    frame_max: Long
    heartbeat: Short


@_method(10, 31, client=True)
class ConnectionTuneOk(Method):
    channel_max: Short
    frame_max: Long
    heartbeat: Short


@_method(10, 40, client=True, replies=("connection.open-ok",), after="shortstr bit")
class ConnectionOpen(Method):
    virtual_host: ShortStr


@_method(10, 41, after="shortstr")
class ConnectionOpenOk(Method):
    pass


@_method(10, 50, client=True, replies=("connection.close-ok",))
class ConnectionClose(Method):
    reply_code: Short
    reply_text: ShortStr
    class_id: Short
    method_id: Short


@_method(10, 51, client=True)
class ConnectionCloseOk(Method):
    pass


@_method(10, 60)
class ConnectionBlocked(Method):
    reason: ShortStr


@_method(10, 61)
class ConnectionUnblocked(Method):
    pass


@_method(10, 70, client=True, replies=("connection.update-secret-ok",))
class ConnectionUpdateSecret(Method):
    new_secret: LongString
    reason: ShortStr


@_method(10, 71)
class ConnectionUpdateSecretOk(Method):
    pass


# --- channel


@_method(20, 10, client=True, replies=("channel.open-ok",), after="shortstr")
class ChannelOpen(Method):
    pass


@_method(20, 11, after="longstr")
class ChannelOpenOk(Method):
    pass


@_method(20, 20, client=True, replies=("channel.flow-ok",))
class ChannelFlow(Method):
    active: Bit


@_method(20, 21)
class ChannelFlowOk(Method):
    active: Bit


@_method(20, 40, client=True, replies=("channel.close-ok",))
class ChannelClose(Method):
    reply_code: Short
    reply_text: ShortStr
    class_id: Short
    method_id: Short


@_method(20, 41, client=True)
class ChannelCloseOk(Method):
    pass


# --- access


@_method(30, 10, client=True, replies=("access.request-ok",))
class AccessRequest(Method):
    realm: ShortStr
    exclusive: Bit
    passive: Bit
    active: Bit
    write: Bit
    read: Bit


@_method(30, 11)
class AccessRequestOk(Method):
    ticket: Short


# --- exchange


@_method(40, 10, client=True, replies=("exchange.declare-ok",), before="short")
class ExchangeDeclare(Method):
    exchange: ShortStr
    type: ShortStr
    passive: Bit
    durable: Bit
    auto_delete: Bit
    internal: Bit
    nowait: Bit
    arguments: FieldTable


@_method(40, 11)
class ExchangeDeclareOk(Method):
    pass


@_method(40, 20, client=True, replies=("exchange.delete-ok",), before="short")
class ExchangeDelete(Method):
    exchange: ShortStr
    if_unused: Bit
    nowait: Bit


@_method(40, 21)
class ExchangeDeleteOk(Method):
    pass


@_method(40, 30, client=True, replies=("exchange.bind-ok",), before="short")
class ExchangeBind(Method):
    destination: ShortStr
    source: ShortStr
    routing_key: ShortStr
    nowait: Bit
    arguments: FieldTable


@_method(40, 31)
class ExchangeBindOk(Method):
    pass


@_method(40, 40, client=True, replies=("exchange.unbind-ok",), before="short")
class ExchangeUnbind(Method):
    destination: ShortStr
    source: ShortStr
    routing_key: ShortStr
    nowait: Bit
    arguments: FieldTable


@_method(40, 51)
class ExchangeUnbindOk(Method):
    pass


# --- queue


@_method(50, 10, client=True, replies=("queue.declare-ok",), before="short")
class QueueDeclare(Method):
    queue: ShortStr
    passive: Bit
    durable: Bit
    exclusive: Bit
    auto_delete: Bit
    nowait: Bit
    arguments: FieldTable


@_method(50, 11)
class QueueDeclareOk(Method):
    queue: ShortStr
    message_count: Long
    consumer_count: Long


@_method(50, 20, client=True, replies=("queue.bind-ok",), before="short")
class QueueBind(Method):
    queue: ShortStr
    exchange: ShortStr
    routing_key: ShortStr
    nowait: Bit
    arguments: FieldTable


@_method(50, 21)
class QueueBindOk(Method):
    pass


@_method(50, 30, client=True, replies=("queue.purge-ok",), before="short")
class QueuePurge(Method):
    queue: ShortStr
    nowait: Bit


@_method(50, 31)
class QueuePurgeOk(Method):
    message_count: Long


@_method(50, 40, client=True, replies=("queue.delete-ok",), before="short")
class QueueDelete(Method):
    queue: ShortStr
    if_unused: Bit
    if_empty: Bit
    nowait: Bit


@_method(50, 41)
class QueueDeleteOk(Method):
    message_count: Long


@_method(50, 50, client=True, replies=("queue.unbind-ok",), before="short")
class QueueUnbind(Method):
    queue: ShortStr
    exchange: ShortStr
    routing_key: ShortStr
    arguments: FieldTable


@_method(50, 51)
class QueueUnbindOk(Method):
    pass


# --- basic


@_method(60, 10, client=True, replies=("basic.qos-ok",))
class BasicQos(Method):
    """`prefetch_size` in octets, `prefetch_count` in messages; 0 means no limit."""

    prefetch_size: Long
    prefetch_count: Short
    global_: Bit


@_method(60, 11)
class BasicQosOk(Method):
    pass


@_method(60, 20, client=True, replies=("basic.consume-ok",), before="short")
class BasicConsume(Method):
    queue: ShortStr
    consumer_tag: ShortStr
    no_local: Bit
    no_ack: Bit
    exclusive: Bit
    nowait: Bit
    arguments: FieldTable


@_method(60, 21)
class BasicConsumeOk(Method):
    consumer_tag: ShortStr


@_method(60, 30, client=True, replies=("basic.cancel-ok",))
class BasicCancel(Method):
    consumer_tag: ShortStr
    nowait: Bit


@_method(60, 31)
class BasicCancelOk(Method):
    consumer_tag: ShortStr


@_method(60, 40, client=True, content=True, before="short")
class BasicPublish(Method):
    exchange: ShortStr
    routing_key: ShortStr
    mandatory: Bit
    immediate: Bit


@_method(60, 50, content=True)
class BasicReturn(Method):
    reply_code: Short
    reply_text: ShortStr
    exchange: ShortStr
    routing_key: ShortStr


@_method(60, 60, content=True)
class BasicDeliver(Method):
    consumer_tag: ShortStr
    delivery_tag: LongLong
    redelivered: Bit
    exchange: ShortStr
    routing_key: ShortStr


@_method(60, 70, client=True, replies=("basic.get-ok", "basic.get-empty"), before="short")
class BasicGet(Method):
    queue: ShortStr
    no_ack: Bit


@_method(60, 71, content=True)
class BasicGetOk(Method):
    delivery_tag: LongLong
    redelivered: Bit
    exchange: ShortStr
    routing_key: ShortStr
    message_count: Long


@_method(60, 72, after="shortstr")
class BasicGetEmpty(Method):
    pass


@_method(60, 80, client=True)
class BasicAck(Method):
    delivery_tag: LongLong
    multiple: Bit


@_method(60, 90, client=True)
class BasicReject(Method):
    delivery_tag: LongLong
    requeue: Bit


@_method(60, 100, client=True)
class BasicRecoverAsync(Method):
    requeue: Bit


@_method(60, 110, client=True, replies=("basic.recover-ok",))
class BasicRecover(Method):
    requeue: Bit


@_method(60, 111)
class BasicRecoverOk(Method):
    pass


@_method(60, 120, client=True)
class BasicNack(Method):
    delivery_tag: LongLong
    multiple: Bit
    requeue: Bit


# --- confirm


@_method(85, 10, client=True, replies=("confirm.select-ok",))
class ConfirmSelect(Method):
    nowait: Bit


@_method(85, 11)
class ConfirmSelectOk(Method):
    pass


# --- tx


@_method(90, 10, client=True, replies=("tx.select-ok",))
class TxSelect(Method):
    pass


@_method(90, 11)
class TxSelectOk(Method):
    pass


@_method(90, 20, client=True, replies=("tx.commit-ok",))
class TxCommit(Method):
    pass


@_method(90, 21)
class TxCommitOk(Method):
    pass


@_method(90, 30, client=True, replies=("tx.rollback-ok",))
class TxRollback(Method):
    pass


@_method(90, 31)
class TxRollbackOk(Method):
    pass


METHODS: dict[tuple[int, int], type[Method]] = dict(_BY_ID)


# --- the codec


def encode_shortstr(text: str) -> bytes:
    """One octet of length, then UTF-8 (surrogates of PEP 383 as octets). ValueError over 255."""
    octets = text.encode("utf-8", "surrogateescape")
    if len(octets) > 255:
        raise ValueError(f"shortstr over 255 octets: {text[:32]!r}…")
    return bytes((len(octets),)) + octets


def encode_method(method: Method) -> bytes:
    """The payload of the method's frame.

    Raises ValueError when a value does not fit its field: our bug, never the peer's.
    """
    parts = [_IDS.pack(method.CLASS_ID, method.METHOD_ID)]
    bits = 0
    bit_count = 0
    for attribute, kind in method.LAYOUT:
        value: Any = getattr(method, attribute) if attribute else _RESERVED[kind]
        if kind == "bit":
            bits |= bool(value) << bit_count
            bit_count += 1
            continue
        if bit_count:
            parts.append(bytes((bits,)))
            bits = bit_count = 0
        if kind == "shortstr":
            parts.append(encode_shortstr(value))
        elif kind == "longstr":
            parts.append(_LONG.pack(len(value)) + value)
        elif kind == "table":
            parts.append(encode_table(value))
        else:
            try:
                parts.append(_NUMBERS[kind].pack(value))
            except struct.error:
                raise ValueError(f"{method.NAME}: {value} does not fit a {kind}") from None
    if bit_count:
        parts.append(bytes((bits,)))
    return b"".join(parts)


# No method has more than eight bits in a row, so one octet of bits is always enough.
_RESERVED = {"bit": False, "short": 0, "shortstr": "", "longstr": b""}


def decode_method(payload: bytes) -> Method:
    """The method of a method frame's payload.

    Raises HardError: 503 for an unknown method, else 501 (text that is not UTF-8, arguments that
    are malformed or cut short, octets left over). Errors about UTF-8 name no class and method.
    """
    if len(payload) < 4:
        raise frame_error("method frame without class and method")
    class_id, method_id = _IDS.unpack_from(payload)
    cls = METHODS.get((class_id, method_id))
    if cls is None:
        raise command_invalid("unimplemented method", class_id, method_id)
    arguments: list[Any] = []
    offset = 4
    bit_mask = 0
    try:
        for attribute, kind in cls.LAYOUT:
            value: Any
            if kind == "bit":
                if not bit_mask:
                    bit_mask = 1
                    offset += 1
                value = payload[offset - 1] & bit_mask != 0
                bit_mask <<= 1
            else:
                bit_mask = 0
                if kind == "shortstr":
                    end = offset + 1 + payload[offset]
                    value = str(payload[offset + 1 : end], "utf-8")
                    offset = end
                elif kind == "longstr":
                    end = offset + 4 + _LONG.unpack_from(payload, offset)[0]
                    value = payload[offset + 4 : end]
                    offset = end
                elif kind == "table":
                    value, offset = decode_table(payload, offset)
                else:
                    number = _NUMBERS[kind]
                    (value,) = number.unpack_from(payload, offset)
                    offset += number.size
            if attribute:
                arguments.append(value)
    except UnicodeDecodeError:
        raise frame_error("Malformed UTF-8 in shortstr") from None
    except (HardError, IndexError, struct.error):
        raise _undecodable(payload, cls) from None
    if offset != len(payload):
        raise _undecodable(payload, cls)
    return cls(*arguments)


def _undecodable(payload: bytes, method: type[Method]) -> HardError:
    """RabbitMQ's answer to arguments that are cut short, malformed, or have octets left over."""
    shown = ",".join(map(str, payload[4:]))
    return frame_error(f"cannot decode <<{shown}>>", method.CLASS_ID, method.METHOD_ID)
