"""The `x-` arguments of queues and consumers: what is valid, what makes two declarations differ.

Only arguments named here are checked and compared; all others are kept and ignored, as in RabbitMQ
(rabbit_amqqueue:check_declare_arguments, rabbit_misc:assert_args_equivalence). The texts are those
of a RabbitMQ 4.0.5 that was asked, and so is the order of complaints. They have Erlang terms in
them, because client libraries match on the texts.
"""

from __future__ import annotations

from collections.abc import Callable

from qlog.routing.errors import InvalidMatch, erlang_text
from qlog.server.amqp.errors import precondition_failed
from qlog.server.amqp.properties import EXPIRY_MS_MAX
from qlog.server.amqp.values import LongStr, Table, Timestamp, Value, type_name
from qlog.server.broker.queues.offsets import offset_complaint, span_ms

PRIORITY_MAX = 255
QUEUE_TYPES = ("classic", "quorum", "stream")
# RabbitMQ 4.0 takes this for its default type, and yet compares it as it was given.
UNDEFINED = "undefined"
OVERFLOWS = ("drop-head", "reject-publish", "reject-publish-dlx")
DEAD_LETTER_STRATEGIES = ("at-most-once", "at-least-once")
LEADER_LOCATORS = ("client-local", "balanced", "random", "least-leaders", "min-masters")
# Arguments of other types, for each type, in the order in which RabbitMQ complains of them.
FOREIGN = {
    "classic": (
        "x-dead-letter-strategy",
        "x-delivery-limit",
        "x-initial-cluster-size",
        "x-max-age",
        "x-max-in-memory-bytes",
        "x-max-in-memory-length",
        "x-quorum-initial-group-size",
        "x-stream-max-segment-size-bytes",
    ),
    "quorum": (
        "x-initial-cluster-size",
        "x-max-age",
        "x-max-priority",
        "x-queue-master-locator",
        "x-queue-mode",
        "x-queue-version",
        "x-stream-max-segment-size-bytes",
    ),
    "stream": (
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-dead-letter-strategy",
        "x-delivery-limit",
        "x-expires",
        "x-max-in-memory-bytes",
        "x-max-in-memory-length",
        "x-max-length",
        "x-max-priority",
        "x-message-ttl",
        "x-overflow",
        "x-queue-master-locator",
        "x-queue-mode",
        "x-queue-version",
        "x-quorum-initial-group-size",
        "x-single-active-consumer",
    ),
}

# Arguments of consumers of other types, in the order in which RabbitMQ complains of them.
_OF_STREAMS = ("x-stream-filter", "x-stream-match-unfiltered", "x-stream-offset")
FOREIGN_TO_CONSUMERS = {"classic": _OF_STREAMS, "quorum": _OF_STREAMS, "stream": ("x-priority",)}
SEGMENT_BYTES_MAX = 3_000_000_000
FILTER_BYTES_MIN, FILTER_BYTES_MAX = 16, 255

Check = Callable[[Value, Table], str | None]  # the complaint, or None


def _is_int(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, (bool, Timestamp))


def _int(value: Value, _: Table) -> str | None:
    return None if _is_int(value) else f'"expected integer, got {type_name(value)}"'


def _non_negative(value: Value, table: Table) -> str | None:
    if complaint := _int(value, table):
        return complaint
    assert isinstance(value, int)
    return f"{{value_negative,{int(value)}}}" if value < 0 else None


def _expiry(value: Value, table: Table) -> str | None:
    if complaint := _non_negative(value, table):
        return complaint
    assert isinstance(value, int)
    return f"{{value_too_large,{int(value)}}}" if value > EXPIRY_MS_MAX else None


def _expires(value: Value, table: Table) -> str | None:
    return "{value_zero,0}" if _is_int(value) and value == 0 else _expiry(value, table)


def _priority(value: Value, table: Table) -> str | None:
    if complaint := _non_negative(value, table):
        return complaint
    assert isinstance(value, int)
    return f"{{max_value_exceeded,{int(value)}}}" if value > PRIORITY_MAX else None


