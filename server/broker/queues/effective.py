"""The settings that a queue works with, as opposed to those that it was declared with.

Here the declared arguments meet what policies say. A redeclaration is compared with the declared
arguments. All other code asks the queue for its effective settings, which are replaced as a whole
when a policy changes. So no code may keep a copy of a value for longer than a call.

Who wins where both say something is RabbitMQ's (rabbit_amqqueue_process:process_args_policy,
rabbit_quorum_queue:gather_policy_config, rabbit_stream_queue): the smaller of two limits, the
declared argument for dead letters, and for `overflow` the argument of a classic queue, but the
policy of a quorum queue. In a stream the policy wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qlog.routing.deduplication import DEDUPLICATION
from qlog.server.amqp.properties import EXPIRY_MS_MAX
from qlog.server.broker.queues.arguments import QueueArguments

DROP_HEAD = "drop-head"
REJECT = "reject-publish"
REJECT_DEAD_LETTER = "reject-publish-dlx"
# A tick may take some of a time that is so short, or all of it: messages with such a time are
# offered to consumers before it counts.
SHORT_MS = 1000
# RabbitMQ's default for quorum queues since 4.0.
QUORUM_DELIVERY_LIMIT = 20


@dataclass(frozen=True, slots=True)
class Applied:
    """What policies say of a queue or an exchange.

    `policy` and `operator_policy` are the names of those that apply, `definition` is what both
    yield: values of JSON by RabbitMQ's keys, such as `message-ttl`.
    """

    policy: str | None = None
    operator_policy: str | None = None
    definition: Mapping[str, Any] = field(default_factory=dict)


NOTHING_APPLIES = Applied()

BACKOFF_TYPES = ("all", "failed", "returned")


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long messages of a quorum queue wait that came back, and which (BACKOFF_TYPES)."""

    type: str
    min_ms: int
    max_ms: int

    def concerns(self, *, failed: bool) -> bool:
        """Whether messages wait that failed, or that were given back without having failed."""
        return self.type == "all" or (self.type == "failed") is failed

    def delay_ms(self, attempts: int) -> int:
        """How long a message waits that came back so often."""
        return min(self.min_ms * max(attempts, 1), self.max_ms)


def smaller_limit(one: int, other: int) -> int:
    """The stricter of two delivery limits; a negative one is no limit."""
    return max(one, other) if one < 0 or other < 0 else min(one, other)


def _declared(policy: Any, declared: Any) -> Any:
    return declared


def _policy(policy: Any, declared: Any) -> Any:
    return policy


# By key, for all types of queues: which of two values counts, that of the policies or the declared.
_MEET: Mapping[str, Callable[[Any, Any], Any]] = {
    "consumer-timeout": min,
    "consumer-timeout-action": _declared,
    "dead-letter-exchange": _declared,
    "dead-letter-routing-key": _declared,
    "dead-letter-strategy": _declared,
    "delayed-retry-max": min,
    "delayed-retry-min": min,
    "delayed-retry-type": _policy,
    "delivery-limit": smaller_limit,
    "expires": min,
    "max-age": _policy,
    "max-length": min,
    "max-length-bytes": min,
    "message-ttl": min,
    "overflow": _declared,
    "stream-max-segment-size-bytes": _policy,
}
_MEET_BY_TYPE: Mapping[str, Mapping[str, Callable[[Any, Any], Any]]] = {
    "classic": {},
    "quorum": {"overflow": _policy},
    "stream": {"max-length-bytes": _policy},
}
# Arguments that RabbitMQ does not check: another type counts as nothing.
_UNCHECKED = {
    "delayed-retry-max": int,
    "delayed-retry-min": int,
    "delayed-retry-type": str,
    "delivery-limit": int,
    "consumer-timeout-action": str,
    "max-age": str,
}


