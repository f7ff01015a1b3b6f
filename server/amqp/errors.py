"""The errors of AMQP: reply codes, how far each reaches, and the text a client sees.

Promises that an error knows its code, its scope (`SoftError` closes the channel, `HardError` the
connection) and the method it answers, and that its reply text fits in a shortstr. Knows nothing of
what went wrong: the texts come from the callers and follow RabbitMQ's.
"""

REPLY_TEXT_BYTES_MAX = 255  # a shortstr's length is one octet


class AMQPError(Exception):
    """An error to be told to the peer.

    `code` is the reply code and `name` its name (spec section 1.2, "constants"); `text` is the
    explanation. `class_id` and `method_id` name the offending method, 0 and 0 when there is none.
    """

    def __init__(
        self, code: int, name: str, text: str, class_id: int = 0, method_id: int = 0
    ) -> None:
        super().__init__(f"{code} {name} - {text}")
        self.code = code
        self.name = name
        self.text = text
        self.class_id = class_id
        self.method_id = method_id

    @property
    def reply_text(self) -> str:
        """`NAME - text` as RabbitMQ writes it, cut to 255 octets between characters."""
        text = f"{self.name} - {self.text}" if self.text else self.name
        reply = text.encode(errors="replace")
        return reply[:REPLY_TEXT_BYTES_MAX].decode(errors="ignore")


class SoftError(AMQPError):
    """Closes the channel it happened on (channel 0 has none: there it closes the connection)."""


class HardError(AMQPError):
    """Closes the connection."""


def access_refused(text: str, class_id: int = 0, method_id: int = 0) -> SoftError:
    """403: the client may not do this. A refused login is `login_refused`."""
    return SoftError(403, "ACCESS_REFUSED", text, class_id, method_id)


def not_found(text: str, class_id: int = 0, method_id: int = 0) -> SoftError:
    """404: no such queue or exchange."""
    return SoftError(404, "NOT_FOUND", text, class_id, method_id)


def resource_locked(text: str, class_id: int = 0, method_id: int = 0) -> SoftError:
    """405: the queue belongs to another connection."""
    return SoftError(405, "RESOURCE_LOCKED", text, class_id, method_id)


def precondition_failed(text: str, class_id: int = 0, method_id: int = 0) -> SoftError:
    """406: an argument does not fit what exists, or what is allowed."""
    return SoftError(406, "PRECONDITION_FAILED", text, class_id, method_id)


def connection_forced(text: str, class_id: int = 0, method_id: int = 0) -> HardError:
    """320: an operator, or the server's shutdown, closes the connection."""
    return HardError(320, "CONNECTION_FORCED", text, class_id, method_id)


def login_refused(text: str, class_id: int = 0, method_id: int = 0) -> HardError:
    """403 during the handshake: there is no channel to close."""
    return HardError(403, "ACCESS_REFUSED", text, class_id, method_id)


def frame_error(text: str, class_id: int = 0, method_id: int = 0) -> HardError:
    """501: octets that are no frame, or a body longer than announced."""
    return HardError(501, "FRAME_ERROR", text, class_id, method_id)


def syntax_error(text: str, class_id: int = 0, method_id: int = 0) -> HardError:
    """502: a field with an impossible value."""
    return HardError(502, "SYNTAX_ERROR", text, class_id, method_id)


def command_invalid(text: str, class_id: int = 0, method_id: int = 0) -> HardError:
    """503: a method that may not come now, or that there is not."""
    return HardError(503, "COMMAND_INVALID", text, class_id, method_id)


def channel_error(text: str, class_id: int = 0, method_id: int = 0) -> HardError:
    """504: a channel that is not open, or is open already."""
    return HardError(504, "CHANNEL_ERROR", text, class_id, method_id)


def unexpected_frame(text: str, class_id: int = 0, method_id: int = 0) -> HardError:
    """505: a frame out of order."""
    return HardError(505, "UNEXPECTED_FRAME", text, class_id, method_id)


def not_allowed(text: str, class_id: int = 0, method_id: int = 0) -> HardError:
    """530: against the rules of this server."""
    return HardError(530, "NOT_ALLOWED", text, class_id, method_id)


def not_implemented(text: str, class_id: int = 0, method_id: int = 0) -> HardError:
    """540: a part of AMQP that this server does not have."""
    return HardError(540, "NOT_IMPLEMENTED", text, class_id, method_id)


def internal_error(text: str = "", class_id: int = 0, method_id: int = 0) -> HardError:
    """541: the server failed; without a text also RabbitMQ's answer to malformed properties."""
    return HardError(541, "INTERNAL_ERROR", text, class_id, method_id)
