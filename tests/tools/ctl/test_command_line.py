"""Command lines, help, and how results are written; without a broker."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from qlog.tools.ctl.api import Api
from qlog.tools.ctl.command import Call, Document, Message, Option, Result, Rows
from qlog.tools.ctl.commands import backups as backups_module
from qlog.tools.ctl.formats import lines
from qlog.tools.ctl.help import PROGRAMS, nearest
from qlog.tools.ctl.main import main
from qlog.tools.ctl.parse import parse
from qlog.tools.ctl.table import COMMANDS, commands_of
from qlog.tools.ctl.top import _next, widths_for
from qlog.tools.ctl.top import main as top
from qlog.tools.ctl.values import (
    Address,
    Arguments,
    Atom,
    Definition,
    Numbers,
    padded,
    shortened,
    width,
)
from qlog.tools.ctl.words import BEHIND
from tests.tools.ctl.words import words_behind

OPTIONS = (Option("priority", int), Option("if_empty", bool, ("-e",)), Option("apply_to"))


@pytest.mark.parametrize(
    ("words", "args", "options", "invalid"),
    [
        ("a b", ["a", "b"], {}, []),
        ("-p v a", ["a"], {"vhost": "v"}, []),
        ("--vhost=v a", ["a"], {"vhost": "v"}, []),
        ("a --priority 5 b", ["a", "b"], {"priority": 5}, []),
        ("a --priority -5", ["a"], {"priority": -5}, []),
        ("--priority x", [], {}, [("--priority", "x")]),
        ("--priority", [], {}, [("--priority", "")]),
        ("-p -q", [], {"quiet": True}, [("-p", "")]),
        ("-e a", ["a"], {"if_empty": True}, []),
        ("--no-table-headers", [], {"table_headers": False}, []),
        ("--nosuch a", ["a"], {}, [("--nosuch", "")]),
        ("--nosuch=x", [], {}, [("--nosuch", "x")]),
        ("-- --apply-to -q", ["--apply-to", "-q"], {}, []),
        ("-1 -", ["-1", "-"], {}, []),
    ],
)
def test_a_command_line(
    words: str, args: list[str], options: dict[str, Any], invalid: list[tuple[str, str]]
) -> None:
    parsed = parse(words.split(), OPTIONS)
    assert (parsed.args, parsed.options, parsed.invalid) == (args, options, invalid)


def say(capsys: pytest.CaptureFixture[str], *words: str, tool: str = "ctl") -> tuple[int, str, str]:
    status = main(tool, list(words))
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize("tool", PROGRAMS)
def test_the_list_of_commands(capsys: pytest.CaptureFixture[str], tool: str) -> None:
    status, out, _ = say(capsys, "help", tool=tool)
    assert status == 0
    assert {line.split()[0] for line in out.splitlines() if line.startswith("   ")} == set(
        commands_of(tool)
    )
    assert say(capsys, tool=tool) == (status, out, "")
    assert say(capsys, "help", "--list-commands")[1].split() == sorted(commands_of("ctl"))


def test_examples_run_as_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("ctl", ["help", "peek"], "qlog ctl") == 0
    assert "\n  qlog ctl peek orders --count 5\n" in capsys.readouterr().out
    assert "\n  rabbitmqctl peek orders --count 5\n" in say(capsys, "help", "peek")[1]


@pytest.mark.parametrize(
    "url", ["x", "localhost:15672", "http://", "http://host:port", "http://h:70000", "ftp://host"]
)
def test_an_address_that_is_none(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = say(capsys, "status", "--url", url)
    assert status == 64
    assert err == (
        "Error (argument validation): the address of a broker looks like "
        "http://USER:PASSWORD@HOST:15672\n"
    )
    assert top(["--url", url]) == 64 and "looks like http://" in capsys.readouterr().err


def test_a_broker_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = say(capsys, "status", "--data-dir", str(tmp_path))
    assert status == 69
    assert f"\n{tmp_path}/ctl.sock does not answer: No such file or directory\n" in err


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """The address of something that answers everything with this."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_DELETE = do_POST = do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://ann:secret@127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# Commands whose first question is about something else, each.
ASKING = [["status"], ["list_queues"], ["delete_queue", "q"], ["list_users"], ["ping"], ["report"]]


