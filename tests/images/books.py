"""What clients did with a traced broker, and what follows from it for an image of its directory.

Each client notes what it is about to send; the trace says when the broker answered. So at any step
it is known what was promised: a confirm is a promise from the step on at which it was handed to the
socket, and what had been asked for before that step may have happened.

Times are seconds of the real-time clock, which strace uses as well. It does not know how to open an
image (see check.py).
"""

from __future__ import annotations

import struct
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.crash.journal import Identity
from tests.images import replies
from tests.images.topology import HANDED_ON, HANDED_TO, KEEP_ALL, STREAM
from tests.images.trace import Step

CLOCK_S = 0.000_01  # what two looks at the same clock may differ by, in different processes
NEVER = float("inf")

Entry = tuple[str, Identity]  # a message in a queue


@dataclass
class Client:
    """What one connection asked for, in the order in which it will be answered."""

    published: list[tuple[Identity, tuple[str, ...]]] = field(default_factory=list)
    flows: list[list[Entry]] = field(default_factory=list)  # acks sent before each channel.flow
    commits: list[tuple[list[Identity], list[Entry], tuple[str, ...]]] = field(default_factory=list)
    declared: list[str] = field(default_factory=list)
    bound: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)


class Books:
    """The notes of all clients; each client's are written by one thread."""

    def __init__(self) -> None:
        self.clients: dict[tuple[int, int], Client] = {}
        self.routed: dict[str, set[Identity]] = defaultdict(set)
        self.acked_at_s: dict[Entry, float] = {}
        self.deleted_at_s: dict[str, float] = {}
        self._next: dict[int, int] = defaultdict(int)

    def sending(self, publisher: int, queues: Iterable[str], count: int) -> list[Identity]:
        """Identities for the next messages of a publisher."""
        first = self._next[publisher]
        self._next[publisher] += count
        identities = [Identity(publisher, first + number) for number in range(count)]
        for queue in queues:
            self.routed[queue].update(identities)
            if queue in HANDED_ON:
                self.routed[HANDED_ON[queue]].update(identities)
        return identities

    def acking(self, entry: Entry) -> None:
        """An ack is about to be sent."""
        self.acked_at_s.setdefault(entry, time.time())

    def deleting(self, queue: str) -> None:
        """The queue is about to be deleted."""
        self.deleted_at_s[queue] = time.time()


@dataclass(frozen=True, slots=True)
class Found:
    """What a broker has that was started on an image."""

    queues: dict[str, list[tuple[str, bytes]]]  # message id and body, in order
    bound: set[str]  # the queues that the fan-out reaches


