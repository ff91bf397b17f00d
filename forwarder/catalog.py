"""Every metric and change the agent can emit: name, kind, unit, description, attributes.

This is data. docs/metrics.md is generated from it, `litellm-forwarder catalog` prints it, and `MetricDef.at`
is the only way metrics are made, so nothing leaves the agent that is not listed here: the attribute names are the
allow-list that keeps API bases, error texts, headers and bodies inside the normaliser.

Names are API: renaming or removing one needs a CHANGELOG entry.
"""

from dataclasses import dataclass, field
from typing import Final

from forwarder.events import Attributes, Change, Kind, Metric, Severity

# --- attributes ------------------------------------------------------------------------------------------------

ATTRIBUTES: Final[dict[str, str]] = {
    "litellm.target": "name of the target in the configuration; on the resource of every event about a proxy, and on "
    "the agent's own metrics about its polls",
    "service.instance.id": "which agent speaks, on the resource of its own metrics: `agent.instance`, unless the "
    "configuration's `[resource]` says otherwise",
    "endpoint": "which endpoint was read: liveliness, readiness, health, …",
    "model": "the model as the proxy names it in its health reply, such as `openai/gpt-4o`",
    "deployment.id": "one deployment: the proxy's `model_id`, else a digest of model and API base with an index",
    "model.name": "what clients ask for: `model_name` in the proxy's configuration, where /model/info tells it",
    "provider": "the part of the model before the first slash, when there is one",
    "error.type": "a class of failure from a closed list, never the text of an error",
    "http.response.status_code": "the HTTP status the upstream or the proxy gave, when known",
    "dependency": "database, redis or router",
    "version": "the release the proxy says it is; of forwarder.info, the agent's own",
    "state": "which requests are counted: in_flight, admitted, queued, rejected; or what became of the series of the "
    "metrics page: kept, dropped, withheld, malformed",
    "sink": "name of a sink in the configuration",
    "reason": "why data was lost: spool_full, too_old, spool_unavailable, spool_corrupt",
    "outcome": "what became of a poll (listed below), of a send (delivered, retry, rejected, blocked) or of events "
    "(delivered, rejected, expired, dropped, as in the ledger)",
    "previous": "the value before the change",
    "current": "the value after the change",
}

PROBE_ERRORS: Final[dict[str, str]] = {
    "timeout": "no complete reply within the deadline",
    "dns": "the host name did not resolve",
    "refused": "nothing listens there",
    "unreachable": "no route to the host",
    "tls": "certificate or handshake failed",
    "connection": "the connection broke, or the peer does not speak HTTP",
    "too_large": "the reply is over the configured cap",
    "encoding": "the reply's compression is damaged",
    "proxy": "the configured forward proxy failed",
    "redirect": "a redirect, which is never followed with a key",
    "auth": "401, 403, or 400 no_db_connection: the key is missing, wrong or not allowed (some releases answer so too "
    "while their database is down)",
    "not_found": "404 where every LiteLLM proxy answers: not a LiteLLM proxy, or a wrong path in the URL",
    "rate_limited": "429",
    "http_4xx": "another client error",
    "http_5xx": "another server error",
    "not_json": "an HTML page or other text instead of JSON",
    "malformed": "JSON that is cut off or damaged",
    "unexpected": "JSON of a shape no known release answers",
    "not_metrics": "an HTML page or JSON instead of a Prometheus page",
    "no_metrics": "a Prometheus page without LiteLLM's families: the metrics callback is not enabled, or not licensed",
}

POLL_OUTCOMES: Final[dict[str, str]] = {
    "success": "an answer that could be read",
    "absent": "the target does not have the endpoint",
    "failure": "no answer, or one that could not be read; litellm.probe.failure says which",
    "overrun": "not begun, because the one before had not ended",
}

