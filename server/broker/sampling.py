"""Rates and their history: the counters of all things, looked at every five seconds.

Nothing is sampled before `start`, which whoever shows rates calls. A sample is kept only if it
differs from the one before, and none before something was counted, so that what is idle costs
nothing but the look. Promises that all
samples together take no more than some 20 MB, whatever the number of queues, and that a look at
many things is made in slices. What goes between two samples loses what it did since the last one.
"""

from __future__ import annotations

import logging
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

from qlog.server.broker.jobs import Steps, letting_go
from qlog.server.broker.listings.facts import message_counts
from qlog.server.broker.listings.values import COUNTED
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.queues.type import QueueType
from qlog.server.broker.services import Services
from qlog.server.broker.stats import ExchangeCounts, Stats, Traffic
from qlog.server.broker.vhost import VHost

logger = logging.getLogger("qlog.broker")

INTERVAL_S = 5.0
# Samples of one thing: ten minutes of a busy one. The broker and its vhosts also have one a minute.
FINE_MAX = 120
COARSE_MAX = 24 * 60
COARSE_MS = 60_000
# Samples of all things together; beyond, those that are busy keep only what a rate needs.
SAMPLES_MAX = 100_000
SAMPLES_MIN = 2
# So many things are looked at between two looks at the clock.
THINGS_AT_ONCE = 20

QUEUE = ("publish", *COUNTED, "messages", "messages_ready", "messages_unacknowledged")
EXCHANGE = ("publish_in", "publish_out")
CONNECTION = ("recv_oct", "send_oct")
CHANNEL = ("publish", "confirm", "return_unroutable", "drop_unroutable", *COUNTED)
LENGTHS = ("messages", "messages_ready", "messages_unacknowledged")
CHURN = tuple(Stats().churn())
VHOST = (*CHANNEL, *CONNECTION, *LENGTHS)
TOTAL = (*CHANNEL, *CHURN, *LENGTHS)


class SampledChannel(Protocol):
    """A channel, as far as it is sampled."""

    def message_stats(self) -> Mapping[str, int]:
        """What passed it."""


class SampledClient(Protocol):
    """A connection, as far as it is sampled."""

    vhost: VHost | None
    traffic: Traffic

    @property
    def channels(self) -> Mapping[int, SampledChannel]:
        """By their numbers."""


class Span(NamedTuple):
    """A stretch of history that is asked for: so many seconds, a sample each so many."""

    age_s: int
    step_s: int


class Series:
    """The samples of one thing; `names` are what the numbers of a sample mean.

    They are lists: an empty deque takes as much memory as 80 of their elements.
    """

    __slots__ = ("coarse", "fine", "names", "seen")

    def __init__(self, names: Sequence[str], *, coarse: bool) -> None:
        self.names = names
        self.fine: list[tuple[int, array[int]]] = []  # time in ms, and the numbers
        self.coarse: list[tuple[int, array[int]]] | None = [] if coarse else None
        self.seen = 0  # the number of the last round that it was part of

    def at(self, times_ms: Iterable[int]) -> list[array[int] | None]:
        """The numbers at these times; before the first sample those of it, None: there is none."""
        kinds = [samples for samples in (self.fine, self.coarse) if samples]
        dated = [([time_ms for time_ms, _ in samples], samples) for samples in kinds]
        oldest = kinds[-1][0][1] if kinds else None
        found: list[array[int] | None] = []
        for time_ms in times_ms:
            for stamps, samples in dated:
                if place := bisect_right(stamps, time_ms):
                    found.append(samples[place - 1][1])
                    break
            else:
                found.append(oldest)
        return found


_NOTHING = Series((), coarse=False)


@cache
def _zeros(names: Sequence[str]) -> array[int]:
    """The numbers of something that has done nothing. They are the same for all: not changed."""
    return array("q", bytes(8 * len(names)))


