import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from schema_check import complaints

from forwarder import catalog, config
from forwarder.errors import Exit

ROOT = Path(__file__).parent.parent


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = _generator()


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def models(model: type[BaseModel] = config.Config) -> dict[str, type[BaseModel]]:
    """Every model of the configuration, by name."""
    found = {model.__name__: model}
    pending = [field.annotation for field in model.model_fields.values()]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found |= models(annotation)
        pending += get_args(annotation)
    return found


@pytest.mark.parametrize("name", ["configuration.md", "config.schema.json", "metrics.md"])
def test_the_generated_pages_are_current(name: str) -> None:
    """What the documentation says is what the code does; `make docs` brings it up to date."""
    assert page(name) == generate.pages()[name], "run `make docs`"


@pytest.mark.parametrize(
    ("model", "key"), [(model, key) for model in models().values() for key in model.model_fields], ids=str
)
def test_every_key_of_the_configuration_is_documented(model: type[BaseModel], key: str) -> None:
    """A key without a description, or one that is left out of the page, does not get in."""
    description = model.model_fields[key].description or ""
    assert len(description) > 10
    if model is config.Config:
        assert re.search(rf"^## `\[+{key}[\].]", page("configuration.md"), re.MULTILINE)
    elif model.model_fields[key].annotation in models().values():
        assert f"## `[targets.{key}]`" in page("configuration.md")
    else:
        assert re.search(rf"^\| `{key}` \| .+ \| {re.escape(description)} \|$", page("configuration.md"), re.MULTILINE)


def test_every_metric_change_and_attribute_is_listed_and_documented() -> None:
    """A definition that was left out of the catalog's lists, or of the page, fails here."""
    defined = {value for value in vars(catalog).values() if isinstance(value, catalog.MetricDef | catalog.ChangeDef)}
    assert defined == {*catalog.METRICS, *catalog.CHANGES}
    for definition in defined:
        assert re.search(
            rf"^\| `{definition.name}` \| .*{re.escape(definition.description)} \|$", page("metrics.md"), re.MULTILINE
        )
        assert set(definition.attributes) <= catalog.ATTRIBUTES.keys()
    assert {each for each in vars(catalog).values() if isinstance(each, catalog.ServiceCheckDef)} == {
        *catalog.SERVICE_CHECKS
    }
    for check in catalog.SERVICE_CHECKS:
        assert f"| `{check.name}` | `{check.metric.name}` | {check.description} |" in page("metrics.md")
    for words in (catalog.ATTRIBUTES, catalog.POLL_OUTCOMES, catalog.PROBE_ERRORS, catalog.DEPLOYMENT_ERRORS):
        for word, meaning in words.items():
            assert f"| `{word}` | {meaning} |" in page("metrics.md")


@pytest.mark.parametrize("code", Exit)
def test_every_exit_code_is_documented(code: Exit) -> None:
    """Exit codes are API."""
    assert re.search(rf"^\| {code.value} \| {code.name} \| .{{10,}} \|$", page("configuration.md"), re.MULTILINE)


def test_something_without_a_description_is_refused() -> None:
    """The generator does not write an empty cell where a meaning belongs."""
    with pytest.raises(ValueError, match="has no description"):
        generate.row("`litellm.new`", "gauge", " ")


