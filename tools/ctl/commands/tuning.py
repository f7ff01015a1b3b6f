"""What an operator sets on the running process: thresholds, the level of the log, a name."""

from __future__ import annotations

import re

from qlog.tools.ctl.command import BadUsage, Call, Command, Failure, Options, Status, bad_argument

LOG_LEVELS = ("debug", "info", "warning", "error", "critical", "none")
_UNITS = {
    "": 1,
    **{name: 10**power for power, names in ((3, "kK"), (6, "mM"), (9, "gG")) for name in names},
    **{f"{name}b": 10**power for power, name in ((3, "k"), (6, "m"), (9, "g"), (12, "t"))},
    **{f"{name}B": 10**power for power, name in ((3, "k"), (6, "m"), (9, "g"), (12, "t"))},
    **{f"{name}B": 10**power for power, name in ((3, "K"), (6, "M"), (9, "G"), (12, "T"))},
    **{f"{name}iB": 2**power for power, name in ((10, "K"), (20, "M"), (30, "G"), (40, "T"))},
    **{f"{name}ib": 2**power for power, name in ((10, "k"), (20, "m"), (30, "g"), (40, "t"))},
}


def octets(text: str) -> int:
    """A size such as `50MB`. Raises BadUsage."""
    match = re.fullmatch(r"(\d+)\s*([A-Za-z]{0,3})", text)
    if match is None or match[2] not in _UNITS:
        raise bad_argument()
    factor: int = _UNITS[match[2]]
    return int(match[1]) * factor


def fraction(text: str) -> float:
    """A number that may have a point. Raises BadUsage."""
    try:
        return float(text)
    except ValueError:
        raise bad_argument() from None


def _check_memory(args: list[str], options: Options) -> None:
    if args[0] == "absolute":
        if len(args) < 2:
            raise BadUsage("not enough arguments.")
        octets(args[1])
    elif len(args) > 1:
        raise BadUsage("too many arguments.")
    elif not 0 <= fraction(args[0]) <= 1:
        raise bad_argument("The threshold should be a fraction between 0.0 and 1.0")


def set_memory_watermark(call: Call) -> None:
    """Block publishers above this use of memory."""
    absolute = call.args[0] == "absolute"
    body = {"bytes": octets(call.args[1])} if absolute else {"fraction": fraction(call.args[0])}
    call.ask("PUT", "qlog", "watermarks", "memory", body=body)


def _memory_banner(call: Call) -> str:
    threshold = f"{call.args[1]} bytes" if call.args[0] == "absolute" else call.args[0]
    return f"Setting memory threshold on {call.node} to {threshold} ..."


def _check_disk(args: list[str], options: Options) -> None:
    if args[0] == "mem_relative":
        if len(args) < 2:
            raise BadUsage("not enough arguments.")
        fraction(args[1])
    elif len(args) > 1:
        raise BadUsage("too many arguments.")
    else:
        octets(args[0])


def set_disk_limit(call: Call) -> None:
    """Block publishers when less of the disk is free."""
    relative = call.args[0] == "mem_relative"
    body = {"fraction": fraction(call.args[1])} if relative else {"bytes": octets(call.args[0])}
    call.ask("PUT", "qlog", "watermarks", "disk", body=body)


def _disk_banner(call: Call) -> str:
    if call.args[0] == "mem_relative":
        return f"Setting disk free limit on {call.node} to {call.args[1]} times the total RAM ..."
    return f"Setting disk free limit on {call.node} to {call.args[0]} bytes ..."


def set_log_level(call: Call) -> None:
    """Log more, or less; until the next start."""
    call.ask("PUT", "qlog", "log-level", body={"level": call.args[0]})


def _check_level(args: list[str], options: Options) -> None:
    if args[0] not in LOG_LEVELS:
        raise Failure(
            f"level {args[0]} is not supported. Try one of {', '.join(LOG_LEVELS)}",
            Status.UNAVAILABLE,
        )


def set_cluster_name(call: Call) -> None:
    """The name that clients are told."""
    call.ask("PUT", "cluster-name", body={"name": call.args[0]})


_E = "Configuration and Environment"

COMMANDS = (
    Command(
        "set_vm_memory_high_watermark",
        _E,
        "Blocks publishers above this use of memory; until the next start",
        set_memory_watermark,
        usage="<fraction> | absolute <value>",
        args=(1, 2),
        banner=_memory_banner,
        check=_check_memory,
        examples=("set_vm_memory_high_watermark 0.5", "set_vm_memory_high_watermark absolute 2GB"),
    ),
    Command(
        "set_disk_free_limit",
        _E,
        "Blocks publishers when less of the disk is free; until the next start",
        set_disk_limit,
        usage="<disk_limit> | mem_relative <fraction>",
        args=(1, 2),
        banner=_disk_banner,
        check=_check_disk,
        examples=("set_disk_free_limit 5GB", "set_disk_free_limit mem_relative 1.5"),
    ),
    Command(
        "set_log_level",
        _E,
        "Logs more or less, until the next start",
        set_log_level,
        usage="<log_level>",
        args=(1, 1),
        banner='Setting log level to "{0}" ...',
        check=_check_level,
        examples=("set_log_level debug",),
    ),
    Command(
        "set_cluster_name",
        _E,
        "Sets the name that clients are told",
        set_cluster_name,
        usage="<name>",
        args=(1, 1),
        banner="Setting cluster name to {0} ...",
    ),
)
