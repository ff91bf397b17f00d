"""The helper process: reads one request from standard input, a socket; delivers it by Apprise; answers; ends.

Request: {"url", "title", "body", "type", "timeout"}. Answer: {"why": "taken" | "failed" | "url" | "missing",
"status"}, where the status is the HTTP status that Apprise wrote into its log, or null.
"""

import json
import logging
import re
import socket
from typing import Any, Final

# All that says what failed: notify() itself says only that something did (2.3.0).
_STATUS: Final = re.compile(r"\berror=([1-5][0-9][0-9])\b")


class _Statuses(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if found := _STATUS.search(record.getMessage()):
            self.last = int(found[1])


def deliver(request: dict[str, Any]) -> dict[str, object]:
    try:
        import apprise
    except ImportError:
        return {"why": "missing", "status": None}
    heard = _Statuses()
    log = logging.getLogger("apprise")
    log.propagate = False
    log.addHandler(heard)
    # Redirects would be followed with the credentials (2.3.0: by default).
    asset = apprise.AppriseAsset(app_id="litellm-forwarder", app_desc="LiteLLM monitoring", http_redirects=False)
    # By the plugin, because Apprise.notify() starts threads and obeys retry=… in the URL.
    plugin = apprise.Apprise.instantiate(request["url"], asset=asset)
    if plugin is None:
        return {"why": "url", "status": None}
    plugin.redirects = False
    plugin.socket_connect_timeout = plugin.socket_read_timeout = request["timeout"]
    taken = plugin.notify(
        title=request["title"],
        body=request["body"],
        notify_type=request["type"],
        body_format=apprise.NotifyFormat.TEXT,
        overflow=apprise.OverflowMode.TRUNCATE,  # by default what is too long is sent, and refused for ever
    )
    return {"why": "taken" if taken else "failed", "status": heard.last}


def main() -> None:
    with socket.socket(fileno=0) as channel:
        request = b""
        while data := channel.recv(65536):
            request += data
        answer = deliver(json.loads(request))
        channel.sendall(json.dumps(answer).encode())


if __name__ == "__main__":
    main()
