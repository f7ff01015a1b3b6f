"""What the API tells that is not the broker's: the process, its listeners, who may come in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakValueDictionary

import trio

from qlog.server.broker.operations import Operations, Outcome, VHost
from qlog.server.http.lag import Lag

# Each may have 20 MB in memory (in a migration as much as a message), and the same again while it is
# understood. The others wait.
LARGE_BODIES_MAX = 4


class Node(Protocol):
    """What an operator may do to the process; see server/control.py."""

    @property
    def running(self) -> bool: ...

    @property
    def listening(self) -> bool: ...

    def suspend(self) -> None: ...

    def resume(self) -> None: ...

    async def stop_app(self) -> None: ...

    def start_app(self) -> None: ...

    def stop(self) -> None: ...

    def alarms(self) -> list[str]: ...

    def set_alarm(self, resource: str, on: bool) -> None: ...

    def set_memory_limit(self, *, fraction: float | None = None, octets: int = 0) -> None: ...

    def set_disk_limit(self, *, fraction: float | None = None, octets: int = 0) -> None: ...

    def set_log_level(self, level: str) -> None: ...

    def environment(self) -> Mapping[str, Any]: ...

    def set_passing(self, name: str, value: Any) -> None: ...

    async def reset(self) -> None: ...

    def collect_garbage(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Listener:
    """An address that the broker listens on. `path` is below what it serves, for HTTP."""

    protocol: str  # amqp, amqp/ssl, http, http/prometheus
    host: str
    port: int


class DefinitionsFile(Protocol):
    """The broker, as far as it reads and writes RabbitMQ's definitions."""

    def export_definitions(self, vhost: VHost | None = None) -> Outcome[dict[str, Any]]:
        """All definitions, or those of a vhost."""

    def check_definitions(self, document: dict[str, Any]) -> Outcome[list[str]]:
        """What would be left out, in words; fails with an error if they cannot be loaded."""

    def load_definitions(self, document: dict[str, Any], asked: Operations) -> Outcome[None]:
        """Load what was checked; `asked` are the operations of who asks."""


@dataclass(slots=True)
class Attempts:
    """Logins over HTTP."""

    succeeded: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that TLS shows: its file, and when it ends (seconds since 1970)."""

    path: str
    ends_s: float


@dataclass(frozen=True, slots=True)
class Context:
    """See the head of this file. `is_loopback` says whether an address is this machine's alone.

    `resources` are memory and disk, in octets, and file descriptors: `memory_used`, `memory_limit`,
    `disk_free`, `disk_free_limit`, `descriptors_used`, `descriptors_max`. `node`: None where the
    process is somebody else's. `large_bodies`: so many requests with a large body at a time.
    `log_file`: where the log goes.
    """

    is_loopback: Callable[[str], bool]
    listeners: Callable[[], list[Listener]]
    resources: Callable[[], Mapping[str, int]]
    uptime_s: Callable[[], float]
    data_dir: str
    certificates: Callable[[], list[Certificate]] = list
    definitions: DefinitionsFile | None = None
    attempts: Attempts = field(default_factory=Attempts)
    lag: Lag = field(default_factory=Lag)
    node: Node | None = None
    large_bodies: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(LARGE_BODIES_MAX))
    log_file: str = "<stderr>"
    # By vhost and queue: one at a time brings messages of another broker.
    adoptions: WeakValueDictionary[tuple[str, str], trio.Lock] = field(
        default_factory=WeakValueDictionary
    )
