"""TLS on a connection: handshakes, ends, refusals, in real sockets and turn by turn."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlog.server import config
from qlog.server.amqp import spec
from qlog.server.amqp.frames import PROTOCOL_HEADER, method_frame
from qlog.server.broker.access.users import User
from qlog.server.net import handshakes
from qlog.server.net.certificates import Certificates, TLSUnusable
from qlog.server.net.session import HANDSHAKE_S
from tests.server.broker.support import CAPABILITIES, make, message
from tests.server.net.authority import (
    NAME,
    authority,
    broker_files,
    ca_file,
    client_context,
    revocations,
)
from tests.server.net.loop import LOGIN, Loop, Remote, running


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    """A loop without clients."""
    yield from running(tmp_path / "data")


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """Of a broker that asks clients for nothing."""
    return Certificates(config.of(**broker_files(tmp_path)).tls)


class TLSRemote(Remote):
    """A client that speaks TLS. `step` is how many octets it puts into the socket between turns."""

    def __init__(
        self,
        loop: Loop,
        certificates: Certificates,
        context: ssl.SSLContext | None = None,
        name: str = NAME,
        step: int = 1 << 20,
    ) -> None:
        super().__init__(loop, certificates.transport())
        self.step = step
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = context or client_context()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=name)

    def flush(self) -> None:
        """Send what TLS has to say, a step at a time, with a turn after each."""
        data = self._out.read()
        while data:
            sent = self.socket.send(data[: self.step])
            data = data[sent:]
            self.loop.settle()

    def pull(self) -> bool:
        """Take what has come; whether anything did."""
        try:
            data = self.socket.recv(1 << 20)
        except (BlockingIOError, ConnectionResetError):
            return False
        self._in.write(data) if data else self._in.write_eof()
        return bool(data)

    def shake_hands(self) -> TLSRemote:
        """The handshake, with all turns that the broker needs for it."""
        for _ in range(10):
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                self.loop.settle()
                self.pull()
            else:
                self.flush()
                self.loop.settle()
                return self
        raise AssertionError("no end")

    def write(self, *parts: bytes) -> None:
        self.tls.write(b"".join(parts))
        self.flush()

    def read_plain(self) -> bytes:
        """All that has come; at its end, the broker's goodbye was heard if `at_end` says so."""
        plain = b""
        while True:
            try:
                part = self.tls.read(1 << 20)
            except ssl.SSLWantReadError:
                if not self.pull():
                    return plain
                self.loop.settle()
                continue
            if not part:
                return plain
            plain += part

    @property
    def said_goodbye(self) -> bool:
        """The broker has ended its stream as TLS wants it, and then the socket."""
        try:
            while self.tls.read(1 << 20):
                pass
        except ssl.SSLWantReadError:
            return self.said_goodbye if self.pull() else False
        return True


def logged_in(remote: TLSRemote) -> TLSRemote:
    """The same client with channel 1 open."""
    remote.write(
        PROTOCOL_HEADER,
        method_frame(0, LOGIN),
        method_frame(0, spec.ConnectionTuneOk(2047, 131072, 0)),
        method_frame(0, make(spec.ConnectionOpen, virtual_host="/")),
        method_frame(1, make(spec.ChannelOpen)),
    )
    remote.loop.settle()
    assert remote.read_plain().endswith(method_frame(1, spec.ChannelOpenOk()))
    return remote


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("step", [1, 1000])
def test_a_conversation_whatever_one_read_brings(
    loop: Loop, certificates: Certificates, version: str, step: int
) -> None:
    context = client_context(version=version)
    remote = logged_in(TLSRemote(loop, certificates, context, step=step).shake_hands())
    secured = remote.session.client.secured
    assert secured is not None and secured.protocol == version.replace("_", ".")
    assert secured.certificate is None
    remote.write(method_frame(1, make(spec.QueueDeclare, queue="q", durable=True)))
    loop.disk()
    remote.write(message(1, "q", b"x" * 300))
    remote.write(method_frame(1, make(spec.BasicGet, queue="q")))
    loop.settle()
    assert b"x" * 300 in remote.read_plain()


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_the_end_is_said_in_tls_before_the_socket_ends(
    loop: Loop, certificates: Certificates, version: str
) -> None:
    remote = logged_in(TLSRemote(loop, certificates, client_context(version=version)).shake_hands())
    remote.write(method_frame(0, spec.ConnectionClose(200, "", 0, 0)))
    loop.settle()
    assert remote.read_plain() == method_frame(0, spec.ConnectionCloseOk())
    assert remote.said_goodbye
    remote.write(b"late")  # a client may still be writing; nobody listens
    loop.settle()
    remote.socket.close()
    loop.settle()
    assert not loop.turns.sessions


