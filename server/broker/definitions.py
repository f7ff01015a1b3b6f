"""Durable definitions and the catalog: vhosts, users, exchanges, queues, bindings, policies.

The catalog keeps opaque values by kind and name; this file says what is in them. A name is the
JSON list of what identifies the thing; a value is a msgpack map. Arguments are kept as AMQP field
tables, so that each value keeps its type. A change is durable when the ledger is synced behind it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgpack

from qlog.routing.binding import Binding, DestinationKind
from qlog.routing.exchange import Exchange
from qlog.server.amqp.values import Table, decode_table, encode_table
from qlog.server.broker.access.users import User
from qlog.server.broker.features.policy import KINDS, Policy, PolicyKind
from qlog.server.broker.features.vhost_settings import VHostSettings
from qlog.server.broker.queues.levels import LaneIds
from qlog.server.broker.queues.type import Declaration
from qlog.storage.catalog import Catalog


@dataclass(frozen=True, slots=True)
class QueueDefinition:
    """A durable queue as the catalog keeps it.

    `lane_ids` are its lanes by level: level 0, and the other levels of a priority queue, or of a
    quorum queue, that were used.
    """

    vhost: str
    name: str
    lane_ids: LaneIds
    auto_delete: bool
    arguments: Table

    @property
    def lane_id(self) -> int:
        """The lane of level 0."""
        return self.lane_ids[0]

    def level_of(self, lane_id: int) -> int:
        """The level, a priority, of one of its lanes."""
        return next(level for level, one in self.lane_ids.items() if one == lane_id)


# What a hidden lane is for: delayed messages, the keys of those that were seen, or what came back to
# a queue and waits.
DELAYED = "delayed"
WINDOW = "window"
WAITS = "waits"


class HiddenLane(NamedTuple):
    """A lane that is no queue's, and the durable thing that it belongs to (hidden_lanes.py)."""

    vhost: str
    kind: DestinationKind
    name: str
    role: str
    lane_id: int

    @property
    def queue_name(self) -> str:
        """How tools name it, as if it were a queue: what is delayed as LavinMQ does."""
        return f"amq.{self.role}-{self.name}"


def lane_ids_of(value: bytes) -> LaneIds:
    """The lanes by level in the value of a queue.

    Raises KeyError, TypeError and ValueError for a value that does not decode.
    """
    return _lane_ids(msgpack.unpackb(value))


def _lane_ids(value: dict[str, Any]) -> LaneIds:
    return {0: value["lane"], **dict(value.get("levels", ()))}


def _name(*parts: str) -> str:
    return json.dumps(parts)


def _binding_name(vhost: str, binding: Binding) -> str:
    arguments = _packed(binding.arguments).hex()
    return _name(
        vhost, binding.source, binding.kind, binding.destination, binding.routing_key, arguments
    )


def _packed(arguments: Any) -> bytes:
    return encode_table(arguments)


def _table(value: bytes) -> Table:
    return decode_table(value)[0]


