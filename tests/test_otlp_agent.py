"""The whole program with OTLP sinks, as a process, against a fake proxy and receivers on real sockets."""

from pathlib import Path

from backends.litellm import FakeLiteLLM
from backends.otlp import GrpcReceiver, HttpReceiver
from backends.sinks import CANARY
from program import call, write_config

ENVIRON = {"KEY": "sk-CANARY-KEY", "TOKEN": CANARY}
SINKS = """
[sinks.http]
type = "otlp"
endpoint = "{http}"
token = {{ env = "TOKEN" }}

[sinks.grpc]
type = "otlp"
protocol = "grpc"
endpoint = "http://{grpc}"
token = {{ env = "TOKEN" }}
"""


async def test_both_protocols_deliver_the_same_from_an_agent_that_stays_itself(tmp_path: Path) -> None:
    """From configuration to receiver, twice: what tells the agent from others is made once and kept."""
    http, grpc = HttpReceiver(CANARY), GrpcReceiver(CANARY)
    seen = []
    try:
        async with FakeLiteLLM(key="sk-CANARY-KEY") as proxy:
            write_config(tmp_path, [proxy.url], 'api_key = { env = "KEY" }')
            with (tmp_path / "config.toml").open("a") as file:
                file.write(SINKS.format(http=http.address, grpc=grpc.address))
            for _ in range(2):
                finished = await call("poll", "--once", cwd=tmp_path, env=ENVIRON)
                assert finished.code == 0, finished.err
                assert CANARY not in finished.err
                seen.append((http.take(), grpc.take()))
    finally:
        http.close()
        grpc.close()
    assert http.rules == grpc.rules == []
    for by_http, by_grpc in seen:
        assert {fact.name for fact in by_http} >= {"litellm.health", "litellm.up", "litellm.probe.duration"}
        assert sorted(by_http, key=repr) == sorted(by_grpc, key=repr)
    agents = {str(fact.attributes["resource:service.instance.id"]) for by_http, _ in seen for fact in by_http}
    kept = (tmp_path / "state" / "instance").read_text().strip()
    assert {each for each in agents if each.endswith("/t0")} == {f"{kept}/t0"}
