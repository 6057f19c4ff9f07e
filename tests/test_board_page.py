"""The board of examples/board in a real browser, on a desktop and a phone."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from typing import Literal

import pytest
import pytest_asyncio

from tests.support.board import LOCKS, SOON, Program, running

pytest.importorskip("playwright.async_api", reason="needs Playwright: pip install -e '.[browser]'")
from playwright.async_api import Browser, Locator, Page, Route, ViewportSize, async_playwright, expect

pytestmark = [pytest.mark.serverless, pytest.mark.one_loop, pytest.mark.asyncio]

expect.set_options(timeout=SOON * 1000)
DESKTOP = ViewportSize(width=1100, height=620)
PHONE = ViewportSize(width=360, height=740)
WORKER = re.compile(r"^worker \d$")
FITS = "document.scrollingElement.scrollWidth <= innerWidth"
# A worker that has just taken a lock, so that it holds it for some time more: its name, and that of the lock.
FRESH = """() => {
    for (const card of document.querySelectorAll(".lock")) {
        const who = card.querySelector(".holder strong").textContent;
        const seconds = parseFloat(card.querySelector(".holder .clock").textContent);
        if (who.startsWith("worker") && seconds < 0.5) return [who, card.querySelector("h2").textContent];
    }
    return null;
}"""
# How many values the clock of a holder shows in a second: ten. Events alone would make it one or two.
TICKS = """async (card) => {
    const seen = new Set();
    for (let i = 0; i < 20; i++) {
        seen.add(card.querySelector(".holder .clock").textContent);
        await new Promise((done) => setTimeout(done, 50));
    }
    return seen.size;
}"""


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with running() as program:
        yield program


@pytest_asyncio.fixture
async def chromium() -> AsyncIterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs Chromium on the PATH: apt-get install chromium")
    async with async_playwright() as playwright:
        # Without Chromium's own sandbox, which root and most containers cannot have: it opens only this page.
        browser = await playwright.chromium.launch(executable_path=found, chromium_sandbox=False)
        try:
            yield browser
        finally:
            await browser.close()


async def open_page(
    browser: Browser, url: str, size: ViewportSize, scheme: Literal["light", "dark"] = "light"
) -> tuple[Page, list[str]]:
    """The page, and what its console complains of."""
    context = await browser.new_context(viewport=size, color_scheme=scheme)
    context.set_default_timeout(SOON * 1000)
    page = await context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await page.goto(url)
    return page, complaints


def card(page: Page, name: str) -> Locator:
    return page.locator(".lock", has=page.get_by_role("heading", name=name, exact=True))


def holder(page: Page, name: str) -> Locator:
    return card(page, name).locator(".holder strong")


async def test_a_lock_is_stolen_and_the_work_goes_on(chromium: Browser, program: Program) -> None:
    page, complaints = await open_page(chromium, program.url, DESKTOP)
    phone, of_phone = await open_page(chromium, program.url, PHONE, "dark")
    await expect(page.get_by_role("heading", level=2)).to_have_text(LOCKS)
    await expect(page.locator("#connection")).to_have_text("live, and open in 1 other window")
    await expect(page.locator("ol .who").first).to_have_text(WORKER)  # somebody waits

    who, name = await (await page.wait_for_function(FRESH)).json_value()
    assert await card(page, name).evaluate(TICKS) >= 8
    await expect(card(page, name).locator(".since")).to_have_text(re.compile(r"^since \d\d:\d\d:\d\d$"))
    await page.get_by_role("button", name=f"Steal {name}").click()
    for each in (page, phone):
        await expect(holder(each, name)).to_have_text(re.compile(r"^thief \d$"))
        await expect(card(each, name).get_by_role("status")).to_have_text(f"{who} lost {name}: taken over")
    assert await phone.evaluate(FITS)

    await expect(holder(page, name)).to_have_text(WORKER)  # the next worker has got it
    await expect(
        page.locator(".holder strong, .who").get_by_text(who, exact=True)
    ).to_be_visible()  # the last works, too
    assert complaints == of_phone == []


async def test_the_page_tells_that_its_server_is_gone_and_finds_it_again(chromium: Browser) -> None:
    with running() as program:
        page, _ = await open_page(chromium, program.url, PHONE)
        await expect(page.locator("#connection")).to_have_text("live")
        await asyncio.to_thread(program.end)
    await expect(page.locator("#connection")).to_contain_text("gone")
    clocks = await page.locator(".clock").all_text_contents()
    await page.get_by_role("button").first.click()
    await expect(page.get_by_role("alert")).to_contain_text("does not answer")
    assert await page.locator(".clock").all_text_contents() == clocks  # nobody knows, so they stand still
    assert await page.evaluate(FITS)
    with running("--port", str(program.port)) as program:
        await expect(page.locator("#connection")).to_have_text("live")
        await expect(page.locator(".holder strong").first).to_have_text(WORKER)
        await asyncio.to_thread(program.end)


async def test_what_the_server_says_is_shown_and_never_run(chromium: Browser, program: Program) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    entry = {"who": hostile, "why": hostile, "ago": 1.0}
    lock = {"name": hostile, "holder": entry, "waiting": [entry], "trouble": entry}
    events = f"data: {json.dumps({'watchers': 1, 'locks': [lock]})}\n\n"

    async def answer(route: Route) -> None:
        await route.fulfill(content_type="text/event-stream", body=events)

    context = await chromium.new_context()
    await context.route("**/events", answer)
    page = await context.new_page()
    await page.goto(program.url)
    for place in ("h2", ".holder strong", ".who", ".trouble [role=status]"):
        await expect(page.locator(place)).to_contain_text(hostile)
    assert await page.locator("img").count() == 0
