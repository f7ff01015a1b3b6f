"""`qlog inspect import`: publish an exported file into a running broker, with publisher confirms.

Each message goes to the queues that it waited in, by the default exchange. Body and properties are
what they were; exchange, routing key and time are those of the import. The import ends at the
first message that is refused, and at Ctrl-C. Then it waits until the broker has answered for
everything that was sent, and says how many messages are confirmed, so that another import can go
on from there.
"""

import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from io import BufferedReader
from pathlib import Path
from typing import Annotated

import typer

from qlog.tools.inspect.command import AsJson, finish, stop
from qlog.tools.inspect.rows import Report, counted, printable, progress
from qlog.tools.transfer.exported import Malformed, Message, read_messages
from qlog.tools.transfer.interrupt import patiently
from qlog.tools.transfer.link import Address, LinkFailed
from qlog.tools.transfer.publisher import Publisher, PublishFailed


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `qlog inspect export` wrote.")],
    url: Annotated[
        str, typer.Option(metavar="URL", help="The broker; a vhost in it stands for all others.")
    ] = "amqp://guest:guest@localhost:5672",
    queue: Annotated[
        str | None, typer.Option(metavar="NAME", help="Publish all of them to this queue.")
    ] = None,
    skip: Annotated[
        int, typer.Option(metavar="N", min=0, help="Leave out the first N messages of the file.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Publish exported messages into a running broker.

    To the queues that they were in, which must exist. Needs the right to write to the default exchange.
    """
    try:
        address = Address.parse(url)
    except ValueError as error:
        stop(str(error))
    importing = _Import(address, queue, skip)
    failure = None
    status = 0
    try:
        with file.open("rb") as stream, progress("importing", file.stat().st_size) as advance:
            importing.run(stream, advance)
    except OSError as error:
        stop(f"{file} cannot be read: {error.strerror}")
    except (LinkFailed, Malformed) as error:
        failure = str(error)
        status = 1
    except KeyboardInterrupt:
        failure = "interrupted"
        status = 128 + signal.SIGINT
    if failure is None and importing.begun < skip:
        stop(f"{file} has {counted(importing.begun, 'message')} only: --skip {skip} is too many")
    if failure is not None and not as_json:
        print(f"qlog: {printable(failure)}", file=sys.stderr)
        if importing.begun > skip:
            print(f"qlog: {_where_to_go_on(file, importing)}", file=sys.stderr)
        raise typer.Exit(status)
    confirmed = max(importing.confirmed, skip)
    report = Report("import")
    report.content = {
        "file": str(file),
        "messages": confirmed - skip,
        "failure": failure,
        "next_skip": confirmed,
        "sent_behind": max(importing.begun - confirmed, 0),
    }
    report.summary = f"{counted(confirmed - skip, 'message')} published and confirmed"
    finish(report, as_json=as_json)
    raise typer.Exit(status)


def _say(text: str) -> None:
    print(f"qlog: {printable(text)}", file=sys.stderr, flush=True)


def _where_to_go_on(file: Path, importing: "_Import") -> str:
    confirmed, begun = importing.confirmed, importing.begun
    text = f"the first {counted(confirmed, 'message')} of {file} are confirmed; go on with --skip "
    if begun == confirmed:
        return f"{text}{confirmed}"
    behind = f"{confirmed + 1:,} to {begun:,}" if begun > confirmed + 1 else f"{begun:,}"
    return f"{text}{confirmed}, which sends {behind} again: the broker may have taken some of that"


class _Import:
    """The messages of a file, on their way to one connection a vhost."""

    def __init__(self, address: Address, queue: str | None, skip: int) -> None:
        self._address = address
        self._queue = queue
        self._skip = skip
        self._publishers: dict[str, Publisher] = {}
        self._sent = 0  # so many messages, the first ones, were sent whole or left out
        self.begun = 0  # and so many were begun

    @property
    def confirmed(self) -> int:
        """So many of the first messages are confirmed, with all their copies."""
        open_ = [publisher.open_from for publisher in self._publishers.values()]
        return min([self._sent, *(number - 1 for number in open_ if number is not None)])

    def run(self, stream: BufferedReader, advance: Callable[[int], None]) -> None:
        """Raises LinkFailed, Malformed, OSError, KeyboardInterrupt."""
        with ExitStack() as connections, patiently() as interrupted:
            try:
                self._send(stream, advance, connections, interrupted)
            except BaseException:
                for publisher in self._publishers.values():
                    with suppress(LinkFailed):  # the first reason is the one to tell
                        publisher.wait()
                raise
            for publisher in self._publishers.values():
                publisher.wait()

    def _send(
        self,
        stream: BufferedReader,
        advance: Callable[[int], None],
        connections: ExitStack,
        interrupted: Callable[[], bool],
    ) -> None:
        before = 0
        for number, (position, message) in enumerate(read_messages(stream), 1):
            if interrupted():
                raise KeyboardInterrupt
            advance(position - before)
            before = position
            targets: list[tuple[Publisher, str]] = []
            try:
                for vhost, queue in self._queues_of(message) if number > self._skip else ():
                    targets.append((self._publisher(vhost, connections), queue))
                    targets[-1][0].find(queue)
            except LinkFailed as error:
                raise PublishFailed(f"message {number}: {error}") from error
            self.begun = number
            for publisher, queue in targets:
                publisher.publish(queue, message.envelope, message.body, number)
            self._sent = number

    def _queues_of(self, message: Message) -> list[tuple[str, str]]:
        vhost = self._address.vhost
        if self._queue is not None:
            return [(vhost if vhost is not None else "/", self._queue)]
        if not message.queues:
            raise PublishFailed(
                "it has no queue, since its definition was lost; give one with --queue"
            )
        return [(own if vhost is None else vhost, queue) for own, queue in message.queues]

    def _publisher(self, vhost: str, connections: ExitStack) -> Publisher:
        if vhost not in self._publishers:
            publisher = Publisher(self._address, vhost, _say)
            self._publishers[vhost] = connections.enter_context(publisher)
        return self._publishers[vhost]
