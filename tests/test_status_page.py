"""The page as text: what it says, that nothing in it can do harm, and the bar of the last 24 hours."""

import copy
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
import status_views as views
from status_views import NOW

from forwarder.status.page import HEIGHT, LEAST, WIDTH, Page, pieces
from forwarder.status.view import Change, Endpoint, View, ago

HOSTILE = """"><script>alert(1)</script><img src=x onerror=alert(1)>' {{7*191}} {% x %} \u202e&amp; </title></style>"""


@pytest.fixture(scope="module")
def page() -> Page:
    return Page()


class Outline(HTMLParser):
    """Tags with their attributes, and the text outside of style, script and titles of bars."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"style", "script", "title"} & set(self.open):
            self.text += f" {data.strip()} "

    @property
    def words(self) -> str:
        return re.sub(r" ([,;:])", r"\1", " ".join(self.text.split()))


def test_it_tells_what_is_the_matter_worst_first(page: Page) -> None:
    """In the title, the heading and the order of the proxies."""
    html = page.whole(views.troubled())
    shown = Outline(html)
    assert "<title>Proxy us is unhealthy · litellm-forwarder</title>" in html
    assert "Proxy us is unhealthy Proxy ap is degraded Proxy new is unknown Sink newrelic is blocked" in shown.words
    assert [a["id"] for tag, a in shown.tags if tag == "details" and str(a.get("id")).startswith("target-")] == [
        "target-us",
        "target-ap",
        "target-new",
        "target-eu",
    ]
    for said in (
        "nothing listens there, for 4 min",
        "Cannot read liveliness, readiness, health refused: nothing listens there, 3 s ago",
        "is billed, 6 calls a time or more; next in 3 min",
        "1,044 calls of 5,000, 3,956 left",
        "403: the license key is not accepted; 14 attempts failed, for 41 min",
        "14,100 events, the oldest for 41 min",
        "100 events lost for sink newrelic",
    ):
        assert said in shown.words


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        (
            Endpoint("metrics", "failed", "auth", "it wants a key", NOW, None),
            "Cannot read metrics auth: it wants a key",
        ),
        (Endpoint("metrics", "absent", None, "there is none", NOW, None), "Metrics page there is none"),
        (Endpoint("metrics", "read", None, "5 lines are dropped", NOW, None), "Metrics page 5 lines are dropped"),
    ],
)
def test_what_is_wrong_with_a_metrics_page_is_shown(page: Page, endpoint: Endpoint, said: str) -> None:
    """Also where it is no failure. A page that goes on whole is not mentioned."""
    assert said in Outline(page.main(views.view([views.target(endpoints=(endpoint,))]))).words
    well = Endpoint("metrics", "read", None, "", NOW, None)
    assert "Metrics page" not in Outline(page.main(views.view([views.target(endpoints=(well,))]))).words


def test_a_sink_without_acknowledgement_has_handed_over(page: Page) -> None:
    """The word delivered is for those who were told so."""
    said = Outline(page.main(views.view(sinks=[views.sink("dd", acknowledged=False)]))).words
    assert "handed over 1,204,330" in said
    assert "delivered" not in said
    assert "delivered 1,204,330" in Outline(page.main(views.view())).words


def test_unknown_is_shown_as_unknown(page: Page) -> None:
    """Deployments of an old listing are neither up nor failing now; a proxy not seen has no per cent."""
    said = Outline(page.main(views.view([views.down()]))).words
    assert "not known now; last listed 42 s ago" in said
    assert "unknown was up" in said
    assert "unknown was failing" in said
    said = Outline(page.main(views.view([views.unknown()]))).words
    assert "not seen in 24 h" in said
    assert "%" not in said


def test_well_is_said_only_when_all_is(page: Page) -> None:
    """A sink behind, or a proxy not seen, is not well."""
    assert "All is well" in page.main(views.view())
    assert 'data-state="degraded"' in page.main(views.view(summary=("sink grafana is 9 min behind",)))
    assert "All is well" not in page.main(views.troubled())


def hostile() -> View:
    """A name of an attacker's choice wherever a name or a clause may stand."""
    deployments = [
        views.deployment(id=HOSTILE, short_id=HOSTILE, model=HOSTILE, name=HOSTILE, provider=HOSTILE),
        views.failing(1, error=HOSTILE),
    ]
    target = views.target(
        HOSTILE,
        url=HOSTILE,
        version=HOSTILE,
        reason=HOSTILE,
        listing=views.listing(deployments),
        changes=(Change(NOW, HOSTILE, "error", HOSTILE),),
    )
    sink = views.sink(HOSTILE, type=HOSTILE, reason=HOSTILE, last_error=HOSTILE, last_error_time=NOW)
    return views.view([target], [sink], summary=(HOSTILE,), not_ready=(HOSTILE,))


