"""One request, as a handler sees it: who asks, for what, with which parameters and body."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec
import trio

from qlog.server.broker.operations import Operations, Outcome, VHost
from qlog.server.http.access import Identity
from qlog.server.http.context import Context
from qlog.server.http.long_texts import TooLong, without_long_texts
from qlog.server.http.query import Query
from qlog.server.http.refusals import Refusal, bad_request, not_found, refusal

T = TypeVar("T")

# Definitions of a large broker are some megabytes, and so are messages. RabbitMQ takes bodies of up
# to 20 MB.
BODY_BYTES_MAX = 20_000_000
# Other documents are small. One of this size is understood in some milliseconds, however it is made.
DOCUMENT_BYTES_MAX = 256 * 1024
# A client that sends its body more slowly than this is cut off.
BODY_S_MAX = 30.0
# A large body waits for a place for so long, less than clients wait for an answer; and then it is
# to come again after RETRY_S, when those that have the places now may be done.
PLACE_S_MAX = 20.0
RETRY_S = 5

Receive = Callable[[], Any]


class Ask:
    """See the head of this file.

    `path` has the parameters of the path, decoded; `query` those behind the question mark, the
    first of each name. `wake` has the loop of the broker look at what was changed.
    """

    def __init__(
        self,
        operations: Operations,
        identity: Identity,
        method: str,
        path: Mapping[str, str],
        query: Query,
        receive: Receive,
        wake: Callable[[], None],
        headers: Mapping[str, str],
        context: Context,
    ) -> None:
        self.operations = operations
        self.identity = identity
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.context = context
        self.wake = wake
        self._receive = receive
        self._large = False  # it is one of the few that may have a large body

    # -- what it is about --------------------------------------------------------------------

    def vhost(self) -> VHost:
        """The vhost of the path. Raises 404."""
        for vhost in self.operations.vhosts():
            if vhost.name == self.path["vhost"]:
                return vhost
        raise not_found()

    def vhosts(self) -> Iterator[VHost]:
        """The vhost of the path if it names one, else all that the user may see. Raises 404."""
        if "vhost" in self.path:
            yield self.vhost()
            return
        for vhost in self.operations.vhosts():
            if self.identity.sees(vhost.name):
                yield vhost

    def every(self, name: str) -> list[str]:
        """All values of a parameter of the query."""
        return self.query.every(name)

    def flag(self, name: str) -> bool:
        """Whether a parameter of the query says true."""
        return self.query.get(name) == "true"

    # -- its body ----------------------------------------------------------------------------

    async def body(self, bytes_max: int = BODY_BYTES_MAX) -> bytes:
        """The body, whatever its content type.

        Raises 400 (too large), 408 (too slow), 503 (no place for a large one).
        """
        parts: list[bytes] = []
        size = 0
        crowded = False
        # A larger body than is usual may take accordingly longer.
        with trio.move_on_after(BODY_S_MAX * max(1, bytes_max / BODY_BYTES_MAX)) as scope:
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise refusal(400, "bad_request", "the client has gone")
                part = message.get("body", b"")
                size += len(part)
                if size > bytes_max:
                    raise _too_large(bytes_max)
                if not crowded:
                    parts.append(part)
                if size > DOCUMENT_BYTES_MAX and not (self._large or crowded):
                    begun_s = trio.current_time()
                    deadline_s, scope.deadline = scope.deadline, math.inf
                    await self._take_place()
                    scope.deadline = deadline_s + trio.current_time() - begun_s
                    if not self._large:
                        # Many a client sends everything before it reads the answer: read it all.
                        crowded = True
                        parts.clear()
                if not message.get("more_body"):
                    break
        if crowded:
            raise _crowded()
        if scope.cancelled_caught:
            raise refusal(408, "request_timeout", "the body came too slowly")
        return b"".join(parts)

    async def _take_place(self) -> None:
        """Wait until there is a place for a large body, but not for ever."""
        with trio.move_on_after(PLACE_S_MAX):
            await self.context.large_bodies.acquire()
            self._large = True

    def done(self) -> None:
        """It is answered: somebody else may send a large body."""
        if self._large:
            self._large = False
            self.context.large_bodies.release()

    async def document(self) -> dict[str, Any]:
        """The body as a JSON object; an empty one is one without keys. Raises 400."""
        body = await self.body(DOCUMENT_BYTES_MAX)
        return decoded(body) if body.strip() else {}

    async def wide_document(self, wide: str) -> dict[str, Any]:
        """The same where the value of the key `wide` may be a LongText. Raises 400."""
        body = await self.body()
        if not body or body.isspace():
            return {}
        try:
            rest, texts = await without_long_texts(body)
        except ValueError:
            raise bad_request("not_json") from None
        except TooLong:
            raise _too_large(DOCUMENT_BYTES_MAX) from None
        found = decoded(rest)
        value = found.get(wide)
        if isinstance(value, str) and value in texts:
            found[wide] = texts.pop(value)
        if texts:  # one is elsewhere
            raise _too_large(DOCUMENT_BYTES_MAX)
        return found

    async def settled(self, outcome: Outcome[T]) -> T:
        """What an operation comes to. Raises its error."""
        return await settled(outcome, self.wake)


def decoded(body: bytes) -> dict[str, Any]:
    """The object of a JSON document. Raises 400."""
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise bad_request("not_json") from None


def _crowded() -> Refusal:
    return Refusal(
        503,
        {"error": "busy", "reason": "too many large requests are under way: try again"},
        {"retry-after": str(RETRY_S)},
    )


def _too_large(bytes_max: int) -> Refusal:
    return refusal(400, "payload_too_large", f"Maximum request body size is {bytes_max}")


async def settled(outcome: Outcome[T], wake: Callable[[], None]) -> T:
    """What an operation comes to. Raises its error. `wake` has the broker's loop go on with it."""
    wake()
    if not outcome.done:
        known = trio.Event()
        outcome.then(lambda _: known.set())
        await known.wait()
    return outcome.result()


def required(document: Mapping[str, Any], *keys: str) -> list[Any]:
    """The values of these keys. Raises 400, which names those that are missing."""
    missing = [f"{{key_missing,{key}}}" for key in keys if key not in document]
    if missing:
        raise bad_request(f"[{','.join(missing)}]")
    return [document[key] for key in keys]