DEPLOYMENT_ERRORS: Final[dict[str, str]] = {
    "authentication": "the upstream refused the credentials (401)",
    "permission_denied": "the upstream forbids it (403)",
    "missing_credentials": "no credentials are configured for the deployment",
    "rate_limit": "the upstream limits the rate or the quota is used up (429)",
    "not_found": "the upstream does not know the model or path (404)",
    "bad_request": "the upstream refused the probe's request (400, 405, 422)",
    "content_policy": "the upstream's content filter refused the probe",
    "context_window": "the probe exceeded the context window",
    "timeout": "no answer in time (408, 504)",
    "connection": "no connection to the upstream",
    "bad_gateway": "502 from the upstream or a proxy before it",
    "service_unavailable": "503 from the upstream",
    "server_error": "500 or another 5xx from the upstream",
    "invalid_response": "the upstream answered something that is not a completion",
    "budget_exceeded": "a LiteLLM budget refused the probe",
    "other": "none of the above, or no error was given",
}

# --- endpoints -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EndpointDef:
    """One URL path that is read. `keyed`: real proxies with a master key want it here."""

    name: str
    path: str
    keyed: bool
    yields: str


ENDPOINTS: Final[tuple[EndpointDef, ...]] = (
    EndpointDef("liveliness", "/health/liveliness", False, "litellm.up; /health/liveness where that is absent"),
    EndpointDef("readiness", "/health/readiness", False, "litellm.ready, database; the release up to 1.80"),
    EndpointDef("readiness_details", "/health/readiness/details", True, "the release from 1.106 on, database"),
    EndpointDef("models", "/health/models", False, "deployments, in the documented API; real proxies do not have it"),
    EndpointDef("services", "/health/services", True, "database, redis and router, in the documented API alone"),
    EndpointDef("shared_status", "/health/shared-status", True, "the age of shared health checks, from 1.80 on"),
    EndpointDef("backlog", "/health/backlog", True, "requests in the answering worker, from 1.106 on"),
    EndpointDef("latest", "/health/latest", True, "the age of stored checks, from 1.77 on with a database"),
    EndpointDef("model_info", "/model/info", True, "names and number of deployments; at start and once an hour"),
    EndpointDef("metrics", "/metrics/", True, "the proxy's own metrics; see below. Open up to 1.84"),
    EndpointDef("health", "/health", True, "deployments; billed, unless the proxy checks in the background"),
)

# --- metrics ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MetricDef:
    name: str
    kind: Kind
    unit: str  # UCUM
    description: str
    attributes: tuple[str, ...] = ()

    def at(
        self, time: int, value: float, attributes: Attributes | None = None, *, start_time: int | None = None
    ) -> Metric:
        """One point of this metric. ValueError for an attribute that the catalog does not list (a bug)."""
        attributes = attributes or {}
        if extra := attributes.keys() - set(self.attributes):
            raise ValueError(f"{self.name} does not allow {sorted(extra)}")
        return Metric(self.name, self.kind, self.unit, time, float(value), attributes, start_time)


_DEPLOYMENT: Final = ("model", "model.name", "deployment.id", "provider")

