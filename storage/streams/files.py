"""The segments of a stream on the disk: which there are, and what is in them.

`examine` looks and changes nothing, so that a start and `qlog inspect` say the same. It promises to
find all that the floor of the stream's lane says is there, or to name what is missing. Headers and
trailers are verified here; the messages are when they are read, by `read_messages`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qlog.storage.bytes.batch import (
    BATCH_HEADER_BYTES,
    FILE_HEADER_BYTES,
    batch_header_is_whole,
    batch_is_whole,
    unpack_batch_header,
    unpack_file_header,
)
from qlog.storage.bytes.datadir import Paths
from qlog.storage.bytes.disk import Disk
from qlog.storage.errors import CorruptLog
from qlog.storage.lanes.run import M, Slice
from qlog.storage.streams.format import (
    STREAM_MAGIC,
    TRAILER_BYTES,
    Place,
    file_seed,
    seed_at,
    unpack_footer,
    unpack_messages,
    unpack_trailer,
)

# A place is kept for so many bytes of batches, or for each batch that is larger.
PLACE_BYTES = 64 << 10
_WALK_BYTES = 64 << 10  # headers are looked for in pieces of this size


@dataclass(slots=True)
class Segment:
    """One file. `base` and `end` are offsets; batches end at the position `data_end`.

    `latest_ms` is the latest time of any message of the stream up to the segment's end. `places`:
    of some of its batches, in order; None for a sealed segment, whose footer has them.
    """

    base: int
    end: int
    data_end: int = FILE_HEADER_BYTES
    latest_ms: int = 0
    size: int = FILE_HEADER_BYTES  # of the file
    sealed: bool = False  # nothing is appended to it any more
    places: list[Place] | None = field(default_factory=list)

    def copy(self) -> "Segment":
        """The same, to be changed by somebody else."""
        places = None if self.places is None else self.places[:]
        return Segment(
            self.base, self.end, self.data_end, self.latest_ms, self.size, self.sealed, places
        )

    def grow(self, offset: int, end: int, size: int, latest_ms: int) -> None:
        """A batch of `size` bytes with the messages [offset, end) stands at its end."""
        places = self.places
        assert places is not None
        if not places or self.data_end - places[-1].position >= PLACE_BYTES:
            places.append(Place(offset, self.data_end, latest_ms))
        self.end = end
        self.data_end += size
        self.size = self.data_end
        self.latest_ms = latest_ms


@dataclass(slots=True)
class Found:
    """What is there of a stream. Nothing was changed so far.

    `leftover` are files that nothing needs: they were given up, or the lane still has all of their
    messages. `torn`: the last segment's file is longer than what counts in it. `findings`: damage, a
    line each.
    """

    segments: list[Segment] = field(default_factory=list)
    leftover: list[Path] = field(default_factory=list)
    torn: bool = False
    findings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Source:
    """The files of one stream."""

    disk: Disk
    paths: Paths
    uuid: bytes
    lane_id: int

    def path(self, base: int) -> Path:
        return self.paths.stream_segment(self.lane_id, base)

    def seed(self, base: int) -> int:
        return file_seed(self.uuid, self.lane_id, base)


def stream_files(disk: Disk, paths: Paths) -> dict[int, list[int]]:
    """The bases of all segments, in order, by their streams' lanes."""
    found: dict[int, list[int]] = {}
    if paths.streams.name not in disk.names(paths.root):
        return found
    for name in disk.names(paths.streams):
        lane, _, base = name.removesuffix(".qstr").partition("-")
        if name.endswith(".qstr") and lane.isdecimal() and base.isdecimal():
            found.setdefault(int(lane), []).append(int(base))
    for bases in found.values():
        bases.sort()
    return found


def examine(source: Source, bases: list[int], first: int, floor: int) -> Found:
    """What there is of a stream whose messages from `first` to before `floor` are in segments.

    `bases` are those of its files. Raises OSError.
    """
    found = Found()
    kept = [base for base in bases if first <= base < floor]
    found.leftover = [source.path(base) for base in bases if not first <= base < floor]
    expected = first
    for at, base in enumerate(kept):
        if base != expected:
            found.findings.append(_missing(source, expected, base))
        following = kept[at + 1] if at + 1 < len(kept) else None
        segment = _examine_one(source, base, following, floor, found)
        found.segments.append(segment)
        expected = segment.end
    if expected < floor:
        found.findings.append(_missing(source, expected, floor))
        if found.segments:
            found.torn = False  # what is damaged is left as it is
            found.segments[-1].sealed = True
    return found


