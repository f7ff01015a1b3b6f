"""A message for routing tests."""

from collections.abc import Mapping


class Plain:
    """A message with these headers; None: nobody may ask for them. Its properties are texts."""

    def __init__(self, headers: Mapping[str, object] | None, **properties: str) -> None:
        self._headers = headers
        self._properties = properties

    def headers(self) -> Mapping[str, object]:
        assert self._headers is not None, "headers were asked for where none are needed"
        return self._headers

    def property_text(self, name: str) -> str | None:
        return self._properties.get(name)
