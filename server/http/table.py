"""The table of endpoints, from which both routing and the OpenAPI document are made.

Paths are matched as they came, segment by segment, before anything in them is decoded: a vhost is
`%2F` there. The first of two endpoints whose patterns fit is the one that names more of the path.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote

from qlog.server.http.access import Tag
from qlog.server.http.ask import Ask

Handler = Callable[[Ask], Awaitable[Any]]
Method = Literal["GET", "PUT", "POST", "DELETE"]
# A path with more octets, or parts, than this names nothing.
PATH_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path.

    `tag`: what a user needs. `query`: parameters behind the question mark with what they mean.
    `body`: fields of the JSON object that is taken, as JSON schemas; None: no body. (`content_of_body`
    is the type of a body that is no JSON.) `status`: that of success; `fails` further ones beside
    those that all have.
    """

    method: Method
    path: str
    handler: Handler
    summary: str
    tag: Tag = "management"
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    required: tuple[str, ...] = ()
    status: int = 200
    fails: tuple[int, ...] = ()
    content_type: str = "application/json"
    content_of_body: str = ""

    @property
    def parameters(self) -> list[str]:
        """The names of the parameters in the path."""
        return [part[1:-1] for part in self.path.split("/") if part.startswith("{")]


# Parameters of listings that come in pages, and of objects with a history for charts.
PAGED = {
    "page": "a page, from 1 on",
    "page_size": "objects on a page, 1 to 500; 100 if it is left out",
    "name": "only what has this in its name",
    "use_regex": "true: the name is a regular expression",
    "sort": "the column to sort by",
    "sort_reverse": "true: the last one first",
    "columns": "only these columns, parted by commas; a.b is b of a",
}
HISTORY = {
    "columns": PAGED["columns"],
    "lengths_age": "so many seconds of the lengths of queues",
    "lengths_incr": "a sample of each so many seconds",
    "msg_rates_age": "so many seconds of the rates of messages",
    "msg_rates_incr": "a sample of each so many seconds",
    "data_rates_age": "so many seconds of the rates of octets",
    "data_rates_incr": "a sample of each so many seconds",
}
LISTED = PAGED | HISTORY


class Node:
    """A part of all paths that begin alike."""

    __slots__ = ("any", "endpoints", "named")

    def __init__(self) -> None:
        self.named: dict[str, Node] = {}
        self.any: Node | None = None
        self.endpoints: dict[str, Endpoint] = {}


class Table:
    """All endpoints. Raises ValueError for two that are the same."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self.endpoints = list(endpoints)
        self._root = Node()
        for endpoint in self.endpoints:
            self._add(endpoint)

    def _add(self, endpoint: Endpoint) -> None:
        node = self._root
        for part in endpoint.path.strip("/").split("/"):
            if part.startswith("{"):
                node.any = node.any or Node()
                node = node.any
            else:
                node = node.named.setdefault(part, Node())
        if endpoint.method in node.endpoints:
            raise ValueError(f"{endpoint.method} {endpoint.path} is there twice")
        node.endpoints[endpoint.method] = endpoint

    def find(self, raw_path: str) -> tuple[dict[str, Endpoint], list[str]]:
        """What there is under a path, by methods, and the values of its parameters, decoded."""
        if len(raw_path) > PATH_BYTES_MAX:
            return {}, []
        parts = raw_path.removeprefix("/").removesuffix("/").split("/")
        return _find(self._root, parts, 0, [])


def _find(
    node: Node, parts: list[str], at: int, values: list[str]
) -> tuple[dict[str, Endpoint], list[str]]:
    if at == len(parts):
        return node.endpoints, values
    named = node.named.get(parts[at])
    if named is not None:
        found = _find(named, parts, at + 1, values)
        if found[0]:
            return found
    if node.any is not None:
        return _find(node.any, parts, at + 1, [*values, unquote(parts[at], errors="replace")])
    return {}, []