@pytest.mark.parametrize("words", ASKING, ids=" ".join)
@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (401, b'{"error": "not_authorized", "reason": "Not_Authorized"}', "wrong name or password"),
        (401, b'{"error": "not_authorised", "reason": "Not monitor user"}', "Not monitor user"),
    ],
)
def test_who_may_not_ask_is_told_in_one_line(
    words: list[str], status: int, body: bytes, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(status, body) as url:
        assert say(capsys, *words, "--url", url)[0] == 69
        err = say(capsys, *words, "--url", url)[2]
        where = url.replace("ann:secret@", "")
        assert err == f"Error:\n{where} refuses user 'ann': {why}\n"
        assert top(["--once", "--url", url]) == 69
        assert capsys.readouterr().err == f"qlog: {where} refuses user 'ann': {why}\n"


@pytest.mark.parametrize("words", ASKING, ids=" ".join)
def test_what_answers_and_is_no_api(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with answering(200, b"<html>") as url:
        status, _, err = say(capsys, *words, "--url", url)
        assert status == 69
        assert "does not answer: something is there, but no management API" in err
        assert top(["--once", "--url", url]) == 69
        assert "no management API" in capsys.readouterr().err


def test_of_definitions_that_cannot_be_written_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "definitions.json"
    monkeypatch.setattr(os, "replace", full)
    with answering(200, b'{"users": []}') as url:
        status, _, err = say(capsys, "-q", "export_definitions", str(path), "--url", url)
    assert (status, err) == (69, f"Error:\n{path}: No space left on device\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--nosuch"], "not known, or no value: --nosuch"),
        (["--rows"], "not known, or no value: --rows"),
        (["--rows", "x"], "no value that fits: --rows x"),
        (["--rows", "0"], "--rows is 1 to 500"),
        (["--rows", "501"], "--rows is 1 to 500"),
        (["--interval", "0"], "--interval is at least 0.1"),
        (["--interval", "nan"], "--interval is at least 0.1"),
        (["--interval", "inf"], "--interval is at most 86400"),
        (["--interval", "1e12"], "--interval is at most 86400"),
        (["queues"], "not known: queues"),
    ],
)
def test_top_says_what_is_wrong(
    words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert top(words) == 64
    assert capsys.readouterr().err.startswith(f"qlog top: {why}\nusage: qlog top [")


def test_top_waits_for_a_broker_that_is_started_anew() -> None:
    shown = _next(Api("/nosuch"), 15)
    assert str(shown) == (
        "/nosuch/ctl.sock does not answer: No such file or directory; asking again"
    )


@pytest.mark.parametrize(
    ("text", "columns"), [("", 0), ("abc", 3), ("ä", 1), ("a\u0308", 1), ("注文", 4), ("ｱ", 1)]
)
def test_columns_of_a_terminal(text: str, columns: int) -> None:
    assert width(text) == columns
    assert padded(text, 5) == text + " " * (5 - columns)


def test_on_a_narrow_terminal_long_names_give_way_to_numbers() -> None:
    columns = ["vhost", "name", "state", "ready"]
    rows = [["/", "x" * 200, "running", "1234567"], ["a long vhost indeed", "注文", "running", "1"]]
    assert widths_for(300, columns, rows) == [19, 200, 7, 7]
    widths = widths_for(60, columns, rows)
    assert sum(widths) + 2 * 4 == 60 and widths[2:] == [7, 7]
    assert widths_for(10, columns, rows) == [8, 8, 7, 7]


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("注文待", 6, "注文待"),
        ("注文待", 5, "注文…"),
        ("注文待", 4, "注…"),
    ],
)
def test_a_name_is_shortened(text: str, columns: int, shown: str) -> None:
    assert shortened(text, columns) == shown