class Sampler:
    """See the head of this file. `vhosts` and `clients` are the broker's own."""

    def __init__(
        self,
        services: Services,
        vhosts: Mapping[str, VHost],
        clients: Collection[SampledClient],
    ) -> None:
        self._services = services
        self._vhosts = vhosts
        self._clients = clients
        self._series: dict[object, Series] = {}
        self._sums: dict[str, dict[str, int]] = {}  # by vhost: counters that only grow
        self._count = 0  # of all samples
        self._round = 0
        self.started = False
        self.last_ms = self.before_ms = 0  # the times of the last two rounds
        self._dated_ms = 0  # the date of the last one's samples

    def start(self) -> None:
        """Sample from now on."""
        if not self.started:
            self.started = True
            self._sample()

    def _sample(self) -> None:
        services = self._services

        def again(outcome: Outcome[None]) -> None:
            try:
                outcome.result()
            except Exception:
                logger.exception("internal error of the sampler")
            services.timers.at(services.now_s() + INTERVAL_S, self._sample)

        self.sample().then(again)

    def sample(self) -> Outcome[None]:
        """One round over all things; done when all of them were looked at."""
        return self._services.jobs.start(self._sampling(self._services.now_ms()))

    def _sampling(self, now_ms: int) -> Steps[None]:
        # Histories are asked for at whole multiples of seconds. Dated so, the newest sample is in
        # them at once, as the rate is that it makes.
        dated_ms = now_ms - now_ms % round(INTERVAL_S * 1000)
        self._round += 1
        first = self._round == 1
        lengths: dict[str, list[int]] = {}
        for looked, (key, names, values) in enumerate(self._things(lengths), 1):
            self._add(key, names, values, dated_ms, first)
            if not looked % THINGS_AT_ONCE:
                yield
        for name, sums in self._sums.items():
            numbers = array("q", [sums.get(field, 0) for field in VHOST[:-3]])
            numbers.extend(lengths.get(name, (0, 0, 0)))
            self._add(("vhost", name), VHOST, numbers, dated_ms, first)
        self._add("total", TOTAL, self._total(lengths), dated_ms, first)
        self.before_ms, self.last_ms, self._dated_ms = self.last_ms, now_ms, dated_ms
        yield from self._forgetting()

    def _things(
        self, lengths: dict[str, list[int]]
    ) -> Iterator[tuple[object, Sequence[str], array[int]]]:
        """All things with their numbers; adds to `lengths` what waits in each vhost."""
        for vhost in letting_go(self._vhosts.values()):
            self._sums.setdefault(vhost.name, {})
            waiting = lengths.setdefault(vhost.name, [0, 0, 0])
            for queue in letting_go(vhost.queues.values()):
                ready, unacked = queue.ready, queue.unacked
                if ready or unacked:
                    waiting[0] += ready + unacked
                    waiting[1] += ready
                    waiting[2] += unacked
                yield queue, QUEUE, _of_queue(queue, ready, unacked)
            for exchange in vhost.exchange_counts():
                yield exchange, EXCHANGE, _passed(exchange)
        for client in letting_go(self._clients):
            vhost_of = client.vhost
            traffic = client.traffic
            sums = self._sums.setdefault(vhost_of.name, {}) if vhost_of is not None else {}
            octets = array("q", (traffic.recv_oct, traffic.send_oct))
            self._grow(sums, client, CONNECTION, octets)
            yield client, CONNECTION, octets
            for channel in letting_go(client.channels.values()):
                counted = channel.message_stats()
                numbers = array("q", [counted.get(name, 0) for name in CHANNEL])
                self._grow(sums, channel, CHANNEL, numbers)
                yield channel, CHANNEL, numbers

    def _grow(
        self, sums: dict[str, int], key: object, names: Sequence[str], numbers: array[int]
    ) -> None:
        """Add to the sums of a vhost what a connection or channel did since it was looked at."""
        series = self._series.get(key)
        before = series.fine[-1][1] if series is not None else _zeros(names)
        if before == numbers:
            return
        for place, name in enumerate(names):
            grown = numbers[place] - before[place]
            if grown:
                sums[name] = sums.get(name, 0) + grown

    def _total(self, lengths: Mapping[str, Sequence[int]]) -> array[int]:
        stats = self._services.stats
        counts = message_counts(stats) or {}
        churn = stats.churn()
        numbers = array("q", [counts.get(name, 0) for name in CHANNEL])
        numbers.extend(churn[name] for name in CHURN)
        numbers.extend(sum(each[place] for each in lengths.values()) for place in range(3))
        return numbers

    def _add(
        self, key: object, names: Sequence[str], numbers: array[int], dated_ms: int, first: bool
    ) -> None:
        series = self._series.get(key)
        if series is None:
            is_coarse = names is VHOST or names is TOTAL
            if not is_coarse and numbers == _zeros(names):
                return
            series = self._series[key] = Series(names, coarse=is_coarse)
            if not first:  # nothing of it was counted before
                self._append(series, self._dated_ms, _zeros(names))
        series.seen = self._round
        if not series.fine or series.fine[-1][1] != numbers:
            self._append(series, dated_ms, numbers)

    def _append(self, series: Series, time_ms: int, numbers: array[int]) -> None:
        fine, coarse = series.fine, series.coarse
        fine.append((time_ms, numbers))
        self._count += 1
        while len(fine) > FINE_MAX or (self._count > SAMPLES_MAX and len(fine) > SAMPLES_MIN):
            del fine[0]
            self._count -= 1
        if coarse is not None and (not coarse or time_ms >= coarse[-1][0] + COARSE_MS):
            coarse.append((time_ms, numbers))
            if len(coarse) > COARSE_MAX:
                del coarse[0]

    def _forgetting(self) -> Steps[None]:
        """Forget what is gone."""
        for place, (key, series) in enumerate(list(self._series.items())):
            if series.seen != self._round:
                self._count -= len(series.fine)
                del self._series[key]
            if not place % (10 * THINGS_AT_ONCE):
                yield
        for name in [name for name in self._sums if name not in self._vhosts]:
            del self._sums[name]

    # -- what is known -----------------------------------------------------------------------

    def details(
        self, key: object, names: Sequence[str], span: Span | None = None
    ) -> dict[str, dict[str, Any]]:
        """The rates of these numbers, in 1/s, and their history: by `NAME_details`.

        A thing is its own key; a vhost's is ("vhost", name), the broker's is "total". What no
        round has looked at yet had done nothing, at any time.
        """
        series = self._series.get(key, _NOTHING)
        times_ms = self._times_ms(span) if span is not None and self.started else range(0)
        moments = series.at(times_ms)
        found: dict[str, dict[str, Any]] = {}
        for name in names:
            if name in series.names:
                place = series.names.index(name)
                rate = self._rate(series, place)
                values = [0 if numbers is None else numbers[place] for numbers in moments]
            else:
                rate, values = 0.0, [0] * len(times_ms)
            details: dict[str, Any] = {"rate": rate}
            if times_ms:
                details |= _history(values, times_ms)
            found[f"{name}_details"] = details
        return found

    def counted(self, key: object, names: Sequence[str]) -> dict[str, int]:
        """The numbers at the last sample."""
        series = self._series.get(key)
        if series is None:
            return {}
        numbers = series.fine[-1][1]
        return {name: numbers[series.names.index(name)] for name in names}

    def _rate(self, series: Series, place: int) -> float:
        if len(series.fine) < SAMPLES_MIN or series.fine[-1][0] != self._dated_ms:
            return 0.0
        took_ms = self.last_ms - self.before_ms
        grown = series.fine[-1][1][place] - series.fine[-2][1][place]
        return grown * 1000 / took_ms if took_ms > 0 else 0.0

    def _times_ms(self, span: Span) -> range:
        """The times of the samples of a history, the newest first."""
        step_ms = span.step_s * 1000
        newest_ms = self._services.now_ms() // step_ms * step_ms
        return range(newest_ms, newest_ms - span.age_s * 1000 - 1, -step_ms)


def _history(values: Sequence[int], times_ms: range) -> dict[str, Any]:
    """The history of a number, the newest value first."""
    took_ms = times_ms[0] - times_ms[-1]
    return {
        "samples": [
            {"sample": value, "timestamp": time_ms}
            for value, time_ms in zip(values, times_ms, strict=True)
        ],
        "avg_rate": (values[0] - values[-1]) * 1000 / took_ms if took_ms else 0.0,
        "avg": sum(values) / len(values),
    }


def _of_queue(queue: QueueType, ready: int, unacked: int) -> array[int]:
    """The numbers of a queue, in the order of `QUEUE`; there may be very many queues."""
    counts = queue.counts
    taken = counts.deliver + counts.deliver_no_ack + counts.get + counts.get_no_ack
    return array(
        "q",
        (
            queue.published,
            counts.deliver,
            counts.deliver_no_ack,
            counts.get,
            counts.get_no_ack,
            counts.get_empty,
            taken,
            counts.redeliver,
            counts.ack,
            ready + unacked,
            ready,
            unacked,
        ),
    )


def _passed(counts: ExchangeCounts) -> array[int]:
    return array("q", (counts.published_in, counts.published_out))