def test_a_refused_login_ends_in_tls_too(loop: Loop, certificates: Certificates) -> None:
    remote = TLSRemote(loop, certificates).shake_hands()
    wrong = spec.ConnectionStartOk({}, "PLAIN", b"\0guest\0wrong", "en_US")
    remote.write(PROTOCOL_HEADER, method_frame(0, wrong))
    loop.settle()
    remote.read_plain()
    assert not remote.said_goodbye
    loop.pass_s(4.0)
    assert remote.said_goodbye and not loop.turns.sessions


def test_a_client_that_ends_its_stream_is_obeyed_to_the_end(
    loop: Loop, certificates: Certificates
) -> None:
    """What it sent before close_notify counts, and the broker ends its own stream as well."""
    remote = logged_in(TLSRemote(loop, certificates).shake_hands())
    remote.write(method_frame(1, make(spec.QueueDeclare, queue="q", durable=True)))
    loop.disk()
    remote.read_plain()
    remote.tls.write(message(1, "q", b"last"))
    with pytest.raises(ssl.SSLWantReadError):
        remote.tls.unwrap()
    remote.flush()
    loop.settle()
    assert not loop.turns.sessions
    assert loop.broker.vhosts["/"].queues["q"].ready == 1
    remote.pull()
    remote.tls.unwrap()


def test_a_client_that_goes_in_the_middle_of_a_handshake(
    loop: Loop, certificates: Certificates
) -> None:
    remote = TLSRemote(loop, certificates)
    with pytest.raises(ssl.SSLWantReadError):
        remote.tls.do_handshake()
    remote.flush()
    remote.socket.close()
    loop.settle()
    assert not loop.turns.sessions


def test_much_goes_out_in_portions(loop: Loop, certificates: Certificates) -> None:
    """A client that does not read has little ciphertext here, and gets all in order."""
    remote = logged_in(TLSRemote(loop, certificates).shake_hands())
    remote.write(method_frame(1, make(spec.QueueDeclare, queue="q", durable=True)))
    loop.disk()
    remote.read_plain()
    bodies = [bytes([number]) * 100_000 for number in range(50)]
    for body in bodies:
        remote.write(message(1, "q", body))
        loop.disk()
    remote.write(method_frame(1, make(spec.BasicConsume, queue="q", consumer_tag="c", no_ack=True)))
    loop.settle()
    assert remote.session._outbox.bytes > 1 << 20
    heard = b""
    while part := remote.read_plain():
        heard += part
        loop.settle()
    order = [heard.index(body) for body in bodies]
    assert order == sorted(order)
    assert [heard.count(body) for body in bodies] == [1] * len(bodies)
    assert not remote.session._outbox.bytes


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (PROTOCOL_HEADER, "AMQP without TLS came to the port for TLS"),
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP came to the port for TLS"),
        (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", "length too short"),
        (bytes(100), "wrong version number"),
    ],
)
def test_who_speaks_something_else_is_told_apart_in_the_log(
    loop: Loop,
    certificates: Certificates,
    caplog: pytest.LogCaptureFixture,
    octets: bytes,
    reason: str,
) -> None:
    remote = Remote(loop, certificates.transport())
    remote.write(octets)
    loop.settle()
    assert not loop.turns.sessions
    assert f"TLS failed peer=test reason={reason}" in caplog.text
    assert "connection lost" not in caplog.text


