"""A few hundred crashes and restarts; `python -m tests.simulation` is for thousands."""

import pytest

from tests.simulation.lives import live


@pytest.mark.parametrize("seed", range(10))
def test_a_life(seed: int) -> None:
    tally = live(seed)
    assert tally.counts["rounds"] >= 25
    assert tally.crashes.power_losses and tally.counts["crashes inside recovery"]


def test_a_life_is_the_same_again() -> None:
    assert live(3, rounds=10) == live(3, rounds=10)