def _string(value: Value, _: Table) -> str | None:
    return None if isinstance(value, str | LongStr) else f"{{unacceptable_type,{type_name(value)}}}"


def _dead_letter_key(value: Value, table: Table) -> str | None:
    if complaint := _string(value, table):
        return complaint
    return None if "x-dead-letter-exchange" in table else "routing_key_but_no_dlx_defined"


def _bool(value: Value, _: Table) -> str | None:
    return None if isinstance(value, bool) else f"{{unacceptable_type,{type_name(value)}}}"


def _one_of(values: tuple[Value, ...], complaint: str) -> Check:
    def check(value: Value, table: Table) -> str | None:
        return _string(value, table) or (None if value in values else complaint)

    return check


def _queue_type(value: Value, table: Table) -> str | None:
    if complaint := _string(value, table):
        return complaint
    return (
        None
        if value in (*QUEUE_TYPES, UNDEFINED)
        else f"\"unsupported queue type '{_text(value)}'\""
    )


def _queue_mode(value: Value, table: Table) -> str | None:
    if complaint := _string(value, table):
        return complaint
    return None if value in ("default", "lazy") else f"\"unsupported queue mode '{_text(value)}'\""


def _queue_version(value: Value, table: Table) -> str | None:
    if complaint := _non_negative(value, table):
        return complaint
    return None if value in (1, 2) else f"\"unsupported queue version '{_text(value)}'\""


def _max_age(value: Value, table: Table) -> str | None:
    if complaint := _string(value, table):
        return complaint
    return None if span_ms(str(value)) else "invalid_max_age"


def _group_size(value: Value, table: Table) -> str | None:
    return "{value_zero,0}" if _is_int(value) and value == 0 else _non_negative(value, table)


# In the order in which they are checked, `x-queue-type` before all of them.
CHECKS: dict[str, Check] = {
    "x-expires": _expires,
    "x-message-ttl": _expiry,
    "x-dead-letter-exchange": _string,
    "x-dead-letter-routing-key": _dead_letter_key,
    "x-dead-letter-strategy": _one_of(DEAD_LETTER_STRATEGIES, "invalid_dlx_strategy"),
    "x-max-length": _non_negative,
    "x-max-length-bytes": _non_negative,
    "x-max-in-memory-length": _non_negative,
    "x-max-in-memory-bytes": _non_negative,
    "x-max-priority": _priority,
    "x-overflow": _one_of(OVERFLOWS, "invalid_overflow"),
    "x-queue-mode": _queue_mode,
    "x-queue-version": _queue_version,
    "x-single-active-consumer": _bool,
    "x-quorum-initial-group-size": _group_size,
    "x-max-age": _max_age,
    "x-stream-max-segment-size-bytes": _non_negative,
    "x-initial-cluster-size": _group_size,
    "x-queue-leader-locator": _one_of(LEADER_LOCATORS, "invalid_queue_locator_arg"),
    "x-consumer-timeout": _non_negative,
}
# Compared on redeclaration, by the type of the queue that is there, in RabbitMQ's order
# (rabbit_classic_queue:capabilities, rabbit_quorum_queue:capabilities).
COMPARED = {
    "classic": (
        "x-expires",
        "x-message-ttl",
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-max-length",
        "x-max-length-bytes",
        "x-max-priority",
        "x-overflow",
        "x-queue-mode",
        "x-queue-version",
        "x-single-active-consumer",
        "x-queue-type",
        "x-queue-master-locator",
        "x-queue-leader-locator",
    ),
    "quorum": (
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-dead-letter-strategy",
        "x-expires",
        "x-max-length",
        "x-max-length-bytes",
        "x-max-in-memory-length",
        "x-max-in-memory-bytes",
        "x-overflow",
        "x-single-active-consumer",
        "x-queue-type",
        "x-quorum-initial-group-size",
        "x-delivery-limit",
        "x-message-ttl",
        "x-queue-leader-locator",
    ),
    "stream": (
        "x-max-length-bytes",
        "x-queue-type",
        "x-max-age",
        "x-stream-max-segment-size-bytes",
        "x-initial-cluster-size",
        "x-queue-leader-locator",
    ),
}