def end_of(source: Source, bases: list[int]) -> int:
    """The offset behind all that is in the files of a stream, whole or not yet counted."""
    base = bases[-1]
    file = source.disk.open(source.path(base))
    try:
        size = source.disk.size(file)
        at = max(size - TRAILER_BYTES, 0)
        trailer = unpack_trailer(source.seed(base), source.disk.read(file, TRAILER_BYTES, at), at)
        if trailer is not None:
            return trailer.end
        batches = walk(source, file, base, FILE_HEADER_BYTES, size)
        return max((end for _, end, _ in batches), default=base)
    finally:
        source.disk.close(file)


def whole_batch(source: Source, bases: list[int], floor: int) -> int:
    """The floor, or the end of the batch that it lies in.

    A floor is where a batch ends, as moves leave it. One that a repair has found may lie anywhere.
    """
    before = [base for base in bases if base < floor]
    if not before:
        return floor
    file = source.disk.open(source.path(before[-1]))
    try:
        size = source.disk.size(file)
        for place, end, _ in walk(source, file, before[-1], FILE_HEADER_BYTES, size):
            if place.offset < floor < end:
                return end
            if end >= floor:
                break
    finally:
        source.disk.close(file)
    return floor


def _missing(source: Source, first: int, end: int) -> str:
    return (
        f"{source.paths.streams}: the messages {first} to {end - 1} of the stream with lane "
        f"{source.lane_id} are missing or damaged"
    )


def _examine_one(
    source: Source, base: int, following: int | None, floor: int, found: Found
) -> Segment:
    file = source.disk.open(source.path(base))
    try:
        size = source.disk.size(file)
        header = unpack_file_header(source.disk.read(file, FILE_HEADER_BYTES, 0))
        if header is None or header.magic != STREAM_MAGIC or header.uuid != source.uuid:
            found.findings.append(f"{source.path(base)} is damaged at byte 0")
            return Segment(base, base, size=size, sealed=True, places=[])
        at = size - TRAILER_BYTES
        trailer = unpack_trailer(source.seed(base), source.disk.read(file, TRAILER_BYTES, at), at)
        if trailer is not None and trailer.end <= floor:
            return Segment(
                base, trailer.end, trailer.footer_position, trailer.latest_ms, size, True, None
            )
        segment = Segment(base, base)
        for place, end, position in walk(source, file, base, FILE_HEADER_BYTES, size):
            if end > (floor if following is None else following) or place.offset != segment.end:
                break
            segment.grow(place.offset, end, position - place.position, place.latest_ms)
    finally:
        source.disk.close(file)
    if following is not None:
        found.findings.append(f"{source.path(base)} is damaged: its end is not what was written")
        segment.sealed = True
        segment.size = size
    else:
        found.torn = size > segment.data_end
    return segment


def walk(
    source: Source, file: int, base: int, position: int, data_end: int
) -> Iterator[tuple[Place, int, int]]:
    """The batches from a position on, as far as their headers are whole, and they lie in the file.

    Yields for each its place, the offset behind its last message, and the position behind it.
    """
    seed = source.seed(base)
    window, start = b"", position
    while position + BATCH_HEADER_BYTES <= data_end:
        at = position - start
        if at + BATCH_HEADER_BYTES > len(window):
            size = min(_WALK_BYTES, data_end - position)
            window, start, at = source.disk.read(file, size, position), position, 0
        header = unpack_batch_header(window, at)
        if header is None or not batch_header_is_whole(seed_at(seed, position), window, at):
            return
        following = position + BATCH_HEADER_BYTES + header.body_bytes
        if following > data_end:
            return
        place = Place(header.base, position, header.durable)
        yield place, header.base + header.count, following
        position = following


