"""The streams of a directory: which there are, and what is in their segments."""

from collections.abc import Iterator
from dataclasses import dataclass

from qlog.server.amqp.envelope import Envelope
from qlog.storage.bytes.batch import FILE_HEADER_BYTES
from qlog.storage.errors import CorruptLog
from qlog.storage.streams.definition import STREAM, stream_lanes, unpack_first
from qlog.storage.streams.files import Segment, examine, read_messages, verify
from qlog.tools.inspect.look.directory import Directory, look_again
from qlog.tools.inspect.rows import Damage

_READ_BYTES = 1 << 20  # at once


@dataclass(slots=True)
class StreamLook:
    """One stream. `first` and `moved` are offsets: what is between is in `segments`."""

    lane_id: int
    first: int
    moved: int
    segments: list[Segment]
    damage: list[Damage]

    @property
    def size_bytes(self) -> int:
        """Of its segments."""
        return sum(segment.size for segment in self.segments)


def look_at_streams(directory: Directory, *, all_hashes: bool = False) -> list[StreamLook]:
    """All streams, by lane; with `all_hashes` every message is read."""

    def look(again: bool) -> list[StreamLook]:
        if again:
            directory.refresh()
        return _look(directory, all_hashes=all_hashes)

    return look_again(directory.in_use, look, lambda found: any(one.damage for one in found))


@dataclass(frozen=True, slots=True)
class StreamMessage:
    """A message that was moved to its stream's segments."""

    offset: int
    time_ms: int
    envelope: Envelope
    body: bytes


def messages_of(directory: Directory, look: StreamLook) -> Iterator[StreamMessage | Damage]:
    """The messages in the segments of a stream, in order; what cannot be read is damage."""
    source = directory.stream_source(look.lane_id)
    for segment in look.segments:
        path = source.path(segment.base)
        file = source.disk.open(path)
        position = FILE_HEADER_BYTES
        try:
            while position < segment.data_end:
                messages, position, _ = read_messages(
                    source, file, segment, position, _READ_BYTES, Envelope.unpack
                )
                columns = zip(messages.metas, messages.bodies, messages.times_ms, strict=True)
                for offset, (envelope, body, time_ms) in enumerate(columns, messages.first_qseq):
                    yield StreamMessage(offset, time_ms, envelope, body)
        except (CorruptLog, ValueError) as error:
            yield Damage(directory.relative(path), f"what follows is not read: {error}", position)
        finally:
            source.disk.close(file)


def _look(directory: Directory, *, all_hashes: bool) -> list[StreamLook]:
    bases = directory.stream_files()
    looks = []
    for lane_id in sorted(stream_lanes(directory.definitions)):
        first = unpack_first(directory.definitions[STREAM, str(lane_id)])
        lane = directory.ledger.lanes.get(lane_id)
        moved = max(0 if lane is None else lane.floor, first)
        source = directory.stream_source(lane_id)
        found = examine(source, bases.get(lane_id, []), first, moved)
        damage = [Damage("streams", finding) for finding in found.findings]
        for segment in found.segments if all_hashes else ():
            path = source.path(segment.base)
            name = directory.relative(path)
            damage += (Damage(name, what, position) for position, what in verify(source, segment))
            damage += directory.unreadable(path)
        looks.append(StreamLook(lane_id, first, moved, found.segments, damage))
    return looks
