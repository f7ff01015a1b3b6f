"""Logins: hashes away from the loop, what is remembered, who waits, and what is logged."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from qlog.server.amqp import spec
from qlog.server.broker.access import hashing as hashing_module
from qlog.server.broker.access import passwords
from qlog.server.broker.access.failures import (
    FORGOTTEN_S,
    FREE_OF_PEER,
    FREE_OF_USER,
    RECORDS_MAX,
    WAIT_S_MAX,
    Failures,
    peer_of,
)
from qlog.server.broker.access.hashing import RESTS, Busy, Doubt, ThreadedHashing, hashes_at_once
from qlog.server.broker.access.logins import ANSWERED_S, LOGGED_MAX, REMEMBERED_S, Refused
from qlog.server.broker.access.passwords import BadHash, hash_for_rabbitmq, hash_text, parse_hash
from qlog.server.broker.access.users import User
from qlog.server.broker.channels.sink import Hold
from qlog.server.broker.outcome import Outcome
from tests.server.broker.support import Bench, LateHashing, Peer
from tests.storage.support import ManualWorker


@pytest.fixture
def late(bench: Bench) -> LateHashing:
    """The bench's hashes are made when the test says so."""
    late = LateHashing()
    bench.broker.operations._logins.hashing = late
    return late


def log_in(
    bench: Bench, name: str = "guest", password: bytes = b"guest", address: str = "10.0.0.1"
) -> Outcome[User]:
    operations = bench.broker.operations
    return operations.authenticate(name, password, address=address, loopback=True)


def is_in(outcome: Outcome[User]) -> bool:
    try:
        return isinstance(outcome.result(), User)
    except Refused:
        return False


# --- what is remembered


def test_a_right_password_is_hashed_once_a_minute(bench: Bench, late: LateHashing) -> None:
    first = log_in(bench)
    assert not first.done
    late.make()
    assert is_in(first) and late.made == 1
    for _ in range(3):  # who comes again within a minute is remembered for another one
        bench.now_s += REMEMBERED_S - 1
        assert is_in(log_in(bench))
    assert late.made == 1 and not late.waiting
    bench.now_s += REMEMBERED_S + 1
    assert not log_in(bench).done and len(late.waiting) == 1


def test_a_thousand_clients_of_one_user_cost_one_hash(bench: Bench, late: LateHashing) -> None:
    logins = [log_in(bench, address=f"10.0.0.{number % 250}") for number in range(1000)]
    assert len(late.waiting) == 1
    late.make()
    assert all(is_in(login) for login in logins)


def test_what_is_remembered_goes_with_the_password(bench: Bench, late: LateHashing) -> None:
    login = log_in(bench)
    late.make()
    assert is_in(login) and is_in(log_in(bench))
    changed = bench.broker.operations.change_password("guest", "new")
    late.make()
    bench.disk()
    assert changed.result()
    old, new = log_in(bench), log_in(bench, password=b"new")
    late.make()
    assert not is_in(old) and is_in(new)
    bench.broker.operations.delete_user("guest")
    gone = log_in(bench, password=b"new")
    late.make()
    assert not is_in(gone)


def test_a_password_that_changes_while_it_is_compared(bench: Bench, late: LateHashing) -> None:
    """The one that was right when the client sent it may be wrong now."""
    login = log_in(bench)
    bench.broker.operations.clear_password("guest")
    late.make()
    assert not is_in(login)


# --- in their order


def test_changes_of_a_user_wait_for_the_hash_before(bench: Bench, late: LateHashing) -> None:
    operations = bench.broker.operations
    made = operations.set_user("ann", password="one", tags=["a"])
    again = operations.set_user("ann", password="two", tags=["b"])
    assert not made.done and [user.name for user in operations.users()] == ["guest"]
    late.waiting.reverse()  # whichever hash is ready first
    late.make()
    bench.disk()
    assert made.result() is again.result() is operations.user("ann")
    assert operations.user("ann").tags == ("b",)
    assert operations.user("ann").check_password(b"two")
    changed = operations.change_password("ann", "three")
    tagged = operations.set_user_tags("ann", ["c"])
    deleted = operations.delete_user("ann")
    assert not deleted.done and operations.user("ann").tags == ("b",)
    late.make()
    bench.settle()
    bench.disk()
    for outcome in (changed, tagged, deleted):
        outcome.result()
    assert [user.name for user in operations.users()] == ["guest"]


