"""TLS of one connection, over memory: octets in, octets out (see transport.py).

Promises: nothing is read that the handshake has not made sure of; renegotiation is refused (TLS
1.3 has none); a peer that says goodbye is heard to the end first. What a step of a handshake costs
(a signature, up to some milliseconds) is `feed`'s time; who calls it sees to it that others do not
wait. A connection of which nothing has come yet costs no TLS state.

Whose certificate is shown, and which clients are trusted, is the context's (certificates.py).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence

from qlog.server.amqp.frames import Buffer
from qlog.server.broker.access.certificate import PeerCertificate, Secured

# So much is sealed at once. Under a millisecond, and a record has 16 KiB at most anyway.
PORTION_BYTES = 256 * 1024
# So much is read of the plain octets in one call: the largest record.
RECORD_BYTES = 16 * 1024
# A peer that makes the transport talk (key updates) must read what it says.
WORDS_BYTES_MAX = 1024 * 1024
# What peers get wrong most often, in words: OpenSSL's reasons.
_REASONS = {
    "NO_SHARED_CIPHER": "no cipher that both know",
    "UNSUPPORTED_PROTOCOL": "the client's version of TLS is too old",
    "NO_PROTOCOLS_AVAILABLE": "the client's version of TLS is too old",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the client does not take this version of TLS",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the client has shown no certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "the client does not trust who has signed the broker's certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the client does not take the broker's certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the client does not take the broker's certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the client says that the broker's certificate has expired",
}
_PLAIN = (
    (b"AMQP", "AMQP without TLS"),
    (b"GET ", "HTTP"),
    (b"POST ", "HTTP"),
    (b"PUT ", "HTTP"),
    (b"HEAD ", "HTTP"),
)


class TLSTransport:
    """The server's side of one TLS connection.

    Arguments: `context` gives the context at the moment when the handshake begins.
    """

    __slots__ = ("_context", "_in", "_out", "_tls", "ended", "greeting", "secured")
    portion_bytes = PORTION_BYTES

    def __init__(self, context: Callable[[], ssl.SSLContext]) -> None:
        self._context = context
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None  # None: nothing has come, or all is over
        self.greeting = True
        self.ended = False
        self.secured: Secured | None = None

    @property
    def has_words(self) -> bool:
        """There is ciphertext that no `seal` has fetched."""
        return self._out.pending > 0

    def feed(self, data: bytes) -> bytes:
        """See `Transport`."""
        if self.ended:
            return b""
        tls = self._tls
        if tls is None:
            for octets, what in _PLAIN:
                if data.startswith(octets):
                    self.ended = True
                    raise ConnectionError(f"{what} came to the port for TLS")
            tls = self._tls = self._context().wrap_bio(self._in, self._out, server_side=True)
        self._in.write(data)
        try:
            if self.greeting:
                tls.do_handshake()
                self.greeting = False
                self.secured = _secured(tls)
            return self._read(tls)
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLError as error:
            self._tls = None
            self.ended = True
            raise ConnectionError(_reason(error)) from error

    def _read(self, tls: ssl.SSLObject) -> bytes:
        parts: list[bytes] = []
        try:
            while part := tls.read(RECORD_BYTES):
                parts.append(part)
            self.ended = True  # the peer has said goodbye (close_notify)
        except ssl.SSLWantReadError:
            pass
        if self._out.pending > WORDS_BYTES_MAX:
            self.ended = True
            raise ConnectionError("the client makes TLS talk, and does not read")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def seal(self, buffers: Sequence[Buffer]) -> Buffer:
        """See `Transport`."""
        if buffers and self._tls is not None and not self.greeting:
            try:
                self._tls.write(buffers[0] if len(buffers) == 1 else b"".join(buffers))
            except ssl.SSLError:  # the peer has broken it off; `feed` tells why
                self._tls = None
        return self._out.read()

    def farewell(self) -> bool:
        """Say that nothing more will be written (close_notify)."""
        tls, self._tls = self._tls, None
        self.ended = True
        if tls is None or self.greeting:
            return False
        try:
            tls.unwrap()
        except ssl.SSLError:  # the peer's own farewell is still to come, or is not waited for
            pass
        return self.has_words


def _secured(tls: ssl.SSLObject) -> Secured:
    cipher = tls.cipher()
    # Empty when the client has shown none; None before the handshake.
    decoded = tls.getpeercert()
    return Secured(
        protocol=tls.version() or "",
        cipher=cipher[0] if cipher else "",
        certificate=PeerCertificate.of(decoded) if decoded else None,
    )


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate is refused: {error.verify_message}"
    return _REASONS.get(error.reason, error.reason.lower().replace("_", " "))
