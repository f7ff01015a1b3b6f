"""Memory that caches of one kind share, whoever they belong to.

Promises that what the caches of a process hold stays within one bound, however many connections
there are, and that a cache whose owner ends gives its share back at once. When there is too much,
the cache that was emptied longest ago is emptied. Knows nothing of what is cached.
"""

from typing import Protocol


class Holder(Protocol):
    """A cache. It is told apart from others by identity."""

    def forget(self) -> None:
        """Empty the cache: the budget has taken the share back."""


class Budget:
    """Room for `bytes_max` octets, as the holders estimate them."""

    __slots__ = ("_shares", "bytes_held", "bytes_max")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_held = 0
        self._shares: dict[Holder, int] = {}

    def charge(self, holder: Holder, octets: int) -> None:
        """The holder is about to hold so many octets more; others, or itself, may be emptied."""
        shares = self._shares
        self.bytes_held += octets
        while self.bytes_held > self.bytes_max and shares:
            first = next(iter(shares))
            self.release(first)
            first.forget()
        shares[holder] = shares.get(holder, 0) + octets

    def release(self, holder: Holder) -> None:
        """The holder has nothing any more."""
        self.bytes_held -= self._shares.pop(holder, 0)
