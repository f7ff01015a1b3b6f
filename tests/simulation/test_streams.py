"""Lives of streams, and what they must notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from qlog.storage.lanes.lane import Lane
from qlog.storage.streams.files import Found, Source, end_of, examine
from qlog.storage.streams.streams import Streams
from tests.simulation.mutations import STREAM_SYNCS
from tests.simulation.streams import StreamViolation, live

LIVES_MAX = 60


@pytest.mark.parametrize("seed", range(6))
def test_a_life(tmp_path: Path, seed: int) -> None:
    life = live(tmp_path, seed)
    assert life.disk.counts.power_losses + life.disk.counts.kills >= 10


def caught(tmp_path: Path, left_out: tuple[str, ...] = ()) -> bool:
    for seed in range(LIVES_MAX):
        try:
            live(tmp_path, seed, left_out)
        except (StreamViolation, AssertionError):
            return True
    return False


NEEDED = sorted(site for site, why in STREAM_SYNCS.items() if not why)


@pytest.mark.parametrize("site", NEEDED)
def test_a_missing_sync_is_noticed(tmp_path: Path, site: str) -> None:
    assert caught(tmp_path, (site,))


def test_lives_call_for_each_sync(tmp_path: Path) -> None:
    seen: set[str] = set()
    for seed in range(6):
        seen |= set(live(tmp_path, seed).disk.syncs)
    assert set(STREAM_SYNCS) <= seen


def test_a_settlement_before_the_move_is_noticed(tmp_path: Path) -> None:
    begin = Streams._begin

    def settle_first(self: Streams[Any]) -> None:
        begin(self)
        for stream in self._streams.values():
            lane: Lane[Any] = stream.lane
            if self.working:
                lane.settle(lane.settled.floor, lane.durable_upto(self.durable_lsn()))

    with patch.object(Streams, "_begin", settle_first):
        assert caught(tmp_path)


def test_an_early_unlink_is_noticed(tmp_path: Path) -> None:
    """A segment goes before the ledger knows where its stream begins."""

    def remove_at_once(self: Streams[Any], lane_id: int, bases: list[int] | None) -> None:
        for base in bases or ():
            self.disk.unlink(self.paths.stream_segment(lane_id, base))

    with patch.object(Streams, "_remove", remove_at_once):
        assert caught(tmp_path)


def test_numbers_that_are_never_given_again_are_noticed(tmp_path: Path) -> None:
    """The orphan rule would leave gaps in the offsets."""
    with patch("qlog.storage.start.recovery.stream_lanes", lambda names: set()):
        assert caught(tmp_path)


def test_what_counts_twice_after_a_crash_is_noticed(tmp_path: Path) -> None:
    """Messages are in a segment, and their lane still has them: they are moved a second time."""

    def all_there_is(source: Source, bases: list[int], first: int, floor: int) -> Found:
        end = max(end_of(source, bases), floor) if bases else floor
        return examine(source, bases, first, end)

    with patch("qlog.storage.streams.streams.examine", all_there_is):
        assert caught(tmp_path)
