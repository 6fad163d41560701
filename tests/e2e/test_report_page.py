"""The page of ``espalier report`` in a browser: headless Chromium through Selenium."""

import json
import re
import shutil

import pytest

from espalier.analysis.report import open_runs, write_report

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
webdriver = pytest.importorskip("selenium.webdriver")
WebDriverWait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("chromium and chromedriver are not installed", allow_module_level=True)

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def page(finished_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report([finished_run], path)
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


DRAW_ALL = """
const done = arguments[arguments.length - 1];
document.querySelectorAll(".layer").forEach((layer) => (layer.open = true));
const charts = [...document.querySelectorAll(".chart")];
(async () => {
  for (const chart of charts) {
    chart.scrollIntoView();
    while (chart.dataset.drawn !== arguments[0]) await new Promise((go) => setTimeout(go, 20));
  }
  window.scrollTo(0, 0);
  done(charts.length);
})();
"""


@pytest.fixture
def opened(browser, page):
    """The page on a wide light screen, everything on it drawn."""
    return open_page(browser, page)


def open_page(browser, page, width=1440, scheme="light"):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    # A page that glides along is not where it is clicked.
    wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    media = {"features": [{"name": name, "value": value} for name, value in wanted.items()]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(page.as_uri())
    assert browser.execute_async_script(DRAW_ALL, scheme) > 5
    return browser


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_it_opens_without_errors_or_network_and_fits_the_screen(browser, page, width, scheme):
    open_page(browser, page, width, scheme)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    }
    # The browser's own start page, "chrome:" or "chrome-untrusted:", may load in the same tab.
    assert {url for url in asked if not url.startswith(("data:", "chrome"))} == {page.as_uri()}
    sizes = "return [document.documentElement.scrollWidth, innerWidth]"
    assert browser.execute_script(sizes) == [width, width]


def test_tables_sort_by_a_button_and_say_so(opened, finished_run):
    (run,) = open_runs([finished_run])
    column = """
        const rows = [...document.querySelectorAll(".ledger tbody tr")];
        return rows.map((row) => [row.cells[0].textContent, row.cells[4].dataset.value]);
    """
    head = opened.find_elements("css selector", ".ledger thead th")[4]
    press = head.find_element("css selector", "button")
    sizes = {row["name"]: row["total_bytes"] for row in run.ledger["tensors"]}
    assert head.get_attribute("aria-sort") == "none"
    for direction, sign in (("descending", -1), ("ascending", 1)):
        press.send_keys("\ue007")  # Enter: by keyboard
        assert head.get_attribute("aria-sort") == direction
        shown = opened.execute_script(column)
        assert {name: int(size) for name, size in shown} == sizes
        assert [int(size) for _, size in shown] == sorted(sizes.values(), key=lambda n: sign * n)
    others = opened.find_elements("css selector", ".ledger th[aria-sort='none']")
    assert len(others) == 15


def test_charts_draw_the_values_of_the_run(opened, finished_run):
    (run,) = open_runs([finished_run])
    values = """
        const chart = document.querySelector(`[data-figure="${arguments[0]}"]`);
        return chart.vegaView.data(arguments[1]).map((row) => ({ ...row }));
    """
    rows = opened.execute_script(values, "r0-waterfall", "rows")
    assert [row["bytes"] for row in rows] == [*dict(run.steps).values(), run.ledger["file_bytes"]]
    layer = run.layers[0]
    rows = opened.execute_script(values, f"r0-weights-{layer.name}", "after")
    assert [row["centroid"] for row in rows] == list(layer.after)
    bars = opened.execute_script(
        "return document.querySelectorAll(`[data-figure='r0-waterfall'] .mark-rect path`).length"
    )
    assert bars == 5


def test_the_theme_button_redraws_everything(opened):
    opened.find_element("id", "theme").click()
    assert opened.execute_async_script(DRAW_ALL, "dark") > 5
    colour = "return getComputedStyle(document.body).backgroundColor"
    assert opened.execute_script(colour) == "rgb(20, 24, 22)"
    assert opened.get_log("browser") == []


def test_a_keyboard_and_a_screen_reader_find_their_way(browser, page):
    browser.get(page.as_uri())
    webdriver.ActionChains(browser).send_keys("\ue004").perform()  # Tab
    assert browser.switch_to.active_element.text == "Skip to the content"
    opened = open_page(browser, page)
    tree = opened.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = [node["role"]["value"] for node in tree if not node["ignored"]]
    assert {"banner", "main", "contentinfo", "navigation"} <= set(roles)
    named = [
        node["name"]["value"]
        for node in tree
        if not node["ignored"] and node["role"]["value"] in ("image", "img")
    ]
    charts = opened.find_elements("css selector", ".chart .plot")
    assert len(named) == len(charts)
    assert all(len(name) > 20 for name in named)
    nameless = [
        node
        for node in tree
        if not node["ignored"]
        and node["role"]["value"] in ("button", "link", "table", "region")
        and not node["name"]["value"]
    ]
    assert nameless == []


def test_the_data_of_a_figure_opens_as_a_table(opened):
    chart = opened.find_element("css selector", '[data-figure="r0-waterfall"]')
    chart.find_element("css selector", ".data > summary").click()
    # The page fills it in when it hears that it was opened, which a browser tells it afterwards.
    table = WebDriverWait(opened, 10).until(
        lambda _: chart.find_elements("css selector", ".data table")
    )[0]
    assert re.search(r"original", table.text)
    assert len(table.find_elements("css selector", "tbody tr")) == 5
