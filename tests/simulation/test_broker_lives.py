"""Some crashes and restarts of a broker; `python -m tests.simulation.broker` is for thousands."""

import pytest

from tests.simulation.broker_lives import live
from tests.simulation.broker_mutations import MUTATIONS, BrokerMutation, find


@pytest.mark.parametrize("seed", range(4))
def test_a_life_of_a_broker(seed: int) -> None:
    assert live(seed)["rounds"] >= 10


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_of_the_broker_is_caught(mutation: BrokerMutation) -> None:
    assert find(mutation, 100, 300) is not None
