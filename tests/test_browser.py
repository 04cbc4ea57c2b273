"""The page in a real browser, without a network: slider, sorting, copying, saving, dark mode, a
phone, hostile text.

Needs Playwright (in the dev extra) and a Chromium on the path (``apt-get install chromium``); skips
without them.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maskwise.report import write_comparison, write_report
from maskwise.report.page import write_policy_page
from maskwise.results.estimates import shown
from maskwise.studies.adapt import NextStep, Request
from maskwise.verdict import summarise
from report_fixture import make_records, make_samples, make_study, write_json, write_study
from tiny import maskwise

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"
)

ARMS = {"token-15": 0.0, "token-30": 0.03, "whole-word-15": 0.01}
EVIL = "</p><script>window.evil = 1</script><img src=x onerror='window.evil = 2'>"
PHONE = {"width": 390, "height": 844}
UNFOLD = "document.querySelectorAll('details').forEach((fold) => { fold.open = true; })"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def moments(samples: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Samples at three moments of a training: nothing is masked at the first, everything at the
    last.
    """
    for arm in samples.values():
        for sample in arm:
            states = ("shown", None, "masked")
            sample["moments"] = [
                {
                    "step": 100 * n,
                    "ratio": 0.5 * n,
                    "pieces": [
                        piece | ({"state": state} if state else {}) for piece in sample["pieces"]
                    ],
                }
                for n, state in enumerate(states)
            ]
    return samples


def make_page(folder: Path, *, words: list[str] | None = None, **changes: Any) -> Path:
    study = make_study(runs=6, arms=ARMS, **changes)
    records = make_records(study, ARMS)
    samples = moments(make_samples(study, words=words))
    return write_report(
        write_study(folder, study, records, summary=summarise(records, study), samples=samples)
    )


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_page(tmp_path_factory.mktemp("study"))


