"""`tsarank rank`: documents of a file in order for one query."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
from typing import Any

from ..models.arguments import add_model_arguments, add_store_argument, model_from_arguments
from ..rankers.arguments import RANKERS_HELP, add_ranker_arguments, list_ranker
from ..ranking_errors import InputError
from .command_line import add_command, real, whole


_DETAILS = f"""\
{RANKERS_HELP}
scores:
  A true/false model (the default) gives the difference of two logits, a query-likelihood model the mean
  log-probability of the query's tokens given the document, which is at most 0. Scores order the documents of one
  query; neither is a probability of relevance: `tsarank calibrate` makes one of it. A ranker of lists gives n for the
  first and 1 for the last, pairwise allpair its wins, a /rerank service (--model URL) what it returns.
"""
_EXAMPLES = """\
  tsarank rank --query "how long does a flea live" --documents examples/fleas.jsonl
  grep -h . notes/*.txt | tsarank rank --query "what did we decide" --documents - --top-k 5
  tsarank rank --query "…" --documents docs.jsonl --model Qwen/Qwen2.5-3B-Instruct --ranker setwise
  tsarank rank --query "…" --documents docs.jsonl --model ./my-ranker --json | jq .results[0]
"""


def register(subparsers: Any) -> None:
    """Adds `rank` to the command line."""
    parser = add_command(
        subparsers,
        "rank",
        "put documents in order for a query",
        run.__doc__,
        _EXAMPLES,
        run,
        common="top-k json passages calibration store model dtype device max-length batch-tokens ranker",
        details=_DETAILS,
    )
    parser.add_argument("--query", required=True, help="what is asked")
    parser.add_argument("--documents", required=True, metavar="FILE", help=".txt, .jsonl, or - for standard input")
    parser.add_argument("--format", choices=("txt", "jsonl"), default=None, help="of FILE, if its name does not say")
    parser.add_argument("--top-k", type=whole(), default=None, metavar="N", help="show only the best N")
    parser.add_argument("--json", action="store_true", help="JSON with full texts instead of a table")
    group = parser.add_argument_group("probabilities")
    group.add_argument(
        "--calibration", metavar="FILE", help="of `tsarank calibrate` for this model: shows probabilities of relevance"
    )
    group.add_argument(
        "--threshold",
        type=real(0, 1),
        metavar="P",
        help="with --calibration: only documents of this probability or more",
    )
    add_passage_arguments(parser)
    add_store_argument(parser)
    add_model_arguments(parser)
    add_ranker_arguments(parser)


def add_passage_arguments(parser: argparse.ArgumentParser) -> None:
    """`--passages` and what belongs to it."""
    group = parser.add_argument_group("long documents")
    group.add_argument(
        "--passages",
        metavar="HOW",
        help="split documents into passages and score these: max (the best one counts), mean, top-K (mean of the K "
        "best) or first; the best passage is shown. Without it, a long document is cut",
    )
    group.add_argument("--passage-length", type=whole(), metavar="N", help="tokens of a passage (default: what fits)")
    group.add_argument(
        "--passage-stride", type=whole(), metavar="N", help="tokens between their starts (default: half of that)"
    )


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
    """Put documents in order of relevance to a query, best first.

    FILE holds the documents: .txt, one a line; .jsonl, one object a line with "text" and optionally "title" and "_id";
    "-" reads standard input (JSON lines if the first line begins with a brace).
    """
    from ..cache.folder_store import use_store
    from ..cache.state_files import read_documents
    from ..models.resolver import resolve
    from ..rankers.calibration import Calibration
    from ..rankers.passages import PassageRanker, aggregation
    from ..rankers.protocols import last_counts
    from ..ranking_text import clean_query

    query = clean_query(args.query)
    calibration = None if args.calibration is None else Calibration.load(args.calibration)
    if calibration is None and args.threshold is not None:
        raise InputError("--threshold is a probability and needs --calibration, a file of `tsarank calibrate`")
    if args.passages is not None:
        aggregation(args.passages)
        if args.ranker != "pointwise":
            raise InputError("--passages is for models that score pairs; leave it out, or --ranker")
    elif args.passage_length is not None or args.passage_stride is not None:
        raise InputError("--passage-length and --passage-stride need --passages, such as --passages max")
    documents = read_documents(args.documents, args.format)
    texts = [document.text for document in documents]
    model: Any = list_ranker(args)
    if model is not None:
        ranked = model.rank(query, texts)
    else:
        model = model_from_arguments(args)
        ranker = model
        if args.passages is not None:
            ranker = PassageRanker(model, args.passages, args.passage_length, args.passage_stride)
        with contextlib.ExitStack() as stack:
            if args.store is not None:
                stack.enter_context(use_store(model, args.store))
            ranked = ranker.rank(query, texts, batch_tokens=args.batch_tokens)
    if calibration is not None:
        for row, value in zip(ranked, calibration.probabilities([row["score"] for row in ranked]), strict=True):
            row["probability"] = round(float(value), 6)
        ranked = [row for row in ranked if row["probability"] >= (args.threshold or 0)]
    ranked = ranked[: args.top_k]
    rows = [
        {
            "rank": place,
            "id": documents[row["corpus_id"]].id,
            "score": round(row["score"], 6),
            **({"probability": row["probability"]} if calibration else {}),
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
    return 0
