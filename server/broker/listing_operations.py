"""The part of operations.py about what there is, as operators see it.

A listing is an iterator over what was there when the listing began, so that a caller may pause
between two items. Facts are maps with RabbitMQ's names; rates come from the sampler.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

from qlog.routing.binding import Binding, DestinationKind
from qlog.routing.exchange import Exchange
from qlog.server.broker.access.logins import Logins
from qlog.server.broker.access.users import User
from qlog.server.broker.access_operations import LoggedIn
from qlog.server.broker.channels.outstanding import Outstanding
from qlog.server.broker.definitions import Definitions
from qlog.server.broker.features.firehose import NODE
from qlog.server.broker.jobs import letting_go
from qlog.server.broker.listings import facts as listings
from qlog.server.broker.queues.type import QueueType
from qlog.server.broker.sampling import CHANNEL, CONNECTION, LENGTHS, SampledChannel, Sampler, Span
from qlog.server.broker.services import Services
from qlog.server.broker.settings import NOBODY
from qlog.server.broker.stats import Stats, Traffic
from qlog.server.broker.vhost import VHost
from qlog.storage.figures import StoreFigures

T = TypeVar("T")


class Spans(NamedTuple):
    """The history that is asked for: of the lengths of queues, of messages, of octets."""

    lengths: Span | None = None
    messages: Span | None = None
    octets: Span | None = None


NO_SPANS = Spans()


class About(NamedTuple):
    """What a broker is called."""

    node: str
    cluster_name: str
    product: str
    version: str


class ListedConsumer(Protocol):
    """A consumer, as operators see it."""

    tag: str

    @property
    def queue(self) -> QueueType:
        """What it consumes from."""

    def facts(self) -> dict[str, Any]:
        """RabbitMQ's fields."""


class ListedChannel(SampledChannel, Protocol):
    """A channel, as operators see it."""

    number: int
    outstanding: Outstanding

    @property
    def name(self) -> str:
        """Its name for operators."""

    @property
    def publishes(self) -> bool:
        """It has published."""

    @property
    def consumers(self) -> Mapping[str, ListedConsumer]:
        """By their tags."""

    def facts(self) -> dict[str, Any]:
        """RabbitMQ's fields."""


class Connected(LoggedIn, Protocol):
    """A client, as operators see it. `user` is known when `is_open` is true."""

    peer: str
    vhost: VHost | None
    traffic: Traffic

    @property
    def name(self) -> str:
        """Its name for operators."""

    @property
    def user(self) -> User:
        """Who logged in."""

    @property
    def is_open(self) -> bool:
        """It is in a vhost, and not about to end."""

    @property
    def channels(self) -> Mapping[int, ListedChannel]:
        """By their numbers."""

    def facts(self) -> dict[str, Any]:
        """RabbitMQ's fields."""


