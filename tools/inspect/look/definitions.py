"""Whether the definitions decode, and name only what there is.

Runs where the catalog is read (see environment.py), which may be in a child process.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from qlog.server.amqp.errors import AMQPError
from qlog.server.broker.definitions import Definitions
from qlog.tools.inspect.look.environment import SoundEntries

T = TypeVar("T")

_BUILT_IN = "amq."  # exchanges of this prefix are in every vhost without a definition


def problems(directory: Path, lock: bool) -> tuple[int, list[str]]:
    """How many entries there are, and what is wrong with them but for their checksums."""
    catalog = SoundEntries(directory, lock)
    try:
        found: list[str] = []
        definitions = Definitions(catalog)
        vhosts = set(_all("vhost", definitions.vhosts(), found))
        exchanges = _all("exchange", definitions.exchanges(), found)
        queues = _all("queue", definitions.queues(), found)
        bindings = _all("binding", definitions.bindings(), found)
        users = _all("user", definitions.users(), found)
        known = {(vhost, "exchange", exchange.name) for vhost, exchange in exchanges}
        known |= {(queue.vhost, "queue", queue.name) for queue in queues}
        for what, vhost in (
            *((f"exchange '{exchange.name}'", vhost) for vhost, exchange in exchanges),
            *((f"queue '{queue.name}'", queue.vhost) for queue in queues),
            *((f"a binding of '{binding.destination}'", vhost) for vhost, binding in bindings),
            *((f"user '{user.name}'", vhost) for user in users for vhost in user.permissions),
        ):
            if vhost not in vhosts:
                found.append(f"{what} is in vhost '{vhost}', which is not defined")
        for vhost, binding in bindings:
            ends = (("exchange", binding.source), (binding.kind, binding.destination))
            for kind, name in ends:
                built_in = kind == "exchange" and (not name or name.startswith(_BUILT_IN))
                if (vhost, kind, name) not in known and not built_in:
                    found.append(
                        f"a binding of '{binding.destination}' to '{binding.source}' in vhost "
                        f"'{vhost}' names the {kind} '{name}', which is not defined"
                    )
        return sum(1 for _ in catalog.rows()), found
    finally:
        catalog.close()


def _all(kind: str, definitions: Iterable[T], found: list[str]) -> list[T]:
    try:
        return list(definitions)
    except (ValueError, TypeError, KeyError, AttributeError, AMQPError) as error:
        found.append(f"a definition of kind '{kind}' does not decode: {error}")
        return []
