"""Settings of a client, checked once: base URL and forward proxy."""

import ssl

import httpx

from forwarder.http.endpoints import allowed
from forwarder.secrets import Secret
from forwarder.transport import HttpProblem
from forwarder.transport.settings import checked_url


def checked_base(base_url: str) -> httpx.URL:
    url = checked_url(base_url, "URL")
    if url.userinfo:
        raise HttpProblem("the URL holds a user name or password", "use api_key or headers instead")
    if "?" in base_url or "#" in base_url:
        raise HttpProblem("the URL has a query or a fragment", "scheme, host, port and a path prefix are enough")
    if not allowed(url.raw_path.decode("ascii")):
        raise HttpProblem(
            "the URL's path cannot be used", "give the base of the proxy, not an endpoint, in plain letters and digits"
        )
    return url


def checked_proxy(proxy: Secret | str, context: ssl.SSLContext) -> httpx.Proxy:
    url = checked_url(proxy.reveal() if isinstance(proxy, Secret) else proxy, "proxy URL")
    return httpx.Proxy(url, ssl_context=context if url.scheme == "https" else None)
