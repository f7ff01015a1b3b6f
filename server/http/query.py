"""What is behind the question mark of a request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import parse_qsl

from qlog.server.http.refusals import bad_request

PARTS_MAX = 100


class Query(Mapping[str, str]):
    """The parameters by name, the first of each; `every` has all of a name. Raises 400."""

    __slots__ = ("_first", "_pairs")

    def __init__(self, octets: bytes = b"") -> None:
        try:
            self._pairs = parse_qsl(
                octets.decode("ascii", "replace"),
                keep_blank_values=True,
                errors="replace",
                max_num_fields=PARTS_MAX,
            )
        except ValueError:
            raise bad_request("too many parameters") from None
        self._first: dict[str, str] = {}
        for name, value in self._pairs:
            self._first.setdefault(name, value)

    def __getitem__(self, name: str) -> str:
        return self._first[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._first)

    def __len__(self) -> int:
        return len(self._first)

    def every(self, name: str) -> list[str]:
        """All values of a name, in their order."""
        return [value for each, value in self._pairs if each == name]
