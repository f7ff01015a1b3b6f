"""What the composition root needs of this package, in one import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from socket import socket
from ssl import SSLContext
from typing import Protocol

import trio

from qlog.server.broker.operations import Operations
from qlog.server.http.access import Identity
from qlog.server.http.context import Certificate, Context, Listener
from qlog.server.http.management import management, metrics
from qlog.server.http.serve import Served, serve

__all__ = ["Certificate", "Context", "Identity", "Listener", "run"]


class Sockets(Protocol):
    """Bound sockets, by what they serve."""

    @property
    def management(self) -> Sequence[socket]: ...

    @property
    def management_tls(self) -> Sequence[socket]: ...

    @property
    def metrics(self) -> Sequence[socket]: ...

    @property
    def owner(self) -> socket | None: ...


async def run(
    operations: Operations,
    context: Context,
    wake: Callable[[], None],
    sockets: Sockets,
    tls: Callable[[], SSLContext] | None = None,
) -> None:
    """Serve until cancelled.

    `wake` has the broker's loop look at what was changed; `tls` gives the context for the next
    connection with TLS.
    """
    operations.sampler.start()
    wake()
    api = management(operations, context, wake)
    served = [Served(listener, api) for listener in sockets.management]
    served += [Served(listener, api, tls) for listener in sockets.management_tls]
    if sockets.owner is not None:
        served.append(Served(sockets.owner, management(operations, context, wake, by_owner=True)))
    numbers = metrics(operations, context, wake)
    served += [Served(listener, numbers) for listener in sockets.metrics]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(context.lag.measure)
        await serve(served)
