"""The stream: messages are kept, and any number of consumers read them, each at its own pace.

Promises:

- Each message has an offset, which consumers are told (header `x-stream-offset`), and which never
  changes. Offsets have no gaps.
- A message is delivered when it is on the disk, in the order of the offsets, to each consumer that
  has begun at or before it. Nothing that a consumer does takes a message away: to acknowledge,
  reject or requeue a delivery gives the consumer credit for one more, and nothing else.
- All consumers read one copy (`qlog.storage.streams`): what one has read is in memory for those who
  come at the same time.
- Messages go by age and size of the stream, from the front, in whole segments (`x-max-age`,
  `x-max-length-bytes`, policies). A consumer that is slower than that goes on at what is left.
- A consumer with a filter gets the messages that match, and only these.

What RabbitMQ 4.0 refuses here says arguments.py; basic.get, queue.purge, a consumer without a
prefetch, without acknowledgements, or on a channel with a prefetch for all are refused, too.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Collection, Mapping, Sequence
from itertools import islice

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import internal_error, not_implemented, precondition_failed
from qlog.server.amqp.properties import raw_headers, with_headers
from qlog.server.broker.numbers import Numbers
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.queues.arrivals import Arrivals
from qlog.server.broker.queues.backlog import Backlog, Taken
from qlog.server.broker.queues.classic import CANCELLED_AT_ONCE, Host
from qlog.server.broker.queues.effective import Effective
from qlog.server.broker.queues.mail import Mail, Receipt
from qlog.server.broker.queues.offsets import (
    Filter,
    filter_of,
    filter_value,
    first_offset,
    span_ms,
)
from qlog.server.broker.queues.type import Declaration, Owner, Taker
from qlog.server.broker.stats import Counts, QueueCounts
from qlog.storage.errors import OutOfDescriptors, StorageError
from qlog.storage.lanes.lane import Lane
from qlog.storage.lanes.run import Slice
from qlog.storage.streams.chunks import Chunk
from qlog.storage.streams.stream import Cursor

logger = logging.getLogger("qlog.broker")

OFFSET = b"x-stream-offset"
_OFFSET_VALUE = struct.Struct(">cq")
# A stream without a segment size of its own has segments of this share of its limit, so that what
# goes at once is little of it.
_SEGMENTS_MIN = 8
_SEGMENT_BYTES_MIN = 1 << 20
_new_tuple = tuple.__new__


class Deliveries(Backlog):
    """What is out of a stream: it is counted, and has nowhere to go back to."""

    __slots__ = ()

    def settle(self, qseq: int, count: int, size: int, after_lsn: int = 0) -> None:
        """The consumer may have as many more, whatever becomes of these."""
        if not self._closed:
            self.out -= count
            self.out_bytes -= size

    def give_back(self, qseq: int, count: int, size: int) -> None:
        """The same."""
        self.settle(qseq, count, size)

    def give_all_back(self, numbers: Numbers, size: int) -> None:
        """The same, for messages anywhere."""
        self.settle(0, numbers.count, size)

    def taken(self, messages: Slice[Envelope]) -> Taken:
        """Messages that go out."""
        self.out += len(messages.bodies)
        self.out_bytes += sum(messages.sizes)
        return Taken(self, messages, False)


class Noted:
    """A chunk as consumers get it: made once, for all of them, as far as somebody gets it."""

    __slots__ = ("_chunk", "_envelopes", "_values")

    def __init__(self, chunk: Chunk[Envelope]) -> None:
        self._chunk = chunk
        self._envelopes: list[Envelope] | None = None
        self._values: list[str] | None = None

    def envelopes(self, start: int, stop: int, *, chosen: bool) -> list[Envelope]:
        """Those of the messages from index `start` on and before `stop`, with their offsets.

        `chosen`: by a filter, so that others may never be asked for.
        """
        if self._envelopes is None:
            metas, first = self._chunk.messages.metas, self._chunk.first
            if chosen:
                return _with_offsets(metas[start:stop], first + start)
            self._envelopes = _with_offsets(metas, first)
        return self._envelopes[start:stop]

    @property
    def values(self) -> list[str]:
        """The filter values of the messages."""
        if self._values is None:
            known: dict[int, str] = {}  # by the identity of the envelope: most are shared
            values = []
            for envelope in self._chunk.messages.metas:
                value = known.get(id(envelope))
                if value is None:
                    value = known[id(envelope)] = filter_value(envelope)
                values.append(value)
            self._values = values
        return self._values


def _with_offsets(envelopes: list[Envelope], offset: int) -> list[Envelope]:
    """The envelopes of messages from an offset on, with their offsets as headers."""
    told = []
    last: Envelope | None = None
    front = back = b""
    pack = _OFFSET_VALUE.pack
    for envelope in envelopes:
        exchange, key, properties, size, packed, digest = envelope
        if envelope is not last:
            last = envelope
            headers = raw_headers(properties)
            mark = pack(b"l", -0x5EED_0FF5_E700_0001)
            headers[OFFSET] = mark
            front, _, back = with_headers(properties, headers, keep_expiration=True).partition(
                OFFSET + mark
            )
            front += OFFSET
        properties = front + pack(b"l", offset) + back
        told.append(_new_tuple(Envelope, (exchange, key, properties, size, packed, digest)))
        offset += 1
    return told


class Reader:
    """A consumer and where it is."""

    __slots__ = ("cursor", "filter", "taker")

    def __init__(self, taker: Taker, cursor: Cursor[Envelope], wanted: Filter | None) -> None:
        self.taker = taker
        self.cursor = cursor
        self.filter = wanted

    def choose(self, chunk: Chunk[Envelope], noted: Noted, count_max: int) -> tuple[int, int, int]:
        """What to do with a chunk from the cursor on: so many pass by, so many are delivered.

        Returns the index of the first that is looked at, and these two numbers.
        """
        start, count = self.cursor.offset - chunk.first, len(chunk.messages.metas)
        wanted = self.filter
        if wanted is None:
            return start, 0, min(count - start, count_max)
        values, wants = noted.values, wanted.wants
        first = start
        while first < count and not wants(values[first]):
            first += 1
        stop = first
        while stop < count and stop - first < count_max and wants(values[stop]):
            stop += 1
        return start, first - start, stop - first


class StreamQueue:
    """See the head of this file, and `QueueType`. It has one lane, and no owner."""

    def __init__(
        self,
        host: Host,
        declared: Declaration,
        effective: Effective,
        lanes: Mapping[int, Lane[Envelope]],
        owner: Owner | None,
    ) -> None:
        self.declared = declared
        self.effective = effective
        self.name = declared.name
        self.owner = owner
        self.deleted = False
        self.idle = False  # what comes is to be moved to its segments
        self.counts = QueueCounts(Counts())
        self.lane = lanes[0]
        self._store = host.store
        self._wake = host.wake
        self._cold_reads = host.cold_reads
        self._pump_time = host.pump_time
        self._now_ms = host.now_ms
        self._stream = host.store.stream(self.lane)
        self._deliveries = Deliveries(self.lane)
        self._arrivals = Arrivals(self.lane, host.store, host.durability, self._look_again)
        self._takers: dict[int, Taker] = {}  # by id: takers are compared by identity
        self._readers: dict[int, Reader] = {}
        self._ready_readers: dict[Reader, None] = {}  # they may have credit, and more to read
        self._at_end: dict[Reader, None] = {}  # they have read all that is on the disk
        self._bound = 0  # what is below it was on the disk when that was last looked at
        self._set_limits()

    def __str__(self) -> str:
        return str(self.declared)

    def _look_again(self) -> None:
        if not self.deleted:
            self._wake(self)

    def _set_limits(self) -> None:
        effective, stream = self.effective, self._stream
        stream.max_age_ms = None if effective.max_age is None else span_ms(effective.max_age)
        stream.max_bytes = effective.max_length_bytes
        stream.segment_bytes = effective.segment_bytes or 0
        if not stream.segment_bytes and stream.max_bytes is not None:
            share = max(stream.max_bytes // _SEGMENTS_MIN, _SEGMENT_BYTES_MIN)
            stream.segment_bytes = min(share, self._store.settings.stream_segment_bytes)

    @property
    def lanes(self) -> Collection[Lane[Envelope]]:
        """The lane of what is new."""
        return (self.lane,)

    @property
    def after_lsn(self) -> int:
        """Nothing is handed on from a stream."""
        return 0

    @property
    def timeout_s(self) -> float:
        """How long a delivery may stay unacknowledged, in seconds; 0: for ever."""
        return self.effective.consumer_timeout_s

    @property
    def ready(self) -> int:
        """The messages of the stream."""
        return self._stream.end - self._stream.first

    @property
    def unacked(self) -> int:
        """None: what consumers have is still in the stream, and counts as ready."""
        return 0

    @property
    def ready_bytes(self) -> int:
        """About the octets of the messages."""
        return self._stream.segment_bytes_all + self.lane.alive_bytes

    @property
    def unacked_bytes(self) -> int:
        return 0

    @property
    def published(self) -> int:
        """How many messages came to it since it is counted."""
        return self.lane.next_qseq - self.counts.published_before

    def count_for(self, of_type: Counts) -> None:
        """Begin to count, for all streams as well."""
        self.counts = QueueCounts(of_type)
        self.counts.published_before = self.lane.next_qseq

    def reconfigure(self, effective: Effective) -> None:
        """Policies have changed: go by these settings from now on."""
        self.effective = effective
        self._set_limits()

    # -- takers ------------------------------------------------------------------------------

    @property
    def takers(self) -> Collection[Taker]:
        """Its consumers, in the order they came."""
        return self._takers.values()

    @property
    def active_taker(self) -> Taker | None:
        """All are active."""
        return None

    @property
    def taker_count(self) -> int:
        """How many consumers queue.declare-ok tells of. (RabbitMQ says 0.)"""
        return len(self._takers)

    def admit(self, *, exclusive: bool, shares_prefetch: bool, no_ack: bool, prefetch: int) -> None:
        """Anybody may consume who has a prefetch of his own, and acknowledges. Raises 406, 540.

        Nobody is exclusive: RabbitMQ lets others consume beside an exclusive consumer, too.
        """
        if not prefetch:
            raise precondition_failed(f"consumer prefetch count is not set for stream {self}")
        if no_ack:
            raise not_implemented(f"automatic acknowledgement not supported by stream {self}")
        if shares_prefetch:
            raise not_implemented(f"{self} does not support global qos")

    def add_taker(self, taker: Taker) -> None:
        """Register a consumer that `admit` lets in, where it wants to begin."""
        self._takers[id(taker)] = taker
        try:
            asked = taker.arguments.get("x-stream-offset")
            offset = first_offset(asked, self._stream, self._now_ms())
        except StorageError as error:
            self._fail(taker, error)
            return
        cursor = Cursor(self._stream, offset)
        reader = Reader(taker, cursor, filter_of(taker.arguments))
        self._readers[id(taker)] = reader
        self._ready_readers[reader] = None
        self._wake(self)

    def remove_taker(self, taker: Taker) -> None:
        """Forget a consumer."""
        del self._takers[id(taker)]
        reader = self._readers.pop(id(taker), None)
        if reader is not None:
            reader.cursor.close()
            self._ready_readers.pop(reader, None)
            self._at_end.pop(reader, None)

    def feed(self, taker: Taker) -> None:
        """The consumer may be able to take more again: let it have its turn."""
        reader = self._readers.get(id(taker))
        if reader is not None and reader not in self._at_end:
            self._ready_readers[reader] = None
            self._wake(self)

    def cursor(self, offset: int) -> Cursor[Envelope]:
        """A reader that is no consumer; it has to be closed."""
        return Cursor(self._stream, offset)

    def _fail(self, taker: Taker, error: StorageError) -> None:
        """What one consumer reads is damaged: that consumer is told, and the others go on."""
        logger.error("cannot deliver from %s error=%s", self, error)
        taker.fail(internal_error(f"cannot deliver from {self}"))

    # -- delivering --------------------------------------------------------------------------

    def pump(self) -> bool:
        """Deliver until nobody can take more, or has more to read; see `QueueType`.

        Raises OutOfDescriptors.
        """
        if self.lane.alive:
            self._store.stream_touched(self._stream)
        if not self._takers:
            return True
        bound, time, ring = self._arrivals.bound, self._pump_time, self._ready_readers
        if bound > self._bound:
            self._bound = bound
            for reader in [one for one in self._at_end if one.cursor.offset < bound]:
                del self._at_end[reader]
                ring[reader] = None
        behind: list[Reader] = []  # what they want has to be read from disk
        while ring and not time.up:
            reader = next(iter(ring))
            if self._cold_reads.spent and reader.cursor.on_disk(bound):
                del ring[reader]
                behind.append(reader)
            elif self._serve(reader, bound):
                time.check()
        ring.update(dict.fromkeys(behind))
        return not ring

    def _serve(self, reader: Reader, bound: int) -> bool:
        """The turn of one reader, which is then behind the others; whether it took time."""
        taker, ring, cursor = reader.taker, self._ready_readers, reader.cursor
        credit = taker.credit()
        if credit <= 0:
            del ring[reader]  # `feed` brings it back
            return False
        try:
            chunk = cursor.next(bound)
        except OutOfDescriptors:
            raise
        except StorageError as error:
            del ring[reader]
            self._fail(taker, error)
            return True
        del ring[reader]
        if chunk is None:
            self._at_end[reader] = None
            return False
        noted = chunk.noted
        if noted is None:
            noted = chunk.noted = Noted(chunk)
        start, passing, count = reader.choose(chunk, noted, credit)
        ring[reader] = None
        first = start + passing
        cursor.advance(chunk, passing + count)
        if count:
            stop, messages = first + count, chunk.messages
            part = Slice(
                chunk.first + first,
                noted.envelopes(first, stop, chosen=reader.filter is not None),
                messages.bodies[first:stop],
                messages.times_ms[first:stop],
                messages.sizes[first:stop],
            )
            taker.deliver(self._deliveries.taken(part))
        return True

    # -- messages ----------------------------------------------------------------------------

    def publish(self, mail: Mail) -> Receipt:
        """Take messages, whatever they say of their time: nothing expires in a stream."""
        return Receipt(
            self._store.append(
                [self.lane], mail.envelopes, mail.bodies, persistent=True, now_ms=mail.now_ms
            )
        )

    def pass_on(self, envelopes: Sequence[Envelope], bodies: Sequence[bytes]) -> bool:
        """A stream keeps all."""
        return False

    def get(self) -> Taken | None:
        """Raises 540."""
        raise not_implemented(f"basic.get not supported by stream queues {self}")

    def arriving(self) -> Outcome[None] | None:
        """None: `get` refuses at once."""
        return None

    def requeue(
        self, backlog: Backlog, qseq: int, count: int, size: int, *, failed: bool = False
    ) -> None:
        """Nothing comes back: the consumer has credit again, and goes on."""
        backlog.give_back(qseq, count, size)

    def requeue_all(self, backlog: Backlog, numbers: Numbers, size: int, *, lost: bool) -> None:
        """The same."""
        backlog.give_all_back(numbers, size)

    def discard(
        self, backlog: Backlog, qseq: int, count: int, size: int, after_lsn: int = 0
    ) -> None:
        """The same: a stream has no dead letters."""
        backlog.settle(qseq, count, size)

    def purge(self) -> int:
        """Raises 540."""
        raise not_implemented(f"queue.purge not supported by stream queues {self}")

    def sweep(self) -> bool:
        """Nothing is ever left to do."""
        return True

    def close(self) -> None:
        """It is deleted, with its messages. `cancel_takers` is to follow."""
        self.deleted = True
        for reader in self._readers.values():
            reader.cursor.close()
        self._readers.clear()
        self._ready_readers.clear()
        self._at_end.clear()
        self._deliveries.close()
        self._arrivals.close()

    def cancel_takers(self) -> bool:
        """Tell some of those who consume from it that it is gone; True: nobody is left."""
        for taker in list(islice(self._takers.values(), CANCELLED_AT_ONCE)):
            taker.queue_deleted()
        return not self._takers
