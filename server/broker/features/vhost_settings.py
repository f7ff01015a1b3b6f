"""What is set about a vhost: description, tags, default queue type, limits, whether it may be
deleted. RabbitMQ's rules.

A limit of less than nothing is no limit (rabbit_vhost_limit). A queue that is declared without
`x-queue-type` is of the vhost's default type, if queues of that type can be what the declaration
says; else it is a classic queue (rabbit_amqqueue:augment_declare_args).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qlog.server.amqp.values import Table
from qlog.server.broker.features.parameters import InvalidParameter, check_terms, integer
from qlog.server.broker.queues.arguments import QUEUE_TYPES

LIMITS = ("max-connections", "max-queues")


class VHostProtected(Exception):
    """The vhost is not deleted: it is protected from that."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Refusing to delete virtual host '{name}' because it is protected from deletion"
        )


@dataclass(frozen=True, slots=True)
class VHostSettings:
    """The settings of one vhost; `limits` by RabbitMQ's names, as they were set."""

    description: str = ""
    tags: tuple[str, ...] = ()
    default_queue_type: str | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    protected_from_deletion: bool = False

    @property
    def connections_max(self) -> int | None:
        """So many clients may be in the vhost; None: any number."""
        return self._limit("max-connections")

    @property
    def queues_max(self) -> int | None:
        """So many queues may be declared; None: any number."""
        return self._limit("max-queues")

    def _limit(self, name: str) -> int | None:
        limit = self.limits.get(name, -1)
        return None if limit < 0 else limit

    def typed(
        self, arguments: Table, *, durable: bool, exclusive: bool, auto_delete: bool
    ) -> Table:
        """The arguments of a declaration, with the type that it has if it names none."""
        if self.default_queue_type is None or "x-queue-type" in arguments:
            return arguments
        lasting = durable and not exclusive and not auto_delete
        return {**arguments, "x-queue-type": self.default_queue_type if lasting else "classic"}


def check_default_queue_type(name: object) -> None:
    """Raises InvalidParameter."""
    if name not in QUEUE_TYPES:
        raise InvalidParameter(
            "default_queue_type must not be an empty string"
            if name == ""
            else f"{name} is not a valid queue type"
        )


def checked_limits(limits: object) -> dict[str, Any]:
    """The limits of a vhost from what an operator gave. Raises InvalidParameter."""
    if not isinstance(limits, dict):
        raise InvalidParameter(f"Validation failed\n\nlimits not a list {limits}\n")
    check_terms("limits", dict.fromkeys(LIMITS, integer), limits)
    return limits
