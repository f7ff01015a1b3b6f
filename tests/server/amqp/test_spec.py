"""The methods, against pamqp as an independent reading of the specification."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, frame

from qlog.server.amqp.errors import HardError
from qlog.server.amqp.spec import METHODS, Method, decode_method, encode_method
from tests.server.amqp.conversation import frame as build_frame
from tests.server.amqp.strategies import SHORTSTRS, TABLES

# Plain enough for pamqp, which checks names by the patterns of the specification, and sorts tables.
_NAMES = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=20)
_PLAIN: dict[str, st.SearchStrategy[Any]] = {
    "bit": st.booleans(),
    "octet": st.integers(0, 255),
    "short": st.integers(0, 2**16 - 1),
    "long": st.integers(0, 2**32 - 1),
    "longlong": st.integers(0, 2**63 - 1),  # pamqp reads it signed
    "shortstr": _NAMES,
    "longstr": _NAMES.map(str.encode),
    "table": st.dictionaries(_NAMES, _NAMES | st.booleans(), max_size=1),
}
_ANY = _PLAIN | {
    "longlong": st.integers(0, 2**64 - 1),
    "shortstr": SHORTSTRS,
    "longstr": st.binary(),
    "table": TABLES,
}


def methods(values: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Method]:
    return st.sampled_from(list(METHODS.values())).flatmap(
        lambda cls: st.builds(cls, *(values[kind] for name, kind in cls.LAYOUT if name))
    )


# Class access is of AMQP 0-8; RabbitMQ still answers it, pamqp does not have it.
ACCESS = 30
# pamqp refuses to write what it has read of these: the reserved field has to be the string "0".
NOT_WRITTEN = ("channel.open", "channel.open-ok")


def test_the_methods_are_those_pamqp_knows() -> None:
    theirs = {(index >> 16, index & 0xFFFF) for index in commands.INDEX_MAPPING}
    assert {ids for ids in METHODS if ids[0] != ACCESS} == theirs


@pytest.mark.parametrize(
    "cls", [cls for cls in METHODS.values() if cls.CLASS_ID != ACCESS], ids=lambda cls: cls.NAME
)
def test_names_and_replies_are_pamqps(cls: type[Method]) -> None:
    theirs: Any = commands.INDEX_MAPPING[cls.CLASS_ID << 16 | cls.METHOD_ID]
    joined = cls.NAME.replace("-", "").replace(".", "")
    assert joined == theirs.name.replace(".", "").replace("-", "").lower()
    assert len(cls.LAYOUT) == len(theirs.attributes())
    names = {method.NAME for method in METHODS.values()}
    assert set(cls.REPLIES) <= names


@given(methods(_PLAIN).filter(lambda method: method.CLASS_ID != ACCESS))
def test_pamqp_reads_and_writes_the_same_octets(method: Method) -> None:
    octets = build_frame(1, 3, encode_method(method))
    theirs: Any
    size, channel, theirs = frame.unmarshal(octets)
    assert (size, channel) == (len(octets), 3)
    for (attribute, kind), name in zip(method.LAYOUT, theirs.attributes(), strict=True):
        if attribute:
            value = getattr(method, attribute)
            got = getattr(theirs, name)
            assert got == (value.decode() if kind == "longstr" and isinstance(got, str) else value)
    if method.NAME not in NOT_WRITTEN:
        assert frame.marshal(theirs, 3) == octets


@given(methods(_ANY))
def test_methods_come_back(method: Method) -> None:
    payload = encode_method(method)
    decoded = decode_method(payload)
    assert type(decoded) is type(method)
    assert encode_method(decoded) == payload


@given(methods(_ANY), st.data())
def test_mutated_methods_are_read_or_refused(method: Method, data: st.DataObject) -> None:
    octets = bytearray(encode_method(method))
    octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_method(bytes(octets[: data.draw(st.integers(0, len(octets)))]))
    except HardError as error:
        assert error.code in (501, 503)
