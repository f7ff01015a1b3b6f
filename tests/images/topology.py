"""The queues of the load, and where their messages go when they leave.

A message that leaves a queue of `HANDED_ON` is copied before it is settled: a crash may leave it in
both places, and never in neither. What waits at the exchange `DELAYED` counts as in `LATE`.
"""

from __future__ import annotations

from typing import Any

FANOUT, DELAYED = "images.fanout", "images.delayed"
WORK, HELD, BACKLOG, TX = (f"images.{name}" for name in ("work", "held", "backlog", "tx"))
STREAM, LATE, DEAD = (f"images.{name}" for name in ("stream", "late", "dead"))
LIMITED, TIMED, COUNTED = (f"images.{name}" for name in ("limited", "timed", "counted"))

_TO_DEAD = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": DEAD}
QUEUES: dict[str, dict[str, Any]] = {
    **{name: {} for name in (WORK, HELD, BACKLOG, TX, LATE, DEAD)},
    STREAM: {"x-queue-type": "stream"},
    LIMITED: {**_TO_DEAD, "x-max-length": 10},
    TIMED: {**_TO_DEAD, "x-message-ttl": 150},
    COUNTED: {**_TO_DEAD, "x-queue-type": "quorum", "x-delivery-limit": 2},
}
FANNED = (WORK, HELD, BACKLOG, STREAM)
HANDED_ON = dict.fromkeys((LIMITED, TIMED, COUNTED), DEAD)
# Messages come here from several places, perhaps again after a crash.
HANDED_TO = (DEAD, LATE)
# Transient messages are kept here, too; but for those of a stream they may be lost once handed on.
KEEP_ALL = (STREAM, COUNTED, LATE)
