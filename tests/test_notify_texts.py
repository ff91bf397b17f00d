"""The words: right for one and for many, the same in text and HTML, and nothing in them that a name could forge."""

from datetime import UTC
from html.parser import HTMLParser
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from notify_support import START, batch, database, down, lost, mixed, release, unhealthy, unready

from forwarder import catalog
from forwarder.events import Batch, Change
from forwarder.sinks.notify import folding, planning
from forwarder.sinks.notify.memory import Memory, clean
from forwarder.sinks.notify.rules import SECOND, Rules
from forwarder.sinks.notify.texts import Message, compose, length

RULES = Rules("info", group=0)


def said(*batches: Batch, later: int = 0, link: str = "") -> Message:
    now = START + later * SECOND
    plan = planning.plan(folding.fold(Memory(), batches, RULES, now), RULES, now)
    assert plan is not None
    return compose(plan, sink="mail", zone=ZoneInfo("Europe/Berlin"), link=link)


class Shown(HTMLParser):
    """The words that a reader of HTML sees, and its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name == "href"]


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ([down()], "eu: proxy down"),
        ([unready()], "eu: proxy not ready"),
        ([database()], "eu: database down"),
        ([mixed()], "eu: metrics page mixed from several processes"),
        ([unhealthy(1)], "eu: gpt-1 unhealthy"),
        ([unhealthy(1), unhealthy(2)], "eu: deployments unhealthy"),
        ([down(), database()], "eu: proxy down, database down"),
        ([down(), database(), unready(), unhealthy(1)], "eu: several things down"),
        ([release()], "eu: LiteLLM 1.2 instead of 1.1"),
        ([release(), lost()], "eu: LiteLLM 1.2 instead of 1.1, and more"),
        ([release(), down()], "eu: proxy down"),
    ],
)
def test_subjects_are_few_and_stable(changes: list[Change], subject: str) -> None:
    """No numbers and no times, so that rules of a mail program and threads can go by them."""
    assert said(batch(*changes)).subject == f"[LiteLLM] {subject}"


def test_a_subject_names_up_to_three_targets() -> None:
    assert said(*(batch(down(), target=f"t{n}") for n in range(3))).subject == "[LiteLLM] t0, t1, t2: proxy down"
    assert said(*(batch(down(), target=f"t{n}") for n in range(4))).subject == "[LiteLLM] several targets: proxy down"


def test_one_and_many_are_said_right() -> None:
    one = said(batch(unhealthy(1)), later=61).text
    assert "eu: deployment gpt-1 (openai/gpt-1) [d001-0123456789] is unhealthy" in one
    assert "(1 minute 1 second ago)" in one
    assert "What depends on it: requests for gpt-1, unless" in one
    many = said(batch(unhealthy(1), unhealthy(2)), later=120).text
    assert "eu: 2 deployments are unhealthy" in many
    assert "(2 minutes ago)" in many
    assert "What depends on them: requests for gpt-1, gpt-2, unless" in many


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 seconds"),
        (1, "1 second"),
        (59.6, "1 minute"),
        (61, "1 minute 1 second"),
        (600, "10 minutes"),
        (754, "12 minutes"),
        (3600, "1 hour"),
        (3725, "1 hour 2 minutes"),
        (90_000, "1 day 1 hour"),
        (86_400 * 2 + 60, "2 days 1 minute"),
        (-5, "0 seconds"),
    ],
)
def test_lengths_of_time(seconds: float, words: str) -> None:
    assert length(int(seconds * SECOND)) == words


def test_the_text_and_the_html_say_the_same() -> None:
    """Word by word, with the link in both."""
    message = said(batch(down(), unhealthy(1), database(), lost()), link="https://status.example.com/?a=1&b=2")
    shown = Shown(message.html)
    assert shown.links == ["https://status.example.com/?a=1&b=2"]
    text = message.text.replace(": https://status.example.com/?a=1&b=2", "")
    assert [word.lower() for word in shown.words] == [word.lower() for word in text.split()]


TAGS = {"html", "head", "meta", "body", "h3", "p", "strong", "br", "em", "a"}


@settings(max_examples=100, deadline=None)
@example("<b onclick=x>&amp;<script>", "model")
@example("<b onclick=x>&amp;<script>", "error.type")
@example("<b onclick=x>&amp;<script>", "title")
@example("<b onclick=x>&amp;<script>", "target")
@given(
    st.text(max_size=300), st.sampled_from(["model", "model.name", "deployment.id", "error.type", "target", "title"])
)
def test_no_name_forges_anything(text: str, where: str) -> None:
    """Wherever it stands: no line, no tag, no header, and nothing that cannot be encoded."""
    attributes = {"model": "m", "model.name": "n", "deployment.id": "d", "error.type": "timeout", where: text}
    attributes = {key: value for key, value in attributes.items() if key not in ("target", "title")}
    bad = Change(catalog.DEPLOYMENT_UNHEALTHY.name, START, "warning", "", "", {**attributes})
    news = Change("x", START, "warning", text if where == "title" else "x", text)
    message = said(batch(bad, news, target=text if where == "target" else "eu"))
    plain = said(
        batch(
            Change(bad.name, START, "warning", "", "", {"model": "m", "deployment.id": "d", "error.type": "timeout"})
        )
    )
    assert set(Shown(message.html).tags) <= TAGS
    assert message.subject.isprintable()
    assert len(message.subject) < 600
    assert all(line.isprintable() for line in message.text.split("\n"))
    assert message.text.count("\n") <= plain.text.count("\n") + 8
    message.text.encode()
    message.html.encode()


def test_clean_is_one_short_line() -> None:
    assert clean("a\nb\t\x00c\u2028d\ud800", 100) == "a b c d"
    assert clean("x" * 200, 10) == "x" * 9 + "…"


def test_every_change_of_the_catalog_has_words() -> None:
    """Also one that is told by itself, such as an end whose beginning nobody knew."""
    for kind in catalog.CHANGES:
        message = said(batch(kind.at(START, f"eu: {kind.name}", kind.description)))
        assert message.text
        assert "not well" not in message.text


def test_the_same_content_has_the_same_id_and_other_content_another() -> None:
    """However late it is told."""
    assert said(batch(down())).id == said(batch(down()), later=500).id
    ids = {said(batch(change)).id for change in (down(), down(START + 1), unhealthy(1), unhealthy(2), release())}
    assert len(ids) == 5


def test_times_that_cannot_be_are_no_trouble() -> None:
    """Whatever stands in an event."""
    for time in (0, 2**63 - 1):
        message = compose(
            planning.Plan(
                START, {}, {}, {}, {}, {}, folding.fold(Memory(), [batch(lost(time))], RULES, START).news, 0, {}
            ),
            sink="mail",
            zone=UTC,
        )
        assert "When: " in message.text
