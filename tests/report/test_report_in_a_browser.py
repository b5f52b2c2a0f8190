from typing import Literal

from equipoise.report import report


def test_the_page_in_a_browser(three_runs, tmp_path, browser, low_contrast):
    out = report(three_runs, tmp_path / "report.html")
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
        sizes = page.evaluate("[...document.images].map(i => i.complete ? Math.min(i.naturalWidth, i.clientWidth) : 0)")
        assert len(sizes) == 27
        assert min(sizes) >= 8
        plots = page.evaluate(
            "[...document.querySelectorAll('.plot svg')].map(s => s.getBoundingClientRect().width).filter(w => w)"
        )
        assert len(plots) == 4, "one chart against eps and three of training are visible"
        assert min(plots) > 250
        seen, low = page.evaluate(low_contrast)
        assert seen > 100
        assert low == []
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
        page.close()
