"""The server's side of one connection: octets in, events out; methods in, octets out.

Promises that no input makes `receive` raise, that `receive` yields the same events however the
octets are cut, and that memory is bounded: one frame, and for each open channel one message of at
most `message_bytes_max`, of which only received octets are kept, copied once. This file alone says
whether the connection and each of its channels are open, and what may be sent in that state; all
other code asks it. Knows nothing of queues, users or time: the broker says whether a login is right
and a vhost exists, the session says whether a heartbeat is late.

Errors go by RabbitMQ 3.10: codes, texts, scopes, and what is ignored while something is closing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeAlias

from qlog.server.amqp import spec
from qlog.server.amqp.body import Body
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import (
    AMQPError,
    HardError,
    channel_error,
    command_invalid,
    frame_error,
    not_allowed,
    precondition_failed,
    unexpected_frame,
)
from qlog.server.amqp.frames import (
    BASIC,
    BODY,
    CONTENT_FIXED,
    CONTENT_FIXED_BYTES,
    FRAME_END,
    FRAME_HEAD,
    HEADER,
    HEARTBEAT,
    HEARTBEAT_FRAME,
    METHOD,
    OVERHEAD_BYTES,
    PROTOCOL_HEADER,
    SHOWN_BYTES,
    body_frames,
    header_frame,
    method_frame,
    shown,
)
from qlog.server.amqp.properties import NO_TRAITS
from qlog.server.amqp.recognise import (
    ACK_IDS,
    PUBLISH_IDS,
    AckRange,
    PublishForm,
    PublishForms,
    PublishRun,
    limits_of,
    run_with,
    take_acks,
    take_publishes,
)
from qlog.server.amqp.spec import Method, decode_method

# Until the limits are agreed, a frame may be this large, as in RabbitMQ 4: a token that is given as
# a password does not fit into the 4096 octets of the specification.
HANDSHAKE_FRAME_BYTES_MAX = 8192
# The specification's frame-min-size: no peer may agree to less.
FRAME_BYTES_MIN = 4096
MESSAGE_BYTES_MAX = 128 * 1024 * 1024  # RabbitMQ 3's default; clients' suites send 20 MiB
# RabbitMQ closes the connection, not the channel, over a body announced larger than this.
BODY_BYTES_LIMIT = 512 * 1024 * 1024

# More octets than one read brings.
EVENT_BYTES_MAX = 1 << 30
# Some 800 acks make an event: those in order are one range, but in no order each takes 5 us.
ACKS_BYTES_MAX = 16 * 1024

# A peer that sends octet by octet must not cost an object for each.
REST_PIECES_MAX = 256

# Protocol headers answered with a connection.start: 0-9-1, and as in RabbitMQ 0-9 and 0-8.
_ACCEPTED_HEADERS = (PROTOCOL_HEADER, b"AMQP\x01\x01\x00\x09", b"AMQP\x01\x01\x08\x00")

_CONNECTION = spec.ConnectionOpen.CLASS_ID
# Payloads, or beginnings of payloads, of the methods that close, to recognise them undecoded.
_CLOSE_IDS = b"\x00\x0a\x00\x32"
_CLOSE_OK = b"\x00\x0a\x00\x33"
_CHANNEL_CLOSE_IDS = b"\x00\x14\x00\x28"
_CHANNEL_OPEN_IDS = b"\x00\x14\x00\x0a"
_SECOND_OPEN = "second 'channel.open' seen"
_CHANNEL_CLOSE_OK = b"\x00\x14\x00\x29"


class State(Enum):
    """Where a connection stands; the value is RabbitMQ's word for it in error texts."""

    HEADER = "pre_init"  # nothing received yet
    STARTING = "starting"  # connection.start is, or is to be, sent
    SECURING = "securing"  # the login is being judged
    TUNING = "tuning"  # connection.tune is sent
    OPENING = "opening"  # waits for connection.open
    RUNNING = "running"
    CLOSING = "closing"  # all is ignored but connection.close and close-ok
    CLOSED = "closed"  # all is ignored