class Tab:
    """A page that is open, with what its console said and what it asked the network for."""

    def __init__(self, browser: Any, file: Path, **context: Any):
        self.context = browser.new_context(offline=True, accept_downloads=True, **context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on(
            "console",
            lambda said: self.complaints.append(said.text) if said.type == "error" else None,
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        # it is drawn when it comes near
        self.page.locator(".chart").first.scroll_into_view_if_needed()
        self.page.wait_for_selector(".chart svg", state="attached")

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *_: object) -> None:
        self.context.close()
        assert not self.complaints
        assert all(url.startswith(("file:", "blob:", "data:")) for url in self.requests), (
            self.requests
        )


def chips(page: Any) -> int:
    return page.locator(".version .chip:visible").count()


def test_the_slider_moves_through_the_training_and_boxes_choose_arms(
    browser: Any, page_file: Path
) -> None:
    with Tab(browser, page_file) as page:
        slider = page.locator("#moment")
        middle = chips(page)
        slider.focus()
        page.keyboard.press("ArrowLeft")
        assert chips(page) == 0 and page.locator(".explorer output").inner_text() == "beginning"
        page.keyboard.press("End")
        assert chips(page) > middle > 0 and slider.get_attribute("aria-valuetext") == "end"
        assert "step 200" in page.locator(".version:visible").first.inner_text()
        seen = page.locator(".version:visible").count()
        page.locator(".explorer [type=checkbox]").first.uncheck()
        assert page.locator(".version:visible").count() < seen
        page.emulate_media(media="print")
        assert (
            not page.locator(".explorer").is_visible() and not page.locator(".theme").is_visible()
        )


def test_tables_are_sorted_copied_and_charts_saved(browser: Any, page_file: Path) -> None:
    with Tab(browser, page_file) as page:
        table = page.locator("table.scores").first

        def numbers() -> list[float]:
            column = table.locator("tbody tr td:nth-child(2)").all_inner_texts()
            return [float(text.split()[0]) for text in column if text[0].isdigit()]

        head = table.locator("thead th:nth-child(2) button")
        head.click()
        assert numbers() == sorted(numbers(), reverse=True) and len(set(numbers())) > 1
        head.press("Enter")
        assert numbers() == sorted(numbers())
        assert table.locator("thead th:nth-child(2)").get_attribute("aria-sort") == "ascending"
        keep_what_is_copied(page)
        for name, begins in (("Markdown", "| "), ("CSV", "Arm,"), ("LaTeX", "% \\usepackage")):
            page.locator("table.scores").first.locator(
                "xpath=ancestor::*[contains(@class, 'scroll')]/following-sibling::p[1]"
            ).get_by_role("button", name=name).click()
            taken = page.evaluate("window.taken")
            assert taken.startswith(begins) and "token-30" in taken and len(taken.splitlines()) >= 4
        with page.expect_download() as waiting:
            page.locator(".save").first.click()
        drawing = Path(waiting.value.path()).read_text(encoding="utf-8")
        assert waiting.value.suggested_filename.endswith(".svg") and drawing.startswith("<svg")


def keep_what_is_copied(page: Any) -> None:
    page.evaluate(
        "navigator.clipboard.writeText = (text) => { window.taken = text; return "
        "Promise.resolve(); }"
    )


def test_differences_are_copied_with_interval_and_verdict(browser: Any, tmp_path: Path) -> None:
    """Only means and SDs were in a table, and LaTeX had no rules of booktabs."""
    study = make_study(runs=6, arms=ARMS)
    records = make_records(study, ARMS)
    summary = summarise(records, study)
    page_file = write_report(write_study(tmp_path, study, records, summary=summary, samples=None))
    rows = [row for row in summary["contrasts"] if row["primary"]]
    with Tab(browser, page_file) as page:
        keep_what_is_copied(page)
        table = page.locator("table.contrasts")
        fold = table.locator("xpath=ancestor::details")
        fold.locator("summary").click()
        copied = {}
        for name in ("Markdown", "CSV", "LaTeX"):
            fold.get_by_role("button", name=name).click()
            copied[name] = page.evaluate("window.taken").splitlines()
    assert len(copied["CSV"]) == 1 + len(summary["contrasts"])
    read = list(csv.DictReader(copied["CSV"]))
    for line, row in zip(read, rows):
        amount = shown(row)
        assert (line["arm"], line["against"]) == (row["arm"], row["baseline"])
        assert line["difference"] == f"{amount.figure()} points"
        assert line["95 % interval"] == amount.ends() and row["verdict"] in line["verdict"]
    assert {line["verdict"] for line in read[len(rows) :]} <= {"", "not comparable"}
    columns = re.escape("\\begin{tabular}{lllrrrl}")
    latex = copied["LaTeX"]
    assert re.fullmatch(columns, latex[1]) and latex[2] == "\\toprule" and latex[4] == "\\midrule"
    assert latex[-2:] == ["\\bottomrule", "\\end{tabular}"] and "95 \\% interval" in latex[3]
    # Every sign is one that LaTeX has without a package.
    assert all(line.isascii() and line.count("&") == 6 for line in latex[5:-2])


@pytest.mark.parametrize("width", [390, 1280])
def test_the_next_step_is_copied_as_a_command_and_as_python(
    width: int, browser: Any, tmp_path: Path
) -> None:
    """It was shell text in prose, also for users of Python."""
    study = make_study(runs=6, arms=ARMS)
    folder = write_study(tmp_path, study, make_records(study, ARMS), summary=None, samples=None)
    forms = Request(
        "bundled:encoder", "my texts.txt", Path("o 1"), ("a b.csv(label='x')",)
    ).invocation()
    step = NextStep("Keep it for now.", *forms)
    saved = {"sentence": "The model is in o 1/model.", "next": step._asdict(), "forgotten": ""}
    write_json(folder / "adapted.json", saved)
    with Tab(browser, write_report(folder), viewport={"width": width, "height": 800}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        keep_what_is_copied(page)
        copied = []
        for button in page.locator(".story .copy button").all():
            button.click()
            copied.append(page.evaluate("window.taken"))
        assert copied == [forms.command, forms.python]
        prose = page.locator(".story > p:not(.copy)").all_inner_texts()
        assert step.advice in prose and not any("--" in text for text in prose)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(scheme: str, browser: Any, page_file: Path) -> None:
    with Tab(browser, page_file, color_scheme=scheme) as page:

        def bright() -> bool:
            paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
            return sum(map(int, paper[4:-1].split(","))) > 384

        assert bright() is (scheme == "light")
        page.locator(".theme").click()
        assert bright() is (scheme == "dark")


def test_a_phone_never_scrolls_the_page_sideways(browser: Any, page_file: Path) -> None:
    with Tab(browser, page_file, viewport=PHONE, has_touch=True) as page:
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= PHONE["width"]
        tables = page.locator(".scroll:visible")
        # a wide table scrolls by itself
        assert tables.count() and tables.first.get_attribute("tabindex") == "0"


@pytest.mark.parametrize("width", [320, 1280])
def test_a_long_name_never_scrolls_the_page_sideways(
    width: int, browser: Any, tmp_path: Path
) -> None:
    arms = {"token-15": 0.0, "x" * 90: 0.03}
    study = make_study(runs=6, arms=arms)
    records = make_records(study, arms)
    summary = summarise(records, study)
    samples = moments(make_samples(study, words=["y" * 90, "plain"]))
    file = write_report(write_study(tmp_path, study, records, summary=summary, samples=samples))
    with Tab(browser, file, viewport={"width": width, "height": 800}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_long_text_never_scrolls_a_page_of_masks_sideways(browser: Any, tmp_path: Path) -> None:
    """Such as a sequence of DNA, or an address."""
    file = tmp_path / "masks.html"
    assert maskwise("inspect", "read " + "z" * 300, "--html", str(file)) == 0
    page = browser.new_page(viewport=PHONE)
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.close()


def test_hostile_text_is_text(browser: Any, tmp_path: Path) -> None:
    file = make_page(
        tmp_path, words=["plain", EVIL, "'\"&"], name=EVIL, description=EVIL, recipe_yaml=EVIL
    )
    with Tab(browser, file) as page:
        page.locator("#moment").press("End")
        for head in page.locator("thead th button:visible").all():
            head.click()
        assert (
            page.evaluate("window.evil") is None
            and page.locator("main script, main img").count() == 0
        )


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.slow), "dark"])
def test_axe_finds_nothing(scheme: str, browser: Any, page_file: Path) -> None:
    with Tab(browser, page_file, color_scheme=scheme) as page:
        page.evaluate(UNFOLD)
        assert violations(page) == []


