"""What the bounded GET of proxies and the bounded POST to backends share: TLS, checked settings, what failed."""

from forwarder.transport.settings import HttpProblem, tls_context

__all__ = ["HttpProblem", "tls_context"]
