"""`qlog inspect verify`: every checksum, and everything that one file says of another.

Checksums: the headers of all files, every batch (which covers its messages), footers, the ledger,
every row and block of the index, every definition. Beside each other: footers and batches, LSNs from
segment to segment, the segments that the ledger lists, what attests how far the log had been
synced, the index's pointers and counts, settlements in index and ledger, definitions that name
others. A directory in use is read as it goes on: what moved meanwhile is looked at again, and what
is too new is left out.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from qlog.tools.inspect.command import (
    DATA_DIR_DEFAULT,
    AsJson,
    DataDir,
    finish,
    look_at,
    stop,
    stop_for_rights,
)

if TYPE_CHECKING:
    from qlog.tools.inspect.look.directory import Directory
    from qlog.tools.inspect.look.log import Survey
    from qlog.tools.inspect.look.pointers import Comparison, IndexContents
    from qlog.tools.inspect.rows import Damage, Report

_LOOKS_MAX = 3


def verify(data_dir: DataDir = DATA_DIR_DEFAULT, as_json: AsJson = False) -> None:
    """Look at every checksum, and compare all files with each other.

    Reads everything once. Exit status 1 when anything is not as it was written.
    """
    from qlog.tools.inspect.look.environment import Forbidden

    directory = look_at(data_dir)
    try:
        report = verified(directory)
    except PermissionError as error:
        stop_for_rights(error)
    except Forbidden as error:
        stop(str(error))
    finish(report, as_json=as_json)


def verified(directory: Directory) -> Report:
    """What all of it comes to. Raises PermissionError, Forbidden, OtherFormat."""
    from qlog.tools.inspect.commands.index import advice
    from qlog.tools.inspect.look.casualties import with_concerns
    from qlog.tools.inspect.look.environment import Unreadable
    from qlog.tools.inspect.look.log import survey, views_of
    from qlog.tools.inspect.look.pointers import read_contents
    from qlog.tools.inspect.rows import Bytes, Column, Damage, Report, counted, progress

    started_s = time.monotonic()
    contents = None
    if directory.index_facts is not None:
        try:  # the index first: ledger and log, read after it, then know at least as much
            contents = read_contents(directory.paths.index)
            directory.refresh()
        except Unreadable as error:
            directory.damage.append(Damage("index.lmdb", str(error)))
    views = views_of(directory)
    log_bytes = sum(view.size for view in views)
    with progress("verifying", log_bytes) as bar:
        found = survey(directory, views, verify=True, advance=bar.advance)
    log_damage = with_concerns(directory, found.damage)
    definitions, catalog_damage = _check_catalog(directory)
    batches, ledger_damage = _check_ledger(directory)
    pointers, index_damage = _check_index(directory, contents, found)
    checks = (
        ("segments", len(found.segments), sum(bool(one.damage) for one in found.segments)),
        (
            "messages",
            sum(segment.records for segment in found.segments),
            sum(item.messages_lost or 0 for item in log_damage),
        ),
        ("ledger batches", batches, len(ledger_damage)),
        ("definitions", definitions, len(catalog_damage)),
        ("index pointers", pointers, len(index_damage)),
    )
    report = Report("verify", str(directory.root), directory.in_use)
    report.columns = (Column("what"), Column("checked", right=True), Column("damaged", right=True))
    report.rows = [(name, str(checked), str(damaged)) for name, checked, damaged in checks]
    report.damage = [*catalog_damage, *ledger_damage, *index_damage, *log_damage]
    report.notes = [*directory.notes, *found.notes, *advice(report.damage)]
    duration_s = time.monotonic() - started_s
    report.content = {
        "checks": [
            {"name": name, "checked": checked, "damaged": damaged}
            for name, checked, damaged in checks
        ],
        "log_bytes": log_bytes,
        "duration_s": round(duration_s, 3),
    }
    in_use = ", in use by a broker" if directory.in_use else ""
    verdict = "sound" if not report.damage else counted(len(report.damage), "finding")
    report.summary = (
        f"{directory.root}{in_use}: {verdict}; {Bytes(log_bytes).human()} of log in "
        f"{duration_s:.1f} s"
    )
    return report


def _check_index(
    directory: Directory, contents: IndexContents | None, found: Survey
) -> tuple[int, list[Damage]]:
    """How many pointers it has to messages that wait, and what is wrong with it."""
    from qlog.tools.inspect.commands.index import described, look
    from qlog.tools.inspect.look.pointers import compare
    from qlog.tools.inspect.rows import Damage

    damage = [item for item in directory.damage if item.file.startswith("index.lmdb")]
    if contents is None:
        return 0, damage
    comparison: Comparison | None
    comparison = compare(directory, contents, found.segments, lambda size: None)
    for _ in range(_LOOKS_MAX if directory.in_use else 0):
        if comparison is None or not (comparison.differences or comparison.counts):
            break  # else a checkpoint or a compaction may have come in between
        directory = type(directory)(directory.root)
        contents, comparison = look(directory, compare=True)
    assert comparison is not None
    texts = [*contents.damaged, *comparison.counts]
    texts += (str(described(directory, item)["text"]) for item in comparison.differences)
    return comparison.pointers, damage + [Damage("index.lmdb", text) for text in texts]


def _check_ledger(directory: Directory) -> tuple[int, list[Damage]]:
    """How many batches it has; the damage was found when they were folded."""
    batches = 0
    for file_id in directory.ledger_ids()[-1:]:
        try:
            view = directory.ledger_file(file_id)
            batches = sum(1 for item in directory.stretches(view) if item.batch is not None)
        except FileNotFoundError:  # the next file took over
            pass
    return batches, [item for item in directory.damage if item.file.startswith("ledger")]


def _check_catalog(directory: Directory) -> tuple[int, list[Damage]]:
    from qlog.tools.inspect.look.definitions import problems
    from qlog.tools.inspect.look.environment import Unreadable, read
    from qlog.tools.inspect.rows import Damage

    damage = [item for item in directory.damage if item.file.startswith("catalog.lmdb")]
    try:
        count, found = read(directory.paths.catalog, problems)
    except Unreadable:
        return 0, damage
    damage += [Damage("catalog.lmdb", what) for what in found]
    identity = directory.catalog_facts.identity
    owners: dict[int, str] = {}
    for queue in directory.catalog_facts.queues:
        name = f"queue '{queue.name}' in vhost '{queue.vhost}'"
        for lane_id in queue.lanes:
            what = None
            if lane_id in owners:
                what = f"it has lane {lane_id}, as {owners[lane_id]} has"
            elif identity is not None and lane_id >= identity.lane_ids_reserved:
                what = f"it has lane {lane_id}, which was never given"
            elif lane_id in directory.ledger.deleted and not directory.in_use:
                what = f"it has lane {lane_id}, which the ledger says was deleted"
            owners[lane_id] = name
            if what is not None:
                damage.append(Damage("catalog.lmdb", f"{name}: {what}"))
    return count, damage
