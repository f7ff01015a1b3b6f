"""A broker for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

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