# --- clients


def test_a_client_waits_for_its_login_with_all_that_it_has_sent(
    bench: Bench, late: LateHashing
) -> None:
    """A client may send its whole handshake at once."""
    peer = Peer(bench)
    assert Hold.LOGIN in peer.sink.why_not_read
    assert [type(said.method) for said in peer.greeting] == [spec.ConnectionStart]
    late.make()
    assert Hold.LOGIN not in peer.sink.why_not_read
    peer.receive(b"")
    tune, opened = peer.hear()
    assert isinstance(tune, spec.ConnectionTune) and isinstance(opened, spec.ConnectionOpenOk)
    peer.declare("q")


@pytest.mark.parametrize("login", [b"\0guest\0guest", b"\0guest\0wrong"])
def test_a_client_that_has_gone_meanwhile(bench: Bench, late: LateHashing, login: bytes) -> None:
    peer = Peer(bench, login=login)
    peer.client.lost()
    late.make()
    assert peer.hear() == [] and peer.client not in bench.broker.clients


def test_for_a_client_that_has_gone_nothing_is_hashed(bench: Bench, late: LateHashing) -> None:
    peers = [Peer(bench, login=b"\0guest\0wrong") for _ in range(3)]
    other = Peer(bench, login=b"\0guest\0guess")
    assert len(late.waiting) == 2  # those of the same password wait for one hash
    for peer in peers[:2]:
        peer.client.lost()
    assert len(late.waiting) == 2
    peers[2].client.lost()
    assert len(late.waiting) == 1
    late.make()
    assert late.made == 1
    assert isinstance(other.hear()[0], spec.ConnectionClose)


def test_one_who_has_to_wait_and_leaves_takes_nobodys_place(
    bench: Bench, late: LateHashing
) -> None:
    def guess(number: int) -> Peer:
        return Peer(bench, login=b"\0guest\0guess %d" % number)

    for number in range(FREE_OF_USER):
        guess(number)
        late.make()
    delayed, *refused = [guess(number) for number in range(30)]
    for peer in (delayed, *refused):
        peer.client.lost()
    late.make()
    bench.pass_ms(10_000)
    assert not late.waiting and late.made == FREE_OF_USER


def test_what_a_refused_login_leaves_needs_no_collector(bench: Bench, late: LateHashing) -> None:
    """A thousand that fail in a second would leave the collector work that all wait for."""

    def come(login: bytes) -> Callable[[], object]:
        peer = Peer(bench, login=login)
        late.make()
        peer.client.lost()
        return weakref.ref(peer.client)

    gc.disable()
    try:
        gone = [come(b"\0guest\0guess"), come(b"\0nobody\0guest")]
        assert not any(each() for each in gone)
    finally:
        gc.enable()


def test_when_too_many_wait_clients_are_not_told_that_they_are_wrong(
    bench: Bench, late: LateHashing
) -> None:
    peer = Peer(bench)
    ((_, outcome),) = late.waiting
    outcome.fail(Busy())
    assert peer.hear() == [] and peer.sink.closed_after_s == 0.0


# --- who fails


