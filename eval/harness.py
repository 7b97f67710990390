"""Evaluation of a reranker on a test collection: first stage, resumable scoring, fusion, measures, result files."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_tsarank.eval.candidates import Candidates
from modeling_tsarank.eval.first_stages import retrieve, run_path
from modeling_tsarank.eval.fusion import append_tail, fuse_runs, refuse_tuned_split
from modeling_tsarank.eval.metrics import compute_metrics
from modeling_tsarank.eval.options import EvaluationOptions, is_retrieved
from modeling_tsarank.eval.results import DatasetResult, total, write_dataset_files
from modeling_tsarank.eval.run_files import read_run, tag_of, write_run
from modeling_tsarank.eval.scoring import BlockScorer, ScorerSource, score_blocks
from modeling_tsarank.eval.types import Collection, Run
from modeling_tsarank.files.hashes import hash_file
from modeling_tsarank.files.result_log import SETTINGS_FILE, ResultLog, check_settings, claim_folder, exclusive
from modeling_tsarank.jobs.pools import Pool, lead, leads
from modeling_tsarank.ranking_errors import InputError


logger = logging.getLogger(__name__)

_LOG = "scores.jsonl"
_ADVICE = "choose another --output, or use --overwrite to discard its scores"


def folder_name(collection_name: str) -> str:
    """A collection's name as one folder name: `cqadupstack/android` becomes `cqadupstack-android`."""
    return re.sub(r"[^\w.+-]+", "-", collection_name).strip("-.") or "dataset"


def evaluate_collection(
    source: ScorerSource,
    collection: Collection,
    options: EvaluationOptions,
    folder: Path,
    pool: Pool | None = None,
) -> DatasetResult:
    """Reranks the first stage's candidates of one collection and writes every result file to `folder`.

    A second call with the same settings resumes where the first one stopped; once all is scored it only writes the
    results again, for example with another fusion weight. Under `accelerate launch`, all processes call this, share
    the blocks and return the same result; only the main process reads and writes files.

    Args:
        source: The reranker.
        collection: Documents, queries and judgments.
        options: Evaluation options.
        folder: The output folder of this collection.
        pool: Scores blocks with a `BlockScorer`; None uses this process and the others of `accelerate launch`.

    Raises:
        InputError: No judged query, a first stage of another collection, a fusion weight tuned on these queries, or
            scores of another evaluation in `folder`.
    """
    if pool is None:
        scorer = BlockScorer(source, options.show_progress and leads())
        return lead(lambda pool: evaluate_collection(source, collection, options, folder, pool), scorer)
    started = time.perf_counter()
    with exclusive(folder):
        candidates, settings = _start(source, collection, options, folder)
        log = ResultLog(folder / _LOG, settings)
        records = score_blocks(pool, candidates, log, options.show_progress)
        _warn(records, collection.name)
        result = _measure(source, candidates, options, folder, records)
        seconds = time.perf_counter() - started
        write_dataset_files(result, options, settings, records, candidates.qrels, pool.size, seconds)
    return result


def _warn(records: Sequence[dict[str, Any]], name: str) -> None:
    for what, limit in (("documents", "max_length"), ("queries", "max_query_length")):
        cut = total([record.get(f"cut_{what}") for record in records])
        if cut:
            logger.warning("%s: %d %s were truncated to the model's length (%s)", name, cut, what, limit)
    unusable = total([record.get("unusable") for record in records])
    if unusable:
        logger.warning(
            "%s: %d answers of the model could not be used; their documents stay in the input order", name, unusable
        )


def _start(
    source: ScorerSource, collection: Collection, options: EvaluationOptions, folder: Path
) -> tuple[Candidates, dict[str, Any]]:
    """Everything before scoring: checks, the first stage, and the settings recorded in the output folder."""
    query_ids = collection.judged_queries()[: options.limit_queries]
    if not query_ids:
        raise InputError(
            f"{collection.name} has no judged query in the split {options.split!r}: "
            f"{len(collection.queries)} queries and judgments of {len(collection.qrels)}"
        )
    if options.fusion is not None:
        refuse_tuned_split(options.fusion, {one: collection.qrels[one] for one in query_ids}, collection.name)
    if options.overwrite:  # settings last: if killed in between, no old scores remain under new settings
        for path in (folder / _LOG, folder / SETTINGS_FILE):
            path.unlink(missing_ok=True)
    settings = _settings(source, collection, options)
    check_settings(folder, settings, _ADVICE, complete=False)
    first = _first_stage(collection, options, query_ids, folder)
    candidates = Candidates(collection, query_ids, first, options.top_k, options.block_pairs, source.whole_lists)
    settings["candidates_hash"] = candidates.digest()
    claim_folder(folder, settings, _ADVICE)
    return candidates, settings


def _settings(source: ScorerSource, collection: Collection, options: EvaluationOptions) -> dict[str, Any]:
    stage = options.first_stage
    return {
        "model": source.name,
        **source.settings,
        "dataset": collection.name,
        "split": options.split,
        "first_stage": options.first_stage_name,
        "first_stage_hash": None if is_retrieved(stage) else hash_file(run_path(collection, stage))[:16],
        "run_format": options.run_format,
        "top_k": options.top_k,
        "depth": options.depth or options.top_k,
        "limit_queries": options.limit_queries,
        "block_pairs": options.block_pairs,
        **({"whole_lists": True} if source.whole_lists else {}),
    }


def _first_stage(collection: Collection, options: EvaluationOptions, query_ids: list[str], folder: Path) -> Run:
    """Retrieves once and saves the run, so that a resumed evaluation reranks exactly the same candidates."""
    path = folder / "first_stage.trec"
    if not (path.is_file() and (folder / SETTINGS_FILE).is_file()):
        stage = options.first_stage
        depth = (options.depth or options.top_k) if is_retrieved(stage) else None
        run = retrieve(collection, stage, depth, options.cache_dir, query_ids, options.run_format)
        run = {query_id: run[query_id] for query_id in query_ids if run.get(query_id)}
        if not run:
            raise InputError(
                f"the first stage {options.first_stage} has no candidate for any of the {len(query_ids)} judged "
                f"queries of {collection.name}: give a run of this collection"
            )
        write_run(path, run, tag_of(options.first_stage_name))
    # Always read back from the file, so that a digit lost in writing cannot make a resumed evaluation differ.
    return read_run(path)


def _measure(
    source: ScorerSource,
    candidates: Candidates,
    options: EvaluationOptions,
    folder: Path,
    records: Sequence[dict[str, Any]],
) -> DatasetResult:
    """The runs and their measures, after all blocks are scored."""
    scores: Run = {}
    for block, record in enumerate(records):
        for (query_id, document_id), score in zip(candidates.block_pairs_of(block), record["scores"], strict=True):
            scores.setdefault(query_id, {})[document_id] = score
    reranked = {one: append_tail(scores[one], candidates.tail(one)) for one in candidates.query_ids if one in scores}
    runs = {"first_stage": candidates.first, "reranked": reranked}
    fusion = options.fusion
    if fusion is None:
        (folder / "reranker.trec").unlink(missing_ok=True)
    else:
        runs["fused"] = fuse_runs(scores, candidates.first, fusion.weight, fusion.normalization, candidates.top_k)
        write_run(folder / "reranker.trec", reranked, tag_of(source.name))
    write_run(folder / "run.trec", runs.get("fused", reranked), tag_of(source.name))
    systems = {name: compute_metrics(run, candidates.qrels, options.measures) for name, run in runs.items()}
    name = candidates.collection.name
    return DatasetResult(name, folder, len(candidates.query_ids), len(candidates.pairs), systems)
