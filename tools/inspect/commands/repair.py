"""`qlog inspect repair`: make a damaged directory one that a broker starts on, and say what that costs.

Without --accept-loss nothing is changed: it says what would be done, and which messages would be
lost. No original is lost: what is replaced or given up is in quarantine/ before.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    from qlog.tools.inspect.repair.plan import Loss, Plan
    from qlog.tools.inspect.rows import Cell, Report


def repair(
    data_dir: DataDir = DATA_DIR_DEFAULT,
    accept_loss: Annotated[
        bool,
        typer.Option("--accept-loss", help="Do it: what cannot be read is given up for good."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what could be saved of a damaged directory, or with --accept-loss, do it.

    Run it without first: it changes nothing then, and lists what would be lost, message by
    message. What is damaged is moved to quarantine/, never deleted. The broker must not run.
    """
    from qlog.storage.errors import StorageError
    from qlog.tools.inspect.look.environment import Forbidden

    try:
        if accept_loss:
            report = _repaired(data_dir)
        else:
            directory = look_at(data_dir)
            plan = _planned(directory)
            report = _report(directory, plan)
            report.damage = plan.damage
    except PermissionError as error:
        stop_for_rights(error)
    except OSError as error:
        stop(
            f"{error.filename or data_dir}: {error.strerror}; what was done so far can be repeated"
        )
    except (StorageError, Forbidden) as error:
        stop(str(error))
    finish(report, as_json=as_json)


def _repaired(data_dir: Path) -> Report:
    """Plan and act under the broker's lock, then verify."""
    from qlog.storage.bytes.datadir import Paths, prepare
    from qlog.storage.bytes.disk import OSDisk
    from qlog.tools.inspect.commands.verify import verified
    from qlog.tools.inspect.look.directory import Directory
    from qlog.tools.inspect.repair.act import act
    from qlog.tools.inspect.rows import Bytes

    look_at(data_dir)  # whether it is one at all
    disk = OSDisk()
    paths = Paths(data_dir.absolute())
    lock = prepare(disk, paths)
    try:
        directory = Directory(data_dir)
        plan = _planned(directory)
        report = _report(directory, plan)
        if plan.needed:
            free_bytes = shutil.disk_usage(paths.log).free
            if free_bytes < plan.written_bytes:
                stop(
                    f"{paths.log} has no space for what is to be written: it takes "
                    f"{Bytes(plan.written_bytes).human()}, and {Bytes(free_bytes).human()} are free"
                )
            place = act(plan, directory, disk, report.content)
            after = verified(Directory(data_dir))
            report.damage = after.damage
            report.content |= {"done": True, "quarantine": str(place)}
            report.sections[0].title = "done"
            report.summary = f"{data_dir}: repaired; {_cost(plan)}; the originals are in {place}"
    finally:
        disk.close(lock)
    return report


def _planned(directory: Directory) -> Plan:
    from qlog.tools.inspect.repair.plan import make_plan
    from qlog.tools.inspect.rows import progress

    paths = directory.paths
    size = sum(paths.segment(one).stat().st_size for one in directory.segment_ids())
    with progress("reading", size) as bar:
        return make_plan(directory, bar.advance)


def _report(directory: Directory, plan: Plan) -> Report:
    from qlog.tools.inspect.rows import Column, Report, Table

    report = Report("repair", str(directory.root), directory.in_use)
    report.content = {
        "actions": plan.actions,
        "losses": [loss.item(directory) for loss in plan.losses],
        "settled_losses": plan.settled_losses,
        "done": False,
        "quarantine": None,
    }
    report.sections = [
        Table(
            "to be done",
            (Column("step", right=True), Column("what", name=True)),
            [(str(at), what) for at, what in enumerate(plan.actions, 1)],
        ),
        Table(
            "lost",
            (
                Column("LSN", right=True),
                Column("where", name=True),
                Column("size", right=True),
                Column("message", name=True),
                Column("queue #offset", name=True),
            ),
            [_row(directory, loss) for loss in plan.losses],
        ),
    ]
    report.notes = list(plan.notes)
    if directory.in_use and plan.needed:
        report.notes.append("a broker runs on it: it must be stopped before --accept-loss")
    if plan.settled_losses:
        report.notes.append(
            f"{plan.settled_losses} more messages cannot be read, for which nobody waits any more"
        )
    if not plan.needed:
        report.summary = f"{directory.root}: there is nothing to repair"
    else:
        report.summary = (
            f"{directory.root}: nothing was changed; {_cost(plan)}; with --accept-loss it is done"
        )
    return report


def _cost(plan: Plan) -> str:
    from qlog.tools.inspect.rows import counted

    known = sum(loss.count or 0 for loss in plan.losses)
    if any(loss.count is None for loss in plan.losses):
        return f"{counted(known, 'message')} lost that can be named, and perhaps more"
    return f"{counted(known, 'message')} lost"


def _row(directory: Directory, loss: Loss) -> tuple[Cell, ...]:
    from qlog.tools.inspect.look.decode import queue_text
    from qlog.tools.inspect.rows import Bytes

    item: dict[str, Any] = loss.item(directory)
    where = loss.file if loss.position is None else f"{loss.file} byte {loss.position}"
    queues = [
        f"{queue_text(one['vhost'], one['queue'], one['lane'])} #{one['offset']} {one['state']}"
        for one in item["queues"]
    ]
    if not queues and loss.body_bytes is not None:
        queues = ["where it went is lost"]
    elif not queues:
        many = "an unknown number of messages" if loss.count is None else f"{loss.count} messages"
        return (None, where, None, f"{many} of which nothing is known", None)
    what = (
        "?" if loss.routing_key is None else f"{loss.exchange or '(default)'} / {loss.routing_key}"
    )
    size = None if loss.body_bytes is None else Bytes(loss.body_bytes)
    return (None if loss.lsn is None else str(loss.lsn), where, size, what, queues)
