"""Settings that requests are made from, checked once: TLS, URLs, headers."""

import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import certifi
import httpx

from forwarder.secrets import Secret

_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
# How a message is framed and decoded is not a setting.
_OWN_HEADERS: Final = {
    "accept",
    "accept-encoding",
    "connection",
    "content-length",
    "te",
    "transfer-encoding",
    "upgrade",
}
_URL_HINT: Final = "such as http://localhost:4000"


class HttpProblem(ValueError):  # noqa: N818 - carried into a configuration Problem, never shown as an error of its own
    """Why a client cannot be made from its settings, and the fix. Never holds a header's value or a URL's password."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


def tls_context(ca_file: Path | None, client_cert: Path | None, client_key: Path | None) -> ssl.SSLContext:
    """TLS for a client, which always verifies. `ca_file` replaces the system's CAs; all files are PEM, and the key may
    stand in the file of the certificate.

    Share one between all targets with the same settings: loading the CAs takes 20 ms and 0.7 MB.
    Raises HttpProblem when a file cannot be read or is not what it should be.
    """
    # Not ssl.create_default_context(): that also obeys SSLKEYLOGFILE.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is None:
        context.load_default_certs()
        if not context.cert_store_stats()["x509_ca"] and not _has_ca_folder():
            context.load_verify_locations(cafile=certifi.where())  # slim containers come without any CA
    else:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as error:
            raise _file_problem(f"CA file {ca_file}", error, "PEM with CERTIFICATE blocks is expected") from None
    if client_cert is None:
        if client_key is not None:
            raise HttpProblem("a client key without a client certificate", "set both, or neither")
        return context
    what = f"client certificate {client_cert}" + (f" with key {client_key}" if client_key else "")
    try:
        # The callback keeps OpenSSL from asking on the terminal for the password of an encrypted key.
        context.load_cert_chain(client_cert, client_key, password=_no_password)
    except (OSError, _EncryptedKeyError) as error:
        hint = "PEM, not encrypted, and the key must belong to the certificate"
        raise _file_problem(what, error, hint) from None
    return context


class _EncryptedKeyError(Exception):
    pass


def _no_password() -> str:
    raise _EncryptedKeyError


def _has_ca_folder() -> bool:
    folder = ssl.get_default_verify_paths().capath  # OpenSSL reads it lazily, so the statistics do not show it
    return bool(folder) and any(Path(folder).iterdir())


def _file_problem(what: str, error: Exception, hint: str) -> HttpProblem:
    match error:
        case FileNotFoundError():
            return HttpProblem(f"{what} does not exist", "create it, or correct the path")
        case PermissionError():
            return HttpProblem(f"{what} may not be read", "give the agent's user read access")
        case _EncryptedKeyError():
            return HttpProblem(f"{what} cannot be used: the key is encrypted", hint)
        case ssl.SSLError():
            reason = (error.reason or "not PEM").replace("_", " ").lower()
            return HttpProblem(f"{what} cannot be used: {reason}", hint)
        case _:
            return HttpProblem(f"{what} cannot be read", hint)


def checked_headers(headers: Mapping[str, Secret | str]) -> dict[str, str]:
    checked = {}
    for name, value in headers.items():
        text = value.reveal() if isinstance(value, Secret) else value
        if not _HEADER_NAME.fullmatch(name):
            raise HttpProblem(f"{name!r} is not the name of a header")
        if name.lower() in _OWN_HEADERS:
            raise HttpProblem(f"the header {name} is the agent's own", "leave it out")
        if not text.isascii() or not text.isprintable() or text != text.strip():
            raise HttpProblem(f"the value of header {name} is not printable ASCII", "was it pasted whole?")
        checked[name] = text
    return checked


def checked_url(text: str, what: str) -> httpx.URL:
    """The URL, with a host that a resolver can be asked for. Raises HttpProblem, which calls it `what`."""
    try:
        url = httpx.URL(text)
        host = url.raw_host.decode("ascii")
    except (httpx.InvalidURL, ValueError):  # UnicodeError is a ValueError
        raise HttpProblem(f"the {what} is not a URL", _URL_HINT) from None
    if url.scheme not in ("http", "https"):
        raise HttpProblem(f"the {what} does not begin with http:// or https://", _URL_HINT)
    # httpx takes any host and escapes what does not fit; the resolver would fail at every poll.
    labels = host.removesuffix(".").split(".")
    is_name = len(host) <= 253 and all(re.fullmatch(r"[A-Za-z0-9_-]{1,63}", label) for label in labels)
    is_ipv6 = ":" in host and re.fullmatch(r"[0-9A-Fa-f:.]+", host)
    if not is_name and not is_ipv6:
        raise HttpProblem(f"the {what} has no valid host", _URL_HINT)
    if url.port is not None and not 1 <= url.port <= 65535:
        raise HttpProblem(f"the {what} has no valid port", "1 to 65535")
    return url