def test_check_names_the_stale_pages_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CI says which page to generate anew, and how."""
    assert generate.main([], tmp_path) == 0
    assert generate.main(["--check"], tmp_path) == 0
    (tmp_path / "metrics.md").write_text("old")
    (tmp_path / "configuration.md").unlink()
    assert generate.main(["--check"], tmp_path) == 1
    message = capsys.readouterr().err
    assert "docs/metrics.md is stale: run `make docs`" in message
    assert "docs/configuration.md is stale" in message
    assert "config.schema.json" not in message
    assert (tmp_path / "metrics.md").read_text() == "old"
    assert generate.main(["--chek"], tmp_path) == Exit.USAGE


def test_the_shipped_configuration_loads_without_any_variable() -> None:
    """`make run` works on a machine with nothing set up."""
    loaded = config.load(ROOT / "config.toml", {})
    assert [target.url for target in loaded.targets] == ["http://localhost:4000"]
    assert loaded.targets[0].api_key is None
    assert [sink.type for sink in loaded.sinks.values()] == ["console"]


def test_the_shipped_configuration_uses_the_key_that_is_set() -> None:
    """Setting LITELLM_API_KEY is all it takes."""
    loaded = config.load(ROOT / "config.toml", {"LITELLM_API_KEY": "sk-1"})
    assert loaded.targets[0].key_headers() == {"Authorization": "Bearer sk-1"}


def test_the_shipped_configuration_names_its_schema_and_follows_it() -> None:
    """Editors complete and check the file that people start from."""
    text = (ROOT / "config.toml").read_text(encoding="utf-8")
    assert text.startswith("#:schema ./docs/config.schema.json\n")
    assert problems(tomllib.loads(text)) == []


def test_the_shipped_configuration_stays_right_with_its_comments_taken_away(tmp_path: Path) -> None:
    """What is offered in comments works as it stands."""
    text = (ROOT / "config.toml").read_text(encoding="utf-8")
    path = tmp_path / "config.toml"
    path.write_text(re.sub(r'^# (?=\[|[\w".]+ = )', "", text, flags=re.MULTILINE), encoding="utf-8")
    secrets = dict.fromkeys(re.findall(r'\{ env = "(\w+)" \}', text), "a" * 40)
    loaded = config.load(path, secrets | {"NOTIFY_MAIL_URL": "mailto://localhost/?from=agent@example.com"})
    assert str(loaded.agent.state_dir) == "/var/lib/litellm-forwarder"
    assert loaded.resource == {"deployment.environment.name": "prod"}
    assert problems(tomllib.loads(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("number", [0, 1])
def test_the_examples_of_the_page_work(tmp_path: Path, number: int) -> None:
    """An example that is copied from the documentation loads."""
    examples = re.findall(r"^```toml\n(.*?)^```", page("configuration.md"), re.MULTILINE | re.DOTALL)
    assert len(examples) == 2
    (tmp_path / "config.toml").write_text(examples[number], encoding="utf-8")
    (tmp_path / "litellm-us.key").write_text("sk-2\n")
    assert config.load(tmp_path / "config.toml", {"LITELLM_API_KEY": "sk-1"}).targets
    assert problems(tomllib.loads(examples[number])) == []


@pytest.mark.parametrize(
    "change",
    [
        {"agentx": {}},
        {"targets": []},
        {"sinks": {"console": {"type": "syslog"}}},
        {"sinks": {"a name": {"type": "console"}}},
        {"targets": [{"name": "a", "url": "http://h", "interval": 15}]},
        {"targets": [{"name": "a", "url": "http://h", "interval": "15 sec"}]},
        {"targets": [{"name": "a", "url": "http://h", "api_key": "sk-1"}]},
        {"targets": [{"name": "a", "url": "http://h", "api_key": {"env": "A", "file": "b"}}]},
        {"targets": [{"name": "a", "url": "http://u:p@h"}]},
        {"targets": [{"name": "a", "url": "http://h", "health": {"max_billed_calls_per_day": "lots"}}]},
        {"spool": {"max_bytes": "1 GB"}},
        {"resource": {"a b": "c"}},
    ],
    ids=str,
)
def test_the_schema_finds_mistakes_in_the_editor(change: dict[str, Any]) -> None:
    """The schema is not so loose that it lets everything through."""
    whole = {"targets": [{"name": "a", "url": "http://h"}], "sinks": {"console": {"type": "console"}}}
    assert problems(whole) == []
    assert problems(whole | change) != []


def problems(value: dict[str, Any]) -> list[str]:
    schema = config.json_schema()
    return list(complaints(value, schema, schema))
