"""The topic exchange: routing keys are words between dots, binding keys may hold wildcards.

`*` stands for exactly one word, `#` for zero or more. The empty key has no words (AMQP 0-9-1,
section 3.1.3.3; RabbitMQ for the empty key). An empty word is a word: `a..b` has three.

Promises that matching costs what the key and the wildcards on its way demand, not what the
exchange holds: patterns without wildcards are equal to the keys they match, so one dict finds
them; the others stand in a trie by word. All the places a key may be at in the trie advance
together, so a key visits a node at most once a word however many `#` there are. Keys that differ
only in words that no pattern has match the same: `user.4711` and `user.4712` cost one walk.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

from qlog.routing.binding import NO_ARGUMENTS, Binding
from qlog.routing.direct import Direct
from qlog.routing.message import Message


def _words(key: str) -> list[str]:
    return key.split(".") if key else []


class _Node:
    """A place in the trie: what can follow, and the bindings whose patterns end here."""

    __slots__ = ("bindings", "children")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}  # by word, the wildcards among them
        self.bindings: dict[Binding, None] = {}


# What a trie remembers of matches, in words and bindings; forgotten all at once when it is more.
_REMEMBERED_MAX = 16_384


class PatternTrie:
    """Bindings by pattern, found by the keys the patterns match."""

    def __init__(self) -> None:
        self._root = _Node()
        # How many patterns have a word, wildcards included.
        self._counts: Counter[str] = Counter()
        # What matches a key, by its words; None stands for any word that no pattern has.
        self._matches: dict[tuple[str | None, ...], list[Binding]] = {}
        self._remembered = 0

    def __bool__(self) -> bool:
        return bool(self._root.children)

    def add(self, binding: Binding) -> None:
        self._forget()
        node = self._root
        for word in _words(binding.routing_key):
            self._counts[word] += 1
            child = node.children.get(word)
            if child is None:
                child = node.children[word] = _Node()
            node = child
        node.bindings[binding] = None

    def remove(self, binding: Binding) -> None:
        self._forget()
        node, path = self._root, []
        for word in _words(binding.routing_key):
            self._counts[word] -= 1
            if not self._counts[word]:
                del self._counts[word]
            path.append((node, word))
            node = node.children[word]
        del node.bindings[binding]
        for parent, word in reversed(path):  # cut the branch back to what is still needed
            if node.bindings or node.children:
                break
            del parent.children[word]
            node = parent

    def match(self, key: str) -> list[Binding]:
        """The bindings whose patterns match the key. The list is not to be changed."""
        known = self._counts
        words = tuple([word if word in known else None for word in _words(key)])
        found = self._matches.get(words)
        if found is None:
            found = self._walk(words)
            self._remembered += len(words) + len(found)
            if self._remembered > _REMEMBERED_MAX:
                self._forget()
            else:
                self._matches[words] = found
        return found

    def _forget(self) -> None:
        self._matches.clear()
        self._remembered = 0

    def _walk(self, words: Sequence[str | None]) -> list[Binding]:
        found: list[Binding] = []
        here = {self._root: None}
        # Nodes behind a `#`: once reached they match here and, as `#` swallows any number of
        # words, after every later word too.
        floating: dict[_Node, None] = {}
        self._float(here, floating, found)
        for word in words:
            after: dict[_Node, None] = {}
            for nodes in (here, floating):
                for node in nodes:
                    child = None if word is None else node.children.get(word)
                    if child is not None:
                        after[child] = None
                    child = node.children.get("*")
                    if child is not None:
                        after[child] = None
            here = after
            self._float(here, floating, found)
            if not here and not floating:
                break
        for node in here:
            found += node.bindings
        return found

    @staticmethod
    def _float(here: dict[_Node, None], floating: dict[_Node, None], found: list[Binding]) -> None:
        """Let the nodes `here` float through `#` where they can; a pattern ending there matches."""
        for node in here:
            child = node.children.get("#")
            while child is not None and child not in floating:
                floating[child] = None
                found += child.bindings
                child = child.children.get("#")


class Topic:
    """The bindings of one topic exchange."""

    cacheable: ClassVar[bool] = True

    def __init__(self, arguments: Mapping[str, object] = NO_ARGUMENTS) -> None:
        self._literal = Direct()
        self._patterns = PatternTrie()

    def add(self, binding: Binding, place: int | None = None) -> None:
        self._home(binding).add(binding)

    def remove(self, binding: Binding) -> None:
        self._home(binding).remove(binding)

    def match(self, routing_keys: Sequence[str], message: Message) -> Collection[Binding]:
        literal = self._literal.match(routing_keys, message)
        if not self._patterns:
            return literal
        if not literal and len(routing_keys) == 1:
            return self._patterns.match(routing_keys[0])
        found = list(literal)
        for key in routing_keys:
            found += self._patterns.match(key)
        return found

    def _home(self, binding: Binding) -> Direct | PatternTrie:
        words = _words(binding.routing_key)
        return self._patterns if "*" in words or "#" in words else self._literal
