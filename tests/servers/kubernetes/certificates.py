"""The keys of a cluster for tests: an authority, the API server's certificate, and the key for tokens of accounts."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")


@dataclass(frozen=True)
class Certificates:
    """Where the keys lie, as PEM."""

    authority: Path
    server: Path
    server_key: Path
    account_key: Path


def make(folder: Path, *addresses: str) -> Certificates:
    """Make keys in `folder` for a server that is reached at `addresses`."""
    folder.mkdir(parents=True)
    keys = Certificates(*(folder / name for name in ("ca.crt", "server.crt", "server.key", "accounts.key")))
    authority, server, accounts = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    root = (
        _certificate("tests", "tests", authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(authority, hashes.SHA256())
    )
    named = [x509.DNSName(name) for name in _NAMES]
    reached = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    certificate = (
        _certificate("kube-apiserver", "tests", server)
        .add_extension(x509.SubjectAlternativeName([*named, *reached]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA256())
    )
    keys.authority.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    keys.server.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    keys.server_key.write_bytes(_pem(server))
    keys.account_key.write_bytes(_pem(accounts))
    return keys


def _certificate(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