def test_hostile_names_are_text(page: Page) -> None:
    """The page with them has the tags of the page without them."""
    html = page.whole(hostile())
    tags = Outline(html).tags
    assert [tag for tag, _ in tags].count("script") == 1
    assert not [tag for tag, _ in tags if tag in ("img", "iframe", "object", "base", "form")]
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on") or name == "style"]
    assert "1337" not in html
    harmless = msgspec.json.decode(msgspec.json.encode(hostile()).replace(b"alert", b"alarm"), type=View)
    assert len(tags) == len(Outline(page.whole(harmless)).tags)


def places(value: Any, *path: str | int) -> Iterator[tuple[str | int, ...]]:
    """Where a text stands in it."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], *path, key)


def with_text(value: Any, path: tuple[str | int, ...], text: str) -> Any:
    made = copy.deepcopy(value)
    inner = made
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = text
    return made


def test_a_hostile_text_in_any_field_is_text(page: Page) -> None:
    """Every field of a view that takes any text at all, one after the other; the page is otherwise as it was."""
    sinks = [views.sink("a", last_error="x", last_error_time=NOW)]
    for shown in (views.view(sinks=sinks), views.view(views.troubled().targets, sinks), hostile()):
        plain = msgspec.json.decode(msgspec.json.encode(shown))
        fields = {tuple(step for step in path if isinstance(step, str)): path for path in places(plain)}
        tried = 0
        for path in fields.values():
            try:
                harmless, attacked = (
                    msgspec.convert(with_text(plain, path, text), View)
                    for text in (HOSTILE.replace("<", "("), HOSTILE)
                )
            except msgspec.ValidationError:  # a word of a closed list, or a time
                continue
            tried += 1
            html = page.whole(attacked)
            assert len(Outline(html).tags) == len(Outline(page.whole(harmless)).tags), path
            assert HOSTILE not in html, path
        assert tried >= 20


def test_nothing_comes_from_elsewhere(page: Page) -> None:
    """No address in it but of namespaces, and a policy that would stop it."""
    html = page.whole(views.view([views.target(url="(its address)")]))
    assert set(re.findall(r"https?://[^\s\"'`<>]+", html)) <= {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page.policy
    assert "unsafe" not in page.policy
    assert page.policy.count("'sha256-") == 2


def test_it_stays_usable_with_forty_proxies_and_two_hundred_deployments(page: Page) -> None:
    """Proxies are folded, failing deployments before the others, and what is sent every few seconds stays small."""
    html = page.main(views.crowd())
    shown = Outline(html)
    assert not [a for tag, a in shown.tags if tag == "details" and "open" in a and str(a["id"]).startswith("target-")]
    assert 'class="dense"' in html
    assert html.index("authentication") < html.index("<summary>198 up")
    assert len(html) < 300_000


def test_every_part_of_the_bar_says_what_it_is(page: Page) -> None:
    """96 slices cover the width; what is alike is joined; a trouble is never too small to see."""
    bar = list(pieces(views.slices("." * 10 + "h" * 80 + "pduuhh"), 900))
    assert [piece.x for piece in bar] == [0, 60, 540, 546, 552, 558, 564]
    assert bar[-1].x + bar[-1].width == 96 * WIDTH
    assert [(piece.base, piece.top) for piece in bar] == [
        ("unknown", None),
        ("healthy", None),
        ("degraded", "unhealthy"),
        ("healthy", "degraded"),
        ("healthy", "unhealthy"),
        ("healthy", "unhealthy"),
        ("healthy", None),
    ]
    assert (bar[2].height, bar[4].height) == (LEAST, HEIGHT)
    assert bar[2].title == "13:15 to 13:30 UTC: 20 of 180 readings unhealthy, up to 1 deployments failing"
    assert bar[0].title == "14:45 to 17:15 UTC: not seen"
    html = page.main(views.view([views.down()]))
    assert 'aria-label="Last 24 hours: 97.2 % of readings healthy, seen 79 % of the time"' in html


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (11_990, "3 h 19 min"),
        (86_400, "1 d"),
        (86_400 + 60, "1 d"),
        (273_600, "3 d 4 h"),
    ],
)
def test_lengths_of_time(seconds: float, text: str) -> None:
    """Short, never longer than it was."""
    assert ago(seconds) == text
