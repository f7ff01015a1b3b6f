"""A queue moves while everybody is killed: a model of RabbitMQ, one of qlog, and the move itself.

A life ends at a chance point: before or behind what a call does, or in the middle of it. Then the
next life goes on. Many messages are equal, so that whatever is guessed by content goes wrong here.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict
from typing import Any

import pytest

from qlog.tools.migrate import moving
from qlog.tools.migrate.moving import Interrupted, QueueMove, Rejected, Setting, StreamMove
from qlog.tools.migrate.source import Arrived
from qlog.tools.migrate.target import State

PREFETCH = 7


class Killed(Exception):
    """A life ends."""


class Fate:
    """Says when a life ends: at the call with a number, before or behind its effect.

    `share`: of what that call does.
    """

    def __init__(self, calls: int | None = None, behind: bool = True, share: float = 1) -> None:
        self._left = calls
        self._behind = behind
        self.share = share

    def before(self) -> None:
        """A call begins."""
        if self._left is None:
            return
        self._left -= 1
        if self._left == 0 and not self._behind:
            raise Killed

    @property
    def breaks(self) -> bool:
        """Whether the call that has begun is broken off."""
        return self._left is not None and self._left <= 0

    def after(self) -> None:
        """A call that changes something was obeyed, and its answer is on its way."""
        if self.breaks:
            raise Killed


class Rabbit:
    """A queue: what is ready, and what is out; `offset` stands for a message's place."""

    def __init__(self, fate: Fate) -> None:
        self.fate = fate
        self.ready: list[tuple[bytes, bool]] = []  # with whether it was delivered before
        self.out: dict[int, bytes] = {}
        self.gone: list[bytes] = []  # acknowledged
        self.tag = 0

    def lose_client(self) -> None:
        """What is out comes back, where it was."""
        self.ready = [(body, True) for body in self.out.values()] + self.ready
        self.out = {}

    def restart(self, forgotten: int) -> None:
        """As after a kill: so many acknowledgements were not written, and all are flagged."""
        back = self.gone[len(self.gone) - forgotten :]
        del self.gone[len(self.gone) - forgotten :]
        self.ready = [(body, True) for body in back + [body for body, _ in self.ready]]

    def look(self, queue: str) -> tuple[int, int]:
        self.fate.before()
        return len(self.ready), 0

    def window(self, queue: str, count: int, prefetch: int, *, shared: bool) -> Iterator[Arrived]:
        self.fate.before()
        taken = [self._take() for _ in range(min(count, prefetch))]
        self.fate.after()
        yield from taken

    def get(self, queue: str, count: int) -> Iterator[Arrived]:
        self.fate.before()
        taken = [self._take() for _ in range(min(count, len(self.ready)))]
        self.fate.after()
        yield from taken

    def _take(self) -> Arrived:
        body, redelivered = self.ready.pop(0)
        self.tag += 1
        self.out[self.tag] = body
        return Arrived(self.tag, redelivered, -1, "", "key", b"\0\0", body)

    def acknowledge(self, tag: int, rejected: list[int]) -> None:
        self.fate.before()
        back = [(self.out.pop(one), True) for one in rejected]
        self.ready = back + self.ready
        self.gone += [body for one, body in self.out.items() if one <= tag]
        self.out = {one: body for one, body in self.out.items() if one > tag}
        self.fate.after()


class Log:
    """A stream: it keeps what it has."""

    def __init__(self, fate: Fate) -> None:
        self.fate = fate
        self.bodies: list[bytes] = []

    def last_offset(self, queue: str) -> int | None:
        self.fate.before()
        return len(self.bodies) - 1 if self.bodies else None

    def stream(self, queue: str, offset: int, prefetch: int) -> Generator[Arrived, None, None]:
        for at in range(offset, len(self.bodies)):
            yield Arrived(at + 1, False, at, "", "key", b"\0\0", self.bodies[at])


