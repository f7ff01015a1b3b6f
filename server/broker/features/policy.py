"""Policies and operator policies of one vhost: which of them a queue or an exchange goes by.

As in RabbitMQ (rabbit_policy), one policy at most applies to a thing, and one operator policy: the
one of the highest priority whose pattern is found in the name, whose `apply_to` fits, and which
has nothing that the type of the queue does not support. Among equals the first by name applies
(RabbitMQ does not say which). What both say is merged (policy_keys.py).

Promises that a policy that was refused changed nothing, and that one that was accepted cannot
stall the broker (patterns.py). Knows no queues: who asks has names and types.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qlog.server.broker.features.parameters import number, refuse
from qlog.server.broker.features.patterns import InvalidPattern, Pattern
from qlog.server.broker.features.policy_keys import UNSUPPORTED, complaint, merged
from qlog.server.broker.features.terms import term
from qlog.server.broker.queues.effective import NOTHING_APPLIES, Applied

logger = logging.getLogger("qlog.broker")

# The kinds of policies, as RabbitMQ names them among its parameters.
PolicyKind = Literal["policy", "operator_policy"]
KINDS: tuple[PolicyKind, ...] = ("policy", "operator_policy")
APPLY_TO = ("all", "exchanges", "queues", "classic_queues", "quorum_queues", "streams")
_TYPES = {"classic": "classic_queues", "quorum": "quorum_queues", "stream": "streams"}


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy, or an operator policy, as it was set. `definition` has values of JSON."""

    name: str
    pattern: str
    definition: Mapping[str, Any]
    priority: int | float = 0
    apply_to: str = "all"

    @property
    def fields(self) -> dict[str, Any]:
        """What it says, with RabbitMQ's names: for the API and for exports."""
        return {
            "pattern": self.pattern,
            "apply-to": self.apply_to,
            "priority": self.priority,
            "definition": dict(self.definition),
        }


def check_policy(
    kind: PolicyKind,
    name: str,
    pattern: object,
    definition: object,
    priority: object,
    apply_to: object,
) -> Policy:
    """A policy from what an operator gave. Raises InvalidParameter with RabbitMQ's text."""
    found = [
        number("priority", priority),
        _pattern_complaint(pattern),
        _apply_to_complaint(apply_to),
        complaint(definition, operator=kind == "operator_policy"),
    ]
    refuse([one for one in found if one is not None])
    assert isinstance(pattern, str) and isinstance(apply_to, str)
    assert isinstance(priority, int | float) and isinstance(definition, dict)
    return Policy(name, pattern, definition, priority, apply_to)


def _pattern_complaint(pattern: object) -> str | None:
    if not isinstance(pattern, str):
        return f"pattern should be a binary but was {term(pattern)}"
    try:
        Pattern(pattern, "").try_hard_names()
    except InvalidPattern as error:
        return f"pattern {error}"
    return None


def _apply_to_complaint(apply_to: object) -> str | None:
    if apply_to in APPLY_TO:
        return None
    shown = apply_to if isinstance(apply_to, str) else term(apply_to)
    return (
        f"apply-to '{shown}' unrecognised; should be one of: 'queues', 'classic_queues',  "
        "'quorum_queues', 'streams', 'exchanges', or 'all'"
    )


class _Rule:
    """A policy, ready to be asked. `things` are the types of queues, and "exchange".

    A pattern that was accepted by another version of `regex` and is not any more applies to
    nothing: the log says so, and the broker starts.
    """

    __slots__ = ("pattern", "policy", "things")

    def __init__(self, kind: PolicyKind, policy: Policy) -> None:
        self.policy = policy
        self.things: set[str] = set()
        name = f"{kind.replace('_', ' ')} '{policy.name}'"
        try:
            self.pattern = Pattern(policy.pattern, name)
        except InvalidPattern as error:
            logger.error("%s applies to nothing: its pattern %s", name, error)
            return
        keys = policy.definition.keys()
        self.things |= {
            type_
            for type_, name in _TYPES.items()
            if policy.apply_to in ("all", "queues", name) and not keys & UNSUPPORTED[type_]
        }
        if policy.apply_to in ("all", "exchanges"):
            self.things.add("exchange")


class Policies:
    """See the head of this file."""

    def __init__(self) -> None:
        self._rules: dict[PolicyKind, dict[str, _Rule]] = {kind: {} for kind in KINDS}
        self._ordered: dict[PolicyKind, list[_Rule]] = {kind: [] for kind in KINDS}
        # Queues to which the same applies share one object.
        self._applied: dict[tuple[str | None, str | None], Applied] = {}

    def __bool__(self) -> bool:
        return any(self._rules.values())

    def put(self, kind: PolicyKind, policy: Policy) -> None:
        """Set a policy that was checked; it replaces one of its name."""
        self._rules[kind][policy.name] = _Rule(kind, policy)
        self._changed(kind)

    def remove(self, kind: PolicyKind, name: str) -> None:
        """Forget a policy that is there."""
        del self._rules[kind][name]
        self._changed(kind)

    def get(self, kind: PolicyKind, name: str) -> Policy | None:
        """The policy of that name."""
        rule = self._rules[kind].get(name)
        return None if rule is None else rule.policy

    def all(self, kind: PolicyKind) -> Iterable[Policy]:
        """All policies, in the order in which they are asked."""
        return [rule.policy for rule in self._ordered[kind]]

    def matching(self, kind: PolicyKind, name: str, thing: str) -> list[Policy]:
        """Those that fit a name; the first one applies. `thing`: a queue type, or `exchange`."""
        return [
            rule.policy
            for rule in self._ordered[kind]
            if thing in rule.things and rule.pattern.matches(name)
        ]

    def _changed(self, kind: PolicyKind) -> None:
        self._ordered[kind] = sorted(
            self._rules[kind].values(), key=lambda rule: (-rule.policy.priority, rule.policy.name)
        )
        self._applied.clear()

    def for_queue(self, name: str, queue_type: str) -> Applied:
        """What applies to a queue of this name and type."""
        return self._for(name, queue_type) if self else NOTHING_APPLIES

    def for_exchange(self, name: str) -> Applied:
        """What applies to an exchange of this name."""
        return self._for(name, "exchange") if self else NOTHING_APPLIES

    def _for(self, name: str, thing: str) -> Applied:
        policy = self._first("policy", name, thing)
        operator_policy = self._first("operator_policy", name, thing)
        key = (
            None if policy is None else policy.name,
            None if operator_policy is None else operator_policy.name,
        )
        applied = self._applied.get(key)
        if applied is None:
            definition = merged(
                None if policy is None else policy.definition,
                None if operator_policy is None else operator_policy.definition,
            )
            applied = self._applied[key] = Applied(*key, definition)
        return applied

    def _first(self, kind: PolicyKind, name: str, thing: str) -> Policy | None:
        for rule in self._ordered[kind]:
            if thing in rule.things and rule.pattern.matches(name):
                return rule.policy
        return None
