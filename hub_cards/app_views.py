"""The Space's results as HTML. Whatever comes from outside passes `escape`, so that it is shown as the text it is."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import Any

from modeling_tsarank.hub_cards.app_ranking import Comparison, Ranked, Ranking
from modeling_tsarank.ranking_options import Explanation


# Gradio fills `${…}` and `{{…}}` in a component's HTML on the page; as entities they are never seen as such.
_TEMPLATE_CHARACTERS = {"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;"}
# Log-probabilities from here to 0 are shown as likely, those below as unlikely, full colour at the far end.
_NEUTRAL, _UNLIKELY = -3.0, -9.0
_WIDEST_DIFFERENCE = 4.0
LOG_PROBABILITY = "log-probability"


def escape(text: Any) -> str:
    """Text safe inside an HTML element or a quoted attribute, also where a template engine reads it."""
    shown = "".join(c if c in "\n\t" or ord(c) >= 32 else "\ufffd" for c in str(text))
    shown = shown.encode("utf-8", "replace").decode("utf-8")
    return "".join(_TEMPLATE_CHARACTERS.get(c, c) for c in html.escape(shown))


def _number(value: float, digits: int = 2, sign: bool = False) -> str:
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "\u2212")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _seconds(ranking: Ranking) -> str:
    shown = f"{ranking.seconds:.2f}\u202fs"
    return f"{shown} (remembered)" if ranking.remembered else shown


def notice(message: Any, kind: str = "error") -> str:
    """One message in place of a result; `kind` is `error` or `hint`."""
    role = ' role="alert"' if kind == "error" else ""
    return f'<div class="ts-notice ts-{kind}"{role}>{escape(message)}</div>'


def _text(row: Ranked, otherwise: str = "") -> str:
    """A document's text, its title set off."""
    if row.title and row.text.startswith(row.title):
        return f'<span class="ts-title">{escape(row.title)}</span>{escape(row.text[len(row.title) :].lstrip())}'
    return escape(row.text) or otherwise


def _movement(moved: int, before: int) -> str:
    if moved == 0:
        return '<span class="ts-move ts-same" title="stayed where it was">=</span>'
    kind, arrow, word = ("ts-up", "\u25b2", "up") if moved > 0 else ("ts-down", "\u25bc", "down")
    title = f"{word} {abs(moved)} from place {before}"
    return f'<span class="ts-move {kind}" title="{title}" aria-label="{title}">{arrow}&nbsp;{abs(moved)}</span>'


def _bars(rows: Sequence[Ranked]) -> list[float]:
    """Widths in percent: the best score full, the worst a sliver; equal scores all full."""
    scores = [row.score for row in rows]
    span = max(scores) - min(scores)
    return [100.0 if span == 0 else 6 + 94 * (score - min(scores)) / span for score in scores]


def ranking_view(ranking: Ranking) -> str:
    """The ranked list: place, movement, text (a click unfolds it), id, score, and a button that asks why."""
    items = []
    for index, (row, width) in enumerate(zip(ranking.rows, _bars(ranking.rows), strict=True)):
        text = _text(row, "<i>empty document</i>")
        items.append(
            f'<li class="ts-row"><div class="ts-place">{row.place}</div>{_movement(row.moved, row.before)}'
            f'<div class="ts-body"><details><summary dir="auto">{text}</summary></details>'
            f'<div class="ts-id">{escape(row.id)} <span>\u00b7 was {row.before}</span></div></div>'
            f'<div class="ts-score">{_number(row.score, 3)}'
            f'<div class="ts-bar"><div style="width:{width:.0f}%"></div></div></div>'
            f'<button type="button" class="ts-why" data-explain="{index}" '
            f'aria-label="Why is document {row.place} there?">Why?</button></li>'
        )
    facts = (
        f"<b>{_count(len(ranking.rows), 'document')}</b> \u00b7 {_count(ranking.tokens, 'token')} \u00b7 "
        f"{_seconds(ranking)} \u00b7 first stage: {escape(ranking.first_stage)} \u00b7 {escape(ranking.model)}"
        f"{_cut(ranking)}"
    )
    return f'<div class="ts-facts">{facts}</div><ol class="ts-list">{"".join(items)}</ol>'