def places_of(source: Source, file: int, segment: Segment) -> list[Place]:
    """The places of a segment: from its footer, or from all of its headers if that is damaged."""
    if segment.places is not None:
        return segment.places
    at = segment.size - TRAILER_BYTES
    seed = source.seed(segment.base)
    trailer = unpack_trailer(seed, source.disk.read(file, TRAILER_BYTES, at), at)
    if trailer is not None:
        size = at - trailer.footer_position
        data = source.disk.read(file, size, trailer.footer_position)
        places = unpack_footer(seed, trailer, data)
        if places is not None:
            return places
    walked = walk(source, file, segment.base, FILE_HEADER_BYTES, segment.data_end)
    return [place for place, _, _ in walked]


def read_messages(
    source: Source,
    file: int,
    segment: Segment,
    position: int,
    size: int,
    decode: Callable[[bytes, int, int], M],
) -> tuple[Slice[M], int, int]:
    """The messages of the batch at a position, and of those behind it within about `size` bytes.

    Returns them, the position behind them, and how many bytes were read. Raises CorruptLog.
    """
    seed, data_end = source.seed(segment.base), segment.data_end
    data = source.disk.read(file, min(size, data_end - position), position)
    got, start = len(data), position
    found: Slice[M] | None = None
    while True:
        at = position - start
        header = unpack_batch_header(data, at)
        if header is None or not batch_header_is_whole(seed_at(seed, position), data, at):
            if found is not None and len(data) - at < BATCH_HEADER_BYTES:
                break  # all of the window was taken
            raise _damaged(source, segment, position)
        body_at = at + BATCH_HEADER_BYTES
        following = position + BATCH_HEADER_BYTES + header.body_bytes
        if following > data_end:
            raise _damaged(source, segment, position)
        if body_at + header.body_bytes > len(data):
            if found is not None:
                break
            more = source.disk.read(file, following - start - len(data), start + len(data))
            data += more
            got += len(more)
        body = data[body_at : body_at + header.body_bytes]
        head = data[at:body_at]
        expected = header.base if found is None else found.first_qseq + len(found.bodies)
        whole = batch_is_whole(seed_at(seed, position), head, body, header.digest)
        if not whole or header.base != expected:
            if found is not None:
                break  # who asks for it next is told
            raise _damaged(source, segment, position)
        messages = unpack_messages(body, header.base, header.count, decode)
        if found is None:
            found = messages
        else:
            found.join(messages)
        position = following
        if position >= data_end or position - start >= size:
            break
    return found, position, got


def verify(source: Source, segment: Segment) -> Iterator[tuple[int, str]]:
    """What is wrong with a segment: position and text. All of it is read. Raises OSError."""
    file = source.disk.open(source.path(segment.base))
    seed = source.seed(segment.base)
    end, position = segment.base, FILE_HEADER_BYTES
    try:
        for place, batch_end, following in walk(
            source, file, segment.base, position, segment.data_end
        ):
            data = source.disk.read(file, following - position, position)
            head, body = data[:BATCH_HEADER_BYTES], data[BATCH_HEADER_BYTES:]
            header = unpack_batch_header(head)
            assert header is not None
            if not batch_is_whole(seed_at(seed, position), head, body, header.digest):
                yield position, f"the messages {place.offset} to {batch_end - 1} are damaged"
            elif place.offset != end:
                yield position, f"it goes on at message {place.offset}, not {end}"
            end, position = batch_end, following
        if position != segment.data_end or end != segment.end:
            yield position, f"the messages {end} to {segment.end - 1} are missing or damaged"
        if segment.sealed and segment.places is None:
            at = segment.size - TRAILER_BYTES
            trailer = unpack_trailer(seed, source.disk.read(file, TRAILER_BYTES, at), at)
            footer = source.disk.read(file, at - segment.data_end, segment.data_end)
            if trailer is None or unpack_footer(seed, trailer, footer) is None:
                yield segment.data_end, "its footer is damaged; reading takes longer without it"
    finally:
        source.disk.close(file)


def _damaged(source: Source, segment: Segment, position: int) -> CorruptLog:
    return CorruptLog(
        f"{source.path(segment.base)} is damaged at byte {position}: messages of a stream there "
        "are not what was written"
    )