HEALTH: Final = MetricDef(
    "litellm.health",
    "gauge",
    "1",
    "1 when the proxy answers liveliness, its readiness answers 2xx and nothing it says calls itself unhealthy; else "
    "0, also when it cannot be reached. Failing deployments alone do not change it. "
    "One point with each reading of liveliness, readiness and health.",
)
HEALTHY_MODELS: Final = MetricDef(
    "litellm.healthy_models", "gauge", "{deployment}", "How many deployments the proxy lists as healthy."
)
UNHEALTHY_MODELS: Final = MetricDef(
    "litellm.unhealthy_models", "gauge", "{deployment}", "How many deployments the proxy lists as unhealthy."
)
UP: Final = MetricDef("litellm.up", "gauge", "1", "1 when the proxy answers its liveliness endpoint, else 0.")
READY: Final = MetricDef(
    "litellm.ready", "gauge", "1", "1 when readiness answers 2xx, 0 when it answers otherwise; absent when unknown."
)
DEPLOYMENT_UP: Final = MetricDef(
    "litellm.deployment.up", "gauge", "1", "1 when the proxy lists the deployment as healthy, else 0.", _DEPLOYMENT
)
DEPLOYMENT_FAILURE: Final = MetricDef(
    "litellm.deployment.failure",
    "gauge",
    "1",
    "1 with the class of failure; present only while the deployment fails.",
    (*_DEPLOYMENT, "error.type", "http.response.status_code"),
)
DEPLOYMENT_CHECK_AGE: Final = MetricDef(
    "litellm.deployment.check.age",
    "gauge",
    "s",
    "How old the proxy's own result for the deployment is, where the proxy says it.",
    _DEPLOYMENT,
)
CHECK_CACHE_AGE: Final = MetricDef(
    "litellm.check.cache.age", "gauge", "s", "How old the proxy's shared health-check results are, where it says it."
)
DEPENDENCY_UP: Final = MetricDef(
    "litellm.dependency.up",
    "gauge",
    "1",
    "1 when the proxy says the dependency is connected, 0 when it says it is disconnected; absent when it does not "
    "say, and when it says `Not connected`, which is what proxies without a database say.",
    ("dependency",),
)
DEPENDENCY_LATENCY: Final = MetricDef(
    "litellm.dependency.latency", "gauge", "s", "Latency of the dependency as the proxy reports it.", ("dependency",)
)
ROUTER_MODELS: Final = MetricDef("litellm.router.models", "gauge", "{model}", "Models the router says it has.")
INFO: Final = MetricDef(
    "litellm.info", "gauge", "1", "Always 1; carries the release the proxy says it is.", ("version",)
)
BACKLOG_REQUESTS: Final = MetricDef(
    "litellm.backlog.requests",
    "gauge",
    "{request}",
    "Requests in the answering worker, by state (1.106 and later).",
    ("state",),
)
PROBE_SUCCESS: Final = MetricDef(
    "litellm.probe.success",
    "gauge",
    "1",
    "1 when the endpoint gave an answer that could be read, else 0.",
    ("endpoint",),
)
PROBE_FAILURE: Final = MetricDef(
    "litellm.probe.failure",
    "gauge",
    "1",
    "1 with the class of failure; present only while reading the endpoint fails.",
    ("endpoint", "error.type"),
)
PROBE_DURATION: Final = MetricDef(
    "litellm.probe.duration",
    "gauge",
    "s",
    "From the start of the request to the complete reply or failure.",
    ("endpoint",),
)
PROBE_RESPONSE_SIZE: Final = MetricDef(
    "litellm.probe.response.size", "gauge", "By", "Decoded size of the reply.", ("endpoint",)
)
PROBE_BILLED_CALLS: Final = MetricDef(
    "litellm.probe.billed_calls",
    "sum",
    "{call}",
    "Estimate of the upstream calls that our polls of /health caused, since the agent first saw the target: one for a "
    "healthy deployment, up to three for a failing one.",
)
PROBE_BUDGET_REMAINING: Final = MetricDef(
    "litellm.probe.budget.remaining",
    "gauge",
    "{call}",
    "Billed calls left of today's budget (UTC day); absent when the budget is unlimited.",
)
METRICS_SERIES: Final = MetricDef(
    "litellm.metrics.series",
    "gauge",
    "{series}",
    "Series of the proxy's metrics page as Prometheus counts them: kept; dropped because `max_series` is reached "
    "(lines, before they are merged); withheld because several processes answer in turn; malformed: no histogram or "
    "counter that there can be (buckets that fall, less than nothing), left out.",
    ("state",),
)
METRICS_BAD_LINES: Final = MetricDef(
    "litellm.metrics.bad_lines", "gauge", "{line}", "Lines of the last metrics page that could not be read."
)

