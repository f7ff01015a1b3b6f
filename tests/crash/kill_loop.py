"""Kill -9 a broker under load, again and again, and hold it to its word each time.

    python -m tests.crash.kill_loop --kills 50
    python -m tests.crash.kill_loop --kills 50 --full-disk

A round: load on a running broker; SIGKILL at a random moment (sometimes right after the start, or
in the middle of a recovery); restart on the same directory and port; everything in the queues is
delivered and held against the journal; a part of it is acknowledged, the rest stays for the next
round. Each start draws its own settings, so that files are often too small, and rolls, checkpoints,
compactions and the giving back of files happen all the time. With `--full-disk` somebody else
fills the disk and gives it back at random moments, kills and starts included.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from pamqp.commands import Basic, Channel

from qlog.storage.start.fold import COMPACTED
from tests.crash.journal import Figures, Identity, Journal
from tests.crash.load import (
    BACKLOG,
    FANOUT,
    PASSER,
    QUEUES,
    STREAM,
    STREAMER,
    Load,
    declare,
    drain,
    understood,
)
from tests.crash.passing import Passing
from tests.crash.small_disk import SmallDisk
from tests.crash.streaming import Streaming
from tests.live.conversation import Client
from tests.live.server import BrokerProcess

# Share of what a verification leaves in the queues for the next round.
LEFT = 0.2
LOAD_S_MAX = 1.5
_COMPACTED = f"{COMPACTED:010d}"
# One value of each is drawn for a start.
SETTINGS = {
    "QLOG_SEGMENT_BYTES_MAX": (128 << 10, 256 << 10, 1 << 20, 64 << 20),
    "QLOG_LEDGER_BYTES_MAX": (64 << 10, 64 << 10, 16 << 20),
    "QLOG_CHECKPOINT_INTERVAL_S": (0.02, 0.1, 1.0),
    "QLOG_CACHE_BYTES_MAX": (0, 1 << 20, 32 << 20),
    "QLOG_COMPACT_AGE_S": (0, 0, 60),
    "QLOG_COMPACT_SHARE_MAX": (0.3, 0.9),
    "QLOG_COMPACT_BYTES_PER_S": (1 << 20, 32 << 20),
}
# On a small disk nothing is large, and the writes are to find out that it is full.
SMALL_DISK_BYTES = 96 << 20
SMALL_DISK_SETTINGS = {
    "QLOG_SEGMENT_BYTES_MAX": (128 << 10, 256 << 10, 1 << 20),
    "QLOG_LEDGER_BYTES_MAX": (64 << 10, 256 << 10),
    "QLOG_DISK_FREE_LIMIT_BYTES": (0,),
}


@dataclass
class Round:
    """What one kill showed."""

    number: int
    load_s: float
    recovery_kills: int
    start_s: float = 0.0
    sent: int = 0
    confirmed: int = 0
    queues: dict[str, Figures] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    @property
    def violations(self) -> list[str]:
        """All of this round, said with its number."""
        texts = [text for figures in self.queues.values() for text in figures.violations]
        return [f"round {self.number}: {text}" for text in texts + self.others]

    def total(self, name: str) -> int:
        """The sum of a figure over all queues."""
        return sum(getattr(figures, name) for figures in self.queues.values())

    def row(self) -> str:
        """A line of the summary."""
        total = map(self.total, ("delivered", "redelivered", "owed", "acks_repeated"))
        columns = [self.number, f"{self.load_s:.2f}", self.recovery_kills, f"{self.start_s:.2f}"]
        columns += [self.sent, self.confirmed, *total, len(self.violations)]
        return " ".join(f"{column!s:>11}" for column in columns)


HEADINGS = " ".join(
    f"{heading:>11}"
    for heading in (
        *("round", "load s", "in recovery", "start s", "sent", "confirmed"),
        *("delivered", "redelivered", "owed", "acks twice", "violations"),
    )
)


class Filler:
    """Somebody else who fills a disk, and gives it back, at random moments."""

    def __init__(self, disk: SmallDisk, generator: random.Random) -> None:
        self._disk = disk
        self._generator = generator
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._generator.uniform(0, 0.3)):
            self._disk.fill()
            self._stop.wait(self._generator.uniform(0, 0.7))
            self._disk.relieve()

    def stop(self) -> None:
        """The disk is as it was."""
        self._stop.set()
        self._thread.join()


class KillLoop:
    """One broker, one data directory, one journal, many rounds.

    Arguments: `data_dir`, or a small `disk` which is full now and then.
    """

    def __init__(
        self,
        data_dir: Path,
        seed: int,
        load_s_max: float = LOAD_S_MAX,
        disk: SmallDisk | None = None,
    ) -> None:
        self.disk = disk
        self.settings: dict[str, tuple[float, ...]] = dict(SETTINGS)
        if disk is None:
            self.data_dir = data_dir
            self.broker = BrokerProcess(data_dir)
        else:
            self.data_dir = disk.outside / "data"
            self.broker = BrokerProcess(disk.inside / "data", launcher=disk.launcher)
            self.settings.update(SMALL_DISK_SETTINGS)
        self.journal = Journal({**QUEUES, STREAM: 0})
        self.passing = Passing(self.journal, PASSER, FANOUT, BACKLOG)
        self.streaming = Streaming(self.journal, STREAM, STREAMER)
        self.generator = random.Random(seed)
        self.load_s_max = load_s_max
        self.rounds: list[Round] = []
        self.compacted: set[str] = set()

    def start(self) -> None:
        """Start the broker and declare what the load uses."""
        self._launch()
        self.broker.wait_until_ready()
        with Client(self.broker.url) as client:
            declare(client.channel(), self.streaming)

    def _launch(self) -> None:
        for name, values in self.settings.items():
            self.broker.settings[name] = str(self.generator.choice(values))
        self.broker.launch()

    def kill_once(self) -> Round:
        """A whole round. Violations are in its result; raises when the broker does not come up."""
        number = len(self.rounds) + 1
        generator = self.generator
        shortly = generator.random() < 0.2
        load_s = generator.uniform(0, 0.1) if shortly else generator.uniform(0.1, self.load_s_max)
        seed = generator.randrange(1 << 30)
        load = Load(self.broker.url, self.journal, self.passing, self.streaming, seed)
        sent, confirmed = self.journal.sent, self.journal.confirmed_count
        filler = None
        if self.disk is not None:
            filler = Filler(self.disk, random.Random(generator.randrange(1 << 30)))
        load.start()
        time.sleep(load_s)
        killed_at = time.monotonic()
        self.broker.kill()
        self.compacted.update(name for name in self._files("log") if name >= _COMPACTED)
        load.join()
        recovery_kills = generator.choice((0, 0, 0, 1, 2))
        for _ in range(recovery_kills):
            self._launch()
            time.sleep(generator.uniform(0.1, 0.6))
            self.broker.kill()
        begin = time.monotonic()
        self._launch()
        self.broker.wait_until_ready()
        if filler is not None:
            filler.stop()
        round_ = Round(number, load_s, recovery_kills, time.monotonic() - begin)
        round_.sent = self.journal.sent - sent
        round_.confirmed = self.journal.confirmed_count - confirmed
        self.rounds.append(round_)
        round_.others = self.passing.verify(self.broker.url, killed_at, understood)
        for queue in QUEUES:
            round_.queues[queue] = self._verify(queue, killed_at)
        round_.others += self.streaming.verify(self.broker.url, generator)
        self.journal.restarted()
        round_.others += self.journal.violations
        self.journal.violations.clear()
        return round_

    def _verify(self, queue: str, killed_at: float) -> Figures:
        with Client(self.broker.url, deadline_s=30) as client:
            talk = client.channel()
            deliveries = drain(talk, queue)
            figures = self.journal.verify(queue, deliveries, killed_at)
            identities = [delivery.identity for delivery in deliveries]
            left: list[Identity] = []
            gone: list[Identity] = []
            acks: list[Basic.Ack] = []
            for tag, identity in enumerate(identities, 1):
                if self.generator.random() < LEFT:
                    left.append(identity)
                else:
                    gone.append(identity)
                    acks.append(Basic.Ack(tag))
            self.journal.acking(queue, gone)
            self.journal.requeueing(queue, left)
            talk.send(*acks)
            talk.call(Channel.Flow(active=True))
            self.journal.acks_read(queue, gone)
        return figures

    def _files(self, directory: str) -> list[str]:
        """The names there, without those that are not finished."""
        return [
            path.name for path in (self.data_dir / directory).iterdir() if path.suffix != ".new"
        ]

    def summary(self) -> str:
        """The figures of all rounds."""
        rounds, journal = self.rounds, self.journal
        oldest_s = max(f.oldest_repeated_s for r in rounds for f in r.queues.values())
        figures = {
            "kills": len(rounds),
            "kills in recovery": sum(round_.recovery_kills for round_ in rounds),
            "messages sent": journal.sent,
            "confirmed": journal.confirmed_count,
            "acknowledged": journal.acknowledged_count,
            "of these again, within the window": sum(r.total("acks_repeated") for r in rounds),
            "transactions": journal.transactions_count,
            "changes to definitions": self.passing.changes_count,
            "read from the stream again": self.streaming.read_count,
            "the oldest of them, ms before": round(1000 * oldest_s),
            "redelivered after a restart": sum(r.total("redelivered") for r in rounds),
            "owed after a restart": sum(r.total("owed") for r in rounds),
            "segments written, at least": max(
                int(Path(name).stem) for name in self._files("log") if name < _COMPACTED
            ),
            "of compactions, seen at a kill": len(self.compacted),
            "files of the ledger": max(int(Path(name).stem) for name in self._files("ledger")),
            "violations": sum(len(round_.violations) for round_ in rounds),
        }
        return "\n".join(f"{name:>35} {value:,}" for name, value in figures.items())

    def stop(self) -> None:
        """End the broker as one should."""
        process = self.broker.process
        if process is not None and process.poll() is None:
            code, _ = self.broker.terminate()
            assert code == 0, self.broker.lines[-20:]


def main() -> int:
    """The command. Exit status 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--data-dir", type=Path, help="kept afterwards; default: a temporary one")
    parser.add_argument(
        "--full-disk", action="store_true", help="on a small disk, now and then full"
    )
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    print(HEADINGS)
    with contextlib.ExitStack() as stack:
        data_dir = arguments.data_dir
        if data_dir is None:
            data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "data"
        disk = None
        if arguments.full_disk:
            disk = stack.enter_context(SmallDisk(data_dir, SMALL_DISK_BYTES))
        loop = KillLoop(data_dir, arguments.seed, disk=disk)
        stack.callback(loop.stop)
        loop.start()
        begin = time.monotonic()
        for _ in range(arguments.kills):
            print(loop.kill_once().row(), flush=True)
        violations = [text for round_ in loop.rounds for text in round_.violations]
        for text in violations[:50]:
            print(text)
        print(loop.summary())
        print(f"{time.monotonic() - begin:.0f} s")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