class Definitions:
    """Reads and writes the catalog of one store."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def transaction(self) -> AbstractContextManager[None]:
        """Everything in the block becomes durable together."""
        return self._catalog.transaction()

    def _items(self, kind: str) -> Iterator[tuple[list[str], dict[str, Any]]]:
        for name, value in self._catalog.items(kind):
            yield json.loads(name), msgpack.unpackb(value)

    def _put(self, kind: str, name: str, value: dict[str, Any]) -> None:
        packed = msgpack.packb(value)
        if self._catalog.get(kind, name) != packed:
            self._catalog.put(kind, name, packed)

    # -- vhosts and users --------------------------------------------------------------------

    def save_vhost(self, name: str, settings: VHostSettings) -> None:
        self._put(
            "vhost",
            _name(name),
            {
                "description": settings.description,
                "tags": settings.tags,
                "default_queue_type": settings.default_queue_type,
                "limits": json.dumps(settings.limits),  # numbers of any size
                "protected_from_deletion": settings.protected_from_deletion,
            },
        )

    def delete_vhost(self, name: str) -> None:
        self._catalog.delete("vhost", _name(name))

    def vhosts(self) -> Iterator[tuple[str, VHostSettings]]:
        for (name,), value in self._items("vhost"):
            yield (
                name,
                VHostSettings(
                    value.get("description", ""),
                    tuple(value.get("tags", ())),
                    value.get("default_queue_type"),
                    json.loads(value.get("limits", "{}")),
                    value.get("protected_from_deletion", False),
                ),
            )

    def save_user(self, user: User) -> None:
        self._put(
            "user",
            _name(user.name),
            {
                "password_hash": user.password_hash,
                "tags": list(user.tags),
                "permissions": user.permissions,
                "topic_permissions": user.topic_permissions,
                "limits": json.dumps(user.limits),  # numbers of any size
                "replaced": user.replaced,
            },
        )

    def delete_user(self, name: str) -> None:
        self._catalog.delete("user", _name(name))

    def users(self) -> Iterator[User]:
        for (name,), value in self._items("user"):
            permissions = {
                vhost: (configure, write, read)
                for vhost, (configure, write, read) in value["permissions"].items()
            }
            topics = {
                vhost: {exchange: (write, read) for exchange, (write, read) in by_exchange.items()}
                for vhost, by_exchange in value.get("topic_permissions", {}).items()
            }
            yield User(
                name,
                value["password_hash"],
                tuple(value["tags"]),
                permissions,
                topics,
                json.loads(value.get("limits", "{}")),
                replaced=value.get("replaced", b""),
            )

    # -- policies ----------------------------------------------------------------------------

    def save_policy(self, vhost: str, kind: PolicyKind, policy: Policy) -> None:
        self._put(
            kind,
            _name(vhost, policy.name),
            {
                "pattern": policy.pattern,
                "definition": json.dumps(policy.definition),
                "priority": policy.priority,
                "apply_to": policy.apply_to,
            },
        )

    def delete_policy(self, vhost: str, kind: PolicyKind, name: str) -> None:
        self._catalog.delete(kind, _name(vhost, name))

    def policies(self, kind: PolicyKind = "policy") -> Iterator[tuple[str, Policy]]:
        for (vhost, name), value in self._items(kind):
            yield (
                vhost,
                Policy(
                    name,
                    value["pattern"],
                    json.loads(value["definition"]),
                    value["priority"],
                    value["apply_to"],
                ),
            )

    def operator_policies(self) -> Iterator[tuple[str, Policy]]:
        return self.policies("operator_policy")

    # -- parameters that the broker keeps for those who know what they mean --------------------

    def save_global_parameter(self, name: str, value: object) -> None:
        self._put("global_parameter", _name(name), {"value": json.dumps(value)})

    def delete_global_parameter(self, name: str) -> None:
        if name in dict(self.global_parameters()):
            self._catalog.delete("global_parameter", _name(name))

    def global_parameters(self) -> Iterator[tuple[str, Any]]:
        for (name,), value in self._items("global_parameter"):
            yield name, json.loads(value["value"])

    # -- exchanges ---------------------------------------------------------------------------

    def save_exchange(self, vhost: str, exchange: Exchange) -> None:
        self._put(
            "exchange",
            _name(vhost, exchange.name),
            {
                "type": exchange.type,
                "auto_delete": exchange.auto_delete,
                "internal": exchange.internal,
                "arguments": _packed(exchange.arguments),
            },
        )

    def delete_exchange(self, vhost: str, name: str) -> None:
        self._catalog.delete("exchange", _name(vhost, name))

    def exchanges(self) -> Iterator[tuple[str, Exchange]]:
        for (vhost, name), value in self._items("exchange"):
            yield (
                vhost,
                Exchange(
                    name,
                    value["type"],
                    True,
                    value["auto_delete"],
                    value["internal"],
                    _table(value["arguments"]),
                ),
            )

    def drop_orphans(self) -> None:
        """Delete what is left in vhosts that are gone: a crash cut their deletion off."""
        # A name begins with its vhost; to decode each would take a start long.
        known = tuple(json.dumps((name,))[:-1] + ", " for name, _ in self.vhosts())
        for kind in ("exchange", "queue", "binding", "hidden_lane", *KINDS):
            for name, _ in self._catalog.items(kind):
                if not name.startswith(known):
                    self._catalog.delete(kind, name)

    # -- queues ------------------------------------------------------------------------------

    def save_queue(self, declared: Declaration, lane_ids: LaneIds) -> None:
        value = {
            "lane": lane_ids[0],
            "auto_delete": declared.auto_delete,
            "arguments": _packed(declared.arguments.table),
        }
        levels = [level_and_id for level_and_id in lane_ids.items() if level_and_id[0]]
        if levels:
            value["levels"] = levels
        self._put("queue", _name(declared.vhost, declared.name), value)

    def delete_queue(self, declared: Declaration) -> None:
        self._catalog.delete("queue", _name(declared.vhost, declared.name))

    def queues(self) -> Iterator[QueueDefinition]:
        for (vhost, name), value in self._items("queue"):
            yield QueueDefinition(
                vhost, name, _lane_ids(value), value["auto_delete"], _table(value["arguments"])
            )

    def save_hidden_lane(self, lane: HiddenLane) -> None:
        self._put(
            "hidden_lane",
            _name(lane.vhost, lane.kind, lane.name, lane.role),
            {"lane": lane.lane_id},
        )

    def delete_hidden_lane(self, vhost: str, kind: str, name: str, role: str) -> None:
        self._catalog.delete("hidden_lane", _name(vhost, kind, name, role))

    def hidden_lanes(self) -> Iterator[HiddenLane]:
        for (vhost, kind, name, role), value in self._items("hidden_lane"):
            owner_kind: DestinationKind = "exchange" if kind == "exchange" else "queue"
            yield HiddenLane(vhost, owner_kind, name, role, value["lane"])

    # -- bindings ----------------------------------------------------------------------------

    def save_binding(self, vhost: str, binding: Binding) -> None:
        place = {} if binding.place is None else {"place": binding.place}
        self._put("binding", _binding_name(vhost, binding), place)

    def delete_binding(self, vhost: str, binding: Binding) -> None:
        self._catalog.delete("binding", _binding_name(vhost, binding))

    def bindings(self) -> Iterator[tuple[str, Binding]]:
        for (vhost, source, kind, destination, key, arguments), value in self._items("binding"):
            yield (
                vhost,
                Binding(
                    source,
                    "exchange" if kind == "exchange" else "queue",
                    destination,
                    key,
                    _table(bytes.fromhex(arguments)),
                    value.get("place"),
                ),
            )