class QueueArguments:
    """The validated arguments of one queue.

    `type` is classic, quorum or stream; `level_max`: the highest priority of messages, 0 if there
    are no priorities; `single_active`: one consumer at a time gets messages; `deduplicates`: no message
    comes in twice (features/deduplication.py). Raises (from `check`): 406
    `invalid arg 'K' for RS…`, `invalid property 'P' for RS`.
    """

    __slots__ = ("deduplicates", "level_max", "single_active", "table", "type")

    def __init__(self, table: Table) -> None:
        self.table = table
        self.type = _type_of(table)
        priority = table.get("x-max-priority")
        # RabbitMQ 4.0.5 takes a maximum of 0 for one of 1.
        self.level_max = max(priority, 1) if isinstance(priority, int) else 0
        self.single_active = table.get("x-single-active-consumer") is True
        self.deduplicates = table.get("x-message-deduplication") is True

    @classmethod
    def check(
        cls,
        table: Table,
        resource: str,
        *,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        server_named: bool,
    ) -> QueueArguments:
        """Validate a declaration of `resource` (as printed in error texts) that makes a queue."""
        exchange_named(table, "x-dead-letter-exchange", resource)
        _assert_valid("x-queue-type", _queue_type, table, resource)
        queue_type = _type_of(table)
        if server_named and queue_type != "classic":
            raise precondition_failed(
                f"Cannot declare a server-named queue for type rabbit_{queue_type}_queue"
            )
        foreign = FOREIGN[queue_type]
        for key, check in CHECKS.items():
            if key not in foreign:
                _assert_valid(key, check, table, resource)
        _assert_known(table, foreign, resource, queue_type)
        if queue_type != "classic":
            _assert_lasting(resource, durable, exclusive, auto_delete)
        if queue_type == "stream":
            _assert_sizes(table)
        return cls(table)

    def assert_equivalent(self, received: Table, resource: str) -> None:
        """Raises 406 if a redeclaration differs in an argument that counts."""
        # RabbitMQ puts the type into a declaration that lacks it.
        current = {"x-queue-type": "classic", **self.table}
        received = {"x-queue-type": "classic", **received}
        for key in COMPARED[self.type]:
            assert_equivalent_argument(
                key,
                resource,
                received.get(key),
                current.get(key),
                received=key in received,
                current=key in current,
            )


def _type_of(table: Table) -> str:
    given = table.get("x-queue-type", UNDEFINED)
    return "classic" if given == UNDEFINED else str(given)


def _assert_valid(key: str, check: Check, table: Table, resource: str) -> None:
    if key in table and (complaint := check(table[key], table)) is not None:
        raise precondition_failed(f"invalid arg '{key}' for {resource}: {complaint}")


def _assert_known(table: Table, foreign: tuple[str, ...], resource: str, queue_type: str) -> None:
    for key in foreign:
        if key in table:
            raise precondition_failed(
                f"invalid arg '{key}' for {resource} of queue type rabbit_{queue_type}_queue"
            )


def _assert_lasting(resource: str, durable: bool, exclusive: bool, auto_delete: bool) -> None:
    """A replicated queue cannot be transient, exclusive or auto-delete. Raises 406."""
    invalid = {
        "auto-delete": auto_delete,
        "exclusive-owner": exclusive,
        "non-durable": not durable,
    }
    for name, given in invalid.items():
        if given:
            raise precondition_failed(f"invalid property '{name}' for {resource}")


