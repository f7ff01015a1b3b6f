"""A full disk: publishers are blocked, acks go on and last, and all continues by itself."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pamqp.commands import Basic, Channel, Connection, Queue, Tx

from tests.crash.small_disk import SmallDisk
from tests.live.conversation import Client, Message, Silence, Talk, until
from tests.live.server import BrokerProcess

QUEUE = "full"
SEGMENT_BYTES = 2 << 20
DISK_BYTES = 48 << 20
BODY_BYTES = 100_000
SETTINGS = {
    "QLOG_SEGMENT_BYTES_MAX": str(SEGMENT_BYTES),
    "QLOG_LEDGER_BYTES_MAX": str(64 << 10),
    "QLOG_DISK_FREE_LIMIT_BYTES": "0",  # so that it is the writes that find out
    "QLOG_CHECKPOINT_INTERVAL_S": "0.1",
}
# Longer than an ack takes to the ledger, however busy the machine.
ACKS_LAST_S = 0.5
PATIENCE_S = 20.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path / "disk", DISK_BYTES) as disk:
        yield disk


@pytest.fixture
def broker(disk: SmallDisk) -> Iterator[BrokerProcess]:
    """A broker on the small disk."""
    broker = BrokerProcess(disk.inside / "data", settings=SETTINGS, launcher=disk.launcher).start()
    yield broker
    if broker.process is not None and broker.process.poll() is None:
        broker.kill()


class Publisher:
    """Messages with numbers, some of them at a time unconfirmed."""

    def __init__(
        self, broker: BrokerProcess, queue: str = QUEUE, body_bytes: int = BODY_BYTES
    ) -> None:
        self.client = Client(broker.url, deadline_s=PATIENCE_S)
        self.talk = self.client.channel()
        self.talk.confirm()
        self.talk.declare(queue, durable=True)
        self.queue = queue
        self.body_bytes = body_bytes
        self.sent = 0
        self.confirmed = 0

    def publish(self, count: int = 1) -> None:
        for _ in range(count):
            self.talk.publish("", self.queue, self.body(self.sent), delivery_mode=2)
            self.sent += 1

    def body(self, number: int) -> bytes:
        return f"{number:08}".encode().ljust(self.body_bytes, b".")

    def take_confirms(self, deadline_s: float) -> bool:
        """Whether one came."""
        try:
            value = self.talk.next(deadline_s)
        except Silence:
            return False
        assert isinstance(value, Basic.Ack), value
        assert value.delivery_tag > self.confirmed
        self.confirmed = value.delivery_tag
        return True

    def publish_until_blocked(self) -> None:
        """Go on while there are confirms; at the end the broker has said that it is blocked."""
        end = time.monotonic() + PATIENCE_S
        while not self.blocked:
            # Without confirms, too, but slowly: only who publishes during the alarm is told of it.
            if self.sent - self.confirmed < 8 or not self.take_confirms(0.1):
                self.publish()
            self.take_confirms(0.0)
            assert time.monotonic() < end, "never blocked"
        assert self.sent > self.confirmed
        assert not self.take_confirms(0.3)

    @property
    def blocked(self) -> bool:
        """What the broker said last."""
        said = [v for v in self.client.inboxes.get(0, ()) if not isinstance(v, Connection.Close)]
        return bool(said) and isinstance(said[-1], Connection.Blocked)

    def wait_for_confirms(self) -> None:
        """All that was sent is confirmed."""
        while self.confirmed < self.sent:
            assert self.take_confirms(PATIENCE_S), f"{self.confirmed} of {self.sent} confirmed"

    def wait_until_unblocked(self) -> None:
        until(lambda: self.take_confirms(0.05) or not self.blocked, "unblocked", PATIENCE_S)


def consumer(broker: BrokerProcess, queue: str = QUEUE, prefetch: int = 20) -> Talk:
    talk = Client(broker.url, deadline_s=PATIENCE_S).channel()
    talk.call(Basic.Qos(prefetch_count=prefetch))
    talk.consume(queue)
    return talk


def number_of(message: Message) -> int:
    return int(message.body[:8])


def take(talk: Talk, count: int) -> list[int]:
    """Take and ack so many; their numbers."""
    numbers = []
    for _ in range(count):
        message = talk.expect(Basic.Deliver)
        numbers.append(number_of(message))
        talk.send(Basic.Ack(message.method.delivery_tag))
    return numbers


def settled(talk: Talk) -> None:
    """The acks so far are read, and have had their time."""
    talk.send(Channel.Flow(active=True))
    meanwhile = []
    while not isinstance(value := talk.next(), Channel.FlowOk):
        meanwhile.append(value)
    talk.client.inboxes[talk.number].extendleft(reversed(meanwhile))
    time.sleep(ACKS_LAST_S)


def test_consumers_drain_a_full_disk_and_all_goes_on(
    broker: BrokerProcess, disk: SmallDisk
) -> None:
    """Messages fill it. A kill and a start on the full disk; then nobody but consumers helps."""
    publisher = Publisher(broker)
    publisher.publish_until_blocked()
    confirmed = publisher.confirmed
    assert confirmed * BODY_BYTES > DISK_BYTES // 3, "that was early"
    talk = consumer(broker)
    assert take(talk, 10) == list(range(10))
    settled(talk)
    assert publisher.confirmed == confirmed
    broker.kill()
    disk.fill()  # also what the broker had reserved for its next segment

    broker.start()
    assert disk.free_bytes < SEGMENT_BYTES
    disk.fill()  # also what the end of the segment before gave back
    again = Publisher(broker, "another")
    again.publish_until_blocked()
    talk = consumer(broker)
    assert take(talk, confirmed - 10) == list(range(10, confirmed))
    again.wait_for_confirms()  # dead segments were given back, and used
    assert disk.free_bytes > SEGMENT_BYTES
    until(lambda: again.take_confirms(0.05) or not again.blocked, "unblocked", PATIENCE_S)
    other = consumer(broker, "another")
    assert take(other, again.sent) == list(range(again.sent))
    settled(other)
    broker.kill()
    broker.start()
    assert Client(broker.url).channel().ready("another") == 0


def test_somebody_else_fills_the_disk(broker: BrokerProcess, disk: SmallDisk) -> None:
    """At any place in a segment; as soon as there is space, what was held is confirmed."""
    generator = random.Random(5)
    publisher = Publisher(broker)
    talk = consumer(broker)
    for _ in range(2):
        publisher.publish(generator.randrange(SEGMENT_BYTES // BODY_BYTES))
        publisher.wait_for_confirms()
        disk.fill()
        publisher.publish_until_blocked()
        disk.relieve()
        publisher.wait_for_confirms()
        publisher.wait_until_unblocked()
    assert take(talk, publisher.sent) == list(range(publisher.sent))


def test_acks_last_on_a_full_disk_however_many(broker: BrokerProcess, disk: SmallDisk) -> None:
    """The ledger rolls several times meanwhile, and the index is brought up to date."""
    count = 4000
    publisher = Publisher(broker, body_bytes=100)
    publisher.publish(count)
    publisher.wait_for_confirms()
    disk.fill()
    ledger = disk.outside / "data" / "ledger"
    first = max(ledger.glob("*.qack")).name
    talk = Client(broker.url, deadline_s=PATIENCE_S).channel()
    talk.call(Tx.Select())
    talk.consume(QUEUE)
    for message in talk.deliveries(count):
        if number_of(message) % 2:
            talk.send(Basic.Ack(message.method.delivery_tag))
            talk.call(Tx.Commit())
    assert int(max(ledger.glob("*.qack")).stem) > int(Path(first).stem)
    broker.kill()
    disk.fill()
    broker.start()
    talk = consumer(broker, prefetch=0)
    assert take(talk, count // 2) == list(range(0, count, 2))
    assert talk.ready(QUEUE) == 0


def test_start_on_a_full_disk_without_what_had_been_reserved(
    broker: BrokerProcess, disk: SmallDisk
) -> None:
    """Somebody copied the directory to a disk that is too small, say: one line, and no harm."""
    publisher = Publisher(broker, body_bytes=1000)
    publisher.publish(100)
    publisher.wait_for_confirms()
    assert broker.terminate()[0] == 0
    data = disk.outside / "data"
    (data / "ledger" / "next.new").unlink()
    disk.fill()
    with pytest.raises(RuntimeError) as failed:
        broker.start()
    assert broker.process is not None and broker.process.returncode == 1
    assert len(broker.lines) == 1 and "No space left on device; make some" in broker.lines[0]
    assert "Traceback" not in str(failed.value)
    disk.relieve()
    broker.start()
    assert take(consumer(broker), 100) == list(range(100))


def test_definitions_on_a_full_disk(broker: BrokerProcess, disk: SmallDisk) -> None:
    """There is room for those, too; what is answered is there after a kill."""
    talk = Client(broker.url).channel()
    for number in range(20):
        talk.declare(f"before.{number}", durable=True)
    disk.fill()
    for number in range(20):
        talk.call(Queue.Delete(queue=f"before.{number}"))
        talk.declare(f"after.{number}", durable=True)
    broker.kill()
    broker.start()
    talk = Client(broker.url).channel()
    for number in range(20):
        talk.call(Queue.Declare(queue=f"after.{number}", passive=True))
    assert talk.refused(Queue.Declare(queue="before.0", passive=True)).code == 404


INDEX_ON_A_FULL_DISK = """
import json, os, sys
from array import array
from pathlib import Path
from qlog.storage.index.index import Index, LaneUpdate, Placed

