"""The page in a real Chromium: it looks right at every width, keeps itself up to date, and runs nothing of others."""

from collections.abc import AsyncIterator
from pathlib import Path

import chromium
import msgspec
import pytest
import status_views as views
from chromium import Browser
from status_site import Board, Site, serving
from test_status_page import hostile

from forwarder.config_values import Address

pytestmark = pytest.mark.skipif(
    chromium.PROGRAM is None, reason="NO CHROMIUM HERE: the status page is not tested (apt-get install chromium)"
)
OPEN = "for (const each of document.querySelectorAll('details')) each.open = true"
# What the script does when the reader comes back to the tab.
LOOK = "document.dispatchEvent(new Event('visibilitychange'))"
# Every text whose contrast with what is behind it is below WCAG's AA (4.5, or 3 for large text).
FAINT = """(() => {
  const part = (v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * part(r) + .7152 * part(g) + .0722 * part(b);
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c.slice(0, 3); } return [255, 255, 255]; };
  const faint = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, style = getComputedStyle(e);
    if (!walk.currentNode.textContent.trim() || e.closest('svg, script, [hidden]')) continue;
    const [a, b] = [light(rgb(style.color).slice(0, 3)), light(behind(e))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) faint.push(`${walk.currentNode.textContent.trim()}: ${ratio.toFixed(2)}`);
  }
  return [...new Set(faint)];
})()"""


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving(Address("127.0.0.1", 0), Board()) as found:
        yield found


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    async with chromium.browser(tmp_path / "profile") as found:
        yield found


async def test_it_fits_and_can_be_read(site: Site, browser: Browser) -> None:
    """From a phone of 320 pixels to a desk, by day and by night, everything unfolded; the browser refuses nothing."""
    for shown in (views.view(), views.troubled(), views.crowd()):
        site.board.shown = shown
        for width, dark in ((320, False), (320, True), (1200, False), (1200, True)):
            await browser.visit(site.url, width=width, dark=dark)
            await browser.value(OPEN)
            assert await browser.value("document.documentElement.scrollWidth") <= width
            assert await browser.value(FAINT) == []
    assert browser.complaints == []


async def test_it_keeps_itself_up_to_date(site: Site, browser: Browser) -> None:
    """In place: what the reader unfolded stays so. An agent that is gone is told, with the time."""
    site.board.shown = views.view([views.degraded(), views.target()])
    await browser.visit(site.url)
    await browser.value("window.mine = 1; document.getElementById('target-eu').open = true")
    site.board.shown = views.view([views.down(), views.degraded(), views.target()], summary=("proxy us is unhealthy",))
    await browser.value(LOOK)
    await browser.until("document.title", lambda title: title.startswith("Proxy us is unhealthy"))
    assert await browser.value("window.mine") == 1  # it was not loaded anew
    assert await browser.value("document.getElementById('target-eu').open") is True
    assert await browser.value("document.getElementById('stale').hidden") is True

    site.board.shown = RuntimeError("gone")
    await browser.value(LOOK)
    await browser.until("!document.getElementById('stale').hidden")
    assert await browser.value("/since .*[0-9]/.test(document.getElementById('stale').textContent)")
    site.board.shown = views.view()
    await browser.value(LOOK)
    await browser.until("document.getElementById('stale').hidden")
    assert await browser.value("document.querySelector('h1').textContent.trim()") == "All is well"


async def test_it_updates_by_itself_and_waits_for_who_copies(site: Site, browser: Browser) -> None:
    """Every few seconds, but not under a selection."""
    await browser.visit(site.url)
    await browser.value("getSelection().selectAllChildren(document.querySelector('h1'))")
    before = site.board.views
    site.board.shown = views.view()
    await browser.value(LOOK)
    await browser.until("document.hidden", lambda hidden: hidden is False)
    while site.board.views == before:
        await browser.value("1")
    assert await browser.value("document.querySelector('h1').textContent.trim()") == "Proxy us is unhealthy"
    await browser.value("getSelection().removeAllRanges()")
    await browser.until("document.querySelector('h1').textContent.trim()", lambda text: text == "All is well")


async def test_hostile_names_do_nothing(site: Site, browser: Browser) -> None:
    """Neither in the page nor in what its script puts into it; they are shown as the text they are."""
    site.board.shown = hostile()
    await browser.visit(site.url)
    for _ in range(2):
        await browser.value(OPEN)
        assert await browser.value("document.querySelectorAll('img, iframe').length") == 0
        assert await browser.value("document.querySelector('main').textContent.includes('<script>alert(1)</script>')")
        site.board.shown = msgspec.structs.replace(hostile(), version="0.0.9")
        await browser.value(LOOK)
        await browser.until("document.querySelector('.about').textContent.includes('0.0.9')")
    assert browser.complaints == []


async def test_without_javascript(site: Site, browser: Browser) -> None:
    """Everything is there, and the page asks to be loaded anew."""
    await browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    await browser.visit(site.url)
    assert "nothing listens there" in await browser.value("document.querySelector('main').textContent")
    assert await browser.value("document.querySelector('noscript meta[http-equiv=refresh]').content") == "15"
    assert browser.complaints == []
