"""What HTTP and gRPC are answered with alike: the response messages of OTLP, and refusals of an event's time.

No text of a receiver goes into a reason; codes of a closed list do.
"""

import logging
import re
from typing import Final

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from forwarder.logs import fields
from forwarder.sinks.base import Delivered
from forwarder.sinks.otlp.encode import Request, Signal

log = logging.getLogger(__name__)

Response = ExportMetricsServiceResponse | ExportLogsServiceResponse

# Refusals that speak of the time of a sample or record. Mimir (pkg/util/globalerror), Prometheus and Cortex
# (storage/interface.go), Loki (pkg/validation). Not the index of a program in Java that is out of bounds for a length.
_TIME: Final = re.compile(
    r"err-mimir-(sample-timestamp-too-old|sample-out-of-order|sample-duplicate-timestamp"
    r"|too-far-in-future|too-far-in-past|sample-too-far-in-future)"
    r"|out[ -]of[ -]order sample|sample timestamp out of order|out of bounds(?! for length)"
    r"|duplicate sample for timestamp|too old sample|sample too old"
    r"|entry too far behind|has timestamp too (old|new)|entry out of order",
    re.IGNORECASE,
)
# Mimir's codes for what it refuses when it is written to (pkg/util/globalerror/user.go). A closed list, not a form: in
# a form a receiver could put anything.
_MIMIR_CODES: Final = re.compile(r"\S+").findall("""
    missing-metric-name metric-name-invalid metric-name-too-long metadata-missing-metric-name unit-too-long
    max-label-names-per-series max-label-names-per-info-series label-invalid label-value-invalid label-name-too-long
    label-value-too-long duplicate-label-names labels-not-sorted max-series-per-metric max-metadata-per-metric
    max-series-per-user max-metadata-per-user max-active-series max-native-histogram-buckets
    not-reducible-native-histogram invalid-native-histogram-schema native-histogram-count-mismatch
    native-histogram-count-not-big-enough native-histogram-negative-bucket-count too-far-in-future too-far-in-past
    sample-timestamp-too-old sample-out-of-order sample-duplicate-timestamp sample-too-far-in-future
    distributor-max-ingestion-rate distributor-max-inflight-push-requests distributor-max-inflight-push-requests-bytes
    distributor-max-write-message-size distributor-max-otlp-request-size distributor-max-write-request-data-item-size
    ingester-max-ingestion-rate ingester-max-tenants ingester-max-series ingester-max-inflight-push-requests
    ingester-max-inflight-push-requests-bytes tenant-max-request-rate tenant-max-ingestion-rate
    tenant-too-many-ha-clusters request-blocked
""")
_MIMIR: Final = re.compile(rf"\berr-mimir-(?:{'|'.join(_MIMIR_CODES)})(?![a-z-])")


def about_time(text: str) -> bool:
    """Whether a refusal is about the time of an event."""
    return _TIME.search(text) is not None


def code(text: str) -> str:
    """Mimir's code in a refusal, in brackets after a space; empty when there is none."""
    found = _MIMIR.search(text)
    return f" ({found.group()})" if found else ""


def parsed(signal: Signal, body: bytes, *, json: bool = False) -> Response | None:
    """The response message in a body; None if there is none. An empty body is an empty message."""
    response: Response = ExportMetricsServiceResponse() if signal == "metrics" else ExportLogsServiceResponse()
    try:
        if json and not body.lstrip().startswith(b"{"):
            return None  # of a list, json_format 7.36 makes an empty message
        if json:
            json_format.Parse(body, response)
        else:
            response.ParseFromString(body)
    except (DecodeError, json_format.ParseError, UnicodeDecodeError, RecursionError):
        return None
    return response


class Verdict:
    """Reads responses for one sink, which says once that its receiver warns."""

    def __init__(self, sink: str) -> None:
        self._sink = sink
        self._warned = False

    def delivered(self, request: Request, response: Response, events: int | None) -> Delivered:
        """A response says that all was taken, or how much was not. That is final: OTLP forbids sending it again."""
        partial = response.partial_success
        if isinstance(response, ExportMetricsServiceResponse):
            refused, things = response.partial_success.rejected_data_points, "points"
        else:
            refused, things = response.partial_success.rejected_log_records, "records"
        if refused > 0:
            why = " for their time" if about_time(partial.error_message) else ""
            reason = f"the receiver refused {refused} {things}{why}{code(partial.error_message)}"
            return Delivered(min(refused, request.sent), reason, events)
        if partial.error_message and not self._warned:
            self._warned = True
            log.warning(
                "the receiver takes everything, but with a warning; its own log may say more",
                extra=fields(sink=self._sink),
            )
        return Delivered(events=events)
