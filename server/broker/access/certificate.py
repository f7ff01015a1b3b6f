"""A client's certificate as a login sees it: names in the forms that RabbitMQ gives them.

Knows the dictionaries of Python's `ssl`, and neither sockets nor users. Whether the certificate is
to be trusted was decided before, in the handshake: an unverified one never gets here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# OpenSSL's names of attributes, and RFC 4514's short ones as RabbitMQ writes them (rabbit_cert_info).
_SHORT = {
    "surname": "SN",
    "givenName": "GIVENNAME",
    "initials": "INITIALS",
    "generationQualifier": "GENERATIONQUALIFIER",
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "title": "TITLE",
    "countryName": "C",
    "serialNumber": "SERIALNUMBER",
    "pseudonym": "PSEUDONYM",
    "domainComponent": "DC",
    "emailAddress": "EMAILADDRESS",
    "streetAddress": "STREET",
    "userId": "UID",
}
# Kinds of alternative names: the setting's, and those of Python's `ssl`.
_ALTERNATIVE = {"dns": "DNS", "ip": "IP Address", "email": "email", "uri": "URI"}

Names = Sequence[Sequence[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """A verified certificate of a client.

    Attributes:
        subject: the distinguished name by RFC 4514, last part first: `CN=worker,O=Example`.
        issuer: that of who has signed it, in the same form.
        common_names: the subject's CNs.
        alternative_names: by kind (dns, ip, email, uri), in the certificate's order.
        serial_number: in hexadecimal digits.
        valid_from, valid_to: as OpenSSL prints them.
    """

    subject: str
    issuer: str
    common_names: tuple[str, ...]
    alternative_names: Mapping[str, tuple[str, ...]]
    serial_number: str
    valid_from: str
    valid_to: str

    @classmethod
    def of(cls, decoded: Mapping[str, Any]) -> PeerCertificate:
        """From what `SSLObject.getpeercert()` returns."""
        alternative = decoded.get("subjectAltName", ())
        return cls(
            subject=distinguished_name(decoded["subject"]),
            issuer=distinguished_name(decoded["issuer"]),
            common_names=tuple(
                value for part in decoded["subject"] for kind, value in part if kind == "commonName"
            ),
            alternative_names={
                name: tuple(value for kind, value in alternative if kind == theirs)
                for name, theirs in _ALTERNATIVE.items()
            },
            serial_number=decoded["serialNumber"],
            valid_from=decoded["notBefore"],
            valid_to=decoded["notAfter"],
        )

    def login_name(self, source: str, kind: str = "dns", index: int = 0) -> str | None:
        """The user whom the certificate stands for; None: it has no such name.

        Arguments: `source` is `distinguished_name`, `common_name` (several are joined by commas) or
        `subject_alternative_name`; of these the one of this kind with this index, from 0 on.
        """
        match source:
            case "distinguished_name":
                return self.subject or None
            case "common_name":
                return ",".join(self.common_names) or None
        names = self.alternative_names[kind]
        return names[index] if index < len(names) else None


@dataclass(frozen=True, slots=True)
class Secured:
    """How a connection is encrypted. `protocol` is like TLSv1.3, `cipher` OpenSSL's name."""

    protocol: str
    cipher: str
    certificate: PeerCertificate | None


def distinguished_name(names: Names) -> str:
    """The name by RFC 4514, with RabbitMQ's escapes, so that users keep the names they have."""
    parts = ["+".join(f"{_SHORT.get(k, k)}={_escaped(v)}" for k, v in part) for part in names]
    return ",".join(reversed(parts))


def _escaped(value: str) -> str:
    out = []
    octets = value.encode(errors="surrogateescape")
    for at, octet in enumerate(octets):
        char = chr(octet)
        if octet < 32 or octet >= 126:
            out.append(f"\\{octet:02X}")
        elif (
            char in '"+,;<>\\'
            or (char in " #" and at == 0)
            or char == " "
            and at == len(octets) - 1
        ):
            out.append(f"\\{char}")
        else:
            out.append(char)
    return "".join(out)
