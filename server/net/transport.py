"""What lies between a socket's octets and the protocol's: nothing, or (later) TLS.

A transport does no I/O and keeps no socket. The session hands it what it has received, and sends
what it is given back, so that a partial send is only octets, whatever they mean.
"""

from collections.abc import Sequence
from typing import Protocol

from qlog.server.amqp.frames import Buffer


class Transport(Protocol):
    """The way in and out of one connection."""

    def feed(self, data: bytes) -> bytes:
        """What the octets from the socket say: all that can be understood now, perhaps nothing.

        Call `seal(())` after it when `has_words`: a handshake is answered with octets that nobody
        wrote. Raises ConnectionError when the peer does not speak the transport's language.
        """

    def seal(self, buffers: Sequence[Buffer]) -> Sequence[Buffer]:
        """What goes to the socket for what was written, behind the transport's own words.

        Each call's octets are to be sent before those of the next.
        """

    @property
    def has_words(self) -> bool:
        """The transport itself has something to say."""


class PlainTransport:
    """Octets as they are; not copied. Keeps nothing, so that one serves all sessions."""

    __slots__ = ()
    has_words = False

    def feed(self, data: bytes) -> bytes:
        """`data`."""
        return data

    def seal(self, buffers: Sequence[Buffer]) -> Sequence[Buffer]:
        """`buffers`."""
        return buffers


PLAIN = PlainTransport()
