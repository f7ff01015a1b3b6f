"""Starts after crashes and damage: what is cut, what is refused, and that twice is as once."""

import errno
import os
import random
import shutil
import struct
import time
from contextlib import closing
from pathlib import Path

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from qlog.storage.bytes import batch
from qlog.storage.bytes.batch import BATCH_HEADER_BYTES, FILE_HEADER_BYTES, pack_batch
from qlog.storage.errors import (
    CorruptLog,
    DirectoryLocked,
    DirectoryUnreadable,
    OtherFormat,
    Shortage,
    SyncFailed,
)
from qlog.storage.index.index import Live
from qlog.storage.index.rows import IndexDoubt
from qlog.storage.journal import Defined
from qlog.storage.lanes.lane import Lane
from qlog.storage.lmdb.catalog import CatalogFile
from qlog.storage.start import recovery
from qlog.storage.start.examine import Examination, Verdict
from qlog.storage.start.fold import DefinitionFacts
from qlog.storage.store import Store
from tests.storage.probe import probe
from tests.storage.support import (
    SMALL,
    Bench,
    Envelope,
    Killed,
    ManualWorker,
    abandon,
    contents,
    decode,
    ignore,
    new_lane,
    publish,
)


def start(directory: Path) -> Store[Envelope]:
    return Store.open(
        directory,
        decode=decode,
        notify=ignore,
        settings=SMALL,
        new_worker=lambda name, notify: ManualWorker(),
    )


def refused(directory: Path) -> str:
    """The start fails, in one line, twice the same, and nothing is changed by it."""
    before = image(directory)
    messages = []
    for _ in range(2):
        with pytest.raises(CorruptLog) as caught:
            start(directory)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "\n" not in messages[0]
    assert image(directory) == before
    return messages[0]


def image(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "lock.mdb"
    }


def segment_path(directory: Path, segment_id: int = 1) -> Path:
    return directory / "log" / f"{segment_id:010d}.qseg"


def ledger_path(directory: Path) -> Path:
    return max((directory / "ledger").glob("*.qack"))


@pytest.fixture
def three_batches(tmp_path: Path) -> tuple[Path, int, list[int]]:
    """A directory as kill -9 leaves it: three batches, the lane's id, where each batch ends."""
    bench = Bench(tmp_path)
    lane = new_lane(bench.store)
    ends = []
    for at in range(3):
        publish(bench.store, [lane], [b"%d-%d" % (at, n) * 5 for n in range(3)])
        bench.store.commit()
        bench.commits.run_one()
        bench.store.advance()
        ends.append(probe(bench.store).commits.durable_end[1])
    bench.kill()
    return bench.directory, lane.id, ends


def test_a_torn_message_full_of_headers_does_not_hold_up_the_start(tmp_path: Path) -> None:
    """Whoever may publish may write what looks like batches; it must not cost hours of hashing."""
    headers = [pack_batch(at, 1, 1, 1, 1 << 40) for at in range(80_000)]
    claimed = struct.pack("<I", 12 << 20)  # to nearly the end of the file
    fakes = b"".join(header[:8] + claimed + header[12:] for header in headers)
    random_bytes = random.Random(1).randbytes(len(fakes))
    settings = replace(SMALL, segment_bytes_max=16 << 20, batch_bytes_max=8 << 20)
    times_s = []
    for number, body in enumerate((random_bytes, fakes)):
        bench = Bench(tmp_path / str(number), settings)
        lane = new_lane(bench.store)
        for sent in (b"kept", body):
            publish(bench.store, [lane], [sent])
            bench.store.commit()
            bench.commits.run_one()
            bench.store.advance()
        bench.kill()
        path = segment_path(bench.directory)
        data = path.read_bytes()
        path.write_bytes(data.replace(body[-100:], bytes(100)))
        started_s = time.process_time()
        store = start(bench.directory)
        times_s.append(time.process_time() - started_s)
        assert contents(store.lane(lane.id)) == {0: b"kept"}
        assert store.report.log_records_cut == 1
        store.close()
    assert times_s[1] < 100 * times_s[0]


