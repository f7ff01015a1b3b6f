"""The exchanges that pick one destination: shares, what moves, what stays, and what is refused."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlog.routing import Binding, InvalidArguments, InvalidBinding, RoutingTable
from qlog.routing.consistent_hash import WEIGHT_MAX, ConsistentHash
from qlog.routing.exchange import Matcher
from qlog.routing.hashing import digest, jump, octets_of
from qlog.routing.modulus_hash import ModulusHash
from qlog.routing.random import LocalRandom, Random
from tests.routing.support import Plain

NOTHING = Plain(None)
KEYS = [f"key {number}" for number in range(4000)]


def to(queue: str, weight: object = 1, arguments: Mapping[str, object] | None = None) -> Binding:
    return Binding("x", "queue", queue, str(weight), arguments or {})


def hashing(*bindings: Binding) -> ConsistentHash:
    exchange = ConsistentHash()
    for binding in bindings:
        exchange.add(binding)
    return exchange


def ways(exchange: Matcher, keys: Sequence[str] = KEYS) -> dict[str, str]:
    """By key the destination; all keys have one."""
    result = {}
    for key in keys:
        (binding,) = exchange.match([key], NOTHING)
        result[key] = binding.destination
    return result


def moved(before: dict[str, str], after: dict[str, str]) -> Counter[tuple[str, str]]:
    """How many keys went from where to where."""
    return Counter((before[key], after[key]) for key in before if before[key] != after[key])


def close(count: int, expected: float) -> bool:
    """Within five standard deviations of a binomial distribution over KEYS."""
    share = expected / len(KEYS)
    deviation: float = (len(KEYS) * share * (1 - share)) ** 0.5
    return abs(count - expected) <= 5 * deviation + 1


class TestConsistentHash:
    @pytest.mark.parametrize(
        "weights", [[1, 1], [1] * 7, [1, 2, 3, 4], [10, 20, 10], [1, 1000], [5], ["007", "+3"]]
    )
    def test_shares_go_by_weight(self, weights: list[object]) -> None:
        bindings = [to(f"q{number}", weight) for number, weight in enumerate(weights)]
        shares = Counter(ways(hashing(*bindings)).values())
        total = sum(int(str(weight)) for weight in weights)
        for binding in bindings:
            expected = len(KEYS) * int(binding.routing_key) / total
            assert close(shares[binding.destination], expected)

    def test_without_bindings_nothing_matches(self) -> None:
        exchange = hashing()
        assert exchange.match(["k"], NOTHING) == ()
        exchange.add(to("q"))
        exchange.remove(to("q"))
        assert exchange.match(["k"], NOTHING) == ()

    def test_one_that_is_added_takes_its_share_and_moves_nothing_else(self) -> None:
        exchange = hashing(*(to(f"q{number}", 2) for number in range(6)))
        before = ways(exchange)
        exchange.add(to("new", 4))
        changes = moved(before, ways(exchange))
        assert {where for _, where in changes} == {"new"}
        assert close(changes.total(), len(KEYS) * 4 / 16)

    @pytest.mark.parametrize("gone", ["q0", "q3", "q5"])
    def test_one_that_leaves_gives_its_keys_to_all_others(self, gone: str) -> None:
        exchange = hashing(*(to(f"q{number}") for number in range(6)))
        before = ways(exchange)
        exchange.remove(to(gone))
        changes = moved(before, ways(exchange))
        assert {whence for whence, _ in changes} == {gone}
        for number in range(6):
            if f"q{number}" != gone:
                keys_of_one = Counter(before.values())[gone]
                assert changes[gone, f"q{number}"] > keys_of_one / 5 / 2

    @pytest.mark.parametrize("gone", ["q0", "q3", "q5"])
    def test_one_that_is_bound_again_gets_the_same_keys(self, gone: str) -> None:
        exchange = hashing(*(to(f"q{number}") for number in range(6)))
        before = ways(exchange)
        exchange.remove(to(gone))
        exchange.add(to(gone))
        assert ways(exchange) == before

    def test_a_destination_counts_once_by_its_first_binding(self) -> None:
        exchange = hashing(to("a"), to("b"), to("b", 8))
        before = ways(exchange)
        assert close(Counter(before.values())["b"], len(KEYS) / 2)
        exchange.remove(to("b", 8))
        assert ways(exchange) == before

    def test_the_second_binding_of_a_destination_follows_the_first(self) -> None:
        exchange = hashing(to("a"), to("b"), to("b", 3))
        exchange.remove(to("b"))
        assert close(Counter(ways(exchange).values())["b"], len(KEYS) * 3 / 4)
        exchange.remove(to("b", 3))
        assert set(ways(exchange).values()) == {"a"}

    def test_mostly_gaps_cost_no_more_and_keep_the_shares(self) -> None:
        exchange = hashing(to("large", 10**6), to("a", 1), to("b", 3))
        exchange.remove(to("large", 10**6))
        shares = Counter(ways(exchange).values())
        assert close(shares["a"], len(KEYS) / 4)
        assert close(shares["b"], len(KEYS) * 3 / 4)

    def test_gaps_are_used_again(self) -> None:
        exchange = hashing(to("a", 1))
        for number in range(100):
            exchange.add(to(f"q{number}", 5))
            exchange.add(to(f"r{number}", 3))
            exchange.remove(to(f"q{number}", 5))
            exchange.remove(to(f"r{number}", 3))
        assert exchange.add(to("z", 5)) == 1

    def test_enormous_weights_count_as_large_ones(self) -> None:
        exchange = hashing(to("a", 10**200), to("b", WEIGHT_MAX))
        assert close(Counter(ways(exchange).values())["a"], len(KEYS) / 2)

    @pytest.mark.parametrize(
        ("key", "text"),
        [
            ("0", "The binding key must be greater than 0"),
            ("-1", "The binding key must be greater than 0"),
            ("abc", 'The binding key must be an integer: <<"abc">>'),
            ("", "The binding key must be an integer: <<>>"),
            ("1.5", 'The binding key must be an integer: <<"1.5">>'),
            (" 1", 'The binding key must be an integer: <<" 1">>'),
            ("1_0", 'The binding key must be an integer: <<"1_0">>'),
            ("1\n", 'The binding key must be an integer: <<"1\\n">>'),
            ("٣", 'The binding key must be an integer: <<"٣"/utf8>>'),
        ],
    )
    def test_weights_are_positive_integers(self, key: str, text: str) -> None:
        exchange = ConsistentHash()
        with pytest.raises(InvalidBinding) as refused:
            exchange.add(to("q", key))
        assert str(refused.value) == text
        assert exchange.match(["k"], NOTHING) == ()

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ({"hash-property": "foo"}, "Unsupported property: foo"),
            ({"hash-property": "reply_to"}, "Unsupported property: reply_to"),
            (
                {"hash-header": "h", "hash-property": "message_id"},
                "hash-header and hash-property are mutually exclusive",
            ),
            ({"hash-header": 5}, "hash-header must be a string"),
            ({"hash-property": None}, "hash-property must be a string"),
        ],
    )
    def test_bad_arguments(self, arguments: Mapping[str, object], text: str) -> None:
        table = RoutingTable()
        with pytest.raises(InvalidArguments) as refused:
            table.declare_exchange("x", "x-consistent-hash", arguments=arguments)
        assert str(refused.value) == text
        assert table.exchange("x") is None

    def test_what_is_hashed(self) -> None:
        queues = [to(f"q{number}") for number in range(8)]

        def picked(arguments: Mapping[str, object], message: Plain, *keys: str) -> str:
            exchange = ConsistentHash(arguments)
            for binding in queues:
                exchange.add(binding)
            (binding,) = exchange.match(keys, message)
            return binding.destination

        values = [str(number) for number in range(50)]
        by_key = [picked({}, NOTHING, value) for value in values]
        by_key_and_copies = [picked({}, NOTHING, value, "cc") for value in values]
        by_header = [picked({"hash-header": "h"}, Plain({"h": v}), "k") for v in values]
        by_x_header = [picked({"hash-header": "x-h"}, Plain({"x-h": v}), "k") for v in values]
        assert len(set(by_key)) == 8
        assert by_key == by_key_and_copies == by_header == by_x_header
        for name in ("correlation_id", "message_id", "timestamp"):
            by_property = [
                picked({"hash-property": name}, Plain(None, **{name: value}), "k")
                for value in values
            ]
            assert by_property == by_key
            absent = {picked({"hash-property": name}, Plain(None), value) for value in values}
            assert len(absent) == 1
        assert len({picked({"hash-header": "h"}, Plain({}), value) for value in values}) == 1
        numbers = [picked({"hash-header": "h"}, Plain({"h": int(v)}), "k") for v in values]
        assert len(set(numbers)) == 8

    def test_only_what_the_routing_key_decides_may_be_remembered(self) -> None:
        assert ConsistentHash().cacheable
        assert not ConsistentHash({"hash-header": "h"}).cacheable
        assert not ConsistentHash({"hash-property": "message_id"}).cacheable

    @given(st.data())
    @settings(max_examples=50)
    def test_histories(self, data: st.DataObject) -> None:
        """Whatever happened: places restore all, and a change moves only what it has to."""
        exchange = ConsistentHash()
        places: dict[Binding, int] = {}
        keys = KEYS[:200]
        for _ in range(data.draw(st.integers(1, 12))):
            before = ways(exchange, keys) if places else {}
            ends = {place + int(b.routing_key) for b, place in places.items()}
            remove = data.draw(st.booleans())
            if places and remove:
                binding = data.draw(st.sampled_from(sorted(places, key=lambda b: b.destination)))
                exchange.remove(binding)
                last = places.pop(binding) + int(binding.routing_key) == max(ends)
                if places and not last:
                    changes = moved(before, ways(exchange, keys))
                    gaps = max(ends) > 2 * sum(int(b.routing_key) for b in places)
                    assert gaps or {whence for whence, _ in changes} <= {binding.destination}
            else:
                queue = data.draw(st.sampled_from("abcdefgh"))
                if any(b.destination == queue for b in places):
                    continue
                binding = to(queue, data.draw(st.integers(1, 5)))
                place = exchange.add(binding)
                assert place is not None
                places[binding] = place
                inside = place < max(ends, default=0)
                if before and not inside:
                    changes = moved(before, ways(exchange, keys))
                    assert {where for _, where in changes} <= {queue}
            if places:
                again = ConsistentHash()
                for binding, place in random.Random(1).sample(list(places.items()), len(places)):
                    assert again.add(binding, place) == place
                assert ways(again, keys) == ways(exchange, keys)


def test_jump_moves_keys_only_to_the_new_bucket() -> None:
    for key in KEYS[:500]:
        hashed = digest(key.encode())
        before = jump(hashed, 1)
        assert before == 0
        for buckets in range(2, 40):
            after = jump(hashed, buckets)
            assert after in (before, buckets - 1)
            before = after


def test_hashes_are_the_same_everywhere() -> None:
    """Values written down once: another machine or Python must come to the same."""
    assert digest(b"key") == 13540649951185429987
    assert jump(digest(b"key"), 1000) == 329
    assert octets_of({"b": [1, "x", None], "a": 1.5}) == octets_of({"a": 1.5, "b": [1, b"x", None]})


class TestModulusHash:
    def exchange(self, *bindings: Binding) -> ModulusHash:
        exchange = ModulusHash()
        for binding in bindings:
            exchange.add(binding)
        return exchange

    def test_shares_go_by_bindings(self) -> None:
        exchange = self.exchange(to("a", "x"), to("a", "y"), to("a", "z"), to("b", "x"))
        assert close(Counter(ways(exchange).values())["b"], len(KEYS) / 4)

    def test_the_order_of_binding_does_not_matter(self) -> None:
        bindings = [to(f"q{number}", "", {"n": number % 2}) for number in range(6)]
        one = ways(self.exchange(*bindings))
        assert one == ways(self.exchange(*reversed(bindings)))

    def test_all_routing_keys_count(self) -> None:
        exchange = self.exchange(to("a"), to("b"))
        found = [exchange.match(["k", f"cc {number}"], NOTHING) for number in range(50)]
        assert len({binding.destination for (binding,) in found}) == 2

    def test_removed(self) -> None:
        exchange = self.exchange(to("a", "", {"n": 1}), to("a", "", {"n": 2}), to("b"))
        exchange.remove(to("a", "", {"n": 1}))
        exchange.remove(to("a", "", {"n": 2}))
        assert set(ways(exchange).values()) == {"b"}
        exchange.remove(to("b"))
        assert exchange.match(["k"], NOTHING) == ()


class TestRandom:
    @pytest.fixture(autouse=True)
    def seeded(self) -> None:
        random.seed(1)

    def test_shares_go_by_bindings(self) -> None:
        exchange = Random()
        for binding in (to("a", "x"), to("a", "y"), to("a", "z"), to("b", "x")):
            exchange.add(binding)
        assert not exchange.cacheable
        assert close(Counter(ways(exchange).values())["b"], len(KEYS) / 4)

    def test_removed(self) -> None:
        exchange = Random()
        bindings = [to(f"q{number}") for number in range(5)]
        for binding in bindings:
            exchange.add(binding)
        left = {binding.destination for binding in bindings}
        for number in (1, 4, 0, 3):
            exchange.remove(bindings[number])
            left.discard(f"q{number}")
            assert set(ways(exchange, KEYS[:200]).values()) == left
        exchange.remove(bindings[2])
        assert exchange.match(["k"], NOTHING) == ()

    @pytest.mark.parametrize(
        ("binding", "text"),
        [
            (to("q", "k"), "Non empty binding 'k' key not permitted"),
            (Binding("x", "exchange", "y", "k"), "Non empty binding 'k' key not permitted"),
            (Binding("x", "exchange", "y", ""), "Destination not found"),
        ],
    )
    def test_local_random_has_only_queues_and_no_keys(self, binding: Binding, text: str) -> None:
        exchange = LocalRandom()
        with pytest.raises(InvalidBinding) as refused:
            exchange.add(binding)
        assert str(refused.value) == text
        exchange.add(to("q", ""))
        assert set(ways(exchange, KEYS[:20]).values()) == {"q"}
