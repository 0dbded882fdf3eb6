"""Certificates: which the server shows, whose it believes, and how both follow their files."""

import ssl
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc

from serving.config import Security
from serving.errors import StartError
from serving.from_files import FromFiles, read_file

__all__ = ["Tls", "grpc_credentials", "open_tls", "server_context"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """What the server shows of itself, and whom it believes.

    Args:
        certificate: The chain as PEM, the server's own first.
        key: Its private key as PEM.
        client_ca: Certificates, as PEM, that sign those of clients; None: clients need none.
        context: The same for sockets of Python.
    """

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext


def open_tls(security: Security) -> FromFiles[Tls] | None:
    """Return certificates that follow their files; None where none are named.

    Raises:
        StartError: A file is missing, unreadable or no PEM, the key is another certificate's or has a password, or a
            flag lacks its fellow.
    """
    certificate, key, client_ca = security.tls_cert, security.tls_key, security.tls_client_ca
    if certificate is None and key is None:
        if client_ca is not None:
            raise StartError("--tls-client-ca needs the server's own certificate; give --tls-cert and --tls-key too")
        return None
    if certificate is None or key is None:
        raise StartError(
            f"--tls-cert and --tls-key go together; give {'--tls-key' if certificate else '--tls-cert'} too"
        )
    paths = [path for path in (certificate, key, client_ca) if path]
    return FromFiles(paths, partial(_read_tls, certificate, key, client_ca))


def grpc_credentials(tls: FromFiles[Tls]) -> grpc.ServerCredentials:
    """Return credentials that look at the certificates anew for each connection."""
    first = shown = tls.current()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        current = tls.current()
        if current is shown:
            return None
        shown = current
        return _configuration(current)

    return grpc.dynamic_ssl_server_credentials(_configuration(first), fetch, first.client_ca is not None)


def server_context(tls: FromFiles[Tls]) -> ssl.SSLContext:
    """Return a context for sockets of Python that does the same."""
    first = tls.current().context

    def renew(connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = tls.current().context

    first.sni_callback = renew
    return first


def _read_tls(certificate: Path, key: Path, client_ca: Path | None) -> Tls:
    chain, private = read_file("--tls-cert", certificate), read_file("--tls-key", key)
    signers = None if client_ca is None else read_file("--tls-client-ca", client_ca)
    _check_pem("--tls-cert", certificate, chain, b"CERTIFICATE-----")
    _check_pem("--tls-key", key, private, b"PRIVATE KEY-----")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load_pair(context, certificate, key)
    if client_ca is not None and signers is not None:
        _check_pem("--tls-client-ca", client_ca, signers, b"CERTIFICATE-----")
        _load_signers(context, client_ca, signers)
    return Tls(certificate=chain, key=private, client_ca=signers, context=context)


def _check_pem(flag: str, path: Path, content: bytes, what: bytes) -> None:
    if b"-----BEGIN " not in content or what not in content:
        raise StartError(f"{flag} {path} holds no {what.decode().strip('-').lower()}; it must be a PEM file with one")


def _load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    def refuse() -> str:
        raise StartError(f"--tls-key {key} has a password, and nobody is there to type it; give a key without one")

    try:
        context.load_cert_chain(certificate, key, password=refuse)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise StartError(f"--tls-key {key} is not the key of --tls-cert {certificate}; give the pair") from error
        raise StartError(f"--tls-cert {certificate} and --tls-key {key} are unusable: {error.reason}") from error
    except OSError as error:
        raise StartError(f"cannot read --tls-cert {certificate} or --tls-key {key}: {error.strerror}") from error


def _load_signers(context: ssl.SSLContext, path: Path, signers: bytes) -> None:
    try:
        context.load_verify_locations(cadata=signers.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:
        raise StartError(
            f"--tls-client-ca {path} is unusable: {error}; it must be a PEM file of certificates"
        ) from error
    context.verify_mode = ssl.CERT_REQUIRED


def _configuration(tls: Tls) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(tls.key, tls.certificate)], tls.client_ca)
