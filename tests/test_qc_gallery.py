"""The gallery of scans in a real browser, from the file system, without a network."""

import re
import shutil
import time

import pytest

from tools.qc_trees import measured, write_gallery, write_pictures
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
EXCLUDED = {
    "dataset": "brats21", "subject": "BraTS2021_00999", "modality": "*", "verdict": "exclude",
    "reason": "no </script> brain", "reviewer": "A. B.", "date": "2026-01-02",
}  # fmt: skip


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
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.downloads = downloads
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """Writes the page as a run makes it that knows some decisions; its path.

    Two modalities with pictures; one scan is an outlier, one subject has warnings.
    """
    results = tmp_path_factory.mktemp("gallery") / "results"
    table = measured(SUBJECTS, MODALITIES).drop(columns=["flags", "why"])
    table.loc[table["name"] == "BraTS2021_00007", "overlap_dice"] = [0.2, 1.0]
    table.loc[table["name"] == "BraTS2021_00009", "warnings"] = "touches <the> end"
    write_pictures(results, table)
    return lambda *decisions: write_gallery(results, add_flags(table), decisions)


class Page:
    """The page as a reviewer uses it."""

    def __init__(self, browser, path):
        self.browser, self.path = browser, path
        browser.get(path.as_uri())
        browser.execute_script("localStorage.clear()")
        browser.refresh()

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def one(self, selector):
        (element,) = self.all(selector)
        return element

    def text(self, selector):
        return self.one(selector).text

    def choose(self, name, value):
        self.one(f"#{name} option[value='{value}']").click()

    def names(self):
        # at once: the page may draw them anew in between
        return self.run("return [...document.querySelectorAll('.card b')].map(e => e.textContent)")

    def open(self, number):
        self.all(".card")[number].click()

    def close(self):
        """Close a scan and wait until the address forgets it: a page that loads opens it again."""
        self.one("#close").click()
        self.until(lambda: self.run("return location.hash") == "")

    def keys(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def decide(self, verdict, whole=False, **texts):
        """Fill in the form as given, and save it."""
        self.run(
            "const form = document.getElementById('verdict').elements;"
            "const [verdict, whole, texts] = arguments;"
            "for (const radio of form.verdict) radio.checked = radio.value === verdict;"
            "form.whole.checked = whole;"
            "for (const [name, text] of Object.entries(texts)) form[name].value = text;",
            verdict, whole, texts,
        )  # fmt: skip
        self.one("#save").click()

    def until(self, condition, seconds=10):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.02)

    def file(self):
        """The decision file that it downloads, as the workflow reads it."""
        path = self.browser.downloads / "qc_decisions.tsv"
        path.unlink(missing_ok=True)
        self.one("#download").click()
        self.until(path.exists)
        return {
            (d.subject[-3:], d.modality): d for d in read_decisions(path, {"brats21": MODALITIES})
        }


@pytest.fixture
def page(browser, record):
    """The page, fresh, and without anything that an earlier test decided."""
    browser.get_log("browser")
    yield Page(browser, record(EXCLUDED))
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors


# --- all scans


def test_it_opens_says_phantom_and_names_no_address_of_the_network(page):
    assert "phantom data" in page.text("h1")
    assert page.text("#status").startswith(f"1 to 48 of {2 * SUBJECTS + 1} scans, 1 flagged")
    assert not re.search(r"https?:|[\"'(]//", page.path.read_text(encoding="utf-8"))


def test_pictures_load_and_a_tile_is_cut_out_of_its_sheet_at_the_place_of_the_scan(page):
    def shown(image):
        page.until(lambda: page.run("return arguments[0].naturalWidth", image) > 0)
        return image.get_attribute("alt")

    page.choose("modality", "T1")
    page.all("nav.pages button")[-1].click()  # the second sheet: scans 49 to 60
    image = page.all(".card img")[7]
    page.run("arguments[0].scrollIntoView()", image)
    assert shown(image) and image.get_attribute("src").endswith("brats21_T1_sheet-1.webp")
    left, top, width = page.run(
        "const a = arguments[0].getBoundingClientRect();"
        "const b = arguments[0].parentElement.getBoundingClientRect();"
        "return [(b.left - a.left) / b.width, (b.top - a.top) / b.height, a.width / b.width]",
        image,
    )
    assert (round(left, 2), round(top, 2), round(width, 2)) == (1, 1, 6)
    page.open(3)
    assert len([shown(image) for image in page.all("#pictures img")]) == 3


