"""The site that ``make docs`` builds, opened from a folder: pages, search, a phone."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from test_browser import PHONE, UNFOLD, pytestmark, sync_api  # noqa: F401  (the mark skips without Chromium)
from test_browser import browser as browser

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("mkdocs", reason="mkdocs is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-d", folder]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


@pytest.fixture
def page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A tab without a network. Nothing may fail, and nothing may be asked of another host."""
    context = browser.new_context(offline=True, **getattr(request, "param", {}))
    page = context.new_page()
    page.set_default_timeout(60_000)
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    yield page
    context.close()
    assert not complaints
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


def pages_of(site: Path) -> list[Path]:
    """Return the pages of docs/ and of the notebooks; 404.html needs a server."""
    pages = [*site.glob("*.html"), *site.glob("notebooks/*.html")]
    return sorted(path for path in pages if path.name != "404.html")


def found(page: Any, site: Path, words: str) -> list[str]:
    """Return the places of what the search finds, in its order."""
    page.goto((site / "index.html").as_uri())
    page.locator(".md-search__input").click()
    page.keyboard.type(words)
    page.wait_for_selector(".md-search-result__item a")
    links = page.locator(".md-search-result__item a").all()
    return [link.get_attribute("href").partition(f"{site.as_uri()}/")[2] for link in links]


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("packing", "drop-ins.html#packing"),
        ("corpus.held_out", "recipe.html#corpusheld_out"),
        ("slurm", "scaling.html#slurm"),
    ],
)
def test_the_search_finds_the_section_from_a_folder(
    page: Any, site: Path, words: str, place: str
) -> None:
    assert any(link.startswith(place) for link in found(page, site, words))


def test_notebooks_and_results_are_pages(page: Any, site: Path) -> None:
    page.goto((site / "notebooks" / "adapt.html").as_uri())
    assert page.locator("article pre").count() >= 8
    assert page.locator("article a[href$='adapt.ipynb']").count() == 1
    page.goto((site / "results.html").as_uri())
    assert page.locator("article img").count() == 4
    assert page.locator("article h2#in-short").count() == 1
    # Of its links, none leads out of the site.
    links = [link.get_attribute("href") for link in page.locator("article a").all()]
    assert [link for link in links if link.startswith("../")] == []


@pytest.mark.parametrize("page", [{"viewport": PHONE}], indirect=True, ids=["phone"])
def test_no_page_scrolls_sideways_on_a_phone(page: Any, site: Path) -> None:
    for file in pages_of(site):
        page.goto(file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], file.name


def test_the_menu_has_every_page(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    linked = set(re.findall(r'<a href="([\w/-]+\.html)" class="md-nav__link', home))
    pages = {path.relative_to(site).as_posix() for path in pages_of(site)} - {"index.html"}
    assert pages <= linked


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [{"viewport": PHONE}, {"color_scheme": "dark"}], indirect=True, ids=["phone", "dark"]
)
def test_axe_finds_nothing(page: Any, site: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for file in [*pages_of(site), *sorted(site.glob("gallery/*.html"))]:
        page.goto(file.as_uri())
        page.evaluate(UNFOLD)
        violations = axe.run(page).response["violations"]
        assert [rule["id"] for rule in violations] == [], file.name
