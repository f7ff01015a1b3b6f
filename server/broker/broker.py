"""The whole: vhosts, users, clients, the store, and what has to happen at the end of a tick.

A tick is what one turn of the loop brings: one read of each socket that is ready. Messages are
appended as they come. At the end of the tick `pump` delivers from the queues that were touched, and
the caller hands the batch to the disk (`Store.commit`). When the disk answers, `progress` sends the
confirms. Knows no socket, and no clock but the ones that are passed in.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import HardError
from qlog.server.amqp.values import Table
from qlog.server.broker.access.hashing import Hashing, InlineHashing
from qlog.server.broker.access.logins import Logins
from qlog.server.broker.access.passwords import hash_password
from qlog.server.broker.access.users import User
from qlog.server.broker.definitions_export import exporting
from qlog.server.broker.definitions_file import Import, has_users_and_vhosts
from qlog.server.broker.definitions_rehearsal import Rehearsal
from qlog.server.broker.features.policy import KINDS
from qlog.server.broker.features.vhost_settings import VHostSettings
from qlog.server.broker.jobs import TURN_S, Steps, letting_go
from qlog.server.broker.operations import Connected, Operations
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.queues.arguments import QueueArguments
from qlog.server.broker.queues.type import Declaration
from qlog.server.broker.services import Services, wall_clock_ms
from qlog.server.broker.settings import BrokerSettings
from qlog.server.broker.vhost import VHost
from qlog.storage.store import Store

logger = logging.getLogger("qlog.broker")

# The broker looks for overdue deliveries this often; RabbitMQ does it once a minute.
CONSUMER_CHECK_INTERVAL_S = 60.0
FIRST_CONSUMER_CHECK_S = 1.0


class Member(Connected, Protocol):
    """A client of the broker."""

    def checking_consumers(self, now_s: float) -> Steps[None]:
        """Close the channels whose consumers hold a delivery longer than they may."""

    def unblock(self) -> None:
        """The alarm is over."""


class Broker:
    """All state of a running broker.

    Arguments: `now_s` a monotonic clock in seconds, `now_ms` the wall clock in milliseconds;
    `document` is a definitions file that is to be loaded; `hashing` makes hashes of passwords away
    from the loop, if given, and ends with its owner. Raises StorageError if the catalog is
    damaged, and DefinitionsError if the document cannot be loaded: the directory has nothing of it
    then.
    """

    def __init__(
        self,
        store: Store[Envelope],
        settings: BrokerSettings,
        now_s: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = wall_clock_ms,
        document: dict[str, Any] | None = None,
        hashing: Hashing | None = None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.now_s = now_s
        self.services = Services(store, settings, now_s, now_ms)
        # Deliver from all queues that were touched. Bound once: a turn asks for it two or three times.
        self.pump = self.services.delivery.pump
        self.definitions = self.services.definitions
        self.timers = self.services.timers
        self.clients: set[Member] = set()
        self.vhosts: dict[str, VHost] = {}
        self.users: dict[str, User] = {}
        self.hashing = hashing or InlineHashing()
        self._logins = logins = Logins(
            self.users,
            self.hashing,
            self.timers,
            now_s,
            self.definitions.save_user,
            loopback_only=settings.loopback_users,
        )
        self.alarms = dict.fromkeys(
            ("low on memory", "low on disk", "low on file descriptors"), False
        )
        self.operations = Operations(
            self.services, self.vhosts, self.users, self.clients, logins, self.alarms
        )
        # Why publishers are not read, in the words of connection.blocked; empty: they are read.
        self.blocked_reason = ""
        self._load(document)
        self.timers.at(now_s() + FIRST_CONSUMER_CHECK_S, self._check_consumers)

    # -- definitions -------------------------------------------------------------------------

    def _load(self, document: dict[str, Any] | None) -> None:
        for name, settings in self.definitions.vhosts():
            self.vhosts[name] = VHost(self.services, name, settings)
        if not self.vhosts and not (document and has_users_and_vhosts(document)):
            self._first_start()
        self.definitions.drop_orphans()
        self.users.update((user.name, user) for user in self.definitions.users())
        for kind in KINDS:
            for vhost_name, policy in self.definitions.policies(kind):
                self.vhosts[vhost_name].add_policy(kind, policy)
        for vhost_name, exchange in self.definitions.exchanges():
            self.vhosts[vhost_name].add_exchange(exchange)
        for vhost in self.vhosts.values():
            vhost.apply_to_exchanges()
        lane_ids: list[int] = []
        for hidden in self.definitions.hidden_lanes():
            self.vhosts[hidden.vhost].hidden_lanes.add(hidden)
            lane_ids.append(hidden.lane_id)
        for definition in self.definitions.queues():
            vhost = self.vhosts[definition.vhost]
            lane_ids += definition.lane_ids.values()
            declared = Declaration(
                vhost.name,
                definition.name,
                True,
                definition.auto_delete,
                False,
                QueueArguments(definition.arguments),
            )
            vhost.add_queue(declared, definition.lane_ids, None)
        # Those that have a place come first: no other binding may take it.
        bindings = sorted(self.definitions.bindings(), key=lambda item: item[1].place is None)
        for vhost_name, binding in bindings:
            self.vhosts[vhost_name].add_binding(binding)
        for vhost in self.vhosts.values():
            vhost.removals.finish()
        self.store.retain(lane_ids)
        for vhost in self.vhosts.values():
            vhost.take_up_hidden_lanes()
        self.services.dues.look()
        if document is not None:
            loading = Import(self.operations, self.users, self.definitions)
            loading.load(document)
            loading.log()

    def export_definitions(self, vhost: VHost | None = None) -> Outcome[dict[str, Any]]:
        """All definitions, or those of a vhost, as RabbitMQ writes them.

        All of them together are a file that `--load-definitions` takes.
        """
        version = self.settings.version
        return self.services.jobs.start(
            exporting(self.operations, self.users, self.definitions, version, vhost)
        )

    def check_definitions(self, document: dict[str, Any]) -> Outcome[list[str]]:
        """What would be left out of a document, in words, if it can be loaded.

        Nothing is changed; fails with DefinitionsError.
        """
        return self.services.jobs.start(Rehearsal.of(self.operations, self.users, document))

    def load_definitions(self, document: dict[str, Any], asked: Operations) -> Outcome[None]:
        """Load a document that was checked, in slices; `asked` are the operations of who asks.

        The outcome is known when all of it is durable. A crash may leave a part of it: to load it
        again adds the rest. Fails with DefinitionsError.
        """
        operations = asked.without_rights()
        loading = Import(operations, self.users, self.definitions, hashing=self.hashing)

        def steps() -> Steps[None]:
            yield from loading.loading(document)
            loading.log()

        loaded: Outcome[None] = Outcome()

        def wait(done: Outcome[None]) -> None:
            self.services.durability.defined().then(lambda _: loaded.follow(done))

        self.services.jobs.start(steps()).then(wait)
        return loaded

    def _first_start(self) -> None:
        settings = self.settings
        vhost = settings.default_vhost
        user = User(
            settings.default_user,
            hash_password(settings.default_pass.encode()),
            tuple(sorted(settings.default_user_tags)),
            {
                vhost: (
                    settings.default_permissions_configure,
                    settings.default_permissions_write,
                    settings.default_permissions_read,
                )
            },
        )
        with self.definitions.transaction():
            self.definitions.save_vhost(vhost, VHostSettings())
            self.definitions.save_user(user)
        self.vhosts[vhost] = VHost(self.services, vhost, VHostSettings())

    def begin_anew(self) -> None:
        """Make what a first start makes: there must be no vhost and no user."""
        assert not self.vhosts and not self.users
        self._first_start()
        self.users.update((user.name, user) for user in self.definitions.users())

    def use(self, settings: BrokerSettings) -> None:
        """Go by other settings from now on: clients that come, and logins. Not durable."""
        self.settings = self.services.settings = settings
        self._logins.loopback_only = settings.loopback_users

    def server_properties(self) -> Table:
        """What connection.start tells of the server."""
        settings = self.settings
        return {
            "capabilities": {
                "publisher_confirms": True,
                "exchange_exchange_bindings": True,
                "basic.nack": True,
                "consumer_cancel_notify": True,
                "connection.blocked": True,
                "consumer_priorities": True,
                "authentication_failure_close": True,
                "per_consumer_qos": True,
                "direct_reply_to": True,
            },
            "cluster_name": "qlog",
            "copyright": "The qlog authors",
            "information": "Licensed under the Apache License 2.0",
            "platform": settings.platform,
            "product": settings.product,
            "version": settings.version,
        }

    # -- the tick ----------------------------------------------------------------------------

    def progress(self) -> None:
        """More is durable than before: confirm it, and answer those who waited for it."""
        self.services.durability.progress()
        self.hashing.progress()

    @property
    def jobs_left(self) -> bool:
        """Something goes on with the next tick, though nothing new has come."""
        services = self.services
        return bool(services.jobs) or services.delivery.left or services.durability.left

    def work(self, most_s: float = TURN_S) -> None:
        """Begin a new tick for queues that had read enough; go on with jobs, for `most_s` seconds."""
        if self.services.delivery.left:
            self.services.delivery.go_on()
        self.services.jobs.run(most_s)

    @property
    def awaits_pump(self) -> bool:
        """Something may be deliverable, though no client may have spoken: `pump` has to look."""
        return self.services.delivery.awaits_pump

    def try_again(self) -> None:
        """Have `pump` ask the queues again that could not be read for want of file descriptors."""
        self.services.delivery.try_again()

    @property
    def waiting(self) -> int:
        """How many publishers wait for a confirm."""
        return self.services.durability.waiting

    # -- the slower rhythms ------------------------------------------------------------------

    def _check_consumers(self) -> None:
        """Every minute, or more often when deliveries have to be acknowledged within less."""
        timeout_s = self.settings.consumer_timeout_s
        interval_s = min(CONSUMER_CHECK_INTERVAL_S, max(1.0, timeout_s / 4))

        def again(_: Outcome[None]) -> None:
            self.timers.at(self.now_s() + interval_s, self._check_consumers)

        self.check_consumers().then(again)

    def check_consumers(self) -> Outcome[None]:
        """Close the channels whose consumers hold a delivery longer than they may."""
        return self.services.jobs.start(self._checking_consumers(self.now_s()))

    def _checking_consumers(self, now_s: float) -> Steps[None]:
        for client in letting_go(self.clients):
            yield from client.checking_consumers(now_s)
            yield

    def set_alarm(self, name: str, on: bool) -> None:
        """Raise or clear a resource alarm. A client is told when it publishes, and of the end."""
        self.alarms[name] = on
        before = self.blocked_reason
        self.blocked_reason = " & ".join(name for name, on in self.alarms.items() if on)
        if before and not self.blocked_reason:
            self.services.jobs.start(self._unblocking())

    def _unblocking(self) -> Steps[None]:
        """Tell all clients that the alarm is over, unless there is another one meanwhile."""
        for client in letting_go(self.clients):
            if self.blocked_reason:
                return
            client.unblock()
            yield

    def close_clients(self, error: HardError) -> None:
        """Close every connection with the same error."""
        for client in list(self.clients):
            client.fail(error, 0)
