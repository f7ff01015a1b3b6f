"""Kill -9 under mixed load: nothing confirmed is lost, nothing acknowledged comes back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.crash.kill_loop import KillLoop

KILLS = int(os.environ.get("QLOG_KILLS", "5"))


@pytest.mark.timeout(60 + 15 * KILLS)
def test_promises_survive_kills(tmp_path: Path) -> None:
    loop = KillLoop(tmp_path / "data", seed=20_240_301)
    loop.start()
    try:
        for _ in range(KILLS):
            assert loop.kill_once().violations == []
        assert loop.journal.confirmed, "the load did nothing"
    finally:
        loop.stop()
