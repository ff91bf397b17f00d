"""What a fake LiteLLM proxy says about its deployments, release by release, leaks included (all of them LEAKTEST)."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

Release = Literal["documented", "1.53.1", "1.80.17", "1.106.2"]
LEAKING_BASE = "http://user:SECRETPASS-LEAKTEST@upstream.test/v1?sig=SECRETSIG-LEAKTEST"


@dataclass(frozen=True)
class ErrorKind:
    """How one kind of failing upstream shows; `calls`: how often one probe asks it, the SDK's retries included."""

    text: str
    old_text: str  # before 1.77
    status: int
    calls: int = 1


ERRORS: dict[str, ErrorKind] = {
    "authentication": ErrorKind(
        "litellm.AuthenticationError: AuthenticationError: OpenAIException - Incorrect API key provided: sk-LEAKTEST.",
        "Error code: 401 - {'error': {'message': 'Incorrect API key provided: sk-LEAKTEST.'}}",
        401,
    ),
    "rate_limit": ErrorKind(
        "litellm.RateLimitError: RateLimitError: OpenAIException - Rate limit reached in organization org-LEAKTEST",
        "Error code: 429 - {'error': {'message': 'Rate limit reached in organization org-LEAKTEST'}}",
        429,
        calls=3,
    ),
    "not_found": ErrorKind(
        "litellm.NotFoundError: OpenAIException - The model `gpt-nope` does not exist or you have no access.",
        "error:Error code: 404 - {'error': {'message': 'The model `gpt-nope` does not exist'}}. Missing `mode`.",
        404,
    ),
    "server_error": ErrorKind(
        "litellm.InternalServerError: InternalServerError: OpenAIException - The server had an error",
        "Error code: 500 - {'error': {'message': 'The server had an error'}}",
        500,
        calls=3,
    ),
    "bad_gateway": ErrorKind(
        "litellm.BadGatewayError: BadGatewayError: OpenAIException - <html><h1>502 Bad Gateway</h1></html>",
        "<html><h1>502 Bad Gateway</h1></html>",
        502,
        calls=3,
    ),
    "connection": ErrorKind(
        "litellm.InternalServerError: InternalServerError: OpenAIException - Connection error.",
        "Connection error.",
        500,
        calls=0,
    ),
    "timeout": ErrorKind("Timeout exceeded", "Request timed out.", 408),
}
_TRACE = (
    "\nstack trace: Traceback (most recent call last):\n"
    '  File "/opt/litellm/lib/python3.11/site-packages/litellm/main.py", line 5216, in ahealth_check\n'
    "    headers = {'Authorization': 'Bearer sk-TRACE-LEAKTEST'}"
)


@dataclass
class Deployment:
    """`model` as the provider knows it; `error` None while it is up, else one of ERRORS."""

    model: str = "openai/gpt-4o"
    name: str = "gpt-4o"
    api_base: str = LEAKING_BASE
    error: str | None = None
    model_id: str = ""

    def __post_init__(self) -> None:
        self.model_id = self.model_id or hashlib.sha256(repr(self).encode()).hexdigest()


def entry(release: Release, each: Deployment, *, admin: bool) -> dict[str, Any]:
    """One deployment as /health tells it: everything from a deny-list until 1.80, an allow-list in 1.106."""
    if release == "documented":
        return _documented_entry(each)
    told: dict[str, Any] = {"api_base": each.api_base, "model": each.model}
    if release == "1.106.2":
        told["model_id"] = each.model_id
        if not admin:
            del told["api_base"]
    else:
        told |= {
            "organization": "org-LEAKTEST",
            "extra_headers": {"X-Internal-Token": "SECRETHDR-LEAKTEST"},
            "azure_ad_token": "SECRETAAD-LEAKTEST",
            "client_secret": "SECRETCLIENT-LEAKTEST",
        }
    if release == "1.80.17":
        flags = ("use_in_pass_through", "use_litellm_proxy", "merge_reasoning_content_in_choices")
        told |= dict.fromkeys(flags, False)
        told |= {"litellm_metadata": {"tags": ["litellm-internal-health-check"]}, "cache": {"no-cache": True}}
    if each.error is None:
        return told | {"x-ratelimit-remaining-requests": "499", "x-ratelimit-remaining-tokens": "29900"}
    kind = ERRORS[each.error]
    late = each.error == "timeout"
    if release == "1.53.1":
        return told | {"error": kind.old_text + _TRACE}
    if not (late and release == "1.80.17"):  # which then has no error at all
        told["error"] = kind.text + ("" if late else _TRACE)
    if not late:
        told["raw_request_typed_dict"] = _raw_request(each)
    return told | ({"exception_status": kind.status} if release == "1.106.2" else {})


def _documented_entry(each: Deployment) -> dict[str, Any]:
    if each.error is None:
        return {"model": each.name, "status": "healthy"}
    return {"model": each.name, "error": ERRORS[each.error].text}


def _raw_request(each: Deployment) -> dict[str, Any]:
    body = {"model": each.name, "messages": [{"role": "user", "content": "Hey how's it going?"}], "extra_body": {}}
    headers = {"Authorization": "Bearer sk-UPSTREAM-LEAKTEST"}  # in clear in 1.77.7, masked elsewhere
    return {
        "raw_request_api_base": f"{each.api_base}/",
        "raw_request_body": {**body, "extra_headers": {"X-Internal-Token": "SECRETHDR-LEAKTEST"}},
        "raw_request_headers": headers,
        "error": None,
    }


def model_info(each: Deployment) -> dict[str, Any]:
    params = {"api_base": each.api_base, "model": each.model}
    info = {"id": each.model_id, "db_model": False, "litellm_provider": each.model.partition("/")[0], "mode": "chat"}
    return {"model_name": each.name, "litellm_params": params, "model_info": info}
