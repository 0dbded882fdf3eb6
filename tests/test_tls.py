"""TLS on both ports: real certificates, real clients with and without, and certificates that change."""

import logging
import os
import socket
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from bundles import CLEAN
from certificates import Authority
from cryptography.hazmat.primitives import serialization
from servers import TIMEOUT_S, channel_to, infer_request, live, tensors

from serving.config import Security
from serving.errors import StartError
from serving.from_files import FromFiles
from serving.security import warn_of_clear_text
from serving.tls import open_tls

Code = grpc.StatusCode


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def metrics(server, context):
    url = f"https://127.0.0.1:{server.running.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=TIMEOUT_S, context=context) as answer:
        return answer.read().decode()


def believing(authority, *, own=False):
    context = ssl.create_default_context(cadata=authority.root.decode())
    if own:
        authority.ca.issue_cert("client@example.org").configure_cert(context)
    return context


def is_refused(server, credentials):
    call = "/inference.GRPCInferenceService/ModelInfer"
    with channel_to(server.running.port, credentials) as channel:
        try:
            channel.unary_unary(call)(infer_request(CLEAN).SerializeToString(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return error.code() == Code.UNAVAILABLE
    return False


def test_a_client_that_believes_the_certificate_is_answered_on_both_ports(authority):
    with live(security=authority.security(), credentials=authority.credentials()) as server:
        assert tensors(server.infer(CLEAN))["y"] == CLEAN.tolist()
        assert "guard_rows_total" in metrics(server, believing(authority))


def test_rest_speaks_tls_with_the_same_certificate_and_follows_it(authority, tmp_path):
    def ready(server, context):
        url = f"https://127.0.0.1:{server.running.rest_port}/v2/health/ready"
        with urllib.request.urlopen(url, timeout=TIMEOUT_S, context=context) as answer:
            return answer.status

    with live(security=authority.security(clients=True), rest_port=0) as server:
        assert ready(server, believing(authority, own=True)) == 200
        with pytest.raises(OSError, match=r"ALERT|alert|reset|closed|Connection|EOF"):
            ready(server, believing(authority))
        new = Authority(tmp_path)
        new.server()
        both = believing(new)
        authority.ca.issue_cert("client@example.org").configure_cert(both)
        assert ready(server, both) == 200


def test_clear_text_and_clients_of_another_authority_are_refused(authority, tmp_path_factory):
    other = Authority(tmp_path_factory.mktemp("other"))
    with live(security=authority.security(), credentials=authority.credentials()) as server:
        assert is_refused(server, None)
        assert is_refused(server, other.credentials())
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            metrics(server, believing(other))


def test_with_a_client_authority_only_clients_with_its_certificate_are_answered(authority, tmp_path_factory):
    other = Authority(tmp_path_factory.mktemp("other"))
    foreign = other.ca.issue_cert("client@example.org")
    keys = foreign.private_key_pem.bytes(), foreign.cert_chain_pems[0].bytes()
    security = authority.security(clients=True)
    with live(security=security, credentials=authority.credentials(own=True)) as server:
        assert tensors(server.infer(CLEAN))["y"] == CLEAN.tolist()
        assert "guard_rows_total" in metrics(server, believing(authority, own=True))
        assert is_refused(server, authority.credentials())
        assert is_refused(server, grpc.ssl_channel_credentials(authority.root, *keys))
        with pytest.raises(OSError, match=r"ALERT|alert|reset|closed|Connection|EOF"):
            metrics(server, believing(authority))


def test_a_new_certificate_is_shown_without_a_restart_and_open_connections_go_on(authority, tmp_path):
    with live(security=authority.security(), credentials=authority.credentials()) as server:
        server.infer(CLEAN)
        new = Authority(tmp_path)
        new.server()
        assert not is_refused(server, new.credentials())
        assert is_refused(server, authority.credentials())
        assert "guard_rows_total" in metrics(server, believing(new))
        assert tensors(server.infer(CLEAN))["y"] == CLEAN.tolist()


def test_a_certificate_without_its_key_yet_leaves_the_old_pair_in_use(authority, tmp_path, caplog):
    tls = open_tls(authority.security())
    old = tls.current()
    new = Authority(tmp_path)
    key = (tmp_path / "server.key").read_bytes()
    new_key = new.server()["tls_key"].read_bytes()
    (tmp_path / "server.key").write_bytes(key)
    assert tls.current() is tls.current() is old
    assert caplog.text.count("is not the key of") == 1
    (tmp_path / "server.key").write_bytes(new_key)
    assert tls.current().key == new_key


def test_a_secret_that_is_switched_over_as_kubernetes_does_is_read_again(tmp_path):
    authorities = []
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        authorities.append(Authority(tmp_path / version))
        authorities[-1].server()
    (tmp_path / "data").symlink_to("one")
    paths = {"tls_cert": tmp_path / "data" / "server.crt", "tls_key": tmp_path / "data" / "server.key"}
    tls = open_tls(Security(**paths))
    old = tls.current()
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(tmp_path / "data")
    assert tls.current().key == (tmp_path / "two" / "server.key").read_bytes() != old.key


def test_a_file_that_vanished_leaves_the_last_value(tmp_path, caplog):
    path = tmp_path / "value"
    path.write_text("one")

    def read():
        try:
            return path.read_text()
        except OSError as error:
            raise StartError("gone") from error

    value = FromFiles([path], read)
    path.unlink()
    assert value.current() == value.current() == "one"
    assert caplog.text.count("gone") == 1
    path.write_text("two")
    assert value.current() == "two"


def test_a_client_that_says_nothing_holds_up_neither_scrapes_nor_the_drain(authority):
    with live(security=authority.security(), credentials=authority.credentials()) as server:
        silent = socket.create_connection(("127.0.0.1", server.running.metrics_port))
        assert "guard_rows_total" in metrics(server, believing(authority))
    silent.close()


def locked(key: bytes) -> bytes:
    loaded = serialization.load_pem_private_key(key, None)
    how = serialization.BestAvailableEncryption(b"secret")
    return loaded.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


def wrong_files(folder: Path) -> dict[str, tuple[Security, str]]:
    """Return settings that cannot work, and what must be said of each."""
    pair = Authority(folder).server()
    cert, key = pair.values()
    other = Authority(folder).server("other")["tls_key"]
    (no_pem := folder / "text").write_text("no PEM")
    (broken := folder / "broken").write_text("-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n")
    (with_password := folder / "locked").write_bytes(locked(key.read_bytes()))
    return {
        "no key": (Security(tls_cert=cert), "give --tls-key too"),
        "no certificate": (Security(tls_key=key), "give --tls-cert too"),
        "clients alone": (Security(tls_client_ca=cert), "give --tls-cert and --tls-key too"),
        "missing": (Security(tls_cert=folder / "none", tls_key=key), "none: No such file or directory"),
        "a folder": (Security(tls_cert=cert, tls_key=folder), "Is a directory"),
        "another's key": (Security(tls_cert=cert, tls_key=other), "is not the key of"),
        "swapped": (Security(tls_cert=key, tls_key=cert), "holds no certificate"),
        "text": (Security(tls_cert=cert, tls_key=no_pem), "holds no private key"),
        "broken": (Security(tls_cert=broken, tls_key=key), "are unusable"),
        "locked": (Security(tls_cert=cert, tls_key=with_password), "has a password"),
        "no clients": (Security(**pair, tls_client_ca=no_pem), "holds no certificate"),
        "broken clients": (Security(**pair, tls_client_ca=broken), "is unusable"),
    }


def test_files_that_cannot_work_are_said_before_anything_listens(tmp_path):
    for name, (security, words) in wrong_files(tmp_path).items():
        with pytest.raises(StartError, match=words), live(security=security):
            pytest.fail(f"{name}: it listens")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read every file")
def test_a_key_that_may_not_be_read_is_said(authority):
    security = authority.security()
    security.tls_key.chmod(0)
    with pytest.raises(StartError, match="Permission denied"):
        open_tls(security)


def test_clear_text_beyond_this_machine_is_warned_of_once_and_served(caplog, authority):
    for host, security in {"127.0.0.1": Security(), "localhost": Security(), "::1": Security()}.items():
        warn_of_clear_text(host, security)
    warn_of_clear_text("0.0.0.0", authority.security())
    assert caplog.text == ""
    with live(host="0.0.0.0") as server:
        assert tensors(server.infer(CLEAN))["y"] == CLEAN.tolist()
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert ["clear text on 0.0.0.0" in r.getMessage() for r in warnings] == [True]