def _cut(ranking: Ranking) -> str:
    """How many documents the model could not read to their end, if any."""
    if not ranking.cut_documents:
        return ""
    return f" \u00b7 {_count(ranking.cut_documents, 'document')} cut to the model's length"


def _tint(share: float) -> str:
    """Background of a share from -1 (against, orange) over 0 (none) to 1 (for, green)."""
    share = max(-1.0, min(1.0, share))
    colour = "var(--ts-for)" if share > 0 else "var(--ts-against)"
    return f"background:color-mix(in srgb,{colour} {abs(share) * 100:.0f}%,transparent)"


def _likelihood_share(value: float) -> float:
    if value >= _NEUTRAL:
        return 1 - value / _NEUTRAL
    return -(value - _NEUTRAL) / (_UNLIKELY - _NEUTRAL)


def _token(text: str, value: float, share: float, *, sign: bool = False) -> str:
    shown = escape(text.strip()) or "\u2423"
    return (
        f'<span class="ts-token" style="{_tint(share)}"><span class="ts-word">{shown}</span>'
        f'<span class="ts-value">{_number(value, 1 if not sign else 2, sign)}</span></span>'
    )


def _chips(parts: Sequence[tuple[str, float]], share: Callable[[float], float], *, sign: bool = False) -> str:
    """Coloured tokens; those that make up one word stand close together."""
    words: list[list[str]] = []
    for text, value in parts:
        if not words or text[:1].isspace():
            words.append([])
        words[-1].append(_token(text, value, share(value), sign=sign))
    return '<div class="ts-tokens">' + "".join(f'<span class="ts-group">{"".join(w)}</span>' for w in words) + "</div>"


def _logits(explanation: Explanation) -> str:
    if not explanation.parts:
        return ""
    largest = max(abs(value) for _, value in explanation.parts) or 1.0
    rows = []
    for text, value in explanation.parts:
        share = abs(value) / largest * 50  # from the middle, where 0 is, to either side
        start = 50 if value >= 0 else 50 - share
        name = escape(text.replace("\u0120", "").replace("\u2581", "").strip() or text)
        rows.append(
            f'<div class="ts-logit"><span class="ts-answer">{name}</span>'
            f'<span class="ts-bar"><span style="width:{share:.0f}%;margin-left:{start:.0f}%">'
            "</span></span>"
            f'<span class="ts-figure">{_number(value, 3)}</span></div>'
        )
    return f'<div class="ts-logits">{"".join(rows)}</div>'


def _side(mark: str, row: Ranked, explanation: Explanation) -> str:
    likely = explanation.unit == LOG_PROBABILITY
    parts = _chips(explanation.parts, _likelihood_share) if likely else _logits(explanation)
    return (
        f'<section class="ts-side"><h4><span class="ts-mark">{mark}</span> place {row.place}, was {row.before} '
        f'<span class="ts-figure">{_number(explanation.score, 3)}</span></h4>'
        f'<p class="ts-text" dir="auto">{_text(row)}</p>{parts}</section>'
    )


