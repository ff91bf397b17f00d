"""The table of a notify sink: what it takes, what it refuses and how that is said."""

import re
from pathlib import Path

import pytest
from config_text import lines, load

from forwarder.config_notify import Mailbox, NotifySink, mailbox
from forwarder.errors import ConfigError
from forwarder.secrets import Secret
from forwarder.sinks.notify.build import notify_sink

CANARY = "canary-5f1d0c2e"
MAIL = f"mailtos://agent:{CANARY}@smtp.example.test/?from=agent@example.test&to=ops@example.test"
HEAD = '[[targets]]\nname = "eu"\nurl = "http://localhost:4000"\n[sinks.people]\ntype = "notify"\n'


def text(more: str = "") -> str:
    return f'{HEAD}url = {{ env = "NOTIFY_URL" }}\n{more}\n'


def built(folder: Path, more: str = "", url: str = MAIL) -> NotifySink:
    sink = load(folder, text(more), {"NOTIFY_URL": url}).sinks["people"]
    assert isinstance(sink, NotifySink)
    notify_sink("people", sink).close()
    return sink


def said(folder: Path, more: str = "", url: str = MAIL) -> list[str]:
    return lines(folder, text(more), {"NOTIFY_URL": url})


def test_everything_has_a_default_but_the_url(tmp_path: Path) -> None:
    sink = built(tmp_path)
    assert (sink.severity, sink.group, sink.remind, sink.max_per_hour, sink.time_zone) == ("warning", 30, 0, 20, "UTC")
    assert lines(tmp_path, HEAD) == ["sinks.people.url: is missing (it is always needed)"]
    (missing,) = lines(tmp_path, text(), {})
    assert missing.startswith("sinks.people.url: environment variable NOTIFY_URL is not set")
    optional = f'{HEAD}url = {{ env = "NOTIFY_URL", optional = true }}\n'
    assert lines(tmp_path, optional, {}) == ["sinks.people.url: is needed (the secret it names is not there)"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "mailtos://a%40x.test:p%3A%2F@smtp.x.test:2525/?to=b@x.test,c%2Bd@x.test",
            ("smtp.x.test", 2525, "starttls", "a@x.test", "p:/", "a@x.test", ("b@x.test", "c+d@x.test")),
        ),
        (
            "mailtos://a:p@x.test/b@x.test?mode=ssl&smtp=mail.x.test",
            ("mail.x.test", 465, "ssl", "a", "p", "a@x.test", ("b@x.test",)),
        ),
        ("mailto://localhost/?from=a@x.test", ("localhost", 25, "plain", None, None, "a@x.test", ("a@x.test",))),
        (
            "MAILTOS://x.test?user=a&pass=p&to=b+c@x.test",
            ("x.test", 587, "starttls", "a", "p", "a@x.test", ("b+c@x.test",)),
        ),
    ],
)
def test_mail_urls_are_read_as_apprise_writes_them(url: str, expected: tuple[object, ...]) -> None:
    box = mailbox(Secret(url))
    assert isinstance(box, Mailbox)
    password = box.password.reveal() if box.password else None
    assert (box.server, box.port, box.mode, box.user, password, box.sender, box.recipients) == expected


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("smtp.example.test", "holds no URL"),
        (CANARY, "holds no URL"),
        (f"mailto://me:{CANARY}@x.test/?to=a@x.test", "the URL sends a password without encryption"),
        (f"mailtos://{CANARY}@x.test/?to=a@x.test", "the URL has a user without a password"),
        (
            f"mailtos://me:{CANARY}@x.test/?to={CANARY}",
            "the URL has a sender or a recipient that is no e-mail address",
        ),
        (f"mailtos://me:{CANARY}@x.test/?to=a%0d%0aRCPT@x.test", "the URL has a sender or a recipient"),
        (f"mailtos://me:{CANARY}@x.test/?from=a%3Eb@x.test", "the URL has a sender or a recipient"),
        (f"mailtos://me:{CANARY}@x.test:{CANARY}/", "the URL has a port that cannot be read"),
        (f"mailtos://me:{CANARY}@x.test/?format={CANARY}&{CANARY}=1", "the URL has 2 parameters that e-mail does not"),
        (
            f"mailtos://me:{CANARY}@x.test/?Format={CANARY}",
            "the URL has a parameter that e-mail does not take (format) (it takes from, to,",
        ),
        (f"mailtos://me:{CANARY}@x.test/?{CANARY}=1", "the URL has a parameter that e-mail does not take (it takes"),
        (f"mailtos://me%40x.test:{CANARY}@x.test", "the URL names nobody to write to (add to=…, as in mailtos://"),
        (f"mailtos://me:{CANARY}@x.test/?mode={CANARY}", "the URL has a mode that is not known"),
        (f"mailtos://me:{CANARY}@/?smtp={CANARY}%20x", "the URL has no mail server, or one that cannot be read"),
        (f"mailtos://[{CANARY}/", "holds a URL that cannot be read"),
        (f"json://me:{CANARY}@x.test/?verify=no", "the URL has a parameter that is not taken here: verify"),
        (f"json://me:{CANARY}@x.test/?Redirect=yes", "the URL has a parameter that is not taken here: redirect"),
    ],
)
def test_urls_that_cannot_be_used(tmp_path: Path, url: str, reason: str) -> None:
    """Each with its fix, and with nothing of what it holds."""
    (line,) = said(tmp_path, url=url)
    assert line.startswith(f"sinks.people.url: {reason}")
    assert "(" in line
    assert CANARY not in line


