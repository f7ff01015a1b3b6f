"""What routing refuses: pure exceptions without reply codes.

They say what is impossible; which reply code and scope a client sees is the broker's business.
"""

from collections.abc import Mapping


class RoutingError(Exception):
    """Something asked of a routing table is impossible. Nothing was changed."""


class UnknownExchangeType(RoutingError):
    """No exchange type has this name."""

    def __init__(self, type_name: str) -> None:
        # In RabbitMQ the empty name is one that it knows, but not as an exchange type.
        known = "unknown" if type_name else "invalid"
        super().__init__(f"{known} exchange type '{type_name}'")
        self.type_name = type_name


class MissingExchange(RoutingError):
    """The table has no exchange of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no exchange '{name}'")
        self.name = name


class MissingQueue(RoutingError):
    """The table has no queue of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no queue '{name}'")
        self.name = name


class DefaultExchangeForbidden(RoutingError):
    """The default exchange cannot be declared, deleted, bound or unbound."""

    def __init__(self) -> None:
        super().__init__("operation not permitted on the default exchange")


class InvalidArguments(RoutingError):
    """An exchange of this type cannot work with its arguments; str() is RabbitMQ's text."""


class InvalidBinding(RoutingError):
    """An exchange of this type cannot work with a binding; str() is RabbitMQ's text."""


class InvalidMatch(InvalidBinding):
    """A headers exchange cannot work with `value` as `x-match`.

    For a `value` that is no string, the text names an AMQP type that is guessed from the Python
    type. A caller that knows the type on the wire can name it exactly.
    """

    def __init__(self, value: object) -> None:
        if isinstance(value, str):
            super().__init__(
                f"Invalid x-match field value {erlang_text(value)}; "
                "expected all, any, all-with-x, or any-with-x"
            )
        else:
            kind, term = _erlang(value)
            super().__init__(f"Invalid x-match field type {kind} (value {term}); expected longstr")
        self.value = value


def erlang_text(text: str) -> str:
    """A text as RabbitMQ's error texts print it.

    >>> erlang_text("a"), erlang_text(""), erlang_text("é")
    ('<<"a">>', '<<>>', '<<"é"/utf8>>')
    """
    if not text:
        return "<<>>"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'<<"{escaped}"{"" if text.isascii() else "/utf8"}>>'


def erlang_term(value: object) -> str:
    """A field value as RabbitMQ's error texts print it."""
    return erlang_text(value) if isinstance(value, str) else _erlang(value)[1]


def _erlang(value: object) -> tuple[str, str]:
    """Return the AMQP type a field value most likely had, and the value as RabbitMQ prints it."""
    match value:
        case None:
            return "void", "undefined"
        case bool():
            return "bool", str(value).lower()
        case int():
            return ("signedint" if -(2**31) <= value < 2**31 else "long"), str(value)
        case float():
            return "double", str(value)
        case bytes():
            return "binary", f'<<"{value.decode("latin-1")}">>'
        case list() | tuple():
            return "array", str(value)
        case Mapping():
            return "table", str(value)
    return type(value).__name__, str(value)