def _difference(a: Explanation, b: Explanation) -> str:
    pairs = list(zip(a.parts, b.parts, strict=True))
    gaps = [(text, first - second) for (text, first), (_, second) in pairs]
    deciding = max(pairs, key=lambda pair: abs(pair[0][1] - pair[1][1]))
    gap = deciding[0][1] - deciding[1][1]
    sentence = ""
    if gap != 0:
        winner = "A" if gap > 0 else "B"
        ratio = math.exp(min(abs(gap), 20))
        times = f"{ratio:,.1f}" if ratio < 100 else f"{ratio:,.0f}"
        sentence = (
            f'<p class="ts-sentence">The widest gap is at <b>{escape(deciding[0][0].strip()) or "a space"}</b>: '
            f"after {winner} the model finds it {times} times as likely.</p>"
        )
    return (
        '<section class="ts-side ts-wide"><h4>A less B, token by token '
        f'<span class="ts-figure">{_number(a.score - b.score, 3, sign=True)}</span></h4>'
        f"{_chips(gaps, lambda gap: gap / _WIDEST_DIFFERENCE, sign=True)}{sentence}</section>"
    )


def _legend(explanation: Explanation) -> str:
    rule = explanation.rule
    if explanation.unit != LOG_PROBABILITY:
        parts = "Logits of the answer tokens. " if explanation.parts else ""
        return f'<p class="ts-legend">{parts}Score: {escape(rule)}.</p>'
    return (
        '<p class="ts-legend">The query\'s tokens, each with its log-probability after the document: '
        '<span class="ts-scale"></span> \u22129 or less to 0. '
        f"Score: {escape(rule)}.</p>"
    )


def why_view(query: str, a: tuple[Ranked, Explanation], b: tuple[Ranked, Explanation] | None = None) -> str:
    """One document's score taken apart, or two documents side by side and their difference."""
    sides = [_side("A", *a)]
    if b is not None:
        sides.append(_side("B", *b))
        if a[1].unit == LOG_PROBABILITY and len(a[1].parts) == len(b[1].parts):
            sides.append(_difference(a[1], b[1]))
    heading = f'<p class="ts-query" dir="auto">\u201c{escape(query)}\u201d</p>'
    return f'{heading}{_legend(a[1])}<div class="ts-sides">{"".join(sides)}</div>'


def compare_view(comparison: Comparison) -> str:
    """Every document's place and score in both models, in A's order."""
    same, pairs = comparison.agreement()
    a, b = comparison.a, comparison.b
    items = []
    for first, second in comparison.places():
        moved = first.place - second.place
        title = "both models give it the same place" if moved == 0 else f"{abs(moved)} places apart"
        kind = "ts-same" if moved == 0 else ("ts-up" if moved > 0 else "ts-down")
        gap = "=" if moved == 0 else ("\u25b2" if moved > 0 else "\u25bc") + f"&nbsp;{abs(moved)}"
        items.append(
            f'<tr><td class="ts-num">{first.before}</td>'
            f'<td class="ts-num"><b>{first.place}</b><small>{_number(first.score)}</small></td>'
            f'<td class="ts-num"><b>{second.place}</b><small>{_number(second.score)}</small></td>'
            f'<td class="ts-num"><span class="ts-move {kind}" title="{title}">{gap}</span></td>'
            f'<td class="ts-cell"><div dir="auto">{_text(first, "<i>empty document</i>")}</div>'
            f'<div class="ts-id">{escape(first.id)}</div></td></tr>'
        )
    sentence = f"Same order in {same:,} of {_count(pairs, 'pair')} of documents" if pairs else "One document only"
    top = "the same first document" if a.rows[0].before == b.rows[0].before else "another first document"
    facts = "".join(
        f'<div class="ts-facts"><span class="ts-mark">{mark}</span> <b>{escape(r.model)}</b> \u00b7 '
        f"{_count(r.tokens, 'token')} \u00b7 {_seconds(r)}{_cut(r)}</div>"
        for mark, r in (("A", a), ("B", b))
    )
    return (
        f'{facts}<p class="ts-sentence">{sentence}; {top}.</p><table class="ts-table"><thead><tr>'
        f'<th>{escape(a.first_stage)}</th><th>A</th><th>B</th><th title="B against A">B\u202fvs\u202fA</th>'
        f"<th>document</th></tr></thead><tbody>{''.join(items)}</tbody></table>"
    )
