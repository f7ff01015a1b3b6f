"""The history that is asked for, in the query: RabbitMQ's parameters for charts."""

from __future__ import annotations

from qlog.server.broker.operations import Span, Spans
from qlog.server.http.ask import Ask
from qlog.server.http.refusals import bad_request

# A chart has some hundred points.
SAMPLES_MAX = 1000
DIGITS_MAX = 9


def spans(ask: Ask) -> Spans:
    """The spans of a request. Raises 400."""
    return Spans(_span(ask, "lengths"), _span(ask, "msg_rates"), _span(ask, "data_rates"))


def _span(ask: Ask, name: str) -> Span | None:
    age_s, step_s = _number(ask, f"{name}_age"), _number(ask, f"{name}_incr")
    if age_s is None or step_s is None:
        return None
    if not step_s or age_s // step_s >= SAMPLES_MAX:
        raise bad_request(f"{name}: more than {SAMPLES_MAX} samples")
    return Span(age_s, step_s)


def _number(ask: Ask, name: str) -> int | None:
    text = ask.query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX):
        raise bad_request(f"{name} is no number")
    return int(text)