def test_a_torn_tail_is_cut_at_every_byte(
    three_batches: tuple[Path, int, list[int]], tmp_path: Path
) -> None:
    directory, lane_id, ends = three_batches
    whole = segment_path(directory).read_bytes()
    for length in range(ends[1], ends[2]):
        copy = tmp_path / f"torn{length}"
        shutil.copytree(directory, copy)
        torn = whole[:length] + bytes(len(whole) - length)
        segment_path(copy).write_bytes(torn)
        store = start(copy)
        assert store.lsn == 6
        assert len(contents(store.lane(lane_id))) == 6
        assert store.report.log_bytes_cut == len(torn[ends[1] :].rstrip(b"\0"))
        publish(store, [store.lane(lane_id)], [b"next"])
        assert store.settle_down()
        assert list(contents(store.lane(lane_id)).values())[-1] == b"next"
        store.close()
        shutil.rmtree(copy)


def test_any_damage_below_the_durable_point_is_refused(
    three_batches: tuple[Path, int, list[int]], tmp_path: Path
) -> None:
    """The third batch says that the first two were synced."""
    directory, _, ends = three_batches
    whole = segment_path(directory).read_bytes()
    copy = tmp_path / "damaged"
    shutil.copytree(directory, copy)
    for position in range(0, ends[1], 3):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        segment_path(copy).write_bytes(damaged)
        message = refused(copy) if position % 30 == 0 else None
        if message is None:
            with pytest.raises(CorruptLog) as caught:
                start(copy)
            message = str(caught.value)
        assert str(segment_path(copy)) in message and "damaged at byte" in message


def test_a_segment_cut_short_below_the_durable_point_is_refused(
    three_batches: tuple[Path, int, list[int]], tmp_path: Path
) -> None:
    directory, _, ends = three_batches
    ledger = ledger_path(directory)
    os.truncate(segment_path(directory), ends[0])
    store = None
    try:
        store = start(directory)  # nothing is left that says that more was synced
        assert store.lsn == 3
    finally:
        if store is not None:
            store.close()
    assert ledger_path(directory) != ledger


def test_the_checkpoint_says_what_was_durable(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"only"])
    assert bench.store.checkpoint()
    bench.kill()
    path = segment_path(bench.directory)
    path.write_bytes(path.read_bytes()[:FILE_HEADER_BYTES] + bytes(SMALL.segment_bytes_max))
    assert "messages 0 to 0 had been confirmed" in refused(bench.directory)


def test_an_orderly_stop_says_what_was_durable_even_without_an_index(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    publish(bench.store, [new_lane(bench.store)], [b"only"])
    bench.store.close()
    segment_path(bench.directory).unlink()
    shutil.rmtree(bench.directory / "index.lmdb")
    copy = tmp_path / "copy"  # LMDB opens a place once a process
    shutil.copytree(bench.directory, copy)
    with pytest.raises(CorruptLog, match="missing"):
        start(copy)


def test_a_missing_segment_in_the_middle_is_named(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    lane = new_lane(bench.store)
    for _ in range(40):
        publish(bench.store, [lane], [b"x" * 1000])
    assert bench.store.settle_down()
    assert bench.store.segment_count > 2
    bench.kill()
    segment_path(bench.directory, 2).unlink()
    assert f"{segment_path(bench.directory, 2)} is missing" in refused(bench.directory)


def test_a_damaged_footer_is_made_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    lane = new_lane(bench.store)
    for _ in range(40):
        publish(bench.store, [lane], [b"x" * 1000])
    assert bench.store.checkpoint()
    bench.kill()
    path = segment_path(bench.directory, 2)
    sound = path.read_bytes()
    path.write_bytes(sound[:-20] + bytes([sound[-20] ^ 1]) + sound[-19:])
    shutil.rmtree(bench.directory / "index.lmdb")
    bench.open()
    assert len(contents(bench.store.lane(lane.id))) == 40
    bench.store.close()
    view = Examination(bench.directory).segment(2)
    assert view.sealed and view.footer_verdict is Verdict.WHOLE


def test_damage_below_the_checkpoint_is_found_by_reading(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"sound", b"will be damaged", b"sound too"])
    assert bench.store.checkpoint()
    bench.store.close()
    copy = tmp_path / "copy"
    shutil.copytree(bench.directory, copy)
    path = segment_path(copy)
    path.write_bytes(path.read_bytes().replace(b"will be", b"will bE"))
    store = start(copy)
    with pytest.raises(CorruptLog, match="damaged at byte") as caught:
        store.lane(lane.id).read(0, 10, 1000)
    assert "\n" not in str(caught.value)
    part = store.lane(lane.id).read(2, 10, 1000)
    assert part is not None and part.bodies == [b"sound too"]
    store.close()


def test_a_settlement_of_a_message_that_was_lost_does_not_hit_another(tmp_path: Path) -> None:
    """The orphan rule: the ack got to disk, its message did not."""
    bench = Bench(tmp_path)
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"a", b"b"])
    assert bench.store.settle_down()
    publish(bench.store, [lane], [b"lost", b"lost too"])
    lane.settle(2, 2)
    probe(bench.store).commits.held = Shortage.SPACE  # as on a full disk: the ledger goes on
    probe(bench.store).journal.retry_s = 99.0
    bench.tick(0.0)
    bench.tick(0.1)
    bench.commits.run_one()
    bench.store.advance()
    bench.restart()
    lane = bench.store.lane(lane.id)
    assert contents(lane) == {0: b"a", 1: b"b"}
    assert lane.next_qseq == 4
    publish(bench.store, [lane], [b"new"])
    assert contents(lane) == {0: b"a", 1: b"b", 4: b"new"}
    bench.restart()
    bench.store.close()


