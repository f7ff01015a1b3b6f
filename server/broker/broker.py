"""The whole: vhosts, users, clients, the store, and what has to happen at the end of a tick.

A tick is what one read from one socket brings. Its messages are appended as they come; at its end
`pump` delivers from the queues it touched, and the caller hands the batch to the disk
(`Store.commit`). When the disk answers, `progress` sends the confirms. Knows no socket and no clock
but the one it is given.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import HardError, internal_error, precondition_failed
from qlog.server.amqp.values import Table
from qlog.server.broker.access.users import User, hash_password
from qlog.server.broker.channels.confirms import Confirms
from qlog.server.broker.channels.reply_to import Replies
from qlog.server.broker.definitions import Definitions
from qlog.server.broker.queues.arguments import QueueArguments
from qlog.server.broker.queues.targets import Targets
from qlog.server.broker.queues.type import Declaration, QueueType
from qlog.server.broker.settings import BrokerSettings
from qlog.server.broker.vhost import VHost
from qlog.storage.errors import OutOfDescriptors, StorageError
from qlog.storage.store import Store

if TYPE_CHECKING:
    from qlog.server.broker.channels.channel import Channel
    from qlog.server.broker.channels.client import Client

logger = logging.getLogger("qlog.broker")


class Broker:
    """All state of a running broker.

    Arguments: `now_s` a monotonic clock in seconds. Raises StorageError if the catalog is damaged.
    """

    def __init__(
        self,
        store: Store[Envelope],
        settings: BrokerSettings,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.settings = settings
        self.now_s = now_s
        self.consumer_timeout_s = settings.consumer_timeout_s
        self.definitions = Definitions(store.catalog)
        self.replies = Replies()
        self.clients: set[Client] = set()
        self.vhosts: dict[str, VHost] = {}
        self.users: dict[str, User] = {}
        self.alarms = dict.fromkeys(
            ("low on memory", "low on disk", "low on file descriptors"), False
        )
        # Why publishers are not read, as connection.blocked says it; empty: they are.
        self.blocked_reason = ""
        self._awake: dict[QueueType, None] = {}
        self._waiting: dict[QueueType, None] = {}
        self._unconfirmed: dict[Confirms, None] = {}
        self._confirmed_lsn = store.durable_lsn
        # Channels whose tx.commit waits for the log up to an LSN, and those that wait for a sync.
        self._committing: deque[tuple[int, Channel]] = deque()
        self._syncing: deque[tuple[int, Channel]] = deque()
        self._load()

    # -- definitions -------------------------------------------------------------------------

    def _load(self) -> None:
        for name in self.definitions.vhosts():
            self.vhosts[name] = VHost(self, name)
        if not self.vhosts:
            self._first_start()
        self.users = {user.name: user for user in self.definitions.users()}
        for vhost_name, exchange in self.definitions.exchanges():
            self.vhosts[vhost_name].routing.declare_exchange(
                exchange.name,
                exchange.type,
                durable=True,
                auto_delete=exchange.auto_delete,
                internal=exchange.internal,
                arguments=exchange.arguments,
            )
        lane_ids = []
        for definition in self.definitions.queues():
            vhost = self.vhosts[definition.vhost]
            lane_ids.append(definition.lane_id)
            declared = Declaration(
                vhost.name,
                definition.name,
                True,
                definition.auto_delete,
                False,
                QueueArguments(definition.arguments),
            )
            vhost.add_queue(declared, definition.lane_id, None)
        for vhost_name, binding in self.definitions.bindings():
            self.vhosts[vhost_name].routing.bind(
                binding.source,
                binding.kind,
                binding.destination,
                binding.routing_key,
                binding.arguments,
            )
        self.store.retain(lane_ids)

    def _first_start(self) -> None:
        settings = self.settings
        vhost = settings.default_vhost
        user = User(
            settings.default_user,
            hash_password(settings.default_pass.encode()),
            ("administrator",),
            {vhost: (".*", ".*", ".*")},
        )
        with self.definitions.transaction():
            self.definitions.save_vhost(vhost)
            self.definitions.save_user(user)
        self.vhosts[vhost] = VHost(self, vhost)

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

    def enqueue(
        self,
        targets: Targets,
        persistent: bool,
        envelopes: Sequence[Envelope],
        bodies: Sequence[bytes],
    ) -> int:
        """Append messages to the queues they go to; returns the LSN that makes them durable."""
        now_ms = time.time_ns() // 1_000_000
        lsn = 0
        if persistent and targets.durable:
            lsn = self.store.append(
                targets.durable, envelopes, bodies, persistent=True, now_ms=now_ms
            )
            if targets.transient:
                self.store.append(
                    targets.transient, envelopes, bodies, persistent=False, now_ms=now_ms
                )
        else:
            self.store.append(targets.all, envelopes, bodies, persistent=False, now_ms=now_ms)
        self._awake.update(dict.fromkeys(targets.queues))
        return lsn

    def wake(self, queue: QueueType) -> None:
        """The queue may have something to deliver: `pump` will look."""
        self._awake[queue] = None

    def pump(self) -> None:
        """Deliver from all queues that were touched."""
        while self._awake:
            awake, self._awake = self._awake, {}
            for queue in awake:
                if not queue.deleted:
                    try:
                        queue.pump()
                    except OutOfDescriptors as error:
                        self._put_off(queue, error)
                    except Exception as error:  # noqa: BLE001 - reported there
                        self._cannot_deliver(queue, error)

    def _put_off(self, queue: QueueType, error: OutOfDescriptors) -> None:
        """What the queue has next cannot be read now: `try_again` asks it."""
        if not self._waiting:
            logger.warning("cannot deliver now from %s error=%s", queue, error)
        self._waiting[queue] = None

    def try_again(self) -> None:
        """Have `pump` ask the queues again that could not be read for want of file descriptors."""
        self._awake.update(self._waiting)
        self._waiting.clear()

    def _cannot_deliver(self, queue: QueueType, error: Exception) -> None:
        """What the queue has next cannot be read, or worse: reported, never skipped.

        Its consumers are thrown out, so that they notice and the queue is not asked again and
        again; all others, and whoever's turn this happened to be in, go on.
        """
        if isinstance(error, StorageError):
            logger.error("cannot deliver from %s error=%s", queue, error)
        else:
            logger.error("cannot deliver from %s", queue, exc_info=error)
        for taker in list(queue.takers):
            taker.fail(internal_error(f"cannot deliver from {queue}"))

    @property
    def durable_lsn(self) -> int:
        """The log is durable up to here."""
        return self.store.durable_lsn

    def await_durability(self, confirms: Confirms) -> None:
        """Confirms wait for the disk."""
        self._unconfirmed[confirms] = None

    def await_sync(self, channel: Channel, after_lsn: int) -> None:
        """The channel's tx.commit waits until log and ledger are synced.

        Its settlements, if any, wait until the log is durable up to `after_lsn`: only from then on
        can a sync of the ledger bring them.
        """
        if after_lsn > self.store.durable_lsn:
            self._committing.append((after_lsn, channel))
        else:
            self._syncing.append((self.store.request_sync(), channel))

    def progress(self) -> None:
        """The disk got further: confirm what is durable, answer the commits that are."""
        durable_lsn = self.store.durable_lsn
        if durable_lsn == self._confirmed_lsn and not self._syncing:
            return
        self._confirmed_lsn = durable_lsn
        for confirms in list(self._unconfirmed):
            if confirms.confirm_through(durable_lsn):
                del self._unconfirmed[confirms]
        while self._committing and self._committing[0][0] <= durable_lsn:
            self.await_sync(self._committing.popleft()[1], 0)
        while self._syncing and self.store.synced >= self._syncing[0][0]:
            self._syncing.popleft()[1].synced()

    # -- the slower rhythms ------------------------------------------------------------------

    def check_consumers(self) -> None:
        """Close the channels whose consumers hold a delivery longer than they may."""
        now_s = self.now_s()
        for client in list(self.clients):
            for channel in list(client.channels.values()):
                overdue_s = channel.take_overdue(now_s)
                if overdue_s is not None:
                    client.fail(
                        precondition_failed(
                            f"delivery acknowledgement on channel {channel.number} timed out. "
                            f"Timeout value used: {round(overdue_s * 1000)} ms. This timeout value "
                            "can be configured, see consumers doc guide to learn more"
                        ),
                        channel.number,
                    )

    def set_alarm(self, name: str, on: bool) -> None:
        """Raise or clear a resource alarm. Clients are told when they publish, and of its end."""
        self.alarms[name] = on
        before = self.blocked_reason
        self.blocked_reason = " & ".join(name for name, on in self.alarms.items() if on)
        if before and not self.blocked_reason:
            for client in list(self.clients):
                client.unblock()

    def close_clients(self, error: HardError) -> None:
        """Close every connection with the same error."""
        for client in list(self.clients):
            client.fail(error, 0)
