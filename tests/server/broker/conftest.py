"""A broker for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from qlog.storage.lanes.settled import Settled
from tests.server.broker.support import Bench, Peer


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A broker on an empty directory."""
    bench = Bench(tmp_path / "data")
    yield bench
    bench.close()


@pytest.fixture
def peer(bench: Bench) -> Peer:
    """A client of it."""
    return Peer(bench)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Among how many messages the first stretch of those that wait was looked for, each time."""
    counts = []
    stretch = Settled.stretch

    def noting(self: Settled, qseq: int, end: int, count_max: int) -> tuple[int, int]:
        counts.append(count_max)
        return stretch(self, qseq, end, count_max)

    monkeypatch.setattr(Settled, "stretch", noting)
    return counts
