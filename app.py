"""The Space: a page that ranks documents for a query, explains and compares. `python app.py`

TSARANK_MODEL is the model (a Hub id, a folder, a .gguf file; the embedded default if unset), TSARANK_COMPARE further
ones, separated by commas. TSARANK_APP_DOCUMENTS, _TOKENS and so on limit a request, see `Limits`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from modeling_tsarank.cache.state_files import NamedDocument
from modeling_tsarank.cli.command_line import CommandParser, run_command, whole
from modeling_tsarank.files.extras import require
from modeling_tsarank.hub_cards.app_endpoints import make_endpoints
from modeling_tsarank.hub_cards.app_inputs import BuiltInCollection, read_pasted, read_upload
from modeling_tsarank.hub_cards.app_limits import Limits
from modeling_tsarank.hub_cards.app_models import make_shelf
from modeling_tsarank.hub_cards.app_ranking import BM25, GIVEN, Ranking, RankingService
from modeling_tsarank.hub_cards.app_server import BodyLimit
from modeling_tsarank.hub_cards.app_style import ASK_WHY, CSS, PAGE_CSS, SHOW_RESULTS, theme
from modeling_tsarank.hub_cards.app_views import compare_view, escape, notice, ranking_view, why_view
from modeling_tsarank.models.families import families
from modeling_tsarank.ranking_errors import TSARankError
from modeling_tsarank.scores import RAW_SCORES


EXAMPLES = Path(__file__).parent / "examples"
COLLECTION, PASTE, UPLOAD = "Built-in", "Paste", "Upload"
CANDIDATES = 10
ADDRESS = "http://127.0.0.1:7860"  # replaced by the page's own address
ABOUT = """
{families}

Higher is better. {raw_scores} A model called *untrained* has not been trained as a reranker; it is here for
comparison.

**Limits of one request:** {documents:,} documents, {total_bytes:,} bytes in all and {document_bytes:,} each,
{tokens:,} tokens, {query_characters:,} characters of query, {seconds} seconds. At most {waiting} requests wait;
further ones are refused. Long documents are truncated to the model's length.

**From a program:**

```python
from gradio_client import Client

client = Client("{address}")
documents = ["Fleas jump.", "A flea lives for months."]
client.predict("how long does a flea live", documents, api_name="/rank")
client.predict("why does dough rise", 10, api_name="/search")  # BM25
```

Also `/explain`, `/compare` and `/models`; the link at the bottom of the page documents them all.
"""


def _families_text() -> str:
    """How the families score, with their own prompts."""
    texts = [f"**{cls.title}.** {cls.scoring(cls.options_class())}" for cls in families().values()]
    return "\n\n".join(texts).replace("<", "&lt;")


def _caption(row: Any) -> str:
    text = " ".join((row.title or row.text).split())
    return f"{row.place}. {text[:60]}{'…' if len(text) > 60 else ''}"


class Page:
    """The page's event handlers: texts in, HTML out. An input error is shown as a notice instead of the result."""

    def __init__(self, service: RankingService, gr: Any) -> None:
        self.service = service
        self.gr = gr

    def documents(self, query: str, source: str, depth: int, pasted: str, upload: str | None) -> list[NamedDocument]:
        """The documents that the visitor chose."""
        if source == COLLECTION:
            return self.service.candidates(self.service.check_query(query), depth)
        self.service.check_query(query)
        if source == UPLOAD:
            return read_upload(upload, self.service.limits)
        return read_pasted(pasted, self.service.limits)

    def steps(
        self, query: str, source: str, depth: int, pasted: str, upload: str | None, model: str
    ) -> Iterator[tuple]:
        """How many documents are being ranked; then the ranked list, the ranking itself, and the choices for
        explanations: initially the old first and the new first."""
        try:
            documents = self.documents(query, source, depth, pasted, upload)
            count = f"{len(documents)} document{'s' if len(documents) != 1 else ''}"
            yield notice(f"Ranking {count} …", "hint"), *(self.gr.skip() for _ in range(3))
            ranking = self.service.rank(query, documents, model, BM25 if source == COLLECTION else GIVEN)
        except TSARankError as error:
            empty = self.gr.Dropdown(choices=[], value=None)
            yield notice(error), None, empty, empty
            return
        old_first = next(i for i, row in enumerate(ranking.rows) if row.before == 1)
        other = old_first or (1 if len(ranking.rows) > 1 else None)
        yield ranking_view(ranking), ranking, self._choice(ranking, 0), self._choice(ranking, other)

    def _choice(self, ranking: Ranking, value: int | None) -> Any:
        return self.gr.Dropdown(choices=[(_caption(row), i) for i, row in enumerate(ranking.rows)], value=value)

    def first_view(self) -> tuple:
        """What every visitor sees first: the first example, computed once, when the app starts."""
        service = self.service
        depth = min(CANDIDATES, service.limits.documents)
        *_, ranked = self.steps(service.collection.queries[0], COLLECTION, depth, "", None, service.shelf.names[0])
        return ranked

    def why(self, ranking: Ranking | None, a: int | None, b: int | None) -> str:
        """One or two documents of the last ranking, explained."""
        if ranking is None:
            return notice("Rank some documents first; then this explains their positions.", "hint")
        chosen = [i for i in dict.fromkeys((a, b)) if isinstance(i, int) and 0 <= i < len(ranking.rows)]
        if not chosen:
            return notice("Choose a document.", "hint")
        try:
            rows = [ranking.rows[i] for i in chosen]
            sides = [(row, self.service.explain(ranking.query, row.text, ranking.model).explanation) for row in rows]
        except TSARankError as error:
            return notice(error)
        return why_view(ranking.query, *sides)

    def ask_why(self, ranking: Ranking | None, row: int) -> tuple:
        """The tab of explanations, with a row of the list compared with the first one (the first with the second)."""
        if ranking is None or not 0 <= row < len(ranking.rows):
            return self.gr.Tabs(), self.gr.Dropdown(), self.gr.Dropdown()
        other = 0 if row else (1 if len(ranking.rows) > 1 else None)
        first, second = (row, other) if row == 0 else (0, row)
        return self.gr.Tabs(selected="why"), self.gr.Dropdown(value=first), self.gr.Dropdown(value=second)

    def compare(self, query: str, source: str, depth: int, pasted: str, upload: str | None, a: str, b: str) -> str:
        """The chosen documents in two models' orders."""
        try:
            documents = self.documents(query, source, depth, pasted, upload)
            return compare_view(self.service.compare(query, documents, a, b, BM25 if source == COLLECTION else GIVEN))
        except TSARankError as error:
            return notice(error)


