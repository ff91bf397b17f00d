"""OTLP, to Grafana Cloud and any other receiver: metrics, and changes as log records.

`encode` makes requests from the official protobuf messages, `http` and `grpc` deliver one for each call, `replies`
reads what both are answered with. The SDK's exporters are not used: they report success for a redirect, a login page
and a partial success, and wait and retry by themselves (opentelemetry-exporter-otlp 1.45.2).
"""