# The agent's own. Sums count from its start.
POLLS: Final = MetricDef(
    "forwarder.polls", "sum", "{poll}", "Polls made of an endpoint.", ("litellm.target", "endpoint", "outcome")
)
POLL_BYTES: Final = MetricDef(
    "forwarder.poll.bytes", "sum", "By", "Decoded bytes of the replies.", ("litellm.target",)
)
POLL_LATENESS: Final = MetricDef(
    "forwarder.poll.lateness",
    "gauge",
    "s",
    "How late polls began, against their schedule: the worst since about the last reading.",
)
SENDS: Final = MetricDef("forwarder.sends", "sum", "{send}", "Delivery attempts.", ("sink", "outcome"))
SEND_DURATION: Final = MetricDef(
    "forwarder.send.duration",
    "sum",
    "s",
    "Time spent in delivery attempts, added up; divided by forwarder.sends it is their mean.",
    ("sink",),
)
EVENTS: Final = MetricDef(
    "forwarder.events",
    "sum",
    "{event}",
    "Events that left a sink's queue, by what became of them.",
    ("sink", "outcome"),
)
EVENTS_LOST: Final = MetricDef(
    "forwarder.events.lost",
    "sum",
    "{event}",
    "Events that made way in the spool for newer ones (spool_full, for each sink), or never entered it "
    "(spool_unavailable, for all sinks at once).",
    ("sink", "reason"),
)
SINK_UP: Final = MetricDef("forwarder.sink.up", "gauge", "1", "1 unless the last send to the sink failed.", ("sink",))
QUEUE_EVENTS: Final = MetricDef(
    "forwarder.queue.events", "gauge", "{event}", "Events in the spool that the sink has still to get.", ("sink",)
)
QUEUE_AGE: Final = MetricDef(
    "forwarder.queue.age", "gauge", "s", "Age of the oldest of them; 0 when there are none.", ("sink",)
)
DEAD_LETTERS: Final = MetricDef(
    "forwarder.dead_letters", "gauge", "{event}", "Events kept because the sink refused them for good.", ("sink",)
)
SPOOL_SIZE: Final = MetricDef(
    "forwarder.spool.size",
    "gauge",
    "By",
    "Size of the spool's files on disk. They keep the size they once needed, for reuse.",
)
LOOP_LAG: Final = MetricDef(
    "forwarder.loop.lag",
    "gauge",
    "s",
    "How long the agent's event loop kept what was due waiting: the worst since about the last reading.",
)
MEMORY: Final = MetricDef(
    "forwarder.memory", "gauge", "By", "Resident memory of the agent, where the system tells it."
)
UPTIME: Final = MetricDef("forwarder.uptime", "gauge", "s", "Time since the agent was started.")
AGENT_INFO: Final = MetricDef(
    "forwarder.info", "gauge", "1", "Always 1; carries the release of the agent.", ("version",)
)
TEST: Final = MetricDef(
    "forwarder.test", "gauge", "1", "Always 1; sent by `litellm-forwarder doctor` alone, to see that it arrives."
)

METRICS: Final[tuple[MetricDef, ...]] = (
    HEALTH,
    HEALTHY_MODELS,
    UNHEALTHY_MODELS,
    UP,
    READY,
    DEPLOYMENT_UP,
    DEPLOYMENT_FAILURE,
    DEPLOYMENT_CHECK_AGE,
    CHECK_CACHE_AGE,
    DEPENDENCY_UP,
    DEPENDENCY_LATENCY,
    ROUTER_MODELS,
    INFO,
    BACKLOG_REQUESTS,
    PROBE_SUCCESS,
    PROBE_FAILURE,
    PROBE_DURATION,
    PROBE_RESPONSE_SIZE,
    PROBE_BILLED_CALLS,
    PROBE_BUDGET_REMAINING,
    METRICS_SERIES,
    METRICS_BAD_LINES,
    POLLS,
    POLL_BYTES,
    POLL_LATENESS,
    SENDS,
    SEND_DURATION,
    EVENTS,
    EVENTS_LOST,
    SINK_UP,
    QUEUE_EVENTS,
    QUEUE_AGE,
    DEAD_LETTERS,
    SPOOL_SIZE,
    LOOP_LAG,
    MEMORY,
    UPTIME,
    AGENT_INFO,
    TEST,
)

