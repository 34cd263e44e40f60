"""The status page in a real browser without a window: live, keyboard, themes, a narrow screen, and hostile text."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from unetx_opt.node.http_server import HttpPlan, HttpSettings, serve_http
from unetx_opt.node.status import StatusSource
from unetx_opt.node.thumbnails import write_thumbnail

pytest.importorskip("selenium", reason="driving a browser needs selenium: pip install 'unetx-opt[dev]'")
ATTACK = "\"'></td><img src=x onerror=window.broken=1><script>window.broken=1</script>"


@pytest.fixture(scope="module")
def browser():
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
def node(make_node):
    """A node that has a queue, results, errors, and hostile names in every place."""
    node = make_node()
    node.queue(6, ("pacs", "archive"))
    thumbnails = node.folder / "thumbnails"
    with contextlib.closing(node.connect()) as journal:
        journal.execute("UPDATE deliveries SET state = 'committed' WHERE destination = 'pacs' AND delivery_id < 8")
        journal.execute("UPDATE deliveries SET state = 'dead', error = ? WHERE receipt_id = 'r5'", (ATTACK,))
        journal.execute(
            "UPDATE deliveries SET error = 'no association with PACS at 10.0.0.7 port 104', attempts = 7 "
            "WHERE destination = 'archive' AND receipt_id = 'r1'"
        )
        for index in range(40):
            node.receive(journal, f"h{index}", age_s=index * 2000.0)
        node.receive(journal, "x1", "refused", calling_ae=ATTACK, reason="several frames: " + "long " * 40)
        node.receive(journal, "x2", "received")
    rows, columns = np.mgrid[0:300, 0:260]
    labels = ((rows - 150) ** 2 / 90**2 + (abs(columns - 130) - 60) ** 2 / 40**2 < 1).astype(np.uint8)
    for index in range(6):
        write_thumbnail(thumbnails, f"r{index}", 900 - np.hypot(rows - 150, columns - 130) + 200 * labels, labels)
    return node


@pytest.fixture(scope="module")
def page(node):
    """Address of its page."""
    stop, listening, ports = threading.Event(), threading.Event(), []

    def tell(port):
        ports.append(port)
        listening.set()

    plan = HttpPlan(HttpSettings(port=0, page=True), node.connect, StatusSource("UNETX", node.folder / "thumbnails"))
    thread = threading.Thread(target=serve_http, args=(plan, stop, tell))
    thread.start()
    assert listening.wait(10)
    yield f"http://127.0.0.1:{ports[0]}/"
    stop.set()
    thread.join(10)


def show(browser, peers, address, *, width=1200, theme="light"):
    browser.get_log("browser")
    browser.get_log("performance")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
    browser.get(address)
    ready = (
        "return document.querySelectorAll('#queue tr').length === 2 && [...document.images].every(i => i.complete)"
    )
    peers.wait_until(lambda: browser.execute_script(ready), "the page is drawn")


def text_of(browser, selector):
    return browser.find_element("css selector", selector).text


def test_it_shows_the_queue_results_throughput_and_errors_and_asks_nobody_else(browser, peers, page):
    show(browser, peers, page)
    assert text_of(browser, "h1").startswith("UNETX")
    assert text_of(browser, "#images-waiting") == "1"
    assert text_of(browser, "#results-waiting") == "6"
    assert text_of(browser, "#dead") == "2"
    rows = [row.text.split() for row in browser.find_elements("css selector", "#queue tr")]
    assert rows == [["archive", "5", "0", "0", "0", "1"], ["pacs", "1", "0", "0", "4", "1"]]
    assert len(browser.find_elements("css selector", "#results li")) == 24
    pictures = browser.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert len(pictures) == 6
    assert all(0 < width <= 192 for width in pictures)
    bars = browser.execute_script("return document.querySelectorAll('#throughput rect').length")
    assert bars == 24
    assert "no association" in text_of(browser, "#errors")
    messages = [json.loads(row["message"])["message"] for row in browser.get_log("performance")]
    asked = {row["params"]["request"]["url"] for row in messages if row["method"] == "Network.requestWillBeSent"}
    assert page in asked, "the network was not watched"
    assert [url for url in asked if not url.startswith(page)] == []
    assert browser.get_log("browser") == []


def test_names_and_reasons_stay_text(browser, peers, page):
    show(browser, peers, page)
    assert ATTACK in text_of(browser, "#errors")
    assert browser.execute_script("return window.broken") is None
    assert browser.execute_script("return document.querySelectorAll('#errors img, #errors script').length") == 0


def test_the_policy_of_the_page_stops_a_script_that_got_in(browser, peers, page):
    show(browser, peers, page)
    browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.broken = 1'; document.body.append(s)"
    )
    assert browser.execute_script("return window.broken") is None


def test_it_follows_the_node_until_it_is_paused(browser, peers, page, node):
    show(browser, peers, page)
    before = int(text_of(browser, "#results-waiting"))
    node.queue(3, start=50)
    peers.wait_until(lambda: text_of(browser, "#results-waiting") == str(before + 3), "the new ones are shown")
    press(browser, "p")
    assert "paused" in text_of(browser, "#freshness")
    assert browser.find_element("id", "pause").get_attribute("aria-pressed") == "true"
    shown = text_of(browser, "#freshness")
    node.queue(1, start=60)
    browser.execute_async_script("setTimeout(arguments[0], 3500)")
    assert text_of(browser, "#freshness") == shown
    assert text_of(browser, "#results-waiting") == str(before + 3)
    press(browser, "p")
    peers.wait_until(lambda: text_of(browser, "#results-waiting") == str(before + 4), "it goes on")


def press(browser, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def test_keys_alone_reach_everything(browser, peers, page):
    from selenium.webdriver.common.keys import Keys

    show(browser, peers, page)
    reached = []
    for _ in range(4):
        press(browser, Keys.TAB)
        name = "const a = document.activeElement; return a.id || a.className || (a.dataset.receipt && 'result')"
        reached.append(browser.execute_script(name))
        outline = "return getComputedStyle(document.activeElement).outlineStyle"
        assert browser.execute_script(outline) == "solid", reached
    assert reached == ["skip", "pause", "wide", "result"]
    focused = "return document.activeElement.dataset.receipt"
    order = browser.execute_script("return [...document.querySelectorAll('#results li')].map(i => i.dataset.receipt)")
    found = []
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ARROW_LEFT, Keys.END, Keys.ARROW_RIGHT, Keys.HOME):
        press(browser, key)
        found.append(order.index(browser.execute_script(focused)))
    assert found == [1, 2, 1, 23, 23, 0]
    press(browser, Keys.TAB)
    assert browser.execute_script("return document.activeElement.getAttribute('aria-labelledby')") == "errors-title"


def test_a_node_that_is_gone_is_said_so(browser, peers, page):
    show(browser, peers, page)
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1},
    )
    try:
        trouble = browser.find_element("id", "trouble")
        peers.wait_until(trouble.is_displayed, "the trouble is shown")
        assert "old" in trouble.text
    finally:
        browser.execute_cdp_cmd(
            "Network.emulateNetworkConditions",
            {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1},
        )
    peers.wait_until(lambda: not trouble.is_displayed(), "it is reached again")


@pytest.mark.parametrize("width", [360, 820, 1200])
def test_it_is_not_wider_than_the_screen(browser, peers, page, width):
    show(browser, peers, page, width=width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_dark_and_light_differ_and_can_both_be_read(browser, peers, page):
    script = """
    const parse = (text) => text.match(/[0-9.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const light = (text) => { const [r, g, b] = parse(text); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const behind = (e) => { while (getComputedStyle(e).backgroundColor === 'rgba(0, 0, 0, 0)') e = e.parentElement;
      return getComputedStyle(e).backgroundColor; };
    return [...document.querySelectorAll('p, td, th, h1, h2, button, small')].filter((e) => e.textContent.trim())
      .map((e) => { const a = light(getComputedStyle(e).color), b = light(behind(e));
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); });
    """
    backgrounds = []
    for theme in ("light", "dark"):
        show(browser, peers, page, theme=theme)
        backgrounds.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
        assert min(browser.execute_script(script)) >= 4.5, f"contrast of WCAG 2.2, {theme}"
    assert backgrounds[0] != backgrounds[1]


def test_the_page_has_no_name_of_another_host():
    folder = Path(__file__).resolve().parents[3] / "toolkit" / "unetx_opt" / "node" / "status_page"
    for path in folder.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "//" not in text.replace("\n// ", "\n").replace("; // ", ""), path.name