# What a client may send on channel 0 in each state, and the state that follows.
_RECEIVED: dict[State, dict[type[Method], State]] = {
    State.STARTING: {spec.ConnectionStartOk: State.SECURING},
    State.SECURING: {spec.ConnectionSecureOk: State.SECURING},
    State.TUNING: {spec.ConnectionTuneOk: State.OPENING},
    State.OPENING: {spec.ConnectionOpen: State.RUNNING},
    State.RUNNING: {
        spec.ConnectionUpdateSecret: State.RUNNING,
        spec.ConnectionClose: State.CLOSED,
    },
    State.CLOSING: {
        spec.ConnectionClose: State.CLOSING,
        spec.ConnectionCloseOk: State.CLOSED,
    },
}
# What the server sends on channel 0 that changes the state, and the state that follows.
_SENT: dict[type[Method], State] = {
    spec.ConnectionTune: State.TUNING,
    spec.ConnectionClose: State.CLOSING,
    spec.ConnectionCloseOk: State.CLOSED,
}
# Errors made here are not told to the client: RabbitMQ waits three seconds and closes the socket.
_SILENT = (State.STARTING, State.SECURING, State.TUNING)
_ENDED = (State.CLOSING, State.CLOSED)


class ChannelState(Enum):
    """Where a channel stands. A number that was never opened, or is free again, has no channel.

    A number is free again when close-ok is on its way. A client that opens it before close-ok can
    have arrived, in the same read as its channel.close, is refused, as in RabbitMQ.
    """

    OPEN = "open"
    CLOSE_RECEIVED = "the client closed it: it waits for our close-ok"
    CLOSING = "we closed it: only channel.close and close-ok count"
    CLOSED = "nothing counts; the number is free again"


# What the server sends on a channel that changes its state, and the state that follows. Of what a
# client sends, channel.open and channel.close change it, and close-ok if the server sent the close.
_CHANNEL_SENT: dict[tuple[ChannelState, type[Method]], ChannelState] = {
    (ChannelState.OPEN, spec.ChannelClose): ChannelState.CLOSING,
    (ChannelState.CLOSE_RECEIVED, spec.ChannelClose): ChannelState.CLOSING,  # both at once
    (ChannelState.CLOSE_RECEIVED, spec.ChannelCloseOk): ChannelState.CLOSED,
}
_OPEN = ChannelState.OPEN


@dataclass(frozen=True, slots=True)
class ProtocolHeaderReceived:
    """The client speaks AMQP 0-9-1: answer with connection.start."""


@dataclass(frozen=True, slots=True)
class BadProtocolHeader:
    """The client speaks something else: send `reply` and close the socket.

    `looks_like` is HTTP, TLS, AMQP 1.0 or unknown.
    """

    reply: bytes
    looks_like: str


@dataclass(frozen=True, slots=True)
class MethodReceived:
    """A method without content, allowed here and now."""

    channel: int
    method: Method


class Publishes(NamedTuple):
    """Messages of one channel that are complete now, in their order."""

    channel: int
    runs: list[PublishRun]


class Acks(NamedTuple):
    """basic.ack methods that stood one behind the other, in their order."""

    channel: int
    ranges: list[AckRange]


@dataclass(frozen=True, slots=True)
class HeartbeatReceived:
    """The client is alive. (So it is with any other octet.)"""


@dataclass(frozen=True, slots=True)
class Violation:
    """The client broke a rule: answer by closing the channel, or the connection.

    A `SoftError` closes `channel`, a `HardError` the connection. What the client sends there from
    now on is ignored already. `silent`: send no answer, only close the socket.
    """

    error: AMQPError
    channel: int
    silent: bool


Event: TypeAlias = (
    ProtocolHeaderReceived
    | BadProtocolHeader
    | MethodReceived
    | Publishes
    | Acks
    | HeartbeatReceived
    | Violation
)


