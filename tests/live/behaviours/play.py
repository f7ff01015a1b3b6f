"""Plays a case: a tiny conversation, written down as lines that do not depend on names or timing.

It promises: names that a case makes up stand in braces, both in what is sent and in the lines; each
line is one method of the broker, with all that it says; what was declared is deleted. A case ends
with the first close that the broker sends. It does not know what a right answer is.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from pamqp import base, commands
from pamqp.commands import Basic, Channel, Connection, Exchange, Queue

from tests.live.conversation import (
    Client,
    Closed,
    Message,
    Silence,
    encode_content,
    unchecked,
    unique,
    until,
)

_NAME = re.compile(r"\{([\w.:]+)\}")
_MADE_UP = re.compile(r"amq\.(gen|ctag)-[\w-]+|amq\.rabbitmq\.reply-to\.[^ '\"]+")
_REPLY_S = 8.0


@dataclass(frozen=True)
class Send:
    """A method, or a publish with its content; its answer is read if it has one."""

    method: str
    fields: dict[str, Any]
    body: bytes | None = None
    properties: dict[str, Any] | None = None


@dataclass(frozen=True)
class Wait:
    """Read so many more methods."""

    count: int


@dataclass(frozen=True)
class Sync:
    """All that the channel has said so far: a round trip."""


@dataclass(frozen=True)
class On:
    """Go on with another channel of the case, or (0 to 9) on the other connection (10 to 19)."""

    channel: int


@dataclass(frozen=True)
class GetSoon:
    """basic.get until there is a message."""

    queue: str


Step = Send | Wait | Sync | On | GetSoon


class Stage:
    """Two connections to a broker, on which cases are played one after the other."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._clients: dict[int, Client] = {}
        self._next_channel = {0: 0, 1: 0}
        self._janitor: Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for client in (*self._clients.values(), self._janitor):
            if client is not None:
                with contextlib.suppress(Closed, Silence, AssertionError, OSError):
                    client.close()
                client.abort()

    def play(self, steps: Sequence[Step]) -> list[str]:
        """The lines of one case."""
        scene = _Scene(self)
        try:
            for step in steps:
                if not scene.take(step):
                    break
        finally:
            scene.leave()
            self._clean(scene)
        return scene.lines

    def channel(self, connection: int) -> tuple[Client, int]:
        """A new channel on one of the connections."""
        client = self._clients.get(connection)
        if client is None or client.closed or self._next_channel[connection] > 2000:
            if client is not None:
                client.abort()
            client = self._clients[connection] = Client(self._url, deadline_s=_REPLY_S)
            self._next_channel[connection] = 0
        self._next_channel[connection] += 1
        number = self._next_channel[connection]
        client.call(number, Channel.Open())
        return client, number

    def _clean(self, scene: _Scene) -> None:
        janitor = self._janitor
        if janitor is None:
            janitor = self._janitor = Client(self._url, deadline_s=_REPLY_S)
            janitor.call(1, Channel.Open())
        for queue in (name for name, lasts in scene.queues.items() if lasts):
            janitor.call(1, unchecked(Queue.Delete, queue=queue))
        for exchange in scene.exchanges:
            janitor.call(1, unchecked(Exchange.Delete, exchange=exchange))


