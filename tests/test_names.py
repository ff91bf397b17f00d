"""What clients call a deployment, joined from /model/info."""

from captured import captures

from forwarder.normalize.deployments import decode_names, encode_names, named, names
from forwarder.normalize.reading import Deployment

BASE = "http://user:SECRET@host:1/v1?sig=SECRET"


def info(name: str, model: str = "openai/gpt-4o", base: str = BASE, id_: str | None = None) -> dict[str, object]:
    return {"model_name": name, "litellm_params": {"model": model, "api_base": base}, "model_info": {"id": id_}}


def test_every_recorded_release_can_be_joined() -> None:
    """1.106 by the proxy's id; 1.53 and 1.80, whose /health has none, by our digest where it is not ambiguous."""
    by_path = {captured.path: captured.reading() for captured in captures()}
    for release in ("1.53.1", "1.80.17", "1.106.2"):
        listed = by_path[f"{release}/key/health.key"].deployments or ()
        found = named(listed, by_path[f"{release}/key/model-info.key"].names or {})
        assert any(deployment.name == "gpt-4o" for deployment in found), release
        assert not [d for d in found if d.name and d.model.startswith("anthropic/") and d.name != "claude-ok"]


def test_two_names_for_one_model_and_base_are_no_name() -> None:
    """Without ids nobody can tell which is which; a wrong name is worse than none."""
    from_info = names([info("a"), info("b"), info("c", base="http://other")])
    digests = {key for key in from_info if key.endswith("-")}
    assert [from_info[key] for key in digests] == ["c"]


def test_an_id_is_not_taken_for_a_digest() -> None:
    """`stable-1` is not the first of `stable`."""
    from_info = names([info("a", id_="stable")])
    (found,) = named([Deployment(id="stable-1", model="m", provider=None, up=True)], from_info)
    assert found.name is None


def test_hostile_entries_are_left_out() -> None:
    """Whatever stands where an entry belongs."""
    assert (
        names([None, 1, [], {}, {"model_name": 7}, {"model_name": "a", "litellm_params": 3, "model_info": "x"}]) != {}
    )
    assert names([{"model_name": ""}]) == {}


def test_names_survive_the_spool() -> None:
    """Encoded and decoded."""
    from_info = names([info("a", id_="i")])
    assert decode_names(encode_names(from_info)) == from_info


def test_no_secret_is_in_a_name() -> None:
    """Nor in what they are found by."""
    assert "SECRET" not in repr(names([info("a")]))
