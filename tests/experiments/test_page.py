"""The report, in a browser: it sorts, keeps controls in sight, fits, and complains of nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, sync_playwright

from kvnet.experiments.report import make_page
from kvnet.experiments.table import make_table
from tests.experiments.runs import write_run

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
WIDTHS = (1280, 400)


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    path = folder / "run.html"
    path.write_text(make_page([make_table([write_run(folder)])]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except Error as exc:
            pytest.skip(f"no Chromium here: {str(exc).splitlines()[0]}")
        yield started
        started.close()


def test_page_loads_nothing_and_escapes_what_a_log_says(page_path: Path) -> None:
    page = page_path.read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert 'src="' not in page
    assert "@import" not in page
    assert "kvnet exp plot keep-" in page
    assert "kvnet exp run keep --sweep fraction=0.25,0.5,1.0" in page


def test_page_of_several_runs_lists_them_and_keeps_their_tables_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path), write_run(tmp_path)]
    page = make_page([make_table([run]) for run in runs])
    for place, run in enumerate(runs):
        assert f'<article id="run-{place}"><h2 class="run">{run.name}' in page
        assert page.count(f'id="rows-{place}"') == page.count(f'data-table="rows-{place}"') == 1


@pytest.mark.browser
@pytest.mark.parametrize("width", WIDTHS)
def test_page_fits_and_complains_of_nothing(browser: Browser, page_path: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if "file:" not in request.url else None)
    page.goto(page_path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shot = page.screenshot(full_page=True, path=page_path.with_name(f"{width}.png"))
    assert len(shot) > 10_000
    assert [line for line in said if not line.startswith("data:")] == []


@pytest.mark.browser
def test_table_sorts_both_ways_and_a_filter_leaves_controls(browser: Browser, page_path: Path) -> None:
    page = browser.new_page()
    page.goto(page_path.as_uri())
    heads = page.locator("#rows-0 thead th").all_inner_texts()
    column = [head.split()[0] for head in heads].index("right")
    button = page.locator("#rows-0 thead button").nth(column)
    rows = "[...document.querySelectorAll('#rows-0 tbody tr')]"
    values = f"{rows}.map(row => Number(row.cells[{column}].dataset.value))"
    button.click()
    assert page.evaluate(values) == sorted(page.evaluate(values))
    button.click()
    assert page.evaluate(values) == sorted(page.evaluate(values), reverse=True)
    assert page.locator("#rows-0 thead th").nth(column).get_attribute("aria-sort") == "descending"
    page.locator("input.filter").fill("zeroed")
    shown = page.locator("#rows-0 tbody tr:visible").all_inner_texts()
    assert {line.split()[0] for line in shown} == {"zeroed", "none", "text"}
