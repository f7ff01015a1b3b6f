"""What a command is, what it is called with, and what it comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any

from qlog.tools.ctl.api import Api, ApiError

DEFAULT_VHOST = "/"


class Status(IntEnum):
    """Exit statuses: those of sysexits.h, as rabbitmqctl uses them."""

    OK = 0
    USAGE = 64  # the command was used wrongly
    DATA = 65  # what was given is wrong, or names nothing
    NO_USER = 67
    UNAVAILABLE = 69  # refused, or the broker does not answer
    SOFTWARE = 70  # it is there already


class Failure(Exception):
    """A command failed: what is said on stderr, and the exit status.

    `plain`: without the word Error. `document` is what is said instead if JSON was asked for.
    """

    def __init__(
        self, text: str, status: Status, *, plain: bool = False, document: Any = None
    ) -> None:
        super().__init__(text)
        self.text = text
        self.status = status
        self.plain = plain
        self.document = document


class BadUsage(Exception):
    """Arguments or options are wrong; said together with the usage."""

    def __init__(self, text: str, status: Status = Status.USAGE) -> None:
        super().__init__(text)
        self.text = text
        self.status = status


def bad_argument(reason: str = "") -> BadUsage:
    """An argument that makes no sense."""
    return BadUsage(f"Bad argument: {reason}" if reason else "Bad argument.", Status.DATA)


@dataclass(frozen=True, slots=True)
class Message:
    """A line for people. `more` stands beside it in JSON."""

    text: str
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Document:
    """A result that is one object; `text` says it for people, line by line."""

    value: Any
    text: str


@dataclass(frozen=True, slots=True)
class Rows:
    """A table. `header`: whether its columns are named in text."""

    columns: Sequence[str]
    rows: Iterable[Mapping[str, Any]]
    header: bool = True


Result = Message | Document | Rows | None
Options = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Option:
    """An option that some commands have: its name, its type, and other names."""

    name: str
    type: type = str
    aliases: tuple[str, ...] = ()
    about: str = ""


class Call:
    """A command with what it was called with. `api_of` opens the API when it is needed."""

    def __init__(self, args: list[str], options: Options, api: Api, tool: str) -> None:
        self.args = args
        self.options = options
        self.api = api
        self.tool = tool

    @property
    def vhost(self) -> str:
        """The vhost that was named, or the default one."""
        vhost: str = self.options.get("vhost", DEFAULT_VHOST)
        return vhost

    @cached_property
    def node(self) -> str:
        """The name of the broker's node; for the texts only. Raises Failure."""
        try:
            return self.api.node()
        except ApiError as error:
            raise self.refused(error) from None

    def get(self, *parts: str, missing: Failure | None = None, **query: str) -> Any:
        """What a path has; `missing` is raised if that is nothing."""
        return self.ask("GET", *parts, missing=missing, query=query)

    def ask(
        self,
        method: str,
        *parts: str,
        body: Any = None,
        missing: Failure | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """One request. Raises `missing` for 404, and Failure for all other refusals."""
        try:
            return self.api.ask(method, parts, body=body, query=query or {}, headers=headers or {})
        except ApiError as error:
            if error.status == 404 and missing is not None:
                raise missing from None
            raise self.refused(error) from None

    def refused(self, error: ApiError) -> Failure:
        """What the API refused, in its words, but for who may not ask at all."""
        text = self.api.refusal(error) if error.status == 401 and self.api.url else error.reason
        return Failure(text, Status.UNAVAILABLE)

    def take_away(self, *parts: str) -> None:
        """Delete what a path has; what is gone already is no failure."""
        try:
            self.api.ask("DELETE", parts)
        except ApiError as error:
            if error.status != 404:
                raise self.refused(error) from None

    def exists(self, *parts: str) -> bool:
        """Whether a path has something."""
        try:
            self.api.ask("GET", parts)
        except ApiError as error:
            if error.status == 404:
                return False
            raise self.refused(error) from None
        return True


Run = Callable[[Call], Result]
Check = Callable[[list[str], Options], None]
Banner = str | Callable[[Call], str]


@dataclass(frozen=True, slots=True)
class Command:
    """A row of the table of commands.

    `usage` is what follows the name; `args` how many arguments there may be (None: any number).
    `banner` is the line before the result, with `{0}`, `{vhost}` and `{node}`. `columns`: the
    names that may be asked for, and those that are shown if none are. `check` looks at arguments
    before anything is done, and raises BadUsage. `tools`: the names under which it is found.
    """

    name: str
    group: str
    about: str
    run: Run
    usage: str = ""
    args: tuple[int, int | None] = (0, 0)
    banner: Banner = ""
    options: tuple[Option, ...] = ()
    columns: tuple[str, ...] = ()
    defaults: tuple[str, ...] = ()
    check: Check | None = None
    examples: tuple[str, ...] = ()
    tools: tuple[str, ...] = ("ctl",)
    formatter: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)


TIMEOUT = "[--timeout <timeout>]"  # a part of many a usage


def check_positive(args: list[str], options: Options) -> None:
    """The first argument is a number above 0. Raises BadUsage."""
    if not args[0].isdigit() or not int(args[0]):
        raise bad_argument("Argument must be a positive integer")


def wanted_columns(call: Call, defaults: Sequence[str]) -> list[str]:
    """The columns that were asked for, each once; names may be joined by commas."""
    named = [name for arg in call.args for name in arg.split(",") if name]
    return list(dict.fromkeys(named)) or list(defaults)


# -- failures that many commands have ----------------------------------------------------------


def no_vhost(name: str) -> Failure:
    """The vhost is not there."""
    return Failure(f"Virtual host '{name}' does not exist", Status.DATA, plain=True)


def no_user(name: str) -> Failure:
    """The user is not there."""
    return Failure(f'User "{name}" does not exist', Status.NO_USER)


def no_such_user(name: str) -> Failure:
    """The same, as some commands say it."""
    return Failure(f'{{:no_such_user, "{name}"}}', Status.UNAVAILABLE)


NO_OBJECT = Failure("Object (queue, stream, exchange, etc) was not found", Status.DATA, plain=True)
NO_PARAMETER = Failure("Parameter does not exist", Status.UNAVAILABLE)
