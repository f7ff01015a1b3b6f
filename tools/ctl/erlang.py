"""The few expressions of Erlang that `eval` obeys: those that test suites of clients send.

There is no Erlang here. An expression is compared with patterns, blanks aside.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from qlog.tools.ctl.command import BadUsage, Call, Failure, Status
from qlog.tools.ctl.values import as_term

_ALARMS = ("memory", "disk", "file_descriptor_limit")


def _alarm(on: bool) -> Callable[[Call, re.Match[str]], str]:
    def obey(call: Call, match: re.Match[str]) -> str:
        call.ask("PUT", "qlog", "alarms", match[1], body={"on": on})
        return "ok"

    return obey


def _set_setting(call: Call, match: re.Match[str]) -> str:
    missing = Failure(f"{match[1]} cannot be set while the broker runs", Status.UNAVAILABLE)
    path = ("qlog", "environment", match[1])
    call.ask("PUT", *path, body={"value": _value(match[2])}, missing=missing)
    return "ok"


def _get_setting(call: Call, match: re.Match[str]) -> str:
    found = call.get("qlog", "environment")
    return f"{{ok,{as_term(found[match[1]])}}}" if match[1] in found else "undefined"


def _get_value(call: Call, match: re.Match[str]) -> str:
    found = call.get("qlog", "environment")
    if match[2] not in found:
        raise Failure("no match of right hand side value undefined", Status.UNAVAILABLE)
    return as_term(found[match[2]])


def _value(text: str) -> object:
    """A number, or a list of names."""
    if text.isdigit():
        return int(text)
    if text in ("infinity", "undefined"):
        return 0
    if re.fullmatch(r'\[(<<"[^"]*">>(,<<"[^"]*">>)*)?\]', text):
        return re.findall(r'<<"([^"]*)">>', text)
    raise Failure(f"this value is not recognised: {text}", Status.UNAVAILABLE)


def _watermark(call: Call, match: re.Match[str]) -> str:
    return f"{{absolute,{call.get('qlog', 'status')['memory_limit']}}}"


_RESOURCE = rf"\{{resource_limit,({'|'.join(_ALARMS)}),node\(\)\}}"
_FORMS: tuple[tuple[str, Callable[[Call, re.Match[str]], str]], ...] = (
    (rf"rabbit_alarm:set_alarm\(\{{{_RESOURCE},\[\]\}}\)", _alarm(True)),
    (rf"rabbit_alarm:clear_alarm\({_RESOURCE}\)", _alarm(False)),
    (r"application:set_env\(rabbit,(\w+),(.+)\)", _set_setting),
    (r"application:get_env\(rabbit,(\w+)\)", _get_setting),
    (r"\{ok,(\w+)\}=application:get_env\(rabbit,(\w+)\),\1", _get_value),
    (r"vm_memory_monitor:get_vm_memory_high_watermark\(\)", _watermark),
    (r"node\(\)", lambda call, match: call.node if call.node.isalnum() else f"'{call.node}'"),
    (r"nodes\(\)", lambda call, match: "[]"),
    (r"rabbit_mnesia:is_clustered\(\)", lambda call, match: "false"),
    (r"rabbit_deprecated_features:is_permitted\(\w+\)", lambda call, match: "true"),
    (r"rabbit:is_running\(\)", lambda call, match: _running(call)),
    (r"(\d+)\+(\d+)", lambda call, match: str(int(match[1]) + int(match[2]))),
)


def _running(call: Call) -> str:
    return "true" if call.get("qlog", "status")["running"] else "false"


def evaluated(call: Call) -> str:
    """What an expression comes to. Raises BadUsage without its full stop, Failure if it is none
    of those that are recognised."""
    text = call.args[0].strip()
    if not text.endswith("."):
        raise BadUsage('"syntax error before: "')
    squeezed = re.sub(r"\s+", "", text[:-1])
    for pattern, obey in _FORMS:
        match = re.fullmatch(pattern, squeezed)
        if match is not None:
            return obey(call, match)
    raise Failure(
        "qlog has no Erlang: `eval` recognises a few expressions only, and not this one",
        Status.UNAVAILABLE,
    )
