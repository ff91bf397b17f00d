"""Which class of failure an unhealthy entry of /health describes.

Only the first line of the error text is read, and nothing of it is passed on: the lines after it are a traceback.
What each release writes there is tabled, with recorded replies, for 1.53.1, 1.77.7, 1.80.17, 1.106.2 and 1.109.1.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

_MAX_LINE: Final = 2_000  # characters; also what keeps the searches below cheap

# `litellm.RateLimitError: …`; anchored, so that text quoted from an upstream cannot pose as a class.
_CLASS: Final = re.compile(r"(?:litellm\.)?([A-Za-z]{3,60}):")
_CODE: Final = re.compile(r"error code: ([1-5][0-9][0-9])\b")  # 1.53.1, and `… - Error code: 502` of 1.109.1
_PAGE_CODE: Final = re.compile(r"\b([45][0-9][0-9]) [a-z]")  # `<h1>502 Bad Gateway</h1>`

# Classes that say what happened. InternalServerError and APIError do not: LiteLLM uses them for anything.
_CLASSES: Final[dict[str, str]] = {
    "AuthenticationError": "authentication",
    "PermissionDeniedError": "permission_denied",
    "RateLimitError": "rate_limit",
    "RouterRateLimitError": "rate_limit",
    "NotFoundError": "not_found",
    "BadRequestError": "bad_request",
    "InvalidRequestError": "bad_request",
    "UnprocessableEntityError": "bad_request",
    "UnsupportedParamsError": "bad_request",
    "RejectedRequestError": "content_policy",
    "ContentPolicyViolationError": "content_policy",
    "ContextWindowExceededError": "context_window",
    "Timeout": "timeout",
    "APITimeoutError": "timeout",
    "APIConnectionError": "connection",
    "BadGatewayError": "bad_gateway",
    "ServiceUnavailableError": "service_unavailable",
    "APIResponseValidationError": "invalid_response",
    "JSONSchemaValidationError": "invalid_response",
    "BudgetExceededError": "budget_exceeded",
    "ExceededBudget": "budget_exceeded",
}

# LiteLLM's own phrases, where the class is vague or too broad; the first that is found counts. Those that follow
# `…Exception - ` are asked for with it, so that an upstream's message which merely mentions them does not count.
_CREDENTIALS: Final = (
    ("missing credentials", "missing_credentials"),  # OpenAI, 1.106.2
    ("api_key client option must be set", "missing_credentials"),  # older OpenAI clients
    ("api key - a call is being made to", "missing_credentials"),  # `Missing Anthropic API Key - …`
)
_REQUEST: Final = (
    ("contextwindowexceeded", "context_window"),
    ("contentpolicyviolation", "content_policy"),
)
_VAGUE: Final = (
    *_CREDENTIALS,
    *_REQUEST,
    ("empty or invalid response from llm endpoint", "invalid_response"),  # 1.80.17 and later
    ("has no attribute 'model_dump'", "invalid_response"),  # 1.77.7
    ("exception - connection error", "connection"),  # 1.77.7 and later: InternalServerError, exception_status 500
    ("cannot connect to host", "connection"),
    ("exception - request timed out", "timeout"),
)
# By what the class alone says: which phrases may say it better.
_REFINED_BY: Final[dict[str | None, tuple[tuple[str, str], ...]]] = {
    None: _VAGUE,
    "connection": _VAGUE,  # LiteLLM wraps any unforeseen exception into APIConnectionError
    "authentication": _CREDENTIALS,
    "bad_request": _REQUEST,
}

# The last resort: 1.53.1 and documented texts, which name no class ("Invalid API key", "Rate limit exceeded").
_KEYWORDS: Final = (
    ("budget has been exceeded", "budget_exceeded"),
    ("budget exceeded", "budget_exceeded"),
    ("context window", "context_window"),
    ("context length", "context_window"),
    ("content policy", "content_policy"),
    ("content filter", "content_policy"),
    ("timeout", "timeout"),  # before connection: the documented "Connection timeout"
    ("timed out", "timeout"),
    ("rate limit", "rate_limit"),
    ("too many requests", "rate_limit"),
    ("quota", "rate_limit"),
    ("api key", "authentication"),
    ("unauthorized", "authentication"),
    ("authentication", "authentication"),
    ("credentials", "authentication"),
    ("forbidden", "permission_denied"),
    ("permission", "permission_denied"),
    ("not found", "not_found"),
    ("does not exist", "not_found"),
    ("bad gateway", "bad_gateway"),
    ("unavailable", "service_unavailable"),
    ("overloaded", "service_unavailable"),
    ("connect", "connection"),
    ("bad request", "bad_request"),
    ("server error", "server_error"),
)

_STATUSES: Final[dict[int, str]] = {
    400: "bad_request",
    401: "authentication",
    402: "rate_limit",  # the quota is used up
    403: "permission_denied",
    404: "not_found",
    405: "bad_request",
    408: "timeout",
    422: "bad_request",
    429: "rate_limit",
    502: "bad_gateway",
    503: "service_unavailable",
    504: "timeout",
}


def failure(entry: Mapping[str, Any]) -> tuple[str, int | None]:
    """The class (a key of catalog.DEPLOYMENT_ERRORS) and the HTTP status the entry gives, if any.

    The status is LiteLLM's `exception_status` (1.106 and later) or the one in the text. LiteLLM sets 500 and 408
    itself when no upstream answered, which is why the text is asked first.
    """
    line = _first_line(entry.get("error"))
    text = line.lower()
    given = _status(entry.get("exception_status"))
    if not line:
        if given is not None:
            return _by_status(given), given
        return ("timeout" if _is_silent_timeout(entry) else "other"), None

    match = _CLASS.match(line)
    name = match[1] if match else None
    known = _CLASSES.get(name) if name else None
    # The page that `Empty or invalid response … Received: '<html>…'` quotes came with 200, whatever it says.
    written = _status_in(text, page=known is None and name != "InternalServerError")
    status = given or written
    if known is None and status is not None and (written or status != 500):
        return _by_status(status), status
    phrase = _find(text, _REFINED_BY.get(known, ()))
    if phrase or known:
        return phrase or known or "other", status
    if name == "InternalServerError":
        return "server_error", status
    return _find(text, _KEYWORDS) or ("server_error" if status == 500 else "other"), status


def _first_line(error: object) -> str:
    """The first line that has anything in it, cut."""
    return error[:_MAX_LINE].lstrip().partition("\n")[0] if isinstance(error, str) else ""


def _is_silent_timeout(entry: Mapping[str, Any]) -> bool:
    # 1.77.7 and 1.80.17 give a timeout no `error` at all. Their entries carry these parameters;
    # entries of `health_check_details: false` (model alone) and documented ones do not.
    return "error" not in entry and bool(entry.keys() & {"litellm_metadata", "use_in_pass_through"})


def _status(value: object) -> int | None:
    if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 100 <= value <= 599:
        return value
    return None


def _status_in(text: str, *, page: bool) -> int | None:
    match = _CODE.search(text) or (_PAGE_CODE.search(text) if page and "<" in text else None)
    return int(match[1]) if match else None


def _by_status(status: int) -> str:
    return _STATUSES.get(status) or ("server_error" if status >= 500 else "other")


def _find(text: str, table: tuple[tuple[str, str], ...]) -> str | None:
    return next((found for word, found in table if word in text), None)
