"""What every page of flowers/reports can do, in a browser: sort, filter, stay readable, stay offline."""

import re

import jinja2
import pytest

from flowers.reports.page import templates, write_page

TEMPLATE = """\
{% extends "base.html" %}
{% block content %}
<section>
<input data-filters="flowers" aria-label="filter"> <span id="flowers-count"></span>
<div class="scroll"><table id="flowers" class="sortable">
<thead><tr><th><button>name</button></th><th><button>images</button></th><th><button>top1</button></th></tr></thead>
<tbody>
{% for name, images, top1 in rows %}
<tr><td class="name">{{ name }}</td><td class="number">{{ images }}</td>
<td class="number" data-value="{{ top1 }}">{{ top1|percent }}</td></tr>
{% endfor %}
</tbody></table></div>
<p class="note">a note</p> <p><a href="#flowers">a link</a></p>
</section>
{% endblock %}
"""
ROWS = [("b10", 9, 0.5), ("<script>alert(1)</script>", 100, 0.125), ("b9", 20, 1.0), ("long" * 100, 1, 0.0)]


@pytest.fixture(scope="module")
def page_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "page.html"
    with pytest.MonkeyPatch.context() as patch:
        both = jinja2.ChoiceLoader([jinja2.DictLoader({"made.html": TEMPLATE}), templates().loader])
        patch.setattr(templates(), "loader", both)
        write_page(path, "made.html", title="<b>made</b>", rows=ROWS)
    return path.as_uri()


def column_of(page: object, table: str, index: int) -> list[str]:
    """The shown cells of a table's column, from the top."""
    return page.locator(f"#{table} tbody tr:visible td:nth-child({index})").all_inner_texts()


def column(page: object, index: int) -> list[str]:
    return column_of(page, "flowers", index)


def test_a_click_sorts_and_another_one_turns_round(page_url: str, open_page) -> None:
    page = open_page(page_url).page
    heading = page.locator("#flowers th").nth(1)
    heading.locator("button").click()
    assert column(page, 2) == ["1", "9", "20", "100"], "as numbers, not as text"
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    assert column(page, 2) == ["100", "20", "9", "1"]
    page.locator("#flowers th button").nth(2).click()
    assert column(page, 3) == ["0.0%", "12.5%", "50.0%", "100.0%"]
    assert heading.get_attribute("aria-sort") is None
    page.locator("#flowers th button").nth(0).click()
    names = column(page, 1)
    assert names.index("b9") < names.index("b10"), "numbers in names count as numbers"


def test_what_is_typed_filters(page_url: str, open_page) -> None:
    page = open_page(page_url).page
    assert page.inner_text("#flowers-count") == "4 of 4"
    page.fill("input[data-filters]", "  B1")
    assert column(page, 1) == ["b10"]
    assert page.inner_text("#flowers-count") == "1 of 4"
    page.fill("input[data-filters]", "")
    assert len(column(page, 1)) == 4


def test_nothing_is_fetched_and_names_are_only_text(page_url: str, open_page) -> None:
    watched = open_page(page_url)
    assert watched.requests == [page_url]
    assert watched.errors == []
    assert watched.exceptions == []
    assert "<script>alert(1)</script>" in column(watched.page, 1)
    assert watched.page.inner_text("h1") == "<b>made</b>"


def test_the_page_cannot_fetch_even_if_told_to(page_url: str, open_page) -> None:
    """Its own policy holds, whatever somebody managed to get into it."""
    watched = open_page(page_url)
    add = "new Promise(done => { const image = new Image(); image.onerror = image.onload = event => done(event.type); "
    add += "image.src = 'http://127.0.0.1:9/x.png'; document.body.append(image); })"
    assert watched.page.evaluate(add) == "error"
    assert any("Content Security Policy" in error for error in watched.errors)


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_whole_and_with_contrast(page_url: str, dark: bool, open_page) -> None:
    watched = open_page(page_url, phone=True, dark=dark)
    assert watched.overflow() <= 0
    for selector in ("h1", "td.name", ".note", "footer", "section a", "th button", "input[data-filters]"):
        assert contrast(watched.page, selector) >= 4.5, f"{selector}: WCAG 2.1, level AA"
    page = watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(page) < 0.1) == dark


def contrast(page: object, selector: str) -> float:
    """Of an element's letters to what lies behind them, 1 to 21; https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio."""
    letters, behind = page.locator(selector).first.evaluate(
        """element => {
          const letters = getComputedStyle(element).color;
          const clear = node => /, 0\\)$|transparent/.test(getComputedStyle(node).backgroundColor);
          while (clear(element) && element.parentElement) element = element.parentElement;
          return [letters, getComputedStyle(element).backgroundColor];
        }"""
    )
    light, dark = sorted((luminance(letters), luminance(behind)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)``, 0 to 1; https://www.w3.org/TR/WCAG21/#dfn-relative-luminance."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