def test_apprise_that_is_missing_is_told_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where it is needed: e-mail works without."""
    monkeypatch.setattr("forwarder.config_notify.find_spec", lambda _: None)
    (line,) = said(tmp_path, url="json://localhost/")
    assert line.startswith("sinks.people.url: all but e-mail needs Apprise, which is not installed")
    assert line.endswith("(pip install 'litellm-forwarder[notify]')")
    built(tmp_path)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ('time_zone = "Mars/Olympus"', "sinks.people.time_zone: is no time zone"),
        ('time_zone = "../../etc/passwd"', "sinks.people.time_zone: is no time zone"),
        ("time_zone = 1", "sinks.people.time_zone: is no time zone"),
        ('maintenance = [{ start = "0 2 * *", duration = "1h" }]', "sinks.people.maintenance[0].start: is no crontab"),
        (
            'maintenance = [{ start = "0 2 30 2 *", duration = "1h" }]',
            "sinks.people.maintenance[0].start: is no crontab",
        ),
        ('maintenance = [{ start = "@daily", duration = "1h" }]', "sinks.people.maintenance[0].start: is no crontab"),
        ('maintenance = [{ start = "0 2 * * sun" }]', "sinks.people.maintenance[0].duration: is missing"),
        ('maintenance = [{ start = "* * * * *", duration = "1h", x = 1 }]', "sinks.people.maintenance[0].x: is not a"),
        ('changes = ["litellm.proxy.*", "x y"]', "sinks.people.changes[1]: is no pattern of names"),
        ('severity = "fatal"', 'sinks.people.severity: must be "info", "warning" or "error"'),
        ("max_per_hour = 0", "sinks.people.max_per_hour: must be at least 1"),
        ('public_url = "ftp://x"', "sinks.people.public_url: is no address of a page"),
        ('public_url = "https://me:secret@x/"', "sinks.people.public_url: is no address of a page"),
        ('remind = "4"', "sinks.people.remind: is not a duration"),
        ('proxy = "socks5://x"', "sinks.people.proxy: must begin with http"),
        ('ca_file = "nowhere.pem"', "sinks.people.ca_file: the file does not exist"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, more: str, reason: str) -> None:
    (line,) = said(tmp_path, more)
    assert line.startswith(reason)


def test_a_change_that_does_not_exist_is_a_mistake(tmp_path: Path) -> None:
    """A misspelt name would keep silent for ever."""
    with pytest.raises(ConfigError, match=r"sinks\.people\.changes\[1\]: is the name of no change"):
        built(tmp_path, 'changes = ["litellm.proxy.*", "litellm.poxy.down"]')


def test_without_secrets_the_url_is_left_unread(tmp_path: Path) -> None:
    """Looking into the spool needs none."""
    from forwarder import config

    path = tmp_path / "config.toml"
    path.write_text(text())
    sink = config.load(path, {}, secrets=False).sinks["people"]
    assert isinstance(sink, NotifySink)
    assert sink.url is None


def test_the_examples_of_the_page_work(tmp_path: Path) -> None:
    """What is copied from docs/notifications.md loads, and the URL in it is read as the page says."""
    page = (Path(__file__).parent.parent / "docs" / "notifications.md").read_text(encoding="utf-8")
    found = re.search(r"NOTIFY_MAIL_URL='([^']+)'", page)
    assert found is not None
    examples = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(examples) == 3
    (tmp_path / "slack").write_text("slack://token-a/token-b/token-c/#ops")
    for example in examples:
        target = '[[targets]]\nname = "eu"\nurl = "http://localhost:4000"\n'
        path = "/run/credentials/litellm-forwarder.service/litellm-forwarder.slack_url"
        assert load(tmp_path, target + example.replace(path, "slack"), {"NOTIFY_MAIL_URL": found[1]}).sinks
    box = mailbox(Secret(found[1]))
    assert box is not None
    assert (box.server, box.user, box.recipients) == ("smtp.example.com", "agent@example.com", ("ops@example.com",))
