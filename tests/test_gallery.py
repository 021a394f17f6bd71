"""The gallery of scans in a real browser, from the file system, without a network."""

import json
import re
import shutil
import time
from contextlib import contextmanager
from dataclasses import asdict

import pytest

from tools.qc_trees import measured, write_tree
from uad.qc.decide import read_decisions
from uad.qc.measure import add_flags

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="no chromium and chromedriver (Debian: apt-get install chromium chromium-driver)",
    ),
]

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    # a name that is asked for would be an error in the console
    "--host-resolver-rules=MAP\t*\t~NOTFOUND"
).split(" ")
SUBJECTS, MODALITIES = 60, ["T1", "FLAIR"]
WIDE, NARROW = 1280, 600


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium with an empty profile, whose downloads go to the attribute ``downloads``."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    profile, downloads = (tmp_path_factory.mktemp(name) for name in ("profile", "downloads"))
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={WIDE},900"):
        options.add_argument(flag.replace("\t", " "))
    options.add_experimental_option(
        "prefs",
        {"download.default_directory": str(downloads), "download.prompt_for_download": False},
    )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.downloads = downloads
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A tree of two modalities with pictures: one scan is an outlier, one subject was excluded."""
    folder = tmp_path_factory.mktemp("gallery") / "results"
    table = measured(SUBJECTS, MODALITIES).drop(columns=["flags", "why"])
    table.loc[table["name"] == "BraTS2021_00007", "overlap_dice"] = [0.2, 1.0]
    table.loc[table["name"] == "BraTS2021_00009", "warnings"] = "touches <the> end"
    decisions = [
        {
            "dataset": "brats21", "subject": "BraTS2021_00999", "modality": "*",
            "verdict": "exclude", "reason": "no </script> brain", "reviewer": "A. B.",
            "date": "2026-01-02",
        }
    ]  # fmt: skip
    return write_tree(folder, {"brats21": add_flags(table)}, decisions)


class Page:
    """The page as a reviewer uses it."""

    def __init__(self, browser):
        self.browser = browser

    def all(self, selector):
        from selenium.webdriver.common.by import By

        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        (element,) = self.all(selector)
        return element

    def choose(self, name, value):
        from selenium.webdriver.support.select import Select

        Select(self.one(f"#{name}")).select_by_value(value)

    def search(self, text):
        self.one("#search").clear()
        self.one("#search").send_keys(text)
        all_fit = "return state.shown.every(scan => scan.found.includes(arguments[0]))"
        self.until(lambda: self.run(all_fit, text))

    def names(self):
        # at once: the page may draw them anew in between
        return self.run("return [...document.querySelectorAll('.card b')].map(e => e.textContent)")

    def open(self, number):
        self.all(".card")[number].click()
        self.until(lambda: self.one("#scan").get_attribute("open") is not None)

    def close(self):
        """Close a scan and wait until the address forgets it: a page that loads opens it again."""
        self.one("#close").click()
        self.until(lambda: self.run("return location.hash") == "")

    def keys(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def status(self):
        return self.one("#status").text

    def decide(self, verdict, reason="", reviewer="", whole=False):
        self.one(f"#verdict input[value='{verdict}']").click()
        for name, text in (("reason", reason), ("reviewer", reviewer)):
            if text is None:  # as it is
                continue
            self.one(f"#{name}").clear()
            self.one(f"#{name}").send_keys(text)
        if self.one("#whole").is_selected() != whole:
            self.one("#whole").click()
        self.one("#save").click()

    def until(self, condition, seconds=10):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.02)

    def downloaded(self):
        path = self.browser.downloads / "qc_decisions.tsv"
        path.unlink(missing_ok=True)
        self.one("#download").click()
        self.until(path.exists)
        return path


def load(browser, path):
    browser.get(path.as_uri())
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    return Page(browser)


@pytest.fixture
def page(browser, tree):
    """The page, fresh, and without anything that an earlier test decided."""
    browser.get_log("browser")
    yield load(browser, tree)
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors


def test_it_opens_says_phantom_and_names_no_address_of_the_network(page, tree):
    assert "phantom data" in page.one("h1").text
    assert "synthetic phantom" in page.one("#about").text
    assert page.status().startswith(f"1 to 48 of {2 * SUBJECTS + 1} scans, 1 flagged")
    assert not re.search(r"https?:|[\"'(]//", tree.read_text(encoding="utf-8"))


def test_pictures_load_when_they_are_in_sight(page):
    from selenium.webdriver.common.by import By

    page.until(lambda: page.run("return document.querySelector('.card img').naturalWidth") > 0)
    page.open(3)
    pictures = page.one("#pictures").find_elements(By.TAG_NAME, "img")
    assert len(pictures) == 3
    for element in pictures:
        page.until(lambda: page.run("return arguments[0].naturalWidth", element) > 0)  # noqa: B023
        assert element.get_attribute("alt")


def test_a_tile_is_cut_out_of_its_sheet_at_the_place_of_the_scan(page):
    page.choose("modality", "T1")
    page.all("nav.pages button")[-1].click()  # the second sheet: scans 49 to 60
    image = page.all(".card img")[7]
    assert image.get_attribute("src").endswith("brats21_T1_sheet-1.webp")
    page.run("arguments[0].scrollIntoView()", image)
    page.until(lambda: page.run("return arguments[0].naturalWidth", image) > 0)
    left, top, width = page.run(
        "const a = arguments[0].getBoundingClientRect();"
        "const b = arguments[0].parentElement.getBoundingClientRect();"
        "return [(b.left - a.left) / b.width, (b.top - a.top) / b.height, a.width / b.width]",
        image,
    )
    assert (round(left, 2), round(top, 2), round(width, 2)) == (1, 1, 6)


def test_it_filters_by_modality_flag_subject_and_verdict(page):
    page.choose("modality", "FLAIR")
    assert f"of {SUBJECTS + 1} scans" in page.status()  # who was excluded was so in all modalities
    page.choose("modality", "")
    page.choose("show", "flagged")
    assert page.names() == ["BraTS2021_00007"]
    page.choose("show", "warned")
    assert page.names() == ["BraTS2021_00009"] * 2
    page.choose("show", "all")
    page.search("2021_00012")
    assert page.names() == ["BraTS2021_00012"] * 2
    page.search("")
    page.choose("show", "exclude")
    assert page.names() == ["BraTS202100999"] and page.all(".card .exclude")


def test_it_sorts_by_any_measure_both_ways_and_in_the_table(page):
    page.choose("sort", "overlap_dice")
    assert page.names()[0] == "BraTS2021_00007"
    page.one("#direction").click()
    assert page.names()[0] != "BraTS2021_00007"
    page.one("#view").click()
    values = page.run(
        "const at = 5 + DATA.measures.findIndex(m => m.name === 'overlap_dice');"
        "const rows = [...document.querySelectorAll('tbody tr')];"
        "return rows.map(row => Number(row.children[at].textContent))"
    )
    assert len(values) == 100 and values == sorted(values, reverse=True)
    assert page.one("th[aria-sort=descending]").text.startswith("overlap with the atlas")


def test_a_scan_shows_value_median_flag_and_the_keyboard_goes_through(page):
    from selenium.webdriver.common.keys import Keys

    page.choose("show", "flagged")
    page.open(0)
    assert page.one("#scan-title").text == "brats21 BraTS2021_00007 T1"
    row = next(e.text for e in page.all("#measures tbody tr") if "overlap" in e.text)
    assert "0.2 ⚑" in row and len(row.split()) > 5
    assert "Flagged: overlap with the atlas 0.2 (median" in page.one("#warnings").text
    page.keys(Keys.ESCAPE)
    page.choose("show", "all")
    page.open(0)
    first = page.one("#scan-title").text
    page.keys(Keys.ARROW_RIGHT)
    second = page.one("#scan-title").text
    assert first != second and page.one("#scan-place").text == f"2 of {2 * SUBJECTS + 1}"
    page.keys(Keys.ARROW_LEFT)
    assert page.one("#scan-title").text == first and not page.one("#previous").is_enabled()
    page.keys(Keys.ESCAPE)
    assert page.one("#scan").get_attribute("open") is None
    # a scan has an address of its own
    address = page.browser.current_url
    page.browser.get(f"{address.split('#')[0]}#brats21/BraTS202100003/FLAIR")
    page.browser.refresh()
    assert page.one("#scan-title").text == "brats21 BraTS2021_00003 FLAIR"


def test_what_a_reviewer_decides_is_a_file_that_the_workflow_reads(page):
    page.open(2)
    page.decide("exclude")
    assert page.one("#saved").text == "Say why it is excluded."
    page.run("document.getElementById('reason').value = 'pasted\tword'")  # a key would leave it
    page.decide("exclude", None, "C. D.")
    page.one("#next").click()
    page.one("#next").click()
    page.keys("k")
    page.close()
    assert "2 subjects changed in this browser" in page.one("#decisions-about").text
    found = {
        (d.subject, d.modality): d
        for d in read_decisions(page.downloaded(), {"brats21": ["T1", "FLAIR"]})
    }
    assert {key: d.verdict for key, d in found.items()} == {
        ("BraTS202100001", "T1"): "exclude",
        ("BraTS202100002", "T1"): "keep",
        ("BraTS202100999", "*"): "exclude",
    }
    decision = found["BraTS202100001", "T1"]
    assert decision.reason == "pasted word" and decision.reviewer == "C. D."
    assert len(decision.date) == 10
    # what was recorded before stays as it was
    assert found["BraTS202100999", "*"].reason == "no </script> brain"


def test_a_verdict_on_one_scan_and_one_on_all_do_not_contradict_each_other(page):
    page.open(0)
    page.decide("exclude", 'all are "bad", really', "me", whole=True)
    page.one("#next").click()  # the other scan of the subject
    assert page.one("#reason").get_attribute("value") == 'all are "bad", really'
    page.decide("keep", "but this one", "me")
    page.close()
    found = {
        d.modality: d.verdict
        for d in read_decisions(page.downloaded())
        if d.subject == "BraTS202100000"
    }
    assert found == {"T1": "exclude", "FLAIR": "keep"}
    page.open(0)
    page.decide("unsure", whole=True)
    page.close()
    found = {
        d.modality: d.verdict
        for d in read_decisions(page.downloaded())
        if d.subject == "BraTS202100000"
    }
    assert found == {"*": "unsure"}


def test_verdicts_outlive_the_page_and_a_file_can_be_loaded(page, tmp_path):
    page.open(0)
    page.decide("keep", "", "me")
    page.browser.refresh()
    page.choose("show", "keep")
    assert page.names() == ["BraTS2021_00000"]
    other = tmp_path / "other.tsv"
    other.write_text("dataset\tsubject\tmodality\tverdict\nbrats21\tBraTS2021_00004\tT1\tkeep\n")
    page.one("#load").send_keys(str(other))
    page.until(lambda: page.names() == ["BraTS2021_00000", "BraTS2021_00004"])
    other.write_text("dataset\tverdict\nbrats21\tkeep\n")
    page.one("#load").send_keys(str(other))
    page.until(lambda: "lacks the column subject" in page.one("#said").text)


def test_a_change_that_the_file_has_by_now_is_no_change_any_more(page, tree):
    page.open(0)
    page.decide("keep", "fine", "me")
    page.close()
    rows = [asdict(decision) for decision in read_decisions(page.downloaded())]
    with recording(tree, rows):
        page.browser.refresh()
        assert "in this browser" not in page.one("#decisions-about").text
        assert not page.one("#discard").is_enabled()
    # so what the file says next counts
    rows = [{**row, "verdict": "unsure"} for row in rows if row["verdict"] == "keep"]
    with recording(tree, rows):
        page.browser.refresh()
        assert [d.verdict for d in read_decisions(page.downloaded())] == ["unsure"]


def test_a_file_that_was_changed_since_wins_over_this_browser_until_one_decides_again(page, tree):
    page.open(0)
    page.decide("keep", "fine", "me")
    page.close()
    row = {
        "dataset": "brats21", "subject": "BraTS202100000", "modality": "T1", "verdict": "exclude",
        "reason": "ghosts", "reviewer": "C. D.", "date": "2026-02-03",
    }  # fmt: skip
    with recording(tree, [row]):
        page.browser.refresh()
        (decision,) = read_decisions(page.downloaded())
        assert (decision.verdict, decision.reason) == ("exclude", "ghosts")
        assert "1 subject changed in this browser and since" in page.one("#decisions-about").text
        page.choose("show", "overtaken")
        assert page.names() == ["BraTS2021_00000"] * 2
        assert "keep (fine)" in page.all(".badge.warn")[0].get_attribute("title")
        page.open(0)
        said = page.one("#saved").text
        assert said.startswith("exclude, by C. D.") and "in this browser: keep (fine)" in said
        page.decide("keep", "looked again", "me")
        page.close()
        page.browser.refresh()
        assert [d.reason for d in read_decisions(page.downloaded())] == ["looked again"]
        page.choose("show", "overtaken")
        assert page.names() == []


@contextmanager
def recording(tree, rows):
    """The page as a run makes it that has these decisions on record."""
    before = tree.read_text(encoding="utf-8")
    head, start, rest = before.partition('"decisions":[')
    _, end, tail = rest.partition(',"decisions_file"')
    text = json.dumps(rows)[1:-1].replace("<", "\\u003c")
    tree.write_text(f"{head}{start}{text}]{end}{tail}", encoding="utf-8")
    try:
        yield
    finally:
        tree.write_text(before, encoding="utf-8")


def test_an_exclusion_can_be_taken_back(page):
    page.choose("show", "absent")
    page.open(0)
    assert "did not work on this scan" in page.one("#pictures").text
    page.decide("", whole=True)
    page.close()
    assert read_decisions(page.downloaded()) == []


def test_nothing_is_wider_than_a_narrow_window(page):
    def fits():
        return page.run("return document.documentElement.scrollWidth <= innerWidth")

    size = {"width": NARROW, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert fits()
        page.open(0)
        assert page.run(
            "const s = document.getElementById('scan'); return s.scrollWidth <= s.clientWidth"
        )
        page.close()
        page.one("#view").click()
        assert fits()
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_control_has_a_name_and_text_has_contrast(page):
    page.open(0)
    nameless = page.run(
        "return [...document.querySelectorAll('button, input, select, textarea, img')]"
        ".filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim() || e.alt))"
        ".map(e => e.outerHTML)"
    )
    assert nameless == []
    low = page.run(CONTRAST)
    assert low == []


#: Visible texts whose contrast with what is behind them is below 4.5 (WCAG 2.1, AA).
CONTRAST = """
const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const parts = text => text.match(/[\\d.]+/g).map(Number);
const behind = e => {
  for (; e; e = e.parentElement) {
    const c = parts(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c;
  }
  return [255, 255, 255];
};
return [...document.querySelectorAll('body *')].filter(e => !e.disabled
    && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())
    && e.getClientRects().length && !['SCRIPT', 'STYLE', 'OPTION'].includes(e.tagName))
  .filter(e => {
    const both = [light(parts(getComputedStyle(e).color)), light(behind(e))];
    const [a, b] = both.sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05) < 4.5;
  }).map(e => e.outerHTML.slice(0, 80));
