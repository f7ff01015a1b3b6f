"""A broker with its API for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.http.support import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A new broker."""
    return Site(tmp_path / "data")