def test_failures_wait_longer_each_time(bench: Bench, late: LateHashing) -> None:
    def fail(name: str = "guest", address: str = "10.0.0.1") -> float:
        """How long it takes until the attempt is looked at."""
        login = log_in(bench, name, b"wrong", address)
        waited_ms = 0
        while not late.waiting:
            bench.pass_ms(50)
            waited_ms += 50
        late.make()
        assert not is_in(login)
        return waited_ms / 1000

    waits = [fail() for _ in range(10)]
    assert waits[:FREE_OF_USER] == [0.0] * FREE_OF_USER
    assert waits[FREE_OF_USER:] == pytest.approx([0.25, 0.5, 1, 2, 4, 5, 5], abs=0.06)
    assert fail("somebody") == 0.0 and fail(address="10.0.0.2") == 0.0
    right = log_in(bench)
    assert not late.waiting
    bench.pass_ms(5100)
    late.make()
    assert is_in(right) and fail() == 0.0  # forgiven


def test_those_who_fail_cannot_crowd_at_the_door(bench: Bench, late: LateHashing) -> None:
    """A flood of attempts from one address is mostly not looked at, and costs no hash."""
    for _ in range(FREE_OF_USER):
        wrong = log_in(bench, password=b"wrong")
        late.make()
        assert not is_in(wrong)
    logins = [log_in(bench, password=b"wrong%d" % number) for number in range(500)]
    assert not any(login.done for login in logins)
    bench.pass_ms(int(ANSWERED_S * 1000))
    assert sum(login.done for login in logins) > 450 and late.made == FREE_OF_USER
    late.make()
    for _ in range(100):
        bench.pass_ms(100)
        late.make()
    assert not any(is_in(login) for login in logins) and late.made < 40
    other = log_in(bench, address="10.0.0.2")  # who is looked at beside it
    late.make()
    assert is_in(other)


def test_failures_are_counted_by_user_and_by_peer() -> None:
    failures = Failures()
    for number in range(FREE_OF_PEER):
        assert failures.wait_s("peer", f"user{number}", 0.0) == 0.0
        failures.failed("peer", f"user{number}", 0.0)
    assert failures.wait_s("peer", "another", 0.0) > 0.0
    assert failures.wait_s("other", "another", 0.0) == 0.0
    assert failures.wait_s("peer", "another", FORGOTTEN_S) == 0.0


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8::1", "2001:0db8:0000:0000::/64"),
        ("2001:db8:0:0:ffff::2", "2001:0db8:0000:0000::/64"),
        ("2001:db8:0:1::1", "2001:0db8:0000:0001::/64"),
        ("fe80::1%eth0", "fe80:0000:0000:0000::/64"),
        ("test", "test"),
    ],
)
def test_a_machine_with_many_addresses_is_one_peer(address: str, peer: str) -> None:
    assert peer_of(address) == peer


def test_failures_are_bounded() -> None:
    failures = Failures()
    for number in range(3 * RECORDS_MAX):
        failures.failed(f"peer{number % 7}", f"user{number}", float(number) / 1e6)
    assert len(failures) == RECORDS_MAX
    assert failures.wait_s("peer1", "x", 1.0) <= WAIT_S_MAX * 1.001 + 1