"""


def test_1251_subjects_with_four_modalities_do_not_freeze_it(browser, tmp_path):
    table = measured(1251, ["T1", "T1CE", "T2", "FLAIR"])
    path = write_tree(tmp_path / "results", {"brats21": table}, pictures=False, phantom=False)
    assert path.stat().st_size < 3e6
    page = load(browser, path)
    assert "phantom" not in page.one("body").text
    ready = page.run("return performance.getEntriesByType('navigation')[0].domInteractive")
    assert ready < 2000 and len(page.all(".card")) == 48 and "of 5,004 scans" in page.status()
    # of a choice until the page is drawn again; the median of three, as others work here too
    timed = """
        const done = arguments[arguments.length - 1], times = [];
        const drawn = () => new Promise(go => requestAnimationFrame(() => setTimeout(go)));
        (async () => {
          for (const value of arguments[1]) {
            const start = performance.now(), select = document.getElementById(arguments[0]);
            select.value = value;
            select.dispatchEvent(new Event("change"));
            await drawn();
            times.push(performance.now() - start);
          }
          done(times.sort((a, b) => a - b)[1]);
        })();
    """
    for name, values in (
        ("sort", ["brain_ml", "flags", "name"]),
        ("show", ["flagged", "open", "all"]),
    ):
        assert browser.execute_async_script(timed, name, values) < 300, name