def build(service: RankingService) -> Any:
    """The page and its API as `gradio.Blocks`, queue set."""
    gr = require("gradio", extra="app", purpose="The web page")
    page = Page(service, gr)
    names, limits = list(service.shelf.names), service.limits
    with gr.Blocks(title="tsarank", analytics_enabled=False, delete_cache=(600, 1800)) as demo:
        ranking = gr.State(None, time_to_live=1800)
        gr.HTML(
            '<div class="ts-head"><h1>tsarank</h1><p>Reranking with language models. '
            f"{escape(service.shelf.get()[1].description)}</p></div>",
            elem_classes="ts-html",
        )
        with gr.Row(equal_height=True):
            query = gr.Textbox(
                service.collection.queries[0],
                label="Query",
                show_label=False,
                placeholder="What do you want to know?",
                scale=6,
                lines=1,
                max_lines=3,
                min_width=160,
                elem_id="query",
            )
            button = gr.Button("Rank", variant="primary", scale=1, min_width=96, elem_id="rank")
        with gr.Row():
            with gr.Column(scale=4, min_width=280):
                source = gr.Radio([COLLECTION, PASTE, UPLOAD], value=COLLECTION, label="Documents", elem_id="source")
                with gr.Column(visible=True) as built_in:
                    depth = gr.Slider(
                        1,
                        min(30, limits.documents),
                        value=min(CANDIDATES, limits.documents),
                        step=1,
                        label="Candidates from BM25",
                        info=f"of {len(service.collection)} short texts",
                    )
                    examples = gr.Dataset(
                        components=[query],
                        samples=[[text] for text in service.collection.queries],
                        label="Queries to try",
                        type="values",
                    )
                pasted = gr.Textbox(
                    label="One document a line, or JSON lines with “text”",
                    lines=9,
                    max_lines=20,
                    visible=False,
                    elem_id="pasted",
                )
                upload = gr.File(
                    label=".txt (one document a line) or .jsonl",
                    file_types=[".txt", ".text", ".jsonl", ".ndjson"],
                    visible=False,
                    height=150,
                    elem_id="upload",
                )
                model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1, elem_id="model")
            with gr.Column(scale=7, min_width=280), gr.Tabs(selected="ranking", elem_id="results") as tabs:
                with gr.Tab("Ranking", id="ranking"):
                    listed = gr.HTML(
                        notice("Ranking the example …", "hint"),
                        elem_id="ranking",
                        elem_classes="ts-html",
                        js_on_load=ASK_WHY,
                    )
                with gr.Tab("Why", id="why"):
                    with gr.Row():
                        first = gr.Dropdown([], label="Document A", min_width=200, elem_id="first")
                        second = gr.Dropdown([], label="Document B", min_width=200, elem_id="second")
                    explained = gr.HTML(page.why(None, None, None), elem_id="why", elem_classes="ts-html")
                with gr.Tab("Compare", id="compare"):
                    compared, compare_inputs = _compare_tab(gr, names)
                with gr.Tab("About", id="about"):
                    about = gr.Markdown(
                        ABOUT.format(
                            **vars(limits), address=ADDRESS, families=_families_text(), raw_scores=RAW_SCORES
                        ),
                        elem_id="about",
                    )

        # Before the page's own handlers: Gradio assigns each name once, and rank is also a handler's.
        for name, function in make_endpoints(service, gr.Error).items():
            gr.api(function, api_name=name, concurrency_id="model", concurrency_limit=1)
        quiet: dict[str, Any] = {"api_visibility": "private"}
        work: dict[str, Any] = {**quiet, "concurrency_id": "model", "concurrency_limit": 1}
        inputs = [query, source, depth, pasted, upload]
        outputs = [listed, ranking, first, second]
        to_explain = [ranking, first, second]

        def show_ranking() -> Any:
            return gr.Tabs(selected="ranking")

        fast: dict[str, Any] = {**quiet, "queue": False, "show_progress": "hidden"}
        chosen = examples.click(lambda sample: (sample[0], COLLECTION), examples, [query, source], **fast)
        for event in (button.click, query.submit, chosen.then):
            event(show_ranking, None, tabs, **fast).then(page.steps, [*inputs, model], outputs, **work).then(
                None, js=SHOW_RESULTS, **quiet
            ).then(page.why, to_explain, explained, **work)
        own_address = f"text => text.replaceAll('{ADDRESS}', location.origin)"
        demo.load(None, about, about, js=own_address, **fast)
        demo.load(page.first_view, None, outputs, **work).then(page.why, to_explain, explained, **work)
        source.change(
            lambda chosen: [gr.update(visible=chosen == kind) for kind in (COLLECTION, PASTE, UPLOAD)],
            source,
            [built_in, pasted, upload],
            **fast,
        )

        def clicked(ranked: Ranking | None, event: Any) -> tuple:
            return page.ask_why(ranked, int(event.row))

        clicked.__annotations__["event"] = gr.EventData  # Gradio passes it to parameters of this type
        listed.click(clicked, ranking, [tabs, first, second], **fast).then(None, js=SHOW_RESULTS, **quiet).then(
            page.why, to_explain, explained, **work
        )
        for choice in (first, second):
            choice.input(page.why, to_explain, explained, **work)
        if compare_inputs:
            compare_inputs[0].click(page.compare, [*inputs, *compare_inputs[1:]], compared, **work)
    return demo.queue(max_size=limits.waiting, default_concurrency_limit=1)


