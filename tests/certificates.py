"""Certificates made for a test, as files and as a client's credentials."""

from pathlib import Path

import grpc
import trustme

from serving.config import Security

__all__ = ["Authority"]


class Authority:
    """Signs certificates of servers on 127.0.0.1 and of clients, and writes them into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.root: bytes = self.ca.cert_pem.bytes()

    def server(self, name: str = "server") -> dict[str, Path]:
        """Write a certificate and its key, and return them as the flags name them."""
        issued = self.ca.issue_cert("127.0.0.1")
        paths = {"tls_cert": self.folder / f"{name}.crt", "tls_key": self.folder / f"{name}.key"}
        paths["tls_cert"].write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        paths["tls_key"].write_bytes(issued.private_key_pem.bytes())
        return paths

    def security(self, *, clients: bool = False, **more) -> Security:
        """Return a server's settings; with ``clients``, they must show a certificate of this authority."""
        if clients:
            more["tls_client_ca"] = self.folder / "clients.crt"
            more["tls_client_ca"].write_bytes(self.root)
        return Security(**self.server(), **more)

    def credentials(self, *, own: bool = False) -> grpc.ChannelCredentials:
        """Return the credentials of a client that believes this authority; with ``own``, it has a certificate too."""
        if not own:
            return grpc.ssl_channel_credentials(self.root)
        issued = self.ca.issue_cert("client@example.org")
        return grpc.ssl_channel_credentials(
            self.root, issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes()
        )  # fmt: skip
