"""One vhost: its exchanges, bindings and queues, and the rules for declaring them.

What these methods change counts at once, and is durable when the ledger is synced behind it.
Texts and the order of checks are RabbitMQ's (rabbit_channel, rabbit_exchange, rabbit_amqqueue).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterable, Sequence

from qlog.routing.binding import Binding, DestinationKind
from qlog.routing.delayed import DELAYED
from qlog.routing.errors import (
    InvalidArguments,
    InvalidBinding,
    InvalidMatch,
    UnknownExchangeType,
)
from qlog.routing.exchange import ALTERNATE, LOCAL_RANDOM, Exchange, assert_type
from qlog.routing.recent_history import history_length
from qlog.routing.table import RoutingTable
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import (
    access_refused,
    not_found,
    precondition_failed,
    resource_locked,
)
from qlog.server.amqp.values import LongStr, Table
from qlog.server.broker.access.permissions import Kind, Right, Rights
from qlog.server.broker.access.users import User
from qlog.server.broker.definitions import WAITS
from qlog.server.broker.features.backoff import Ripe, Waits
from qlog.server.broker.features.dead_letter import DeadLetters
from qlog.server.broker.features.deduplication import REPEATED, Once, SeenWindows
from qlog.server.broker.features.delayed import DelayedMessages, delay_of
from qlog.server.broker.features.expiry import Expiry
from qlog.server.broker.features.firehose import Firehose
from qlog.server.broker.features.overflow import Overflow
from qlog.server.broker.features.policy import Policies, Policy, PolicyKind
from qlog.server.broker.features.recent_history import History, giving
from qlog.server.broker.features.vhost_settings import VHostSettings
from qlog.server.broker.hidden_lanes import HiddenLanes
from qlog.server.broker.hidden_lanes import Owner as LaneOwner
from qlog.server.broker.jobs import Steps, letting_go
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.queues.arguments import (
    QueueArguments,
    assert_equivalent_argument,
    exchange_named,
    invalid_match,
)
from qlog.server.broker.queues.effective import Effective
from qlog.server.broker.queues.factory import make_queue
from qlog.server.broker.queues.levels import LaneIds
from qlog.server.broker.queues.quorum import QuorumQueue
from qlog.server.broker.queues.targets import Keeper, Routes, Targets
from qlog.server.broker.queues.type import Declaration, Owner, QueueType
from qlog.server.broker.removals import RESERVED_PREFIX, Removals
from qlog.server.broker.services import Services
from qlog.server.broker.stats import ExchangeCounts
from qlog.storage.lanes.lane import Lane

DEAD_LETTER_EXCHANGE = "x-dead-letter-exchange"
Permit = Callable[[Right, Kind, str], None]  # raises 403 without the right to what is named


def anything(right: Right, kind: Kind, name: str) -> None:
    """The rights of the broker itself."""


class VHost:
    """A namespace of exchanges and queues."""

    def __init__(self, services: Services, name: str, settings: VHostSettings) -> None:
        self.name = name
        self.settings = settings
        self.clients: set[object] = set()  # those who are in it
        self.store = services.store
        self.wake = services.delivery.wake
        self.cold_reads = services.delivery.cold_reads
        self.pump_time = services.delivery.time
        self.durability = services.durability
        self.now_ms = services.now_ms
        self._services = services
        self._definitions = services.definitions
        self.routing = RoutingTable()
        self.queues: dict[str, QueueType] = {}
        self.routes = Routes()
        self.policies = Policies()
        self._shared: dict[tuple[str, str | None, str | None], Effective] = {}
        self._settings_version = 0  # how often settings of a queue, or rights, were replaced
        # The ways that are remembered of users who may not publish everywhere.
        self._routes_of: dict[User, Routes] = {}
        self.dead_letters = DeadLetters(self, services)
        self.overflow = Overflow(self.dead_letters, services.jobs)
        self._histories: dict[str, History] = {}
        self._exchange_counts: dict[str, ExchangeCounts] = {}
        self.hidden_lanes = HiddenLanes(name, services.store, services.definitions)
        self.delayed = DelayedMessages(self, services)
        self.windows = SeenWindows(self.hidden_lanes, services)
        self.firehose: Firehose | None = None
        self.removals = Removals(self, services)
        self.expiry = Expiry(self.dead_letters, services, self.removals.delete_if)
        self.dues = services.dues

    def in_slices(self, steps: Steps[None]) -> Outcome[None]:
        """Work that may be long: some of it now, the rest when there is time."""
        return self._services.jobs.start(steps)

    # -- names -------------------------------------------------------------------------------

    def rs_queue(self, name: str) -> str:
        """A queue as error texts print it."""
        return f"queue '{name}' in vhost '{self.name}'"

    def rs_exchange(self, name: str) -> str:
        """An exchange as error texts print it."""
        return f"exchange '{name}' in vhost '{self.name}'"

    def queue(self, name: str) -> QueueType:
        """The queue of that name. Raises 404."""
        queue = self.queues.get(name)
        if queue is None:
            raise not_found(f"no {self.rs_queue(name)}")
        return queue

    def exchange(self, name: str) -> Exchange:
        """The exchange of that name. Raises 404."""
        exchange = self.find_exchange(name)
        if exchange is None:
            raise not_found(f"no {self.rs_exchange(name)}")
        return exchange

    def find_exchange(self, name: str) -> Exchange | None:
        """The exchange of that name, None if there is none."""
        exchange = self.routing.exchange(name)
        return None if exchange is None or self.removals.leaving("exchange", name) else exchange

    # -- routing -----------------------------------------------------------------------------

    @property
    def routes_version(self) -> int:
        """Changes whenever a remembered route may be wrong."""
        return self.routing.version + self._settings_version

    def routes_of(self, user: User) -> tuple[Routes, Rights | None]:
        """The ways that are remembered for what a user publishes, and the rights to be asked.

        Users who may publish everything share the ways, and are never asked.
        """
        rights = user.rights(self.name)
        if rights.free_to_publish:
            return self.routes, None
        routes = self._routes_of.get(user)
        if routes is None:
            routes = self._routes_of[user] = Routes()
        return routes, rights

    def rights_changed(self, user: User) -> None:
        """What is remembered for a user counts no more."""
        routes = self._routes_of.pop(user, None)
        if routes is not None:
            routes.give_back()
        self._settings_version += 1

    def route(
        self, exchange: str, keys: Sequence[str], envelope: Envelope, *, released: bool = False
    ) -> tuple[Targets, bool]:
        """The queues of a message, and whether exchange and keys alone decided it.

        The exchanges on its way may note that they have seen it, so each message is to be routed
        once. `released`: the message has been delayed at `exchange`, and noted there.
        """
        self.routes.check(self.routes_version)
        keepers: list[Keeper] = []
        passes = None
        if self.routing.has_gates:

            def passes(name: str) -> bool | None:
                if released and name == exchange:
                    return None
                return self._passes(name, envelope, keepers)

        queues, cacheable, histories = self.routing.route(exchange, keys, envelope, passes)
        if histories:
            keepers += map(self._history, histories)
        counts = self.counts_of_exchange(exchange)
        return self.routes.targets(queues, self.queues, tuple(keepers), counts), cacheable

    def waiting_at(self, exchange: str, envelopes: Iterable[Envelope]) -> Targets | None:
        """Where messages wait, if `exchange` delays all of them; None: `route` has to be asked."""
        found = self.find_exchange(exchange)
        if found is None or found.type != DELAYED or self.windows.of_exchange(found) is not None:
            return None
        if not all(delay_of(envelope) > 0 for envelope in envelopes):
            return None
        self.routes.check(self.routes_version)
        keepers = (self.delayed.at(found),)
        return self.routes.targets((), self.queues, keepers, self.counts_of_exchange(exchange))

    def _passes(self, name: str, envelope: Envelope, keepers: list[Keeper]) -> bool:
        """Whether a message is routed further by an exchange that does not pass all.

        `keepers` gets who keeps it, or notes it, those first who take it.
        """
        exchange = self.exchange(name)
        window = self.windows.of_exchange(exchange)
        if window is not None:
            new = window.passes(envelope)
            if new is False:
                keepers.append(REPEATED)
                return False
            if new:
                keepers.append(window)
        if exchange.type == DELAYED and delay_of(envelope) > 0:
            keepers.insert(0, self.delayed.at(exchange))
            return False
        return True

    def exchange_counts(self) -> list[ExchangeCounts]:
        """Those of all exchanges that something was published to."""
        return list(self._exchange_counts.values())

    def counts_of_exchange(self, name: str) -> ExchangeCounts:
        """What came to an exchange and left it, counted from now on; see `passed_exchange`."""
        counts = self._exchange_counts.get(name)
        if counts is None:
            counts = self._exchange_counts[name] = ExchangeCounts()
        return counts

    def passed_exchange(self, name: str) -> ExchangeCounts | None:
        """What came to an exchange and left it; None: nothing was ever published to it."""
        return self._exchange_counts.get(name)

    def _history(self, name: str) -> History:
        """What an exchange of the type `x-recent-history` keeps."""
        history = self._histories.get(name)
        if history is None:
            exchange = self.routing.exchange(name)
            assert exchange is not None
            history = self._histories[name] = History(history_length(exchange.arguments))
        return history

    def set_tracing(self, on: bool) -> None:
        """Turn the firehose on or off."""
        self.firehose = Firehose(self, self._services.post) if on else None

    # -- exchanges ---------------------------------------------------------------------------

    def declare_exchange(
        self,
        name: str,
        type_: str,
        *,
        may: Permit = anything,
        durable: bool,
        auto_delete: bool,
        internal: bool,
        arguments: Table,
    ) -> None:
        """exchange.declare.

        Raises 403 for reserved names, 406 for unknown types, bad arguments and differences.
        """
        self.removals.finish_losing("exchange", name)
        asked = Exchange(name, type_, durable, auto_delete, internal, arguments)
        existing = self.routing.exchange(name)
        try:
            assert_type(type_)
            may("configure", "exchange", name)
            if existing is not None:
                self._assert_equivalent(asked, arguments, existing)
                return
            if name.startswith(RESERVED_PREFIX):
                raise access_refused(
                    f"exchange name '{name}' contains reserved prefix '{RESERVED_PREFIX}*'"
                )
            alternate = exchange_named(arguments, ALTERNATE, self.rs_exchange(name))
            if alternate is not None:
                may("read", "exchange", name)
                may("write", "exchange", alternate)
            exchange = self.routing.declare_exchange(
                name,
                type_,
                durable=durable,
                auto_delete=auto_delete,
                internal=internal,
                arguments=arguments,
            )
        except (UnknownExchangeType, InvalidArguments) as error:
            raise precondition_failed(str(error)) from error
        self._apply_to_exchange(exchange)
        if durable:
            self._definitions.save_exchange(self.name, exchange)

    def _assert_equivalent(self, asked: Exchange, arguments: Table, existing: Exchange) -> None:
        """Raises 406 for the first difference. Of the arguments only the alternate counts."""
        resource = self.rs_exchange(asked.name)
        for key, received, current in (
            ("type", asked.type, existing.type),
            ("durable", asked.durable, existing.durable),
            ("auto_delete", asked.auto_delete, existing.auto_delete),
            ("internal", asked.internal, existing.internal),
        ):
            assert_equivalent_argument(key, resource, received, current)
        alternate = existing.arguments.get(ALTERNATE)
        assert alternate is None or isinstance(alternate, str | LongStr)
        assert_equivalent_argument(
            ALTERNATE,
            resource,
            arguments.get(ALTERNATE),
            alternate,
            received=ALTERNATE in arguments,
            current=ALTERNATE in existing.arguments,
        )

    def add_exchange(self, exchange: Exchange) -> None:
        """Make an exchange known that a start has found."""
        self.routing.declare_exchange(
            exchange.name,
            exchange.type,
            durable=exchange.durable,
            auto_delete=exchange.auto_delete,
            internal=exchange.internal,
            arguments=exchange.arguments,
        )

    # -- bindings ----------------------------------------------------------------------------

    def bind(
        self, source: str, kind: DestinationKind, destination: str, key: str, arguments: Table
    ) -> None:
        """queue.bind, exchange.bind. Raises 404 for what is missing, 406 for bad arguments."""
        exchange = self.exchange(source)
        if kind == "exchange":
            self.exchange(destination)
        else:
            declared = self.queue(destination).declared
            queue_type = declared.arguments.type
            if exchange.type == LOCAL_RANDOM and not key and queue_type != "classic":
                raise precondition_failed(
                    f"Queue type rabbit_{queue_type}_queue not valid for this exchange type"
                )
        try:
            binding = self.routing.bind(source, kind, destination, key, arguments)
        except InvalidMatch as error:
            raise precondition_failed(invalid_match(arguments["x-match"])) from error
        except InvalidBinding as error:
            raise precondition_failed(str(error)) from error
        if binding is not None and self._durable(binding):
            self._definitions.save_binding(self.name, binding)

    def bind_with_history(
        self, source: str, kind: DestinationKind, destination: str, key: str, arguments: Table
    ) -> Outcome[None]:
        """The same for any type of exchange; one that keeps a history gives it to the new binding.

        Raises, or fails with, the same errors.
        """

        def bind() -> None:
            self.bind(source, kind, destination, key, arguments)

        history = self._histories.get(source)
        binding = Binding(source, kind, destination, key, arguments)
        if history is None or self.routing.bound(binding):
            bind()
            return Outcome.of(None)

        def targets_of(envelope: Envelope, keys: Sequence[str]) -> Targets:
            if kind == "queue":
                self.routes.check(self.routes_version)
                return self.routes.targets((self.queue(destination).name,), self.queues)
            return self.route(self.exchange(destination).name, keys, envelope)[0]

        return self._services.jobs.start(giving(history, self._services.post, targets_of, bind))

    def add_binding(self, binding: Binding) -> None:
        """Make a binding known that a start has found.

        One to a queue, or of an exchange, that was deleted is left of a deletion that did not end.
        """
        destinations = self.queues if binding.kind == "queue" else self.routing
        if binding.source in self.routing and binding.destination in destinations:
            self.routing.bind(
                binding.source,
                binding.kind,
                binding.destination,
                binding.routing_key,
                binding.arguments,
                binding.place,
            )
        else:
            self.removals.orphans.append(binding)

    def take_up_hidden_lanes(self) -> None:
        """Go on with what was delayed, and with what was seen, before a start.

        What belongs to nothing any more is given up.
        """
        for owner, _ in self.hidden_lanes:
            exchange = self.routing.exchange(owner.name) if owner.kind == "exchange" else None
            if exchange is not None and exchange.type == DELAYED and owner.role == "delayed":
                self.delayed.at(exchange)
            elif exchange is not None and owner.role == "window":
                self.windows.of_exchange(exchange)
            elif owner.kind == "exchange" or owner.name not in self.queues:
                with self._definitions.transaction():
                    self.hidden_lanes.forget(owner.kind, owner.name)
        self.hidden_lanes.drop()

    def _durable(self, binding: Binding) -> bool:
        if binding.kind == "queue":
            destination_durable = self.queues[binding.destination].declared.durable
        else:
            destination_durable = self.exchange(binding.destination).durable
        return destination_durable and self.exchange(binding.source).durable

    def forget_kept(self, exchange: str) -> None:
        """Nothing is kept of a deleted exchange: no history, and nothing that is delayed."""
        self._exchange_counts.pop(exchange, None)
        self._histories.pop(exchange, None)
        self.delayed.forget(exchange)
        self.windows.forget_exchange(exchange)
        self.hidden_lanes.forget("exchange", exchange)

    # -- the vhost itself --------------------------------------------------------------------

    def set_settings(self, settings: VHostSettings) -> None:
        """They count for what is declared, and for who comes, from now on."""
        if settings != self.settings:
            self._definitions.save_vhost(self.name, settings)
            self.settings = settings

    # -- policies ----------------------------------------------------------------------------

    def add_policy(self, kind: PolicyKind, policy: Policy) -> None:
        """Make a policy known that a start has found, before queues are."""
        self.policies.put(kind, policy)

    def apply_to_exchanges(self) -> None:
        """Have all exchanges that a start has found, or every vhost has, go by the policies."""
        for exchange in self.routing.exchanges():
            self._apply_to_exchange(exchange)

    def set_policy(self, kind: PolicyKind, policy: Policy) -> Outcome[None]:
        """A checked policy counts from now on; done when it is applied to all that is there."""
        if self.policies.get(kind, policy.name) == policy:
            return Outcome.of(None)
        self._definitions.save_policy(self.name, kind, policy)
        self.policies.put(kind, policy)
        return self._apply_policies()

    def delete_policy(self, kind: PolicyKind, name: str) -> Outcome[None]:
        """A policy counts no more; done when it is taken from all that is there."""
        self._definitions.delete_policy(self.name, kind, name)
        self.policies.remove(kind, name)
        return self._apply_policies()

    def _apply_policies(self) -> Outcome[None]:
        self._shared.clear()  # what goes by policies that are gone is not kept
        return self._services.jobs.start(self._applying_policies())

    def _applying_policies(self) -> Steps[None]:
        """Have everything go by the policies as they are when its turn comes.

        So of two jobs that run at the same time the second leaves nothing that is out of date.
        """
        for exchange in letting_go(self.routing.exchanges()):
            if exchange.name in self.routing:
                self._apply_to_exchange(exchange)
            yield
        for queue in letting_go(self.queues.values()):
            if not queue.deleted:
                self._apply_to_queue(queue)
            yield

    def _apply_to_exchange(self, exchange: Exchange) -> None:
        applied = self.policies.for_exchange(exchange.name)
        self.routing.set_alternate(exchange.name, applied.definition.get("alternate-exchange"))
        self.windows.go_by(exchange, applied.definition)

    def _effective(self, declared: Declaration) -> Effective:
        """What a queue goes by; queues without arguments of their own share it."""
        arguments = declared.arguments
        applied = self.policies.for_queue(declared.name, arguments.type)
        key = arguments.type, applied.policy, applied.operator_policy
        own = arguments.table.keys() - {"x-queue-type"}
        effective = None if own else self._shared.get(key)
        if effective is None or effective.applied != applied:
            timeout_s = self._services.settings.consumer_timeout_s
            effective = Effective(arguments, applied, consumer_timeout_s=timeout_s)
            if not own:
                self._shared[key] = effective
        return effective

    def _apply_to_queue(self, queue: QueueType) -> None:
        effective = self._effective(queue.declared)
        if effective.applied != queue.effective.applied:
            queue.reconfigure(effective)
            self._settings_version += 1

    # -- queues ------------------------------------------------------------------------------

    def declare_queue(
        self,
        name: str,
        owner: Owner | None,
        *,
        may: Permit = anything,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        arguments: Table,
    ) -> QueueType:
        """queue.declare; an empty name is given one. Raises 403, 405 and 406."""
        if name.startswith(RESERVED_PREFIX):
            raise access_refused(
                f"queue name '{name}' contains reserved prefix '{RESERVED_PREFIX}*'"
            )
        server_named = not name
        name = name or "amq.gen-" + secrets.token_urlsafe(16)
        may("configure", "queue", name)
        durable = durable and not exclusive  # it would not outlive its connection anyway
        queue = self.queues.get(name)
        resource = self.rs_queue(name)
        arguments = self.settings.typed(
            arguments, durable=durable, exclusive=exclusive, auto_delete=auto_delete
        )
        if queue is not None:
            self.assert_access(queue, owner)
            self._assert_equivalent_queue(queue, durable, exclusive, auto_delete, arguments)
            self.expiry.used(queue)
            self._services.stats.queues_declared += 1
            return queue
        dead_letter_exchange = exchange_named(arguments, DEAD_LETTER_EXCHANGE, resource)
        if dead_letter_exchange is not None:
            may("read", "queue", name)
            may("write", "exchange", dead_letter_exchange)
        checked = QueueArguments.check(
            arguments,
            resource,
            durable=durable,
            exclusive=exclusive,
            auto_delete=auto_delete,
            server_named=server_named,
        )
        self._assert_room(name)
        declared = Declaration(self.name, name, durable, auto_delete, exclusive, checked)
        self.removals.finish_losing("queue", name)
        lane_id = self.store.new_lane_id()
        if durable:
            with self._definitions.transaction():
                self._definitions.save_queue(declared, {0: lane_id})
                if checked.type == "stream":
                    self.store.define_stream(lane_id)
        queue = self.add_queue(declared, {0: lane_id}, owner if exclusive else None)
        if exclusive and owner is not None:
            owner.exclusive_queues[name] = queue
        self._services.stats.queues_declared += 1
        self._services.stats.queues_created += 1
        return queue

    def _assert_equivalent_queue(
        self, queue: QueueType, durable: bool, exclusive: bool, auto_delete: bool, arguments: Table
    ) -> None:
        """Raises 405 or 406 for the first difference to what the queue was declared with."""
        declared, resource = queue.declared, self.rs_queue(queue.name)
        if exclusive != declared.exclusive:
            raise self._locked(queue)
        assert_equivalent_argument("durable", resource, durable, declared.durable)
        assert_equivalent_argument("auto_delete", resource, auto_delete, declared.auto_delete)
        declared.arguments.assert_equivalent(arguments, resource)

    def _assert_room(self, name: str) -> None:
        """Raises 406 if the vhost has as many queues as it may have."""
        queues_max = self.settings.queues_max
        if queues_max is not None and len(self.queues) >= queues_max:
            raise precondition_failed(
                f"cannot declare queue '{name}': queue limit in vhost '{self.name}' "
                f"({queues_max}) is reached"
            )

    def add_queue(self, declared: Declaration, lane_ids: LaneIds, owner: Owner | None) -> QueueType:
        """Make a queue known, new or recovered."""
        queue = make_queue(
            self,
            declared,
            {level: self.store.lane(lane_id) for level, lane_id in lane_ids.items()},
            owner=owner,
            effective=self._effective(declared),
        )
        queue.count_for(self._services.stats.counts_of(declared.arguments.type))
        self.queues[queue.name] = queue
        self.routing.add_queue(queue.name)
        if queue.effective.limited or queue.effective.message_ttl_ms is not None:
            self.wake(queue)  # a broker that was stopped may have left too much, or for too long
        if (
            isinstance(queue, QuorumQueue)
            and LaneOwner("queue", queue.name, WAITS) in self.hidden_lanes
        ):
            queue.wait_on()
        self.expiry.used(queue)
        return queue

    def new_level(self, declared: Declaration, lane_ids: LaneIds, level: int) -> Lane[Envelope]:
        """A lane for one more level of a queue, which has these already.

        The store makes no message in the lane durable before the definition that names the lane.
        """
        lane_id = self.store.new_lane_id()
        if declared.durable:
            self._definitions.save_queue(declared, {**lane_ids, level: lane_id})
        return self.store.lane(lane_id)

    def waits(self, queue: QueueType) -> Waits:
        """Where messages of a quorum queue wait before they are ready again."""

        def ripe(ripe: Ripe) -> None:
            assert isinstance(queue, QuorumQueue)
            queue.ripened(*ripe)

        owner = LaneOwner("queue", queue.name, WAITS)
        return Waits(self._services, lambda: self.hidden_lanes.lane(owner, durable=True), ripe)

    def unused(self, queue: QueueType) -> None:
        """The last consumer of an auto-delete queue left."""
        self.removals.unused(queue)

    def once(self, declared: Declaration, lanes: Callable[[], Collection[Lane[Envelope]]]) -> Once:
        """What keeps messages from coming into a queue twice."""
        return self.windows.of_queue(declared, lanes)

    def assert_access(self, queue: QueueType, owner: Owner | None) -> None:
        """Raises 405 if the queue is exclusive to another connection."""
        if queue.declared.exclusive and queue.owner is not owner:
            raise self._locked(queue)

    def _locked(self, queue: QueueType) -> Exception:
        return resource_locked(
            f"cannot obtain exclusive access to locked {queue}. It could be originally declared on "
            "another connection or the exclusive property value does not match that of the original "
            "declaration."
        )
