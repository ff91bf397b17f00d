"""The lists of deployments: /health, and the documented /health/models."""

import dataclasses

from forwarder.normalize.deployments import listing
from forwarder.normalize.envelope import Envelope
from forwarder.normalize.proxy import complaint, dependencies, release
from forwarder.normalize.reading import Reading
from forwarder.reply import Reply

_KNOWN = frozenset({
    "healthy_endpoints",
    "unhealthy_endpoints",
    "healthy_count",
    "unhealthy_count",
    "status",
    "db",
    "redis",
    "litellm_version",
})  # fmt: skip


def health(envelope: Envelope, reply: Reply) -> Reading:
    """Real and documented shapes at once: what is there is read.

    200 `{}` is what a proxy with background checks answers before their first cycle (1.53.1 to 1.109.1), and nothing
    else answers so. A 503 with the normal body is a targeted check (?model=) whose model fails, 1.106 and later.
    """
    content = envelope.readable
    if content is None:
        return Reading(error=envelope.error or "unexpected")
    if not content and envelope.successful:
        return Reading(background=True, detail="background checks are on and have not finished their first cycle")
    listed = listing(content.get("healthy_endpoints"), content.get("unhealthy_endpoints"), reply.time)
    broken_list = listed is None and content.keys() & {"healthy_endpoints", "unhealthy_endpoints"}
    if broken_list or not content.keys() & _KNOWN:
        return Reading(error=envelope.error or "unexpected")
    return dataclasses.replace(
        listed or Reading(),
        complaint=complaint(content),
        version=release(content.get("litellm_version")),
        dependencies=dependencies(content),
    )


def models(envelope: Envelope, reply: Reply) -> Reading:
    """The documented {"healthy": […], "unhealthy": […]}, whose entries carry last_check; 404 on every real proxy."""
    content = envelope.readable
    listed = listing(content.get("healthy"), content.get("unhealthy"), reply.time) if content else None
    return listed or Reading(error=envelope.error or "unexpected")
