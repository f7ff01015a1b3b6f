"""Celery with quorum queues: it delays tasks in the broker, and a killed worker loses none."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pamqp.commands import Exchange, Queue

from tests.live.conversation import Client, unchecked, until
from tests.live.test_celery import RESULT_S_MAX, Worker, start, stop

pytestmark = pytest.mark.newer

LEVELS = 28  # of Celery's delayed delivery


def clear(url: str) -> None:
    """Delete what Celery declares for delayed tasks, which has one name for all applications."""
    with Client(url) as client:
        talk = client.channel()
        for level in range(LEVELS):
            talk.call(unchecked(Queue.Delete, queue=f"celery_delayed_{level}"))
            talk.call(unchecked(Exchange.Delete, exchange=f"celery_delayed_{level}"))
        talk.call(unchecked(Exchange.Delete, exchange="celery_delayed_delivery"))


@pytest.fixture(scope="module")
def worker(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    log = tmp_path_factory.mktemp("celery") / "worker.log"
    worker = start(broker_url, "rpc://", log, "quorum")
    yield worker
    stop(worker, broker_url)
    clear(broker_url)


def test_the_queues_are_quorum_queues(worker: Worker, broker_url: str) -> None:
    with Client(broker_url) as client:
        declare = Queue.Declare(queue=worker.app.conf.task_default_queue, durable=True)
        text = client.channel().refused(declare).text
        assert text.endswith("received 'classic' but current is 'quorum'")
        delete = Queue.Delete(queue="celery_delayed_3", if_unused=True)
        assert "not supported by quorum queues" in client.channel(2).refused(delete).text


def test_results(worker: Worker) -> None:
    results = [worker.send("add", number, number) for number in range(50)]
    assert [r.get(timeout=RESULT_S_MAX) for r in results] == [2 * n for n in range(50)]


@pytest.mark.parametrize("seconds", [1, 3])
def test_a_countdown_is_kept_by_the_broker(worker: Worker, seconds: int) -> None:
    begin = time.time()
    result = worker.send("clock", countdown=seconds)
    assert not any((worker.inspect().scheduled() or {}).values())
    # Celery counts in whole seconds from the time at which it looks at the countdown.
    assert result.get(timeout=RESULT_S_MAX) - begin > seconds - 1


def test_retries(worker: Worker) -> None:
    assert worker.send("flaky", 2).get(timeout=RESULT_S_MAX) == 2


def test_a_task_of_a_killed_worker_is_done_by_the_next_one(broker_url: str, tmp_path: Path) -> None:
    first = start(broker_url, "rpc://", tmp_path / "first.log", "quorum")
    queue, mark = first.app.conf.task_default_queue, tmp_path / "mark"
    second = None
    try:
        result = first.send("slow_at_first", str(mark))
        until(mark.exists, "the task has begun")
        first.process.kill()
        first.process.wait()
        second = start(broker_url, "rpc://", tmp_path / "second.log", "quorum", queue)
        assert result.get(timeout=RESULT_S_MAX) == 2
    finally:
        for worker in (first, second):
            if worker is not None:
                stop(worker, broker_url)
        clear(broker_url)