def test_it_filters_by_modality_flag_subject_and_verdict(page):
    page.choose("modality", "FLAIR")
    # who was excluded was so in all modalities
    assert f"of {SUBJECTS + 1} scans" in page.text("#status")
    page.choose("modality", "")
    for value, names in (("flagged", ["BraTS2021_00007"]), ("warned", ["BraTS2021_00009"] * 2)):
        page.choose("show", value)
        assert page.names() == names
    page.choose("show", "all")
    page.one("#search").send_keys("2021_00012")
    page.until(lambda: page.names() == ["BraTS2021_00012"] * 2)
    page.one("#search").clear()
    page.choose("show", "exclude")
    page.until(lambda: page.names() == ["BraTS202100999"])
    assert page.all(".card .exclude")


def test_it_sorts_by_any_measure_both_ways_and_in_the_table(page):
    page.choose("sort", "overlap_dice")
    assert page.names()[0] == "BraTS2021_00007"
    page.one("#direction").click()
    assert page.names()[0] != "BraTS2021_00007"
    page.one("#view").click()
    head = page.one("th[aria-sort=descending]")
    assert head.text.startswith("overlap with the atlas")
    head.find_element("css selector", "button").click()
    assert page.all("#scans tbody button")[0].text == "BraTS2021_00007"


# --- one scan


def test_a_scan_shows_value_median_flag_and_the_keyboard_goes_through(page):
    from selenium.webdriver.common.keys import Keys

    page.choose("show", "flagged")
    page.open(0)
    assert page.text("#scan-title") == "brats21 BraTS2021_00007 T1"
    row = next(e.text for e in page.all("#measures tbody tr") if "overlap" in e.text)
    assert "0.2 ⚑" in row and len(row.split()) > 5
    assert "Flagged: overlap with the atlas 0.2 (median" in page.text("#measures")
    page.keys(Keys.ESCAPE)
    page.choose("show", "all")
    page.open(0)
    page.keys(Keys.ARROW_RIGHT)
    assert page.text("#scan-place") == f"2 of {2 * SUBJECTS + 1}"
    page.keys(Keys.ARROW_LEFT)
    assert not page.one("#previous").is_enabled()
    page.keys(Keys.ESCAPE)
    assert page.one("#scan").get_attribute("open") is None
    # a scan has an address of its own
    page.browser.get(f"{page.path.as_uri()}#brats21/BraTS202100053/FLAIR")
    page.browser.refresh()
    assert page.text("#scan-title") == "brats21 BraTS2021_00053 FLAIR"


# --- decisions


def test_what_a_reviewer_decides_is_a_file_that_the_workflow_reads(page):
    page.open(2)
    page.decide("exclude")
    assert page.text("#saved") == "Say why it is excluded."
    page.decide("exclude", reason="pasted\tword", reviewer="C. D.")
    page.one("#next").click()
    assert page.run("return document.getElementById('verdict').elements.verdict.value") == ""
    page.one("#next").click()
    page.keys("k")
    page.close()
    assert "2 subjects changed in this browser" in page.text("#changed")
    found = page.file()
    assert {key: d.verdict for key, d in found.items()} == {
        ("001", "T1"): "exclude", ("002", "T1"): "keep", ("999", "*"): "exclude",
    }  # fmt: skip
    decision = found["001", "T1"]
    assert (decision.reason, decision.reviewer) == ("pasted word", "C. D.")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", decision.date)
    # what was recorded before stays as it was
    assert found["999", "*"].reason == EXCLUDED["reason"]


def test_a_verdict_on_one_scan_and_one_on_all_do_not_contradict_each_other(page):
    page.open(0)
    page.decide("exclude", reason='all are "bad", really', whole=True)
    page.one("#next").click()  # the other scan of the subject
    assert page.one("#reason").get_attribute("value") == 'all are "bad", really'
    page.decide("keep", reason="but this one")
    page.close()
    found = {key: d.verdict for key, d in page.file().items() if key[0] == "000"}
    assert found == {("000", "T1"): "exclude", ("000", "FLAIR"): "keep"}
    page.open(0)
    page.decide("unsure", whole=True)
    page.close()
    assert [key for key in page.file() if key[0] == "000"] == [("000", "*")]


