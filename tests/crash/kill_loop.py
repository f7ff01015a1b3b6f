"""Kill -9 a broker under load, again and again, and hold it to its word each time.

    python -m tests.crash.kill_loop --kills 50

A round: load on a running broker; SIGKILL at a random moment (sometimes right after the start, or
in the middle of a recovery); restart on the same directory and port; everything in the queues is
delivered and held against the journal; a part of it is acknowledged, the rest stays for the next
round.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from pamqp.commands import Basic, Channel

from tests.crash.journal import Figures, Identity, Journal
from tests.crash.load import QUEUES, Load, declare, drain
from tests.live.conversation import Client
from tests.live.server import BrokerProcess

# Share of what a verification leaves in the queues for the next round.
LEFT = 0.2


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

    @property
    def violations(self) -> list[str]:
        """All of this round, said with its number."""
        return [
            f"round {self.number}: {text}"
            for figures in self.queues.values()
            for text in figures.violations
        ]

    def row(self) -> str:
        """A line of the summary."""
        total = [
            sum(getattr(figures, name) for figures in self.queues.values())
            for name in ("delivered", "redelivered", "owed", "acks_repeated")
        ]
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


class KillLoop:
    """One broker, one data directory, one journal, many rounds."""

    def __init__(self, data_dir: Path, seed: int) -> None:
        self.broker = BrokerProcess(data_dir)
        self.journal = Journal(QUEUES)
        self.generator = random.Random(seed)
        self.rounds: list[Round] = []

    def start(self) -> None:
        """Start the broker and declare what the load uses."""
        self.broker.start()
        with Client(self.broker.url) as client:
            declare(client.channel())

    def kill_once(self) -> Round:
        """A whole round. Violations are in its result; raises when the broker does not come up."""
        number = len(self.rounds) + 1
        generator = self.generator
        load_s = generator.choice([generator.uniform(0, 0.1), *[generator.uniform(0.2, 1.5)] * 4])
        load = Load(self.broker.url, self.journal, generator.randrange(1 << 30))
        sent, confirmed = self.journal.sent, len(self.journal.confirmed)
        load.start()
        time.sleep(load_s)
        killed_at = time.monotonic()
        self.broker.kill()
        load.join()
        recovery_kills = generator.choice((0, 0, 0, 1, 2))
        for _ in range(recovery_kills):
            self.broker.launch()
            time.sleep(generator.uniform(0, 0.6))
            self.broker.kill()
        begin = time.monotonic()
        self.broker.start()
        round_ = Round(number, load_s, recovery_kills, time.monotonic() - begin)
        round_.sent = self.journal.sent - sent
        round_.confirmed = len(self.journal.confirmed) - confirmed
        self.rounds.append(round_)
        for queue in QUEUES:
            round_.queues[queue] = self._verify(queue, killed_at)
        return round_

    def _verify(self, queue: str, killed_at: float) -> Figures:
        with Client(self.broker.url, deadline_s=30) as client:
            talk = client.channel()
            deliveries = drain(talk, queue)
            figures = self.journal.verify(queue, deliveries, killed_at)
            identities = [delivery.identity for delivery in deliveries]
            self.journal.delivered(queue, identities)
            gone: list[Identity] = []
            for tag, identity in enumerate(identities, 1):
                if self.generator.random() > LEFT:
                    gone.append(identity)
                    self.journal.acking(queue, [identity])
                    talk.send(Basic.Ack(tag))
            talk.call(Channel.Flow(active=True))
            self.journal.acks_read(queue, gone)
        return figures

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
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    print(HEADINGS)
    with contextlib.ExitStack() as stack:
        data_dir = arguments.data_dir
        if data_dir is None:
            data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "data"
        loop = KillLoop(data_dir, arguments.seed)
        stack.callback(loop.stop)
        loop.start()
        for _ in range(arguments.kills):
            print(loop.kill_once().row(), flush=True)
    violations = [text for round_ in loop.rounds for text in round_.violations]
    for text in violations[:50]:
        print(text)
    print(
        f"{arguments.kills} kills, {loop.journal.sent} sent, {len(loop.journal.confirmed)} "
        f"confirmed, {loop.journal.acknowledged} acknowledged, {len(violations)} violations"
    )
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