def test_a_torn_ledger_tail_is_cut_at_every_byte(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"%d" % at for at in range(10)])
    assert bench.store.settle_down()
    before = probe(bench.store).ledger.position.position
    lane.settle(3, 2)
    bench.tick(0.0)
    bench.tick(0.1)
    bench.commits.run_one()
    bench.store.advance()
    after = probe(bench.store).ledger.position.position
    assert after > before
    bench.kill()
    whole = ledger_path(bench.directory).read_bytes()
    for length in range(before, after):
        copy = tmp_path / f"torn{length}"
        shutil.copytree(bench.directory, copy)
        ledger_path(copy).write_bytes(whole[:length] + bytes(len(whole) - length))
        store = start(copy)
        assert len(contents(store.lane(lane.id))) == 10
        store.close()
        shutil.rmtree(copy)
    store = start(bench.directory)
    assert len(contents(store.lane(lane.id))) == 8
    store.close()


def test_damage_to_synced_acks_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"%d" % at for at in range(10)])
    for qseq in (1, 3, 5):
        lane.settle(qseq, 1)
        assert bench.store.settle_down()
    end = probe(bench.store).ledger.position.position
    lane.settle(7, 1)
    assert bench.store.settle_down()
    bench.kill()
    path = ledger_path(bench.directory)
    whole = path.read_bytes()
    for position in range(0, end, 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CorruptLog, match=r"qack is damaged at byte"):
            start(bench.directory)
    refused(bench.directory)


def stored_catalog(directory: Path) -> closing[CatalogFile]:
    """The catalog's file of a directory that no broker runs on."""
    path = directory / "catalog.lmdb"
    return closing(CatalogFile(path, map_bytes=1 << 30, read_only=True, lock=False))


def state(lane: Lane[Envelope]) -> tuple[object, ...]:
    return contents(lane), lane.alive, lane.next_qseq, lane.delivered


@pytest.mark.parametrize("portion", [recovery.REBUILD_POINTERS, 50])
def test_a_rebuilt_index_is_the_same_as_a_checkpointed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, portion: int
) -> None:
    """In one transaction, or in many."""
    monkeypatch.setattr(recovery, "REBUILD_POINTERS", portion)
    bench = Bench(tmp_path)
    lanes = [new_lane(bench.store) for _ in range(3)]
    for at in range(60):
        publish(bench.store, lanes[: 1 + at % 3], [b"%d-%d" % (at, n) for n in range(20)])
        lanes[at % 3].settle(at * 7, at % 11)
        if at % 20 == 10:
            assert bench.store.checkpoint()
    lanes[0].note_delivered(77)
    assert bench.store.settle_down()
    states = [state(lane) for lane in lanes]
    bench.kill()
    copy = tmp_path / "copy"
    shutil.copytree(bench.directory, copy)
    shutil.rmtree(copy / "index.lmdb")
    kept = start(bench.directory)
    rebuilt = start(copy)
    assert rebuilt.report.index_rebuilt and not kept.report.index_rebuilt
    live: list[dict[int, Live]] = []
    pointers: list[list[tuple[int, ...]]] = []
    for store in (kept, rebuilt):
        for lane, before in zip(lanes, states, strict=True):
            assert state(store.lane(lane.id)) == before
        live.append({key: value for key, value in probe(store).live.items() if value.count})
        alive = {lane.id: contents(store.lane(lane.id)) for lane in lanes}
        pointers.append(
            [
                pointer
                for pointer in probe(store).index.all_pointers()
                if pointer[1] in alive[pointer[0]]
            ]
        )
        store.close()
    assert live[0] == live[1] and pointers[0] == pointers[1]


