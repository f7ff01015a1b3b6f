"""A document of definitions is gone through before it is loaded into a running broker.

Promises that nothing is changed, and that what passes can be loaded as the broker is now: every
rule that can refuse an item is asked, on names, routing tables and settings made up for the
purpose. What clients do between the rehearsal and the loading may still make an item fail.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qlog.routing.errors import InvalidArguments, InvalidBinding, UnknownExchangeType
from qlog.routing.exchange import ALTERNATE, LOCAL_RANDOM, assert_type
from qlog.routing.table import RoutingTable
from qlog.server.broker.access.passwords import parse_hash
from qlog.server.broker.access.permissions import check_pattern, check_topic_pattern
from qlog.server.broker.access.users import User
from qlog.server.broker.access_operations import check_user_name, checked_tags, checked_user_limits
from qlog.server.broker.definitions_file import Import, Item, as_tags, protection_of, queue_type_of
from qlog.server.broker.features.policy import PolicyKind, check_policy
from qlog.server.broker.features.vhost_settings import (
    VHostSettings,
    check_default_queue_type,
    checked_limits,
)
from qlog.server.broker.jobs import Steps
from qlog.server.broker.operations import Operations
from qlog.server.broker.queues.arguments import QueueArguments, exchange_named
from qlog.server.broker.removals import RESERVED_PREFIX
from qlog.server.broker.vhost import VHost


class Scene:
    """A vhost as it would be: what is there, and what was rehearsed so far."""

    def __init__(self, name: str, vhost: VHost | None) -> None:
        self.name = name
        self.vhost = vhost
        self.settings = VHostSettings() if vhost is None else vhost.settings
        self.table = RoutingTable()
        self.queues: dict[str, str] = {}  # those of the document, with their types

    def has_queue(self, name: str) -> bool:
        """Whether there is such a queue."""
        return name in self.queues or (self.vhost is not None and name in self.vhost.queues)

    def has_exchange(self, name: str) -> bool:
        """Whether there is such an exchange; one of the broker's is made known to the table."""
        if name in self.table:
            return True
        exchange = None if self.vhost is None else self.vhost.find_exchange(name)
        if exchange is None:
            return False
        self.table.declare_exchange(
            exchange.name,
            exchange.type,
            durable=exchange.durable,
            auto_delete=exchange.auto_delete,
            internal=exchange.internal,
            arguments=exchange.arguments,
        )
        return True

    def queue_type(self, name: str) -> str:
        """The type of a queue that is there."""
        known = self.queues.get(name)
        if known is None:
            assert self.vhost is not None
            known = self.vhost.queues[name].declared.arguments.type
        return known


