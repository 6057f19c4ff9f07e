"""A certificate authority for the tests, and the certificates that it issues."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme


class Certificates:
    """PEM files in ``directory``: the authority's, and those of a client for ``rediss://…?ssl_certfile=…&ssl_keyfile=…``."""

    def __init__(self, directory: Path) -> None:
        self._authority = trustme.CA()
        self.ca = str(directory / "ca.pem")
        self.client = str(directory / "client.pem")
        self.client_key = str(directory / "client.key")
        self._authority.cert_pem.write_to_path(self.ca)
        client = self._authority.issue_cert("client@localhost")
        client.cert_chain_pems[0].write_to_path(self.client)
        client.private_key_pem.write_to_path(self.client_key)

    def server_context(self, *names: str, client_required: bool = False) -> ssl.SSLContext:
        """For a :class:`TLSFront` with these names; default: ``localhost`` and 127.0.0.1."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(*(names or ("localhost", "127.0.0.1"))).configure_cert(context)
        if client_required:
            self._authority.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context
