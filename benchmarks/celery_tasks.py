"""Messages as Celery 5 sends them: the properties and the body of one task.

The layout is that of a message that Celery 5.7 sent with py-amqp 5.4 (its octets are in
tests/benchmarks/test_celery_tasks.py): a headers table of nineteen entries, among them nothing
(V), an array and a nested table, and the properties reply_to and correlation_id.
"""

from __future__ import annotations

import json
import random
import struct
import uuid
from dataclasses import dataclass

from benchmarks import wire

# content_type, content_encoding, headers, delivery_mode, priority, correlation_id, reply_to
PROPERTY_FLAGS = 0xFE00
PERSISTENT = 2
# One sender: its name and the queue where it waits for results are the same in all its messages.
ORIGIN = "gen27082@vm"
REPLY_TO = "9c03677a-4389-3c98-9115-6cd879632d95"
NAMES = ("shop.send_invoice", "shop.resize_image", "reports.nightly", "mail.deliver")
# One task of so many is a member of a group that another task started.
GROUPED_EVERY = 8


@dataclass(frozen=True, slots=True)
class Task:
    """One task that is sent.

    Attributes:
        id: a UUID, as text.
        name: the function's.
        args: its positional arguments.
        kwargs: its keyword arguments.
        group: the group's UUID and the task's place in it.
        parent: the UUID of the task that sent it, also the first of its chain.
    """

    id: str
    name: str
    args: tuple[int | str, ...]
    kwargs: dict[str, str]
    group: tuple[str, int] | None = None
    parent: str | None = None

    def properties(self) -> bytes:
        """Flags and values, as the header frame holds them."""
        group, group_index = self.group or (None, None)
        headers: dict[str, wire.Value] = {
            "lang": "py",
            "task": self.name,
            "id": self.id,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": group,
            "group_index": group_index,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": self.parent or self.id,
            "parent_id": self.parent,
            "argsrepr": repr(self.args),
            "kwargsrepr": repr(self.kwargs),
            "origin": ORIGIN,
            "ignore_result": False,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
        }
        return b"".join(
            (
                struct.pack(">H", PROPERTY_FLAGS),
                wire.shortstr("application/json"),
                wire.shortstr("utf-8"),
                wire.table(headers),
                bytes([PERSISTENT, 0]),
                wire.shortstr(self.id),
                wire.shortstr(REPLY_TO),
            )
        )

    def body(self) -> bytes:
        """Arguments and what is to follow the task, as JSON."""
        follow = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
        return json.dumps([self.args, self.kwargs, follow]).encode()


def task(number: int, body_bytes: int, chance: random.Random) -> Task:
    """A task of its own: ids, a name, arguments; bodies are of `body_bytes` on average."""

    def new_id() -> str:
        return str(uuid.UUID(int=chance.getrandbits(128), version=4))

    grouped = number % GROUPED_EVERY == 0
    bare = Task(
        new_id(),
        NAMES[number % len(NAMES)],
        (chance.randrange(1_000_000), f"customer-{chance.randrange(1000)}"),
        {"note": ""},
        (new_id(), chance.randrange(100)) if grouped else None,
        new_id() if grouped else None,
    )
    note_bytes = chance.randrange(2 * max(1, body_bytes - len(bare.body())) + 1)
    words = "".join(chance.choices("abcdefghijklmnop ", k=note_bytes))
    return Task(bare.id, bare.name, bare.args, {"note": words}, bare.group, bare.parent)
