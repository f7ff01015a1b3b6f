"""When a certificate ends: the one thing in it that Python's `ssl` does not tell of one's own.

Certificate ::= SEQUENCE { tbsCertificate, … }
tbsCertificate ::= SEQUENCE { [0] version?, serialNumber, signature, issuer,
                              validity SEQUENCE { notBefore, notAfter }, … }  (RFC 5280, 4.1)
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

_SEQUENCE, _VERSION = 0x30, 0xA0
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_BEFORE_VALIDITY = 3  # serial number, signature, issuer
_LONG = 0x80
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def ends_s(pem: str) -> float:
    """The end of the first certificate in a PEM, in seconds since 1970. Raises ValueError."""
    _, found, rest = pem.partition(_BEGIN)
    text, ended, _ = rest.partition(_END)
    if not found or not ended:
        raise ValueError("there is no certificate")
    der = ssl.PEM_cert_to_DER_cert(f"{_BEGIN}{text}{_END}\n")
    try:
        return _not_after(der).timestamp()
    except IndexError as error:
        raise ValueError("the certificate is cut off") from error


def _not_after(der: bytes) -> datetime:
    _, certificate, _ = _element(der, 0)
    _, inner, _ = _element(certificate, 0)
    at = 0
    if inner[0] == _VERSION:
        _, _, at = _element(inner, at)
    for _ in range(_BEFORE_VALIDITY):
        _, _, at = _element(inner, at)
    kind, validity, _ = _element(inner, at)
    if kind != _SEQUENCE:
        raise ValueError("the certificate has no validity")
    _, _, at = _element(validity, 0)
    kind, text, _ = _element(validity, at)
    digits = text.decode("ascii").removesuffix("Z")
    if kind == _UTC_TIME:  # years from 1950 to 2049
        digits = ("19" if digits >= "50" else "20") + digits
    elif kind != _GENERALIZED_TIME:
        raise ValueError("the certificate's validity has no end")
    return datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC)


def _element(der: bytes, at: int) -> tuple[int, bytes, int]:
    """A DER element: its tag, its content, and where the next one begins."""
    tag, length = der[at], der[at + 1]
    at += 2
    if length & _LONG:
        count = length & ~_LONG
        length = int.from_bytes(der[at : at + count], "big")
        at += count
    content = der[at : at + length]
    if len(content) != length:
        raise IndexError
    return tag, content, at + length
