"""`make fuzz`: every target for SECONDS each, from the recorded replies as seeds. Fails when one finds something, and
says how to repeat it.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
TESTS: Final = HERE.parent
sys.path.insert(0, str(TESTS))  # pages are made as in tests
TARGETS: Final = ("normalisers", "codec", "configuration", "replies", "answers", "metrics", "pages", "remembered")
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
        case "metrics" | "pages":
            found += _pages(b"\f" if target == "metrics" else b"\n")
        case "remembered":
            found += _memories()
    for number, data in enumerate(found):
        (folder / str(number)).write_bytes(data)


def _pages(cut: bytes) -> list[bytes]:
    """Pages twice, the second time with larger numbers; and small ones with what the recorded ones have not."""
    from exposition_pages import HISTOGRAM, VERSIONS, histogram, page, recorded

    made = [b"\n".join(recorded(version)[:20_000].split(b"\n")[:-1]) for version in VERSIONS]
    made += [
        page({'{user="a"}': 1, '{user="b",model="c"}': 2}, began=1.79e9, created={'{user="a"}': 1.79e9}),
        (HISTOGRAM + histogram({"0.1": 1, "1.0": 3, "+Inf": 4}, 5.5, 'model="m"')).encode(),
        b'# TYPE litellm_s summary\nlitellm_s_sum 1\nlitellm_s_count 2\nlitellm_g 1 123 # {a="b"} 1\n',
        b'# HELP x y\n# TYPE a gauge\na{b="c\\n"} 1e308\na{b="\xff"} NaN\nbad line\n# EOF\n',
    ]
    return [each + cut + each.replace(b" 1", b" 2") for each in made]


def _memories() -> list[bytes]:
    """What the agent remembers, each behind the letter that says what it is; without the byte of the version."""
    from exposition_pages import VERSIONS, Reader, recorded

    from forwarder import cost
    from forwarder.normalize import changes, deployments
    from forwarder.sinks.notify import memory
    from forwarder.status import history

    reader = Reader(max_series=50)
    reader.read(recorded(VERSIONS[1]))
    outage = memory.Outage("litellm.proxy.down", "eu", "error", 1, 2, {"code": 503})
    slices = {5: history.Slice(1, 2, 3)}
    deployment = {"d": (True, 7)}
    return [
        b"p" + reader.state[1:],
        b"m" + memory.encode(memory.Memory({"k": outage}, (), {"k": (1, 2)}, (3,)))[1:],
        b"h" + history._codec.encode(history.Stored(slices, "healthy", 6, deployment, ()))[1:],
        b"$" + cost.encode(cost.Account(opened=1))[1:],
        b"n" + deployments.encode_names({"a": "b"})[1:],
        b"c" + changes.encode(changes.ChangeState())[1:],
    ]


def _body(path: Path) -> bytes:
    recorded = json.loads(path.read_text())
    body = recorded.get("body", recorded) if isinstance(recorded, dict) else recorded
    return (body if isinstance(body, str) else json.dumps(body)).encode()


def main(seconds: str) -> int:
    failed = []
    for target in TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            (scratch := Path(folder, "scratch")).mkdir()
            (corpus := Path(folder, "seeds")).mkdir()
            seeds(target, corpus)
            crashes = TESTS.parent / "build" / "fuzz" / target
            crashes.mkdir(parents=True, exist_ok=True)
            options = [
                f"-max_total_time={seconds}",
                "-max_len=65536",
                "-rss_limit_mb=2048",
                f"-artifact_prefix={crashes}/",
            ]
            command = [sys.executable, str(HERE / "targets.py"), target, *options, str(corpus)]
            environ = {**os.environ, "TMPDIR": str(scratch)}  # what libFuzzer's exit leaves behind goes with it
            result = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
        runs = re.search(r"Done (\d+) runs", result.stderr)
        sys.stdout.write(f"{target}: {runs.group(1) + ' runs, nothing found' if runs else 'FOUND SOMETHING'}\n")
        sys.stdout.flush()
        if not runs:
            sys.stdout.write(result.stderr[-4000:] + f"\nrepeat it: {' '.join(command[:3])} {crashes}/crash-…\n")
            failed.append(target)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "60"))
