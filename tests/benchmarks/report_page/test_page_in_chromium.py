"""The page in a real browser without a window: no request, no error, keys, themes, a narrow screen, and paper."""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from unetx_bench.history import list_fleet, list_trends
from unetx_bench.report import Report, serialize_report
from unetx_bench.report_page.many import render_fleet_page, render_history_page
from unetx_bench.report_page.page import render_report_page

selenium = pytest.importorskip("selenium", reason="driving a browser needs selenium: pip install 'unetx-opt[dev]'")
pytest.importorskip("jinja2", reason="pages need jinja2: pip install 'unetx-opt[bench]'")
ATTACK = "\"'></style><img src=x onerror=window.broken=1><script>window.broken=1</script>"
PAPER_PX = round((210 - 2 * 12) / 25.4 * 96)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, with a record of its console and of its network."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium and chromedriver on the PATH: apt-get install chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options=options, service=Service(driver))
    yield running
    running.quit()


@pytest.fixture(scope="module")
def pages(made: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report's page, the same with hostile names, a history and a fleet."""
    folder = tmp_path_factory.mktemp("pages")
    made.write_pictures(folder)
    report = made.make_report()
    written = {
        "report": render_report_page(report, folder),
        "hostile": render_report_page(hostile(report), folder),
        "history": render_history_page(list_trends([(ATTACK, report)]), [(ATTACK, report)]),
        "fleet": render_fleet_page(list_fleet([(ATTACK, report)])),
    }
    for name, text in written.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return folder


def hostile(report: Report) -> Report:
    """Put an attack behind every name of a bundle, wherever it stands."""
    text = serialize_report(report).decode("ascii")
    return Report.model_validate_json(text.replace("unet-fp16", "unet-fp16" + json.dumps(ATTACK)[1:-1]))


def show(browser: Any, page: Path, *, width: int = 1200, theme: str = "light", media: str = "") -> None:
    browser.get_log("browser")
    browser.get_log("performance")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    browser.get(page.as_uri())


def computed(browser: Any, selector: str, what: str) -> str:
    script = "return getComputedStyle(document.querySelector(arguments[0])).getPropertyValue(arguments[1])"
    return str(browser.execute_script(script, selector, what))


@pytest.mark.parametrize("name", ["report", "hostile", "history", "fleet"])
def test_nothing_is_requested_and_nothing_goes_wrong(name: str, browser: Any, pages: Path) -> None:
    show(browser, pages / f"{name}.html")
    messages = [json.loads(row["message"])["message"] for row in browser.get_log("performance")]
    asked = {row["params"]["request"]["url"] for row in messages if row["method"] == "Network.requestWillBeSent"}
    assert (pages / f"{name}.html").as_uri() in asked, "the network was not watched"
    assert [url for url in asked if not url.startswith("data:") and url != (pages / f"{name}.html").as_uri()] == []
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.broken") is None
    assert browser.execute_script("return document.querySelectorAll('img[onerror]').length") == 0


def test_the_policy_of_the_page_stops_a_script_that_got_in(browser: Any, pages: Path) -> None:
    text = (pages / "report.html").read_text(encoding="utf-8")
    broken = pages / "injected.html"
    broken.write_text(text.replace("</main>", "<script>window.broken = 1</script></main>"), encoding="utf-8")
    show(browser, broken)
    assert browser.execute_script("return window.broken") is None
    assert any("Content Security Policy" in row["message"] for row in browser.get_log("browser"))


def test_every_picture_of_the_page_is_shown(browser: Any, pages: Path) -> None:
    show(browser, pages / "report.html")
    assert browser.execute_script("return document.images.length") > 0
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth === 32)")


