"""Directories to be damaged: small, whole, and all that is in them is known.

Made by the real store: two queues, messages that went to one or both, some settled, segments sealed
and not, one that was compacted.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgpack

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.properties import Properties, encode_properties
from qlog.server.amqp.values import encode_table
from qlog.storage import journal
from qlog.storage.bytes.batch import FILE_HEADER_BYTES
from qlog.storage.bytes.disk import OSDisk
from qlog.storage.lanes.settled import Settled
from qlog.storage.settings import StoreSettings
from qlog.storage.store import Store
from qlog.storage.write.ledger import Record, unpack_body
from qlog.storage.write.segment import BatchFile, columns_of
from qlog.tools.inspect.look.directory import Directory

SETTINGS = StoreSettings(
    segment_bytes_max=16 << 10,
    ledger_bytes_max=8 << 10,
    batch_bytes_max=4 << 10,
    index_reserve_bytes=0,
    catalog_reserve_bytes=0,
    compact_age_s=0.0,
    compact_bytes_per_s=1 << 40,
)
QUEUES = ("orders", "audit")  # lanes 1 and 2
MESSAGES = 120
NOW_MS = 1_700_000_000_000

Place = tuple[int, int]  # lane, qseq


@dataclass(frozen=True, slots=True)
class BatchFact:
    """A batch: where it is, and what it says.

    `durable`: of the log in a batch of the log, of the ledger in one of the ledger. `settled`: by the
    ledger up to and with this batch.
    """

    file: str
    position: int
    end: int
    base: int
    count: int
    durable: int
    log_durable: int = 0
    settled: frozenset[Place] = frozenset()


@dataclass(slots=True)
class Facts:
    """What is in a directory. `messages`: LSN and body by lane and qseq."""

    directory: Path
    messages: dict[Place, tuple[int, bytes]] = field(default_factory=dict)
    settled: set[Place] = field(default_factory=set)
    records: dict[int, tuple[str, int, int]] = field(default_factory=dict)  # LSN -> file, bytes
    log: list[BatchFact] = field(default_factory=list)
    ledger: list[BatchFact] = field(default_factory=list)
    sealed: set[str] = field(default_factory=set)  # files
    headers: set[str] = field(default_factory=set)  # files that begin with a header
    checkpoint_lsn: int = 0
    checkpoint_number: int = 0  # of the ledger's next batch

    @property
    def waiting(self) -> set[Place]:
        return self.messages.keys() - self.settled


def body(number: int) -> bytes:
    return b"message %d " % number + bytes([65 + number % 26]) * (40 + number * 37 % 400)


@contextmanager
def opened(directory: Path) -> Iterator[Store[Envelope]]:
    store = Store.open(directory, decode=Envelope.unpack, notify=lambda: None, settings=SETTINGS)
    try:
        yield store
    finally:
        store.close()


def new_place() -> Path:
    """A new temporary directory, in memory rather than on a disk: nothing here is about syncing."""
    memory = Path("/dev/shm")
    return Path(
        tempfile.mkdtemp(prefix="qlog-damage-", dir=memory if os.access(memory, os.W_OK) else None)
    )


def make(kind: str, directory: Path) -> Facts:
    """A new directory of this kind, and what is in it."""
    facts = Facts(directory)
    _MAKERS[kind](facts)
    _read_back(facts)
    return facts


def _fill(store: Store[Envelope], facts: Facts) -> None:
    """Messages in batches of several sizes, with acks and checkpoints between them."""
    lanes = [store.lane(store.new_lane_id()) for _ in QUEUES]
    store.catalog.put("vhost", json.dumps(["/"]), msgpack.packb({}))
    for name, lane in zip(QUEUES, lanes, strict=True):
        value = {"lane": lane.id, "auto_delete": False, "arguments": encode_table({})}
        store.catalog.put("queue", json.dumps(["/", name]), msgpack.packb(value))
    properties = encode_properties(Properties(content_type="text/plain", delivery_mode=2))
    number = step = 0
    while number < MESSAGES:
        count = min(1 + step * 5 % 7, MESSAGES - number)
        bodies = [body(at) for at in range(number, number + count)]
        metas = [Envelope.pack("amq.topic", f"key.{step % 3}", properties, 0)] * count
        targets = lanes if step % 3 else lanes[:1]
        for at in range(count):
            for lane in targets:
                facts.messages[lane.id, lane.next_qseq + at] = (number + at, bodies[at])
        store.append(targets, metas, bodies, persistent=True, now_ms=NOW_MS)
        assert store.settle_down()
        if step % 4 == 1:
            _settle(store, facts, 1, range(lanes[0].next_qseq - count, lanes[0].next_qseq, 2))
        if step % 8 == 6:  # these go to spill/, and end with the broker
            store.append(targets, metas[:1], [b"transient"], persistent=False, now_ms=NOW_MS)
        if step % 8 == 7:
            assert store.checkpoint()
        number += count
        step += 1


def _settle(store: Store[Envelope], facts: Facts, lane_id: int, qseqs: range) -> None:
    for qseq in qseqs:
        store.lane(lane_id).settle(qseq, 1)
        if (lane_id, qseq) in facts.messages:
            facts.settled.add((lane_id, qseq))
    assert store.settle_down()


def _stopped(facts: Facts) -> None:
    """What a broker leaves that was stopped in good order."""
    with opened(facts.directory) as store:
        _fill(store, facts)


def _killed(facts: Facts) -> None:
    """What a broker leaves that was killed: the last segment is not sealed."""
    running = facts.directory.with_name(facts.directory.name + "-running")
    with opened(running) as store:
        _fill(store, facts)
        shutil.copytree(running, facts.directory)
    shutil.rmtree(running)


def _compacted(facts: Facts) -> None:
    """What a broker leaves that was killed after it had compacted."""
    running = facts.directory.with_name(facts.directory.name + "-compacting")
    with opened(running) as store:
        _fill(store, facts)
        for lane_id in (1, 2):
            for qseq in range(store.lane(lane_id).next_qseq * 2 // 3):
                if qseq % 10 and (lane_id, qseq) not in facts.settled:
                    _settle(store, facts, lane_id, range(qseq, qseq + 1))
        for step in range(40):
            store.tick(step / 2)
            assert store.checkpoint()
        assert list((running / "log").glob("1*.qseg")), "nothing was compacted"
        shutil.copytree(running, facts.directory)
    shutil.rmtree(running)


_MAKERS: dict[str, Callable[[Facts], None]] = {
    "stopped": _stopped,
    "killed": _killed,
    "compacted": _compacted,
}
KINDS = tuple(_MAKERS)


# -- what the files say


def _read_back(facts: Facts) -> None:
    root = facts.directory
    directory = Directory(root)
    assert not directory.damage
    uuid = directory.identity.uuid
    index = directory.index_facts
    if index is not None and index.checkpoint is not None:
        facts.checkpoint_lsn = index.checkpoint.lsn
        facts.checkpoint_number = index.checkpoint.ledger.number
    for path in sorted((root / "log").glob("*.qseg")):
        name = str(path.relative_to(root))
        file = BatchFile(OSDisk(), path, uuid, int(path.stem))
        if file.header is not None:
            facts.headers.add(name)
        trailer = file.trailer()
        if trailer is not None:
            facts.sealed.add(name)
        for batch in file.batches():
            header = batch.header
            columns = columns_of(batch)
            for lsn, at, size in zip(
                range(header.base, header.base + header.count),
                columns.positions,
                columns.lengths,
                strict=True,
            ):
                facts.records[lsn] = (name, at, at + size)
            facts.log.append(
                BatchFact(
                    name, batch.position, batch.end, header.base, header.count, header.durable
                )
            )
        file.close()
    (path,) = (root / "ledger").glob("*.qack")
    name = str(path.relative_to(root))
    facts.headers.add(name)
    file = BatchFile(OSDisk(), path, uuid, int(path.stem))
    settled = {lane_id: Settled() for lane_id in (1, 2)}
    for batch in file.batches():
        log_durable, records = unpack_body(batch.body)
        for record in records:
            _fold(record, settled)
        facts.ledger.append(
            BatchFact(
                name,
                batch.position,
                batch.end,
                batch.header.base,
                batch.header.count,
                batch.header.durable,
                log_durable,
                frozenset(
                    (lane_id, qseq)
                    for lane_id, qseq in facts.messages
                    if not settled[lane_id].unsettled(qseq, 1)
                ),
            )
        )
    file.close()
    assert facts.ledger[0].position == FILE_HEADER_BYTES
    assert facts.ledger[-1].settled == facts.settled


def _fold(record: Record, settled: dict[int, Settled]) -> None:
    match record:
        case journal.Settled(lane_id, flat):
            for first, end in zip(flat[0::2], flat[1::2], strict=True):
                settled[lane_id].mark(first, end)
        case journal.LaneState(lane_id, _, floor, _, bitmaps):
            settled[lane_id].mark(0, floor)
            for block, bits in bitmaps.items():
                settled[lane_id].add_settled(block, bits)
