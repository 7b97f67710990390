"""The Space's results as HTML. All external text goes through `escape`, so that it is shown literally."""

from __future__ import annotations

import functools
import html
import math
import re
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

from modeling_tsarank.hub_cards.app_ranking import Comparison, Ranked, Ranking
from modeling_tsarank.ranking_options import Explanation


# Gradio interpolates `${…}` and `{{…}}` in a component's HTML on the page; as entities they are left alone.
_TEMPLATE_CHARACTERS = {"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;"}
# Log-probabilities from here to 0 are coloured as likely, those below as unlikely, full colour at the far end.
_NEUTRAL, _UNLIKELY = -3.0, -9.0
_WIDEST_DIFFERENCE = 4.0
LOG_PROBABILITY = "log-probability"


def escape(text: Any) -> str:
    """Text that is safe inside an HTML element or a quoted attribute, and in Gradio's templates."""
    shown = "".join(c if c in "\n\t" or ord(c) >= 32 else "\ufffd" for c in str(text))
    shown = shown.encode("utf-8", "replace").decode("utf-8")
    return "".join(_TEMPLATE_CHARACTERS.get(c, c) for c in html.escape(shown))


def _number(value: float, digits: int, sign: bool = False) -> str:
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "\u2212")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@functools.cache
def _template() -> Any:
    """The macros of app_views.html."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else Markup(escape(value)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"number": _number, "count": _count}
    source = resources.files(__package__).joinpath("app_views.html").read_text(encoding="utf-8")
    return environment.from_string(source).module


def _rendered(view: str, *facts: Any) -> str:
    return re.sub(r">\s*\n\s*<", "><", getattr(_template(), view)(*facts).strip())


def notice(message: Any, kind: str = "error") -> str:
    """One message instead of a result; `kind` is `error` or `hint`."""
    return _rendered("notice", message, kind)


def ranking_view(ranking: Ranking) -> str:
    """The ranked list: rank, movement, text (a click unfolds it), id, score, and a button for the explanation."""
    scores = [row.score for row in ranking.rows]
    low, span = min(scores), max(scores) - min(scores)
    # In percent: the best score has full width, the worst a sliver; equal scores are all full.
    widths = [100.0 if span == 0 else 6 + 94 * (score - low) / span for score in scores]
    return _rendered("ranking", ranking, widths)


def _likelihood_share(value: float) -> float:
    if value >= _NEUTRAL:
        return 1 - value / _NEUTRAL
    return -(value - _NEUTRAL) / (_UNLIKELY - _NEUTRAL)


def _words(
    parts: Sequence[tuple[str, float]], share: Callable[[float], float]
) -> list[list[tuple[str, float, float]]]:
    """Tokens with their values and colour intensities, from -1 to 1; tokens of one word are grouped."""
    words: list[list[tuple[str, float, float]]] = []
    for text, value in parts:
        if not words or text[:1].isspace():
            words.append([])
        words[-1].append((text, value, max(-1.0, min(1.0, share(value)))))
    return words


def _logits(explanation: Explanation) -> list[tuple[str, float, float]]:
    """Answers with their logits and the widths of their bars in percent."""
    largest = max((abs(value) for _, value in explanation.parts), default=0) or 1.0
    return [
        (text.replace("\u0120", "").replace("\u2581", "").strip() or text, value, abs(value) / largest * 50)
        for text, value in explanation.parts
    ]


def _difference(a: Explanation, b: Explanation) -> dict[str, Any]:
    gaps = [(text, first - second) for (text, first), (_, second) in zip(a.parts, b.parts, strict=True)]
    text, widest = max(gaps, key=lambda part: abs(part[1]))
    ratio = math.exp(min(abs(widest), 20))
    return {
        "score": a.score - b.score,
        "words": _words(gaps, lambda gap: gap / _WIDEST_DIFFERENCE),
        "text": text,
        "widest": widest,
        "times": f"{ratio:,.1f}" if ratio < 100 else f"{ratio:,.0f}",
    }


def why_view(query: str, a: tuple[Ranked, Explanation], b: tuple[Ranked, Explanation] | None = None) -> str:
    """The parts of one document's score, or two documents side by side and their difference."""
    likely = a[1].unit == LOG_PROBABILITY
    sides = [
        {"row": row, "explanation": one, "parts": _words(one.parts, _likelihood_share) if likely else _logits(one)}
        for row, one in (a, *([] if b is None else [b]))
    ]
    shared = b is not None and likely and len(a[1].parts) == len(b[1].parts)
    return _rendered("why", query, sides, likely, _difference(a[1], b[1]) if b is not None and shared else None)


def compare_view(comparison: Comparison) -> str:
    """Every document's rank and score in both models, in A's order."""
    return _rendered("compare", comparison, *comparison.agreement())