# --- service checks --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CheckStatus:
    code: int  # Datadog's: 0 ok, 1 warning, 2 critical, 3 unknown
    message: str  # empty for ok, where Datadog shows none


@dataclass(frozen=True, slots=True)
class ServiceCheckDef:
    """A verdict for backends that know verdicts (Datadog's service checks), told with each point of a gauge.
    `statuses`: by the gauge's value; any other value is no verdict.
    """

    name: str
    metric: MetricDef
    statuses: dict[float, CheckStatus] = field(hash=False)
    description: str


CAN_CONNECT: Final = ServiceCheckDef(
    "litellm.can_connect",
    UP,
    {1.0: CheckStatus(0, ""), 0.0: CheckStatus(2, "The proxy does not answer its liveliness endpoint.")},
    "ok while the proxy answers its liveliness endpoint, else critical.",
)
IS_READY: Final = ServiceCheckDef(
    "litellm.ready",
    READY,
    {1.0: CheckStatus(0, ""), 0.0: CheckStatus(2, "The proxy says that it is not ready.")},
    "ok while readiness answers 2xx, critical while it answers otherwise.",
)

SERVICE_CHECKS: Final[tuple[ServiceCheckDef, ...]] = (CAN_CONNECT, IS_READY)

# --- the proxy's own families ------------------------------------------------------------------------------------

# Labels of LiteLLM 1.53 to 1.109 that identify people, their keys or their machines; aliases of keys are most often
# names of people. And the upstream's address, which in real ones holds passwords and signatures.
PERSONAL_LABELS: Final = (
    "user",
    "user_id",
    "user_alias",
    "user_email",
    "end_user",
    "requester",
    "client_ip",
    "user_agent",
    "hashed_api_key",
    "api_key_alias",
    "api_key",
    "api_base",
)

# `MetricDef.at` cannot know the families of every release. What it is for, that nothing unlisted leaves the agent, is
# done by these rules in its place (forwarder.exposition). docs/metrics.md has them.
FAMILIES: Final = """\
The families of the proxy's metrics page go on under their own names, counters with their `_total`. No unit is told.

- A family goes on if `include` has it and `exclude` has not; of its series, those that `include_series` has (if it is
  set) and `exclude_series` has not, by the values of their labels. Series of the proxy's own health probes are left
  out (`health_probes`), and so is every `_created`: it becomes the start time of its counter or histogram.
- Counters are sums, histograms are histograms: cumulative, with a delta. `_sum` and `_count` of a summary are sums,
  its quantiles gauges with a `quantile`. Everything else is a gauge. With `buckets = false` a histogram is two sums.
- Attributes are the labels. Dropped are those that identify people, their keys and upstreams ({personal};
  `keep_labels` asks for them), those of `drop_labels`, and those without a value: empty, or LiteLLM's `None`.
- In what is left, user names, passwords and queries are cut out of URLs; what looks like a key is masked (`sk-…`,
  `Bearer …`, those of well-known services, `user:password@`, `key=…`), control characters are replaced, and values cut
  at 200 characters. A secret that looks like no key, in a label that goes on, is not recognised: `drop_labels`.
- Series that coincide without their labels become one: sums and histograms add up; of gauges the greatest goes on, or
  the least where the name says `remaining`.
- A gauge that is NaN or infinite is absent. Points carry the time of the reading; the page's timestamps and exemplars
  are left out.
""".format(personal=", ".join(f"`{label}`" for label in PERSONAL_LABELS))

