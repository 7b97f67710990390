"""`tsarank rank`: ranks documents of a file for one query, or the candidates of many queries."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
from typing import Any

from ..models.arguments import (
    add_document_arguments,
    add_model_arguments,
    add_passage_arguments,
    add_store_argument,
    documents_from_arguments,
    model_from_arguments,
    say,
)
from ..rankers.arguments import RANKERS_HELP, add_ranker_arguments, list_ranker, refuse_options
from ..ranking_errors import InputError
from ..scores import RAW_SCORES
from .command_line import add_command, real, whole


_DETAILS = f"""\
{RANKERS_HELP}
scores:
  A true/false model (the default) returns the difference of two logits, a query-likelihood model the mean
  log-probability of the query's tokens given the document, which is at most 0.
  {RAW_SCORES}
  `tsarank calibrate` converts them to probabilities. Listwise rankers return n for the first and 1 for the last,
  pairwise allpair its wins, a /rerank service (--model URL) its own scores, and --fusion the fused score.
"""
_EXAMPLES = """\
  tsarank rank --query "how long does a flea live" --documents examples/fleas.jsonl
  grep -h . notes/*.txt | tsarank rank --query "what did we decide" --documents - --top-k 5
  tsarank rank --query "…" --documents docs.csv --text-column body --fusion fusion.json
  tsarank rank --queries queries.jsonl --candidates bm25.trec --documents corpus.jsonl --output run.trec
  tsarank rank --query "…" --documents docs.jsonl --model ./my-ranker --json | jq .results[0]
"""


def register(subparsers: Any) -> None:
    """Adds `rank` to the command line, and `rerank`, its other name."""
    parser = add_command(
        subparsers,
        "rank",
        "rank documents for a query",
        _EXAMPLES,
        run,
        common="query documents top-k json passages fusion calibration threshold model dtype device ranker",
        details=_DETAILS,
        aliases=("rerank",),
    )
    parser.add_argument("--query", help="the query")
    add_document_arguments(parser, required=False)
    parser.add_argument("--top-k", type=whole(), metavar="N", help="show only the best N")
    parser.add_argument("--json", action="store_true", help="JSON with full texts instead of a table")
    group = parser.add_argument_group("many queries, instead of --query")
    group.add_argument(
        "--candidates",
        metavar="RUN",
        help="the first stage's run: TREC, or JSON of rank_llm or Pyserini, which may include queries and documents",
    )
    group.add_argument("--queries", metavar="FILE", help=".jsonl or .tsv of queries with ids, if RUN has no texts")
    group.add_argument("--output", metavar="FILE", help="TREC run of the new order")
    group = parser.add_argument_group("first stage's scores and probabilities")
    group.add_argument(
        "--fusion",
        metavar="W",
        help="rank by (1 - W) * model + W * first stage, whose scores are in FILE (first_stage_score or score) or "
        "RUN: W in [0, 1], or a file of `tsarank tune-fusion`",
    )
    group.add_argument(
        "--calibration",
        metavar="FILE",
        help="calibration file of `tsarank calibrate` for this model: shows probabilities of relevance (default: "
        "calibration.json in the model's folder, if it exists)",
    )
    group.add_argument(
        "--threshold",
        type=real(),
        metavar="P",
        help="only documents with at least this probability; without a calibration, this score",
    )
    add_passage_arguments(parser)
    add_store_argument(parser)
    add_model_arguments(parser)
    add_ranker_arguments(parser)


def _table(rows: list[dict[str, Any]]) -> str:
    width = shutil.get_terminal_size((100, 24)).columns
    id_width = min(max([2, *(len(row["id"]) for row in rows)]), 24)
    calibrated = "probability" in rows[0] if rows else False
    text_width = max(width - id_width - (33 if calibrated else 20), 20)
    lines = [f"{'rank':>4}  {'id':<{id_width}}  {'score':>9}  {'probability  ' if calibrated else ''}text"]
    for row in rows:
        # Control characters in a document must not reach the terminal.
        text = " ".join("".join(c if c.isprintable() else " " for c in row["text"]).split())
        text = text if len(text) <= text_width else text[: text_width - 1] + "…"
        identifier = row["id"] if len(row["id"]) <= id_width else row["id"][: id_width - 1] + "…"
        probability = f"{row['probability']:>11.4f}  " if calibrated else ""
        lines.append(f"{row['rank']:>4}  {identifier:<{id_width}}  {row['score']:>9.4f}  {probability}{text}")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """Rank documents by relevance to a query, best first.

    FILE has the documents: .txt, one per line; .jsonl, one object per line with "text" and optionally "title" and
    "_id"; .csv, .tsv or .parquet with such columns; a folder with a document in each .txt and .md file; "-" reads
    standard input (JSON lines if the first line begins with a brace).

    With --candidates, the candidates of each query are reranked and written as a TREC run; --queries and FILE are
    then the collection's, unless RUN includes the texts. `tsarank evaluate` does that resumably, and evaluates.
    """
    from ..ranking_text import clean_query
    from ..scores.passages import aggregation

    if (args.query is None) == (args.candidates is None):
        raise InputError("give either --query, or --candidates for many queries")
    if (args.candidates is None) != (args.output is None):
        raise InputError("--candidates and --output need each other: give both")
    if (args.documents is None) != (args.candidates is not None and args.queries is None):
        raise InputError("give --query with --documents, or --candidates alone, or with --queries and --documents")
    if args.query is None:
        refuse_options(args, "--candidates", json=False)
    else:
        refuse_options(args, "--query", queries=None)
    query = None if args.query is None else clean_query(args.query)
    if args.passages is not None:
        aggregation(args.passages)
        if args.ranker != "pointwise":
            raise InputError("--passages is for models that score pairs; leave out --passages or --ranker")
    elif args.passage_length is not None or args.passage_stride is not None:
        raise InputError("--passage-length and --passage-stride need --passages, such as --passages max")
    names = ("threshold", "top_k", "passages", "passage_length", "passage_stride")
    options: dict[str, Any] = {name: getattr(args, name) for name in names}
    if args.calibration is not None:
        from ..scores.calibration import Calibration

        options |= {"calibration": Calibration.load(args.calibration), "output": "probability"}
    if args.fusion is not None:
        from ..scores.fusion import fusion_setting

        options["fusion"] = fusion_setting(args.fusion)
    if query is None:
        return _rank_candidates(args, options)
    documents = documents_from_arguments(args, scored=args.fusion is not None)
    if args.fusion is not None:
        lacking = next((document.id for document in documents if document.first_stage_score is None), None)
        if lacking is not None:
            raise InputError(
                f"{args.documents}: document {lacking!r} has no first_stage_score (or score), which --fusion needs"
            )
        options["first_stage_scores"] = [document.first_stage_score for document in documents]
    with _ranker(args) as ranker:
        say(f"ranking {len(documents):,} documents")
        texts = [document.text for document in documents]
        ranked = _ranked(args, ranker, query, texts, options)
    _print(args, ranker, query, documents, ranked)
    return 0


@contextlib.contextmanager
def _ranker(args: argparse.Namespace) -> Any:
    """The ranker of the command line, with its store."""
    from ..cache.folder_store import use_store

    ranker = list_ranker(args)
    model = model_from_arguments(args) if ranker is None else ranker
    with contextlib.nullcontext() if ranker is not None or args.store is None else use_store(model, args.store):
        yield model


def _ranked(args: argparse.Namespace, ranker: Any, query: str, texts: list[str], options: Any) -> list[dict[str, Any]]:
    from ..scores.ranking import rank

    if getattr(ranker, "calibration", None) is not None and args.passages is None:
        options = {"output": "probability", **options}
    return rank(ranker, query, texts, batch_tokens=args.batch_tokens, **options)


def _print(args: argparse.Namespace, model: Any, query: str, documents: Any, ranked: list[dict[str, Any]]) -> None:
    from ..models.resolver import resolve
    from ..rankers.protocols import last_counts

    rows = [
        {
            "rank": place,
            "id": documents[row["corpus_id"]].id,
            "score": round(row["score"], 6),
            **({"probability": round(row["probability"], 6)} if "probability" in row else {}),
            "text": row["passage"]["text"] if "passage" in row else documents[row["corpus_id"]].text,
            **({"passage": {name: row["passage"][name] for name in ("start", "end")}} if "passage" in row else {}),
        }
        for place, row in enumerate(ranked, 1)
    ]
    if args.json:
        named = {"query": query, "model": resolve(args.model).name, "results": rows}
        result: dict[str, Any] = {**named, **last_counts(model)}
        sys.stdout.write(json.dumps(result, ensure_ascii=False, indent=2) + "\n")
    else:
        sys.stdout.write(_table(rows) + "\n")


def _rank_candidates(args: argparse.Namespace, options: dict[str, Any]) -> int:
    from tqdm import tqdm

    from modeling_tsarank.eval.beir import read_queries
    from modeling_tsarank.eval.run_files import ranked, read_run, read_texts, tag_of, write_run

    from ..rankers.protocols import told_apart

    first = read_run(args.candidates)
    if args.queries is None:
        queries, known = read_texts(args.candidates)
    else:
        queries = read_queries(args.queries)
        known = {document.id: document.text for document in documents_from_arguments(args)}
    for query_id, scores in first.items():
        unknown = next((one for one in scores if one not in known), None)
        if unknown is not None or query_id not in queries:
            what, where = ("query", args.queries) if unknown is None else ("document", args.documents)
            raise InputError(f"{args.candidates}: the {what} {unknown or query_id!r} is not in {where}")
    found = {}
    with _ranker(args) as ranker:
        for query_id, scores in tqdm(first.items(), "queries", disable=None, leave=False):
            names = ranked(scores)
            if args.fusion is not None:
                options["first_stage_scores"] = [scores[name] for name in names]
            rows = _ranked(args, ranker, queries[query_id], [known[name] for name in names], options)
            new = told_apart([row["score"] for row in rows])
            found[query_id] = {names[row["corpus_id"]]: score for row, score in zip(rows, new, strict=True)}
    write_run(args.output, found, tag_of(args.model or "tsarank"))
    return 0
