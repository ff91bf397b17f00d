"""From replies to readings. Pure: no clock, no I/O, no state; total: any status and any bytes come to a Reading.

This is where everything a proxy sends is left behind that must not go on: error texts, API bases, headers, bodies.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Final

from forwarder import catalog
from forwarder.events import Metric
from forwarder.normalize.deployments import count_metrics, deployment_metrics
from forwarder.normalize.envelope import Envelope, explain, probe_metrics, unwrap
from forwarder.normalize.health import health, models
from forwarder.normalize.metrics_page import metrics_page
from forwarder.normalize.proxy import liveliness, readiness, readiness_details, verdict
from forwarder.normalize.reading import Deployment, Endpoint, Reading
from forwarder.normalize.services import backlog, latest, model_info, services, shared_status
from forwarder.reply import Reply

__all__ = [
    "Deployment",
    "Endpoint",
    "Reading",
    "count_metrics",
    "deployment_metrics",
    "normalize",
    "probe_metrics",
    "verdict",
]

_READERS: Final[Mapping[Endpoint, Callable[[Envelope, Reply], Reading]]] = {
    "liveliness": liveliness,
    "readiness": readiness,
    "readiness_details": readiness_details,
    "health": health,
    "models": models,
    "services": services,
    "shared_status": shared_status,
    "backlog": backlog,
    "latest": latest,
    "model_info": model_info,
}


def normalize(endpoint: Endpoint, reply: Reply, *, keyed: bool) -> Reading:
    """What the reply says. Never raises. `keyed`: whether a key is configured for the target.

    The metrics of the Reading are those of the probe, litellm.up, .ready, .info, .dependency.*, .router.models,
    .backlog.requests and ages of stored checks. Left to the poller: litellm.health, which needs several endpoints, and
    those of deployments (`deployment_metrics`, `count_metrics`); and what is on the metrics page. An absent endpoint
    has no metrics.
    """
    if endpoint == "metrics":  # no JSON, and what is on it needs the page before: see forwarder.exposition
        return metrics_page(reply, keyed=keyed)
    envelope = unwrap(endpoint, reply, keyed=keyed)
    reading = Reading(absent=True) if envelope.absent else _READERS[endpoint](envelope, reply)
    if reading.absent:
        return Reading(absent=True, detail=f"not offered here (HTTP {reply.status})")
    return dataclasses.replace(
        reading,
        detail=reading.detail or _detail(reading, reply, keyed=keyed),
        metrics=(*probe_metrics(endpoint, reply, reading.error), *_facts(reading, reply.time), *reading.metrics),
    )


def _detail(reading: Reading, reply: Reply, *, keyed: bool) -> str:
    # What the transport says of itself is more exact ("certificate has expired") and made by us as well.
    own = reply.detail if reply.failure is not None else ""
    return own or explain(reading.error, keyed=keyed)


def _facts(reading: Reading, time: int) -> list[Metric]:
    found = []
    if reading.alive is not None:
        found.append(catalog.UP.at(time, reading.alive))
    if reading.ready is not None:
        found.append(catalog.READY.at(time, reading.ready))
    if reading.version is not None:
        found.append(catalog.INFO.at(time, 1, {"version": reading.version}))
    found.extend(
        catalog.DEPENDENCY_UP.at(time, up, {"dependency": dependency})
        for dependency, up in reading.dependencies.items()
    )
    return found
