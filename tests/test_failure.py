"""What unhealthy entries say, release by release, and the class each of them is."""

from typing import Any

import pytest

from forwarder.normalize.failure import failure

OPENAI = "litellm.InternalServerError: InternalServerError: OpenAIException - "


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        # 1.53.1
        ("Connection error.", ("connection", None)),
        ("Error code: 401 - {'error': {'message': 'Incorrect API key provided'}}", ("authentication", 401)),
        ("Error code: 429 - {'error': {}}", ("rate_limit", 429)),
        ("Error code: 500 - {'error': {'message': 'connection error, timed out'}}", ("server_error", 500)),
        ("Error code: 403 - {}", ("permission_denied", 403)),
        ("error:Error code: 404 - {}. Missing `mode`. Set the `mode` for the model", ("not_found", 404)),
        ("Request timed out.", ("timeout", None)),
        ("<html><body><h1>502 Bad Gateway</h1></body></html>", ("bad_gateway", 502)),
        ("\n<html>\r\n<head><title>504 Gateway Time-out</title></head>", ("other", None)),  # the first line alone
        # 1.77.7 and later
        (OPENAI + "Connection error.", ("connection", None)),
        (OPENAI + "The server had an error, see the connection error above", ("server_error", None)),
        (
            OPENAI + "Empty or invalid response from LLM endpoint. Received: '<h1>404 Not F'",
            ("invalid_response", None),
        ),
        (OPENAI + "'str' object has no attribute 'model_dump'", ("invalid_response", None)),
        (OPENAI + "Missing credentials. Please pass an `api_key`", ("missing_credentials", None)),
        ("litellm.APIError: APIError: OpenAIException - <html><h1>502 Bad Gateway</h1></html>", ("bad_gateway", 502)),
        ("litellm.BadGatewayError: BadGatewayError: OpenAIException - Error code: 502", ("bad_gateway", 502)),
        ("litellm.Timeout: Timeout Error: OpenAIException - Request timed out", ("timeout", None)),
        ("litellm.APIConnectionError: 'str' object has no attribute 'model_dump'", ("invalid_response", None)),
        ("litellm.APIConnectionError: APIConnectionError: OllamaException - refused", ("connection", None)),
        (
            "litellm.AuthenticationError: Missing Anthropic API Key - A call is being made to",
            ("missing_credentials", None),
        ),
        ("litellm.BadRequestError: litellm.ContextWindowExceededError: too long", ("context_window", None)),
        ("litellm.ContextWindowExceededError: too long", ("context_window", None)),
        ("litellm.ContentPolicyViolationError: no", ("content_policy", None)),
        ("litellm.BudgetExceededError: Budget has been exceeded! Current cost: 2", ("budget_exceeded", None)),
        ("Budget has been exceeded! Current cost: 2", ("budget_exceeded", None)),
        ("litellm.ServiceUnavailableError: x", ("service_unavailable", None)),
        ("litellm.PermissionDeniedError: x", ("permission_denied", None)),
        ("litellm.SomethingNew: x", ("other", None)),
        # documented
        ("Invalid API key", ("authentication", None)),
        ("Rate limit exceeded", ("rate_limit", None)),
        ("Connection timeout", ("timeout", None)),
        ("Model not found", ("not_found", None)),
        ("Service unavailable", ("service_unavailable", None)),
        ("", ("other", None)),
        (None, ("other", None)),
        ({"code": 401}, ("other", None)),
    ],
)
def test_class_from_the_text(error: Any, expected: tuple[str, int | None]) -> None:
    """The first line of the text, as each release and the documentation write it."""
    assert failure({"model": "m", "error": error}) == expected


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (OPENAI + "Connection error.", 500, ("connection", 500)),
        ("Timeout exceeded", 408, ("timeout", 408)),
        (None, 401, ("authentication", 401)),
        (None, "429", ("rate_limit", 429)),
        (None, 418, ("other", 418)),
        (None, 599, ("server_error", 599)),
        (None, 99, ("other", None)),
        (None, True, ("other", None)),
        (None, "\N{FULLWIDTH DIGIT FOUR}29", ("other", None)),
        ("litellm.RateLimitError: x", 500, ("rate_limit", 500)),
        ("something odd", 503, ("service_unavailable", 503)),
    ],
)
def test_class_with_a_status(error: str | None, status: object, expected: tuple[str, int | None]) -> None:
    """exception_status (1.106 and later) is passed on when it is a status, and decides where the text does not."""
    assert failure({"model": "m", "error": error, "exception_status": status}) == expected


def test_no_error_at_all() -> None:
    """1.77.7 and 1.80.17 leave `error` out of a timeout; replies without details leave it out of everything."""
    assert failure({"model": "m", "api_base": "x", "use_in_pass_through": False}) == ("timeout", None)
    assert failure({"model": "m"}) == ("other", None)
    assert failure({"model": "m", "api_base": "x", "status": "unhealthy", "last_check": "x"}) == ("other", None)


def test_the_traceback_is_not_read() -> None:
    """What a traceback or an upstream's later lines mention decides nothing."""
    assert failure({"error": "odd\nlitellm.RateLimitError: Error code: 429 timeout"}) == ("other", None)
    assert failure({"error": "x" * 2_000 + " timeout"}) == ("other", None)
