"""`qlog inspect verify`: every checksum, and everything that one file says of another.

Checksums: the headers of all files, every batch (which covers its messages), footers, the ledger,
every row and block of the index, every row of the catalog, every batch of every stream. Compared
with each other: footers and batches, LSNs from segment to segment, the segments that the ledger
lists, all evidence of how far the log had been synced, the index's pointers and counts, settlements
in index and ledger, how far streams were moved, definitions in catalog and ledger, definitions that
name others. A directory in use changes during the look: what has moved is looked at again, and what
is too new is left out.
"""

import time

from qlog.tools.inspect.command import command
from qlog.tools.inspect.commands.index import advice
from qlog.tools.inspect.look.casualties import with_concerns
from qlog.tools.inspect.look.definitions import entry_text, problems
from qlog.tools.inspect.look.directory import MADE_ANEW, Directory
from qlog.tools.inspect.look.environment import Unreadable
from qlog.tools.inspect.look.log import Survey, survey
from qlog.tools.inspect.look.pointers import (
    IndexContents,
    compare,
    look_at_index,
    read_contents,
)
from qlog.tools.inspect.look.streams import look_at_streams
from qlog.tools.inspect.rows import Bytes, Damage, Report, counted, number, text

_COLUMNS = (text("what", "name"), number("checked"), number("damaged"))


@command
def verify(directory: Directory, report: Report) -> None:
    """Look at every checksum; compare the files with each other.

    Reads everything once. Exit status 1 when anything is not as it was written.
    """
    _check(directory, report)


def verified(directory: Directory) -> Report:
    """The report of all checks. Raises PermissionError, Forbidden, OtherFormat."""
    report = Report("verify", directory)
    _check(directory, report)
    return report


def _check(directory: Directory, report: Report) -> None:
    started_s = time.monotonic()
    contents = None
    if directory.index_facts.readable:
        try:  # the index first: ledger and log, read after it, then know at least as much
            contents = read_contents(directory.paths.index)
            directory.refresh()
        except Unreadable as error:
            if not directory.index_facts.doubt:
                report.damage.append(Damage("index.lmdb", str(error)))
    found = survey(directory, verify=True)
    log_damage = with_concerns(directory, found.damage)
    definition_damage = _definition_damage(directory)
    pointers, index_damage = _check_index(directory, contents, found)
    report.damage += index_damage
    streams = look_at_streams(directory, all_hashes=True)
    stream_damage = [damage for look in streams for damage in look.damage]
    apart = [*directory.damage, *report.damage]

    def count(part: str) -> int:
        return sum(item.file.startswith(part) for item in apart)

    segments = found.segments
    in_streams = sum(look.moved - look.first for look in streams)
    definitions_damaged = len(definition_damage) + count("catalog.lmdb")
    checks = (
        ("segments", len(segments), sum(bool(segment.damage) for segment in segments)),
        (
            "messages",
            sum(segment.records for segment in segments),
            sum(item.messages_lost or 0 for item in log_damage),
        ),
        ("ledger batches", directory.ledger.file.batches, count("ledger")),
        ("definitions", len(directory.definitions), definitions_damaged),
        ("index pointers", pointers, count("index.lmdb")),
        *([("stream messages", in_streams, len(stream_damage))] if streams else ()),
    )
    keys = ("name", "checked", "damaged")
    rows = [dict(zip(keys, check, strict=True)) for check in checks]
    report.table(_COLUMNS, rows, key="checks")
    report.damage += definition_damage + log_damage + stream_damage
    report.notes += [*found.notes, *advice(report.all_damage)]
    duration_s = time.monotonic() - started_s
    log_bytes = sum(segment.size_bytes for segment in segments)
    report.content |= {"log_bytes": log_bytes, "duration_s": round(duration_s, 3)}
    verdict = "sound" if not report.all_damage else counted(len(report.all_damage), "finding")
    report.say(f"{verdict}; {Bytes(log_bytes).human()} of log in {duration_s:.1f} s")


def _check_index(
    directory: Directory, contents: IndexContents | None, found: Survey
) -> tuple[int, list[Damage]]:
    """How many pointers it has to messages that wait, and what is wrong with it."""
    if contents is None:
        return 0, []
    comparison = compare(directory, contents, found.segments)
    if comparison.differs and directory.in_use:
        contents, _, comparison = look_at_index(Directory(directory.root))
    texts = [*contents.damaged, *comparison.counts]
    texts += (item.document(directory)["text"] for item in comparison.differences)
    return comparison.pointers, [Damage("index.lmdb", what) for what in texts]


def _definition_damage(directory: Directory) -> list[Damage]:
    """What is wrong with definitions but for checksums."""
    texts = list(problems(directory.defined))
    identity = directory.known_identity
    owners: dict[int, str] = {}
    for queue in directory.defined.queues:
        name = f"queue '{queue.name}' in vhost '{queue.vhost}'"
        for lane_id in queue.lane_ids.values():
            if lane_id in owners:
                texts.append(f"{name}: it has lane {lane_id}, as {owners[lane_id]} has")
            elif identity is not None and lane_id >= identity.lane_ids_reserved:
                texts.append(f"{name}: it has lane {lane_id}, which was never given")
            elif lane_id in directory.ledger.deleted and not directory.in_use:
                texts.append(f"{name}: it has lane {lane_id}, which the ledger says was deleted")
            owners[lane_id] = name
    found = [Damage(directory.ledger_file_name, what) for what in texts]
    for entry in directory.catalog_differs():
        what = f"it does not have the {entry_text(*entry)} as the ledger has it"
        found.append(Damage("catalog.lmdb", f"{what}; {MADE_ANEW}"))
    return found