# --- changes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChangeDef:
    name: str
    severity: Severity
    description: str
    attributes: tuple[str, ...] = ()

    def at(
        self,
        time: int,
        title: str,
        text: str = "",
        attributes: Attributes | None = None,
        *,
        severity: Severity | None = None,
    ) -> Change:
        """One change of this kind. ValueError for an attribute that the catalog does not list (a bug)."""
        attributes = attributes or {}
        if extra := attributes.keys() - set(self.attributes):
            raise ValueError(f"{self.name} does not allow {sorted(extra)}")
        return Change(self.name, time, severity or self.severity, title, text, attributes)


BUDGET_SPENT: Final = ChangeDef(
    "litellm.probe.budget.spent",
    "warning",
    "Today's budget of billed calls does not cover another poll of /health; it is not called until the next UTC day.",
)
PROXY_DOWN: Final = ChangeDef(
    "litellm.proxy.down", "error", "The proxy stopped answering liveliness.", ("error.type",)
)
PROXY_UP: Final = ChangeDef("litellm.proxy.up", "info", "The proxy answers liveliness again.")
READINESS_CHANGED: Final = ChangeDef(
    "litellm.readiness.changed",
    "warning",
    "The proxy became ready (severity info) or not ready (warning).",
    ("previous", "current"),
)
DEPENDENCY_DOWN: Final = ChangeDef("litellm.dependency.down", "error", "The proxy lost a dependency.", ("dependency",))
DEPENDENCY_UP_CHANGE: Final = ChangeDef(
    "litellm.dependency.up", "info", "The proxy has a dependency back.", ("dependency",)
)
DEPLOYMENT_UNHEALTHY: Final = ChangeDef(
    "litellm.deployment.unhealthy",
    "warning",
    "A deployment became unhealthy.",
    (*_DEPLOYMENT, "error.type", "http.response.status_code"),
)
DEPLOYMENT_HEALTHY: Final = ChangeDef(
    "litellm.deployment.healthy", "info", "A deployment became healthy again.", _DEPLOYMENT
)
DEPLOYMENT_ADDED: Final = ChangeDef("litellm.deployment.added", "info", "A deployment appeared.", _DEPLOYMENT)
DEPLOYMENT_REMOVED: Final = ChangeDef(
    "litellm.deployment.removed", "info", "A deployment is no longer listed.", _DEPLOYMENT
)
VERSION_CHANGED: Final = ChangeDef(
    "litellm.version.changed", "info", "The proxy says it is another release.", ("previous", "current")
)
METRICS_CAPPED: Final = ChangeDef(
    "litellm.metrics.capped",
    "warning",
    "The metrics page has more series than `max_series`; those that were there first go on, the others are dropped.",
)
METRICS_MIXED: Final = ChangeDef(
    "litellm.metrics.mixed",
    "warning",
    "Several processes answer for the metrics page in turn, each with counters of its own: sums and histograms are "
    "withheld.",
)
METRICS_UNMIXED: Final = ChangeDef(
    "litellm.metrics.unmixed", "info", "One process answers for the metrics page again: sums and histograms go on."
)
DATA_LOST: Final = ChangeDef(
    "forwarder.data.lost", "error", "The agent lost events of its own, and counted them.", ("sink", "reason")
)

TEST_CHANGE: Final = ChangeDef(
    "forwarder.test", "info", "A test; sent by `litellm-forwarder doctor` alone, to see that it arrives."
)

CHANGES: Final[tuple[ChangeDef, ...]] = (
    PROXY_DOWN,
    PROXY_UP,
    READINESS_CHANGED,
    DEPENDENCY_DOWN,
    DEPENDENCY_UP_CHANGE,
    DEPLOYMENT_UNHEALTHY,
    DEPLOYMENT_HEALTHY,
    DEPLOYMENT_ADDED,
    DEPLOYMENT_REMOVED,
    VERSION_CHANGED,
    BUDGET_SPENT,
    METRICS_CAPPED,
    METRICS_MIXED,
    METRICS_UNMIXED,
    DATA_LOST,
    TEST_CHANGE,
)
