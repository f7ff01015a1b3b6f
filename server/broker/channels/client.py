"""One connection as the broker sees it: handshake, login, its channels, and how it ends.

Events come in here, and methods go out to the sink. The protocol core knows the bytes, and the
session knows the socket. Only the core says whether the connection and its channels are open.
Promises: exclusive queues are gone before close-ok; a channel gives back what it held, however it
ends; an error closes exactly what its kind says.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

from qlog.server.amqp import spec
from qlog.server.amqp.connection import (
    Acks,
    BadProtocolHeader,
    Connection,
    Event,
    HeartbeatReceived,
    MethodReceived,
    ProtocolHeaderReceived,
    Publishes,
    Violation,
)
from qlog.server.amqp.errors import (
    AMQPError,
    SoftError,
    command_invalid,
    internal_error,
    login_refused,
    not_allowed,
    precondition_failed,
    syntax_error,
)
from qlog.server.amqp.values import Table, decode_table
from qlog.server.broker.access.certificate import Secured
from qlog.server.broker.access.logins import Login, NotNow, Refused
from qlog.server.broker.access.users import User
from qlog.server.broker.broker import Broker
from qlog.server.broker.channels.answers import Answers
from qlog.server.broker.channels.channel import Channel, stop_all
from qlog.server.broker.channels.facts import connection_facts
from qlog.server.broker.channels.sink import Hold, Sink
from qlog.server.broker.jobs import Steps, letting_go
from qlog.server.broker.outcome import Outcome, all_of
from qlog.server.broker.queues.type import QueueType
from qlog.server.broker.settings import NOBODY
from qlog.server.broker.stats import Traffic
from qlog.server.broker.vhost import VHost
from qlog.storage.errors import StorageError

logger = logging.getLogger("qlog.connection")

# A peer whose login is refused is kept waiting, so that guessing is slow (rabbit_reader).
SILENT_CLOSE_S = 3.0
# How long a peer may take to answer connection.close before the socket is closed anyway; what it
# sends meanwhile is read and dropped (rabbit_reader, CLOSING_TIMEOUT).
CLOSE_OK_WAIT_S = 30.0


class Client:
    """A connected client.

    Arguments: `protocol` is the state of the connection; the sink's methods pass through it. `peer`
    is the client's address as the log prints it, `local` the broker's as the client sees it.
    `loopback`: the client is on this machine. Whoever has the socket counts its `traffic`.
    """

    def __init__(
        self,
        broker: Broker,
        sink: Sink,
        protocol: Connection,
        *,
        peer: str,
        loopback: bool,
        local: str = "",
    ) -> None:
        self.broker = broker
        self.services = broker.services
        self.operations = broker.operations
        self.sink = sink
        self.protocol = protocol
        self.peer = peer
        self.local = local
        self.traffic = Traffic()
        self.connected_at_ms = broker.services.now_ms()
        self.loopback = loopback
        self.vhost: VHost | None = None
        self.channels: dict[int, Channel] = {}
        self.starving: dict[Channel, None] = {}  # were refused a message while the sink was full
        self.exclusive_queues: dict[str, QueueType] = {}
        self.properties: Table = {}
        self._held_events = 0  # that wait with their channels
        self.answers_waiting = 0  # of all channels
        self._put_aside: list[Event] = []  # a publish while an alarm is on, and what follows
        self.authenticated = False
        self.secured: Secured | None = None  # by TLS; the session says how
        self.account: User | None = None  # who logged in
        self._mechanism = ""
        self._login_attempt: Login | None = None  # while it waits
        self.publishes = False
        broker.clients.add(self)
        broker.services.stats.connections_opened += 1

    @property
    def name(self) -> str:
        """Its name for operators."""
        return f"{self.peer} -> {self.local}"

    @property
    def mechanism(self) -> str:
        """The SASL mechanism of its login."""
        return self._mechanism

    @property
    def is_open(self) -> bool:
        """It is in a vhost, and not about to end."""
        return self.vhost is not None and not self.protocol.ended

    def facts(self) -> dict[str, Any]:
        """What operators see of it."""
        return connection_facts(self)

    @property
    def user(self) -> User:
        """Who logged in."""
        assert self.account is not None
        return self.account

    def capable(self, capability: str) -> bool:
        """Whether the client said that it knows an extension."""
        capabilities = self.properties.get("capabilities")
        return isinstance(capabilities, dict) and capabilities.get(capability) is True

    # -- events ------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Obey. Errors are sent to the client."""
        if self._put_aside:
            self._put_aside.append(event)
            return
        try:
            self._handle(event)
        except Exception as error:  # noqa: BLE001 - the client hears of it
            self.failed(event, error)

    def failed(self, event: Event, error: Exception) -> None:
        """What the client sent could not be obeyed: close the channel or the connection."""
        if isinstance(error, AMQPError):
            method = event.method if isinstance(event, MethodReceived) else None
            if isinstance(event, Publishes):
                error.class_id, error.method_id = 60, 40
            elif isinstance(event, Acks):
                error.class_id, error.method_id = 60, 80
            elif method is not None and not error.class_id and self.authenticated:
                error.class_id, error.method_id = method.CLASS_ID, method.METHOD_ID
            self.fail(error, getattr(event, "channel", 0))
            error.__traceback__ = None  # frames that hold the error, and all that the client had
        elif isinstance(error, StorageError):
            logger.error("storage refused peer=%s error=%s", self.peer, error)
            self.fail(internal_error("the storage refused; see the broker's log"), 0)
        else:  # our bug: this client pays for it, the others do not
            logger.error("internal error peer=%s", self.peer, exc_info=error)
            self.fail(internal_error("see the broker's log"), 0)

    def _handle(self, event: Event) -> None:
        match event:
            case Publishes(channel=number):
                self.publishes = True
                if self.broker.blocked_reason:
                    self._put_aside.append(event)
                    self.block()
                else:
                    self.channels[number].handle(event)
            case Acks(channel=number):
                self.channels[number].handle(event)
            case MethodReceived(channel=0, method=method):
                self._connection_method(method)
            case MethodReceived(channel=number) if self._is_held(number, event):
                self.channels[number].handle(event)
            case MethodReceived(channel=number, method=spec.ChannelOpen()):
                self._open_channel(number)
            case MethodReceived(channel=number, method=spec.ChannelClose()):
                self._close_channel(number, event)
            case MethodReceived(method=spec.ChannelCloseOk()):
                pass
            case MethodReceived(channel=number):
                self.channels[number].handle(event)
            case Violation(error=error, channel=number, silent=silent):
                self._refuse(error, number, silent=silent)
            case HeartbeatReceived():
                pass
            case ProtocolHeaderReceived():
                self.sink.send(
                    0,
                    spec.ConnectionStart(
                        0,
                        9,
                        self.broker.server_properties(),
                        " ".join(self._offered()).encode(),
                        b"en_US",
                    ),
                )
            case BadProtocolHeader(reply=reply, looks_like=what):
                logger.warning("bad protocol header peer=%s looks_like=%s", self.peer, what)
                self.sink.write([reply])
                self.sink.disconnect()

    def _open_channel(self, number: int) -> None:
        """Raises 530 if the user's connections have as many channels as they may have."""
        assert self.vhost is not None
        user = self.user
        channels_max = user.channels_max
        if channels_max is not None and user.channels >= channels_max:
            raise not_allowed(
                f"number of channels opened for user '{user.name}' has reached the maximum "
                f"allowed user limit of ({channels_max})"
            )
        self.channels[number] = Channel(self, self.vhost, number)
        user.channels += 1
        self.sink.send(number, spec.ChannelOpenOk())

    def _forget_channel(self, number: int) -> Channel | None:
        channel = self.channels.pop(number, None)
        if channel is not None:
            self.starving.pop(channel, None)
            self.user.channels -= 1
        return channel

    def _close_channel(self, number: int, event: MethodReceived) -> None:
        """The client closes a channel: close-ok follows when all that it held is given back."""
        channel = self.channels.get(number)
        if channel is None:  # we have closed it, and both closes were under way at the same time
            self.sink.send(number, spec.ChannelCloseOk())
            return

        def closed(_: None) -> spec.Method:
            self._forget_channel(number)
            return spec.ChannelCloseOk()

        channel.answers.answer(event, channel.close(), closed)

    def hold_event(self) -> None:
        """An event waits, with its channel.

        Nothing more is read meanwhile, so that they stay few.
        """
        self._held_events += 1
        self.sink.hold(Hold.COMMIT)

    def release_event(self) -> None:
        """An event waits no more."""
        self._held_events -= 1
        if not self._held_events:
            self.sink.release(Hold.COMMIT)

    def may_resume(self, event: Event) -> bool:
        """Whether to go on with what a channel held: not with a publish during an alarm.

        What came later is put aside meanwhile, so that the channel's order is kept.
        """
        if isinstance(event, Publishes) and self.broker.blocked_reason:
            self.block()
        return not self.blocked

    @property
    def over(self) -> bool:
        """Nothing may be sent to it any more."""
        return self.protocol.ended

    def resume(self, answers: Answers, event: Event) -> None:
        """Obey what a channel has held back. If it is closed, only its closing is obeyed."""
        channel = self.channels.get(getattr(event, "channel", 0))
        is_open = channel is not None and channel.answers is answers
        closes = isinstance(event, MethodReceived) and isinstance(event.method, spec.ChannelClose)
        if (is_open or closes) and not self.protocol.ended:
            self.handle(event)

    def _is_held(self, number: int, event: Event) -> bool:
        """Whether the channel waits for something, so that even its closing has to wait."""
        channel = self.channels.get(number)
        return channel is not None and channel.answers.holds(event)

    def _connection_method(self, method: spec.Method) -> None:
        match method:
            case spec.ConnectionStartOk():
                self.properties = method.client_properties
                self._mechanism = method.mechanism
                self._login(method.response)
            case spec.ConnectionSecureOk():
                self._login(method.response)
            case spec.ConnectionTuneOk():
                pass  # the core keeps what was agreed
            case spec.ConnectionOpen():
                self._open(method.virtual_host)
            case spec.ConnectionUpdateSecret():
                self._check_again()
                self.sink.send(0, spec.ConnectionUpdateSecretOk())
            case spec.ConnectionClose():
                logger.info("connection closed by client peer=%s", self.peer)
                self._end().then(self._close_ok)
            case spec.ConnectionCloseOk():
                self.sink.disconnect()
            case _:
                raise command_invalid("unimplemented method")

    # -- the handshake -----------------------------------------------------------------------

    def _offered(self) -> list[str]:
        """The SASL mechanisms that the client is told: EXTERNAL if it has shown a certificate."""
        known = self._mechanisms()
        if self.secured is None or self.secured.certificate is None:
            del known["EXTERNAL"]
        return list(known)

    def _mechanisms(self) -> dict[str, Callable[[bytes], tuple[str, bytes | None]]]:
        """The SASL mechanisms, and how each says who wants in; without a password: it is proved.

        With ANONYMOUS that is always the same user (rabbit_auth_mechanism_anonymous), whom the
        setting `loopback_users` keeps to this machine as it does with a password.
        """
        mechanisms: dict[str, Callable[[bytes], tuple[str, bytes | None]]] = {
            "PLAIN": _plain,
            "AMQPLAIN": _amqplain,
            "EXTERNAL": lambda response: (self._certified_name(), None),
        }
        settings = self.broker.settings
        if settings.anonymous_login_user != NOBODY:
            login = settings.anonymous_login_user, settings.anonymous_login_pass.encode()
            mechanisms["ANONYMOUS"] = lambda response: login
        return mechanisms

    def _login(self, response: bytes) -> None:
        """Check the credentials and go on with tune. Raises 403, 502 or 503."""
        parse = self._mechanisms().get(self._mechanism)
        if parse is None:
            raise command_invalid(f"unknown authentication mechanism '{self._mechanism}'")
        try:
            name, password = parse(response)
        except Refused as refusal:
            logger.warning("login refused peer=%s reason=%s", self.peer, refusal)
            self._refuse_login()
            return
        address = self.peer.rpartition(":")[0]
        login = self.operations.authenticate(
            name, password, address=address, loopback=self.loopback
        )
        if not login.done:
            self._login_attempt = login
            self.sink.hold(Hold.LOGIN)  # what it sends behind is for a user
        login.then(self._logged_in)

    def _logged_in(self, login: Outcome[User]) -> None:
        self._login_attempt = None
        if isinstance(login.error, NotNow):  # clients come again after that, and not after 403
            self.protocol.end()
            self.sink.disconnect()
            self._end()
            return
        if isinstance(login.error, Refused):
            self._refuse_login()
            return
        user = login.result()
        if self.protocol.ended:
            return
        self.account = user
        self.operations = self.operations.by_user(user)
        self.authenticated = True
        settings = self.broker.settings
        self.sink.send(
            0,
            spec.ConnectionTune(
                settings.channel_max, settings.frame_bytes_max, settings.heartbeat_s
            ),
        )
        self.sink.release(Hold.LOGIN)

    def _refuse_login(self) -> None:
        if self.protocol.ended:
            return
        refusal = login_refused(
            f"Login was refused using authentication mechanism {self._mechanism}. "
            "For details see the broker logfile."
        )
        self.fail(refusal, 0)

    def _certified_name(self) -> str:
        """The user whom the client's certificate stands for. Raises Refused."""
        if self.secured is None:
            raise Refused("unknown", "the connection has no TLS, which EXTERNAL needs")
        certificate = self.secured.certificate
        if certificate is None:
            raise Refused("unknown", "the client has shown no certificate, which EXTERNAL needs")
        settings = self.broker.settings
        source = settings.tls_login_from
        name = certificate.login_name(
            source, settings.tls_login_san_type, settings.tls_login_san_index
        )
        if name is None:
            raise Refused("unknown", f"the certificate of {certificate.subject} has no {source}")
        return name

    def _open(self, name: str) -> None:
        vhost = self.broker.vhosts.get(name)
        if vhost is None:
            raise not_allowed(f"vhost {name} not found")
        refused = f"access to vhost '{name}' refused for user '{self.user.name}'"
        connections_max = vhost.settings.connections_max
        if connections_max is not None and len(vhost.clients) >= connections_max:
            raise not_allowed(f"{refused}: connection limit ({connections_max}) is reached")
        connections_max = self.user.connections_max
        if connections_max is not None and self.user.connections >= connections_max:
            raise not_allowed(
                f"connection refused for user '{self.user.name}': user connection limit "
                f"({connections_max}) is reached"
            )
        if name not in self.user.permissions:
            raise not_allowed(refused)
        self.vhost = vhost
        vhost.clients.add(self)
        self.user.connections += 1
        logger.info(
            "connection opened peer=%s user=%s vhost=%s product=%s",
            self.peer,
            self.user.name,
            name,
            self.properties.get("product", "unknown"),
        )
        self.sink.send(0, spec.ConnectionOpenOk())

    def _check_again(self) -> None:
        """The client has a new secret: what it may not do any more ends. Raises 530.

        The secret itself means nothing to users with a password, as in RabbitMQ.
        """
        assert self.vhost is not None
        if self.vhost.name not in self.user.permissions:
            raise not_allowed(
                f"access to vhost '{self.vhost.name}' refused for user '{self.user.name}'"
            )
        for channel in list(self.channels.values()):
            try:
                channel.check_consumers()
            except AMQPError as error:
                self.fail(error, channel.number)

    # -- resource alarms ---------------------------------------------------------------------

    @property
    def blocked(self) -> bool:
        """It is not read while an alarm is on."""
        return Hold.ALARM in self.sink.why_not_read

    def block(self) -> None:
        """It publishes while an alarm is on: it is told why, and not read until that is over.

        What it published before the alarm is of no account: consumers may have published once.
        """
        if not self.blocked and not self.protocol.ended:
            self.sink.hold(Hold.ALARM)
            if self.capable("connection.blocked"):
                self.sink.send(0, spec.ConnectionBlocked(self.broker.blocked_reason))

    def unblock(self) -> None:
        """The alarm is over: go on where it stopped."""
        if not self.blocked:
            return
        self.sink.release(Hold.ALARM)
        if self.capable("connection.blocked") and not self.protocol.ended:
            self.sink.send(0, spec.ConnectionUnblocked())
        if self._held_events:
            for channel in self.channels.values():
                channel.answers.go_on()
        put_aside, self._put_aside = self._put_aside, []
        for event in put_aside:
            self.handle(event)

    # -- the end -----------------------------------------------------------------------------

    def checking_consumers(self, now_s: float) -> Steps[None]:
        """Close the channels whose consumers hold a delivery longer than they may."""
        for channel in letting_go(self.channels.values()):
            overdue_s = yield from channel.lapsing(now_s)
            if overdue_s is not None and self.channels.get(channel.number) is channel:
                self.fail(
                    precondition_failed(
                        f"delivery acknowledgement on channel {channel.number} timed out. "
                        f"Timeout value used: {round(overdue_s * 1000)} ms. This timeout value "
                        "can be configured, see consumers doc guide to learn more"
                    ),
                    channel.number,
                )
            yield

    def drained(self) -> None:
        """The sink can take deliveries again."""
        if self.starving:
            starving, self.starving = self.starving, {}
            self.services.jobs.start(_feeding(letting_go(starving)))

    def fail(self, error: AMQPError, number: int) -> None:
        """Close the channel or the connection, as far as an error of ours reaches."""
        if not self.protocol.ended:
            self._refuse(error, number)

    def _refuse(self, error: AMQPError, number: int, *, silent: bool = False) -> None:
        """Close the channel, or the connection; `silent`: close the connection without a word."""
        ids = (error.class_id, error.method_id)
        if isinstance(error, SoftError) and number:
            logger.warning(
                "channel closed peer=%s channel=%d error=%s", self.peer, number, error.reply_text
            )
            self.sink.send(number, spec.ChannelClose(error.code, error.reply_text, *ids))
            self._end_channel(number)
            return
        # A refused login is in the log already, unless it is one of a flood.
        level = logging.WARNING if self.authenticated or error.code != 403 else logging.DEBUG
        logger.log(level, "connection closed peer=%s error=%s", self.peer, error.reply_text)
        refused_login = error.code == 403 and self.capable("authentication_failure_close")
        if (self.authenticated or refused_login) and not silent:
            self.sink.send(0, spec.ConnectionClose(error.code, error.reply_text, *ids))
            self.sink.disconnect(after_s=CLOSE_OK_WAIT_S)
        else:
            self.protocol.end()
            self.sink.disconnect(after_s=SILENT_CLOSE_S)
        self._end()

    def lost(self) -> None:
        """The socket is gone."""
        if not self.protocol.ended:
            # Who was never in is of little interest: a probe of a load balancer, or a guesser.
            level = logging.DEBUG if self.account is None else logging.INFO
            logger.log(level, "connection lost peer=%s", self.peer)
        if self._login_attempt is not None:
            self._login_attempt.withdraw()
            self._login_attempt = None
        self.protocol.end()
        try:
            self._end()
        finally:
            self.broker.clients.discard(self)
            self.broker.services.stats.connections_closed += 1

    def _end_channel(self, number: int) -> Outcome[None]:
        channel = self._forget_channel(number)
        return channel.close() if channel is not None else Outcome.of(None)

    def _end(self) -> Outcome[None]:
        """Give back what the client held. The protocol has ended, so that nothing is sent to it."""
        self._put_aside.clear()
        self.starving.clear()
        outcomes: list[Outcome[Any]] = []
        if self.channels:
            self.user.channels -= len(self.channels)
            stop_all(self.services.stats, self.channels.values())
            leaving = letting_go(self.channels.values())
            self.channels.clear()
            outcomes.append(self.services.jobs.start_in_turn(_leaving(leaving)))
        if self.vhost is not None:
            if self in self.vhost.clients:
                self.vhost.clients.remove(self)
                self.user.connections -= 1
            queues = letting_go(self.exclusive_queues.values())
            outcomes.append(self.vhost.removals.delete_exclusive(queues))
        ended = all_of(outcomes)
        ended.then(self._ended)
        return ended

    def _ended(self, outcome: Outcome[None]) -> None:
        try:
            outcome.result()
        except Exception:
            logger.exception("internal error at the end of a connection peer=%s", self.peer)

    def _close_ok(self, _: Outcome[None]) -> None:
        """Everything is given back: the client may go."""
        if self in self.broker.clients:
            self.sink.send(0, spec.ConnectionCloseOk())
            self.sink.finish()