def violations(page: Any) -> list[tuple[str, list[str]]]:
    """The rules of axe-core that a page breaks, with the first elements that do."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-core is not installed"
    )
    found = axe.Axe().run(page).response["violations"]
    return [(rule["id"], [node["html"][:160] for node in rule["nodes"]][:3]) for rule in found]


def page_of_masks(folder: Path) -> Path:
    assert maskwise("inspect", "Owls fly.", "--html", str(folder / "masks.html")) == 0
    return folder / "masks.html"


def page_of_layers(folder: Path) -> Path:
    (folder / "owls.txt").write_text("Owls fly at night. They hunt mice.\n" * 20)
    page = folder / "layers.html"
    told = ["--with", "words", "--with", "sentences", "--out", str(folder / "out")]
    assert maskwise("annotate", str(folder / "owls.txt"), *told, "--html", str(page)) == 0
    return page


def page_of_a_policy(folder: Path) -> Path:
    texts = [[["owls", 0.5, 2.0], ["fly", 1.5, 0.2]]]
    shown = {"examples": texts, "words": {"owls": [2.0, 7]}, "tags": {"NOUN": [2.0, 7]}}
    write_json(folder / "shown.json", shown)
    lines = [{"kind": "train", "step": step, "loss": 3.0 - step} for step in range(3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    measures = {"method": "supervised", "task": "t", "policy": "policy", "held_out": {"mrr": 0.5}}
    return write_policy_page(folder, title="t", measures=measures)


def page_of_two_studies(folder: Path) -> Path:
    two = [make_page(folder / name).parent for name in ("first", "second")]
    return write_comparison(*two)


OTHERS = (page_of_masks, page_of_layers, page_of_a_policy, page_of_two_studies)


@pytest.mark.parametrize("make", OTHERS, ids=lambda make: make.__name__)
def test_axe_finds_nothing_on_other_pages(make: Any, browser: Any, tmp_path: Path) -> None:
    """Of these pages, only those of studies had been looked at."""
    context = browser.new_context(offline=True, viewport=PHONE)
    page = context.new_page()
    page.goto(make(tmp_path).as_uri())
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    context.close()


def test_a_half_finished_study_says_what_is_missing(browser: Any, tmp_path: Path) -> None:
    study = make_study(runs=6, arms=ARMS)
    lost = {"kind": "task", "arm": "token-30", "seed": 5}
    records = [line for line in make_records(study, ARMS) if not lost.items() <= line.items()]
    folder = write_study(tmp_path, study, records, summary=None, samples=None)
    write_json(folder / "study.json", study | {"maskwise": "0.0.9"})
    with Tab(browser, write_report(folder)) as page:
        said = page.locator(".missing").inner_text()
        for part in (
            "no verdicts",
            "lacks a seed",
            "maskwise 0.0.9",
        ):
            assert part in said
        assert page.locator(".chart").count() > 2  # and the rest is shown
