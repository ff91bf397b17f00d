"""What one reply said, as data: the common result of every normaliser.

A `Reading` is all that leaves the normaliser. It holds only numbers, states from closed lists, and names that were
cleaned and cut (`name`): no API base, error text, header or body.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from forwarder.events import Metric

Endpoint = Literal[
    "liveliness",
    "readiness",
    "readiness_details",
    "health",
    "models",
    "services",
    "shared_status",
    "backlog",
    "latest",
    "model_info",
    "metrics",
]

MAX_NAME: Final = 200  # characters; the shortest limit of the backends (Datadog tags)
# What keys look like, wherever they were pasted: OpenAI's and LiteLLM's, Stripe's, Google's, Hugging Face's, GitHub's,
# Slack's, Grafana's, AWS' and New Relic's; schemes of the Authorization header; passwords and parameters of URLs.
_KEY: Final = re.compile(
    r"(?<![A-Za-z])(sk[-_]|Bearer[\s:]+)[A-Za-z0-9._~+/=-]{4,}"
    r"|(?<![A-Za-z])(Basic\s+|AIza|hf_|gh[opsur]_|github_pat_|xox[abprs]-|glc_|glsa_|AKIA|NRAK-)[A-Za-z0-9._~+/=-]{12,}"
    r"|([?&;](?:api[-_]?key|key|token|sig|signature|secret|password|auth)=)[^&;\s]+",
    re.IGNORECASE,
)
_LOGIN: Final = re.compile(r"(?<![\w.-])[\w.-]{1,64}:[^\s/@:]{1,200}@(?=[\w[])")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def name(value: object, limit: int = MAX_NAME) -> str | None:
    """A name out of a reply: control characters, line separators and lone surrogates become `_`, the length is capped.
    None when there is nothing to name.
    """
    if not isinstance(value, str):
        return None
    text = _UNPRINTABLE.sub("_", value[: limit + 1]).strip()
    return text[:limit] or None


def masked(text: str) -> str:
    """The text without what looks like a key or a log-in."""
    text = _KEY.sub(lambda found: f"{found[1] or found[2] or found[3]}***", text)
    return _LOGIN.sub("***@", text) if "@" in text else text


class Deployment(msgspec.Struct, frozen=True):
    """One deployment as one reply described it. `name` is what clients ask for (`model_name` in the proxy's
    configuration), where model_info told it. `error_type` is a key of catalog.DEPLOYMENT_ERRORS, only when not up.
    `check_age` is seconds.
    """

    id: str
    model: str
    provider: str | None
    up: bool
    error_type: str | None = None
    http_status: int | None = None
    check_age: float | None = None
    name: str | None = None

    @property
    def short_id(self) -> str:
        """For people: the start of a long id tells deployments apart as well as a commit's does."""
        return self.id if len(self.id) <= 20 else f"{self.id[:12]}…"

    def attributes(self) -> dict[str, str | int]:
        found: dict[str, str | int] = {"model": self.model, "deployment.id": self.id}
        if self.provider:
            found["provider"] = self.provider
        if self.name:
            found["model.name"] = self.name
        return found


@dataclass(frozen=True, slots=True)
class Reading:
    """What one reply said. None and empty mean: it did not say.

    error: a key of catalog.PROBE_ERRORS when the reply could not be read as this endpoint's answer
    detail: one clause for a log, made by us, never text of the proxy
    absent: this target does not have the endpoint (404, 405, 422)
    alive: the liveliness verdict; ready: the readiness verdict
    complaint: True when the reply calls the proxy unhealthy in its own words, False when it calls it healthy
    version: the release the proxy says it is
    dependencies: database, redis, router → connected or not
    deployments: everything listed, or None when the reply did not show deployments (an empty tuple is a list of none)
    healthy, unhealthy: the lengths of the proxy's lists, also beyond the cap on deployments; None without the list
    background: evidence that the proxy checks its models by itself: True (certain), None (no evidence)
    configured: how many deployments the proxy has configured, from model_info
    names: what clients call the deployments, from model_info; see `deployments.named`
    metrics: points that follow from this reply alone, except those of deployments (`deployment_metrics`,
        `count_metrics`): which endpoint they are taken from is the poller's decision
    """

    error: str | None = None
    detail: str = ""
    absent: bool = False
    alive: bool | None = None
    ready: bool | None = None
    complaint: bool | None = None
    version: str | None = None
    dependencies: Mapping[str, bool] = field(default_factory=dict)
    deployments: tuple[Deployment, ...] | None = None
    healthy: int | None = None
    unhealthy: int | None = None
    background: bool | None = None
    configured: int | None = None
    names: Mapping[str, str] | None = None
    metrics: tuple[Metric, ...] = ()
