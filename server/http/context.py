"""What the API tells that is not the broker's: the process, its listeners, who may come in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from qlog.server.http.access import Identity

Login = Callable[[str, bytes, str], Awaitable[Identity | None]]


@dataclass(frozen=True, slots=True)
class Listener:
    """An address that the broker listens on. `path` is below what it serves, for HTTP."""

    protocol: str  # amqp, amqp/ssl, http, http/prometheus
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Context:
    """See the head of this file. `login` says who somebody is, None for nobody.

    `resources` are memory and disk, in octets, and file descriptors: `memory_used`, `memory_limit`,
    `disk_free`, `disk_free_limit`, `descriptors_used`, `descriptors_max`.
    """

    login: Login
    listeners: Callable[[], list[Listener]]
    resources: Callable[[], Mapping[str, int]]
    uptime_s: Callable[[], float]
    data_dir: str
