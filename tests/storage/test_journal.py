"""The journal: what it gives out again, up to where, and how long it keeps that."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from qlog.storage import journal
from qlog.storage.bytes.datadir import Paths
from qlog.storage.bytes.disk import OSDisk
from qlog.storage.errors import CorruptLog, PositionGone, Shortage
from qlog.storage.journal import Entry, Messages, Position, Replay
from qlog.storage.lanes.lane import Lane
from qlog.storage.start.at_rest import replay_at_rest
from tests.storage.probe import probe
from tests.storage.support import Bench, Envelope, envelope, new_lane, publish


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()


def defined_lane(bench: Bench) -> Lane[Envelope]:
    store = bench.store
    lane_id = store.new_lane_id()
    store.catalog.put("queue", str(lane_id), b"value")
    return store.lane(lane_id)


def taken(replay: Replay) -> list[Entry]:
    return [one for one in replay.entries if not isinstance(one, journal.Time)]


def follow(bench: Bench, after: Position | None) -> tuple[list[Entry], Position]:
    assert bench.store.settle_down()
    replay = bench.store.journal.replay(after)
    return taken(replay), replay.end


def roll_ledger(bench: Bench) -> None:
    probe(bench.store).settling.wants_roll = True
    assert bench.store.checkpoint()


def test_a_message_comes_back_as_it_was_published(bench: Bench) -> None:
    store = bench.store
    one, two = defined_lane(bench), defined_lane(bench)
    _, position = follow(bench, None)
    publish(store, [one], [b"a"])
    metas = [envelope(b"x"), envelope(b"yy")]
    store.append([one, two], metas, [b"b", b"cc"], persistent=True, now_ms=8, dues_ms=[90, 91])
    publish(store, [two], [b"transient"], persistent=False)
    entries, _ = follow(bench, position)
    assert entries == [
        Messages([one.id], [0], [b"key"], [b"a"], [7], None),
        Messages([one.id, two.id], [1, 0], [b"x", b"yy"], [b"b", b"cc"], [8, 8], [90, 91]),
    ]


def test_entries_come_in_an_order_in_which_they_can_be_applied(bench: Bench) -> None:
    _, position = follow(bench, None)
    lane = defined_lane(bench)
    publish(bench.store, [lane], [b"first"])
    entries, position = follow(bench, position)
    assert entries == [
        journal.Defined("queue", str(lane.id), b"value"),
        Messages([lane.id], [0], [b"key"], [b"first"], [7], None),
    ]
    lane.settle(0, 1)
    publish(bench.store, [lane], [b"a", b"b", b"c"])
    lane.note_delivered(3)
    lane.note_attempts(2, 1, 1)
    lane.settle(1, 1)
    entries, position = follow(bench, position)
    assert entries == [
        Messages([lane.id], [1], [b"key"] * 3, [b"a", b"b", b"c"], [7] * 3, None),
        journal.Attempts(lane.id, [2, 3, 1]),
        journal.Settled(lane.id, [0, 2]),
        journal.Delivered(lane.id, 3),
    ]
    bench.store.catalog.delete("queue", str(lane.id))
    bench.store.drop(lane)
    entries, position = follow(bench, position)
    assert entries == [
        journal.Defined("queue", str(lane.id), None),
        journal.LaneDeleted(lane.id),
    ]
    assert follow(bench, position) == ([], position)


def test_the_snapshot_says_what_counts_and_leaves_out_what_is_gone(bench: Bench) -> None:
    store = bench.store
    gone, lane = defined_lane(bench), defined_lane(bench)
    publish(store, [gone, lane], [b"a", b"b"])
    store.catalog.delete("queue", str(gone.id))
    store.drop(gone)
    lane.settle(0, 1)
    assert store.settle_down()
    roll_ledger(bench)
    entries, _ = follow(bench, None)
    assert entries == [
        journal.Defined("queue", str(lane.id), b"value"),
        Messages((lane.id,), (0,), [b"key"] * 2, [b"a", b"b"], [7] * 2, None),
        journal.LaneState(lane.id, 2, 1, 0, {}),
    ]


def test_what_is_not_durable_is_not_given_out(bench: Bench) -> None:
    lane = defined_lane(bench)
    _, position = follow(bench, None)
    publish(bench.store, [lane], [b"a"])
    assert taken(bench.store.journal.replay(position)) == []
    bench.store.commit()
    bench.commits.run_one()
    bench.store.advance()
    assert len(taken(bench.store.journal.replay(position))) == 1
    lane.settle(0, 1)
    bench.tick(0.0)
    bench.tick(0.1)  # written, and not synced
    bench.commits.run_one()
    bench.store.advance()
    assert not any(
        isinstance(one, journal.Settled) for one in bench.store.journal.replay(position).entries
    )


def test_a_settlement_that_was_durable_first_is_said_again(bench: Bench) -> None:
    store = bench.store
    lane = defined_lane(bench)
    publish(store, [lane], [b"a"])
    _, position = follow(bench, None)
    publish(store, [lane], [b"b", b"c"])
    lane.note_attempts(2, 1, 4)
    lane.settle(1, 1)
    probe(store).commits.held = Shortage.SPACE  # as on a full disk: the ledger goes on
    probe(store).journal.retry_s = 99.0
    bench.tick(0.0)
    bench.tick(2.0)
    bench.commits.run_one()
    store.advance()
    bench.tick(2.0)
    bench.commits.run_one()
    store.advance()
    assert taken(store.journal.replay(position)) == [], "its message is not durable"
    entries, _ = follow(bench, position)
    said = [journal.Attempts(lane.id, [2, 3, 4]), journal.Settled(lane.id, [1, 2])]
    message = Messages([lane.id], [1], [b"key"] * 2, [b"b", b"c"], [7] * 2, None)
    assert entries == [*said, message, *said]


def test_a_position_is_gone_when_the_ledger_has_a_new_file(bench: Bench) -> None:
    lane = defined_lane(bench)
    publish(bench.store, [lane], [b"a", b"b"])
    _, position = follow(bench, None)
    lane.settle(0, 1)
    assert bench.store.settle_down()
    roll_ledger(bench)
    with pytest.raises(PositionGone, match="begin again with the snapshot"):
        follow(bench, position)
    _, position = follow(bench, None)
    lane.settle(1, 1)
    assert follow(bench, position)[0] == [journal.Settled(lane.id, [1, 2])]


def test_who_had_read_the_old_file_to_its_end_goes_on_in_the_new_one(bench: Bench) -> None:
    lane = defined_lane(bench)
    publish(bench.store, [lane], [b"a", b"b"])
    _, position = follow(bench, None)
    roll_ledger(bench)
    lane.settle(0, 1)
    assert follow(bench, position)[0] == [journal.Settled(lane.id, [0, 1])]


def test_a_restart_goes_on_where_the_stream_was_left(bench: Bench) -> None:
    lane = defined_lane(bench)
    publish(bench.store, [lane], [b"a", b"b"])
    _, position = follow(bench, None)
    bench.restart()
    publish(bench.store, [bench.store.lane(lane.id)], [b"c"])
    entries, _ = follow(bench, position)
    assert entries == [Messages([lane.id], [2], [b"key"], [b"c"], [7], None)]


def test_what_a_follower_has_not_taken_is_kept_until_it_is_released(bench: Bench) -> None:
    """Over new files of the ledger, and although nothing in the segments waits any more."""
    store = bench.store
    lane = defined_lane(bench)
    _, position = follow(bench, None)
    store.journal.release(position)
    bodies = [b"%03d" % at + b"x" * 500 for at in range(100)]
    for at in range(0, 100, 10):
        publish(store, [lane], bodies[at : at + 10])
        lane.settle(at, 10)
        assert store.settle_down()
        roll_ledger(bench)
        assert store.checkpoint()
    count, files = store.segment_count, len(list((bench.directory / "ledger").glob("*.qack")))
    assert count > 3 and files == 11
    entries, position = follow(bench, position)
    assert [body for one in entries if isinstance(one, Messages) for body in one.bodies] == bodies
    settled = [one.ranges for one in entries if isinstance(one, journal.Settled)]
    assert settled == [[at, at + 10] for at in range(0, 100, 10)]
    for _ in range(4):
        store.journal.release(position)
        bench.tick(11.0)
        roll_ledger(bench)
        entries, position = follow(bench, position)
        assert entries == []
    assert store.segment_count == 1
    assert len(list((bench.directory / "ledger").glob("*.qack"))) == 1


def test_nothing_is_kept_when_there_is_no_follower(bench: Bench) -> None:
    store = bench.store
    lane = defined_lane(bench)
    _, position = follow(bench, None)
    store.journal.release(position)
    store.journal.release(None)
    for _ in range(10):
        publish(store, [lane], [b"x" * 500] * 10)
        lane.settle(0, lane.next_qseq)
        assert store.settle_down()
    for _ in range(4):
        assert store.checkpoint()
    assert store.segment_count <= 2
    with pytest.raises(PositionGone, match="the log does not have message 0"):
        follow(bench, position)


def test_a_position_of_another_directory_is_refused(bench: Bench) -> None:
    for position in (Position(99, 1), Position(0, 99)):
        with pytest.raises(PositionGone):
            bench.store.journal.replay(position)


def test_damage_in_the_log_ends_a_replay(bench: Bench) -> None:
    lane = defined_lane(bench)
    publish(bench.store, [lane], [b"body"])
    assert bench.store.settle_down()
    path = probe(bench.store).paths.segment(1)
    path.write_bytes(path.read_bytes().replace(b"body", b"BODY"))
    with pytest.raises(CorruptLog, match="is damaged at byte 64"):
        follow(bench, None)


def test_a_ticket_is_served_when_what_was_submitted_is_durable(bench: Bench) -> None:
    log = bench.store.journal
    lane = new_lane(bench.store)
    assert bench.store.settle_down()
    first = log.submit([journal.Settled(lane.id, [0, 1])])
    assert log.synced < first < log.request_sync()
    assert bench.store.settle_down()
    assert log.synced >= first


def test_the_stream_of_a_directory_at_rest_is_that_of_a_running_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    lane = defined_lane(bench)
    publish(bench.store, [lane], [b"%d" % at for at in range(40)])
    lane.settle(3, 5)
    running, _ = follow(bench, None)
    lane.settle(20, 1)
    assert bench.store.settle_down()
    bench.kill()
    at_rest = replay_at_rest(OSDisk(), Paths(bench.directory), None)
    assert taken(at_rest) == [*running, journal.Settled(lane.id, [20, 21])]
    again = replay_at_rest(OSDisk(), Paths(bench.directory), at_rest.end)
    assert taken(again) == [] and again.end == at_rest.end
