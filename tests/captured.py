"""Recorded replies of real proxies (tests/captures/<version>/<configuration>), and documented ones, as `Reply`s.

The recordings hold parsed JSON, so the bytes are ours; statuses, types and contents are the proxies'. Some are trimmed
and say so. Every secret in them is made up.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forwarder.normalize import Endpoint, Reading, normalize
from forwarder.reply import Reply

CAPTURES = Path(__file__).parent / "captures"
NOW = 1_705_314_660_000_000_000  # ns: 2024-01-15T10:31:00Z, a minute after the documented last_check

ENDPOINTS: dict[str, Endpoint] = {
    "health-liveliness": "liveliness",
    "health-readiness": "readiness",
    "health-readiness-details": "readiness_details",
    "health": "health",
    "health-models": "models",
    "health-services": "services",
    "health-shared-status": "shared_status",
    "health-backlog": "backlog",
    "health-latest": "latest",
    "model-info": "model_info",
}


@dataclass(frozen=True)
class Capture:
    """`keyed` is False where the recording was made without a key."""

    path: str
    endpoint: Endpoint
    keyed: bool
    status: int
    content_type: str
    elapsed: float
    content: Any  # parsed JSON, or None beside text
    text: str | None

    def reply(self, *, content: Any = None, time: int = NOW) -> Reply:
        """The recorded reply, or the same one with other content."""
        content = self.content if content is None else content
        text = self.text if self.text is not None else json.dumps(content)
        return Reply(time, self.elapsed, self.status, content_type=self.content_type, body=text.encode())

    def reading(self) -> Reading:
        return normalize(self.endpoint, self.reply(), keyed=self.keyed)


def capture(path: str) -> Capture:
    """`path` is below tests/captures, without .json, such as `1.53.1/key/health.key`."""
    recorded = json.loads((CAPTURES / f"{path}.json").read_text())
    endpoint = ENDPOINTS[path.rpartition("/")[2].partition(".")[0]]
    return Capture(
        path=path,
        endpoint=endpoint,
        keyed=recorded["request"]["auth"] != "none",
        status=recorded["status"],
        content_type=recorded["content_type"],
        elapsed=recorded["elapsed_s"],
        content=recorded.get("body"),
        text=recorded.get("body_text"),
    )


def captures() -> Iterator[Capture]:
    for file in sorted(CAPTURES.glob("*/*/*.json")):
        yield capture(str(file.relative_to(CAPTURES).with_suffix("")))
