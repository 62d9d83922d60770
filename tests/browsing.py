"""Pages in a real browser, and whether their texts overlap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import needs

OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
_OVERLAPS = """
selector => {
  const boxes = [];
  for (const element of document.querySelectorAll(selector)) {
    if (!element.textContent.trim() || getComputedStyle(element).visibility === "hidden") continue;
    const box = element.getBoundingClientRect();
    if (box.width && box.height) boxes.push({text: element.textContent.trim().slice(0, 40), element, box});
  }
  const found = [];
  boxes.forEach((a, i) => boxes.slice(i + 1).forEach(b => {
    if (a.element.contains(b.element) || b.element.contains(a.element)) return;
    const width = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
    const height = Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top);
    if (width > 1.5 && height > 1.5) found.push(`${a.text} | ${b.text}: ${width.toFixed(1)} x ${height.toFixed(1)}`);
  }));
  return [boxes.length, found];
}
"""
PLOT_TEXTS = ".xtitle, .ytitle, .xtick text, .ytick text, .legendtext, .infolayer .cbtitle text, .cbaxis text"
PAGE_TEXTS = "h1, h2, h3, p, li, dt, dd, th, td, figure, label, summary, pre, .bar"


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's Chromium by Playwright."""
    from playwright.sync_api import sync_playwright

    path = needs.program("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, *, width: int, scheme: str, allowed: str = "") -> Iterator[Any]:
    """A page; at its end it is checked that it has said nothing on the console and asked nobody but `allowed`."""
    said: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(120_000)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    local = ("file:", "data:", "blob:", *([allowed] if allowed else []))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith(local) else None)
    yield page
    page.close()
    assert said == []


def overlaps(page: Any, selector: str, *, least: int = 1) -> list[str]:
    """The visible elements of a selector, of which there are at least so many, that overlap each other."""
    count, found = page.evaluate(_OVERLAPS, selector)
    assert count >= least, f"{count} elements of {selector}"
    return list(found)