def test_refused_logins_are_logged_without_passwords_and_not_for_ever(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for number in range(100):
            assert not is_in(log_in(bench, "eve\nby='root'", b"hidden", f"10.0.0.{number}"))
        bench.now_s += 1
        assert not is_in(log_in(bench, "guest", b"hidden"))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == LOGGED_MAX + 1
    assert said[0] == ("login refused from=10.0.0.0 user=\"eve\\nby='root'\" reason=no such user")
    assert said[-1] == (
        "login refused from=10.0.0.1 user='guest' reason=invalid credentials; 90 more were "
        "refused, and not logged"
    )
    assert not any("hidden" in line for line in said)


ODD = [b"", b"\0", b"x" * 5000, b"\xff\xfe", "päss".encode()]


@pytest.mark.parametrize("password", ODD)
def test_odd_passwords_are_wrong(bench: Bench, password: bytes) -> None:
    assert not is_in(log_in(bench, password=password))
    assert not is_in(log_in(bench, "nobody" * 1000, password))
    assert is_in(log_in(bench, address="10.0.0.2"))


# --- hashes away from the loop


@pytest.fixture
def workers() -> list[ManualWorker]:
    return []


@pytest.fixture
def threaded(workers: list[ManualWorker]) -> Iterator[ThreadedHashing]:
    def new_worker(name: str, notify: Callable[[], None]) -> ManualWorker:
        workers.append(ManualWorker())
        return workers[-1]

    threaded = ThreadedHashing(lambda: None, at_once=2, new_worker=new_worker)
    yield threaded
    threaded.close()


def work(threaded: ThreadedHashing, workers: list[ManualWorker]) -> None:
    for worker in workers:
        while worker.run_one():
            pass
    threaded.progress()


def test_so_many_hashes_at_once(threaded: ThreadedHashing, workers: list[ManualWorker]) -> None:
    done: list[int] = []
    for number in range(5):
        threaded.submit(lambda number=number: done.append(number), "peer")  # type: ignore[misc]
    assert len(workers) == 2
    for expected in (2, 4, 5):
        work(threaded, workers)
        assert len(done) == expected


def test_peers_take_turns(threaded: ThreadedHashing, workers: list[ManualWorker]) -> None:
    """Whoever floods waits for the own flood."""
    done: list[str] = []

    def submit(peer: str) -> None:
        threaded.submit(lambda: done.append(peer), peer)

    for _ in range(20):
        submit("flood")
    submit("ann")
    submit("bob")
    for _ in range(3):
        work(threaded, workers)
    assert "ann" in done and "bob" in done and done.count("flood") <= 4


def test_the_line_is_bounded(
    threaded: ThreadedHashing, workers: list[ManualWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing_module, "LINE_MAX", 3)
    outcomes = [threaded.submit(lambda: 1, "peer") for _ in range(6)]
    with pytest.raises(Busy):
        outcomes[-1].result()
    for _ in range(3):
        work(threaded, workers)
    assert [outcome.result() for outcome in outcomes[:-1]] == [1] * 5


def test_a_flood_has_no_place_that_another_peer_needs(
    threaded: ThreadedHashing, workers: list[ManualWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing_module, "LINE_MAX", 4)
    flood = [threaded.submit(lambda: 1, "flood") for _ in range(6)]  # two are at work
    ann, bob = threaded.submit(lambda: 2, "ann"), threaded.submit(lambda: 3, "bob")
    assert [outcome.done for outcome in flood] == [False] * 4 + [True] * 2
    assert all(isinstance(outcome.error, Busy) for outcome in flood[4:])
    assert isinstance(threaded.submit(lambda: 2, "ann").error, Busy)  # who has one already
    cid = threaded.submit(lambda: 4, "cid")
    assert isinstance(flood[3].error, Busy)
    assert isinstance(threaded.submit(lambda: 5, "dan").error, Busy)  # nobody has two
    for _ in range(3):
        work(threaded, workers)
    assert [outcome.result() for outcome in (*flood[:3], ann, bob, cid)] == [1, 1, 1, 2, 3, 4]


def test_a_job_that_is_withdrawn(threaded: ThreadedHashing, workers: list[ManualWorker]) -> None:
    done: list[int] = []
    outcomes = [
        threaded.submit(lambda number=number: done.append(number), "peer")  # type: ignore[misc]
        for number in range(5)
    ]
    assert not threaded.withdraw(outcomes[0], "peer")  # has begun
    assert not threaded.withdraw(outcomes[3], "another")
    assert threaded.withdraw(outcomes[3], "peer") and not threaded.withdraw(outcomes[3], "peer")
    assert threaded.withdraw(outcomes[4], "peer")
    for _ in range(3):
        work(threaded, workers)
    assert done == [0, 1, 2]
    threaded.submit(lambda: done.append(5), "peer")
    work(threaded, workers)
    assert done == [0, 1, 2, 5]


def test_an_error_of_a_hash_is_its_own(
    threaded: ThreadedHashing, workers: list[ManualWorker]
) -> None:
    bad, good = threaded.submit(lambda: 1 // 0, "peer"), threaded.submit(lambda: 1, "peer")
    work(threaded, workers)
    assert good.result() == 1
    with pytest.raises(ZeroDivisionError):
        bad.result()


# --- who has failed before


def test_what_is_held_against_an_attempt() -> None:
    failures = Failures()

    def doubt(peer: str, user: str) -> Doubt:
        return failures.doubt(peer, user, 0.0)

    assert doubt("peer", "ann") is Doubt.NONE
    for number in range(FREE_OF_USER):
        assert doubt("peer", "ann") is (Doubt.SOME if number else Doubt.NONE)
        failures.failed("peer", "ann", 0.0)
    assert doubt("peer", "ann") is Doubt.MUCH
    # Who comes by the same address (a proxy) pays for nobody else, unless there are very many.
    assert doubt("peer", "bob") is doubt("other", "ann") is Doubt.NONE
    for number in range(FREE_OF_PEER):
        failures.failed("peer", f"user{number}", 0.0)
    assert doubt("peer", "bob") is Doubt.MUCH
    failures.failed("other", "bob", 0.0)
    failures.succeeded("other", "bob")
    assert doubt("other", "bob") is Doubt.NONE
    assert failures.doubt("peer", "ann", FORGOTTEN_S) is Doubt.NONE


def test_a_login_says_what_is_held_against_it(bench: Bench, late: LateHashing) -> None:
    for _ in range(2):
        log_in(bench, password=b"wrong")
        late.make()
    log_in(bench)
    log_in(bench, password=b"another", address="10.0.0.2")
    assert late.doubts == [Doubt.NONE, Doubt.SOME, Doubt.SOME, Doubt.NONE]


def test_who_has_failed_waits_for_all_who_have_not(workers: list[ManualWorker]) -> None:
    done: list[str] = []
    worker = ManualWorker()
    single = ThreadedHashing(lambda: None, at_once=1, new_worker=lambda *_: worker)

    def submit(name: str, doubt: Doubt) -> None:
        single.submit(lambda: done.append(name), name, doubt)

    for number in range(5):
        submit(f"attacker{number}", Doubt.MUCH)
    submit("who mistyped", Doubt.SOME)
    for name in ("ann", "bob"):
        submit(name, Doubt.NONE)
    while len(done) < 8:
        work(single, [worker])
    assert done[:4] == ["attacker0", "ann", "bob", "who mistyped"]  # the first had begun
    single.close()


def test_hashes_for_those_who_failed_take_a_fifth_of_a_processor() -> None:
    """However many threads there are."""
    now_s, workers, done = 0.0, [ManualWorker(), ManualWorker()], []
    free = iter(workers)
    hashing = ThreadedHashing(
        lambda: None, at_once=2, new_worker=lambda *_: next(free), now_s=lambda: now_s
    )

    def job() -> None:
        end_s = time.thread_time() + 0.005
        while time.thread_time() < end_s:
            pass
        done.append(now_s)

    for number in range(3):
        hashing.submit(job, f"peer{number}", Doubt.MUCH)
    assert sum(len(worker.jobs) for worker in workers) == 2  # a priority, and one job
    while len(done) < 3:
        work(hashing, workers)
        now_s += 0.001
    assert [later - before >= RESTS * 0.005 for before, later in pairwise(done)] == [True, True]
    hashing.submit(lambda: done.append(-1.0), "other")  # for whom there is a thread
    work(hashing, workers)
    assert done[-1] == -1.0
    hashing.close()


def test_who_has_not_failed_ends_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing_module, "RESTS", 1e9)
    ready = threading.Event()
    real = ThreadedHashing(ready.set, at_once=1)

    def wait_for(outcome: Outcome[None]) -> None:
        while not outcome.done:
            assert ready.wait(30)
            ready.clear()
            real.progress()

    spun = real.submit(lambda: sum(range(100_000)), "peer", Doubt.MUCH)
    rests = real.submit(lambda: None, "peer", Doubt.MUCH)
    wait_for(spun)  # type: ignore[arg-type]
    wait_for(real.submit(lambda: None, "ann"))
    wait_for(real.submit(lambda: None, "bob"))
    assert not rests.done
    begun_s = time.monotonic()
    real.close()
    assert time.monotonic() - begun_s < 20


def test_who_is_less_in_doubt_has_the_place_of_who_is_more(
    threaded: ThreadedHashing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing_module, "LINE_MAX", 3)
    crowd = [
        threaded.submit(lambda: 1, f"attacker{number}", Doubt.MUCH) for number in range(4)
    ]  # one is at work
    assert isinstance(threaded.submit(lambda: 2, "late", Doubt.MUCH).error, Busy)
    some = threaded.submit(lambda: 3, "who mistyped", Doubt.SOME)
    ann, bob, cid, dan = (threaded.submit(lambda: 4, name) for name in ("ann", "bob", "cid", "dan"))
    assert [one.done for one in crowd] == [False, True, True, True]
    assert isinstance(some.error, Busy)
    assert not any(one.done for one in (ann, bob, cid, dan))  # one of them has begun


def test_who_is_in_doubt_has_the_place_of_nobody_who_is_less(
    threaded: ThreadedHashing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the other's peer has more than one."""
    monkeypatch.setattr(hashing_module, "LINE_MAX", 4)
    ann = [threaded.submit(lambda: 1, "ann") for _ in range(4)]  # two are at work
    bob = [threaded.submit(lambda: 1, "bob", Doubt.SOME) for _ in range(2)]
    assert isinstance(threaded.submit(lambda: 2, "eve", Doubt.MUCH).error, Busy)
    assert not any(one.done for one in (*ann, *bob))
    cid = threaded.submit(lambda: 2, "cid", Doubt.SOME)  # bob has two
    assert [one.done for one in (*ann, *bob, cid)] == [False] * 5 + [True, False]


def test_what_waits_from_an_address_keeps_nobody_out_who_is_less_in_doubt(
    threaded: ThreadedHashing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many may come by one address."""
    monkeypatch.setattr(hashing_module, "LINE_MAX", 3)
    eve = [threaded.submit(lambda: 1, "proxy", Doubt.MUCH) for _ in range(4)]  # one is at work
    ann = threaded.submit(lambda: 2, "proxy")
    assert [one.done for one in eve] == [False, False, False, True] and not ann.done


def test_a_new_peer_has_one_attempt_at_a_time_before_those_who_mistyped(
    bench: Bench, workers: list[ManualWorker]
) -> None:
    worker = ManualWorker()
    single = ThreadedHashing(lambda: None, at_once=1, new_worker=lambda *_: worker)
    bench.broker.operations._logins.hashing = single
    first = log_in(bench, password=b"wrong", address="10.0.0.2")
    work(single, [worker])
    assert first.done  # ann mistypes
    flood = [log_in(bench, f"user{number}", b"x", "10.0.0.1") for number in range(20)]
    again = log_in(bench, address="10.0.0.2")
    for _ in range(20):
        bench.now_s += 1  # a rest
        single._rests_until_s = 0.0
        work(single, [worker])
        if again.done:
            break
    assert is_in(again) and sum(one.done for one in flood) <= 4
    single.close()


def test_real_threads() -> None:
    ready = threading.Event()
    real = ThreadedHashing(ready.set)
    outcome = real.submit(lambda: passwords.hash_password(b"x"), "peer")
    while not outcome.done:
        assert ready.wait(30)
        ready.clear()
        real.progress()
    assert passwords.is_right(outcome.result(), b"x")
    real.close()
    assert 1 <= hashes_at_once() <= 4


# --- formats


@pytest.mark.parametrize("algorithm", passwords.RABBITMQ_ALGORITHMS)
def test_rabbitmqs_hashes_are_replaced_at_the_first_login(bench: Bench, algorithm: str) -> None:
    given = hash_text(hash_for_rabbitmq(b"secret", algorithm=algorithm))
    user = {"name": "ann", "password_hash": given, "hashing_algorithm": algorithm, "tags": ""}
    bench.document = {"users": [user], "vhosts": [{"name": "/"}]}
    bench.restart()
    assert not is_in(log_in(bench, "ann", b"wrong"))
    assert bench.broker.users["ann"].hashing_algorithm == algorithm
    assert is_in(log_in(bench, "ann", b"secret"))
    kept = bench.broker.users["ann"].password_hash
    assert passwords.is_argon2id(kept)
    bench.disk()
    bench.restart()  # which loads the same definitions again
    assert bench.broker.users["ann"].password_hash == kept
    user["password_hash"] = hash_text(hash_for_rabbitmq(b"new", algorithm=algorithm))
    bench.restart()
    assert bench.broker.users["ann"].hashing_algorithm == algorithm
    assert is_in(log_in(bench, "ann", b"new")) and not is_in(log_in(bench, "ann", b"secret"))


def test_a_file_for_rabbitmq(bench: Bench) -> None:
    """Users that RabbitMQ could not take get passwords that are told."""
    bench.broker.operations.set_user(
        "old", tags=[], password_hash=hash_text(hash_for_rabbitmq(b"x"))
    )
    bench.disk()
    exporting = bench.broker.export_definitions()
    bench.settle()
    users = exporting.result()["users"]
    before = {user["name"]: dict(user) for user in users}
    made = passwords.reset_passwords(users)
    after = {user["name"]: user for user in users}
    assert list(made) == ["guest"] and after["old"] == before["old"]
    guest = after["guest"]
    assert guest["hashing_algorithm"] == "rabbit_password_hashing_sha256"
    assert passwords.is_right(parse_hash(guest["password_hash"]), made["guest"].encode())
    assert not passwords.is_right(parse_hash(guest["password_hash"]), b"guest")


BAD = [
    ("x", "argon2id"),
    ("$argon2i$v=19$m=8,t=1,p=1$" + "A" * 22 + "$" + "A" * 43, "argon2id"),
    ("$argon2id$v=19$m=0,t=1,p=1$" + "A" * 22 + "$" + "A" * 43, "argon2id"),
    ("$argon2id$v=19$m=8,t=0,p=1$" + "A" * 22 + "$" + "A" * 43, "argon2id"),
    ("$argon2id$v=19$m=8,t=1,p=99$" + "A" * 22 + "$" + "A" * 43, "argon2id"),
    ("$argon2id$v=19$m=999999,t=1,p=1$" + "A" * 22 + "$" + "A" * 43, "argon2id"),
    ("AAAA", "rabbit_password_hashing_md5"),
    ("é", "rabbit_password_hashing_sha256"),
    ("", "bcrypt"),
    ("AAAA", None),
]


@pytest.mark.parametrize(("text", "algorithm"), BAD)
def test_hashes_that_are_none(text: str, algorithm: str | None) -> None:
    with pytest.raises(BadHash):
        parse_hash(text, algorithm)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "md5"])
def test_the_length_of_a_hash_tells_how_it_was_made(algorithm: str) -> None:
    """rabbitmqadmin hashes with SHA-512 and does not say so; RabbitMQ lets nobody in then."""
    made = hash_for_rabbitmq(b"secret", algorithm=f"rabbit_password_hashing_{algorithm}")
    assert passwords.is_right(parse_hash(hash_text(made)), b"secret")
    assert not passwords.is_right(parse_hash(hash_text(made)), b"other")


def test_a_hash_of_argon2id_that_cannot_be_decoded_lets_nobody_in() -> None:
    odd = b"$argon2id$v=19$m=8,t=1,p=1$" + b"A" * 23 + b"$" + b"A" * 43
    assert not passwords.is_right(odd, b"x")