def test_a_stale_index_catches_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"old"] * 3)
    assert bench.store.checkpoint()
    stale = tmp_path / "stale"
    shutil.copytree(bench.directory / "index.lmdb", stale)
    for _ in range(5):
        publish(bench.store, [lane], [b"new"] * 10)
        lane.settle(0, 2)
        assert bench.store.checkpoint()
    bench.kill()
    shutil.rmtree(bench.directory / "index.lmdb")
    shutil.copytree(stale, bench.directory / "index.lmdb")
    bench.open()
    assert list(contents(bench.store.lane(lane.id)).values()) == [b"old"] + [b"new"] * 50
    bench.store.close()


@pytest.mark.parametrize("damage", ["zeros", "noise", "cut", "empty"])
def test_a_damaged_index_is_rebuilt(tmp_path: Path, damage: str) -> None:
    bench = Bench(tmp_path)
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"%d" % at for at in range(300)])
    lane.settle(100, 50)
    bench.store.close()
    copy = tmp_path / "copy"
    shutil.copytree(bench.directory, copy)
    path = copy / "index.lmdb" / "data.mdb"
    data = path.read_bytes()
    path.write_bytes(
        {"zeros": bytes(len(data)), "noise": os.urandom(8192), "cut": data[:100], "empty": b""}[
            damage
        ]
    )
    store = start(copy)
    assert len(contents(store.lane(lane.id))) == 250
    store.close()


def test_recovering_twice_gives_the_same(three_batches: tuple[Path, int, list[int]]) -> None:
    directory, lane_id, _ = three_batches
    found = []
    for at in range(3):
        store = start(directory)
        found.append((state(store.lane(lane_id)), store.lsn))
        abandon(store)
        following = directory.with_name(f"again{at}")
        shutil.copytree(directory, following)
        directory = following
    assert found[0] == found[1] == found[2]


def test_only_one_broker_has_a_directory(tmp_path: Path) -> None:
    store = start(tmp_path)
    with pytest.raises(DirectoryLocked, match="another broker runs on") as caught:
        start(tmp_path)
    assert "\n" not in str(caught.value)
    store.close()