def _feeding(channels: Iterator[Channel]) -> Steps[None]:
    """Let the consumers of channels have their turn that were refused one, while there is room."""
    for channel in channels:
        while not channel.feed_refused():
            yield
            if channel.sink.full:
                channel.starve()
                break
            if not channel.has_room:
                break
        yield


def _leaving(channels: Iterator[Channel]) -> Steps[None]:
    """Have the channels of a client give back what they held, one after the other.

    The first error is raised when all others have; more than one are logged.
    """
    failure: Exception | None = None
    for channel in channels:
        try:
            yield from channel.leaving()
        except Exception as error:
            if failure is None:
                failure = error
            else:
                logger.exception("internal error in the end of a channel %s", channel.name)
        yield
    if failure is not None:
        raise failure


def _plain(response: bytes) -> tuple[str, bytes]:
    """RFC 4616: authzid NUL authcid NUL password; RabbitMQ wants the authzid empty."""
    parts = response.split(b"\0")
    if len(parts) != 3 or parts[0]:
        raise syntax_error(f"response {_erlang_binary(response)} invalid")
    return parts[1].decode(errors="replace"), parts[2]


def _amqplain(response: bytes) -> tuple[str, bytes]:
    """A field table without its length, with LOGIN and PASSWORD."""
    table, _ = decode_table(len(response).to_bytes(4, "big") + response)
    login, password = table.get("LOGIN"), table.get("PASSWORD")
    if not isinstance(login, str) or not isinstance(password, (str, bytes)):
        raise syntax_error("AMQPLAIN auth info is missing LOGIN or PASSWORD field")
    return login, password.encode() if isinstance(password, str) else password


def _erlang_binary(data: bytes) -> str:
    """Bytes as Erlang prints them."""
    return "<<" + ",".join(map(str, data)) + ">>"
