"""The one door to what a broker holds: for AMQP, and for whoever else manages it.

Parts of it are elsewhere: users, their rights and limits in access_operations.py, listings in
listing_operations.py, messages of a queue in message_operations.py, what is delayed in
delayed_operations.py.

Each rule about declaring, deleting, binding and purging is written once, here or in vhost.py, with
RabbitMQ's texts and order of checks. Operations take names. `owner` is the connection that asks,
None for an operator, who has no exclusive queues. Operations answer by an `Outcome`, since some
take long or wait for the disk; what is refused raises at once, before anything is done.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from qlog.routing.binding import Binding, DestinationKind
from qlog.routing.exchange import Exchange
from qlog.server.amqp.errors import (
    access_refused,
    connection_forced,
    not_found,
    not_implemented,
    precondition_failed,
)
from qlog.server.amqp.properties import Properties
from qlog.server.amqp.values import Table
from qlog.server.broker.access.actor import Actor
from qlog.server.broker.access.logins import Logins, Refused
from qlog.server.broker.access.passwords import hash_text
from qlog.server.broker.access.users import Permission, TopicPermission, User
from qlog.server.broker.access_operations import AccessOperations, when_free
from qlog.server.broker.channels import by_hand, holding
from qlog.server.broker.channels.by_hand import AckMode, Found, Rejected
from qlog.server.broker.channels.holding import Held
from qlog.server.broker.delayed_operations import DelayedOperations
from qlog.server.broker.features.parameters import InvalidParameter
from qlog.server.broker.features.policy import Policy, PolicyKind, check_policy
from qlog.server.broker.features.vhost_settings import (
    VHostProtected,
    VHostSettings,
    check_default_queue_type,
    checked_limits,
)
from qlog.server.broker.jobs import Steps, letting_go
from qlog.server.broker.listing_operations import (
    About,
    Connected,
    ListedChannel,
    ListedConsumer,
    ListingOperations,
    Spans,
    page,
)
from qlog.server.broker.message_operations import MessageOperations
from qlog.server.broker.outcome import Durable, Outcome
from qlog.server.broker.queues.effective import Applied
from qlog.server.broker.queues.type import Owner, QueueType
from qlog.server.broker.removals import RESERVED_PREFIX
from qlog.server.broker.sampling import Sampler, Span
from qlog.server.broker.services import Services
from qlog.server.broker.stats import Counts, Stats
from qlog.server.broker.vhost import VHost
from qlog.storage.bytes.manifest import BackupError
from qlog.storage.figures import Histogram, StoreFigures
from qlog.storage.space.backup import Done as BackedUp

# What operations take and give: whoever manages a broker needs no other module of it.
__all__ = [
    "About",
    "AckMode",
    "Actor",
    "BackedUp",
    "BackupError",
    "Binding",
    "Connected",
    "Counts",
    "DefinitionsError",
    "DestinationKind",
    "Exchange",
    "Found",
    "Held",
    "Histogram",
    "InvalidParameter",
    "ListedChannel",
    "ListedConsumer",
    "Operations",
    "Outcome",
    "Permission",
    "Policy",
    "PolicyKind",
    "QueueType",
    "Refused",
    "Rejected",
    "Span",
    "Spans",
    "Stats",
    "StoreFigures",
    "TopicPermission",
    "User",
    "VHost",
    "VHostProtected",
    "hash_text",
    "page",
]

logger = logging.getLogger("qlog.broker")

T = TypeVar("T")


class DefinitionsError(Exception):
    """A definitions file cannot be loaded; str() is one line that names the item."""


class Operations(AccessOperations, DelayedOperations, ListingOperations, MessageOperations):
    """See the head of this file. `vhosts`, `users` and `clients` are the broker's own, as they are now."""

    __slots__ = ("_vhosts_leaving", "alarms", "sampler")
    _clients: Collection[Connected]

    def __init__(
        self,
        services: Services,
        vhosts: dict[str, VHost],
        users: dict[str, User],
        clients: Collection[Connected],
        logins: Logins,
        alarms: Mapping[str, bool],
    ) -> None:
        super().__init__(services, vhosts, users, clients, logins)
        self._vhosts_leaving: dict[str, Outcome[None]] = {}
        self.alarms = alarms  # by what they are about; whether they are on
        self.sampler = Sampler(services, vhosts, clients)

    def back_up(self, directory: str, bytes_per_s: int) -> Outcome[BackedUp]:
        """Make a backup of the data directory while the broker runs.

        Everything that was confirmed before the call is in it. Arguments: `directory` is an
        absolute path, where the next backup adds what is new; `bytes_per_s` bounds how fast is
        copied, 0: not at all. Raises BackupError, as does the outcome.
        """
        return self._services.backups.start(Path(directory), bytes_per_s)

    @property
    def backup_waits(self) -> bool:
        """Whether a backup waits for what came before it to be on the disk."""
        return self._services.backups.waits

    @property
    def last_backup(self) -> tuple[Path, Outcome[BackedUp]] | None:
        """Where the last backup since the start goes, and what it comes to."""
        return self._services.backups.last

    def set_vhost(
        self,
        name: str,
        *,
        description: str = "",
        tags: Collection[str] = (),
        default_queue_type: str | None = None,
        protected: bool | None = None,
    ) -> Outcome[VHost]:
        """Make a vhost, or change what is set about one; its limits stay.

        `protected`: from deletion; None: as before, and a new one is not.
        Nobody may enter a new vhost before a user gets permissions for it. Raises InvalidParameter.
        """
        if default_queue_type is not None:
            check_default_queue_type(default_queue_type)

        def set_settings() -> VHost:
            vhost = self._vhosts.get(name)
            before = VHostSettings() if vhost is None else vhost.settings
            settings = replace(
                before,
                description=description,
                tags=tuple(tags),
                default_queue_type=default_queue_type,
                protected_from_deletion=(
                    before.protected_from_deletion if protected is None else protected
                ),
            )
            if vhost is None:
                self._definitions.save_vhost(name, settings)
                vhost = self._vhosts[name] = VHost(self._services, name, settings)
                logger.info("vhost made name=%s %s", name, self._actor)
            vhost.set_settings(settings)
            return vhost

        return self._durable(when_free(self._vhosts_leaving.get(name), set_settings))

    def set_vhost_limits(self, vhost: VHost, limits: object) -> Outcome[None]:
        """Limit the clients and queues of a vhost: `max-connections`, `max-queues`; {}: no limits.

        What is there stays, also if it is more. Raises InvalidParameter.
        """
        checked = checked_limits(limits)
        if checked != vhost.settings.limits:
            logger.info("limits set vhost=%s limits=%s %s", vhost.name, checked, self._actor)
        vhost.set_settings(replace(vhost.settings, limits=checked))
        return self._durable(Outcome.of(None))

    def protect_vhost(self, vhost: VHost, protected: bool) -> Outcome[None]:
        """Protect a vhost from deletion, or let it be deleted again."""
        if protected != vhost.settings.protected_from_deletion:
            logger.info("protection set vhost=%s on=%s %s", vhost.name, protected, self._actor)
        vhost.set_settings(replace(vhost.settings, protected_from_deletion=protected))
        return self._durable(Outcome.of(None))

    def delete_vhost(self, name: str) -> Outcome[None]:
        """Delete a vhost with all that is in it, and the permissions for it.

        Its clients are thrown out. It is gone at once; its name is free when the outcome is known.
        Raises 404, and VHostProtected.
        """
        vhost = self.vhost(name)
        if vhost.settings.protected_from_deletion:
            raise VHostProtected(name)
        logger.info("vhost deleted name=%s %s", name, self._actor)
        with self._definitions.transaction():
            self._definitions.delete_vhost(name)
            for user in self._users.values():
                permissions = user.permissions.pop(name, None)
                topics = user.topic_permissions.pop(name, None)
                if permissions is not None or topics is not None:
                    self.rights_changed(user)
                    self._definitions.save_user(user)
        del self._vhosts[name]
        return self._durable(self._services.jobs.start(self._deleting_vhost(vhost)))

    def _deleting_vhost(self, vhost: VHost) -> Steps[None]:
        gone = self._vhosts_leaving[vhost.name] = Outcome()
        try:
            for client in letting_go(self._clients):
                if client in vhost.clients:
                    client.fail(connection_forced(f"vhost '{vhost.name}' is deleted"), 0)
                yield
            yield from vhost.removals.deleting_all()
        finally:
            del self._vhosts_leaving[vhost.name]
            gone.set(None)

    # -- queues ------------------------------------------------------------------------------

    def queue(self, vhost: VHost, owner: Owner | None, name: str) -> QueueType:
        """The queue of that name. Raises 404, and 405 if the queue is another connection's."""
        queue = vhost.queue(name)
        vhost.assert_access(queue, owner)
        return queue

    def queue_to_read(self, vhost: VHost, owner: Owner | None, name: str) -> QueueType:
        """The same for who is about to take messages. Raises 403 before."""
        self.check(vhost, "read", "queue", name)
        return self.queue(vhost, owner, name)

    def assert_queue(self, vhost: VHost, owner: Owner | None, name: str) -> Outcome[QueueType]:
        """queue.declare with `passive`. Raises 404 and 405."""
        queue = self.queue(vhost, owner, name)
        vhost.expiry.used(queue)
        return self._durable(Outcome.of(queue))

    def declare_queue(
        self,
        vhost: VHost,
        owner: Owner | None,
        name: str,
        *,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        arguments: Table,
    ) -> Outcome[QueueType]:
        """queue.declare; an empty name is given one. Raises 403, 405 and 406."""
        assert owner is not None or not exclusive, "exclusive to whom?"

        def declare() -> QueueType:
            return vhost.declare_queue(
                name,
                owner,
                may=partial(self.check, vhost),
                durable=durable,
                exclusive=exclusive,
                auto_delete=auto_delete,
                arguments=arguments,
            )

        return self._durable(when_free(vhost.removals.leaving("queue", name), declare))

    def delete_queue(
        self, vhost: VHost, owner: Owner | None, name: str, *, if_unused: bool, if_empty: bool
    ) -> Outcome[int]:
        """queue.delete; how many messages were ready. A missing queue is no error, and had none.

        Raises 405, and 406 for a queue that is in use or not empty, if that was asked; it may fail
        with 406 later: somebody may use the queue while its dead letters are handed over. Raises
        540 if it was asked of a quorum queue.
        """
        self.check(vhost, "configure", "queue", name)
        queue = vhost.queues.get(name)
        if queue is None:
            return self._durable(Outcome.of(0))
        vhost.assert_access(queue, owner)
        if (if_unused or if_empty) and queue.declared.arguments.type == "quorum":
            flag = "if-unused" if if_unused else "if-empty"
            raise not_implemented(
                f"cannot delete {queue}. queue.delete operations with {flag} flag set are not "
                "supported by quorum queues"
            )

        def check() -> None:
            if if_unused and queue.takers:
                raise precondition_failed(f"{queue} in use")
            if if_empty and queue.ready:
                raise precondition_failed(f"{queue} not empty")

        check()
        return self._durable(vhost.removals.delete_queue(queue, check))

    def purge_queue(self, vhost: VHost, owner: Owner | None, name: str) -> Outcome[int]:
        """queue.purge; how many messages went. Raises 403, 404, 405, fails with CorruptLog."""
        return self._services.jobs.start(_purging(self.queue_to_read(vhost, owner, name)))

    def publish(
        self,
        vhost: VHost,
        exchange: str,
        key: str,
        properties: Properties,
        body: bytes,
    ) -> Outcome[bool]:
        """Publish a message, with the rights of who asks; whether a queue took it.

        Raises 403, 404 and 406, and ValueError for properties that AMQP has no octets for.
        """
        actor, post = self._actor, self._services.post
        author = actor.user or User("", b"", (), {vhost.name: (".*", ".*", ".*")})
        return by_hand.publish(vhost, post, author, actor.peer, exchange, key, properties, body)

    @property
    def blocked_reason(self) -> str:
        """Why publishers are not read now; empty: they are."""
        return " & ".join(name for name, on in self.alarms.items() if on)

    def take(self, vhost: VHost, name: str, count: int, mode: AckMode) -> Outcome[list[Found]]:
        """Take messages from the head of a queue; `mode` says what becomes of them.

        Raises 403, 404, 405 and 540; fails with CorruptLog.
        """
        queue = self.queue_to_read(vhost, None, name)
        jobs = self._services.jobs
        arriving = queue.arriving()
        if arriving is None:
            return jobs.start(by_hand.taking(queue, count, mode))
        taken: Outcome[list[Found]] = Outcome()

        def take(_: Outcome[None]) -> None:
            jobs.start(by_hand.taking(queue, count, mode)).then(taken.follow)

        arriving.then(take)
        return taken

    def deliveries(self, vhost: VHost, name: str, count: int) -> Outcome[list[Held]]:
        """What clients hold of a queue, up to so many deliveries. Raises 404 and 405."""
        queue = self.queue(vhost, None, name)
        services = self._services
        return services.jobs.start(holding.held(self._channels(), queue, count, services.now_s()))

    def extend_deadline(
        self, vhost: VHost, name: str, lane: int, qseq: int, seconds: float
    ) -> Outcome[bool]:
        """A delivery may stay unacknowledged so much longer; False: nobody has that message.

        The message is named by its lane and its number there. Raises 404 and 405.
        """
        queue = self.queue(vhost, None, name)
        logger.info("deadline put off message=%d-%d %s %s", lane, qseq, queue, self._actor)
        steps = holding.extending(self._channels(), queue, lane, qseq, seconds)
        return self._services.jobs.start(steps)

    def _channels(self) -> Iterator[ListedChannel]:
        for client in letting_go(self._clients):
            yield from letting_go(client.channels.values())

    # -- exchanges and bindings --------------------------------------------------------------

    def declare_exchange(
        self,
        vhost: VHost,
        name: str,
        type_: str,
        *,
        durable: bool,
        auto_delete: bool,
        internal: bool,
        arguments: Table,
    ) -> Outcome[None]:
        """exchange.declare. Raises 403 and 406."""
        _assert_not_default(name)

        def declare() -> None:
            vhost.declare_exchange(
                name,
                type_,
                may=partial(self.check, vhost),
                durable=durable,
                auto_delete=auto_delete,
                internal=internal,
                arguments=arguments,
            )

        return self._durable(when_free(vhost.removals.leaving("exchange", name), declare))

    def assert_exchange(self, vhost: VHost, name: str) -> Outcome[None]:
        """exchange.declare with `passive`. Raises 403 and 404."""
        _assert_not_default(name)
        vhost.exchange(name)
        return self._durable(Outcome.of(None))

    def delete_exchange(self, vhost: VHost, name: str, *, if_unused: bool) -> Outcome[None]:
        """exchange.delete; a missing exchange is no error. Raises 403 for `amq.*`, 406 in use."""
        _assert_not_default(name)
        if name.startswith(RESERVED_PREFIX):
            raise access_refused(f"deletion of system {vhost.rs_exchange(name)} not allowed")
        self.check(vhost, "configure", "exchange", name)
        if vhost.routing.exchange(name) is None or vhost.removals.leaving("exchange", name):
            return self._durable(Outcome.of(None))

        def check() -> None:
            if if_unused and vhost.routing.in_use(name):
                raise precondition_failed(f"{vhost.rs_exchange(name)} in use")

        check()
        return self._durable(vhost.removals.delete_exchange(name, check))

    def bind(
        self,
        vhost: VHost,
        owner: Owner | None,
        source: str,
        kind: DestinationKind,
        destination: str,
        key: str,
        arguments: Table,
    ) -> Outcome[None]:
        """queue.bind, exchange.bind. Raises 403, 404, 405 and 406."""
        self._check_binding(vhost, source, kind, destination, key)
        _assert_access(vhost, owner, kind, destination)
        return self._durable(vhost.bind_with_history(source, kind, destination, key, arguments))

    def unbind(
        self,
        vhost: VHost,
        owner: Owner | None,
        source: str,
        kind: DestinationKind,
        destination: str,
        key: str,
        arguments: Table,
    ) -> Outcome[None]:
        """queue.unbind, exchange.unbind: unknown names and bindings are no error.

        Raises 403 and 405.
        """
        self._check_binding(vhost, source, kind, destination, key)
        if vhost.routing.bound(Binding(source, kind, destination, key, arguments)):
            _assert_access(vhost, owner, kind, destination)
        return self._durable(vhost.removals.unbind(source, kind, destination, key, arguments))

    def unbind_it(self, vhost: VHost, binding: Binding) -> Outcome[None]:
        """Take a binding away that a listing gave. Raises 403 for one of the default exchange."""
        source, kind, destination = binding.source, binding.kind, binding.destination
        self._check_binding(vhost, source, kind, destination, binding.routing_key)
        arguments: Any = dict(binding.arguments)
        return self._durable(
            vhost.removals.unbind(source, kind, destination, binding.routing_key, arguments)
        )

    def _check_binding(
        self, vhost: VHost, source: str, kind: DestinationKind, destination: str, key: str
    ) -> None:
        """Raises 403 for bindings that nobody, or not who asks, may make or take away."""
        self.check(vhost, "write", kind, destination)
        if kind == "exchange":
            _assert_not_default(destination)
        _assert_not_default(source)
        self.check(vhost, "read", "exchange", source)
        self._check_topic(vhost, source, key)

    def global_parameters(self) -> Iterator[tuple[str, Any]]:
        """What operators keep here, by name."""
        yield from list(self._definitions.global_parameters())

    def set_global_parameter(self, name: str, value: object) -> Outcome[None]:
        """Keep a value of JSON under a name."""
        self._definitions.save_global_parameter(name, value)
        return self._durable(Outcome.of(None))

    def delete_global_parameter(self, name: str) -> Outcome[None]:
        """Forget a value; one that is not there is no error."""
        self._definitions.delete_global_parameter(name)
        return self._durable(Outcome.of(None))

    # -- policies ----------------------------------------------------------------------------

    def set_policy(
        self,
        vhost: VHost,
        kind: PolicyKind,
        name: str,
        *,
        pattern: object,
        definition: object,
        priority: object = 0,
        apply_to: object = "all",
    ) -> Outcome[None]:
        """Set a policy or an operator policy; it replaces one of its name.

        `definition` has RabbitMQ's keys (policy_keys.py) and values of JSON. `pattern` is looked
        for in names. What is declared from now on goes by it; the outcome is known when all that
        was there does, too, and the policy is durable. Raises InvalidParameter.
        """
        try:
            policy = check_policy(kind, name, pattern, definition, priority, apply_to)
        except InvalidParameter as refusal:
            logger.warning(
                "%s refused vhost=%s name=%s %s: %s", kind, vhost.name, name, self._actor, refusal
            )
            raise
        logger.info(
            "%s set vhost=%s name=%s pattern=%s %s", kind, vhost.name, name, pattern, self._actor
        )
        return self._durable(vhost.set_policy(kind, policy))

    def delete_policy(self, vhost: VHost, kind: PolicyKind, name: str) -> Outcome[None]:
        """Take a policy away. Raises 404."""
        if vhost.policies.get(kind, name) is None:
            raise not_found("Parameter does not exist")
        logger.info("%s deleted vhost=%s name=%s %s", kind, vhost.name, name, self._actor)
        return self._durable(vhost.delete_policy(kind, name))

    def policies(self, vhost: VHost, kind: PolicyKind) -> Iterator[Policy]:
        """The policies of a vhost, in the order in which they are asked: what applies is first."""
        yield from vhost.policies.all(kind)

    def policies_that_match(self, vhost: VHost, thing: str, name: str) -> list[Policy]:
        """The policies that fit a `queue` or an `exchange`; the first one applies. Raises 404."""
        if thing == "queue":
            thing = vhost.queue(name).declared.arguments.type
        else:
            vhost.exchange(name)
        return vhost.policies.matching("policy", name, thing)

    def exchange_policies(self, vhost: VHost, name: str) -> Applied:
        """What policies say of an exchange; of a queue see `queue.effective.applied`. Raises 404."""
        vhost.exchange(name)
        return vhost.policies.for_exchange(name)

    def _durable(self, effect: Outcome[T]) -> Outcome[T]:
        """The same, known when all definitions so far are durable, those of others too.

        A Declare-Ok is a promise, also that of a passive one, and so is the Delete-Ok for what is
        gone already. What has changed counts at once, for everybody.
        """
        durability = self._services.durability
        if effect.done and (not effect.succeeded or durability.defined().done):
            return effect
        answer = Durable(effect)
        effect.then(lambda done: durability.defined().then(lambda _: answer.follow(done)))
        return answer

    # -- the firehose ------------------------------------------------------------------------

    def set_tracing(self, vhost: VHost, on: bool) -> None:
        """Turn the vhost's firehose on or off (features/firehose.py). It is off after each start."""
        if on != self.tracing(vhost):
            word = "enabled" if on else "disabled"
            logger.info("tracing %s vhost=%s %s", word, vhost.name, self._actor)
        vhost.set_tracing(on)

    def tracing(self, vhost: VHost) -> bool:
        """Whether the vhost's firehose is on."""
        return vhost.firehose is not None

    def close_connection(self, client: Connected, reason: str) -> None:
        """Close a client's connection, with the reason."""
        client.fail(connection_forced(reason), 0)


def _purging(queue: QueueType) -> Steps[int]:
    count = queue.purge()
    while not queue.sweep():
        yield
    return count


def _assert_not_default(exchange: str) -> None:
    if not exchange:
        raise access_refused("operation not permitted on the default exchange")


def _assert_access(
    vhost: VHost, owner: Owner | None, kind: DestinationKind, destination: str
) -> None:
    """Raises 405 if the destination of a binding is a queue of another connection."""
    queue = vhost.queues.get(destination) if kind == "queue" else None
    if queue is not None:
        vhost.assert_access(queue, owner)