def test_verdicts_outlive_the_page_and_a_file_can_be_loaded(page, tmp_path):
    page.open(0)
    page.decide("keep")
    page.close()
    page.browser.refresh()
    page.choose("show", "keep")
    assert page.names() == ["BraTS2021_00000"]
    other = tmp_path / "other.tsv"
    head = "dataset\tsubject\tmodality\tverdict\treason\n"
    other.write_text(f'{head}brats21\tBraTS2021_00004\tT1\tkeep\t"says ""yes"""\n')
    page.one("#load").send_keys(str(other))
    page.until(lambda: page.names() == ["BraTS2021_00000", "BraTS2021_00004"])
    assert page.file()["004", "T1"].reason == 'says "yes"'
    other.write_text("dataset\tverdict\nbrats21\tkeep\n")
    page.one("#load").send_keys(str(other))
    page.until(lambda: "lacks the column subject" in page.text("#said"))


def test_a_file_that_was_changed_since_wins_over_this_browser_until_one_decides_again(page, record):
    page.open(0)
    page.decide("keep", reason="fine")
    page.close()
    record(page.file()["000", "T1"]._asdict())  # the file has it by now: no change any more
    page.browser.refresh()
    assert "in this browser" not in page.text("#changed")
    assert not page.one("#discard").is_enabled()
    page.open(0)
    page.decide("keep", reason="quite fine")
    page.close()
    record({**EXCLUDED, "subject": "BraTS202100000", "modality": "T1", "reason": "ghosts"})
    page.browser.refresh()
    assert [(d.verdict, d.reason) for d in page.file().values()] == [("exclude", "ghosts")]
    assert "1 subject changed in this browser and since" in page.text("#changed")
    page.choose("show", "overtaken")
    assert page.names() == ["BraTS2021_00000"] * 2
    page.open(0)
    said = page.text("#saved")
    assert said.startswith("exclude, by A. B.") and "in this browser: keep (quite fine)" in said
    page.decide("keep", reason="looked again")
    page.close()
    page.browser.refresh()
    assert [d.reason for d in page.file().values()] == ["looked again"]


def test_an_exclusion_can_be_taken_back(page):
    page.choose("show", "absent")
    page.open(0)
    assert "did not work on this scan" in page.text("#pictures")
    page.decide("", whole=True)
    page.close()
    assert page.file() == {}


# --- layout and speed


def test_nothing_is_wider_than_a_narrow_window(page):
    fits = "const e = document.querySelector(arguments[0]); return e.scrollWidth <= e.clientWidth"
    size = {"width": NARROW, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert page.run(fits, "html")
        page.open(0)
        assert page.run(fits, "#scan")
        page.close()
        page.one("#view").click()
        assert page.run(fits, "html")
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_control_has_a_name(page):
    page.open(0)
    nameless = page.run(
        "return [...document.querySelectorAll('button, input, select, textarea, img')]"
        ".filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim() || e.alt))"
        ".map(e => e.outerHTML)"
    )
    assert nameless == []


#: Median time of three choices until the page is drawn again; others work here, too.
TIMED = """
const done = arguments[arguments.length - 1], times = [];
(async () => {
  for (const value of arguments[1]) {
    const start = performance.now(), select = document.getElementById(arguments[0]);
    select.value = value;
    select.dispatchEvent(new Event("change"));
    await new Promise(go => requestAnimationFrame(() => setTimeout(go)));
    times.push(performance.now() - start);
  }
  done(times.sort((a, b) => a - b)[1]);
})();
"""


def test_1251_subjects_with_four_modalities_do_not_freeze_it(browser, tmp_path):
    table = measured(1251, ["T1", "T1CE", "T2", "FLAIR"])
    page = Page(browser, write_gallery(tmp_path / "results", table, phantom=False))
    assert page.path.stat().st_size < 3e6 and "phantom" not in page.text("body")
    ready = page.run("return performance.getEntriesByType('navigation')[0].domInteractive")
    assert ready < 2000 and len(page.names()) == 48 and "of 5,004 scans" in page.text("#status")
    choices = {"sort": ["brain_ml", "flags", "name"], "show": ["flagged", "open", "all"]}
    for name, values in choices.items():
        assert browser.execute_async_script(TIMED, name, values) < 300, name
