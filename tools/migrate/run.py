"""A migration as a whole: definitions, then queue by queue; what the user sees of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from qlog.tools.ctl.api import Api, ApiError, Unreachable
from qlog.tools.ctl.command import Failure, Rows, Status
from qlog.tools.ctl.values import printable
from qlog.tools.migrate.moving import (
    Counts,
    Interrupted,
    Move,
    QueueMove,
    Rejected,
    Setting,
    StreamMove,
)
from qlog.tools.migrate.plan import Plan, QueuePlan
from qlog.tools.migrate.source import InUse, Source
from qlog.tools.migrate.target import Target, until_taken
from qlog.tools.transfer.interrupt import patiently
from qlog.tools.transfer.link import Address, LinkFailed

COLUMNS = ("vhost", "queue", "type", "moved", "seen", "twice", "state")
PLANNED = ("vhost", "queue", "type", "messages", "state")
SINGULAR = {"policies": "policy"}
DONE = "done"
NOT_BEGUN = "not begun"
# How often a long run says how far it is: on a terminal, and in a log.
_TERMINAL_S, _LOG_S = 0.2, 10.0


class Progress:
    """Lines on stderr while it goes on; none if `quiet`."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._began_s = self._said_s = time.monotonic()
        self._done = 0
        self._doing = ""
        self._line = False  # the cursor stands behind one that is to be written over

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._quiet:
            return
        self._clear()
        print(printable(text), file=sys.stderr, flush=True)

    def begin(self, doing: str) -> None:
        """What is being done now."""
        self._doing = doing

    def advance(self, count: int) -> None:
        """So many messages more are done with."""
        self._done += count
        now_s = time.monotonic()
        if self._quiet or now_s - self._said_s < (_TERMINAL_S if self._terminal else _LOG_S):
            return
        self._said_s = now_s
        rate = self._done / max(now_s - self._began_s, 0.001)
        text = f"{self._done:,} messages, {rate:,.0f}/s: {printable(self._doing)}"
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
            self._line = True
        else:
            print(text, file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._line:
            print("\r\x1b[K", end="", file=sys.stderr)
            self._line = False

    def end(self) -> None:
        """Nothing more comes."""
        self._clear()


class Migration:
    """From one RabbitMQ, at `address`, into the qlog of `api`."""

    def __init__(self, api: Api, address: Address, prefetch: int, progress: Progress) -> None:
        self.failures: list[str] = []
        self.interrupted = False
        self._api = api
        self._address = address
        self._prefetch = prefetch
        self._progress = progress

    def check(self, plan: Plan) -> None:
        """Have qlog say what it would leave out of the definitions. Raises Failure."""
        answer = self._give_definitions(plan, "qlog", "definitions", "check")
        plan.notes += [f"definitions: {text}" for text in answer["left_out"]]

    def define(self, plan: Plan) -> None:
        """Load the definitions. Raises Failure."""
        self._give_definitions(plan, "definitions")
        self._progress.say(f"definitions: {counted(plan.definitions)}")

    def _give_definitions(self, plan: Plan, *path: str) -> Any:
        try:
            return until_taken(
                lambda: self._api.ask("POST", path, body=plan.definitions), self._progress.say
            )
        except ApiError as error:
            raise Failure(
                f"qlog does not take RabbitMQ's definitions: {error.reason}", Status.UNAVAILABLE
            ) from None

    def _say_interrupted(self) -> None:
        self._progress.say("interrupted: this window is still moved")

    def move(self, plan: Plan) -> list[dict[str, Any]]:
        """Move the messages; a row for each queue."""
        rows: list[dict[str, Any]] = []
        with patiently(self._say_interrupted) as interrupted:
            setting = Setting(self._prefetch, plan.started_s, interrupted, self._progress.advance)
            vhosts: dict[str, list[QueuePlan]] = {}
            for queue in plan.queues:
                vhosts.setdefault(queue.vhost, []).append(queue)
            for vhost, queues in vhosts.items():
                rows += self._move_vhost(vhost, queues, setting)
        self._progress.end()
        return rows

    def _move_vhost(
        self, vhost: str, queues: list[QueuePlan], setting: Setting
    ) -> Iterator[dict[str, Any]]:
        source: Source | None = None
        with ExitStack() as connections:
            for queue in queues:
                if not queue.movable:
                    yield row_of(queue, Counts(), f"not moved: {queue.how}")
                    continue
                counts, state = Counts(), NOT_BEGUN
                if not (self.interrupted or setting.interrupted()):
                    try:
                        if source is None:
                            source = connections.enter_context(Source(self._address, vhost))
                        counts, state = self._move_queue(source, queue, setting)
                    except LinkFailed as error:  # there was no connection
                        state = f"RabbitMQ at {self._address.host}: {error}"
                    if state != DONE:
                        source = None  # a channel, or more, may be closed
                        self.failures.append(f"queue '{queue.name}' in vhost '{vhost}': {state}")
                yield row_of(queue, counts, state)

    def _move_queue(self, source: Source, queue: QueuePlan, setting: Setting) -> tuple[Counts, str]:
        self._progress.begin(f"queue '{queue.name}' in vhost '{queue.vhost}'")
        where = f"amqp://{self._address.host}:{self._address.port}"
        target = Target(self._api, where, queue.vhost, queue.name, self._progress.say)
        move: Move
        if queue.type == "stream":
            move = StreamMove(source, target, queue.name, setting)
        else:
            move = QueueMove(
                source,
                target,
                queue.name,
                setting,
                by_get=queue.by_get,
                shared=queue.shared,
                in_order=queue.in_order,
            )
        try:
            move.run()
        except Interrupted:
            self.interrupted = True
            return move.counts, "interrupted: to be gone on with"
        except (InUse, Rejected) as error:
            return move.counts, str(error)
        except LinkFailed as error:
            return move.counts, f"RabbitMQ: {error}"
        except ApiError as error:
            return move.counts, f"qlog: {error.reason}"
        except Unreachable as error:
            return move.counts, f"qlog does not answer: {error}"
        return move.counts, DONE


def row_of(queue: QueuePlan, counts: Counts, state: str) -> dict[str, Any]:
    """A row of the table at the end."""
    return {
        "vhost": queue.vhost,
        "queue": queue.name,
        "type": queue.type,
        "moved": counts.moved,
        "seen": counts.seen,
        "twice": counts.twice,
        "state": state,
    }


def planned(plan: Plan) -> Rows:
    """What would be done."""
    return Rows(
        PLANNED,
        [
            {
                "vhost": queue.vhost,
                "queue": queue.name,
                "type": queue.type,
                "messages": queue.messages,
                "state": queue.how if queue.movable else f"does not move: {queue.how}",
            }
            for queue in plan.queues
        ],
    )


def counted(document: Mapping[str, Any]) -> str:
    """How many of what definitions have."""
    sections = ("vhosts", "users", "policies", "exchanges", "queues", "bindings")
    counts = {name: len(document.get(name) or ()) for name in sections}
    return ", ".join(
        f"{n} {SINGULAR.get(name, name[:-1]) if n == 1 else name}" for name, n in counts.items()
    )
