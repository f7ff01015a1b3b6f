"""The topic exchange: RabbitMQ's rules as a table, the trie against a naive matcher, its cost."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlog.routing import Binding
from qlog.routing.topic import PatternTrie, Topic, _Node
from tests.routing.naive import topic_matches
from tests.routing.support import Plain

NOTHING = Plain(None)


def bound(pattern: str, queue: str = "q") -> Binding:
    return Binding("x", "queue", queue, pattern)


# (pattern, key, whether it matches), each as RabbitMQ 3.10 answered.
RULES = [
    ("", "", True),
    ("*", "", False),
    ("#", "", True),
    ("#.*", "", False),
    ("*.#", "", False),
    ("a", "a", True),
    ("a", "b", False),
    ("a", "a.b", False),
    ("*", "a", True),
    ("*", "a.b", False),
    ("*", "a.", False),
    ("*.*", "a.", True),
    ("*.*", ".", True),
    (".", ".", True),
    ("a..b", "a..b", True),
    ("a.*.b", "a..b", True),
    ("a.#", "a", True),
    ("a.#", "a.b.c", True),
    ("#.b", "b", True),
    ("#.a", "a.a.a", True),
    ("a.#.b", "a.b", True),
    ("a.#.b", "a.x.y.b", True),
    ("a.#.b", "a.x.y", False),
    ("#.#", "a", True),
    ("#.#.#", "a.b", True),
    ("*.#.*", "a", False),
    ("*.#.*", "a.b", True),
    # A wildcard is one only as a whole word, and only in the pattern.
    ("a*", "ab", False),
    ("a#", "ab", False),
    ("a#", "a#", True),
    ("*a.b", "*a.b", True),
    ("a", "*", False),
    ("a", "#", False),
    ("a.#", "#", False),
    ("*", "*", True),
    ("#", "#", True),
    ("*.#", "#", True),
]


@pytest.mark.parametrize(("pattern", "key", "matches"), RULES)
def test_rules(pattern: str, key: str, matches: bool) -> None:
    topic = Topic()
    topic.add(bound(pattern))
    assert bool(topic.match([key], NOTHING)) == matches
    assert topic_matches(pattern, key) == matches


words = st.sampled_from(["a", "b", "", "*", "#"])
patterns = st.lists(words, max_size=6).map(".".join)
keys = st.lists(words, max_size=7).map(".".join)


@given(st.lists(patterns, max_size=20), st.data(), st.lists(keys, min_size=1, max_size=4))
def test_finds_what_a_naive_matcher_finds(
    bindings: list[str], data: st.DataObject, asked: list[str]
) -> None:
    topic = Topic()
    held = {bound(pattern, str(number)) for number, pattern in enumerate(bindings)}
    for binding in held:
        topic.add(binding)
        topic.match(asked[:1], NOTHING)  # what is remembered is forgotten when bindings change
    removed = data.draw(st.sets(st.sampled_from(sorted(held, key=str)))) if held else set()
    for binding in removed:
        topic.remove(binding)
    for key in asked:
        expected = {b for b in held - removed if topic_matches(b.routing_key, key)}
        assert set(topic.match([key], NOTHING)) == expected
    assert set(topic.match(asked, NOTHING)) == {
        b for b in held - removed if any(topic_matches(b.routing_key, key) for key in asked)
    }


@given(st.lists(patterns, unique=True))
def test_nothing_is_left_of_removed_patterns(bindings: list[str]) -> None:
    trie = PatternTrie()
    for pattern in bindings:
        trie.add(bound(pattern))
    for pattern in bindings:
        trie.remove(bound(pattern))
    assert not trie._root.children and not trie._root.bindings and not trie._counts


class CountedChildren(dict[str, _Node]):
    """The children of a node, which count how often any of their kind is asked for one."""

    asked = 0

    def get(self, word: str, default: object = None) -> _Node | None:  # type: ignore[override]
        CountedChildren.asked += 1
        return super().get(word)


def nodes(node: _Node) -> Iterator[_Node]:
    yield node
    for child in node.children.values():
        yield from nodes(child)


def steps(trie: PatternTrie, key: str) -> int:
    """How many children the match of a key asks for."""
    for node in list(nodes(trie._root)):
        node.children = CountedChildren(node.children)
    CountedChildren.asked = 0
    trie.match(key)
    return CountedChildren.asked


def test_steps_do_not_grow_with_the_number_of_bindings() -> None:
    def trie_of(count: int) -> PatternTrie:
        trie = PatternTrie()
        for number in range(count):
            trie.add(bound(f"device.{number}.*.status", f"q{number}"))
            trie.add(bound(f"device.{number}.#", f"q{number}"))
        return trie

    key = "device.7.disk.status"
    small, large = trie_of(10), trie_of(50_000)
    assert steps(small, key) == steps(large, key) < 50
    assert len(large.match(key)) == 2


def test_steps_do_not_explode_with_many_hashes() -> None:
    trie = PatternTrie()
    trie.add(bound("#." * 20 + "end"))
    # A search that tried each split of the words in turn would need billions of steps.
    assert steps(trie, "a." * 30 + "no") < 5_000


def test_words_that_no_pattern_has_cost_one_walk() -> None:
    trie = PatternTrie()
    for pattern in ("user.#", "user.*.deleted", "*.order"):
        trie.add(bound(pattern))
    matches = [trie.match(f"user.{number}") for number in range(100)]
    assert all(match is matches[0] for match in matches)
    assert trie.match("user.7.deleted") != matches[0] == trie.match("user")


def test_what_is_remembered_is_bounded() -> None:
    trie = PatternTrie()
    for number in range(3000):
        trie.add(bound("#", f"q{number}"))
    for number in range(100):
        assert len(trie.match("." * number)) == 3000
    assert sum(map(len, trie._matches.values())) <= 16_384


def test_patterns_without_wildcards_stay_out_of_the_trie() -> None:
    topic = Topic()
    for number in range(1000):
        topic.add(bound(f"device.{number}.status"))
    assert not topic._patterns
    assert list(topic.match(["device.7.status"], NOTHING)) == [bound("device.7.status")]
    topic.add(bound("device.*.status", "all"))
    assert len(list(nodes(topic._patterns._root))) == 4
    assert len(topic.match(["device.7.status"], NOTHING)) == 2
