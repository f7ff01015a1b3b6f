"""Random lives of a broker's core: what clients do, crashes and restarts, from one seed each.

What is checked stands in broker_world.py. The same seed gives the same life.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

from qlog.server.broker.access import logins
from tests.simulation.broker_world import NAMES, SOURCES, BrokerWorld, small_broker_steps
from tests.simulation.lives import judged, scratch
from tests.simulation.world import Fate

ROUNDS_A_LIFE = 10
_STEPS = {  # and how often, before taste
    "publish": 14,
    "publish_later": 4,
    "consume": 6,
    "settle_some": 20,
    "lose_client": 1,
    "delete": 0.7,
    "turn": 4,
    "work": 14,
    "pass_time": 6,
    "be_late": 2,
    "sync": 2,
    "arm": 2,
    "crash": 1,
    "fill_disk": 0.7,
    "free_disk": 1.5,
}


class BrokerLife:
    """One broker from its first start on."""

    def __init__(self, world: BrokerWorld, choice: random.Random, taste: Mapping[str, float]):
        self.world = world
        self.choice = choice
        self.weights = [
            weight * taste.get(name, 1) * choice.choice((0.3, 1, 1, 3))
            for name, weight in _STEPS.items()
        ]
        self.story: list[str] = []

    def live(self, rounds: int) -> None:
        """Raises whatever did not hold."""
        world = self.world
        world.begin()
        while world.counts["rounds"] < rounds:
            (name,) = self.choice.choices(list(_STEPS), self.weights)
            given = getattr(self, f"_{name}", None)
            arguments = () if given is None else given()
            self.story.append(f"{name}{arguments}")
            world.perform(getattr(world, name), *arguments)

    # -- what the steps are given

    def _publish(self) -> tuple[Any, ...]:
        choice = self.choice
        own_ms = choice.choice((None, None, None, 500, 3000))
        return choice.choice(list(SOURCES)), choice.choice((1, 1, 2, 5)), own_ms

    def _publish_later(self) -> tuple[Any, ...]:
        return self.choice.choice((1, 1, 2, 5)), self.choice.choice((1, 20, 300, 2000, 20_000))

    def _consume(self) -> tuple[Any, ...]:
        return (self.choice.choice(NAMES),)

    def _settle_some(self) -> tuple[Any, ...]:
        choice = self.choice
        verdict = choice.choice(("ack", "reject", "reject", "requeue", "requeue"))
        return choice.random(), verdict, choice.random() < 0.2

    def _delete(self) -> tuple[Any, ...]:
        return self.choice.choice(list(SOURCES)), self.choice.random() < 0.5

    def _work(self) -> tuple[Any, ...]:
        return (self.choice.choice((0, 0, 1)),)

    def _pass_time(self) -> tuple[Any, ...]:
        return (self.choice.choice((1, 10, 10, 300, 1100, 5100)),)

    def _be_late(self) -> tuple[Any, ...]:
        return self.choice.choice((200, 700, 2500)), self.choice.choice(list(SOURCES))

    def _arm(self) -> tuple[Any, ...]:
        return self.choice.choice((0, 1, 2, 3, 5, 8, 13)), self._fate()

    def _crash(self) -> tuple[Any, ...]:
        return (self._fate(),)

    def _fill_disk(self) -> tuple[Any, ...]:
        return (self.choice.choice((0, 100, 5000)),)

    def _fate(self) -> Fate:
        choice = self.choice
        inside: list[tuple[int, bool]] = []
        while choice.random() < 0.3 and len(inside) < 3:
            inside.append((choice.randrange(40), choice.random() < 0.7))
        return Fate(power=choice.random() < 0.6, inside=inside, seed=choice.getrandbits(32))


def live(
    seed: int, rounds: int = ROUNDS_A_LIFE, taste: Mapping[str, float] = MappingProxyType({})
) -> Counter[str]:
    """One life; what it was made of. Raises Violation."""
    choice = random.Random(seed)
    everybody = patch.object(logins, "is_right", lambda *arguments: True)
    with scratch() as base, small_broker_steps(), everybody:
        world = BrokerWorld(base / "broker", choice)
        life = BrokerLife(world, choice, taste)
        again = f"again with: python -m tests.simulation.broker --life {seed} --rounds {rounds}"
        try:
            with judged(life.story, again):
                life.live(rounds)
        finally:
            world.end()
        return world.counts
