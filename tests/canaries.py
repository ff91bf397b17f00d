"""Marked secrets for every place that could hold one, and the search for them in all that comes out.

A canary is told by the word in it; so whoever looks needs no list of them, and finds also what is in another case or
encoding. The fakes of `backends` leak by themselves, as real proxies do; their secrets say LEAKTEST.
"""

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from backends.http_server import Answer, Request, Response, raw, reset
from backends.litellm import FakeLiteLLM
from backends.otlp import protobuf
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

WORD: Final = "CANARY"  # not a word of ours
# The names in a reply that go on, cleaned: what else could tell deployments apart.
NAMES: Final = {"model", "model_id", "model_name", "id", "litellm_version"}


def canary(where: str) -> str:
    """A secret as real ones look, that says where it was put."""
    return f"sk-{WORD}-{where}-Zx81"


def _encodings(word: bytes) -> list[bytes]:
    """The word in base64, at each of its three places and without what depends on its neighbours; in UTF-16."""
    coded = [
        base64.b64encode(bytes(before) + word + bytes(3))[-(-before * 8 // 6) : (before + len(word)) * 8 // 6]
        for before in range(3)
    ]
    return [*coded, word.decode().encode("utf-16-le")]


_PLAIN: Final = re.compile(rb"(?i)canary|leaktest|" + WORD.encode().hex().encode())
_CODED: Final = re.compile(b"|".join(re.escape(each) for each in _encodings(WORD.encode())))


def sightings(evidence: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
    """Where a canary is, and what stands around it."""
    return [
        (where, data[max(0, match.start() - 80) : match.end() + 40])
        for where, data in evidence.items()
        for pattern in (_PLAIN, _CODED)
        if (match := pattern.search(data))
    ]


def planted(value: Any, *, key: str = "") -> Any:
    """The same JSON with a canary in every string, beside every name, and under keys of its own."""
    if isinstance(value, dict):
        within = {name: planted(item, key=name) for name, item in value.items()}
        secret = canary("reply")
        return within | {f"extra_{secret}": secret, "api_key": secret, "organization": [secret, {"x": secret}]}
    if isinstance(value, list):
        return [planted(item, key=key) for item in value]
    if isinstance(value, str) and key not in NAMES:
        return f"{value} {canary('reply')}"
    return value


# --- a proxy -------------------------------------------------------------------------------------------------------

HEADERS: Final = {
    name: canary("header")
    for name in ("server", "set-cookie", "www-authenticate", "x-litellm-key", "retry-after", "location", "etag")
}
# Labels that are dropped by default, and what is cut out of those that are not; text that is no sample.
PAGE: Final = f"""# HELP litellm_requests_metric Requests {canary("help")}
# TYPE litellm_requests_metric counter
litellm_requests_metric_total{{model="m",hashed_api_key="{canary("label")}",user="{canary("label")}",\
end_user="{canary("label")}",api_base="http://u:{canary("label")}@h/v1",team="{canary("kept")}",\
route="https://u:{canary("userinfo")}@h.test/v1?key={canary("query")}",how="Bearer {canary("bearer")}"}} 7 # {{\
trace_id="{canary("exemplar")}"}} 1
# TYPE {canary("type")} gauge
other_family{{key="{canary("unwanted")}"}} 1
litellm_broken{{key="{canary("broken")}" 1
{canary("no-sample")}
# EOF {canary("comment")}
"""


class LeakyProxy(FakeLiteLLM):
    """Every answer is full of canaries; every second one to the same question is an error of another kind."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._times: dict[str, int] = {}
        self.told: set[str] = set()  # which answers it has given

    async def _answer(self, request: Request) -> Answer:
        path = request.path.partition("?")[0]
        times = self._times[path] = self._times.get(path, -1) + 1
        if times % 2 == 1:
            number = times // 2 % len(ERRORS)
            self.told.add(f"error {number}")
            return ERRORS[number]
        answer = await super()._answer(request)
        if not isinstance(answer, Response):
            return answer
        self.told.add(f"{path} {answer.status}")
        if path == "/metrics/" and answer.status == 200:
            return Response(200, PAGE.encode(), {"content-type": "text/plain", **HEADERS})
        body = planted(json.loads(answer.body)) if answer.body[:1] in b'{["' else answer.body
        return Response(answer.status, json.dumps(body).encode(), {"content-type": "application/json", **HEADERS})


def _error(status: int, body: bytes | None = None, content_type: str = "application/json") -> Answer:
    """With a canary also where a reason phrase stands."""
    secret = canary(f"http-{status}")
    told: dict[str, Any] = {"error": {"message": secret, "code": secret, "type": secret}, "message": secret}
    data = json.dumps(told | {"errors": [secret], "detail": [{"loc": [secret]}]}).encode() if body is None else body
    head = [f"HTTP/1.1 {status} {secret}", f"content-type: {content_type}", f"content-length: {len(data)}"]
    head += [f"{name}: {value}" for name, value in HEADERS.items() if name != "location"]
    head += [f"location: http://u:{secret}@127.0.0.1:9/{secret}?key={secret}"]
    return raw("\r\n".join([*head, "connection: close", "", ""]).encode() + data)


_PAGE: Final = f"<html><title>{canary('page')}</title>Log in: {canary('page')}</html>".encode()
ERRORS: Final[tuple[Answer, ...]] = (
    _error(500),
    _error(302),
    _error(200, _PAGE, "text/html"),
    _error(200, f'{{"status": "{canary("cut")}'.encode()),
    reset(f"HTTP/1.1 200 OK\r\nx-key: {canary('reset')}\r\ncontent-length: 900\r\n\r\n{canary('reset')}".encode()),
    raw(f"{canary('no-http')}\r\n\r\n".encode()),
    _error(200, f'"{canary("text")}"'.encode(), canary("type")),
    _error(429),
    _error(401),  # the last: who is refused asks seldom
)

# --- backends -------------------------------------------------------------------------------------------------------


def _partial() -> Answer:
    message = ExportMetricsServiceResponse()
    message.partial_success.rejected_data_points = 1
    message.partial_success.error_message = f"err-mimir-{canary('partial')} {canary('partial')}"
    return protobuf(message)


# By the first part of the path: what a backend there says to every request.
BACKENDS: Final[dict[str, Answer]] = {
    **{f"s{status}": _error(status) for status in (302, 400, 401, 403, 404, 413, 422, 429, 500, 503)},
    "page": _error(200, _PAGE, "text/html"),
    "partial": _partial(),
    "torn": ERRORS[4],
    "strange": ERRORS[5],
    "typed": ERRORS[6],
}


def backend(request: Request) -> Answer:
    return BACKENDS[request.path.split("/")[1]]