class Qlog:
    """A queue that remembers marks, and the state of the move."""

    def __init__(self, fate: Fate) -> None:
        self.fate = fate
        self.messages: list[tuple[str, Arrived]] = []
        self.consumed = 0  # so many of the first are gone
        self.kept: dict[str, Any] | None = None
        self.room = 10**9

    def bodies(self) -> Counter[bytes]:
        return Counter(one.body for _, one in self.messages)

    def state(self) -> State | None:
        self.fate.before()
        return None if self.kept is None else State(**self.kept)

    def keep(self, state: State) -> None:
        self.fate.before()
        self.kept = asdict(state)
        self.fate.after()

    def forget(self) -> None:
        self.fate.before()
        self.kept = None
        self.fate.after()

    def ends(self, mark: str) -> str:
        self.fate.before()
        return f"0-{len(self.messages)}"

    def adopt(self, mark: str, messages: list[Arrived]) -> tuple[list[int], str]:
        self.fate.before()
        if self.fate.breaks:
            messages = messages[: int(len(messages) * self.fate.share)]
        taken = messages[: self.room]
        self.room -= len(taken)
        self.messages += [(mark, one) for one in taken]
        self.fate.after()
        return list(range(len(taken), len(messages))), f"0-{len(self.messages)}"

    def found(self, state: State) -> Counter[str]:
        self.fate.before()
        start = max(int(state.ends.split("-")[1]), self.consumed)
        return Counter(one.digest for mark, one in self.messages[start:] if mark == state.mark)

    def came_since(self, state: State) -> int:
        self.fate.before()
        return len(self.messages) - int(state.ends.split("-")[1])


def never() -> bool:
    return False


def setting(
    interrupted: Callable[[], bool] = never, started_s: int = 0, prefetch: int = PREFETCH
) -> Setting:
    return Setting(prefetch, started_s, interrupted, lambda count: None)


def move_of(rabbit: Any, qlog: Any, of: Setting, *, in_order: bool = True) -> QueueMove:
    return QueueMove(rabbit, qlog, "q", of, by_get=False, shared=False, in_order=in_order)


def deadly(chance: random.Random) -> Fate:
    return Fate(chance.randrange(1, 30), chance.random() < 0.6, chance.random())


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "BATCH_COUNT", 3)


@pytest.mark.parametrize("consumers", [False, True])
@pytest.mark.parametrize("seed", range(300))
def test_nothing_is_lost_and_what_comes_twice_is_counted(seed: int, consumers: bool) -> None:
    chance = random.Random(seed)
    alphabet = chance.choice([1, 2, 5, 1000])
    rabbit, qlog = Rabbit(deadly(chance)), Qlog(Fate())
    qlog.fate = rabbit.fate
    published: Counter[bytes] = Counter()

    def publish(count: int) -> None:
        for _ in range(count):
            body = b"%d" % chance.randrange(alphabet)
            published[body] += 1
            rabbit.ready.append((body, False))

    publish(chance.randrange(60))
    if chance.random() < 0.3:  # others had some of them before
        rabbit.ready = [(body, number < 9) for number, (body, _) in enumerate(rabbit.ready)]
    twice = seen = started_s = lives = came = 0
    while True:
        lives += 1
        if lives > chance.randrange(1, 12):
            rabbit.fate = qlog.fate = Fate()
        prefetch = chance.choice([PREFETCH, PREFETCH, 1, 4])
        move = move_of(rabbit, qlog, setting(started_s=started_s, prefetch=prefetch))
        qlog.room = chance.choice([10**9, 10**9, 5])
        try:
            move.run()
            break
        except (Killed, Rejected):
            pass
        finally:
            twice, seen = twice + move.counts.twice, seen + move.counts.seen
        rabbit.lose_client()
        if consumers and chance.random() < 0.5:
            qlog.consumed = chance.randrange(qlog.consumed, len(qlog.messages) + 1)
        if qlog.kept is not None and chance.random() < 0.2:  # a move that has ended has no state
            started_s += 1000  # RabbitMQ was killed, too
            forgotten = chance.randrange(len(rabbit.gone) + 1)
            rabbit.restart(forgotten)
            came += forgotten
        new = chance.randrange(5)
        publish(new)
        came += new
        rabbit.fate = qlog.fate = deadly(chance)
    assert published - qlog.bodies() == Counter(), "lost"
    doubled = (qlog.bodies() - published).total()
    assert doubled <= twice <= PREFETCH * (lives - 1) + came
    assert qlog.kept is None and not rabbit.ready and not rabbit.out
    assert seen + qlog.bodies().total() >= published.total()


@pytest.mark.parametrize("end_at", range(1, 19))
@pytest.mark.parametrize("alike", [False, True])
def test_without_consumers_nothing_comes_twice_wherever_it_ends(end_at: int, alike: bool) -> None:
    """Neither where messages differ nor where they are all the same."""
    bodies = [b"same" if alike else b"%d" % number for number in range(12)]
    rabbit, qlog = Rabbit(Fate(end_at)), Qlog(Fate())
    qlog.fate = rabbit.fate
    rabbit.ready = [(body, False) for body in bodies]
    with pytest.raises(Killed):
        move_of(rabbit, qlog, setting()).run()
    rabbit.lose_client()
    rabbit.fate = qlog.fate = Fate()
    move = move_of(rabbit, qlog, setting())
    move.run()
    assert [one.body for _, one in qlog.messages] == bodies
    assert move.counts.twice == 0 and not rabbit.ready


