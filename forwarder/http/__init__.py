"""One bounded GET: a total deadline, caps on bytes, no redirects, verified TLS, and paths that are never asked for."""

from forwarder.http.client import Client
from forwarder.http.endpoints import ForbiddenEndpoint

__all__ = ["Client", "ForbiddenEndpoint"]
