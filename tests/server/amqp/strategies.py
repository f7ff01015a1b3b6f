"""Hypothesis strategies for what AMQP can carry."""

import struct

from hypothesis import strategies as st

from qlog.server.amqp.properties import Properties
from qlog.server.amqp.values import (
    DecimalValue,
    Float32,
    Int8,
    Int16,
    Int64,
    Int64Capital,
    LongStr,
    Table,
    Timestamp,
    UInt8,
    UInt16,
    UInt32,
    Value,
)


def _within(bits: int, signed: bool) -> st.SearchStrategy[int]:
    low = -(2 ** (bits - 1)) if signed else 0
    return st.integers(low, low + 2**bits - 1)


def _is_not_utf8(octets: bytes) -> bool:
    try:
        octets.decode()
    except UnicodeDecodeError:
        return True
    return False


INT32 = _within(32, True)
SCALARS: st.SearchStrategy[Value] = st.one_of(
    st.none(),
    st.booleans(),
    st.text(),
    st.binary(),
    st.binary(min_size=1).filter(_is_not_utf8).map(LongStr),
    _within(64, True),
    st.floats(allow_nan=False),
    st.floats(width=32, allow_nan=False).map(Float32),
    _within(8, True).map(Int8),
    _within(8, False).map(UInt8),
    _within(16, True).map(Int16),
    _within(16, False).map(UInt16),
    _within(32, False).map(UInt32),
    INT32.map(Int64),
    _within(64, True).map(Int64Capital),
    _within(64, False).map(Timestamp),
    st.builds(DecimalValue, _within(8, False), _within(32, False)),
)
KEYS = st.text(max_size=60)


def _nest(values: st.SearchStrategy[Value]) -> st.SearchStrategy[Value]:
    return st.lists(values, max_size=4) | st.dictionaries(KEYS, values, max_size=4)


VALUES = st.recursive(SCALARS, _nest, max_leaves=12)
TABLES: st.SearchStrategy[Table] = st.dictionaries(KEYS, VALUES, max_size=5)

SHORTSTRS = st.text(max_size=60)
_octets = st.none() | _within(8, False)
_text = st.none() | SHORTSTRS
PROPERTIES = st.builds(
    Properties,
    content_type=_text,
    content_encoding=_text,
    headers=st.none() | TABLES,
    delivery_mode=_octets,
    priority=_octets,
    correlation_id=_text,
    reply_to=_text,
    expiration=_text,
    message_id=_text,
    timestamp=st.none() | _within(64, False).map(Timestamp),
    type=_text,
    user_id=_text,
    app_id=_text,
    cluster_id=_text,
)


def typed(value: Value) -> object:
    """The value with its types, for comparison: True is not 1, and Int8(1) is not UInt8(1)."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    if isinstance(value, float):
        return (type(value), struct.pack(">d", value))
    return (type(value), value)
