"""What lies between a socket's octets and the protocol's: nothing, or TLS (tls.py).

A transport does no I/O and keeps no socket. The session hands it what it has received, and sends
what it is given back, so that a partial send is only octets, whatever they mean.
"""

from collections.abc import Sequence
from typing import Protocol

from qlog.server.amqp.frames import Buffer
from qlog.server.broker.access.certificate import Secured


class Transport(Protocol):
    """The way in and out of one connection."""

    def feed(self, data: bytes) -> bytes:
        """What the octets from the socket say: all that can be understood now, perhaps nothing.

        Send what `seal(())` returns after it when `has_words`: a handshake is answered with octets
        that nobody wrote. Raises ConnectionError when the peer does not speak the transport's
        language; str() says in words how it does not, and there may be last words for the peer.
        """

    def seal(self, buffers: Sequence[Buffer]) -> Buffer:
        """What goes to the socket for what was written, behind the transport's own words.

        Each call's octets are to be sent before those of the next. Not called when
        `portion_bytes` is 0.
        """

    def farewell(self) -> bool:
        """The session will write nothing more. Whether there are words for that, the first time."""

    @property
    def portion_bytes(self) -> int:
        """So much is sealed at once; 0: what is written goes to the socket as it is."""

    @property
    def has_words(self) -> bool:
        """The transport itself has something to say."""

    @property
    def greeting(self) -> bool:
        """The handshake is under way: `feed` may take milliseconds, and nothing can be written."""

    @property
    def ended(self) -> bool:
        """The peer has said that it will write nothing more."""

    @property
    def secured(self) -> Secured | None:
        """How the connection is encrypted, and who the peer is; None: it is not (yet)."""


class PlainTransport:
    """Octets as they are; not copied. Keeps nothing, so that one serves all sessions."""

    __slots__ = ()
    portion_bytes = 0
    has_words = False
    greeting = False
    ended = False
    secured = None

    def feed(self, data: bytes) -> bytes:
        """`data`."""
        return data

    def seal(self, buffers: Sequence[Buffer]) -> Buffer:
        """Never called."""
        raise AssertionError("plain octets need no seal")

    def farewell(self) -> bool:
        """The end of the stream says it."""
        return False


PLAIN = PlainTransport()
