"""Celery: a real worker in a process of its own, driven from here."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.exceptions import TaskRevokedError
from pamqp.commands import Exchange, Queue

from tests.live.celery_app import make_app
from tests.live.conversation import Client, unchecked, unique, until
from tests.live.server import ROOT

RESULT_S_MAX = 30
START_S_MAX = 40


@dataclass
class Worker:
    """A worker process and the application to talk to it."""

    app: Celery
    process: subprocess.Popen[bytes]
    name: str

    def send(self, task: str, *values: Any, **options: Any) -> Any:
        """Send a task by its name."""
        return self.app.tasks[task].apply_async(values, **options)

    def inspect(self) -> Any:
        """Inspection of this worker alone."""
        return self.app.control.inspect([self.name], timeout=3)


def start(
    url: str, backend: str, log: Path, queue_type: str = "classic", queue: str = ""
) -> Worker:
    """Start a worker and wait until it answers; without `queue` on a queue of its own."""
    queue, name = queue or unique("celery"), f"{unique('worker')}@localhost"
    environment = {
        **os.environ,
        "LIVE_CELERY_BROKER": url,
        "LIVE_CELERY_BACKEND": backend,
        "LIVE_CELERY_QUEUE": queue,
        "LIVE_CELERY_QUEUE_TYPE": queue_type,
    }
    command = [sys.executable, "-m", "celery", "-A", "tests.live.celery_app:app", "worker"]
    command += ["--pool", "threads", "--concurrency", "4", "-n", name, "--loglevel", "info"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    worker = Worker(make_app(url, backend, queue, queue_type), process, name)

    def is_up() -> bool:
        assert process.poll() is None, log.read_text()
        return bool(worker.app.control.ping([name], timeout=0.5))

    until(is_up, "an answer of the worker", START_S_MAX)
    return worker


def stop(worker: Worker, url: str) -> None:
    """End the process if it still runs, and delete what it declared durably."""
    if worker.process.poll() is None:
        worker.process.terminate()
        worker.process.wait(20)
    worker.app.close()
    with Client(url) as client:
        talk = client.channel()
        queue = worker.app.conf.task_default_queue
        talk.call(unchecked(Queue.Delete, queue=queue))
        talk.call(unchecked(Exchange.Delete, exchange=queue))


@pytest.fixture(scope="module")
def worker(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker with results over rpc://."""
    worker = start(broker_url, "rpc://", tmp_path_factory.mktemp("celery") / "worker.log")
    yield worker
    stop(worker, broker_url)


def test_results_over_rpc(worker: Worker) -> None:
    results = [worker.send("add", number, number) for number in range(50)]
    assert [r.get(timeout=RESULT_S_MAX) for r in results] == [2 * n for n in range(50)]


def test_failure_reaches_the_caller(worker: Worker) -> None:
    with pytest.raises(ValueError, match="as told"):
        worker.send("fail", "as told").get(timeout=RESULT_S_MAX)


def test_retries(worker: Worker) -> None:
    assert worker.send("flaky", 3).get(timeout=RESULT_S_MAX) == 3


def test_countdown(worker: Worker) -> None:
    begin = time.time()
    assert worker.send("clock", countdown=1).get(timeout=RESULT_S_MAX) - begin >= 1


def test_expired_task_is_revoked(worker: Worker) -> None:
    with pytest.raises(TaskRevokedError):
        worker.send("clock", countdown=0.5, expires=0.1).get(timeout=RESULT_S_MAX)


def test_chain_and_group(worker: Worker) -> None:
    add = worker.app.tasks["add"]
    assert chain(add.s(1, 2), add.s(3), add.s(4))().get(timeout=RESULT_S_MAX) == 10
    assert group(add.s(n, 1) for n in range(10))().get(timeout=RESULT_S_MAX) == list(range(1, 11))


def test_priority_and_headers_do_no_harm(worker: Worker) -> None:
    result = worker.send("add", 1, 1, priority=5, headers={"trace": "abc"}, expires=60)
    assert result.get(timeout=RESULT_S_MAX) == 2


def test_inspect(worker: Worker) -> None:
    inspect = worker.inspect()
    assert inspect.ping() == {worker.name: {"ok": "pong"}}
    assert {"add", "flaky"} <= set(inspect.registered()[worker.name])
    queues = inspect.active_queues()[worker.name]
    assert [queue["name"] for queue in queues] == [worker.app.conf.task_default_queue]
    assert inspect.stats()[worker.name]["broker"]["transport"] == "amqp"


def test_scheduled_and_revoked(worker: Worker) -> None:
    result = worker.send("add", 1, 2, countdown=600)

    def scheduled() -> bool:
        entries = worker.inspect().scheduled() or {}
        return any(e["request"]["id"] == result.id for e in entries.get(worker.name, []))

    until(scheduled, "the task among the scheduled ones", 20)
    worker.app.control.revoke(result.id, destination=[worker.name])
    until(lambda: result.id in (worker.inspect().revoked() or {}).get(worker.name, []), "revoked")


def test_control_of_consumers(worker: Worker, broker_url: str) -> None:
    extra = unique("extra")
    control = worker.app.control
    options = {"destination": [worker.name], "reply": True, "timeout": 5}
    reply = control.add_consumer(extra, **options)
    assert "ok" in reply[0][worker.name]
    assert worker.send("add", 2, 3, queue=extra).get(timeout=RESULT_S_MAX) == 5
    assert "ok" in control.cancel_consumer(extra, **options)[0][worker.name]
    with Client(broker_url) as client:
        talk = client.channel()
        talk.call(Queue.Delete(queue=extra))
        talk.call(Exchange.Delete(exchange=extra))


def test_chord_over_a_database_and_shutdown_by_control(broker_url: str, tmp_path: Path) -> None:
    backend = f"db+sqlite:///{tmp_path / 'results.sqlite'}"
    worker = start(broker_url, backend, tmp_path / "worker.log")
    try:
        add, total = worker.app.tasks["add"], worker.app.tasks["total"]
        result = chord((add.s(n, n) for n in range(10)), total.s())()
        assert result.get(timeout=RESULT_S_MAX) == 90
        assert worker.send("add", 1, 2).get(timeout=RESULT_S_MAX) == 3
        worker.app.control.shutdown(destination=[worker.name])
        assert worker.process.wait(20) == 0
    finally:
        stop(worker, broker_url)