def _assert_sizes(table: Table) -> None:
    """The sizes of a stream's files and filters. Raises 406."""
    segment_bytes = table.get("x-stream-max-segment-size-bytes", 0)
    if isinstance(segment_bytes, int) and segment_bytes > SEGMENT_BYTES_MAX:
        raise precondition_failed("Exceeded max value for x-stream-max-segment-size-bytes")
    filter_bytes = table.get("x-stream-filter-size-bytes", FILTER_BYTES_MIN)
    if not _is_int(filter_bytes) or not FILTER_BYTES_MIN <= int(filter_bytes) <= FILTER_BYTES_MAX:  # type: ignore[arg-type]
        raise precondition_failed("Invalid value for  x-stream-filter-size-bytes")


def exchange_named(table: Table, key: str, resource: str) -> str | None:
    """The exchange that an argument names; None: it is not there. Raises 406 if it is no string."""
    if key not in table:
        return None
    value = table[key]
    if isinstance(value, LongStr):
        return value.decode(errors="replace")
    if not isinstance(value, str):
        raise precondition_failed(
            f"invalid type '{type_name(value)}' for arg '{key}' in {resource}"
        )
    return value


def check_consumer(table: Table, resource: str, queue_type: str) -> None:
    """Validate the arguments of basic.consume. Raises 406 `invalid arg 'K' for RS…`.

    As RabbitMQ 4.0.5, which checks values before it looks for arguments of other queue types.
    """
    if queue_type == "stream":
        _assert_valid("x-stream-offset", lambda value, _: offset_complaint(value), table, resource)
        _assert_valid("x-stream-filter", _filter, table, resource)
    else:
        _assert_valid("x-priority", _int, table, resource)
    _assert_known(table, FOREIGN_TO_CONSUMERS[queue_type], resource, queue_type)


def _filter(value: Value, _: Table) -> str | None:
    """RabbitMQ 4.0.5 ends the connection (541) for an empty list."""
    return "{no_values}" if isinstance(value, list) and not value else None


def _type_class(value: Value) -> str:
    """Numbers are compared by class: any int equals any int of the same value, never a float."""
    name = type_name(value)
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    return "float" if isinstance(value, float) else name


def _text(value: Value) -> str:
    """A value as Erlang would print it in a sentence."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _quoted(value: Value) -> str:
    return f"'{_text(value)}'"


def assert_equivalent_argument(
    key: str,
    resource: str,
    received_value: Value,
    current_value: Value,
    *,
    received: bool = True,
    current: bool = True,
) -> None:
    """Raises 406 `inequivalent arg …` unless both sides carry the same value, or neither any."""
    if received_value == current_value and _type_class(received_value) == _type_class(
        current_value
    ):
        return
    if received and current:
        texts = _quoted(received_value), _quoted(current_value)
    else:
        texts = (
            _typed(received_value) if received else "none",
            _typed(current_value) if current else "none",
        )
    raise precondition_failed(
        f"inequivalent arg '{key}' for {resource}: received {texts[0]} but current is {texts[1]}"
    )


def _typed(value: Value) -> str:
    return f"the value {_quoted(value)} of type '{type_name(value)}'"


def invalid_match(value: Value) -> str:
    """Why the argument `x-match` of a binding is refused, with the type that it has on the wire."""
    if isinstance(value, str):
        return str(InvalidMatch(value))
    return (
        f"Invalid x-match field type {type_name(value)} (value {_erlang(value)}); expected longstr"
    )


def _erlang(value: Value) -> str:
    """A field value as Erlang prints it, on one line: RabbitMQ breaks lines of 80 characters."""
    if isinstance(value, list):
        return "[" + ",".join(f"{{{type_name(one)},{_erlang(one)}}}" for one in value) + "]"
    if isinstance(value, dict):
        entries = (
            f"{{{erlang_text(key)},{type_name(one)},{_erlang(one)}}}" for key, one in value.items()
        )
        return "[" + ",".join(entries) + "]"
    if value is None:
        return "undefined"
    return erlang_text(value) if isinstance(value, str) else _text(value)
