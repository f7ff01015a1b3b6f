"""What exchange types may ask of a message, beside its routing keys."""

from collections.abc import Mapping
from typing import Protocol


class Message(Protocol):
    """A message on its way. Each call may cost the decoding of its properties."""

    def headers(self) -> Mapping[str, object]:
        """The headers; empty when there are none."""

    def property_text(self, name: str) -> str | None:
        """The property `correlation_id`, `message_id` or `timestamp` (in seconds) as text.

        None when it is absent.
        """
