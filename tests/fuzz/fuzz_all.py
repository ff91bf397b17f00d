"""`make fuzz`: every target for SECONDS each, from the recorded replies as seeds. Fails when one finds something, and
says how to repeat it.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
TESTS: Final = HERE.parent
TARGETS: Final = ("normalisers", "codec", "configuration", "replies", "answers")
# atheris 3.0.0 puts the bytes of FuzzedDataProvider's integers at the end.
TAIL: Final = 8


def seeds(target: str, folder: Path) -> None:
    """Inputs to begin with, so that the time goes into what lies behind the first check."""
    found: list[bytes] = [b""]
    bodies = [_body(path) for path in sorted((TESTS / "captures").rglob("health*.json"))]
    match target:
        case "normalisers":
            found += [body + bytes([number] * TAIL) for number, body in enumerate(bodies)]
        case "replies" | "answers":
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            found += [head % len(body) + body for body in bodies if len(body) < 20_000]
            found += [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n"]
        case "configuration":
            found += [(TESTS.parent / "config.toml").read_bytes()]
        case "codec":
            from forwarder.events import Batch, Change, Metric, Resource, encode

            events = (Metric("a", "gauge", "1", 1, 1.0, {"b": "c", "d": 1}), Change("c", 2, "info", "t"))
            found += [encode(Batch(Resource({"r": "v"}), 3, events))]
    for number, data in enumerate(found):
        (folder / str(number)).write_bytes(data)


def _body(path: Path) -> bytes:
    recorded = json.loads(path.read_text())
    body = recorded.get("body", recorded) if isinstance(recorded, dict) else recorded
    return (body if isinstance(body, str) else json.dumps(body)).encode()


def main(seconds: str) -> int:
    failed = []
    for target in TARGETS:
        with tempfile.TemporaryDirectory() as corpus:
            seeds(target, Path(corpus))
            crashes = TESTS.parent / "build" / "fuzz" / target
            crashes.mkdir(parents=True, exist_ok=True)
            options = [
                f"-max_total_time={seconds}",
                "-max_len=65536",
                "-rss_limit_mb=2048",
                f"-artifact_prefix={crashes}/",
            ]
            command = [sys.executable, str(HERE / "targets.py"), target, *options, corpus]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        runs = re.search(r"Done (\d+) runs", result.stderr)
        sys.stdout.write(f"{target}: {runs.group(1) + ' runs, nothing found' if runs else 'FOUND SOMETHING'}\n")
        sys.stdout.flush()
        if not runs:
            sys.stdout.write(result.stderr[-4000:] + f"\nrepeat it: {' '.join(command[:3])} {crashes}/crash-…\n")
            failed.append(target)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "60"))