class ListingOperations:
    """See the head of this file."""

    _services: Services
    _definitions: Definitions
    _vhosts: dict[str, VHost]
    _clients: Collection[Connected]
    _logins: Logins
    sampler: Sampler

    def vhosts(self) -> Iterator[VHost]:
        """All vhosts."""
        yield from letting_go(self._vhosts.values())

    def queues(self, vhost: VHost) -> Iterator[QueueType]:
        """The queues of a vhost, but for those that go while they are listed."""
        for queue in letting_go(vhost.queues.values()):
            if not queue.deleted:
                yield queue

    def exchanges(self, vhost: VHost) -> Iterator[Exchange]:
        """The exchanges of a vhost, the default one and the predeclared included."""
        for exchange in letting_go(vhost.routing.exchanges()):
            if not vhost.removals.leaving("exchange", exchange.name):
                yield exchange

    def bindings(self, vhost: VHost) -> Iterator[Binding]:
        """The bindings of a vhost, the implicit ones (source "") included."""
        yield from letting_go(vhost.routing.bindings())

    def connections(self) -> Iterator[Connected]:
        """The clients."""
        yield from letting_go(self._clients)

    def channels(self, client: Connected) -> Iterator[ListedChannel]:
        """The channels of a client."""
        yield from letting_go(client.channels.values())

    def queue_facts(
        self, queue: QueueType, *, single: bool = False, spans: Spans = NO_SPANS
    ) -> dict[str, Any]:
        """A queue as operators see it, with rates.

        `single`: with what RabbitMQ tells of one alone; `spans`: and with the history.
        """
        facts = listings.queue_facts(queue, single=single)
        facts |= self.sampler.details(queue, LENGTHS, spans.lengths)
        self._add_rates(queue, facts["message_stats"], spans.messages)
        if not facts["message_stats"]:
            del facts["message_stats"]
        return facts

    def bare_queue_facts(self, queue: QueueType) -> dict[str, Any]:
        """A queue as operators see it, without statistics."""
        return listings.bare_queue_facts(queue)

    def _add_rates(self, key: object, counts: dict[str, Any], span: Span | None) -> None:
        counts |= self.sampler.details(key, list(counts), span)

    def exchange_facts(
        self, vhost: VHost, exchange: Exchange, *, spans: Spans = NO_SPANS
    ) -> dict[str, Any]:
        """An exchange as operators see it, with rates."""
        facts = listings.exchange_facts(vhost, exchange)
        if "message_stats" in facts:
            counts = vhost.passed_exchange(exchange.name)
            self._add_rates(counts, facts["message_stats"], spans.messages)
        return facts

    def connection_facts(self, client: Connected, *, spans: Spans = NO_SPANS) -> dict[str, Any]:
        """A connection as operators see it, with rates."""
        facts = client.facts()
        facts |= self.sampler.details(client, CONNECTION, spans.octets)
        return facts

    def channel_facts(self, channel: ListedChannel, *, spans: Spans = NO_SPANS) -> dict[str, Any]:
        """A channel as operators see it, with rates."""
        facts = channel.facts()
        self._add_rates(channel, facts["message_stats"], spans.messages)
        return facts

    def total_rates(self, counts: dict[str, Any], span: Span | None = None) -> dict[str, Any]:
        """Counts of the whole broker (`message_counts`, `churn`, lengths) with their rates."""
        self._add_rates("total", counts, span)
        return counts

    def binding_facts(self, vhost: VHost, binding: Binding) -> dict[str, Any]:
        """A binding as operators see it."""
        return listings.binding_facts(vhost.name, binding)

    def about(self) -> About:
        """What the broker is called."""
        settings = self._services.settings
        names = dict(self._definitions.global_parameters())
        cluster_name = names.get("cluster_name")
        if not isinstance(cluster_name, str):
            cluster_name = NODE
        return About(NODE, cluster_name, settings.product, settings.version)

    def churn(self) -> dict[str, int]:
        """What came and went since the start, by RabbitMQ's names."""
        return self._services.stats.churn()

    def message_counts(self) -> dict[str, int]:
        """What was done with messages since the start, by RabbitMQ's names."""
        return listings.message_counts(self._services.stats)

    def login_counts(self) -> tuple[int, int]:
        """How many logins have succeeded, and failed, whatever the protocol."""
        return self._logins.succeeded_count, self._logins.failed_count

    def auth_mechanisms(self) -> Iterator[tuple[str, str, bool]]:
        """SASL mechanisms: name, description, and whether it is offered."""
        offers_anonymous = self._services.settings.anonymous_login_user != NOBODY
        yield "PLAIN", "SASL PLAIN authentication mechanism", True
        yield "AMQPLAIN", "QPid AMQPLAIN mechanism", True
        yield "ANONYMOUS", "SASL ANONYMOUS authentication mechanism", offers_anonymous
        yield "EXTERNAL", "SASL EXTERNAL authentication mechanism: by certificate", True

    def memory(self) -> dict[str, int]:
        """Octets that are taken in memory, by RabbitMQ's names of what they are for."""
        return {"binary": self._services.store.cache_bytes}

    def storage(self) -> StoreFigures:
        """What the disk has done, and how much is on it."""
        return self._services.store.figures

    def stats(self) -> Stats:
        """The counters of the broker."""
        return self._services.stats

    def queue_counts(self, queue: QueueType) -> dict[str, int]:
        """What passed a queue; nothing if nothing ever did."""
        return listings.queue_counts(queue)

    def queue_memory(self, queue: QueueType) -> int:
        """About how many octets a queue takes in memory."""
        return listings.queue_memory(queue)

    def binding_count(self, vhost: VHost, exchange: str) -> int:
        """How many bindings an exchange is the source of."""
        return vhost.routing.binding_count(exchange)

    def published_to(self, vhost: VHost, exchange: Exchange) -> int:
        """How many messages were published to an exchange."""
        counts = vhost.passed_exchange(exchange.name)
        return 0 if counts is None else counts.published_in

    def exchange_types(self) -> Iterator[tuple[str, str]]:
        """The types of exchanges, with a description."""
        yield from listings.EXCHANGE_TYPES.items()

    def queue_count(self, vhost: VHost) -> int:
        """How many queues a vhost has."""
        return len(vhost.queues)

    def exchange_count(self, vhost: VHost) -> int:
        """How many exchanges a vhost has."""
        return sum(1 for _ in vhost.routing.exchanges())

    def find_queue(self, vhost: VHost, name: str) -> QueueType | None:
        """The queue of that name, whoever's it is."""
        return vhost.queues.get(name)

    def find_exchange(self, vhost: VHost, name: str) -> Exchange | None:
        """The exchange of that name."""
        return vhost.find_exchange(name)

    def bindings_from(self, vhost: VHost, source: str) -> Iterator[Binding]:
        """The bindings whose source this exchange is."""
        yield from list(vhost.routing.bindings_from(source))

    def bindings_to(
        self, vhost: VHost, kind: DestinationKind, destination: str
    ) -> Iterator[Binding]:
        """The bindings whose destination this queue or exchange is."""
        yield from list(vhost.routing.bindings_to(kind, destination))

    def vhost_facts(self, vhost: VHost, *, spans: Spans = NO_SPANS) -> dict[str, Any]:
        """A vhost as operators see it, with the counts and rates of the last sample."""
        facts, key = listings.vhost_facts(vhost), ("vhost", vhost.name)
        for names, span in ((CONNECTION, spans.octets), (LENGTHS, spans.lengths)):
            counted = self.sampler.counted(key, names)
            self._add_rates(key, counted, span)
            facts |= counted
        stats = self.sampler.counted(key, CHANNEL)
        if any(stats.values()):
            self._add_rates(key, stats, spans.messages)
            facts["message_stats"] = stats
        return facts


def page(items: Iterator[T], first: int, count: int) -> list[T]:
    """A page of a listing: `count` items from index `first` on, fewer at the end."""
    return list(islice(items, first, first + count))
