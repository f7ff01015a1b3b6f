"""Lanes of a vhost beside its queues: what is delayed at an exchange, what was seen, what waits.

Promises that such a lane is made when it is first needed, that it is named by a definition of its
own if it has to last, and that it goes with the exchange, or the queue, that it belongs to. Does
not know what is in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from qlog.routing.binding import DestinationKind
from qlog.server.amqp.envelope import Envelope
from qlog.server.broker.definitions import DELAYED, WAITS, WINDOW, Definitions, HiddenLane
from qlog.storage.lanes.lane import Lane
from qlog.storage.store import Store

ROLES = (DELAYED, WINDOW, WAITS)


class Owner(NamedTuple):
    """Whose lane it is, and what for (one of ROLES)."""

    kind: DestinationKind
    name: str
    role: str


class HiddenLanes:
    """The hidden lanes of the vhost of that name."""

    def __init__(self, vhost: str, store: Store[Envelope], definitions: Definitions) -> None:
        self._vhost = vhost
        self._store = store
        self._definitions = definitions
        self._lanes: dict[Owner, Lane[Envelope]] = {}
        self._forgotten: list[Lane[Envelope]] = []

    def add(self, found: HiddenLane) -> None:
        """Make a lane known that a start has found."""
        owner = Owner(found.kind, found.name, found.role)
        self._lanes[owner] = self._store.lane(found.lane_id)

    def __iter__(self) -> Iterator[tuple[Owner, Lane[Envelope]]]:
        return iter(list(self._lanes.items()))

    def __contains__(self, owner: Owner) -> bool:
        return owner in self._lanes

    def lane(self, owner: Owner, *, durable: bool) -> Lane[Envelope]:
        """The lane of this owner, made if there is none.

        The store makes no message in it durable before the definition that names it.
        """
        lane = self._lanes.get(owner)
        if lane is None:
            lane_id = self._store.new_lane_id()
            if durable:
                self._definitions.save_hidden_lane(HiddenLane(self._vhost, *owner, lane_id))
            lane = self._lanes[owner] = self._store.lane(lane_id)
        return lane

    def forget(self, kind: DestinationKind, name: str) -> None:
        """The owner is being deleted, in a transaction: `drop` is to follow when that has ended."""
        for role in ROLES:
            lane = self._lanes.pop(Owner(kind, name, role), None)
            if lane is not None:
                self._definitions.delete_hidden_lane(self._vhost, kind, name, role)
                self._forgotten.append(lane)

    def drop(self) -> None:
        """Give up the lanes that are forgotten, with what is in them."""
        while self._forgotten:
            self._store.drop(self._forgotten.pop())