def test_a_hello_of_tls_on_the_plain_port_is_named(
    loop: Loop, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    remote = Remote(loop)
    bio = ssl.MemoryBIO()
    tls = client_context().wrap_bio(ssl.MemoryBIO(), bio, server_hostname=NAME)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    remote.write(bio.read())
    loop.settle()
    assert "bad protocol header peer=test looks_like=TLS" in caplog.text


def test_octets_that_were_changed_on_the_way_end_the_connection(
    loop: Loop, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    remote = logged_in(TLSRemote(loop, certificates).shake_hands())
    remote.tls.write(method_frame(1, make(spec.QueueDeclare, queue="q")))
    data = bytearray(remote._out.read())
    data[-1] ^= 1
    remote.socket.send(data)
    loop.settle()
    assert not loop.turns.sessions and not loop.broker.vhosts["/"].queues
    assert "TLS failed peer=test reason=decryption failed or bad record mac" in caplog.text


def test_a_handshake_has_the_time_of_a_login(
    loop: Loop, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    silent = Remote(loop, certificates.transport())
    remote = TLSRemote(loop, certificates)
    with pytest.raises(ssl.SSLWantReadError):
        remote.tls.do_handshake()
    remote.flush()
    loop.pass_s(HANDSHAKE_S - 1)
    assert len(loop.turns.sessions) == 2
    loop.pass_s(2)
    assert not loop.turns.sessions and silent.at_end
    assert caplog.text.count("handshake timeout peer=test") == 2


# -- whose certificate --------------------------------------------------------------------------


def test_an_old_version_is_refused(
    tmp_path: Path, loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    new = Certificates(config.of(**broker_files(tmp_path), tls_version_min="1.3").tls)
    remote = TLSRemote(loop, new, client_context(version="TLSv1_2"))
    with pytest.raises(ssl.SSLError):
        remote.shake_hands()
    assert "the client's version of TLS is too old" in caplog.text


def test_a_client_that_does_not_trust_the_broker_is_named(
    tmp_path: Path, loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    strange = Certificates(config.of(**broker_files(tmp_path, ca=authority("theirs"))).tls)
    remote = TLSRemote(loop, strange)
    with pytest.raises(ssl.SSLCertVerificationError):
        remote.shake_hands()
    remote.flush()
    assert "the client does not trust who has signed the broker's certificate" in caplog.text


def test_no_renegotiation(certificates: Certificates) -> None:
    assert certificates.context.options & ssl.OP_NO_RENEGOTIATION


def asking(tmp_path: Path, clients: str) -> Certificates:
    """Certificates of a broker that asks clients for theirs."""
    given = broker_files(tmp_path) | {"tls_ca": ca_file(tmp_path)}
    return Certificates(config.of(**given, tls_client_certificates=clients).tls)


def refused(remote: TLSRemote) -> bool:
    """Whether the broker ends it; with TLS 1.3 the client hears that after its handshake."""
    try:
        remote.shake_hands()
        remote.write(PROTOCOL_HEADER)
        remote.read_plain()
    except (ssl.SSLError, BrokenPipeError):
        pass
    remote.loop.settle()
    return not remote.loop.turns.sessions


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_certificate_is_required(
    tmp_path: Path, loop: Loop, caplog: pytest.LogCaptureFixture, version: str
) -> None:
    required = asking(tmp_path, "required")
    assert refused(TLSRemote(loop, required, client_context(version=version)))
    assert "the client has shown no certificate" in caplog.text
    stranger = client_context(common_name="x", ca=authority("theirs"), version=version)
    assert refused(TLSRemote(loop, required, stranger))
    assert "the client's certificate is refused: unable to get local issuer" in caplog.text
    context = client_context(common_name="worker", version=version)
    logged_in(TLSRemote(loop, required, context).shake_hands())


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_revoked_certificates(
    tmp_path: Path, loop: Loop, caplog: pytest.LogCaptureFixture, version: str
) -> None:
    serials: list[int] = []
    bad = client_context(common_name="bad", version=version, serials=serials)
    good = client_context(common_name="good", version=version)
    path = revocations(tmp_path / "revoked.pem", *serials)
    given = broker_files(tmp_path) | {"tls_ca": ca_file(tmp_path), "tls_revoked": str(path)}
    certificates = Certificates(config.of(**given, tls_client_certificates="required").tls)
    logged_in(TLSRemote(loop, certificates, good).shake_hands()).socket.close()
    loop.settle()
    assert refused(TLSRemote(loop, certificates, bad))
    assert "the client's certificate is refused: certificate revoked" in caplog.text
    revocations(path)  # it is taken back
    certificates.read_again()
    logged_in(TLSRemote(loop, certificates, bad).shake_hands()).socket.close()
    loop.settle()
    revocations(path, days=-1)
    certificates.read_again()
    assert refused(TLSRemote(loop, certificates, good))
    assert "the client's certificate is refused: CRL has expired" in caplog.text


def test_a_certificate_may_be_left_out_but_not_be_false(tmp_path: Path, loop: Loop) -> None:
    optional = asking(tmp_path, "optional")
    stranger = client_context(common_name="x", ca=authority("theirs"))
    assert refused(TLSRemote(loop, optional, stranger))
    logged_in(TLSRemote(loop, optional).shake_hands())


DN = 'CN=worker 1,O=Ex\\, \\"ample\\",OU=TLS'


def external(loop: Loop, certificates: Certificates, context: ssl.SSLContext) -> bytes:
    """What the broker says to a client that logs in by its certificate."""
    remote = TLSRemote(loop, certificates, context).shake_hands()
    remote.write(PROTOCOL_HEADER)
    loop.settle()
    offered = remote.read_plain()
    has_certificate = remote.session.client.secured is not None and (
        remote.session.client.secured.certificate is not None
    )
    assert (b"EXTERNAL" in offered) is has_certificate
    remote.write(
        method_frame(0, spec.ConnectionStartOk(CAPABILITIES, "EXTERNAL", b"", "en_US")),
    )
    loop.settle()
    return remote.read_plain()


@pytest.mark.parametrize(
    ("settings", "user"),
    [
        ({}, "the distinguished name"),
        ({"tls_login_from": "common_name"}, "worker 1"),
        ({"tls_login_from": "subject_alternative_name"}, "worker.1.example"),
        (
            {"tls_login_from": "subject_alternative_name", "tls_login_san_type": "email"},
            "worker.1@example.org",
        ),
    ],
)
def test_a_certificate_is_a_login(
    tmp_path: Path, loop: Loop, settings: dict[str, str], user: str
) -> None:
    loop.broker.settings = config.of(**settings).broker
    optional = asking(tmp_path, "optional")
    context = client_context(common_name="worker 1")
    probe = TLSRemote(loop, optional, context).shake_hands()
    secured = probe.session.client.secured
    assert secured is not None and secured.certificate is not None
    if user == "the distinguished name":
        user = secured.certificate.subject
        assert user.startswith("CN=worker 1,") and 'O=Ex\\, \\"ample\\"' in user
    loop.broker.users[user] = User(user, b"", (), {"/": (".*", ".*", ".*")})
    tune = method_frame(0, spec.ConnectionTune(2047, 131072, 60))
    assert external(loop, optional, context) == tune
    assert b"Login was refused" in external(loop, optional, client_context(common_name="other"))
    assert b"Login was refused" in external(loop, optional, client_context())


def test_without_tls_nobody_is_who_a_certificate_says(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    remote = Remote(loop)
    remote.write(PROTOCOL_HEADER)
    loop.settle()
    start = remote.hear()[0]
    assert isinstance(start, spec.ConnectionStart) and b"EXTERNAL" not in start.mechanisms
    remote.send(0, spec.ConnectionStartOk(CAPABILITIES, "EXTERNAL", b"guest", "en_US"))
    loop.settle()
    (close,) = remote.hear()
    assert isinstance(close, spec.ConnectionClose) and close.reply_code == 403
    assert "the connection has no TLS, which EXTERNAL needs" in caplog.text


def common_names(remote: TLSRemote) -> list[str]:
    """The names that the broker's certificate is for."""
    certificate = remote.tls.getpeercert()
    assert certificate is not None
    return [str(entry[1]) for entry in certificate["subjectAltName"]]


def test_a_client_is_shown_the_certificate_of_the_name_it_asks_for(
    tmp_path: Path, loop: Loop
) -> None:
    names = tmp_path / "names"
    for layout in (("tls.crt", "tls.key"), ("fullchain.pem", "privkey.pem")):
        host = f"{layout[0].partition('.')[0]}.example"
        (names / host).mkdir(parents=True)
        made = broker_files(tmp_path, host, stem="made")
        Path(made["tls_certificate"]).rename(names / host / layout[0])
        Path(made["tls_key"]).rename(names / host / layout[1])
    made = broker_files(tmp_path, "*.wild.example", stem="made")
    both = Path(made["tls_certificate"]).read_text() + Path(made["tls_key"]).read_text()
    (names / "*.wild.example.pem").write_text(both)
    given = broker_files(tmp_path) | {"tls_names_directory": str(names)}
    several = Certificates(config.of(**given).tls)
    for name in ("tls.example", "fullchain.example"):
        assert common_names(TLSRemote(loop, several, name=name).shake_hands()) == [name]
    remote = TLSRemote(loop, several, name="a.wild.example").shake_hands()
    assert common_names(remote) == ["*.wild.example"]
    remote = TLSRemote(loop, several, name="127.0.0.1").shake_hands()
    assert common_names(remote) == [NAME, "127.0.0.1"]


def test_files_are_read_again_for_new_connections(tmp_path: Path, loop: Loop) -> None:
    certificates = Certificates(config.of(**broker_files(tmp_path)).tls)
    old = logged_in(TLSRemote(loop, certificates).shake_hands())
    broker_files(tmp_path, NAME, "new.example")
    certificates.read_again()
    new = TLSRemote(loop, certificates).shake_hands()
    assert common_names(new) == [NAME, "new.example"]
    (tmp_path / "broker.crt").write_text("damaged")
    with pytest.raises(TLSUnusable, match=r"cannot use .*broker.crt with .*broker.key"):
        certificates.read_again()
    assert common_names(TLSRemote(loop, certificates).shake_hands()) == [NAME, "new.example"]
    old.write(method_frame(2, make(spec.ChannelOpen)))
    loop.settle()
    assert old.read_plain() == method_frame(2, spec.ChannelOpenOk())


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    given = broker_files(tmp_path)
    other = broker_files(tmp_path, stem="other")
    (tmp_path / "nothing.pem").write_text("")
    asked = {"tls_client_certificates": "optional", "tls_ca": ca_file(tmp_path)}
    for wrong, said in (
        ({"tls_certificate": "missing.crt"}, "cannot use missing.crt with .*: No such file"),
        ({"tls_key": other["tls_key"]}, "the key is not that of the certificate"),
        ({"tls_key": "none"}, "no PEM with what is needed"),
        ({"tls_client_certificates": "optional"}, "tls_client_certificates needs tls_ca"),
        (
            {"tls_client_certificates": "optional", "tls_ca": str(tmp_path / "nothing.pem")},
            "nothing.pem for TLS",
        ),
        (asked | {"tls_revoked": str(tmp_path / "nothing.pem")}, "nothing.pem for TLS"),
        (asked | {"tls_revoked": asked["tls_ca"]}, "ca.crt for TLS: it has no list of revoked"),
        ({"tls_ciphers": "NOTHING"}, "tls_ciphers"),
        ({"tls_names_directory": "missing"}, "cannot read missing"),
    ):
        with pytest.raises(TLSUnusable, match=said):
            Certificates(config.of(**(given | wrong)).tls)


# -- others do not wait -------------------------------------------------------------------------


def hello() -> bytes:
    """The first octets of a client."""
    bio = ssl.MemoryBIO()
    tls = client_context().wrap_bio(ssl.MemoryBIO(), bio, server_hostname=NAME)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return bio.read()


def test_handshakes_have_a_line_of_their_own(
    loop: Loop, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred hellos come at once: somebody who is connected has an answer in the next turn."""
    bystander = loop.client()
    greeted = [Remote(loop, certificates.transport()) for _ in range(100)]
    first = hello()
    for remote in greeted:
        remote.write(first)
    loop.step_s = handshakes.HANDSHAKES_S  # each look at the clock: one step a turn
    bystander.send(2, make(spec.ChannelOpen))
    loop.turn()
    assert bystander.hear() == [spec.ChannelOpenOk()]
    assert len(loop.turns.handshakes.line) == 99
    loop.step_s = 0.0
    loop.settle()
    assert not loop.turns.handshakes.line


def test_only_so_many_handshakes_are_under_way(
    loop: Loop,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who keeps others waiting and is silent is cut after two seconds; who is not, gets through."""
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(handshakes, "BEGUN_MAX", 2)
    stalled = [Remote(loop, certificates.transport()) for _ in range(2)]
    for remote in stalled:
        remote.write(hello())
    loop.settle()
    remote = TLSRemote(loop, certificates)
    with pytest.raises(ssl.SSLWantReadError):
        remote.tls.do_handshake()
    remote.flush()
    assert not remote.pull()  # it is not read
    loop.settle()  # nor does the loop spin for it
    gone = Remote(loop, certificates.transport())
    gone.write(hello())
    loop.settle()
    gone.socket.close()
    loop.settle()
    loop.pass_s(handshakes.STALLED_S + 1)
    assert caplog.text.count("TLS handshake cut: silent while others wait peer=test") == 1
    assert remote.pull()
    logged_in(remote.shake_hands())
    assert len(loop.turns.sessions) == 2
