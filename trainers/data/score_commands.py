"""Add a teacher's scores to labelled rows, for `tsarank train sft --teacher_weight W` (what is right stays what people
labelled; how relevant the rest is, the teacher says) or for `tsarank train distill` with a loss on scores.

With --leakage, what a test collection has as well, exactly or nearly, is left out of the rows.

Rows come in any layout of fine-tuning data and go out as {"query_id", "query", "positives", "negatives",
"positive_scores", "negative_scores"}. Scores are cached: a killed or repeated run scores nothing twice. Beside the
rows, NAME.report.txt names the teacher and the leakage check, for the cards, and counts how often the teacher puts a
labelled document first; --consistent-only keeps no other rows, for queries that a model generated and that may not fit
their passages (Promptagator's round trip, 2022).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_tsarank.cli.command_line import add_command
from modeling_tsarank.jobs.arguments import add_pool_arguments, with_pool
from modeling_tsarank.trainers.data.command_options import (
    add_shared,
    given_lengths,
    open_cache,
    open_check,
    print_counts,
)


if TYPE_CHECKING:
    from modeling_tsarank.jobs.pools import Pool

_EXAMPLES = """\
  tsarank data scores sft.jsonl --teacher ce:cross-encoder/ms-marco-MiniLM-L6-v2 --output scored.jsonl
  tsarank data scores mined.jsonl --teacher dense:sentence-transformers/all-MiniLM-L6-v2 --consistent-only \\
      --output consistent.jsonl
  tsarank train sft --train_data scored.jsonl --teacher_weight 0.5 --teacher_temperature 0.05 ...
  tsarank data scores sft.jsonl --teacher default --teacher dense:sentence-transformers/all-MiniLM-L6-v2 \\
      --teacher-weights 0.7 0.3 --output mixed.jsonl
  tsarank train sft --train_data mixed.jsonl --teacher_weight 0.5 --teacher_temperature 1 ...   # z-scores, not cosines
"""


def register_scores(subparsers: Any) -> None:
    """Adds `scores`."""
    parser = add_command(
        subparsers,
        "scores",
        "a teacher's scores beside labelled documents",
        str(__doc__),
        _EXAMPLES,
        run_scores,
        common="teacher-weights consistent-only leakage device dtype batch-tokens",
    )
    parser.add_argument("rows", metavar="ROWS", help="file, folder or Hub id of fine-tuning data")
    parser.add_argument(
        "--teacher",
        required=True,
        action="append",
        metavar="M",
        help="a reranker of this project (`default`: the released one), or of sentence-transformers ce:M, a "
        "CrossEncoder, or dense:M, a bi-encoder; given several times, the mean of their z-scores in each row",
    )
    add_shared(parser, "teacher-weights", "teacher-trained-on", "leakage", "output")
    parser.add_argument(
        "--consistent-only", action="store_true", help="only rows whose labelled documents the teacher puts first"
    )
    add_shared(parser, "max-length", "max-query-length", "batch-tokens", "cache", "device", "dtype")
    add_pool_arguments(parser)


def run_scores(args: argparse.Namespace) -> int:
    """Runs `tsarank data scores`."""
    from modeling_tsarank.trainers.data.teacher_scores import TeacherWorker

    return with_pool(args, partial(_score_rows, args), TeacherWorker())


def _score_rows(args: argparse.Namespace, pool: Pool) -> int:
    from tqdm.auto import tqdm

    from modeling_tsarank.files.writing import write_jsonl
    from modeling_tsarank.ranking_errors import InputError
    from modeling_tsarank.trainers.data.provenance import recorded_origin, teacher_facts, write_report
    from modeling_tsarank.trainers.data.teacher_scores import teacher_scorer
    from modeling_tsarank.trainers.row_checks import RowRules, checked_rows
    from modeling_tsarank.trainers.rows import positives_and_negatives

    teachers = teacher_facts(args.teacher, args.teacher_trained_on)
    rows = checked_rows(args.rows, RowRules(positives=True, negatives=1), minimum_rows=1).rows
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        cache, check = open_cache(args), open_check(args, stack)
        place = args.batch_tokens, args.device, args.dtype, pool
        scorer = teacher_scorer(args.teacher, args.teacher_weights, cache, None, *place, **given_lengths(args))
        bar = map(positives_and_negatives, tqdm(rows, desc="scoring rows", unit="row", disable=None))
        scored = _scored(bar if check is None else check.clean_rows(bar), scorer, counts)
        write_jsonl(args.output, (row for row in scored if not args.consistent_only or _consistent(row)))
    if args.consistent_only and not counts["labelled_first"]:
        args.output.unlink()
        raise InputError(f"the teacher puts a labelled document first in none of {counts['rows']} rows")
    if not counts["rows"]:
        args.output.unlink()
        raise InputError(f"the test collections (--leakage) leave none of {len(rows)} rows")
    # Without a check of its own, what is recorded of the given rows still holds.
    leakage = recorded_origin(Path(args.rows))["leakage"] if check is None else check.record()
    facts = {"teacher": scorer.describe(), "teachers": teachers, "leakage": leakage}
    write_report(args.output, {**facts, "rows_before": len(rows), **counts})
    share = counts["labelled_first"] / max(1, counts["rows"])
    table = [
        ("rows", counts["rows"]),
        ("documents", counts["documents"]),
        ("a labelled document first", f"{share:.1%}"),
    ]
    kept = [("rows kept", counts["labelled_first"])] if args.consistent_only else []
    print_counts("Scores", [*table, *kept])
    return 0


def _consistent(row: Mapping[str, Any]) -> bool:
    """Whether the teacher puts a labelled document first."""
    return bool(max(row["positive_scores"]) > max(row["negative_scores"]))


def _scored(rows: Any, scorer: Any, counts: Counter[str]) -> Iterator[Mapping[str, Any]]:
    """The rows with their scores, in order."""
    from modeling_tsarank.ranking_text import document_text

    scored, given = tee(map(dict, rows))
    lists = ((row["query"], [document_text(d) for d in row["positives"] + row["negatives"]]) for row in given)
    for row, scores in zip(scored, scorer.scores_of(lists), strict=True):
        count = len(row["positives"])
        row["positive_scores"], row["negative_scores"] = scores[:count], scores[count:]
        counts.update(rows=1, documents=len(scores), labelled_first=_consistent(row))
        yield {name: value for name, value in row.items() if value is not None}
