"""The simulation can fail: storage with one thing done wrong is caught, each time."""

from functools import partial

import pytest

from tests.simulation.lives import live
from tests.simulation.mutations import (
    MUTATIONS,
    OF_BACKUPS,
    REDUNDANT,
    STREAM_SYNCS,
    Mutation,
    find,
    follow,
    leave_out,
    syncs,
)
from tests.simulation.world import World

SEED = 10_000
ROUNDS_MAX = 1500


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_is_caught(mutation: Mutation) -> None:
    assert find(mutation, SEED, ROUNDS_MAX) is not None


@pytest.mark.parametrize("mutation", [one for one in MUTATIONS if one.script is not None])
def test_a_script_goes_well_without_its_mutation(mutation: Mutation) -> None:
    assert mutation.script is not None
    for seed in range(10):
        follow(mutation.script, seed)


def test_redundant_syncs_are_not_missed() -> None:
    """Without all of them at once."""
    done = [live(seed, prepare=partial(leave_out, REDUNDANT)) for seed in range(3)]
    assert sum(tally.counts["rounds"] for tally in done) >= 75


def test_every_sync_is_in_one_of_the_tables() -> None:
    named = {site.partition(": ")[0] for site in REDUNDANT}
    named |= {site.partition(": ")[0] for site in STREAM_SYNCS}
    named |= {mutation.without.partition(": ")[0] for mutation in MUTATIONS}
    assert syncs() == (named - {""}) | OF_BACKUPS


def test_each_sync_is_called_for_by_that_name() -> None:
    worlds: list[World] = []
    for seed in range(6):
        live(seed, prepare=worlds.append)
    seen = {site for world in worlds for site in world.disk.syncs}
    sites = set(REDUNDANT) | {mutation.without for mutation in MUTATIONS} - {""}
    assert seen == sites
