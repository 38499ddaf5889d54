"""The book of `make book` and the report, in a real browser: whole, readable at two widths, without a network."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest
from browser import Browser, open_browser, serve_folder

from rlhflow_utils.guide.publishing import NOTEBOOKS, write_report
from rlhflow_utils.guide.stage import PROJECT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
PHONE, LAPTOP = 390, 1280
CHAPTERS = [f"notebooks/{path.stem}.html" for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
FACTS = """(() => {
  const all = (selector, value) => [...document.querySelectorAll(selector)].map(value);
  return {
    title: document.title, ids: all("[id]", each => each.id), links: all("a[href]", each => each.href),
    broken: all("img", each => each).filter(each => !(each.complete && each.naturalWidth)).map(each => each.src),
    next: all("a.next-page", each => each.href), formulas: all("span.math, div.math", each => each).length,
    drawn: all("mjx-container > svg", each => each).length,
    misread: all("mjx-container [data-mjx-error]", each => each.textContent),
  };
})()"""
# A wide table scrolls in the box around it. The page itself does not scroll sideways, and nothing is cut off.
OVERFLOW = """((width) => {
  const page = document.documentElement.scrollWidth, found = page > width + 1 ? [`the page is ${page} px wide`] : [];
  for (const each of document.querySelectorAll("table, pre, img, mjx-container")) {
    let box = each;
    while (box !== document.body && !["auto", "scroll"].includes(getComputedStyle(box).overflowX)) {
      if (getComputedStyle(box).overflowX !== "visible" && box.scrollWidth > box.clientWidth + 1)
        found.push(`${each.tagName} is cut off`);
      box = box.parentElement;
    }
    const right = (box === document.body ? each : box).getBoundingClientRect().right;
    if (right > width + 1) found.push(`${each.tagName} reaches to ${right.toFixed(0)} px`);
  }
  return found;
})"""


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book, built by the command in the Makefile."""
    for module in ("sphinx", "myst_nb", "furo", "mathjax"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed (make book, or make test EXTRAS=dev,book)")
    plan = subprocess.run(["make", "-n", "book"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    command = next(line for line in plan.splitlines() if "-m sphinx" in line)
    places = {"runs/book": str(tmp_path_factory.mktemp("book")), "runs/.book": str(tmp_path_factory.mktemp("parsed"))}
    arguments = [places.get(word, word) for word in shlex.split(command)[1:]]
    built = subprocess.run([sys.executable, *arguments], cwd=PROJECT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return Path(places["runs/book"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def site(book: Path) -> Iterator[str]:
    with serve_folder(book) as address:
        yield f"{address}/"


@pytest.fixture(scope="module")
def pages(book: Path, site: str, browser: Browser) -> dict[str, dict[str, Any]]:
    """What the browser found on every page of the book: page to facts."""
    return {
        path.relative_to(book).as_posix(): _visit(browser, f"{site}{path.relative_to(book).as_posix()}")
        for path in sorted(book.rglob("*.html"))
    }


def _visit(browser: Browser, url: str) -> dict[str, Any]:
    browser.errors.clear()
    browser.requests.clear()
    browser.resize(LAPTOP)
    browser.open(url)
    facts: dict[str, Any] = browser.run(FACTS)
    facts["overflow", LAPTOP] = browser.run(f"{OVERFLOW}({LAPTOP})")
    browser.resize(PHONE)
    facts["overflow", PHONE] = browser.run(f"{OVERFLOW}({PHONE})")
    return facts | {"errors": [*browser.errors], "requests": [*browser.requests]}


def test_every_page_of_the_project_is_a_page_of_the_book(pages: dict[str, dict[str, Any]]) -> None:
    texts = [*PROJECT.glob("*.md"), *PROJECT.glob("data_cards/*.md"), *PROJECT.glob("docs/*.md")]
    wanted = {path.relative_to(PROJECT).with_suffix(".html").as_posix() for path in texts}
    assert len(CHAPTERS) == 13
    assert set(pages) == wanted | {*CHAPTERS, "results/claims/README.html", "index.html", "search.html"}


def test_pages_load_without_errors_and_without_a_network(pages: dict[str, dict[str, Any]], site: str) -> None:
    assert {page: facts["errors"] for page, facts in pages.items() if facts["errors"]} == {}
    outside = {url for facts in pages.values() for url in facts["requests"] if not url.startswith((site, "data:"))}
    assert outside == set()


def test_links_and_pictures_resolve(pages: dict[str, dict[str, Any]], site: str, book: Path) -> None:
    assert {page: facts["broken"] for page, facts in pages.items() if facts["broken"]} == {}
    dead = set()
    for page, facts in pages.items():
        for link in facts["links"]:
            url, fragment = urldefrag(link)
            if not url.startswith(site):
                assert url.startswith("https://"), f"{page}: {link}"
                continue
            name = unquote(url.removeprefix(site)) or "index.html"
            if not (book / name).is_file() or (fragment and unquote(fragment) not in pages[name]["ids"]):
                dead.add(f"{page}: {link}")
    assert dead == set()


@pytest.mark.parametrize("width", [PHONE, LAPTOP])
def test_nothing_is_wider_than_the_window(pages: dict[str, dict[str, Any]], width: int) -> None:
    assert {page: found for page, facts in pages.items() if (found := facts["overflow", width])} == {}


def test_formulas_are_drawn(pages: dict[str, dict[str, Any]]) -> None:
    """A formula that MathJax cannot read would show its source in red."""
    counts = {page: (facts["formulas"], facts["drawn"], facts["misread"]) for page, facts in pages.items()}
    assert {page: count for page, count in counts.items() if count[0] != count[1] or count[2]} == {}
    assert counts["notebooks/09_iterative_dpo.html"][0] >= 5


def test_the_next_button_leads_through_the_chapters(pages: dict[str, dict[str, Any]], site: str) -> None:
    page, read = "README.html", []
    for _ in CHAPTERS:
        page = pages[page]["next"][0].removeprefix(site)
        read.append(page)
    assert read == CHAPTERS


def test_dark_mode_is_switched_on_and_kept(site: str, browser: Browser, pages: dict[str, dict[str, Any]]) -> None:
    lightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
    switch = "[...document.querySelectorAll('.theme-toggle')].find(each => each.offsetParent).click()"
    browser.resize(LAPTOP)
    browser.open(f"{site}README.html")
    assert browser.run(lightness) > 600
    for _ in range(3):  # light, dark, as the system
        if browser.run("document.body.dataset.theme") != "dark":
            browser.run(switch)
    browser.open(f"{site}{CHAPTERS[3]}")
    assert browser.run("document.body.dataset.theme") == "dark"
    assert browser.run(lightness) < 150
    browser.run("localStorage.clear()")


def test_search_finds_the_chapter(site: str, browser: Browser, pages: dict[str, dict[str, Any]]) -> None:
    browser.open(f"{site}search.html?q=decontamination")
    browser.wait("document.querySelector('#search-results .search-summary')?.textContent.includes('found')")
    found = browser.wait("[...document.querySelectorAll('#search-results li a')].map(each => each.href)")
    assert CHAPTERS[1] in {urldefrag(link)[0].removeprefix(site).partition("?")[0] for link in found}


def test_the_report_is_one_page_that_reads_on_a_phone(tmp_path: Path, browser: Browser) -> None:
    (tmp_path / "notebooks").mkdir()
    shutil.copy(NOTEBOOKS / "12_reproduction_report.ipynb", tmp_path / "notebooks")
    assert write_report(tmp_path)
    page = (tmp_path / "report.html").as_uri()
    facts = _visit(browser, page)
    assert facts["errors"] == facts["broken"] == []
    assert {url for url in facts["requests"] if not url.startswith("data:")} == {page}
    assert facts["overflow", PHONE] == facts["overflow", LAPTOP] == []
    assert browser.run("document.querySelectorAll('table').length") > 5
    assert [link for link in facts["links"] if not link.startswith((f"{page}#", "https://"))] == []
    inside = {urldefrag(link)[1] for link in facts["links"] if link.startswith(f"{page}#")}
    assert {fragment for fragment in inside if not {fragment, unquote(fragment)} & set(facts["ids"])} == set()
