"""The Celery application of the tests: the same in the worker process and in the test's.

The worker process finds its broker, result backend and queue in the environment.
"""

# mypy: disable-error-code="no-untyped-call, untyped-decorator"

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery


def make_app(broker: str, backend: str, queue: str, queue_type: str = "classic") -> Celery:
    """An application whose tasks go to `queue`; with quorum queues it delays tasks in the broker."""
    app = Celery("live", broker=broker, backend=backend)
    app.conf.update(
        task_default_queue=queue,
        task_default_queue_type=queue_type,
        # Celery delays tasks in the broker for topic exchanges alone.
        task_default_exchange_type="topic" if queue_type == "quorum" else "direct",
        task_acks_late=True,
        worker_prefetch_multiplier=2,
        broker_connection_retry_on_startup=True,
        result_expires=300,
        # Polling for the members of a chord is what its duration depends on.
        result_chord_retry_interval=0.2,
    )

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="total")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(name="fail")
    def fail(text: str) -> None:
        raise ValueError(text)

    @app.task(name="flaky", bind=True, max_retries=5)
    def flaky(self: Any, failures: int) -> int:
        if self.request.retries < failures:
            # The broker delays tasks by whole seconds.
            raise self.retry(countdown=1 if queue_type == "quorum" else 0.1)
        return int(self.request.retries)

    @app.task(name="clock")
    def clock() -> float:
        return time.time()

    @app.task(name="slow_at_first")
    def slow_at_first(path: str) -> int:
        """Writes how often it has begun; the first time it does not end."""
        with open(path, "a+") as file:
            file.write("begun\n")
            file.flush()
            file.seek(0)
            times = len(file.readlines())
        if times == 1:
            time.sleep(600)
        return times

    return app


if "LIVE_CELERY_QUEUE" in os.environ:
    app = make_app(
        os.environ["LIVE_CELERY_BROKER"],
        os.environ["LIVE_CELERY_BACKEND"],
        os.environ["LIVE_CELERY_QUEUE"],
        os.environ["LIVE_CELERY_QUEUE_TYPE"],
    )
