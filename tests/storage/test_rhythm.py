"""When commits begin: times in, decisions out."""

import pytest

from qlog.storage.write.rhythm import (
    HOLD_S_MAX,
    INLINE_BYTES_MAX,
    LAZY_BYTES_MAX,
    LAZY_S,
    Rhythm,
)


def after_a_commit(*, took_s: float, waiting: int, inline: bool = False) -> Rhythm:
    """At 10 s a commit is done that took so long, and so many publishers waited."""
    rhythm = Rhythm(inline=True)
    rhythm.begun(10.0 - took_s)
    rhythm.done(10.0, waiting, inline=inline)
    return rhythm


def test_the_next_commit_waits_until_as_many_publishers_wait_again() -> None:
    rhythm = after_a_commit(took_s=0.004, waiting=10)
    assert rhythm.delay_s(10.0, 3, 5000) == pytest.approx(0.001)  # a quarter of the last
    assert rhythm.delay_s(10.0005, 9, 5000) == pytest.approx(0.0005)
    assert rhythm.delay_s(10.0005, 10, 5000) == 0.0
    assert rhythm.delay_s(10.0011, 3, 5000) == 0.0


def test_nobody_is_held_for_longer_than_the_limit_however_slow_the_disk() -> None:
    rhythm = after_a_commit(took_s=8.0, waiting=10)
    assert 0 < rhythm.delay_s(10.0, 1, 100) <= HOLD_S_MAX + 1e-9


def test_a_publisher_alone_is_never_held() -> None:
    """And neither are deep windows: their publishers wait all the time."""
    for publishers in (1, 2, 50):
        rhythm = after_a_commit(took_s=0.004, waiting=publishers)
        assert rhythm.delay_s(10.0, publishers, 100) == 0.0


def test_what_nobody_waits_for_gathers_for_a_moment_or_until_it_is_much() -> None:
    rhythm = after_a_commit(took_s=0.001, waiting=0)
    assert rhythm.delay_s(11.0, 0, 1000) == pytest.approx(LAZY_S)
    assert 0 < rhythm.delay_s(11.003, 0, 2000) < LAZY_S
    assert rhythm.delay_s(11.003, 0, LAZY_BYTES_MAX) == 0.0
    assert rhythm.delay_s(11.0 + LAZY_S, 0, 2000) == 0.0
    rhythm.begun(11.01)
    assert rhythm.delay_s(11.02, 0, 1000) == pytest.approx(LAZY_S)  # anew
    assert rhythm.delay_s(11.021, 1, 1000) == 0.0  # somebody waits now


def test_small_commits_are_inline_where_the_disk_is_fast() -> None:
    fast = after_a_commit(took_s=0.0002, waiting=1)
    assert fast.may_be_inline(10.0, 1, 1000)
    assert not fast.may_be_inline(10.0, 1, INLINE_BYTES_MAX + 1)
    assert not fast.may_be_inline(10.0, 0, 1000)
    assert not after_a_commit(took_s=0.002, waiting=1).may_be_inline(10.0, 1, 1000)
    assert not Rhythm(inline=True).may_be_inline(10.0, 1, 1000)  # nothing is known of the disk
    off = Rhythm(inline=False)
    off.begun(9.9999)
    off.done(10.0, 1, inline=False)
    assert not off.may_be_inline(10.0, 1, 1000)


def test_after_a_slow_sync_the_thread_is_in_charge_longer_each_time() -> None:
    rhythm = after_a_commit(took_s=0.0001, waiting=1)
    now_s = 10.0
    banished = []
    for _ in range(3):
        rhythm.begun(now_s)
        now_s += 0.03
        rhythm.done(now_s, 1, inline=True)
        for _ in range(80):  # fast ones bring the average down again
            rhythm.begun(now_s)
            rhythm.done(now_s + 0.0001, 1, inline=False)
        since_s = now_s
        while not rhythm.may_be_inline(now_s, 1, 100):
            now_s += 0.01
        banished.append(now_s - since_s)
    assert banished[0] >= 0.25 and banished[1] >= 0.5 and banished[2] >= 1.0
