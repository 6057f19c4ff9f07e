"""Explains TLS failures, and names the redis-py option that fixes each."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

from redis.asyncio.connection import SSLConnection, parse_url

# X509_V_ERR_HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH; Python has no names for them.
_ANOTHER_NAME = (62, 64)
# OpenSSL's error names when a server requires a client certificate, in TLS 1.3 and 1.2.
_NO_CERTIFICATE = ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE", "BAD_CERTIFICATE", "UNKNOWN_CA")


def options_of(url: str) -> dict[str, Any]:
    """The options that redis-py reads from a URL. Host names are checked by default, as since redis-py 6.

    :raises ValueError, TypeError: redis-py does not accept the URL
    """
    options: dict[str, Any] = {**parse_url(url)}
    if options.get("connection_class") is SSLConnection and options.get("ssl_cert_reqs") != "none":
        options.setdefault("ssl_check_hostname", True)
    return options


def explained(error: BaseException, options: Mapping[str, Any]) -> tuple[str, bool] | None:
    """What is wrong, and whether it is ``lasting``; None: the error has nothing to do with TLS.

    :param options: of a redis-py ``SSLConnection``
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError | FileNotFoundError | ConnectionResetError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        if cause.verify_code in _ANOTHER_NAME:
            advice = "connect by a name in the certificate, or switch the check off with ssl_check_hostname=False"
        else:
            advice = "name the CA that signed it with ssl_ca_certs"
        return f"its TLS certificate was refused ({cause.verify_message.rstrip('.')}); {advice}", True
    if isinstance(cause, FileNotFoundError):
        names = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
        given = ", ".join(f"{name}={options[name]!r}" for name in names if options.get(name))
        return f"a file for TLS is missing; check {given}", True
    advice = "if it asks for a client certificate, give one that it trusts with ssl_certfile and ssl_keyfile"
    if isinstance(cause, ssl.SSLError):
        reason = cause.reason or str(cause)
        if any(word in reason for word in _NO_CERTIFICATE):
            return f"refused this client at the TLS handshake ({reason}); {advice}", True
        if "VERSION_NUMBER" in reason or "RECORD_LAYER" in reason:
            return f"does not speak TLS on this port ({reason}); use redis:// or another port", True
        return f"TLS failed: {reason}", True
    if isinstance(cause, ConnectionResetError) or "closed by server" in str(error):  # an end, to redis-py's reader
        # If it sent an alert, the reset has discarded it. It may as well be shutting down, so this is not ``lasting``.
        return f"closed the connection during the TLS handshake or just after; {advice}", False
    return None
