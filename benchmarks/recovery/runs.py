"""One case on one broker: fill, acknowledge, kill, start, deliver; what each of it cost.

Promises that figures end where a broker lost something: after the fill, the acks and each restart the
queue that is consumed must hold exactly what was confirmed and not acknowledged.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import deliveries, flow, load, wire
from benchmarks.brokers import ROOT, io_bytes
from benchmarks.flow import LoadFailed
from benchmarks.recovery.cases import BODY_BYTES, PATTERNS, Case
from benchmarks.recovery.daemons import Daemon, OwnDaemon, drop_page_cache
from benchmarks.traffic import Traffic

MIB = 1 << 20
WINDOW = 4000
DISTINCT_BODIES = 8192
# The fill goes in portions: between them memory is looked at and progress told.
PORTIONS = 10
TELL_S = 2.0
# Published right before each kill, so that there is something behind the last checkpoint.
TAIL_MESSAGES_MAX = 20_000
# After this long an idle broker has checkpointed.
SETTLE_S = 3.0
VERIFY_TIMEOUT_S = 600.0

# Values of a figure, one of each run.
Samples = dict[str, list[float]]
Tell = Callable[[str], None]


class Backlog:
    """The queues of a case on one broker, and how many messages have to be in the first."""

    def __init__(self, daemon: Daemon, case: Case, samples: Samples, tell: Tell) -> None:
        self.daemon = daemon
        self.case = case
        self.samples = samples
        self.tell = tell
        self.queues = tuple(
            flow.fresh_name("recovery") + f".{number}" for number in range(case.queues)
        )
        self.expected = 0
        self.broker = daemon.start()
        tell(f"accepts connections after {self.broker.start_s:.2f} s")

    def note(self, **figures: float) -> None:
        """Keep values of figures."""
        for name, value in figures.items():
            self.samples.setdefault(name, []).append(value)

    def declare(self) -> None:
        """Make the queues."""
        with wire.Connection(self.broker.address) as connection:
            for queue in self.queues:
                connection.declare_queue(queue)

    def delete(self) -> None:
        """Delete the queues with all that is in them."""
        with wire.Connection(self.broker.address) as connection:
            for queue in self.queues:
                connection.delete_queue(queue)

    def publish(self, messages: int) -> float:
        """Publish to all queues in turn until all is confirmed; how many seconds that took."""
        traffic = Traffic("", self.queues, BODY_BYTES, distinct_bodies=DISTINCT_BODIES)
        plan = load.PublisherPlan(traffic, WINDOW, messages_max=messages)
        (work,) = flow.publish(self.broker, (plan,)).work
        self.expected += len(range(0, messages, len(self.queues)))
        return (work.confirmed.times_ns[-1] - work.begun.times_ns[0]) / 1e9

    def fill(self) -> None:
        """Publish the backlog; note rate, memory and what was written."""
        assert self.broker.pid is not None
        anonymous_before = self.broker.memory().anonymous_bytes
        written_before = io_bytes(self.broker.pid)["write_bytes"]
        anonymous_most = anonymous_before
        fill_s = told_s = 0.0
        for part in range(PORTIONS):
            first, end = (self.case.messages * edge // PORTIONS for edge in (part, part + 1))
            if first == end:
                continue
            fill_s += self.publish(end - first)
            anonymous_most = max(anonymous_most, self.broker.memory().anonymous_bytes)
            if fill_s > told_s + TELL_S or end == self.case.messages:
                told_s = fill_s
                self.tell(f"{end:,} messages in {fill_s:.1f} s")
        time.sleep(SETTLE_S)
        self.check(0)
        memory = self.broker.memory()
        written = io_bytes(self.broker.pid)["write_bytes"] - written_before
        anonymous_most = max(anonymous_most, memory.anonymous_bytes)
        self.note(
            fill_rate=self.case.messages / fill_s,
            fill_growth_mib=(anonymous_most - anonymous_before) / MIB,
            backlog_anonymous_mib=memory.anonymous_bytes / MIB,
            backlog_resident_mib=memory.resident_bytes / MIB,
            written_per_byte=written / (self.case.messages * BODY_BYTES),
        )

    def acknowledge(self) -> None:
        """Acknowledge by the case's pattern, and wait until the broker has it on disk."""
        pattern = PATTERNS[self.case.acks]
        wanted = int(self.expected * pattern.share)
        if not wanted:
            return
        begun_s = time.monotonic()
        acked = 0
        connection = wire.Connection(self.broker.address)
        try:
            for tags in deliveries.delivered(connection, self.queues[0], wanted):
                frames = [wire.ack_frame(tag, False) for tag in pattern.select(tags)]
                acked += len(frames)
                connection.socket.sendall(b"".join(frames))
            close_among_deliveries(connection)
        finally:
            connection.socket.close()
        self.note(ack_s=time.monotonic() - begun_s, acked=acked)
        self.expected -= acked
        self.tell(f"{acked:,} acknowledged in {self.samples['ack_s'][-1]:.1f} s")
        time.sleep(SETTLE_S)
        self.check(0)
        self.note(acked_anonymous_mib=self.broker.memory().anonymous_bytes / MIB)

    def check(self, unacked: int) -> None:
        """LoadFailed when the first queue holds something else than it must."""
        with wire.Connection(self.broker.address) as connection:
            ready = connection.count_messages(self.queues[0])
        if ready + unacked != self.expected:
            raise LoadFailed(f"{ready:,} messages ready, {self.expected - unacked:,} expected")

    def restart(self, name: str, between: Callable[[], object] = lambda: None) -> None:
        """kill -9 right after a confirm, start, take one delivery; note what it took as `name`_…"""
        self.publish(min(TAIL_MESSAGES_MAX, max(1, self.case.messages // 10)))
        self.daemon.kill()
        between()
        begun_s = time.monotonic()
        self.broker = self.daemon.start()
        assert self.broker.pid is not None and self.broker.start_s is not None
        with wire.Connection(self.broker.address) as connection:
            connection.limit_prefetch(1)
            next(deliveries.delivered(connection, self.queues[0], 1))  # and no other one follows it
            first_s = time.monotonic() - begun_s
            read = io_bytes(self.broker.pid)
            memory = self.broker.memory()
            self.check(1)
        self.note(
            **{
                f"{name}_delivery_s": first_s,
                f"{name}_start_s": self.broker.start_s,
                f"{name}_cpu_s": self.broker.cpu_s().get("broker", 0.0),
                f"{name}_asked_mib": read["rchar"] / MIB,
                f"{name}_disk_mib": read["read_bytes"] / MIB,
                f"{name}_anonymous_mib": memory.anonymous_bytes / MIB,
                f"{name}_resident_mib": memory.resident_bytes / MIB,
            }
        )
        self.tell(f"{name} restart: first delivery after {first_s:.2f} s")


def close_among_deliveries(connection: wire.Connection) -> None:
    """Close politely while deliveries still arrive: the broker has seen all acks after this."""
    arguments = struct.pack(">H", 200) + wire.shortstr("OK") + wire.METHOD.pack(0, 0)
    connection.socket.sendall(wire.method_frame(wire.CONNECTION_CLOSE, arguments, channel=0))
    reply = wire.method_frame(wire.CONNECTION_CLOSE_OK, channel=0)
    seen = bytearray()
    while reply not in seen:
        data = connection.socket.recv(deliveries.RECEIVE_BYTES)
        if not data:
            raise wire.Refused("the broker hung up on a consumer")
        del seen[: -len(reply)]
        seen += data


def run_case(
    daemon: Daemon, case: Case, runs: int, cold: bool, samples: Samples, tell: Tell
) -> None:
    """Everything that is measured of one case on one broker.

    Args:
        daemon: the broker, not started.
        case: the backlog.
        runs: kills of each kind.
        cold: do it with dropped page caches too.
        samples: gets the figures, also when a later step fails.
        tell: gets a line for each step.

    Raises:
        LoadFailed: messages are missing or surplus.
        BrokerFailed: the broker does not start.
    """
    backlog = Backlog(daemon, case, samples, tell)
    backlog.declare()
    backlog.fill()
    backlog.acknowledge()
    for _ in range(runs):
        backlog.restart("warm")
        if cold:
            backlog.restart("cold", drop_page_cache)
    if isinstance(daemon, OwnDaemon):
        log_bytes = sum(file.stat().st_size for file in (daemon.data / "log").iterdir())
        backlog.note(
            log_mib=log_bytes / MIB, index_mib=_allocated(daemon.data / "index.lmdb") / MIB
        )
        backlog.restart("rebuild", lambda: shutil.rmtree(daemon.data / "index.lmdb"))
        daemon.kill()
        verify_s = verify(daemon.data, tell)
        if verify_s is not None:
            backlog.note(verify_s=verify_s, verify_mib_s=log_bytes / MIB / verify_s)
    else:
        backlog.delete()


def verify(data: Path, tell: Tell) -> float | None:
    """How long `qlog inspect verify` takes for a directory; None where there is no such command.

    Raises:
        LoadFailed: it found damage.
    """
    command = [sys.executable, "-m", "qlog", "inspect", "verify"]
    help_page = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, check=False)
    if help_page.returncode:
        return None
    begun_s = time.monotonic()
    done = subprocess.run(
        [*command, "--data-dir", str(data)],
        cwd=ROOT,
        capture_output=True,
        timeout=VERIFY_TIMEOUT_S,
        check=False,
    )
    verify_s = time.monotonic() - begun_s
    if done.returncode:
        raise LoadFailed(f"qlog inspect verify: {done.stdout.decode()}{done.stderr.decode()}")
    tell(f"verified in {verify_s:.1f} s")
    return verify_s


def _allocated(directory: Path) -> int:
    """Bytes on disk of the files in a directory; they may be sparse."""
    return sum(file.stat().st_blocks * 512 for file in directory.iterdir())