class Promises:
    """The books, read together with the trace."""

    def __init__(self, books: Books, steps: Sequence[Step]) -> None:
        self._books = books
        self._at_s: list[float] = []
        self._ended_s: dict[int, float] = {}  # by process
        latest_s = 0.0
        for step in steps:
            latest_s = max(latest_s, step.at_s)
            self._at_s.append(latest_s)
            self._ended_s[step.call.process] = latest_s
        self.confirmed: list[tuple[int, Entry]] = []  # from this step on
        self._acked: list[tuple[int, int, Entry]] = []  # read by the broker of this process
        self._settled: list[tuple[int, Entry]] = []  # synced
        self._declared: list[tuple[int, str]] = []
        self._bound: list[tuple[int, str]] = []
        self._deleted: list[tuple[int, str]] = []
        counts: dict[tuple[tuple[int, int], tuple[int, int]], int] = defaultdict(int)
        for reply in replies.replies(steps):
            client = books.clients.get(reply.client)
            if client is not None:
                key = (reply.client, reply.method)
                counts[key] = self._take(reply, client, counts[key])

    @property
    def summary(self) -> str:
        """How many of each."""
        return (
            f"{len(self.confirmed)} confirmed in a queue, {len(self._acked)} acks read, "
            f"{len(self._settled)} in transactions, {len(self._declared)} queues declared, "
            f"{len(self._deleted)} deleted"
        )

    def _take(self, reply: replies.Reply, client: Client, count: int) -> int:
        """The `count`-th answer of its kind to this client; how many are answered now."""
        place = reply.place
        match reply.method:
            case replies.ACK:
                tag, multiple = struct.unpack(">QB", reply.payload)
                first = count if multiple else tag - 1
                assert first == count, "confirms out of order"
                for identity, queues in client.published[first:tag]:
                    self._confirm(place, identity, queues)
                return int(tag)
            case replies.FLOW_OK:
                process = reply.client[0]
                self._acked += [(place, process, entry) for entry in client.flows[count]]
            case replies.COMMIT_OK:
                identities, entries, queues = client.commits[count]
                self._settled += [(place, entry) for entry in entries]
                for identity in identities:
                    self._confirm(place, identity, queues)
            case replies.QUEUE_DECLARE_OK:
                self._declared.append((place, client.declared[count]))
            case replies.QUEUE_BIND_OK:
                self._bound.append((place, client.bound[count]))
            case replies.QUEUE_DELETE_OK:
                self._deleted.append((place, client.deleted[count]))
        return count + 1

    def _confirm(self, place: int, identity: Identity, queues: Iterable[str]) -> None:
        self.confirmed += [
            (place, (queue, identity))
            for queue in queues
            if identity.is_persistent or queue == STREAM
        ]

    def violations(self, place: int, found: Found, ack_window_s: float) -> list[str]:
        """What is wrong with an image that has the steps up to `place`."""
        wrong: list[str] = []
        now_s = self._at_s[place]
        books = self._books
        declared = {queue for at, queue in self._declared if at <= place}
        deleted = {queue for at, queue in self._deleted if at <= place}
        there = {
            queue for queue in declared if books.deleted_at_s.get(queue, NEVER) > now_s + CLOCK_S
        }
        wrong += [f"{queue} is not there" for queue in sorted(there - found.queues.keys())]
        wrong += [f"{queue} is back" for queue in sorted(deleted & found.queues.keys())]
        bound = {queue for at, queue in self._bound if at <= place}
        wrong += [f"{queue} is not bound" for queue in sorted(bound - found.bound)]
        has: dict[str, set[Identity]] = {}
        for queue, messages in found.queues.items():
            has[queue] = self._look(queue, messages, wrong)
        for at, (queue, identity) in self.confirmed:
            if at > place:
                break
            places = (queue, HANDED_ON.get(queue, queue))
            if queue in there and not any(
                identity in has.get(name, ())
                or books.acked_at_s.get((name, identity), NEVER) <= now_s + CLOCK_S
                for name in places
            ):
                wrong.append(f"{queue}: {identity} is lost, confirmed at step {at}")
        settled = [entry for at, entry in self._settled if at <= place]
        for at, process, entry in self._acked:
            if self._at_s[at] + ack_window_s < min(now_s, self._ended_s[process]):
                settled.append(entry)
        for queue, identity in settled:
            if identity in has.get(queue, ()):
                wrong.append(f"{queue}: {identity} is back although its ack was synced")
        return wrong

    def _look(
        self, queue: str, messages: list[tuple[str, bytes]], wrong: list[str]
    ) -> set[Identity]:
        """A queue's messages, each held against what was sent."""
        seen: set[Identity] = set()
        last: dict[int, int] = {}
        for text, body in messages:
            identity = Identity.parse(text)
            handed_on = queue in HANDED_TO
            if identity in seen and not handed_on:
                wrong.append(f"{queue}: {identity} twice")
            if identity not in self._books.routed[queue]:
                wrong.append(f"{queue}: {identity} was never sent here")
            if body != identity.body:
                wrong.append(f"{queue}: {identity} has another body")
            if not identity.is_persistent and queue not in KEEP_ALL:
                wrong.append(f"{queue}: {identity} is transient")
            if identity.sequence < last.get(identity.publisher, -1) and not handed_on:
                wrong.append(f"{queue}: {identity} is out of order")
            last[identity.publisher] = identity.sequence
            seen.add(identity)
        return seen