def _compare_tab(gr: Any, names: Sequence[str]) -> tuple[Any, list[Any]]:
    if len(names) < 2:
        hint = "There is one model only; TSARANK_COMPARE names others."
        return gr.HTML(notice(hint, "hint"), elem_classes="ts-html"), []
    with gr.Row():
        a = gr.Dropdown(list(names), value=names[0], label="Model A", min_width=200)
        b = gr.Dropdown(list(names), value=names[1], label="Model B", min_width=200)
    go = gr.Button("Compare", variant="primary", elem_id="go-compare")
    hint = notice("Ranks the same documents with both models.", "hint")
    return gr.HTML(hint, elem_id="compared", elem_classes="ts-html"), [go, a, b]


def launch_options(limits: Limits) -> dict[str, Any]:
    """Arguments of `Blocks.launch` that limit a request and keep the page from loading anything from other hosts."""
    gr = require("gradio", extra="app", purpose="The web page")
    middleware = require("starlette.middleware", extra="app", purpose="The web page")
    return {
        "theme": theme(gr),
        "css": CSS,
        "head": f"<style>{PAGE_CSS}</style>",
        "ssr_mode": False,
        "run_history": False,
        "footer_links": ["api"],
        "share": False,
        "max_file_size": limits.total_bytes,
        "state_session_capacity": 200,
        "app_kwargs": {"middleware": [middleware.Middleware(BodyLimit, limit=limits.body_bytes)]},
    }


def make_service(limits: Limits, cache_dir: str | os.PathLike[str] | None = None) -> RankingService:
    """The service configured by the environment, with its first model loaded and the first example ranked."""
    others = [name.strip() for name in os.environ.get("TSARANK_COMPARE", "").split(",") if name.strip()]
    shelf = make_shelf(os.environ.get("TSARANK_MODEL") or None, others, limits)
    collection = BuiltInCollection(EXAMPLES / "collection.jsonl", EXAMPLES / "queries.jsonl", cache_dir)
    service = RankingService(shelf, collection, limits)
    with contextlib.suppress(TSARankError):  # limits may be too low for the example; visitors then see that error
        shelf.score("warm up", ["The first pass is slower than all others."])
        service.search(collection.queries[0], min(CANDIDATES, limits.documents))
    return service


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves the page until interrupted; returns the exit status, see `run_command`."""
    return run_command(lambda: _serve(arguments))


def _serve(arguments: Sequence[str] | None) -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", help="address to listen on (default: $GRADIO_SERVER_NAME or 127.0.0.1)")
    parser.add_argument("--port", type=whole(least=0, most=65_535), help="default: $GRADIO_SERVER_PORT or 7860")
    args = parser.parse_args(arguments)
    logging.basicConfig(format="tsarank: %(message)s", level=logging.WARNING)
    # Read when gradio is imported, which is why it is imported in functions here.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    limits = Limits.from_environment()
    require("gradio", extra="app", purpose="The web page")  # before a model is loaded, which may take minutes
    with tempfile.TemporaryDirectory(prefix="tsarank-app-") as cache_dir:
        service = make_service(limits, cache_dir)
        demo = build(service)
        demo.launch(server_name=args.host, server_port=args.port, **launch_options(limits))
    return 0


if __name__ == "__main__":
    sys.exit(main())
