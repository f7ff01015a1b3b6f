"""A broker with its API for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.http.support import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A new broker."""
    site = Site(tmp_path / "data")
    yield site
    site.bench.kill()