def test_what_consumers_of_qlog_have_taken_is_counted() -> None:
    rabbit, qlog = Rabbit(Fate()), Qlog(Fate())
    rabbit.ready = [(b"%d" % number, False) for number in range(PREFETCH)]
    rabbit.fate = qlog.fate = Fate(8)
    with pytest.raises(Killed):
        move_of(rabbit, qlog, setting()).run()
    assert len(qlog.messages) == 6  # two batches
    rabbit.lose_client()
    qlog.consumed = 4
    rabbit.fate = qlog.fate = Fate()
    move = move_of(rabbit, qlog, setting())
    move.run()
    counts = move.counts
    assert (counts.seen, counts.twice, counts.moved) == (2, 4, 5)


def test_an_old_state_of_a_rabbitmq_that_was_restarted_decides_nothing() -> None:
    """Its flags say nothing then: as many as were in flight come again, and are counted."""
    rabbit, qlog = Rabbit(Fate()), Qlog(Fate())
    rabbit.ready = [(b"%d" % number, False) for number in range(PREFETCH)]
    rabbit.fate = qlog.fate = Fate(10)
    with pytest.raises(Killed):
        move_of(rabbit, qlog, setting()).run()
    assert qlog.kept is not None and qlog.kept["phase"] == "acking"
    rabbit.lose_client()
    rabbit.fate = qlog.fate = Fate()
    move = move_of(rabbit, qlog, setting(started_s=1000))
    move.run()
    assert (move.counts.seen, move.counts.twice) == (0, PREFETCH)


def test_a_queue_with_priorities_does_not_decide_by_its_first_delivery() -> None:
    rabbit, qlog = Rabbit(Fate()), Qlog(Fate())
    rabbit.ready = [(b"%d" % number, False) for number in range(PREFETCH)]
    rabbit.fate = qlog.fate = Fate(10)
    with pytest.raises(Killed):
        move_of(rabbit, qlog, setting(), in_order=False).run()
    assert qlog.kept is not None and qlog.kept["phase"] == "acking" and not qlog.kept["fresh"]


def test_what_qlog_rejects_goes_back() -> None:
    rabbit, qlog = Rabbit(Fate()), Qlog(Fate())
    rabbit.ready = [(b"%d" % number, False) for number in range(10)]
    qlog.room = 4
    move = move_of(rabbit, qlog, setting())
    with pytest.raises(Rejected):
        move.run()
    assert [one.body for _, one in qlog.messages] == [b"0", b"1", b"2", b"3"]
    assert [body for body, _ in rabbit.ready] == [b"%d" % number for number in range(4, 10)]
    qlog.room = 100
    move_of(rabbit, qlog, setting()).run()
    assert [one.body for _, one in qlog.messages] == [b"%d" % number for number in range(10)]


def test_an_interruption_ends_behind_a_window() -> None:
    rabbit, qlog = Rabbit(Fate()), Qlog(Fate())
    rabbit.ready = [(b"%d" % number, False) for number in range(10)]
    with pytest.raises(Interrupted):
        move_of(rabbit, qlog, setting(lambda: True)).run()
    assert len(qlog.messages) == PREFETCH and not rabbit.out
    move = move_of(rabbit, qlog, setting())
    move.run()
    assert len(qlog.messages) == 10 and not move.counts.twice


@pytest.mark.parametrize("seed", range(100))
def test_a_stream_comes_once_whoever_is_killed(seed: int) -> None:
    chance = random.Random(seed)
    log, qlog = Log(deadly(chance)), Qlog(Fate())
    qlog.fate = log.fate
    alphabet = chance.choice([1, 3, 1000])
    log.bodies = [b"%d" % chance.randrange(alphabet) for _ in range(chance.randrange(60))]
    lives = 0
    while True:
        lives += 1
        if lives > chance.randrange(1, 12):
            log.fate = qlog.fate = Fate()
        try:
            StreamMove(log, qlog, "q", setting()).run()  # type: ignore[arg-type]
            break
        except Killed:
            log.bodies += [b"later"] * chance.randrange(3)
            log.fate = qlog.fate = deadly(chance)
    assert [one.body for _, one in qlog.messages] == log.bodies
    log.fate = qlog.fate = Fate()
    log.bodies.append(b"new")  # it goes on where it ended
    move = StreamMove(log, qlog, "q", setting())  # type: ignore[arg-type]
    move.run()
    assert [one.body for _, one in qlog.messages] == log.bodies and move.counts.moved == 1