def test_keys_alone_reach_the_slider_and_move_it(browser: Any, pages: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    show(browser, pages / "report.html")
    for _ in range(60):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        if browser.execute_script("return document.activeElement.type") == "range":
            break
    slider = browser.switch_to.active_element
    assert slider.get_attribute("type") == "range"
    assert computed(browser, ".slider input:focus-visible", "outline-style") == "solid"
    # inset() of the picture on top, from the right: all of it is hidden at 0, nothing at 100.
    ActionChains(browser).send_keys(Keys.HOME).perform()
    assert computed(browser, ".engine-mask", "clip-path").startswith("inset(0px 100% 0px 0px")
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
    assert computed(browser, ".stage", "--at") == "1%"
    assert "1 %" in slider.get_attribute("aria-valuetext")
    ActionChains(browser).send_keys(Keys.END).perform()
    assert "100%" not in computed(browser, ".engine-mask", "clip-path")
    assert computed(browser, ".stage", "--at") == "100%"


def test_the_slider_uncovers_the_engines_picture_on_the_screen(browser: Any, pages: Path) -> None:
    from io import BytesIO

    import numpy as np
    from PIL import Image

    show(browser, pages / "report.html")
    stage = browser.find_element("css selector", ".stage")
    brightness = {}
    for value in (0, 100):
        browser.execute_script(
            "const s = document.querySelector('.slider input'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input'))",
            value,
        )
        grey = np.asarray(Image.open(BytesIO(stage.screenshot_as_png)).convert("L")).astype(float)
        quarter = grey.shape[1] // 4
        brightness[value] = (grey[:, quarter // 2 : quarter].mean(), grey[:, 3 * quarter : -quarter // 2].mean())
    # The reference's left half is bright, the engine's right one.
    assert brightness[0][0] > brightness[0][1] + 100
    assert brightness[100][1] > brightness[100][0] + 100


@pytest.mark.parametrize(
    ("selector", "colour"),
    [("body", "background-color"), ("body", "color"), ("svg .label", "fill"), ("svg .dot.engine", "fill")],
)
def test_dark_and_light_differ(selector: str, colour: str, browser: Any, pages: Path) -> None:
    found = []
    for theme in ("light", "dark"):
        show(browser, pages / "report.html", theme=theme)
        found.append(computed(browser, selector, colour))
    assert found[0] != found[1]


@pytest.mark.parametrize("name", ["report", "hostile", "history", "fleet"])
@pytest.mark.parametrize("width", [400, 820, 1200])
def test_no_page_is_wider_than_the_screen(width: int, name: str, browser: Any, pages: Path) -> None:
    show(browser, pages / f"{name}.html", width=width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    shown = "return [...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width > 0)"
    widths = browser.execute_script(f"{shown}.map(s => [s.getBoundingClientRect().width, s.viewBox.baseVal.width])")
    assert all(found == pytest.approx(drawn, rel=0.05) for found, drawn in widths), "type in charts was scaled"


@pytest.mark.parametrize("name", ["report", "hostile", "history", "fleet"])
def test_no_page_is_wider_than_paper(name: str, browser: Any, pages: Path) -> None:
    show(browser, pages / f"{name}.html", width=PAPER_PX, media="print")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= PAPER_PX


def test_the_page_fits_on_paper_with_both_masks_beside_each_other(browser: Any, pages: Path) -> None:
    show(browser, pages / "report.html", width=PAPER_PX, media="print", theme="dark")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= PAPER_PX
    assert computed(browser, "body", "background-color") == "rgb(255, 255, 255)"
    assert computed(browser, ".slider input", "display") == "none"
    boxes = browser.execute_script(
        "return [...document.querySelector('.pair').querySelectorAll('img')]"
        ".map(i => { const b = i.getBoundingClientRect(); return [b.left, b.right, b.top] })"
    )
    assert len(boxes) == 3
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(boxes))
    assert computed(browser, ".engine-mask", "clip-path") == "none"


def test_it_prints_on_a4_with_folded_parts_open(browser: Any, pages: Path) -> None:
    from selenium.webdriver.common.print_page_options import PrintOptions

    show(browser, pages / "report.html")
    assert not browser.execute_script("return document.querySelector('details').open")
    options = PrintOptions()
    options.set_page_size(PrintOptions.A4)
    paper = base64.b64decode(browser.print_page(options))
    assert paper.startswith(b"%PDF")
    boxes = re.findall(rb"/MediaBox \[0 0 ([0-9.]+) ([0-9.]+)\]", paper)
    assert boxes
    assert all((round(float(w)), round(float(h))) in {(595, 842), (596, 842)} for w, h in boxes)
    assert browser.execute_script("return [...document.querySelectorAll('details')].every(d => d.open)")
