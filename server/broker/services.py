"""What the parts of a broker share. It is passed to them, so that they need not know each other."""

from __future__ import annotations

import time
from collections.abc import Callable

from qlog.server.amqp.envelope import Envelope
from qlog.server.broker.channels.reply_to import Replies
from qlog.server.broker.definitions import Definitions
from qlog.server.broker.delivery import Delivery
from qlog.server.broker.due import DueMessages
from qlog.server.broker.durability import Durability
from qlog.server.broker.features.backups import Backups
from qlog.server.broker.features.deduplication import Memory
from qlog.server.broker.features.delayed import Ahead
from qlog.server.broker.jobs import Jobs
from qlog.server.broker.post import PostOffice
from qlog.server.broker.queues.cold_reads import ColdReads
from qlog.server.broker.queues.pump_time import PumpTime
from qlog.server.broker.settings import BrokerSettings
from qlog.server.broker.stats import Stats
from qlog.server.broker.timers import Timers
from qlog.storage.store import Store


def wall_clock_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Services:
    """One object a broker. `now_s` is a monotonic clock, `now_ms` the wall clock."""

    def __init__(
        self,
        store: Store[Envelope],
        settings: BrokerSettings,
        now_s: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self.store = store
        self.settings = settings
        self.now_s = now_s
        self.now_ms = now_ms
        self.definitions = Definitions(store.catalog)
        self.timers = Timers()
        self.stats = Stats()
        self.jobs = Jobs()
        self.dues = DueMessages(store, self.timers, self.jobs, now_s, now_ms)
        self.ahead = Ahead(store)
        self.durability = Durability(store)
        self.backups = Backups(store, self.jobs, self.durability, self.timers, now_s)
        self.delivery = Delivery(
            self.durability, self.jobs, ColdReads(store), PumpTime(time.perf_counter)
        )
        self.replies = Replies()
        self.seen = Memory()
        self.post = PostOffice(
            store, self.delivery, self.durability, self.replies, self.stats, now_ms
        )
