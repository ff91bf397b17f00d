"""Whether a reply is the proxy's Prometheus page, and if not, why: each cause has its likely fix.

LiteLLM 1.53 to 1.109: `/metrics` is there only with the callback `prometheus`; up to 1.77 it is an enterprise feature,
whose page without a license has one family that says so; from 1.85 on it wants the key.
"""

import re
from typing import Final

from forwarder.normalize.envelope import explain, probe_metrics, unwrap
from forwarder.normalize.reading import Reading
from forwarder.reply import Reply

_LITELLM: Final = re.compile(rb"^(?:#[ \t]*(?:HELP|TYPE)[ \t]+)?litellm_(?!not_a_premium_user)", re.MULTILINE)
_UNLICENSED: Final = b"litellm_not_a_premium_user_metric"
_CALLBACK: Final = 'litellm_settings: {callbacks: ["prometheus"]} in the proxy\'s configuration'

_NOT_ENABLED: Final = f"the proxy has no metrics page; to have one, set {_CALLBACK}"
_EMPTY: Final = (
    "the metrics page is empty: with PROMETHEUS_MULTIPROC_DIR it is until the first request; else check that the "
    "callback prometheus is enabled"
)
_NO_FAMILIES: Final = f"the metrics page has nothing of LiteLLM's: the callback is not enabled; set {_CALLBACK}"
_ENTERPRISE: Final = "the proxy says that its metrics need a LiteLLM Enterprise license (releases up to 1.77)"
_MISSING_KEY: Final = (
    "the metrics page wants a key (LiteLLM 1.85 and later) and none is configured; set the target's api_key, or "
    "require_auth_for_metrics_endpoint: false in the proxy's configuration"
)
_ELSEWHERE: Final = (
    "the metrics page redirects to another host, scheme or path, where the key does not follow; set the target's url "
    "to where it leads"
)
_TOO_LARGE: Final = "the metrics page is over metrics.max_body; raise that, or have the proxy keep fewer labels"
_NOT_METRICS: Final = "the answer is a page or JSON, not Prometheus text; check what the target's url points at"


def metrics_page(reply: Reply, *, keyed: bool) -> Reading:
    """The metrics of the Reading are the probe's; what is on the page is `forwarder.exposition`'s to read."""
    error, detail = _judge(reply, keyed=keyed)
    if error == "absent":
        return Reading(absent=True, detail=detail)
    told = detail or (reply.detail if reply.failure else "") or explain(error, keyed=keyed)
    return Reading(error=error, detail=told, metrics=probe_metrics("metrics", reply, error))


def _judge(reply: Reply, *, keyed: bool) -> tuple[str | None, str]:
    """The error ("absent" for a page there is not), and its cause where it is another than at other endpoints."""
    if reply.failure is not None or reply.status is None or not 200 <= reply.status < 300:
        envelope = unwrap("metrics", reply, keyed=keyed)
        if envelope.absent:
            return "absent", _NOT_ENABLED
        own = "" if keyed and envelope.error == "auth" else _CAUSES.get(envelope.error or "", "")
        return envelope.error, own
    if _LITELLM.search(reply.body):
        return None, ""
    start = reply.body[:1000].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start in (b"<", b"{", b"[", b'"'):
        return "not_metrics", _NOT_METRICS
    if not reply.body.strip():
        return "absent", _EMPTY
    return "no_metrics", _ENTERPRISE if _UNLICENSED in reply.body else _NO_FAMILIES


_CAUSES: Final = {"auth": _MISSING_KEY, "redirect": _ELSEWHERE, "too_large": _TOO_LARGE}