@pytest.mark.parametrize(
    "version, advice",
    [
        (99, "use the newer qlog"),
        (2, r"the qlog that wrote it \(qlog 0.1.0\), `qlog inspect export`"),
        (1, r"\(one from before the first release\)"),
    ],
)
def test_a_directory_of_another_format_is_left_alone(
    tmp_path: Path, version: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patches:
        patches.setattr(batch, "FORMAT_VERSION", version)
        abandon(start(tmp_path))
    copy = tmp_path.with_name("copy")
    shutil.copytree(tmp_path, copy)
    before = image(copy)
    with pytest.raises(OtherFormat, match=f"format {version}, .*{advice}") as caught:
        start(copy)
    assert "\n" not in str(caught.value)
    assert image(copy) == before
    shutil.rmtree(copy)


def test_a_directory_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(DirectoryUnreadable, match="cannot be used"):
        start(tmp_path / "file" / "data")
    with pytest.raises(DirectoryUnreadable, match="a file has its name"):
        start(tmp_path / "file")


def test_a_parent_that_may_not_be_listed_is_somebody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For root nothing is forbidden: so `os.open` says it is."""
    directory = tmp_path / "parent" / "data"
    opened = os.open
    refused = errno.EACCES

    def open_(path: Path, *rest: int) -> int:
        if path == directory.parent:
            raise OSError(refused, os.strerror(refused))
        return opened(path, *rest)

    monkeypatch.setattr(os, "open", open_)
    start(directory).close()
    refused = errno.EIO
    with pytest.raises(SyncFailed, match="Input/output error"):
        start(directory)


def test_a_lost_catalog_is_made_anew_with_no_definition_missing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    definitions = {f"name {number}": b"%d" % number for number in range(50)}
    for at, (name, value) in enumerate(definitions.items()):
        bench.store.catalog.put("queue", name, value)
        if at == 20:
            assert bench.store.checkpoint()
    bench.store.catalog.delete("queue", "name 3")
    del definitions["name 3"]
    assert bench.store.settle_down()
    bench.kill()
    shutil.rmtree(bench.directory / "catalog.lmdb")
    bench.open()
    assert bench.store.report.catalog_rebuilt == "it was missing"
    assert dict(bench.store.catalog.items("queue")) == definitions
    bench.reopen()
    assert not bench.store.report.catalog_rebuilt
    bench.store.close()
    with stored_catalog(bench.directory) as catalog:
        assert dict(catalog.items("queue")) == definitions


def test_an_older_copy_of_the_catalog_is_brought_up_to_date(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.store.catalog.put("queue", "old", b"1")
    bench.store.close()
    shutil.copytree(bench.directory / "catalog.lmdb", tmp_path / "copy")
    bench.open()
    bench.store.catalog.put("queue", "new", b"2")
    bench.store.catalog.delete("queue", "old")
    bench.store.close()
    shutil.rmtree(bench.directory / "catalog.lmdb")
    shutil.move(tmp_path / "copy", bench.directory / "catalog.lmdb")
    bench.generation += 1
    bench.root.joinpath("data0").rename(bench.directory)  # LMDB opens one place once a process
    bench.open()
    assert bench.store.catalog.items("queue") == [("new", b"2")]
    bench.store.close()
    with stored_catalog(bench.directory) as catalog:
        assert list(catalog.items("queue")) == [("new", b"2")]


@given(
    batches=st.lists(
        st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.binary(max_size=1)), max_size=4),
        max_size=8,
    ),
    at=st.integers(0, 8),
    damaged=st.sets(st.integers(0, 8)),
)
def test_what_can_be_read_of_a_ledger_goes_over_the_catalog(
    batches: list[list[tuple[str, bytes | None]]], at: int, damaged: set[int]
) -> None:
    """With a catalog of the ledger before batch `at`, damage before that costs no definition."""
    whole, catalog, left = DefinitionFacts(), DefinitionFacts(), DefinitionFacts()
    for number, changes in enumerate(batches):
        for name, value in changes:
            entry = Defined("kind", name, value)
            whole.apply(entry, number)
            if number < at:
                catalog.apply(entry, number)
            if number >= at or number not in damaged:
                left.apply(entry, number)
    assert left.over(catalog.entries, at) == whole.entries


def test_files_of_another_directory_do_not_say_who_a_directory_is(tmp_path: Path) -> None:
    """Most files do, and as long as one of another is there, a start is refused."""
    ours, theirs = Bench(tmp_path / "ours"), Bench(tmp_path / "theirs")
    for bench, count in ((ours, 1), (theirs, 3)):
        publish(bench.store, [new_lane(bench.store)], [b"x"] * 5)
        for _ in range(count):
            bench.reopen()
        bench.store.close()
    uuid = Examination(ours.directory).identity.uuid
    (ledger,) = (ours.directory / "ledger").glob("*.qack")
    (foreign,) = (theirs.directory / "ledger").glob("*.qack")
    assert foreign.name > ledger.name
    shutil.copy(foreign, ledger.parent)
    assert Examination(ours.directory).identity.uuid == uuid
    assert f"{foreign.name} is damaged at byte 0" in refused(ours.directory)


def test_a_catalog_that_cannot_be_made_refuses_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    bench.store.close()
    shutil.rmtree(bench.directory / "catalog.lmdb")

    def fail(*_: object) -> None:
        raise lmdb.DiskError("Input/output error")

    monkeypatch.setattr(CatalogFile, "_write", fail)
    with pytest.raises(DirectoryUnreadable, match=r"catalog.lmdb: .*Input/output error"):
        start(bench.directory)


def test_a_lost_ledger_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.store.catalog.put("queue", "one", b"1")
    bench.store.close()
    shutil.rmtree(bench.directory / "ledger")
    with pytest.raises(CorruptLog, match="ledger is missing"):
        start(bench.directory)


def test_definitions_that_are_gone_take_their_messages_with_them(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    kept, gone = new_lane(bench.store), new_lane(bench.store)
    publish(bench.store, [kept, gone], [b"x"] * 5)
    assert bench.store.settle_down()
    bench.restart()
    bench.store.retain([kept.id])
    assert bench.store.checkpoint()
    assert len(contents(bench.store.lane(kept.id))) == 5
    bench.restart()
    assert list(probe(bench.store).lanes) == [kept.id]
    bench.store.close()


def test_lane_ids_are_never_used_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first = [bench.store.new_lane_id() for _ in range(3)]
    assert bench.store.settle_down()
    bench.restart()
    second = [bench.store.new_lane_id() for _ in range(3)]
    assert not set(first) & set(second)
    bench.store.close()


def test_an_examination_names_the_damage_and_changes_nothing(
    three_batches: tuple[Path, int, list[int]],
) -> None:
    directory, _, ends = three_batches
    path = segment_path(directory)
    data = bytearray(path.read_bytes())
    data[ends[0] + 60] ^= 1
    path.write_bytes(data)
    before = image(directory)
    examination = Examination(directory)
    view = examination.segment(1)
    assert view.header_verdict is Verdict.WHOLE and not view.sealed
    stretches = list(examination.stretches(view))
    assert [stretch.verdict for stretch in stretches] == [
        Verdict.WHOLE,
        Verdict.DAMAGED,
        Verdict.WHOLE,
        Verdict.BLANK,
    ]
    assert [stretch.position for stretch in stretches] == [FILE_HEADER_BYTES, *ends]
    batch = stretches[2].batch
    assert batch is not None
    assert [(lsn, record.whole) for lsn, _, record in examination.records(batch)] == [
        (6, True),
        (7, True),
        (8, True),
    ]
    ledger = examination.ledger_file(examination.ledger_ids()[-1])
    assert next(examination.stretches(ledger)).verdict is Verdict.WHOLE
    assert image(directory) == before


def test_a_catalog_and_an_index_that_were_cut_off_are_made_anew(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.store.catalog.put("queue", "one", b"1")
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"kept"])
    bench.store.close()
    os.truncate(bench.directory / "index.lmdb" / "data.mdb", 8192)
    bench.open()
    assert "cut off" in bench.store.report.index_rebuilt
    assert contents(bench.store.lane(lane.id)) == {0: b"kept"}
    bench.store.close()
    os.truncate(bench.directory / "catalog.lmdb" / "data.mdb", 8192)
    bench.open()
    assert "cut off" in bench.store.report.catalog_rebuilt
    assert bench.store.catalog.items("queue") == [("one", b"1")]
    bench.store.close()


# The index's pointer to the first record of the log, as it lies in LMDB's file.
_POINTER = struct.pack("<II", 1, FILE_HEADER_BYTES + BATCH_HEADER_BYTES)


def test_an_index_found_damaged_while_it_is_used_is_rebuilt(tmp_path: Path) -> None:
    """A start looks at a block of pointers only when the log goes on behind it."""
    bench = Bench(tmp_path)
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"first"])
    assert bench.store.checkpoint()
    publish(bench.store, [lane], [b"second"])
    assert bench.store.settle_down()
    bench.kill()
    path = bench.directory / "index.lmdb" / "data.mdb"
    data = path.read_bytes()
    assert data.count(_POINTER) == 1
    at = data.index(_POINTER) + len(_POINTER)  # the message's length
    path.write_bytes(data[:at] + b"\1" + data[at + 1 :])
    bench.open()
    assert "is damaged" in bench.store.report.index_rebuilt
    assert contents(bench.store.lane(lane.id)) == {0: b"first", 1: b"second"}
    assert not (bench.directory / "index.doubt").exists()
    bench.reopen()
    assert bench.store.report.index_rebuilt == ""


def test_an_index_that_cannot_be_made_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB's own reasons are not told apart: a damaged index looks like one without space."""

    def no_space(directory: Path, *, map_bytes: int, reserve_bytes: int) -> None:
        raise IndexDoubt(f"{directory}: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("qlog.storage.start.recovery.Index", no_space)
        with pytest.raises(DirectoryUnreadable, match=r"^.*index\.lmdb.*check the disk$"):
            start(tmp_path / "data")
    start(tmp_path / "data").close()


def test_a_log_without_catalog_and_ledger_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    publish(bench.store, [new_lane(bench.store)], [b"x"] * 5)
    assert bench.store.settle_down()
    bench.kill()
    for name in ("ledger", "catalog.lmdb", "index.lmdb"):
        shutil.rmtree(bench.directory / name)
        with pytest.raises(CorruptLog, match=r"ledger is missing.*repair"):
            start(bench.directory)
    assert (bench.directory / "log" / "0000000001.qseg").stat().st_size


def test_an_older_ledger_is_not_believed(tmp_path: Path) -> None:
    """Its queues are not all there are, and messages of queues it does not know would go."""
    bench = Bench(tmp_path)
    older = tmp_path / "older"
    for _ in range(2):
        bench.reopen()
        lane = new_lane(bench.store)
        publish(bench.store, [lane], [b"x"] * 5)
        assert bench.store.settle_down()
        if not older.exists():
            shutil.copytree(bench.directory / "ledger", older)
    bench.kill()
    for name in ("ledger", "catalog.lmdb", "index.lmdb"):
        shutil.rmtree(bench.directory / name)
    shutil.copytree(older, bench.directory / "ledger")
    with pytest.raises(CorruptLog, match=r"qack is an older copy.*repair"):
        start(bench.directory)


@pytest.mark.parametrize("with_index", [True, False])
def test_a_lost_ledger_is_missed(tmp_path: Path, with_index: bool) -> None:
    bench = Bench(tmp_path)
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"x"] * 20)
    lane.settle(0, 15)
    assert bench.store.settle_down()
    bench.kill()
    for path in (bench.directory / "ledger").iterdir():
        path.unlink()
    if not with_index:
        shutil.rmtree(bench.directory / "index.lmdb")
    assert "ledger" in refused(bench.directory)