def test_a_table_with_wide_names_is_straight() -> None:
    rows = Rows(
        ("name", "messages"), [{"name": "注文", "messages": 1}, {"name": "abcd", "messages": 2}]
    )
    call = Call([], {}, Api(""), "ctl")
    *_, first, _, second, _ = lines(rows, call, "pretty_table")
    assert first.index(" 1 ") + len("注文") == second.index(" 2 ")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_each_command_says_how_it_is_used(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tool = command.tools[0]
    status, out, _ = say(capsys, "help", command.name, tool=tool)
    assert status == 0
    assert f"[--quiet] {command.name}{' ' if command.usage else ''}{command.usage}\n" in out
    assert command.about in out
    for example in command.examples:
        assert command.name in example.split()
    if command.name != "help":
        assert say(capsys, command.name, "--help", tool=tool) == (status, out, "")


def test_completion_knows_all_other_commands() -> None:
    """If this fails: `python -m tests.tools.ctl.words`."""
    assert words_behind() == BEHIND


def test_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert nearest("list_quees", commands_of("ctl")) == "list_queues"
    assert nearest("xyzzy", commands_of("ctl")) is None
    status, out, err = say(capsys, "xyzzy")
    assert (status, out) == (64, "")
    assert "Command 'xyzzy' not found." in err
    assert "Available commands:" in err
    assert say(capsys, "help", "lst_users")[2].endswith("Did you mean 'list_users'? \n")


ROW = {
    "name": 'q"1',
    "arguments": Arguments({"x-max-length": 10, "big": 2**40, "l": [1, "a"], "t": {"b": True}}),
    "policy": Definition({"max-length": 5}),
    "host": Address("127.0.0.1"),
    "tags": [Atom("a"), Atom("b")],
    "protocol": Numbers((0, 9, 1)),
    "durable": True,
    "nothing": None,
}


@pytest.mark.parametrize(
    ("formatter", "expected"),
    [
        (
            "",
            [
                "\t".join(ROW),
                (
                    'q"1\t[{"x-max-length",10},{"big",1099511627776},{"l",[1,"a"]},{"t",[{"b",true}]}]'
                    '\t[{<<"max-length">>, 5}]\t127.0.0.1\t[a, b]\t{0,9,1}\ttrue\t'
                ),
            ],
        ),
        (
            "json",
            [
                "[",
                (
                    '{"name":"q\\"1","arguments":[["x-max-length","signedint",10],'
                    '["big","long",1099511627776],["l","array",[["signedint",1],["longstr","a"]]],'
                    '["t","table",[["b","bool",true]]]],"policy":[["max-length",5]],'
                    '"host":[127,0,0,1],"tags":["a","b"],"protocol":[0,9,1],"durable":true,'
                    '"nothing":""}'
                ),
                "]",
            ],
        ),
        (
            "erlang",
            [
                (
                    '[[{name,<<"q\\"1">>},{arguments,[{<<"x-max-length">>,signedint,10},'
                    '{<<"big">>,long,1099511627776},{<<"l">>,array,[1,<<"a">>]},'
                    '{<<"t">>,table,[{<<"b">>,bool,true}]}]},{policy,[{<<"max-length">>,5}]},'
                    '{host,<<"127.0.0.1">>},{tags,[a,b]},{protocol,{0,9,1}},{durable,true},'
                    "{nothing,undefined}]]"
                )
            ],
        ),
    ],
)
def test_values(formatter: str, expected: list[str]) -> None:
    assert written(Rows(tuple(ROW), [ROW]), formatter) == expected


def test_a_drawn_table() -> None:
    rows = Rows(("a", "bcd"), [{"a": "xy", "bcd": 1}])
    assert written(rows, "pretty_table") == [
        "\x1b(0lqqqqwqqqqqk\x1b(B",
        "\x1b(0x\x1b(B \x1b[1ma\x1b[0m  \x1b(0x\x1b(B \x1b[1mbcd\x1b[0m \x1b(0x\x1b(B",
        "\x1b(0tqqqqnqqqqqu\x1b(B",
        "\x1b(0x\x1b(B xy \x1b(0x\x1b(B 1   \x1b(0x\x1b(B",
        "\x1b(0mqqqqvqqqqqj\x1b(B",
    ]


@pytest.mark.parametrize(
    ("result", "formatter", "expected"),
    [
        (Rows(("a",), []), "", []),
        (Rows(("a",), []), "csv", []),
        (Rows(("a",), []), "json", ["[", "]"]),
        (Rows(("a",), []), "erlang", ["[]"]),
        (Rows(("a",), []), "pretty_table", []),
        (Rows(("a", "b"), [{"a": 'x"y', "b": False}]), "csv", ['"a","b"', '"x""y","false"']),
        (Rows(("a",), [{"a": 1}], header=False), "", ["1"]),
        (Message("yes"), "", ["yes"]),
        (Message("yes", {"n": 1}), "json", ['{"message":"yes","n":1}']),
        (Document({"a": 1}, "one"), "", ["one"]),
        (Document({"a": 1}, "one"), "json", ['{"a":1}']),
        (None, "", []),
    ],
)
def test_results(result: Result, formatter: str, expected: list[str]) -> None:
    assert written(result, formatter) == expected


def written(result: Result, formatter: str) -> list[str]:
    from qlog.tools.ctl.api import Api

    return list(lines(result, Call([], {}, Api("nowhere"), "ctl"), formatter))


def test_a_backup_by_a_broker_that_does_not_say_whether_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a broker of an earlier version, which still runs."""
    monkeypatch.setattr(backups_module, "LOOK_S", 0)
    made = {"state": "made", "files": 2, "bytes": 9, "files_copied": 1, "bytes_copied": 4}
    answers = [{"state": "running", "directory": "/b"}, made]
    api = Api("nowhere")
    monkeypatch.setattr(api, "ask", lambda *_, **__: answers.pop(0))
    (command,) = (one for one in COMMANDS if one.name == "backup")
    document = command.run(Call(["/b"], {}, api, "ctl"))
    assert isinstance(document, Document) and document.value == made
