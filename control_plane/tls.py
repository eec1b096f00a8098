"""TLS off loopback: a certificate authority of our own, whose certificate travels in the join token.

Certificates are valid from 1970 to 9999, so no clock, however wrong, can lock a node out (I10); trust ends with the key.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from control_plane.config import LOOPBACK, make_private_dir, write_private
from pipelines.contract.errors import TidewireError

_FROM = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_TO = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)  # RFC 5280: no well-defined expiry


@dataclass(frozen=True)
class TlsFiles:
    """Paths of PEM files; `ca_pem` is the text that clients trust."""

    certificate: Path
    key: Path
    ca_pem: str

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.ca_pem)


def open_tls(directory: Path, host: str) -> TlsFiles:
    """The authority in `directory`, made once, and a server certificate for `host` signed by it."""
    make_private_dir(directory)
    ca_file, ca_key_file = directory / "ca.pem", directory / "ca.key"
    if ca_file.exists() and not ca_key_file.exists():
        hint = "put it back from a backup: nodes trust this authority only"
        raise TidewireError("the authority's key is missing", op="open TLS", place=str(ca_key_file), hint=hint)
    if not ca_file.exists():  # it is written last
        key, certificate = _authority()
        write_private(ca_key_file, _key_pem(key))
        write_private(ca_file, certificate.public_bytes(serialization.Encoding.PEM))
    ca = x509.load_pem_x509_certificate(ca_file.read_bytes())
    ca_key = serialization.load_pem_private_key(ca_key_file.read_bytes(), password=None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    server_key = ec.generate_private_key(ec.SECP256R1())
    certificate = _server_certificate(host, server_key, ca, ca_key)
    files = TlsFiles(directory / "server.pem", directory / "server.key", ca_file.read_text())
    write_private(files.key, _key_pem(server_key))
    write_private(files.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    return files


def trusting(directory: Path) -> ssl.SSLContext | None:
    """What trusts the authority in `directory`; None where there is none, and so no TLS."""
    ca_file = directory / "ca.pem"
    return ssl.create_default_context(cadata=ca_file.read_text()) if ca_file.exists() else None


def _authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tidewire authority")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = _builder(name, name, key).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return key, builder.sign(key, hashes.SHA256())


def _server_certificate(
    host: str, key: ec.EllipticCurvePrivateKey, ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    names = [_san(name) for name in dict.fromkeys((host, "localhost", LOOPBACK))]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tidewire control plane")])
    builder = _builder(subject, ca.subject, key).add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return builder.add_extension(issuer, critical=False).sign(ca_key, hashes.SHA256())


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    return builder.serial_number(x509.random_serial_number()).not_valid_before(_FROM).not_valid_after(_TO)


def _san(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
