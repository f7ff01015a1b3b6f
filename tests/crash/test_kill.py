"""Kill -9 under mixed load: nothing confirmed is lost, nothing acknowledged comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.kill_loop import KillLoop

KILLS = 10
# Shorter than by hand; files are small, so that much happens to them even so.
LOAD_S_MAX = 0.7


@pytest.mark.timeout(60 + 15 * KILLS)
@pytest.mark.parametrize("seed", [20_240_301, 20_240_302])
def test_promises_survive_kills(tmp_path: Path, seed: int) -> None:
    """Two brokers of ten kills each, so that they can run side by side."""
    loop = KillLoop(tmp_path / "data", seed, LOAD_S_MAX)
    loop.start()
    try:
        for _ in range(KILLS):
            assert loop.kill_once().violations == []
    finally:
        loop.stop()
    assert loop.journal.confirmed_count and loop.journal.acknowledged_count, "no load"
    assert loop.journal.transactions_count and loop.passing.changes_count, "not all kinds of load"
    assert loop.streaming.read_count and any((loop.data_dir / "streams").iterdir()), "no stream"
