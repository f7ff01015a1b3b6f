"""The stream of a directory that no broker runs on: stopped, killed, or a copy.

It ends where log and ledger end, as a start would find them; nothing is changed. A directory for
which a start would be refused for what log and ledger say is refused here, too.
"""

from qlog.storage.bytes.datadir import Paths
from qlog.storage.bytes.disk import Disk
from qlog.storage.bytes.footer import PlacedRun
from qlog.storage.errors import DirectoryUnreadable
from qlog.storage.journal import OfLane, Position, Replay
from qlog.storage.start.judge import Evidence, Lanes, identify, judge_ledger, judge_log, raise_first
from qlog.storage.write.replay import Stream, Stretch


def replay_at_rest(disk: Disk, paths: Paths, after: Position | None) -> Replay:
    """As `Journal.replay`, of a directory that is not open.

    Raises PositionGone, OtherFormat, CorruptLog, DirectoryUnreadable, OSError.
    """
    uuid = identify(disk, paths, None)
    if uuid is None:
        raise DirectoryUnreadable(f"{paths.root} was never used: nothing says who it is")
    evidence = Evidence(uuid)
    ledger = judge_ledger(disk, paths, evidence, _pass_over)
    raise_first(ledger.findings)
    log = judge_log(disk, paths, evidence, ledger, Lanes((), lambda lane_id: 0, _pass_over_run))
    raise_first(log.findings)
    stretches = [Stretch.of(found.segment) for found in log.found]
    end = Position(log.lsn, ledger.number)
    return Stream(disk, paths, uuid, stretches, end).replay(after)


def _pass_over(entry: OfLane) -> None:
    """The stream reads it again, in its place."""


def _pass_over_run(lane_id: int, segment_id: int, first: int, run: PlacedRun) -> None:
    """The same."""
