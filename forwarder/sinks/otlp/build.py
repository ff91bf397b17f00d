"""From the configuration to the sink. Reads certificates; grpc is loaded only where it is asked for."""

import logging
import os
from collections.abc import Callable
from urllib.parse import urlsplit

from forwarder.config_otlp import OtlpSink
from forwarder.logs import fields
from forwarder.sinks.base import Sink
from forwarder.sinks.otlp.http import OtlpHttp
from forwarder.transport import HttpProblem, tls_context
from forwarder.transport.post import Poster

log = logging.getLogger(__name__)


def build(name: str, config: OtlpSink, instance: Callable[[], str]) -> Sink:
    """`instance` says, when the sink first sends, which agent this is. Raises HttpProblem."""
    if config.from_environment:
        log.info("settings of the environment", extra=fields(sink=name, taken=" ".join(config.from_environment)))
    compress = config.compression == "gzip"
    if config.protocol == "http":
        context = tls_context(config.ca_file, config.client_cert, config.client_key)
        poster = Poster(config.endpoint, config.request_headers(), context, proxy=config.proxy)
        return OtlpHttp(name, poster, instance, compress=compress, changes=config.changes, max_age=config.oldest)
    # The library reads them when it is loaded, and would write whole headers, keys among them, to standard error.
    for variable in ("GRPC_VERBOSITY", "GRPC_TRACE"):
        os.environ.pop(variable, None)
    from forwarder.sinks.otlp.grpc import OtlpGrpc, tls

    parts = urlsplit(config.endpoint)
    try:
        secure = parts.scheme == "https"
        credentials = tls(config.ca_file, config.client_cert, config.client_key) if secure else None
    except OSError as error:
        raise HttpProblem(f"a certificate cannot be read: {error.strerror or error}") from None
    return OtlpGrpc(
        name,
        parts.netloc,
        config.request_headers(),
        instance,
        credentials=credentials,
        proxy=config.proxy,
        compress=compress,
        changes=config.changes,
        max_age=config.oldest,
    )
