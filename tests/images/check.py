"""Start a broker on an image, without a network, and see what it has.

    python -m tests.images.check DIR

It promises: the recovery is the real one, the definitions are read by the real broker, and every
message is read from where a consumer would get it. What it should have is not known here.
"""

from __future__ import annotations

import sys
from pathlib import Path

from qlog.server.amqp.envelope import Envelope
from qlog.server.broker.broker import Broker
from qlog.server.config import Settings
from qlog.storage.lanes.lane import Lane
from qlog.storage.store import Store
from tests.images.books import Found
from tests.images.load import FANOUT
from tests.images.serve import SMALL

_READ_COUNT = 100
_READ_BYTES = 1 << 20


def open_image(directory: Path) -> Found:
    """What is there after a start; the broker is stopped again in good order.

    Raises whatever keeps it from starting.
    """
    store: Store[Envelope] = Store.open(
        directory, decode=Envelope.unpack, notify=lambda: None, settings=SMALL
    )
    try:
        settings = Settings(data_dir=directory)
        broker = Broker(store, settings.broker)
        vhost = broker.vhosts[settings.broker.default_vhost]
        queues = {name: _messages(queue.lane) for name, queue in vhost.queues.items()}
        bound: set[str] = set()
        if vhost.routing.exchange(FANOUT) is not None:
            probe = Envelope.pack(FANOUT, "", b"\0\0", 0)
            targets, _ = vhost.route(FANOUT, [""], probe)
            bound = {queue.name for queue in targets.queues}
    finally:
        store.close()
    assert store.failure is None, store.failure
    return Found(queues, bound)


def _messages(lane: Lane[Envelope]) -> list[tuple[str, bytes]]:
    """Message id and body of all that is not settled, in order."""
    found: list[tuple[str, bytes]] = []
    qseq = 0
    while (part := lane.read(qseq, _READ_COUNT, _READ_BYTES)) is not None:
        for envelope, body in zip(part.metas, part.bodies, strict=True):
            found.append((envelope.decoded_properties().message_id or "", body))
        qseq = part.first_qseq + len(part.bodies)
    return found


if __name__ == "__main__":
    open_image(Path(sys.argv[1]))
