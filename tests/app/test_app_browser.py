"""The page as a visitor sees it, in a real headless Chromium.

Every visit ends with two checks (the fixture `visit`): the console was silent, and no request left the app's own host.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


PHONE = {"width": 390, "height": 844}
HOSTILE = [
    "<script>document.title='taken'</script> about bees",
    "**bold** and [a link](javascript:alert(1)) about bees",
    "<img src=x onerror=\"document.title='taken'\"> about bees",
    "${document.title='taken'} {{value}} {{#each value}} `tick` about bees",
]


def save(page: Any, name: str) -> None:
    """A picture of the page, where TSARANK_SCREENSHOTS names a folder."""
    folder = os.environ.get("TSARANK_SCREENSHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def places(page: Any) -> list[tuple[str, str]]:
    """(place, movement) of every row of the list."""
    rows = page.locator("#ranking .ts-row")
    return [
        (row.locator(".ts-place").inner_text(), row.locator(".ts-move").inner_text().replace("\xa0", " "))
        for row in rows.all()
    ]


def choose(page: Any, source: str) -> None:
    page.locator("#source").get_by_text(source, exact=True).click()


def rank(page: Any, query: str) -> None:
    """Types a query and presses the button."""
    page.locator("#query textarea").fill(query)
    page.locator("#rank").click()


def test_a_visitor_sees_a_ranking_at_once_and_asks_for_another(served: Any, visit: Callable[..., Any]) -> None:
    page = visit(served.url).page
    first = places(page)
    assert [place for place, _ in first] == [str(n) for n in range(1, 11)]
    assert all(re.fullmatch(r"=|[▲▼] \d+", move) for _, move in first)
    assert "first stage: BM25" in page.locator("#ranking .ts-facts").inner_text()
    save(page, "desktop-ranking")
    rank(page, "which bees waggle")
    page.wait_for_selector("#ranking >> text=The waggle dance")
    assert re.search(r"\d+ documents · \d[\d,]* tokens · \d+\.\d\d", page.locator("#ranking .ts-facts").inner_text())


def test_an_example_query_is_ranked_with_a_click(served: Any, visit: Callable[..., Any]) -> None:
    page = visit(served.url).page
    assert "Choosing a gear" not in page.locator("#ranking").inner_text()
    page.get_by_role("button", name="when does a bicycle chain need to be replaced").click()
    page.wait_for_selector("#ranking >> text=Choosing a gear")
    # Filled in by the same click, but not always before the ranking is there.
    value = "document.querySelector('#query textarea').value"
    page.wait_for_function(f"{value} === 'when does a bicycle chain need to be replaced'")


def test_pasted_documents(served: Any, visit: Callable[..., Any]) -> None:
    page = visit(served.url).page
    choose(page, "Paste")
    page.locator("#pasted textarea").fill("Honey is sweet.\nWax melts.\nBread rises.")
    rank(page, "bees")
    page.wait_for_selector("#ranking >> text=Wax melts.")
    assert len(places(page)) == 3
    assert "first stage: given order" in page.locator("#ranking .ts-facts").inner_text()


@pytest.mark.parametrize(
    ("name", "content", "shown"),
    [
        ("notes.txt", "Honey is sweet.\n\nWax melts.\n", "Wax melts."),
        ("notes.jsonl", '{"_id": "w", "title": "Wax", "text": "melts."}\n{"_id": "h", "text": "Honey"}\n', "melts."),
    ],
)
def test_an_uploaded_file(
    served: Any, visit: Callable[..., Any], tmp_path: Path, name: str, content: str, shown: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    page = visit(served.url).page
    choose(page, "Upload")
    page.locator("#upload input[type=file]").set_input_files(str(path))
    page.wait_for_selector(f"#upload >> text={path.stem}")
    rank(page, "bees")
    page.wait_for_selector(f"#ranking >> text={shown}")
    assert len(places(page)) == 2


def test_why_and_two_documents_side_by_side(served: Any, visit: Callable[..., Any]) -> None:
    page = visit(served.url).page
    rank(page, "which bees waggle")
    page.wait_for_selector("#ranking >> text=The waggle dance")
    page.locator("#ranking .ts-why").nth(2).click()
    # The ranking explains its own choice of documents as well, so that the panel may show another pair first.
    page.wait_for_selector("#why .ts-side:nth-child(2) >> text=place 3")
    sides = page.locator("#why .ts-side")
    assert sides.count() == 3
    assert "place 1" in sides.nth(0).inner_text()
    words = [token.inner_text() for token in sides.nth(0).locator(".ts-word").all()]
    assert "".join(words) == "whichbeeswaggle"
    values = [float(v.inner_text().replace("\u2212", "-")) for v in sides.nth(0).locator(".ts-value").all()]
    assert all(value <= 0 for value in values)
    tints = {
        token.evaluate("e => getComputedStyle(e).backgroundColor") for token in page.locator("#why .ts-token").all()
    }
    assert len(tints) > 2, "tokens are coloured by their value"
    save(page, "desktop-why")
    page.locator("#second input").click()
    page.get_by_role("option").nth(4).click()
    page.wait_for_selector("#why .ts-side:nth-child(2) >> text=place 5")


def test_the_two_logits_of_a_true_false_model(served: Any, visit: Callable[..., Any]) -> None:
    page = visit(served.url).page
    page.locator("#model input").click()
    page.get_by_role("option", name="logits").click()
    rank(page, "which bees waggle")
    page.wait_for_selector("#ranking .ts-facts >> text=logits")
    page.locator("#ranking .ts-why").nth(1).click()
    page.wait_for_selector("#why .ts-logit")
    answers = [answer.inner_text() for answer in page.locator("#why .ts-side").nth(0).locator(".ts-answer").all()]
    assert answers == ["true", "false"]
    save(page, "desktop-logits")


def test_two_models_compared(served: Any, visit: Callable[..., Any]) -> None:
    page = visit(served.url).page
    page.get_by_role("tab", name="Compare").click()
    page.locator("#go-compare").click()
    page.wait_for_selector("#compared .ts-table tbody tr")
    assert page.locator("#compared tbody tr").count() == 10
    assert re.search(r"Same order in \d+ of 45 pairs", page.locator("#compared").inner_text())
    save(page, "desktop-compare")


def test_wrong_input_is_said_where_the_result_would_be(served: Any, visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit(served.url).page

    def said(message: str) -> None:
        page.wait_for_selector(f'#ranking [role=alert] >> text="{message}"')

    rank(page, "   ")
    said("the query is empty; a query needs at least one character that is not white space")
    rank(page, "xylophone")
    page.wait_for_selector("#ranking [role=alert] >> text=BM25 finds none of the 60 built-in documents")
    choose(page, "Paste")
    rank(page, "bees")
    page.wait_for_selector("#ranking [role=alert] >> text=no documents were pasted")
    page.locator("#pasted textarea").fill('{"txt": "<b>x</b>"}')
    rank(page, "bees")
    said("the pasted text, line 1: no field 'text'; fields: txt")
    save(page, "desktop-error")
    path = tmp_path / "bad<i>.jsonl"
    path.write_text('{"text": "a"}\nnope\n')
    choose(page, "Upload")
    page.locator("#upload input[type=file]").set_input_files(str(path))
    page.wait_for_selector("#upload >> text=bad")
    rank(page, "bees")
    page.wait_for_selector("#ranking [role=alert] >> text=line 2: not JSON")
    page.get_by_role("tab", name="Why").click()
    page.wait_for_selector("#why .ts-notice >> text=Rank some documents first")


def test_markup_in_documents_query_and_ids_is_shown_as_text(served: Any, visit: Callable[..., Any]) -> None:
    page = visit(served.url).page
    choose(page, "Paste")
    page.locator("#pasted textarea").fill("\n".join(HOSTILE))
    rank(page, "<b>bees</b> & **honey** {{value}}")
    page.wait_for_selector("#ranking >> text=about bees")
    assert len(places(page)) == 4
    listed = page.locator("#ranking").inner_text()
    page.locator("#ranking .ts-why").nth(3).click()
    page.wait_for_selector("#why .ts-wide")
    why = page.locator("#why").inner_text()
    page.get_by_role("tab", name="Compare").click()
    page.locator("#go-compare").click()
    page.wait_for_selector("#compared tbody tr")
    compared = page.locator("#compared").inner_text()
    for text in HOSTILE:
        assert text in listed
        assert text[:12] in compared
    assert "<b>bees</b> & **honey** {{value}}" in why
    for area in ("#ranking", "#why", "#compared"):
        assert page.locator(f"{area} script, {area} img, {area} strong, {area} a").count() == 0
    assert page.title() == "tsarank"


@pytest.mark.parametrize("dark", [False, True])
def test_a_phones_width(served: Any, visit: Callable[..., Any], dark: bool) -> None:
    page = visit(served.url, **PHONE, dark=dark).page
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    button = page.locator("#ranking .ts-why").nth(0).bounding_box()
    assert button["height"] >= 32
    assert button["x"] + button["width"] <= PHONE["width"]
    mode = "dark" if dark else "light"
    save(page, f"phone-{mode}-ranking")
    page.locator("#ranking .ts-why").nth(1).click()
    page.wait_for_selector("#why .ts-wide")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    save(page, f"phone-{mode}-why")
    page.get_by_role("tab", name="Compare").click()
    page.locator("#go-compare").click()
    page.wait_for_selector("#compared tbody tr")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    save(page, f"phone-{mode}-compare")


_CONTRAST = """
element => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); const s = c.startsWith('color(') ? 255 : 1;
    return [m[0] * s, m[1] * s, m[2] * s, m.length > 3 ? m[3] : 1]; };
  const layers = [];
  for (let e = element; e; e = e.parentElement) layers.unshift(parse(getComputedStyle(e).backgroundColor));
  let back = [255, 255, 255];
  for (const [r, g, b, a] of layers) back = back.map((v, i) => v * (1 - a) + [r, g, b][i] * a);
  const text = parse(getComputedStyle(element).color);
  const front = back.map((v, i) => v * (1 - text[3]) + text[i] * text[3]);
  const light = c => { const [r, g, b] = c.map(v => { v /= 255;
    return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
  const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
  return (a + .05) / (b + .05);
}
"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_in_both_modes(served: Any, visit: Callable[..., Any], dark: bool) -> None:
    """Contrast of at least 4.5 to 1 (WCAG 2.1, level AA), the coloured tokens included."""
    page = visit(served.url, dark=dark).page
    page.locator("#ranking .ts-why").nth(1).click()
    page.wait_for_selector("#why .ts-wide")
    weak = []
    for selector in (".ts-word", ".ts-legend", ".ts-sentence", ".ts-text", ".ts-side h2"):
        for element in page.locator(f"#why {selector}").all():
            contrast = element.evaluate(_CONTRAST)
            if contrast < 4.5:
                weak.append((selector, element.inner_text()[:30], round(contrast, 2)))
    page.get_by_role("tab", name="About").click()
    assert f'Client("{served.url.rstrip("/")}")' in page.locator("#about pre").inner_text()
    page.get_by_role("tab", name="Ranking").click()
    page.wait_for_selector("#ranking .ts-row")
    shown = [*page.locator("#about .token").all(), page.locator("[role=tab][aria-selected=true]")]
    weak += [one.inner_text() for one in shown if one.evaluate(_CONTRAST) < 4.5]
    for selector in (".ts-id", ".ts-facts", ".ts-move", ".ts-why", "summary"):
        element = page.locator(f"#ranking {selector}").first
        contrast = element.evaluate(_CONTRAST)
        if contrast < 4.5:
            weak.append((selector, element.inner_text()[:30], round(contrast, 2)))
    assert weak == []
