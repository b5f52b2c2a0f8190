import shutil
from typing import Literal

import pytest

from equipoise.report import report

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
]
LOW_CONTRAST = """
() => {
  const rgba = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const luminance = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const background = node => {
    for (; node; node = node.parentElement) {
      const colour = rgba(getComputedStyle(node).backgroundColor);
      if (colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const colour = rgba(node.closest('svg') ? style.fill : style.color);
    const [a, b] = [colour, background(node)].map(luminance).sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    seen += 1;
    if (ratio < 4.5) found.push(`${walker.currentNode.data.trim()}: ${ratio.toFixed(2)}`);
  }
  return [seen, found];
}
"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_page_in_a_browser(three_runs, tmp_path):
    from playwright.sync_api import sync_playwright

    out = report(three_runs, tmp_path / "report.html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        views: list[tuple[int, Literal["light", "dark"]]] = [
            (1280, "light"),
            (1280, "dark"),
            (390, "light"),
            (390, "dark"),
        ]
        for width, scheme in views:
            page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
            complaints: list[str] = []
            page.on("console", lambda message, kept=complaints: kept.append(message.text))
            page.on("pageerror", lambda error, kept=complaints: kept.append(str(error)))
            page.on("requestfailed", lambda request, kept=complaints: kept.append(request.url))
            requested: list[str] = []
            page.on("request", lambda request, kept=requested: kept.append(request.url))
            page.goto(out.as_uri())
            page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert complaints == []
            assert {url.split(":")[0] for url in requested} <= {"file", "data"}
            assert page.evaluate("document.documentElement.scrollWidth") == width
            sizes = page.evaluate(
                "[...document.images].map(i => i.complete ? Math.min(i.naturalWidth, i.clientWidth) : 0)"
            )
            assert len(sizes) == 27
            assert min(sizes) >= 8
            plots = page.evaluate(
                "[...document.querySelectorAll('.plot svg')].map(s => s.getBoundingClientRect().width).filter(w => w)"
            )
            assert len(plots) == 4, "one chart against eps and three of training are visible"
            assert min(plots) > 250
            seen, low = page.evaluate(LOW_CONTRAST)
            assert seen > 100
            assert low == []
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
            page.close()
        browser.close()
