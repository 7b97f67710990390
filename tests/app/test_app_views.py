"""Results as HTML: what is in them, and that no text from outside becomes markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_tsarank.cache.state_files import NamedDocument
from modeling_tsarank.hub_cards.app_ranking import Comparison, Ranked, Ranking, RankingService
from modeling_tsarank.hub_cards.app_views import compare_view, escape, notice, ranking_view, why_view
from modeling_tsarank.ranking_options import Explanation


HOSTILE = [
    "<script>alert(1)</script>",
    "**bold** [x](javascript:1)",
    '"><img src=x onerror=alert(1)>',
    "${1+1}{{value}}",
]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> _Reader:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader


def ranking(texts: list[str], scores: list[float] | None = None, **changes) -> Ranking:
    scores = scores or [-1.0 - n for n in range(len(texts))]
    rows = tuple(
        Ranked(f"id {t}", t, s, place, len(texts) + 1 - place)
        for place, (t, s) in enumerate(zip(texts, scores, strict=True), 1)
    )
    values = {"query": texts[0], "model": "m", "family": "query_likelihood", "first_stage": "BM25", "tokens": 1234}
    return Ranking(**{**values, "rows": rows, "seconds": 0.5, "remembered": False, **changes})


def explanation(parts: list[tuple[str, float]], unit: str = "log-probability") -> Explanation:
    return Explanation(tuple(parts), unit, -1.5, "mean of the values")


@given(st.text())
def test_escaped_text_reads_back_as_itself(text: str) -> None:
    reader = read(f'<i title="{escape(text)}">{escape(text)}</i>')
    assert reader.tags == ["i"]
    shown = "".join(c if c in "\n\t" or ord(c) >= 32 else "\ufffd" for c in text)
    shown = shown.encode("utf-8", "replace").decode()
    # What an HTML parser itself makes of characters that HTML does not allow is not the point here.
    if not re.search("[\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]", shown):
        assert reader.text == shown
    assert not set("${}`<>") & set(escape(text))


@pytest.mark.parametrize("view", ["ranking", "why", "compare", "notice"])
def test_hostile_text_stays_text(view: str) -> None:
    shown = ranking(HOSTILE)
    calm = ranking(["a", "b", "c", "d"])
    parts = [(text, -1.0) for text in HOSTILE]

    def render(of: Ranking, texts: list[str]) -> str:
        if view == "ranking":
            return ranking_view(of)
        if view == "compare":
            return compare_view(Comparison(of, of))
        if view == "notice":
            return notice("".join(texts))
        of_parts = explanation([(text, value) for text, (_, value) in zip(texts, parts, strict=True)])
        return why_view(of.query, (of.rows[0], of_parts), (of.rows[1], of_parts))

    hostile, harmless = read(render(shown, HOSTILE)), read(render(calm, ["a", "b", "c", "d"]))
    assert hostile.tags == harmless.tags, "no text may add an element"
    assert [name for name, _ in hostile.attributes] == [name for name, _ in harmless.attributes]
    for text in HOSTILE[:2] if view == "why" else HOSTILE:
        assert text in hostile.text


def test_a_ranking_shows_movement_scores_and_cost() -> None:
    html = ranking_view(ranking(["first", "second", "third"]))
    text = read(html).text
    for part in (
        "▲\xa02",
        "=",
        "▼\xa02",
        "\u22121.000",
        "3 documents",
        "1,234 tokens",
        "0.50",
        "first stage: BM25",
        "was 3",
    ):
        assert part in text
    assert html.count('data-explain="') == 3
    assert re.findall(r"width:(\d+)%", html) == ["100", "53", "6"]
    assert "· cached ·" in ranking_view(ranking(["x"], remembered=True))
    assert re.findall(r"width:(\d+)%", ranking_view(ranking(["x", "y"], [0.0, 0.0]))) == ["100", "100"]
    assert "empty document" in ranking_view(ranking([""]))


def test_a_title_is_set_off_once() -> None:
    row = Ranked("i", "A title the text", -1.0, 1, 1, "A title")
    text = read(ranking_view(ranking(["x"], rows=(row,)))).text
    assert "A titlethe text" in text
    assert text.count("A title") == 1


def test_why_names_the_token_that_decides() -> None:
    shown = ranking(["a", "b"])
    first, second = explanation([(" bees", -2.0), (" talk", -1.0)]), explanation([(" bees", -4.5), (" talk", -1.1)])
    html = why_view("bees talk", (shown.rows[0], first), (shown.rows[1], second))
    text = read(html).text
    assert "+2.50" in text
    assert "The widest gap is at bees: after A the model finds it 12.2 times as likely." in text
    alone = read(why_view("bees talk", (shown.rows[0], first))).text
    assert "A less B" not in alone
    same = read(why_view("bees talk", (shown.rows[0], first), (shown.rows[1], first))).text
    assert "widest gap" not in same


def test_colours_follow_the_values() -> None:
    shown = ranking(["a"])
    html = why_view(
        "q", (shown.rows[0], explanation([(" sure", 0.0), (" even", -3.0), (" odd", -9.0), (" odder", -99.0)]))
    )
    tints = re.findall(r"var\(--ts-(for|against)\) (\d+)%", html)
    assert tints == [("for", "100"), ("against", "0"), ("against", "100"), ("against", "100")]


def test_logits_are_shown_by_name() -> None:
    shown = ranking(["a"])
    parts = explanation([("\u0120true", 3.0), ("\u2581false", -1.5)], "logit")
    html = why_view("q", (shown.rows[0], parts))
    text = read(html).text
    for part in ("true", "3.000", "false", "\u22121.500", "Logits of the answer tokens"):
        assert part in text
    # From the middle, where 0 is: one to the right, the other half as far to the left.
    assert re.findall(r"width:(\d+)%;margin-left:(\d+)%", html) == [("50", "50"), ("25", "25")]


def test_a_comparison_of_real_rankings(service: RankingService) -> None:
    named = [NamedDocument(str(n), f"text {n}") for n in range(5)]
    comparison = service.compare("bees", named, "likelihood", "logits")
    text = read(compare_view(comparison)).text
    same, pairs = comparison.agreement()
    assert f"Same order in {same} of {pairs} pairs of documents" in text
    single = service.compare("bees", named[:1], "likelihood", "logits")
    assert "One document only; the same first document" in read(compare_view(single)).text


def test_the_tokens_of_one_word_stand_together() -> None:
    shown = ranking(["a"])
    parts = [(" wag", -1.0), ("gle", -1.0), (" bees", -1.0), ("?", -1.0), (" ", -1.0)]
    html = why_view("q", (shown.rows[0], explanation(parts)))
    words = [re.findall(r'ts-word">([^<]*)<', group) for group in html.split('class="ts-group"')[1:]]
    assert words == [["wag", "gle"], ["bees", "?"], ["\u2423"]]


def test_documents_that_were_cut_are_told() -> None:
    cut, whole = ranking(["a", "b"], cut_documents=1), ranking(["a", "b"])
    for view in (ranking_view(cut), compare_view(Comparison(cut, whole))):
        assert view.count("1 document cut to the model's length") == 1
    assert "cut" not in ranking_view(whole)
    assert cut.to_dict()["cut_documents"] == 1
