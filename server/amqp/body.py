"""The body of one message as it arrives, in frames and in reads that end anywhere.

Promises: each octet is copied once, from the read to its place in the `bytes` that `take` returns;
what is kept never exceeds the size that was announced, and an announcement alone costs nothing.
"""

from io import BytesIO


class Body:
    """Arguments: `size` in octets, as the content header announced it."""

    __slots__ = ("_stream", "_whole", "missing")

    def __init__(self, size: int) -> None:
        self.missing = size
        self._whole = b""
        self._stream: BytesIO | None = None

    def add(self, octets: memoryview) -> None:
        """The next octets, at most `missing`."""
        count = len(octets)
        assert count <= self.missing
        if not count:
            return
        stream = self._stream
        if stream is None:
            if count == self.missing:
                self.missing = 0
                self._whole = bytes(octets)
                return
            # BytesIO writes into the object it was given, since nobody else has it, and `getvalue`
            # returns that very object. Its zeros cost nothing until they are written over.
            stream = self._stream = BytesIO(bytes(self.missing))
        stream.write(octets)
        self.missing -= count

    def take(self) -> bytes:
        """The whole body, once nothing is missing."""
        assert not self.missing
        return self._whole if self._stream is None else self._stream.getvalue()
