"""What a policy can say: the keys of its definition, their values, and how they meet.

Keys, texts and the rules of merging are those of RabbitMQ 4.0.5 (rabbit_policies,
rabbit_quorum_queue, rabbit_classic_queue); that one was asked for the texts. Where two values of a
key meet, those of a policy and an operator policy are merged first, then the result meets the
argument of the queue (queues/effective.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from qlog.server.broker.features.parameters import is_integer
from qlog.server.broker.features.terms import pairs_term, term
from qlog.server.broker.queues.arguments import LEADER_LOCATORS, OVERFLOWS
from qlog.server.broker.queues.effective import BACKOFF_TYPES, smaller_limit

STREAM_SEGMENT_BYTES_MAX = 3_000_000_000
_MAX_AGE = re.compile(r"[0-9]+[YMDhms]\Z")

Valid = Callable[[object], bool]


def _at_least(low: int, high: int | None = None) -> Valid:
    def valid(value: object) -> bool:
        return is_integer(value) and low <= value and (high is None or value <= high)  # type: ignore[operator]

    return valid


def _text(value: object) -> bool:
    return isinstance(value, str)


def _one_of(*values: str | int) -> Valid:
    return lambda value: not isinstance(value, (bool, float)) and value in values


def _max_age(value: object) -> bool:
    return isinstance(value, str) and _MAX_AGE.match(value) is not None


# By key: what is valid, and how an error calls it.
KEYS: Mapping[str, tuple[Valid, str]] = {
    "alternate-exchange": (_text, "alternate exchange name"),
    "consumer-timeout": (_at_least(0), "consumer timeout"),
    # qlog's own: see docs/compatibility.md
    "consumer-timeout-action": (_one_of("close", "requeue"), "consumer timeout action"),
    "dead-letter-exchange": (_text, "dead letter exchange name"),
    "dead-letter-routing-key": (_text, "dead letter routing key"),
    "dead-letter-strategy": (_one_of("at-most-once", "at-least-once"), "dead letter strategy"),
    # These three are those of RabbitMQ 4.4.
    "delayed-retry-max": (
        _at_least(1),
        "delayed retry maximum delay. Must be a positive integer",
    ),
    "delayed-retry-min": (
        _at_least(1),
        "delayed retry minimum delay. Must be a positive integer",
    ),
    "delayed-retry-type": (
        _one_of(*BACKOFF_TYPES, "disabled"),
        "delayed retry type. Must be one of: all, failed, returned, disabled",
    ),
    "delivery-limit": (is_integer, "delivery limit"),
    "expires": (_at_least(1), "queue expiry"),
    "initial-cluster-size": (_at_least(0), "cluster size"),
    "max-age": (_max_age, "max age"),
    "max-in-memory-bytes": (_at_least(0), "maximum memory in bytes"),
    "max-in-memory-length": (_at_least(0), "maximum memory in bytes"),  # RabbitMQ's own slip
    "max-length": (_at_least(0), "maximum length"),
    "max-length-bytes": (_at_least(0), "maximum length in bytes"),
    "message-ttl": (_at_least(0), "message TTL"),
    "overflow": (_one_of(*OVERFLOWS), "overflow value"),
    "queue-leader-locator": (
        _one_of("client-local", "balanced", "random", "least-leaders"),
        "queue leader locator value",
    ),
    "queue-master-locator": (_one_of(*LEADER_LOCATORS), "master locator"),
    "queue-mode": (_one_of("default", "lazy"), "queue-mode value"),
    "queue-version": (_one_of(1, 2), "queue-version value"),
    "stream-filter-size-bytes": (_at_least(16, 255), "filter size. Valid range is 16-255"),
    "stream-max-segment-size-bytes": (_at_least(0, STREAM_SEGMENT_BYTES_MAX), "segment size"),
    "target-group-size": (_at_least(1), "qq target count value"),
}
# Those of the community's plugin rabbitmq_message_deduplication: what each value must be.
DEDUPLICATION_KEYS: Mapping[str, tuple[Valid, str]] = {
    "x-cache-persistence": (_one_of("disk", "memory"), 'must be either "disk" or "memory"'),
    "x-cache-size": (_at_least(1), "must be an integer greater than 0"),
    "x-cache-ttl": (_at_least(1), "must be an integer greater than 0"),
    "x-message-deduplication": (lambda value: isinstance(value, bool), "must be a boolean"),
}
OPERATOR_KEYS = frozenset(
    {
        "delivery-limit",
        "expires",
        "max-in-memory-bytes",
        "max-in-memory-length",
        "max-length",
        "max-length-bytes",
        "message-ttl",
        "overflow",
        "queue-master-locator",
        "queue-version",
        "target-group-size",
    }
)

# A policy with one of these does not apply to queues of the type at all, whatever else it says.
_STREAM_KEYS = {"max-age", "stream-max-segment-size-bytes", "initial-cluster-size"}
_QUORUM_KEYS = {
    "delayed-retry-max",
    "delayed-retry-min",
    "delayed-retry-type",
    "delivery-limit",
    "dead-letter-strategy",
    "target-group-size",
}
_IN_MEMORY_KEYS = {"max-in-memory-length", "max-in-memory-bytes"}
UNSUPPORTED: Mapping[str, frozenset[str]] = {
    "classic": frozenset(_STREAM_KEYS | _QUORUM_KEYS | _IN_MEMORY_KEYS),
    "quorum": frozenset(_STREAM_KEYS | {"queue-mode", "queue-master-locator"}),
    "stream": frozenset(
        _QUORUM_KEYS
        | _IN_MEMORY_KEYS
        | {
            "expires",
            "message-ttl",
            "dead-letter-exchange",
            "dead-letter-routing-key",
            "max-length",
            "overflow",
            "queue-mode",
            "queue-master-locator",
        }
    ),
}


def complaint(definition: object, *, operator: bool) -> str | None:
    """What is wrong with a definition; None: nothing."""
    if not isinstance(definition, dict):
        kind = "operator_policy_validator" if operator else "policy_validator"
        return (
            f"parse error while reading policy definition: {term(definition)}. Validator: {kind}."
        )
    if not definition:
        return "no policy provided"
    known = OPERATOR_KEYS if operator else KEYS.keys() | DEDUPLICATION_KEYS.keys()
    for key in sorted(known & definition.keys()):
        if key in DEDUPLICATION_KEYS:
            valid, words = DEDUPLICATION_KEYS[key]
            text = f'"{key}" {words}, got {term(definition[key])}'
        else:
            valid, words = KEYS[key]
            text = f"{term(definition[key])} is not a valid {words}"
        if not valid(definition[key]):
            return text
    if unknown := {key: value for key, value in definition.items() if key not in known}:
        return f"{pairs_term(unknown)} are not recognised policy settings"
    return None


# Where both policies have a key: how the values are merged. With all others the operator's counts.
_MERGES: Mapping[str, Callable[[Any, Any], Any]] = {
    "delivery-limit": smaller_limit,
    "expires": min,
    "max-in-memory-bytes": min,
    "max-in-memory-length": min,
    "max-length": min,
    "max-length-bytes": min,
    "message-ttl": min,
    "target-group-size": max,
}


def merged(
    policy: Mapping[str, Any] | None, operator_policy: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The effective definition of what both apply to."""
    definition = {**(policy or {}), **(operator_policy or {})}
    for key in (policy or {}).keys() & (operator_policy or {}).keys() & _MERGES.keys():
        assert policy is not None and operator_policy is not None
        definition[key] = _MERGES[key](policy[key], operator_policy[key])
    return definition