class _Scene:
    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._channels: dict[int, tuple[Client, int]] = {}
        self._names: dict[str, str] = {}
        self._at = 0
        self.lines: list[str] = []
        self.queues: dict[str, bool] = {}  # whether it is to be deleted
        self.exchanges: list[str] = []

    # -- names

    def _named(self, value: Any) -> Any:
        if isinstance(value, str):
            return _NAME.sub(lambda match: self._name(match[1]), value)
        if isinstance(value, dict):
            return {self._named(key): self._named(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._named(item) for item in value]
        return value

    def _name(self, word: str) -> str:
        return self._names.setdefault(word, unique(word))

    def _plain(self, text: str) -> str:
        for word, name in self._names.items():
            text = text.replace(name, "{" + word + "}")
        return _MADE_UP.sub(lambda match: f"amq.{match[1] or 'reply'}-…", text)

    # -- steps

    def _here(self) -> tuple[Client, int]:
        here = self._channels.get(self._at)
        if here is None:
            here = self._channels[self._at] = self._stage.channel(self._at // 10)
        return here

    def take(self, step: Step) -> bool:
        """Take a step; False: the case is over."""
        match step:
            case On(channel):
                self._at = channel
                return True
            case Wait(count):
                return all(self._read() for _ in range(count))
            case Sync():
                client, number = self._here()
                client.send(number, Channel.Flow(active=True))
                return self._read_until(("Channel.FlowOk",), silent=True)
            case GetSoon(queue):
                return self._get_soon(self._named(queue))
            case Send():
                return self._send(step)

    def _send(self, step: Send) -> bool:
        client, number = self._here()
        class_name, method_name = step.method.split(".")
        kind: Any = getattr(getattr(commands, class_name), method_name)
        fields = self._named(step.fields)
        method = unchecked(kind, **fields)
        if step.method == "Queue.Declare" and "{" in step.fields.get("queue", ""):
            # An exclusive queue goes with its connection.
            self.queues.setdefault(fields["queue"], not fields.get("exclusive"))
        if step.method == "Exchange.Declare" and "{" in step.fields.get("exchange", ""):
            self.exchanges.append(fields["exchange"])
        values = [method]
        if step.body is not None:
            properties = Basic.Properties()
            for name, value in (step.properties or {}).items():
                setattr(properties, name, self._named(value))
            values.append(encode_content(number, step.body, properties))
        client.send(number, *values)
        if not method.synchronous or fields.get("nowait"):
            return True
        replies = tuple(reply.replace("OK", "Ok") for reply in method.valid_responses)
        return self._read_until(replies)

    def _get_soon(self, queue: str) -> bool:
        client, number = self._here()

        def get() -> Any:
            value = client.call(number, unchecked(Basic.Get, queue=queue, no_ack=True))
            return value if isinstance(value, Message) else None

        line = self._line(until(get, f"a message in {queue}"))
        # How many are there by now is chance.
        self.lines.append(re.sub(r" message_count=\d+", "", line))
        return True

    def _read_until(self, names: Sequence[str], *, silent: bool = False) -> bool:
        while True:
            value = self._next()
            method = value.method if isinstance(value, Message) else value
            done = method.name.replace("OK", "Ok") in names
            if not (done and silent):
                self.lines.append(self._line(value))
            if isinstance(method, (Channel.Close, Connection.Close)):
                return self._closed(method)
            if done:
                return True

    def _read(self) -> bool:
        value = self._next()
        self.lines.append(self._line(value))
        if isinstance(value, (Channel.Close, Connection.Close)):
            return self._closed(value)
        return True

    def _next(self) -> Any:
        client, number = self._here()
        return client.next(number)

    def _closed(self, method: Any) -> bool:
        client, number = self._here()
        if isinstance(method, Connection.Close):
            with contextlib.suppress(Closed):
                client.send(0, Connection.CloseOk())
            client.closed = True
        else:
            client.send(number, Channel.CloseOk())
        del self._channels[self._at]
        return False

    def leave(self) -> None:
        """Close the channels that are open."""
        for client, number in self._channels.values():
            if client.closed:
                continue
            client.send(number, Channel.Close(200, "OK", 0, 0))
            while not isinstance(client.next(number), Channel.CloseOk):
                pass

    # -- lines

    def _line(self, value: Any) -> str:
        if isinstance(value, Message):
            text = f"{self._line(value.method)} {value.body!r}"
            properties = {
                name: item for name, item in value.properties if item not in (None, "", {})
            }
            return self._plain(f"{text} {_stable(properties)}")
        assert isinstance(value, base.Frame)
        fields = {name: item for name, item in value if name not in ("cluster_id",)}
        text = " ".join(f"{name}={_stable(item)}" for name, item in fields.items())
        return self._plain(f"{value.name} {text}".strip())


def _stable(value: Any) -> str:
    """A value as text: headers by name, and no times."""
    if isinstance(value, dict):
        items = sorted(value.items())
        return "{" + ", ".join(f"{k}: {_stable(v)}" for k, v in items if k != "time") + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_stable, value)) + "]"
    return repr(value)