@dataclass(slots=True)
class Rehearsal(Import):
    """See the head of this file. It goes through a document as `Import` does."""

    _scenes: dict[str, Scene] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)  # users of the document

    @classmethod
    def of(
        cls, operations: Operations, users: dict[str, User], document: dict[str, Any]
    ) -> Steps[list[str]]:
        """Go through a document, in steps; what would be left out. Raises DefinitionsError."""
        nothing: Any = None  # definitions: none are written
        rehearsal = cls(operations, users, nothing)
        yield from rehearsal.loading(document)
        return rehearsal.warnings

    def _scene(self, item: Item) -> Scene:
        name = item.text("vhost")
        scene = self._scenes.get(name)
        if scene is None:
            scene = self._scenes[name] = Scene(name, self._vhost(item))
        return scene

    def _known_user(self, item: Item) -> None:
        name = item.text("user")
        if name not in self.users and name not in self._names:
            raise ValueError(f"there is no user '{name}'")

    def _take_users(self, item: Item) -> None:
        name = item.text("name")
        check_user_name(name)
        if "password" in item.fields:
            item.text("password").encode()
        else:
            algorithm = item.text("hashing_algorithm", None)
            parse_hash(item.text("password_hash", ""), algorithm)
        checked_tags(as_tags(item.get("tags", (str, list), "")))
        checked_user_limits(item.table("limits"))
        self._names.add(name)

    def _take_vhosts(self, item: Item) -> None:
        name, type_ = item.text("name"), queue_type_of(item)
        if type_ is not None:
            check_default_queue_type(type_)
        item.flag("tracing", False)
        protection_of(item)
        there = {vhost.name: vhost for vhost in self.operations.vhosts()}
        scene = self._scenes[name] = Scene(name, there.get(name))
        scene.settings = VHostSettings(default_queue_type=type_, limits=scene.settings.limits)

    def _take_permissions(self, item: Item) -> None:
        self._known_user(item)
        self._scene(item)
        for right in ("configure", "write", "read"):
            check_pattern(item.text(right))

    def _take_topic_permissions(self, item: Item) -> None:
        self._known_user(item)
        self._scene(item)
        item.text("exchange")
        for right in ("write", "read"):
            check_topic_pattern(item.text(right))

    def _set_limits(self, item: Item) -> None:
        self._scene(item)
        checked_limits(item.table("value"))

    def _take_global_parameters(self, item: Item) -> None:
        item.text("name")

    def _put_policy(
        self, kind: PolicyKind, item: Item, value: Item, definition: dict[str, Any]
    ) -> None:
        self._scene(item)
        check_policy(
            kind,
            item.text("name"),
            value.fields.get("pattern"),
            definition,
            value.fields.get("priority", 0),
            value.fields.get("apply-to", "all"),
        )

    def _take_exchanges(self, item: Item) -> None:
        scene, name = self._scene(item), item.text("name")
        if not name or name.startswith(RESERVED_PREFIX) or scene.has_exchange(name):
            return
        type_, arguments = item.text("type"), item.table()
        try:
            assert_type(type_)
            exchange_named(arguments, ALTERNATE, f"exchange '{name}' in vhost '{scene.name}'")
            scene.table.declare_exchange(
                name,
                type_,
                durable=item.flag("durable", True),
                auto_delete=item.flag("auto_delete", False),
                internal=item.flag("internal", False),
                arguments=arguments,
            )
        except (UnknownExchangeType, InvalidArguments) as error:
            raise ValueError(str(error)) from error

    def _take_queues(self, item: Item) -> None:
        scene, name = self._scene(item), item.text("name")
        if scene.has_queue(name) or self._is_skipped(item, scene.name, name):
            return
        durable, auto_delete = item.flag("durable", True), item.flag("auto_delete", False)
        arguments = scene.settings.typed(
            item.table(), durable=durable, exclusive=False, auto_delete=auto_delete
        )
        checked = QueueArguments.check(
            arguments,
            f"queue '{name}' in vhost '{scene.name}'",
            durable=durable,
            exclusive=False,
            auto_delete=auto_delete,
            server_named=False,
        )
        there = 0 if scene.vhost is None else len(scene.vhost.queues)
        queues_max = scene.settings.queues_max
        if queues_max is not None and there + len(scene.queues) >= queues_max:
            raise ValueError(f"queue limit in vhost '{scene.name}' ({queues_max}) is reached")
        scene.queues[name] = checked.type

    def _bind(self, item: Item, source: str, kind: Any, destination: str) -> None:
        scene = self._scene(item)
        if not scene.has_exchange(source):
            raise ValueError(f"there is no exchange '{source}'")
        if kind == "exchange":
            if not scene.has_exchange(destination):
                raise ValueError(f"there is no exchange '{destination}'")
        elif not scene.has_queue(destination):
            raise ValueError(f"there is no queue '{destination}'")
        key, arguments = item.text("routing_key", ""), item.table()
        exchange = scene.table.exchange(source)
        assert exchange is not None
        if kind == "queue":
            queue_type = scene.queue_type(destination)
            if exchange.type == LOCAL_RANDOM and not key and queue_type != "classic":
                raise ValueError(f"a {queue_type} queue is not valid for this type of exchange")
        if kind == "queue":
            scene.table.add_queue(destination)
        try:
            scene.table.bind(source, kind, destination, key, arguments)
        except InvalidBinding as error:
            raise ValueError(str(error)) from error
