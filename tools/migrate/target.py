"""qlog, as a migration fills it: one queue, over qlog's API."""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

from qlog.tools.ctl.api import Api, ApiError
from qlog.tools.migrate.source import Arrived

_LENGTHS = struct.Struct(">IQ")  # as server/http/endpoints/adoption.py has them
# While publishers are blocked (memory or disk is short), qlog is asked again after this.
BLOCKED_S = 1.0
# What the API answers then, and while too many others send it as much.
_LATER = ("blocked", "busy")
OPEN, ACKING = "open", "acking"


def until_taken(ask: Callable[[], Any], say: Callable[[str], None]) -> Any:
    """What the API answers, when it can: while it takes nothing, it is asked again, which is said.

    Raises ApiError and Unreachable.
    """
    waited = False
    while True:
        try:
            return ask()
        except ApiError as error:
            document: Any = error.document
            if not isinstance(document, dict) or document.get("error") not in _LATER:
                raise
            if not waited:
                waited = True
                say(f"waiting for qlog, which takes nothing now: {error.reason}")
            time.sleep(BLOCKED_S)  # nothing was taken


@dataclass(slots=True)
class State:
    """The state of a move; see the head of the package.

    `run` and `window` make the mark; `prefetch` bounds the window. `fresh`: when the window opened,
    or at its end, nothing behind it had been delivered before. `ready`: so many messages RabbitMQ
    had when the window opened. `suspects`: so many of the redelivered messages from the window on,
    and (`suspects_after`) behind it, may be in qlog, and nobody can tell. `offset`: of a stream, all
    before it has moved. `started_s`: about when RabbitMQ was started, in seconds since 1970.
    """

    run: str
    window: int = 0
    phase: str = OPEN
    fresh: bool = False
    prefetch: int = 0
    ends: str = ""
    ready: int = 0
    suspects: int = 0
    suspects_after: int = 0
    offset: int = 0
    started_s: int = 0

    def open_next(self, ends: str) -> None:
        """The window is done: open the next one, before which the queue ends there."""
        self.window += 1
        self.phase, self.ends = OPEN, ends

    @property
    def mark(self) -> str:
        """What the messages of the window are stored with."""
        return f"{self.run}-{self.window}"


class Target:
    """One queue of qlog. All methods raise ApiError and Unreachable.

    `source` names the RabbitMQ: a queue may get the messages of several. `say` tells the user.
    """

    def __init__(
        self, api: Api, source: str, vhost: str, queue: str, say: Callable[[str], None]
    ) -> None:
        self._api = api
        self._say = say
        self._path = ("qlog", "queues", vhost, queue, "adopted")
        name = f"qlog.migration {source}/{quote(vhost, safe='')}/{quote(queue, safe='')}"
        self._parameter = ("global-parameters", name)

    def state(self) -> State | None:
        """What an earlier migration has left."""
        try:
            value = self._api.ask("GET", self._parameter)["value"]
        except ApiError as error:
            if error.status != 404:
                raise
            return None
        return State(**value)

    def keep(self, state: State) -> None:
        """Keep the state; it is on the disk when this returns."""
        body = {"name": self._parameter[1], "value": asdict(state)}
        self._api.ask("PUT", self._parameter, body=body)

    def forget(self) -> None:
        """The move is done."""
        self._api.ask("DELETE", self._parameter)

    def ends(self, mark: str) -> str:
        """Where the queue ends now."""
        ends: str = self._api.send("POST", self._path, b"", query={"mark": mark})["ends"]
        return ends

    def adopt(self, mark: str, messages: Sequence[Arrived]) -> tuple[list[int], str]:
        """Put messages into the queue; they are on the disk when this returns.

        Returns the indices of those that the queue rejected, and where it ends then.
        """
        parts: list[bytes] = []
        for one in messages:
            head = one.head
            parts += (_LENGTHS.pack(len(head), len(one.body)), head, one.body)
        content = b"".join(parts)
        answer = until_taken(
            lambda: self._api.send("POST", self._path, content, query={"mark": mark}), self._say
        )
        return answer["rejected"], answer["ends"]

    def found(self, state: State) -> Counter[str]:
        """The digests of what the queue has of the window; it is on the disk."""
        digests: Counter[str] = Counter()
        start: str | None = state.ends
        while start is not None:
            query = {"mark": state.mark, "from": start}
            answer = self._api.ask("GET", self._path, query=query)
            digests.update(answer["digests"])
            start = answer["next"]
        return digests

    def came_since(self, state: State) -> int:
        """How many messages have come to the queue since the window began."""
        before = _numbers(state.ends)
        now = _numbers(self.ends(state.mark))
        return sum(qseq - before.get(lane, 0) for lane, qseq in now.items())


def _numbers(ends: str) -> dict[str, int]:
    """The ends of lanes by their names."""
    pairs = (words.split("-") for words in ends.split(",") if words)
    return {lane: int(qseq) for lane, qseq in pairs}
