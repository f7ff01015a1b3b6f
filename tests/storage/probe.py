"""What tests look at inside of a store: the only place outside that knows its parts."""

from typing import Any

from qlog.storage.store import Store


class Probe:
    """The parts of one store."""

    def __init__(self, store: Store[Any]) -> None:
        self.journal = store._journal
        self.commits = store._journal.commits
        self.settling = store._settling
        self.checkpoints = store._checkpoints
        self.recovered = store._recovered
        self.upkeep = store._upkeep
        self.log = store._log
        self.lanes = store._lanes
        self.live = store._checkpoints.live
        self.compactor = store._checkpoints.compactor
        self.identity = store._identity
        self.paths = store._recovered.paths
        self.index = store._recovered.index
        self.cache = store._recovered.cache
        self.due = store._due
        self.ledger = store._recovered.ledger
        self.committer = store._journal.committer


def probe(store: Store[Any]) -> Probe:
    """The parts of a store, to be looked at or, rarely, to be brought into a state."""
    return Probe(store)
