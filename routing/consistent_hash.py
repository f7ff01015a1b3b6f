"""The exchange `x-consistent-hash`: a hash of the message picks a destination, by weight.

The routing key of a binding is its weight. What is hashed is the message's routing key; the value
of the header that the argument `hash-header` names; or the property that `hash-property` names.
Messages without that header or property all have the same hash. A destination counts once, with
the weight of the binding that it was bound by first (RabbitMQ's rabbitmq_consistent_hash_exchange).

Promises that destinations get shares by their weights, exactly but for chance; that a destination
that is added takes keys from the others and moves none between them; that one that leaves gives
its keys to all others, and gets the same keys when it is bound again with the same weight and
nothing else has changed; and that a restart moves nothing. (RabbitMQ closes the gap that a
destination leaves, so that most keys move. Its hash function is another one, too.)

    buckets   0 1 2 | 3 | 4 5 | 6 7        a destination of weight w has w buckets in a row
              A A A   B   gap   D D        C, of weight 2, was unbound

A key whose bucket lies in a gap tries again with another hash of the same key.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate

from qlog.routing.binding import NO_ARGUMENTS, Binding
from qlog.routing.errors import InvalidArguments, InvalidBinding, erlang_text
from qlog.routing.hashing import digest, jump, octets_of
from qlog.routing.message import Message

_PROPERTIES = ("correlation_id", "message_id", "timestamp")
_INTEGER = re.compile("[+-]?[0-9]+")
# Larger weights count as this: the places of 2**32 bindings fit 64 bits.
WEIGHT_MAX = 2**32
# So often a key looks for a bucket that is no gap. Unless gaps are more than half of all, fewer
# than one key in 200 is not content with that; its bucket is looked for with the gaps left out.
_TRIES = 8


def _weight(binding: Binding) -> int:
    key = binding.routing_key
    if not _INTEGER.fullmatch(key):
        raise InvalidBinding(f"The binding key must be an integer: {erlang_text(key)}")
    if int(key) < 1:
        raise InvalidBinding("The binding key must be greater than 0")
    return min(int(key), WEIGHT_MAX)


def _hashed(arguments: Mapping[str, object], key: str) -> str | None:
    name = arguments.get(key)
    if key in arguments and not isinstance(name, str):
        raise InvalidArguments(f"{key} must be a string")
    return name if isinstance(name, str) else None


class ConsistentHash:
    """The bindings of one exchange, and the buckets of their destinations.

    Raises InvalidArguments for arguments that RabbitMQ refuses.
    """

    def __init__(self, arguments: Mapping[str, object] = NO_ARGUMENTS) -> None:
        self._header = _hashed(arguments, "hash-header")
        self._property = _hashed(arguments, "hash-property")
        if self._header is not None and self._property is not None:
            raise InvalidArguments("hash-header and hash-property are mutually exclusive")
        if self._property is not None and self._property not in _PROPERTIES:
            raise InvalidArguments(f"Unsupported property: {self._property}")
        self.cacheable = self._header is None and self._property is None
        # By kind and name: the bindings of a destination. The first of them has the buckets.
        self._rivals: dict[tuple[str, str], dict[Binding, None]] = {}
        # The bindings that have buckets, in the order of these.
        self._owners: list[Binding] = []
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._places: dict[Binding, int] = {}
        self._live = 0  # buckets that are no gap
        self._sums: list[int] | None = None  # of the owners' weights; None: to be worked out

    def add(self, binding: Binding, place: int | None = None) -> int | None:
        weight = _weight(binding)
        rivals = self._rivals.setdefault((binding.kind, binding.destination), {})
        rivals[binding] = None
        return self._give_buckets(binding, weight, place) if len(rivals) == 1 else None

    def remove(self, binding: Binding) -> None:
        destination = binding.kind, binding.destination
        rivals = self._rivals[destination]
        del rivals[binding]
        if not rivals:
            del self._rivals[destination]
        place = self._places.pop(binding, None)
        if place is None:
            return
        at = bisect_left(self._starts, place)
        self._live -= self._ends[at] - self._starts[at]
        self._sums = None
        del self._owners[at], self._starts[at], self._ends[at]
        if rivals:
            heir = next(iter(rivals))
            self._give_buckets(heir, _weight(heir), None)

    def match(self, routing_keys: Sequence[str], message: Message) -> Collection[Binding]:
        owners = self._owners
        if not owners:
            return ()
        octets = self._octets(routing_keys, message)
        buckets = self._ends[-1]
        for seed in range(_TRIES):
            bucket = jump(digest(octets, seed), buckets)
            at = bisect_right(self._starts, bucket) - 1
            if at >= 0 and bucket < self._ends[at]:
                return (owners[at],)
        if self._sums is None:
            weights = map(int.__sub__, self._ends, self._starts)
            self._sums = list(accumulate(weights))
        return (owners[bisect_right(self._sums, jump(digest(octets, _TRIES), self._live))],)

    def _octets(self, routing_keys: Sequence[str], message: Message) -> bytes:
        """What of the message is hashed: of several routing keys the first, the message's own."""
        if self._header is not None:
            return octets_of(message.headers().get(self._header))
        if self._property is not None:
            return octets_of(message.property_text(self._property))
        return octets_of(routing_keys[0])

    def _give_buckets(self, binding: Binding, weight: int, place: int | None) -> int:
        """Give a binding the buckets from `place` on, or from the first gap that is large enough.

        Returns the first bucket.
        """
        if place is None:
            at, place = self._first_gap(weight)
        else:
            at = bisect_right(self._starts, place)
        self._places[binding] = place
        self._owners.insert(at, binding)
        self._starts.insert(at, place)
        self._ends.insert(at, place + weight)
        self._live += weight
        self._sums = None
        return place

    def _first_gap(self, weight: int) -> tuple[int, int]:
        """Before which owner it is, and its first bucket; what is behind the last is a gap, too."""
        end = self._ends[-1] if self._ends else 0
        if self._live < end:
            before = 0
            for at, start in enumerate(self._starts):
                if start - before >= weight:
                    return at, before
                before = self._ends[at]
        return len(self._starts), end