class Effective:
    """The settings of one queue; None where nothing is set. They are not changed, but replaced.

    `applied`: the policies, for listings. `message_ttl_ms`: how long a message may be ready.
    `expires_ms`: how long the queue may be unused. `max_length`, `max_length_bytes`: how many
    messages and octets of bodies may be ready; `overflow` (`drop-head`, `reject-publish`,
    `reject-publish-dlx`): what happens beyond that. `dead_letter_exchange`: where dead letters go,
    with `dead_letter_routing_key` if that is set; `dead_letter_strategy`: `at-most-once` or
    `at-least-once`. `keeps_dead`: what no queue takes of the dead letters stays, since that is
    asked for and possible. `backoff`: whether and for how long what comes back to a quorum queue
    waits. `deduplicates`: no message comes in twice; a policy wins, as in the plugin.
    `delivery_limit`: how often a message of a quorum queue may come back.
    `max_age`: of a stream, such as `7D`; `segment_bytes`: of its files.
    `consumer_timeout_s`: how long a delivery may stay
    unacknowledged, in seconds; 0: for ever. `timeout_requeues`: an overdue delivery is requeued,
    instead of the channel being closed. `plain`: a message that comes is appended to the queue's
    lane, and nothing else has to be done. When it changes, the vhost's routes have to be forgotten
    (`Targets.plain`), and the queue has to be woken.
    """

    __slots__ = (
        "applied",
        "backoff",
        "consumer_timeout_s",
        "dead_letter_exchange",
        "dead_letter_routing_key",
        "dead_letter_strategy",
        "deduplicates",
        "delivery_limit",
        "expires_ms",
        "keeps_dead",
        "limited",
        "max_age",
        "max_length",
        "max_length_bytes",
        "message_ttl_ms",
        "overflow",
        "plain",
        "segment_bytes",
        "timeout_requeues",
    )

    def __init__(
        self,
        declared: QueueArguments,
        applied: Applied = NOTHING_APPLIES,
        *,
        consumer_timeout_s: float,
    ) -> None:
        """`consumer_timeout_s` is the broker's own, for queues that say nothing else."""
        found = _met(declared, applied.definition)
        self.applied = applied
        self.message_ttl_ms = _bounded_ms(found("message-ttl"))
        self.expires_ms = _bounded_ms(found("expires"))
        self.max_length: int | None = found("max-length")
        self.max_length_bytes: int | None = found("max-length-bytes")
        self.overflow: str = found("overflow") or DROP_HEAD
        self.dead_letter_exchange = _name(found("dead-letter-exchange"))
        self.dead_letter_routing_key = _name(found("dead-letter-routing-key"))
        self.dead_letter_strategy: str = found("dead-letter-strategy") or "at-most-once"
        self.max_age: str | None = found("max-age")
        self.segment_bytes: int | None = found("stream-max-segment-size-bytes")
        self.deduplicates: bool = declared.type != "stream" and applied.definition.get(
            DEDUPLICATION, declared.deduplicates
        )
        self.delivery_limit: int | None = None
        self.backoff: Backoff | None = None
        if declared.type == "quorum":
            self.backoff = _backoff(found)
            limit = found("delivery-limit")
            limit = QUORUM_DELIVERY_LIMIT if limit is None else limit
            self.delivery_limit = None if limit < 0 else limit
            if self.overflow == REJECT_DEAD_LETTER:
                self.overflow = DROP_HEAD  # RabbitMQ warns, and takes the default
        timeout_ms = found("consumer-timeout")
        self.consumer_timeout_s = consumer_timeout_s if timeout_ms is None else timeout_ms / 1000
        self.timeout_requeues = found("consumer-timeout-action") == "requeue"
        # Without reject-publish RabbitMQ falls back to at-most-once, too.
        self.keeps_dead = self.dead_letter_strategy == "at-least-once" and self.overflow == REJECT
        short = self.message_ttl_ms is not None and self.message_ttl_ms < SHORT_MS
        # A stream takes all messages, and gives the oldest up later.
        self.limited = declared.type != "stream" and (
            self.max_length is not None or self.max_length_bytes is not None
        )
        self.plain = declared.type == "stream" or not (
            self.limited or declared.level_max or short or self.deduplicates
        )


def _name(value: str | bytes | None) -> str | None:
    """A name. Where it is not UTF-8 it has the characters that are put for that: nobody has it."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _backoff(found: Callable[[str], Any]) -> Backoff | None:
    """As RabbitMQ 4.4 takes it (rabbit_quorum_queue:get_delayed_retry_config)."""
    kind, min_ms, max_ms = (found(f"delayed-retry-{part}") for part in ("type", "min", "max"))
    if kind not in BACKOFF_TYPES or min_ms is None or min_ms < 1:
        return None
    return Backoff(kind, min_ms, min_ms if max_ms is None or max_ms < 1 else max_ms)


def _bounded_ms(value_ms: int | None) -> int | None:
    """RabbitMQ bounds the arguments of queues so, but not what policies say."""
    return None if value_ms is None else min(value_ms, EXPIRY_MS_MAX)


def _met(declared: QueueArguments, definition: Mapping[str, Any]) -> Callable[[str], Any]:
    """Which value of a key counts."""
    table, by_type = declared.table, _MEET_BY_TYPE[declared.type]

    def found(key: str) -> Any:
        argument: Any = table.get("x-" + key)
        if key in _UNCHECKED and not isinstance(argument, _UNCHECKED[key]):
            argument = None
        policy = definition.get(key)
        if argument is None or policy is None:
            return policy if argument is None else argument
        return by_type.get(key, _MEET[key])(policy, argument)

    return found