def test_an_index_in_doubt_still_attests_the_ledger(tmp_path: Path) -> None:
    """A rebuild would take a damaged end of the ledger for a torn one, and the acks come back."""
    bench = Bench(tmp_path)
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"x"] * 20)
    assert bench.store.checkpoint()
    lane.settle(0, 15)
    assert bench.store.checkpoint()
    bench.kill()
    (path,) = (bench.directory / "ledger").glob("*.qack")
    data = path.read_bytes().rstrip(b"\0")
    flipped = bytearray(data)
    flipped[len(data) - 3] ^= 1
    path.write_bytes(flipped)
    (bench.directory / "index.doubt").touch()
    assert "acks or definitions that were on disk are lost" in refused(bench.directory)


def test_a_segment_of_another_directory_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    other = Bench(tmp_path / "other")
    publish(other.store, [new_lane(other.store)], [b"x"] * 5)
    assert other.store.settle_down()
    bench = Bench(tmp_path / "this")
    publish(bench.store, [new_lane(bench.store)], [b"x"] * 5)
    assert bench.store.settle_down()
    bench.kill()
    log = bench.directory / "log"
    foreign = log / "0000000002.qseg"
    shutil.copy(other.directory / "log" / "0000000001.qseg", foreign)
    assert "belongs to another directory" in refused(bench.directory)
    other.store.close()


def test_a_restored_message_is_there_although_the_index_is_older_than_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start dies when it has begun a new ledger file, and before the index knows of it."""
    bench = Bench(tmp_path)
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"a", b"b", b"c"])
    lane.settle(1, 1)
    assert bench.store.settle_down() and bench.store.checkpoint()
    assert lane.restore(1, 1) == [1, 2]
    assert bench.store.settle_down()
    bench.kill()

    def die(*arguments: object, **more: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(recovery._Recovery, "_update_index", die)
        bench.open()
    bench.open()
    assert contents(bench.store.lane(lane.id)) == {0: b"a", 1: b"b", 2: b"c"}