class ChannelCore:
    """The protocol state of one channel: whether it is open, and what of a message has come.

    `form` is set from a message's method frame on, `envelope` and `body` from its header on. The
    object of a channel that has ended stays closed, whatever channel has the number now.
    """

    __slots__ = ("body", "closed", "envelope", "form", "state", "traits")

    def __init__(self) -> None:
        self.enter(ChannelState.OPEN)

    def enter(self, state: ChannelState) -> None:
        """The channel stands somewhere else from now on; an unfinished message is forgotten."""
        self.state = state
        # Nothing is to be sent on it any more, but for the answer to a close.
        self.closed = state is ChannelState.CLOSING or state is ChannelState.CLOSED
        self.expect_method()

    def expect_method(self) -> None:
        """The next frame begins something new; an unfinished message is forgotten."""
        self.form: PublishForm | None = None
        self.envelope: Envelope | None = None
        self.traits = NO_TRAITS
        self.body: Body | None = None


class Connection:
    """The protocol state of one connection.

    `message_bytes_max` is the largest body accepted. The limits offered to the client are those of
    the ConnectionTune given to `send`; `channel_max`, `frame_max` (octets) and `heartbeat_s` are
    what the client then chose, 0 meaning no limit. `event_bytes_max` is set by the session: one
    event has at most that many octets of publishes or acks, rounded up to a whole message.
    """

    def __init__(self, *, message_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self.state = State.HEADER
        self.channel_max = 0
        self.frame_max = 0
        self.heartbeat_s = 0
        self.event_bytes_max = EVENT_BYTES_MAX
        self.event_bytes = 0  # of the last event
        self._message_bytes_max = message_bytes_max
        # The largest payload accepted. As in RabbitMQ that is frame_max itself: a whole frame may
        # exceed it by the eight octets around the payload.
        self._payload_bytes_max = HANDSHAKE_FRAME_BYTES_MAX
        self._tune = spec.ConnectionTune(0, 0, 0)
        self._channels: dict[int, ChannelCore] = {}
        self._forms = PublishForms()
        self._rest: list[bytes] = []  # octets not yet understood
        self._rest_bytes = 0
        self._rest_bytes_min = 0  # as long as they are fewer, nothing new can be understood
        self._data = b""  # what is being understood now
        self._position = 0
        self._frame_at = 0  # where the frame now being understood begins
        # A body frame that is not whole yet: its channel, its body, the number of octets that are
        # still to come, and its first octets. The body has the other octets already.
        self._part: Body | None = None
        self._part_number = 0
        self._part_missing = 0
        self._part_head = b""
        self._deaf = False  # frames cannot be told apart any more, or need not be
        self._freed: list[int] = []  # numbers that are free at the end of this read

    def channels(self) -> frozenset[int]:
        """The channels now open, those waiting for a channel.close-ok included."""
        return frozenset(self._channels) - frozenset(self._freed)

    def channel(self, number: int) -> ChannelCore:
        """The state of a channel that is open now."""
        return self._channels[number]

    @property
    def uploads(self) -> bool:
        """A message has begun to come, and is not whole yet."""
        return any(channel.form is not None for channel in self._channels.values())

    @property
    def ended(self) -> bool:
        """The connection is closing or closed: only the answer to a close may be sent."""
        return self.state in _ENDED

    def end(self) -> None:
        """The socket is gone, or will be closed without a word: ignore everything from now on."""
        self._enter(State.CLOSED)

    def _enter(self, state: State) -> None:
        self.state = state
        if state is State.CLOSED:
            self._deaf = True
        if state in _ENDED:
            for channel in self._channels.values():
                channel.enter(ChannelState.CLOSED)
            self._channels.clear()
            # The memory of the peer's traffic is given back now: this object may live on for long.
            self._forms.close()
            self._rest.clear()

    # --- sending

    def send(self, channel: int, method: Method) -> bytes:
        """The frame of a method without content. The state changes now, not when it is sent."""
        if channel == 0:
            self._enter(_SENT.get(type(method), self.state))
            if isinstance(method, spec.ConnectionTune):
                self._tune = method
        elif isinstance(method, spec.ChannelClose | spec.ChannelCloseOk):
            core = self._channels.get(channel)
            state = _CHANNEL_SENT.get((core.state, type(method))) if core is not None else None
            if state is not None:
                self._enter_channel(channel, state)
        return method_frame(channel, method)

    def send_content(self, channel: int, method: Method, envelope: Envelope, body: bytes) -> bytes:
        """The frames of a method, its content header and its body."""
        frames = body_frames(channel, body, self.frame_max)
        return b"".join((method_frame(channel, method), header_frame(channel, envelope), *frames))

    def heartbeat(self) -> bytes:
        """The frame that says that we are alive."""
        return HEARTBEAT_FRAME

    # --- receiving

    @property
    def frame_bytes_awaited(self) -> int:
        """The octets still to come of a body frame, or the size of another frame that has begun to
        come; 0 when none has."""
        return self._rest_bytes_min or self._part_missing

    def receive(self, data: bytes) -> Iterator[Event]:
        """Understand more octets; yields what they mean, in their order.

        Iterate to the end before the next call. Each event is found when it is asked for, so that
        what is sent in answer to one (a channel.close above all) counts for those behind it.
        """
        assert not self._data, "the events of the call before were not all taken"
        if self._deaf:
            return
        rest = self._rest
        if rest:
            rest.append(data)
            self._rest_bytes += len(data)
            if len(rest) > REST_PIECES_MAX or self._rest_bytes >= self._rest_bytes_min:
                data = b"".join(rest)
                rest[:] = [data]
            if self._rest_bytes < self._rest_bytes_min:
                return
            rest.clear()
        self._rest_bytes_min = 0
        self._data = data
        self._position = 0
        size = len(data)
        while self._position < size and not (self._rest_bytes_min or self._deaf):
            before = self._position
            event = self._next_event()
            if event is not None:
                self.event_bytes = self._position - before
                yield event
        self._rest_bytes = size - self._position
        if self._rest_bytes and not self._deaf:
            rest.append(data[self._position :])
        self._data = b""
        while self._freed:
            self._channels.pop(self._freed.pop(), None)

    def _next_event(self) -> Event | None:
        """Understand one frame, or a run of them.

        Sets `_rest_bytes_min` when there is no whole one.
        """
        if self._part is not None:
            return self._go_on_with_body(self._part)
        data, position = self._data, self._position
        if self.state is State.HEADER:
            return self._protocol_header()
        if len(data) - position < FRAME_HEAD.size:
            self._rest_bytes_min = FRAME_HEAD.size
            return None
        kind, number, size = FRAME_HEAD.unpack_from(data, position)
        channel = self._channels.get(number)
        if (
            kind == METHOD
            and channel is not None
            and channel.form is None
            and channel.state is _OPEN
        ):
            ids = data[position + 7 : position + 11]
            if ids == PUBLISH_IDS:
                runs: list[PublishRun] = []
                self._take_publishes(number, runs)
                if runs:
                    return Publishes(number, runs)
            elif ids == ACK_IDS:
                until = position + min(self.event_bytes_max, ACKS_BYTES_MAX)
                ranges, self._position = take_acks(data, position, number, until)
                if ranges:
                    return Acks(number, ranges)
        elif kind == BODY and channel is not None and channel.body is not None:
            body = channel.body
            if size <= body.missing and not 0 < self._payload_bytes_max < size:
                self._part, self._part_number, self._part_missing = body, number, size
                self._position = position + FRAME_HEAD.size
                self._part_head = b""
                return self._go_on_with_body(body)
        try:
            payload = self._payload(kind, size)
            if payload is None:
                return None
        except HardError as error:
            self._deaf = True
            return None if self.ended else self._violation(error, number)
        try:
            if number == 0:
                return self._connection_frame(kind, payload)
            return self._channel_frame(kind, number, payload)
        except AMQPError as error:
            return self._violation(error, number)

    def _violation(self, error: AMQPError, number: int) -> Violation:
        silent = self.state in _SILENT
        if isinstance(error, HardError):
            self._enter(State.CLOSED if silent else State.CLOSING)
        else:
            self._enter_channel(number, ChannelState.CLOSING)
        return Violation(error, number, silent)

    def _protocol_header(self) -> Event | None:
        data = self._data
        if len(data) < len(PROTOCOL_HEADER):
            self._rest_bytes_min = len(PROTOCOL_HEADER)
            return None
        self._position = len(PROTOCOL_HEADER)
        if data.startswith(_ACCEPTED_HEADERS):
            self.state = State.STARTING
            return ProtocolHeaderReceived()
        self._enter(State.CLOSED)
        return BadProtocolHeader(PROTOCOL_HEADER, _looks_like(data))

    def _payload(self, kind: int, size: int) -> bytes | None:
        """The payload of the frame at `_position`, which moves behind it. None: not all is there.

        Raises HardError when this is no frame, after which nothing can be understood any more.
        """
        if self._payload_bytes_max and size > self._payload_bytes_max:
            allowed = self._payload_bytes_max - OVERHEAD_BYTES
            raise frame_error(
                f"type {kind}, all octets = <<>>: {{frame_too_large,{size},{allowed}}}"
            )
        self._frame_at = self._position
        start = self._position + FRAME_HEAD.size
        end = start + size
        if end >= len(self._data):
            self._rest_bytes_min = size + OVERHEAD_BYTES
            return None
        payload = self._data[start:end]
        marker = self._data[end]
        if marker != FRAME_END:
            what = f"{{invalid_frame_end_marker,{marker}}}"
            raise frame_error(f"type {kind}, {shown(payload)}: {what}")
        self._position = end + 1
        return payload

    def _frame(self) -> bytes:
        """The whole frame that `_payload` last returned the payload of."""
        return self._data[self._frame_at : self._position]

    # --- channel 0

    def _connection_frame(self, kind: int, payload: bytes) -> Event | None:
        if self.state is State.CLOSING:
            return self._while_closing(kind, payload)
        if kind == METHOD and len(payload) >= 4:
            return self._connection_method(decode_method(payload))
        if kind == HEARTBEAT and not payload:
            return HeartbeatReceived()
        if kind == BODY or (kind == HEADER and len(payload) >= CONTENT_FIXED_BYTES):
            raise unexpected_frame(f"type {kind}, {shown(payload)}")
        raise _unknown_frame(kind, payload)

    def _while_closing(self, kind: int, payload: bytes) -> Event | None:
        """A close was sent to the peer: all but its answer is ignored, mistakes included."""
        if kind == METHOD:
            if payload == _CLOSE_OK:
                self._enter(State.CLOSED)
                return MethodReceived(0, spec.ConnectionCloseOk())
            if payload.startswith(_CLOSE_IDS):
                # The arguments do not matter any more, and need not be well-formed.
                return MethodReceived(0, spec.ConnectionClose(200, "", 0, 0))
        return None

    def _connection_method(self, method: Method) -> Event:
        following = _RECEIVED[self.state].get(type(method))
        if following is None:
            raise channel_error(
                f"unexpected method in connection state {self.state.value}",
                method.CLASS_ID,
                method.METHOD_ID,
            )
        if isinstance(method, spec.ConnectionTuneOk):
            self._agree(method)
        self._enter(following)
        return MethodReceived(0, method)

    def _agree(self, chosen: spec.ConnectionTuneOk) -> None:
        offered = self._tune
        _check_limit("channel_max", chosen.channel_max, offered.channel_max, 0)
        _check_limit("frame_max", chosen.frame_max, offered.frame_max, FRAME_BYTES_MIN)
        self.channel_max = chosen.channel_max
        self.frame_max = self._payload_bytes_max = chosen.frame_max
        self.heartbeat_s = chosen.heartbeat

    # --- the other channels

    def _channel_frame(self, kind: int, number: int, payload: bytes) -> Event | None:
        if self.state is State.CLOSING:
            return None
        if kind not in (METHOD, HEADER, BODY, HEARTBEAT):
            raise _unknown_frame(kind, payload)
        if kind == HEARTBEAT or self.state is not State.RUNNING:
            raise unexpected_frame(f"type {kind}, {shown(payload)}")
        if kind == METHOD and len(payload) < 4:
            raise _unknown_frame(kind, payload)
        if kind == HEADER and len(payload) < CONTENT_FIXED_BYTES:
            raise _unknown_frame(kind, payload)
        channel = self._channels.get(number)
        if channel is None:
            return self._unopened(kind, number, payload)
        if channel.state is ChannelState.CLOSING:
            return self._while_channel_closing(kind, number, payload)
        if channel.form is not None:
            return self._content(kind, number, channel, channel.form, payload)
        if kind != METHOD:
            raise unexpected_frame("expected method frame, got non method frame instead")
        return self._channel_method(number, channel, payload)

    def _unopened(self, kind: int, number: int, payload: bytes) -> Event:
        if kind != METHOD:
            raise unexpected_frame("expected method frame, got non method frame instead")
        method = decode_method(payload)
        if not isinstance(method, spec.ChannelOpen):
            raise channel_error("expected 'channel.open'", method.CLASS_ID, method.METHOD_ID)
        count = len(self._channels)
        if self.channel_max and count >= self.channel_max:
            raise not_allowed(
                f"number of channels opened ({count}) has reached the negotiated channel_max "
                f"({self.channel_max})"
            )
        self._channels[number] = ChannelCore()
        return MethodReceived(number, method)

    def _enter_channel(self, number: int, state: ChannelState) -> None:
        channel = self._channels[number]
        channel.enter(state)
        if state is ChannelState.CLOSED:
            if self._data:
                self._freed.append(number)
            else:
                del self._channels[number]

    def _while_channel_closing(self, kind: int, number: int, payload: bytes) -> Event | None:
        """The client may not have read our channel.close yet: all but a close is ignored.

        An open, which a client sends that has read it, is refused before its close-ok has come
        (rabbit_channel, state closing).
        """
        if kind == METHOD:
            if payload.startswith(_CHANNEL_OPEN_IDS):
                method = decode_method(payload)
                raise channel_error(_SECOND_OPEN, method.CLASS_ID, method.METHOD_ID)
            if payload == _CHANNEL_CLOSE_OK:
                self._channels.pop(number).enter(ChannelState.CLOSED)
                return MethodReceived(number, spec.ChannelCloseOk())
            if payload.startswith(_CHANNEL_CLOSE_IDS):
                # Both sides close at once. The client wants an answer; its arguments do not matter.
                return MethodReceived(number, spec.ChannelClose(200, "", 0, 0))
        return None

    def _channel_method(self, number: int, channel: ChannelCore, payload: bytes) -> Event | None:
        if channel.state is _OPEN and payload.startswith(PUBLISH_IDS):
            frame = self._frame()
            channel.form = self._forms.by_frame.get(frame) or self._forms.learn(frame)
            return None
        method = decode_method(payload)
        ids = (method.CLASS_ID, method.METHOD_ID)
        if isinstance(method, spec.ChannelOpen):
            raise channel_error(_SECOND_OPEN, *ids)
        if channel.state is not _OPEN:
            raise channel_error("expected 'channel.open'", *ids)
        if isinstance(method, spec.BasicAck):
            ack = AckRange(method.delivery_tag, method.delivery_tag, method.multiple)
            return Acks(number, [ack])
        if (
            not method.FROM_CLIENT
            or method.CLASS_ID == _CONNECTION
            or isinstance(method, spec.ChannelCloseOk)
        ):
            raise command_invalid("unimplemented method", *ids)
        if isinstance(method, spec.ChannelClose):
            self._enter_channel(number, ChannelState.CLOSE_RECEIVED)
        return MethodReceived(number, method)

    def _content(
        self, kind: int, number: int, channel: ChannelCore, form: PublishForm, payload: bytes
    ) -> Event | None:
        ids = (form.method.CLASS_ID, form.method.METHOD_ID)
        if channel.envelope is None:
            envelope = self._content_header(kind, form, payload)
            if envelope.body_size > self._message_bytes_max:
                raise precondition_failed(
                    f"message size {envelope.body_size} is larger than max size "
                    f"{self._message_bytes_max}",
                    *ids,
                )
            channel.envelope = envelope
            channel.traits = form.traits
            channel.body = Body(envelope.body_size)
            return self._whole_message(number, channel)
        if kind != BODY:
            raise unexpected_frame(
                "expected content body, got non content body frame instead", *ids
            )
        # A frame that fits never gets here: `_go_on_with_body` has taken it.
        raise frame_error("content body frame exceeds remaining content size", *ids)

    def _go_on_with_body(self, body: Body) -> Event | None:
        """Take what there is of a body frame that has begun, and of its end.

        Octets of a message whose channel was closed meanwhile are counted, and not kept.
        """
        data = self._data
        channel = self._channels.get(self._part_number)
        count = min(self._part_missing, len(data) - self._position)
        if count:
            if channel is not None and channel.body is body:
                body.add(memoryview(data)[self._position : self._position + count])
            if len(self._part_head) <= SHOWN_BYTES:
                self._part_head += data[
                    self._position : self._position + min(count, SHOWN_BYTES + 1)
                ]
            self._position += count
            self._part_missing -= count
        if self._position == len(data):
            return None
        self._part = None
        marker = data[self._position]
        if marker != FRAME_END:
            self._deaf = True
            what = f"{{invalid_frame_end_marker,{marker}}}"
            error = frame_error(f"type {BODY}, {shown(self._part_head)}: {what}")
            return None if self.ended else self._violation(error, self._part_number)
        self._position += 1
        if channel is None or channel.body is not body:
            return None
        return self._whole_message(self._part_number, channel)

    def _whole_message(self, number: int, channel: ChannelCore) -> Event | None:
        """The channel's message, if it is complete, with the messages right behind it."""
        form, envelope, body = channel.form, channel.envelope, channel.body
        assert form is not None and envelope is not None and body is not None
        if body.missing:
            return None
        runs: list[PublishRun] = []
        run_with(runs, channel.traits).add(form.method, envelope, body.take())
        channel.expect_method()
        self._take_publishes(number, runs)
        return Publishes(number, runs)

    def _content_header(self, kind: int, form: PublishForm, payload: bytes) -> Envelope:
        ids = (form.method.CLASS_ID, form.method.METHOD_ID)
        expected = f"expected content header for class {BASIC}"
        class_id = weight = body_size = 0
        if kind == HEADER:
            class_id, weight, body_size = CONTENT_FIXED.unpack_from(payload)
        if kind != HEADER or weight:
            raise unexpected_frame(f"{expected}, got non content header frame instead", *ids)
        if class_id != BASIC:
            raise unexpected_frame(f"{expected}, got one for class {class_id} instead", *ids)
        if body_size > BODY_BYTES_LIMIT:
            raise frame_error(
                f"content body size {body_size} exceeds the maximum of {BODY_BYTES_LIMIT}", *ids
            )
        return form.envelope_of(payload[CONTENT_FIXED_BYTES:], body_size)

    def _take_publishes(self, number: int, runs: list[PublishRun]) -> None:
        """Append the channel's messages that stand whole at `_position`, and move behind them."""
        data, position = self._data, self._position
        payload_bytes_max = self._payload_bytes_max or BODY_BYTES_LIMIT
        body_bytes_max = min(payload_bytes_max, self._message_bytes_max)
        self._position = take_publishes(
            data,
            position,
            self._forms,
            runs,
            until=min(position + self.event_bytes_max, len(data)),
            limits=limits_of(number, payload_bytes_max, body_bytes_max),
        )


def _check_limit(name: str, chosen: int, offered: int, allowed_min: int) -> None:
    """Raise HardError (530) when a client asks for more than the server offers, or for too little.

    The texts are RabbitMQ's. 0 stands for no limit on both sides.
    """
    if offered and (not chosen or chosen > offered):
        what = "0 (no limit)" if not chosen else str(chosen)
        raise not_allowed(
            f"negotiated {name} = {what} is higher than the maximum allowed value ({offered})"
        )
    if chosen and chosen < allowed_min:
        raise not_allowed(
            f"negotiated {name} = {chosen} is lower than the minimum allowed value ({allowed_min})"
        )


def _unknown_frame(kind: int, payload: bytes) -> HardError:
    return frame_error(f"type {kind}, {shown(payload)}: unknown_frame")


def _looks_like(data: bytes) -> str:
    """The name of the protocol that begins with these octets, for the log."""
    if data.startswith((b"AMQP\x00\x01\x00\x00", b"AMQP\x03\x01\x00\x00", b"AMQP\x02\x01\x00\x00")):
        return "AMQP 1.0"
    if data.startswith(b"\x16\x03"):
        return "TLS"
    if data.startswith((b"GET ", b"POST ", b"PUT ", b"HEAD ", b"DELETE ", b"OPTIONS ", b"PRI * ")):
        return "HTTP"
    return "unknown"
