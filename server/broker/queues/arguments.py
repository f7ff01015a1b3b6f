"""The `x-` arguments of queues and consumers: what is valid, and what makes two declarations differ.

Only arguments named here are checked and compared; all others are kept and ignored, as in RabbitMQ
(rabbit_amqqueue:check_declare_arguments, rabbit_misc:assert_args_equivalence). Texts are RabbitMQ's,
Erlang terms included, because client libraries match on them.
"""

from __future__ import annotations

from collections.abc import Callable

from qlog.server.amqp.errors import precondition_failed
from qlog.server.amqp.properties import EXPIRY_MS_MAX
from qlog.server.amqp.values import Table, Value, type_name

PRIORITY_MAX = 255
QUEUE_TYPES = ("classic", "quorum")
OVERFLOWS = ("drop-head", "reject-publish", "reject-publish-dlx")

Check = Callable[[Value, Table], str | None]  # the complaint, or None


def _is_int(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


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
    return None if isinstance(value, str) else f"{{unacceptable_type,{type_name(value)}}}"


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
    return None if value in QUEUE_TYPES else f"\"unsupported queue type '{_text(value)}'\""


def _queue_version(value: Value, table: Table) -> str | None:
    if complaint := _int(value, table):
        return complaint
    return None if value == 2 else f'"unsupported queue version {_text(value)}"'


CHECKS: dict[str, Check] = {
    "x-expires": _expires,
    "x-message-ttl": _expiry,
    "x-dead-letter-exchange": _string,
    "x-dead-letter-routing-key": _dead_letter_key,
    "x-max-length": _non_negative,
    "x-max-length-bytes": _non_negative,
    "x-max-priority": _priority,
    "x-overflow": _one_of(OVERFLOWS, "invalid_overflow"),
    "x-queue-mode": _one_of(("default", "lazy"), "invalid_queue_mode"),
    "x-single-active-consumer": _bool,
    "x-queue-type": _queue_type,
    "x-queue-version": _queue_version,
    "x-consumer-timeout": _non_negative,
}
# Compared on redeclaration though not checked.
COMPARED = (*CHECKS, "x-delivery-limit")


class QueueArguments:
    """The validated arguments of one queue.

    Raises (from `check`): 406 `invalid arg 'K' for RS: …`.
    """

    __slots__ = ("consumer_timeout_s", "table", "timeout_requeues")

    def __init__(self, table: Table) -> None:
        self.table = table
        timeout_ms = table.get("x-consumer-timeout")
        self.consumer_timeout_s = timeout_ms / 1000 if isinstance(timeout_ms, int) else None
        self.timeout_requeues = table.get("x-consumer-timeout-action") == "requeue"

    @classmethod
    def check(cls, table: Table, resource: str) -> QueueArguments:
        """Validate the arguments of a declaration of `resource` (as printed in error texts)."""
        assert_string(table, "x-dead-letter-exchange", resource)
        for key, check in CHECKS.items():
            if key in table and (complaint := check(table[key], table)) is not None:
                raise precondition_failed(f"invalid arg '{key}' for {resource}: {complaint}")
        return cls(table)

    def assert_equivalent(self, received: Table, resource: str) -> None:
        """Raises 406 if a redeclaration differs in an argument that counts."""
        for key in COMPARED:
            current_value, received_value = self.table.get(key), received.get(key)
            if key == "x-queue-type":
                current_value, received_value = (
                    current_value or "classic",
                    received_value or "classic",
                )
            assert_equivalent_argument(
                key,
                resource,
                received_value,
                current_value,
                received=key in received,
                current=key in self.table,
            )


def assert_string(table: Table, key: str, resource: str) -> None:
    """Raises 406 if an argument that names an exchange is there and no string."""
    if key in table and not isinstance(table[key], str):
        raise precondition_failed(
            f"invalid type '{type_name(table[key])}' for arg '{key}' in {resource}"
        )


def assert_integer(table: Table, key: str, resource: str) -> None:
    """Raises 406 if an argument is there and no integer."""
    if key in table and (complaint := _int(table[key], table)):
        raise precondition_failed(f"invalid arg '{key}' for {resource}: {complaint}")


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
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


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
