"""`qlog inspect repair`: a damaged directory becomes one that a broker starts on, at a price told.

Without --accept-loss nothing is changed: it says what would be done, and which messages would be
lost. No original is lost: what is replaced or given up is in quarantine/ before.
"""

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from qlog.storage.bytes.datadir import Paths, prepare
from qlog.storage.bytes.disk import OSDisk
from qlog.tools.inspect.command import DATA_DIR_DEFAULT, AsJson, DataDir, errors_told, finish, stop
from qlog.tools.inspect.commands.verify import verified
from qlog.tools.inspect.look.decode import target_lines
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.repair.act import act
from qlog.tools.inspect.repair.plan import Plan, make_plan
from qlog.tools.inspect.rows import Bytes, Cell, Report, counted, name, number, size


def _where(loss: dict[str, Any]) -> str:
    file, position = loss["file"], loss["position"]
    return file if position is None else f"{file} byte {position}"


def _what(loss: dict[str, Any]) -> str:
    if loss["routing_key"] is not None:
        return f"{loss['exchange'] or '(default)'} / {loss['routing_key']}"
    if loss["queues"] or loss["body_bytes"] is not None:
        return "?"
    many = loss["messages"]
    many = "an unknown number of messages" if many is None else f"{many} messages"
    return f"{many} of which nothing is known"


def _queues(loss: dict[str, Any]) -> Cell:
    if loss["queues"]:
        return target_lines(loss["queues"])
    return None if loss["body_bytes"] is None else "where it went is lost"


_ACTION_COLUMNS = (number("step", 0), name("what", 1))
_LOSS_COLUMNS = (
    number("LSN", "lsn"),
    name("where", _where),
    size("size", "body_bytes"),
    name("message", _what),
    name("queue #offset", _queues),
)


def repair(
    data_dir: DataDir = DATA_DIR_DEFAULT,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Do it: what cannot be read is given up for good.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what could be saved of a damaged directory, or do it.

    Run it without first: it changes nothing then, and lists what would be lost, message by
    message. What is damaged is moved to quarantine/, never deleted. The broker must not run.
    """
    with errors_told():
        directory = Directory(data_dir)
        report = _repaired(data_dir) if accept_loss else _show(directory, make_plan(directory))
    finish(report, as_json=as_json)


def _repaired(data_dir: Path) -> Report:
    """Plan and act under the broker's lock, then verify."""
    disk = OSDisk()
    paths = Paths(data_dir.absolute())
    lock = prepare(disk, paths)
    try:
        directory = Directory(data_dir)
        plan = make_plan(directory)
        free_bytes = shutil.disk_usage(paths.log).free
        if plan.needed and free_bytes < plan.written_bytes:
            stop(
                f"{paths.log} has no space for what is to be written: it takes "
                f"{Bytes(plan.written_bytes).human()}, and {Bytes(free_bytes).human()} are free"
            )
        report = _show(directory, plan, title="done" if plan.needed else "to be done")
        report.damage, report.notes = [], list(plan.notes)
        if plan.needed:
            try:
                place = act(plan, directory, disk, report.content)
            except PermissionError:
                raise
            except OSError as error:
                where = error.filename or directory.root
                stop(f"{where}: {error.strerror}; what was done so far can be repeated")
            report.damage = verified(Directory(data_dir)).all_damage
            report.content |= {"done": True, "quarantine": str(place)}
            report.summary = f"{data_dir}: repaired; {_cost(plan)}; the originals are in {place}"
    finally:
        disk.close(lock)
    return report


def _show(directory: Directory, plan: Plan, title: str = "to be done") -> Report:
    report = Report("repair", data_dir=str(directory.root))  # the plan says what it is for
    report.in_use = directory.in_use
    report.notes, report.damage = list(plan.notes), plan.damage
    losses = [loss.document(directory) for loss in plan.log.losses]
    report.content = {
        "actions": plan.actions,
        "losses": losses,
        "settled_losses": plan.log.settled_losses,
        "done": False,
        "quarantine": None,
    }
    report.table(_ACTION_COLUMNS, enumerate(plan.actions, 1), title=title)
    report.table(_LOSS_COLUMNS, losses, title="lost")
    if directory.in_use and plan.needed:
        report.notes.append("a broker runs on it: it must be stopped before --accept-loss")
    if plan.log.settled_losses:
        report.notes.append(
            f"{plan.log.settled_losses} more messages cannot be read, for which nobody waits any more"
        )
    report.summary = f"{directory.root}: there is nothing to repair"
    if plan.needed:
        report.summary = (
            f"{directory.root}: nothing was changed; {_cost(plan)}; with --accept-loss it is done"
        )
    return report


def _cost(plan: Plan) -> str:
    known = sum(loss.messages or 0 for loss in plan.log.losses)
    if any(loss.messages is None for loss in plan.log.losses):
        return f"{counted(known, 'message')} lost that can be named, and perhaps more"
    return f"{counted(known, 'message')} lost"