index = Index(Path(sys.argv[1]), map_bytes=1 << 30, reserve_bytes=1 << 20)

def grow(count):  # pointers to so many messages: 16 bytes each
    global end
    numbers = array("I", range(1, count + 1))
    placed = [Placed(end, 1, numbers, numbers, numbers)]
    update = LaneUpdate(1, end + count, end + count, 0, 0, placed=placed)
    index.apply([update], (), None)
    end += count

end = 0
grow(10)
with open(sys.argv[2], "wb", buffering=0) as ballast:
    try:
        while True:
            ballast.write(bytes(4096))
    except OSError:
        pass
said = []
for count in (1000, 200_000, 1000):
    try:
        grow(count)
        said.append(index.lanes()[1].next_qseq)
    except OSError as error:
        said.append(error.strerror)
os.unlink(sys.argv[2])
grow(200_000)
said.append(index.lanes()[1].next_qseq)
print(json.dumps(said))
"""


def test_index_that_needs_more_than_what_is_reserved(disk: SmallDisk) -> None:
    """A write that goes in by half is EIO to LMDB: it must not be taken for a failing disk."""
    command = [sys.executable, "-c", INDEX_ON_A_FULL_DISK]
    command += [str(disk.inside / "index"), str(disk.inside / "ballast")]
    said = subprocess.check_output([*disk.launcher, *command])
    assert json.loads(said) == [1010, "No space left on device", 2010, 202_010]


def test_file_size_limit(tmp_path: Path) -> None:
    """The same as a full disk to the broker, and can be set everywhere."""
    settings = {**SETTINGS, "QLOG_SEGMENT_BYTES_MAX": str(256 << 10)}
    broker = BrokerProcess(tmp_path / "data", settings=settings).start()
    try:
        publisher = Publisher(broker, body_bytes=10_000)
        publisher.publish(20)
        publisher.wait_for_confirms()
        talk = consumer(broker)
        unlimited = resource.prlimit(broker.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (128 << 10, unlimited[1]))
        publisher.publish_until_blocked()
        assert take(talk, 20) == list(range(20))
        settled(talk)
        broker.kill()
        broker.start()
        talk = consumer(broker)
        publisher = Publisher(broker, body_bytes=10_000)
        resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (128 << 10, unlimited[1]))
        publisher.publish_until_blocked()
        resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, unlimited)
        publisher.wait_for_confirms()
        publisher.wait_until_unblocked()
    finally:
        broker.kill()
